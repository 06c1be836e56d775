"""The study through a real Slurm of one node on this machine.

Skipped where Debian's slurm-wlm and munge are missing, or the tests do not run as root.
"""

import json
import shutil
import subprocess

import pandas as pd
import pytest

from benchmarks import slurm
from lesionlib.engine import settings as config
from lesionlib.engine import trace
from lesionlib.engine.files import ROOT
from lesionlib.segmentation.grid import planned_cells

NAME = "test-slurm"
SMALLER = {
    "networks": ["unet"],
    "control_networks": ["unet"],
    "arms": ["table"],
    "cells_per_job": 4,
}
pytestmark = [
    pytest.mark.study,
    pytest.mark.skipif(not slurm.possible(), reason="needs root, slurm-wlm and munge"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.running(tmp_path_factory.mktemp("slurm")):
        yield


def study(*arguments):
    """./run_all.sh --cluster slurm under smoke, with fewer cells."""
    command = ["./run_all.sh", "--preset", "smoke", "--name", NAME, *slurm.OPTIONS, *arguments]
    command += ["--config", *(f"{key}={json.dumps(value)}" for key, value in SMALLER.items())]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_study_runs_to_its_end(cluster):
    run = ROOT / "runs" / NAME
    shutil.rmtree(run, ignore_errors=True)
    process = study()
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.strip().splitlines()[-1].startswith("Report: ")
    cells = planned_cells(config.load("smoke", SMALLER))
    assert {path.stem for path in (run / "cells").glob("*.csv")} == {cell.id for cell in cells}
    assert len(pd.read_csv(run / "tables" / "table2.csv"))
    facts = trace.stages(run)["03_controlnet"]
    assert facts["outputs"] and facts["cpu_seconds"] > 0
    finished = subprocess.run(
        ["squeue", "--all", "-h", "-t", "completed", "-o", "%j"], capture_output=True, text=True
    ).stdout.split()
    assert len(finished) >= 8  # seven stages, the grid's shares, the report: each a job of Slurm
    again = study()
    assert "Nothing to be done" in again.stderr + again.stdout
    shutil.rmtree(run)


def test_without_slurm_or_profile_it_is_said(monkeypatch):
    from lesionlib.engine.errors import InputError
    from lesionlib.workflow import cli

    with pytest.raises(InputError, match="there is no profiles/pbs. Remedy: one of local, slurm"):
        cli.check_cluster("pbs")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="sbatch was not found"):
        cli.check_cluster("slurm")
