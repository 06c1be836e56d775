"""The state of a grid, from the files that its jobs leave."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from lesionlib.engine import settings as config
from lesionlib.engine import training
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import write_json
from lesionlib.segmentation import ledger
from lesionlib.segmentation.grid import Cell
from lesionlib.workflow import cli, status


def cell(seed, network="unet", method="real"):
    return Cell(network, method, 0, 100, "steps", seed)


def done(run, one, seconds):
    """Leave the files of a finished cell."""
    (run / "cells").mkdir(parents=True, exist_ok=True)
    (run / "cells" / f"{one.id}.csv").write_text("id\n")
    kept = run / "checkpoints" / "cells" / f"{one.id}.csv.json"
    write_json(kept, {"cell": one.id, "seconds": seconds})


@pytest.fixture
def run(tmp_path):
    """Six cells: two done, one running, one failed, one interrupted, one left."""
    cells = [*map(cell, range(5)), cell(0, "dcsaunet")]
    ledger.plan(tmp_path, cells, "a")
    done(tmp_path, cells[0], 100)
    done(tmp_path, cells[1], 140)
    (tmp_path / "log.csv").write_text("step,loss\n10,0.5\n20,0.4\n")
    facts = {"process": os.getpid(), "host": os.uname().nodename, "since": time.time() - 120}
    facts |= {"steps": 90, "log": str(tmp_path / "log.csv")}
    marks = tmp_path / "checkpoints" / "grid"
    write_json(marks / f"{cells[2].id}.json", facts)
    with pytest.raises(ZeroDivisionError), ledger.running(tmp_path, cells[3], 90, tmp_path / "x"):
        raise ZeroDivisionError("by zero\nand more")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_json(marks / f"{cells[4].id}.json", facts | {"process": ended.pid})
    return tmp_path


def test_every_cell_has_a_state(run):
    found = ledger.state(run)
    assert found["state"].tolist() == ["done", "done", "running", "failed", "left", "left"]
    detail = found["detail"].tolist()
    assert detail[2] == f"step 20 of 90, 2 min, on {os.uname().nodename}"
    assert detail[3:] == ["by zero", "interrupted", ""]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), training.Stop().error("weights", 7)])
def test_a_cell_that_somebody_stopped_has_not_failed(run, error):
    with pytest.raises(type(error)), ledger.running(run, cell(4), 90, run / "log.csv"):
        raise error
    found = ledger.state(run)
    assert (found["state"][4], found["detail"][4]) == ("left", "interrupted")
    ledger.plan(run, [Cell.parse(name) for name in found["cell"]], "a")
    assert ledger.state(run)["detail"][4] == ""


def test_a_new_start_tries_again_what_had_failed(run):
    cells = [Cell.parse(name) for name in ledger.state(run)["cell"]]
    ledger.plan(run, cells, "a")
    assert ledger.state(run)["state"].tolist() == ["done", "done", "running", *["left"] * 3]


def test_what_other_settings_made_is_left_until_it_has_been_looked_at(run):
    cells = [Cell.parse(name) for name in ledger.state(run)["cell"]]
    ledger.finished(run, cells[0])
    assert ledger.state(run)["state"][0] == "done"
    ledger.plan(run, cells, "b")
    found = ledger.state(run)
    assert (found["state"][0], found["detail"][0]) == ("left", "made with other settings")
    assert (found["state"][1], found["state"][2]) == ("done", "running")
    ledger.finished(run, cells[0])
    assert ledger.state(run)["state"][0] == "done"
    (run / "cells" / f"{cells[0].id}.csv").unlink()
    assert (ledger.state(run)["state"][0], ledger.state(run)["detail"][0]) == ("left", "")


def test_a_job_on_another_machine_is_taken_to_run(run):
    path = run / "checkpoints" / "grid" / f"{cell(4).id}.json"
    write_json(path, json.loads(path.read_text()) | {"host": "node7"})
    assert ledger.state(run)["detail"][4].endswith("on node7")


def test_the_time_left_follows_from_what_is_done(run):
    found = ledger.state(run)
    expected = 120 * (0.5 + 1 + 1) + 4 * 120  # DCSAU-Net, of which none is done, takes four times
    assert ledger.seconds_left(found) == pytest.approx(expected)
    assert "about 13 min left with 1 at a time" in ledger.line(found)
    assert ledger.line(found, timed=False) == ledger.line(found).partition("; about")[0]
    done(run, cell(0, "dcsaunet"), 300)
    assert ledger.seconds_left(ledger.state(run)) == pytest.approx(120 * 2.5)


def test_a_finished_cell_leaves_no_mark_and_none_done_gives_no_time(tmp_path):
    ledger.plan(tmp_path, [cell(0), cell(1)], "a")
    with ledger.running(tmp_path, cell(0), 9, tmp_path / "log.csv"):
        assert ledger.state(tmp_path)["state"].tolist() == ["running", "left"]
    found = ledger.state(tmp_path)
    assert found["state"].tolist() == ["left", "left"] and np.isnan(ledger.seconds_left(found))
    assert ledger.line(found) == "grid: 0 of 2 cells done, 0 running, 0 failed, 2 left"


def test_the_command_lists_them_and_a_run_without_a_plan_is_one_clear_error(
    run, tmp_path, capsys, monkeypatch
):
    assert cli.main(["--status", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("grid: 2 of 6 cells done, 1 running, 1 failed, 2 left; about 13 min")
    assert f"failed:\n  {cell(3).id}  by zero" in said
    monkeypatch.setattr(status, "SHOWN", 1)
    assert "and 1 more" in status.report(run)
    assert cli.main(["--status", str(tmp_path / "nowhere")]) == 2
    assert "there is no plan of its grid" in capsys.readouterr().err
    with pytest.raises(InputError):
        ledger.state(tmp_path / "nowhere")


def test_a_time_that_cannot_be_told_is_unknown_and_the_lines_go_on(run, monkeypatch, capsys):
    def fail(settings):
        raise KeyError("dcsaunet")

    monkeypatch.setattr(status, "EVERY", 0.05)
    monkeypatch.setattr(status, "kept_file", lambda settings: run / "log.csv")
    settings = config.load("smoke").model_copy(update={"run": str(run)})
    with status.reported(settings, fail):
        time.sleep(0.6)
    first, line = capsys.readouterr().err.splitlines()
    assert "--estimate" in first and line.startswith("grid: 2 of 6")
    answers = iter([OSError(), ("3 min left", True)])

    def left():
        answer = next(answers, ("", False))
        if isinstance(answer, OSError):
            raise answer
        return answer

    known = SimpleNamespace(first=lambda: "Estimate", left=left)
    with status.reported(settings, lambda settings: known):
        time.sleep(0.6)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Estimate" and said[1].endswith("3 min left")


def test_a_line_is_written_when_something_has_changed(run, monkeypatch, capsys):
    monkeypatch.setattr(status, "EVERY", 0.05)
    monkeypatch.setattr(status, "kept_file", lambda settings: run / "nothing was tried")
    with status.reported(config.load("smoke").model_copy(update={"run": str(run)}), None):
        time.sleep(0.6)
        done(run, cell(2), 120)
        ledger.finished(run, cell(2))
        time.sleep(0.6)
    first, *lines = capsys.readouterr().err.splitlines()
    assert "--estimate" in first
    assert [line.partition(" of ")[0] for line in lines] == ["grid: 2", "grid: 3"]
