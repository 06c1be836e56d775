"""The state of a run's grid: its plan, a line now and then while it runs, and `--status RUN`.

Modules that import pandas are imported where they are used, so that a second start is quick.
"""

import sys
import threading
from contextlib import contextmanager

from lesionlib.engine.errors import InputError
from lesionlib.engine.settings import Settings

EVERY = 60  # seconds between two lines
SHOWN = 12  # cells that are listed in one state


def plan(settings: Settings):
    """Write which cells a run is to have."""
    from lesionlib.segmentation import grid, ledger

    ledger.plan(settings.run, grid.planned_cells(settings))


@contextmanager
def reported(run):
    """Within this block, a line on the run's grid is written to stderr whenever it has changed."""
    ended = threading.Event()
    threading.Thread(target=_report, args=(run, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _report(run, ended: threading.Event):
    from lesionlib.segmentation import ledger

    last = None
    while not ended.wait(EVERY):
        try:
            found = ledger.state(run)
        except InputError:  # files that are being written
            continue
        line = ledger.line(found)
        if line != last and not set(found["state"]) <= {"left"}:
            print(line, file=sys.stderr, flush=True)
        last = line


def report(run) -> str:
    """The cells of a run that are running, failed and left, as text; InputError without a plan."""
    from lesionlib.segmentation import ledger

    found = ledger.state(run)
    lines = [ledger.line(found)]
    for name in ("running", "failed", "left"):
        rows = found[found["state"] == name]
        lines += [f"\n{name}:"] * bool(len(rows))
        lines += [f"  {row.cell}  {row.detail}".rstrip() for row in rows.head(SHOWN).itertuples()]
        if len(rows) > SHOWN:
            lines.append(f"  and {len(rows) - SHOWN} more")
    return "\n".join(lines)
