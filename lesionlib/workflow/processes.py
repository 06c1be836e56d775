"""The processes of a run: started so that one signal ends them all, and what made them fail."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

from lesionlib.engine.files import ROOT

GRACE = 30  # seconds that a training has to write its checkpoint
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The user, or the machine, asked for the end of the run."""


def environment() -> dict:
    """The variables of a run's processes, which import this clone, not what is installed."""
    path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def _stop(number, frame):
    raise Stopped


@contextlib.contextmanager
def stoppable():
    """Within this block Ctrl-C, SIGTERM and a closed terminal raise Stopped."""
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def each(found, action: str, *arguments):
    """Call a method of every process that is still there."""
    for one in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(one, action)(*arguments)


def is_kernel(process) -> bool:
    """Whether a process is a notebook's kernel; False if it has ended or is not ours to read."""
    with contextlib.suppress(psutil.Error):
        return "ipykernel_launcher" in " ".join(process.cmdline())
    return False


def _is_gone(process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def end(process: subprocess.Popen):
    """End a process and all that it has started, in silence; a training writes its checkpoint.

    All but the kernels are stopped first, so that none of them reports the end of another.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        root.suspend()
        children = root.children(recursive=True)
        kernels = [one for one in children if is_kernel(one)]
        inside = {one.pid for kernel in kernels for one in (kernel, *kernel.children(True))}
        each([one for one in children if one.pid not in inside], "suspend")
        each(kernels, "terminate")
        last = time.monotonic() + GRACE
        while time.monotonic() < last and not all(map(_is_gone, kernels)):
            time.sleep(0.1)
        each([root, *children], "kill")
    process.wait()


def run(command, **options) -> int:
    """Run a command in the repository; returns its exit status.

    It has a session of its own, so that Ctrl-C reaches this process alone, which ends it and all
    that it has started, then raises Stopped. So do SIGTERM and a closed terminal.
    """
    with stoppable():
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), start_new_session=True, **options
        )
        try:
            return process.wait()
        except Stopped:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            end(process)
            raise


def failures(run_folder) -> Path:
    """The folder in which the stages of a run say why they failed, a file each."""
    return Path(run_folder) / "logs" / "failed"


def forget_failures(run_folder):
    """Delete what an earlier start said of failures."""
    shutil.rmtree(failures(run_folder), ignore_errors=True)


def told_failures(run_folder) -> list[str]:
    """What the stages that failed say, in the order in which they did."""
    paths = failures(run_folder).glob("*.txt")
    return [p.read_text().strip() for p in sorted(paths, key=lambda p: p.stat().st_mtime_ns)]
