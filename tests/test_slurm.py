"""The study through a real Slurm: one node on this machine, from Debian's slurm-wlm and munge.

Skipped where these are missing or the tests do not run as root, who starts the daemons; never on
a machine that has a cluster's configuration.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from lesionlib import config
from lesionlib.files import ROOT, read_json
from lesionlib.grid import of_settings

CONFIG, NAME = Path("/etc/slurm/slurm.conf"), "test-slurm"
MARK = "# written by the tests of lesionlib\n"
NEEDED = ("sbatch", "slurmctld", "slurmd", "munged")
PLACES = f"{os.environ['PATH']}:/usr/sbin"
missing = [name for name in NEEDED if not shutil.which(name, path=PLACES)]
foreign = CONFIG.exists() and not CONFIG.read_text().startswith(MARK)
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing) or os.geteuid() != 0 or foreign,
                       reason="needs root, slurm-wlm and munge, and no cluster of its own"),
]


def write_config(folder):
    """One node that is controller and worker, on loopback, without cgroups or a database."""
    host = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 1024
    settings = {
        "ClusterName": "lesionlib", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmUser": "root",
        "SlurmdUser": "root", "AuthType": "auth/munge", "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool", "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid", "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log", "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none", "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none", "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory", "MpiDefault": "none", "ReturnToService": 2,
        "MinJobAge": 3600, "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",
        "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory}",
        "PartitionName": f"main Nodes={host} Default=YES MaxTime=INFINITE State=UP",
    }
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(MARK + "".join(f"{key}={value}\n" for key, value in settings.items()))
    return host


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running Slurm; its daemons are killed afterwards."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = write_config(folder)
    os.makedirs("/run/munge", exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    pids = [folder / "slurmd.pid", folder / "slurmctld.pid", Path("/run/munge/munged.pid")]
    subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged", "--force",
                    f"--pid-file={pids[2]}"], check=True)
    subprocess.run(["/usr/sbin/slurmctld"], check=True)
    subprocess.run(["/usr/sbin/slurmd", "-N", host], check=True)
    try:
        for _ in range(60):
            said = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
            if said.stdout.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"Slurm did not come up: {said.stdout}{said.stderr}")
        yield folder
    finally:
        subprocess.run(["scancel", "--user=root"])
        for path in pids:
            if path.exists():
                subprocess.run(["kill", path.read_text().strip()])
        CONFIG.unlink()


def study(*arguments):
    """./run_all.sh --cluster slurm under smoke, with what a node of a few GB and a test need."""
    command = ["./run_all.sh", "--preset", "smoke", "--name", NAME, "--cluster", "slurm",
               "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2",
               "--default-resources", "mem_mb=2000", "runtime=60",
               "slurm_extra=\"'--signal=USR1@60'\"", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_study_runs_to_its_end(slurm):
    shutil.rmtree(ROOT / "runs" / NAME, ignore_errors=True)
    process = study()
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.strip().splitlines()[-1].startswith("Report: ")
    run = ROOT / "runs" / NAME
    cells = of_settings(config.load("smoke"))
    assert {path.stem for path in (run / "cells").glob("*.csv")} == {cell.id for cell in cells}
    assert len(pd.read_csv(run / "tables" / "table2.csv"))
    facts = read_json(run / "logs" / "03_controlnet.json")
    assert facts["outputs"] and facts["cpu_seconds"] > 0
    finished = subprocess.run(["squeue", "--all", "-h", "-t", "completed", "-o", "%j"],
                              capture_output=True, text=True).stdout.split()
    assert len(finished) >= 8  # seven stages, the grid's shares, the report: each a job of Slurm
    assert "Nothing to be done" in (again := study()).stderr + again.stdout
    shutil.rmtree(run)
