"""The state of a run: its plan, a line now and then while it runs, and `--status RUN`.

Modules that import pandas are imported where they are used, so that a second start is quick.
"""

import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT
from lesionlib.engine.provenance import digest, hardware
from lesionlib.engine.settings import Settings
from lesionlib.engine.stages import STAGES

EVERY = 60  # seconds between two lines
SHOWN = 12  # cells that are listed in one state
KEPT = ROOT / "runs" / ".probes"
UNKNOWN = "How long will it take? The same command with --estimate tries it, in about a minute"


# Settings that only say how often something is done: what was tried stays valid if they change.
COUNTS = set(
    "run preset phantoms data_seed split split_seed generator_share prompt_draw mask_samples "
    "mask_seed synthetic_amounts arms mask_mode example_seed reference_steps reference_seed "
    "reference_moved base_steps generator_seeds save_every controlnet_steps controlnet_accumulate "
    "controlnet_lr validate_every validation_samples ddim_steps sample_seed diversity_samples "
    "prompt_samples classifier_steps pix2pixhd_steps pix2pixhd_fine_steps pix2pixhd_fixed_steps "
    "pix2pixhd_lr control_networks brief_networks seeds arm_seeds data_shares "
    "control_share real_pairs equal_epochs_up_to epochs most_steps plateau_gain lr validations "
    "cells_per_job".split()
)


def kept_file(settings: Settings) -> Path:
    """Where `--estimate` keeps what it has tried on this machine for such settings."""
    told = {key: value for key, value in settings.flat().items() if key not in COUNTS}
    return KEPT / f"{digest(hardware(), told)}.json"


def plan(settings: Settings):
    """Write which cells a run is to have."""
    from lesionlib.segmentation import grid, ledger

    read = [name for name in STAGES["06_segmentation"] if name != "data"]  # whose paths may change
    key = digest({name: getattr(settings, name).determining() for name in read})
    ledger.plan(settings.run, grid.planned_cells(settings), key)


@contextmanager
def reported(settings: Settings, countdown):
    """Within this block what the run will cost is written to stderr, if that is known on this
    machine, then a line on its grid and the time left whenever a cell or a job has ended.

    `countdown`: makes an `estimate.Countdown` of the settings; called if `kept_file` exists."""
    ended = threading.Event()
    threading.Thread(target=_report, args=(settings, countdown, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _report(settings: Settings, countdown, ended: threading.Event):
    from lesionlib.segmentation import ledger

    known, first = _estimated(settings, countdown)
    _say(first)
    last, left, news = None, "", False
    while not ended.wait(EVERY):
        try:
            found = ledger.state(settings.run)
            if known:
                left, news = known.left()
        except (InputError, OSError, TypeError):  # files that are being written, or deleted
            continue
        # The estimate of the run, where there is one, tells the time of the grid with that of all.
        line, begun = ledger.line(found, timed=not known), not set(found["state"]) <= {"left"}
        if (line != last and begun) or news:
            _say("; ".join(filter(None, [line * begun, left])))
        last = line


def _estimated(settings: Settings, countdown):
    """A countdown and its first words; None and UNKNOWN if nothing was tried, or if it fails."""
    with suppress(Exception):
        if kept_file(settings).exists():
            known = countdown(settings)
            return known, known.first()
    return None, UNKNOWN


def _say(text: str):
    print(text, file=sys.stderr, flush=True)


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
