"""The study on Slurm: the gain of a second slot, and the overhead of Snakemake and Slurm per job.

`running` starts a real Slurm of one node on this machine, from Debian's slurm-wlm and munge,
without systemd, cgroups or a database; it needs root and a machine that belongs to no cluster. The
tests use it too.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

from lesionlib.engine.files import ROOT, read_json

CONFIG = Path("/etc/slurm/slurm.conf")
MARK = "# one node, written by benchmarks/slurm.py of lesionlib\n"
NAME = "bench-slurm"
# For a node of a few GB without a database, with frequent status checks for short jobs.
OPTIONS = [
    "--cluster",
    "slurm",
    "--slurm-status-command",
    "squeue",
    "--slurm-init-seconds-before-status-checks",
    "2",
    "--default-resources",
    "mem_mb=2000",
    "runtime=60",
    "slurm_extra=\"'--signal=USR1@60'\"",
]


def possible() -> bool:
    """Whether `running` can start a Slurm on this machine."""
    places = f"{os.environ['PATH']}:/usr/sbin"
    installed = all(shutil.which(name, path=places) for name in ("sbatch", "slurmd", "munged"))
    foreign = CONFIG.exists() and not CONFIG.read_text().startswith(MARK)
    return installed and os.geteuid() == 0 and not foreign


def write_config(folder) -> str:
    """Write a configuration of this machine as controller and node; returns the node's name."""
    host = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 1024
    settings = {
        "ClusterName": "lesionlib",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "MinJobAge": 3600,
        "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",
        "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory}",
        "PartitionName": f"main Nodes={host} Default=YES MaxTime=INFINITE State=UP",
    }
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(MARK + "".join(f"{key}={value}\n" for key, value in settings.items()))
    return host


@contextmanager
def running(folder):
    """A Slurm of one node while the block lasts; its state is in `folder`."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = write_config(folder)
    os.makedirs("/run/munge", exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    pids = [folder / "slurmd.pid", folder / "slurmctld.pid", Path("/run/munge/munged.pid")]
    try:
        subprocess.run(
            [
                "runuser",
                "-u",
                "munge",
                "--",
                "/usr/sbin/munged",
                "--force",
                f"--pid-file={pids[2]}",
            ],
            check=True,
        )
        subprocess.run(["/usr/sbin/slurmctld"], check=True)
        subprocess.run(["/usr/sbin/slurmd", "-N", host], check=True)
        for _ in range(120):
            said = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
            if said.stdout.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            raise RuntimeError(f"Slurm did not come up: {said.stdout}{said.stderr}")
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        numbers = [int(path.read_text()) for path in pids if path.exists()]
        found = [psutil.Process(pid) for pid in numbers if psutil.pid_exists(pid)]
        for daemon in found:
            daemon.terminate()
        psutil.wait_procs(found, timeout=30)  # the controller writes its state when it ends
        CONFIG.unlink()


def study(*arguments) -> float:
    """Seconds of a start of the smoke study on Slurm."""
    command = [sys.executable, "-m", "lesionlib.workflow.cli", "--preset", "smoke", "--name", NAME]
    start, command = time.perf_counter(), [*command, *arguments, *OPTIONS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return time.perf_counter() - start


def rows() -> list[tuple[str, float, float, str]]:
    """(name, ours, reference, unit); empty where Slurm cannot be started."""
    if not possible():
        return []
    run, spent = ROOT / "runs" / NAME, {}
    shutil.rmtree(run, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)):
        study("controlnet", "pix2pixhd")
        for slots in (1, 2):
            for grid in (run / "cells", run / "checkpoints" / "cells"):
                shutil.rmtree(grid, ignore_errors=True)
            # Snakemake does not rebuild a cell that only an existing table needs.
            for done in [*run.glob("logs/06_segmentation*"), run / "tables" / "table2.csv"]:
                done.unlink(missing_ok=True)
            spent[slots] = study("--jobs", str(slots), "segmentation")
            facts = [read_json(path) for path in (run / "logs").glob("06_segmentation*.json")]
            if slots == 1:
                alone = sum(one["seconds"] for one in facts)
                jobs = len(facts)
    shutil.rmtree(run)
    return [
        ("grid of smoke on Slurm: with two slots, with one", spent[2], spent[1], "s"),
        ("a job on Slurm, its notebook alone", spent[1] / jobs, alone / jobs, "s"),
    ]


if __name__ == "__main__":
    for row in rows():
        print(*row)
