"""The study under `smoke` as a user runs it, for the tests that look at a finished run."""

import os
import subprocess

import pandas as pd

from lesionlib.data import phantom
from lesionlib.engine.files import ROOT

NAME = "test-smoke"
RUN = ROOT / "runs" / NAME


def run_all(*arguments, name=NAME, preset="smoke"):
    """./run_all.sh as a user calls it; returns the finished process with its output."""
    command = ["./run_all.sh", "--preset", preset, "--name", name, *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def table(name):
    """A table of the finished run."""
    return pd.read_csv(RUN / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""])


def external_pairs(folder, seed, n):
    """A folder of `n` procedural pairs as an external source, with other file names."""
    phantom.write_dataset(folder / "raw", n, 64, seed, workers=1)
    for name in ("images", "masks"):
        (folder / name).mkdir()
        kind = {"images": "1-2_Training_Input", "masks": "1_Training_GroundTruth"}[name]
        for path in (folder / "raw" / f"ISIC2018_Task{kind}").glob("ISIC_*"):
            path.rename(folder / name / path.name.replace("ISIC_", "own_"))
    return folder
