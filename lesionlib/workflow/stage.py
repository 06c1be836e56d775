"""Runs one notebook of the study with papermill and records its inputs, outputs and costs.

`python -m lesionlib.workflow.stage NOTEBOOK EXECUTED --text LOG --facts JSON --values JSON
--inputs FILE ... --outputs FILE ...` is what every rule of the Snakefile calls.
"""

import argparse
import itertools
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pynvml

from lesionlib.data import catalogue
from lesionlib.engine import settings, trace
from lesionlib.engine.artefacts import stage_key
from lesionlib.engine.files import ROOT, read_json, write_json
from lesionlib.engine.provenance import code_version, environment, file_digest
from lesionlib.engine.stages import STAGES
from lesionlib.report import notebooks
from lesionlib.workflow.processes import each, failures, is_kernel

# Jupyter chooses the ports of a kernel before it binds them: if two that start at the same moment
# choose the same one, the second dies with this message before it runs any code.
NO_KERNEL = "Kernel died before replying to kernel_info"
ATTEMPTS = 3
# jsonschema, which checks notebooks, builds a grammar of international web addresses when it is
# imported: more than a second in every process. No notebook holds one; jsonschema does without.
PAPERMILL = """
import sys
sys.modules["rfc3987_syntax"] = None
from papermill.cli import papermill
papermill()
"""
BEAT = 15  # observations of the GPUs between two notes of the time spent


def forward_signal(number, frame):
    """Forward a signal to stop to the notebook's kernel, which runs in its own session.

    A training then writes its checkpoint and ends (`training.Stop`); anything else ends at once.
    """
    children = psutil.Process().children(recursive=True)
    each(list(filter(is_kernel, children)) or children, "send_signal", number)


def gpus() -> list:
    """NVML's handles of the GPUs that this process may see; [] where there is no driver."""
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def gpu_energy(handles) -> float:
    """Watt hours that the GPUs have counted since their driver was loaded, for all programs.

    The counter exists from NVIDIA's Volta generation on; an older GPU adds nothing.
    """
    millijoules = 0
    for handle in handles:
        with suppress(pynvml.NVMLError):
            millijoules += pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    return millijoules / 3.6e6


class Sitting:
    """The time that one execution of a notebook takes, kept beside that of earlier ones.

    `path`: a JSON list with a row per execution. It is written while the notebook runs, so that
    also one that is killed leaves its time.
    """

    def __init__(self, path: Path):
        self.path, self.earlier = path, read_json(path) or []
        self.began, self.spent = time.time(), self.cpu_seconds()
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.began))

    @staticmethod
    def cpu_seconds() -> float:
        """User and system time of all child processes, also of those that have ended."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        total = ended.ru_utime + ended.ru_stime
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                total += sum(child.cpu_times()[:4])  # its own, and of its ended children
        return total

    def note(self):
        """Write the wall and CPU seconds so far."""
        seconds, cpu = time.time() - self.began, self.cpu_seconds() - self.spent
        row = {"started": self.started, "seconds": seconds, "cpu_seconds": cpu}
        write_json(self.path, [*self.earlier, row])


def watch(sitting: Sitting, handles, peak: list, ended: threading.Event):
    """Until `ended`, keep the largest number of MiB in use on a GPU in `peak`, and the time."""
    for number in itertools.count():
        if not number % BEAT:
            sitting.note()
        used = [pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20 for handle in handles]
        peak[0] = max([peak[0], *map(round, used)])
        if ended.wait(2):
            return


def papermill() -> list[str]:
    """The command that runs papermill, without its arguments."""
    return [sys.executable, "-c", PAPERMILL]


def run_papermill(given) -> tuple[int, dict]:
    """Execute the notebook; returns exit status, and its start and use of GPUs."""
    command = [
        *papermill(),
        given.notebook,
        given.executed,
        "--cwd",
        str(ROOT / "notebooks"),
        "--no-progress-bar",
        "--parameters_yaml",
        given.values,
    ]
    facts = Path(given.facts)
    sitting = Sitting(facts.parent / trace.SITTINGS / facts.name)
    gpu, ended, handles = [0], threading.Event(), gpus()
    energy = gpu_energy(handles)
    watcher = threading.Thread(target=watch, args=(sitting, handles, gpu, ended), daemon=True)
    watcher.start()
    for _ in range(ATTEMPTS):
        with open(given.text, "w") as text:
            process = subprocess.Popen(command, stdout=text, stderr=subprocess.STDOUT)
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, forward_signal)
            code = process.wait()
        if not code or NO_KERNEL not in Path(given.text).read_text():
            break
    ended.set()
    watcher.join()
    sitting.note()
    return code, {
        "started": sitting.started,
        "gpu_memory_mb": gpu[0],
        "gpu_energy_wh": round(gpu_energy(handles) - energy, 2),
    }


def digests(paths) -> dict:
    """Digests of files by their paths relative to the repository."""
    found = {path: Path(path).resolve() for path in paths}
    return {
        str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path): file_digest(path)
        for path in found.values()
    }


def stage_record(name: str, parameters: dict) -> dict:
    """What a stage is about to be executed with: key (code and settings), files, environment."""
    stage, preset = name.partition("-")[0], parameters["preset"]
    read = settings.load(preset, parameters["overrides"], groups=STAGES[stage])
    return {
        "stage": name,
        "key": stage_key(stage, read),
        "files": catalogue.files_read(stage, read),
        "parameters": parameters,
        "code": code_version(),
        "environment": environment(),
    }


def main(arguments=None) -> int:
    """Entry point; the exit status is papermill's."""
    options = argparse.ArgumentParser(description="Run one notebook of the study.")
    options.add_argument("notebook")
    options.add_argument("executed")
    for name in ("--text", "--facts", "--values"):
        options.add_argument(name, required=True)
    for name in ("--inputs", "--outputs"):
        options.add_argument(name, nargs="*", default=[])
    given = options.parse_args(arguments)
    record = stage_record(Path(given.executed).stem, json.loads(given.values))
    code, costs = run_papermill(given)
    executed = Path(given.executed).resolve()  # a run with an unusual name is given by a link
    executed = executed.relative_to(ROOT) if executed.is_relative_to(ROOT) else executed
    messages = notebooks.collect_messages(executed) if executed.exists() else []
    for line in messages:
        print(line, file=sys.stderr)
    if code:
        last = [line for line in Path(given.text).read_text().splitlines() if line.strip()][-1:]
        failed = [line for line in messages if not line.startswith(("WARNING", "NOTE"))] or last
        text = "\n".join(failed or [f"{given.executed}: papermill ended with status {code}"])
        path = failures(executed.parents[1]) / f"{executed.stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return code
    made = {"inputs": digests(given.inputs), "outputs": digests(given.outputs)}
    write_json(given.facts, record | made | costs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
