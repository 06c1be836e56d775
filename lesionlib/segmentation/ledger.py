"""What of a run's grid is done, running, failed and left, and how long it will take.

`plan` writes the grid of a run; `running` marks a cell while it is trained, `finished` one whose
result is there. `state` reads them from the run's folder, on any machine that sees it, also while
other processes work.
"""

import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlib.engine.errors import InputError, Interrupted
from lesionlib.engine.files import Log, read_json, resolve, write_json
from lesionlib.segmentation.grid import COST, Cell

COLUMNS = ["cell", "state", "detail", "seconds"]


def _folders(run) -> tuple[Path, Path]:
    """Folders of the marks, and of the kept results with their records."""
    return resolve(run) / "checkpoints" / "grid", resolve(run) / "checkpoints" / "cells"


def _plan(marks: Path) -> dict | None:
    """What `plan` wrote; None without a plan, or with one of older code, a list."""
    found = read_json(marks / "plan.json")
    return found if isinstance(found, dict) else None


def plan(run, cells: list[Cell], settings: str):
    """Write the names of the cells that a run is to have, and forget which had failed or were
    stopped: they are tried again. `settings`: a digest of those that determine the cells; results
    made with others count as left until `finished` has seen them."""
    marks = _folders(run)[0]
    ids = [cell.id for cell in cells]
    write_json(marks / "plan.json", {"cells": ids, "settings": settings})
    for path in (marks / f"{name}.json" for name in ids):
        if {"error", "stopped"} & set(read_json(path) or {}):
            path.unlink()


@contextmanager
def running(run, cell: Cell, steps: int, log: Path):
    """Mark a cell as running within this block, with the log of its training; as failed if the
    block ends with an error, as stopped if somebody ends it."""
    path = _folders(run)[0] / f"{cell.id}.json"
    facts = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    write_json(path, facts | {"steps": steps, "log": str(log)})
    try:
        yield
    except BaseException as error:
        failed = isinstance(error, Exception) and not isinstance(error, Interrupted)
        text = str(error) or type(error).__name__
        write_json(path, {"error" if failed else "stopped": text.splitlines()[0]})
        raise
    path.unlink(missing_ok=True)


def finished(run, cell: Cell):
    """Mark a cell whose result is there and belongs to the present plan, if there is one."""
    marks = _folders(run)[0]
    if planned := _plan(marks):
        write_json(marks / f"{cell.id}.json", {"settings": planned["settings"]})


def _alive(mark: dict) -> bool:
    """Whether the process of a mark is there; on another machine this is assumed."""
    if mark["host"] != socket.gethostname():
        return True
    try:
        os.kill(mark["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


def _marked(mark: dict) -> tuple[str, str]:
    """State and detail of a cell with a mark."""
    if "error" in mark:
        return "failed", mark["error"]
    if "stopped" in mark or not _alive(mark):
        return "left", "interrupted"
    rows = Log.read(mark["log"])
    done, minutes = int(rows[-1]["step"]) if rows else 0, (time.time() - mark["since"]) / 60
    return "running", f"step {done} of {mark['steps']}, {minutes:.0f} min, on {mark['host']}"


def state(run) -> pd.DataFrame:
    """A row per planned cell in order: its name, state (done, running, failed, left), detail, and
    seconds of its training once it is done. InputError if no grid is planned."""
    marks, kept = _folders(run)
    if (planned := _plan(marks)) is None:
        problem = "there is no plan of its grid"
        raise InputError(resolve(run), problem, "start this run with ./run_all.sh first")
    records = (read_json(path) for path in kept.glob("*.csv.json"))
    seconds = {record["cell"]: record["seconds"] for record in records}
    rows = []
    for name in planned["cells"]:
        made = (resolve(run) / "cells" / f"{name}.csv").exists()
        mark = read_json(marks / f"{name}.json") or {}
        if mark.keys() - {"settings"}:
            row = _marked(mark)
        elif made and mark.get("settings", planned["settings"]) == planned["settings"]:
            row = "done", ""
        else:
            row = "left", "made with other settings" * made
        rows.append((name, *row, seconds.get(name, np.nan)))
    return pd.DataFrame(rows, columns=COLUMNS)


def seconds_left(found: pd.DataFrame) -> float:
    """Seconds of training that the cells without a result will take, NaN if none has one yet.

    `found`: from `state`. A cell takes as long as the mean of those of its arm with other seeds, or
    else of its network, or else of all by COST. What runs counts as half done.
    """
    cells = [Cell.parse(name) for name in found["cell"]]
    arms = [cell.id.rpartition("-")[0] for cell in cells]
    table = found.assign(arm=arms, network=[cell.network for cell in cells])
    unit = table["seconds"] / table["network"].map(COST)
    expected = table.groupby("arm")["seconds"].transform("mean")
    expected = expected.fillna(table.groupby("network")["seconds"].transform("mean"))
    expected = expected.fillna(unit.mean() * table["network"].map(COST))
    weight = table["state"].map({"done": 0.0, "running": 0.5}).fillna(1.0)
    return float((expected * weight).sum(skipna=False))


def line(found: pd.DataFrame, timed: bool = True) -> str:
    """The state of a grid in one line; `timed`: with the time left at the present pace."""
    counts = found["state"].value_counts()
    parts = [f"{counts.get(name, 0)} {name}" for name in ("running", "failed", "left")]
    text = f"grid: {counts.get('done', 0)} of {len(found)} cells done, {', '.join(parts)}"
    left, at_once = seconds_left(found), max(1, counts.get("running", 0))
    if not timed or np.isnan(left) or not left:
        return text
    return f"{text}; about {np.ceil(left / at_once / 60):.0f} min left with {at_once} at a time"
