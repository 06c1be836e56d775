"""Atomic file writing, the lock of a run folder, and logs: no file is ever left half-written."""

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lesionlib.engine.errors import InputError

ROOT = Path(__file__).resolve().parents[2]  # the repository: notebooks/, config/, runs/
FORMULA = r"'*\s*(?:=|@|[+-][^\d.\s])"  # how a cell begins that a spreadsheet would run
TEMPORARY = re.compile(r"\..+\.\d+(\.\w+)?")  # file names that `atomic_write` uses


def resolve(path) -> Path:
    """A path from the settings: absolute, or relative to the repository."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else ROOT / path


@contextmanager
def atomic_write(path):
    """Yield a temporary path with the same suffix beside `path`; rename it to `path` on success.

    On failure the temporary file is deleted and an existing `path` is kept. Raises InputError if
    the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:  # libraries report a full disk in different ways
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and shutil.disk_usage(path.parent).free > 2**16:
            raise
        raise InputError(
            path,
            "it could not be written: no space is left on the disk",
            "free some space, or use a run folder on another disk, then start again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def run_lock(folder):
    """Lock a folder against a second run; yields a file descriptor for children to inherit.

    The lock is released when the last process that holds it ends, even if it is killed; temporary
    files that killed processes left are deleted by the next run. If the folder is locked already,
    raises InputError, which names the process, machine and time.
    """
    path = Path(folder) / ".held"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                folder,
                f"another run is active in this folder ({file.read().strip()})",
                "wait for it to end, or give this run its own folder with --name",
            ) from error
        file.truncate(0)
        now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
        file.flush()
        for remains in path.parent.rglob(".*"):
            if TEMPORARY.fullmatch(remains.name) and remains.is_file():
                remains.unlink(missing_ok=True)
        yield file.fileno()


def write_json(path, value):
    """Write a JSON file with sorted keys, so that equal values give equal bytes."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def read_json(path, default=None):
    """The content of a JSON file, or `default` if there is none; InputError if it is corrupt."""
    path = Path(path)
    try:
        return json.loads(path.read_text()) if path.exists() else default
    except ValueError as error:  # not JSON, or not even text
        raise InputError(
            path,
            "it is corrupt (truncated or modified)",
            "delete it and start again: it is rebuilt",
        ) from error


def write_csv(path, frame):
    """Write a pandas table without its index.

    An apostrophe is put before text that a spreadsheet would run as a formula; `unescaped` removes
    it from a table that was read again.
    """
    frame = frame.copy(deep=False)
    for name in frame.select_dtypes(["object", "string"]):
        bad = frame[name].astype(str).str.match(FORMULA)
        if bad.any():
            frame[name] = frame[name].where(~bad, "'" + frame[name].astype(str))
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False)


def unescaped(frame):
    """A table that `write_csv` wrote, as it was before."""
    for name in frame.select_dtypes(["object", "string"]):
        bad = frame[name].astype(str).str.match(f"'{FORMULA}")
        if bad.any():
            frame[name] = frame[name].where(~bad, frame[name].str.slice(1))
    return frame


def write_npy(path, array):
    """Write a NumPy array."""
    with atomic_write(path) as temporary:
        np.save(temporary, array)


class Log:
    """A CSV log that `tail -f` can follow and that a resumed training continues.

    `start` is the step from which training resumes; later rows of an interrupted attempt are
    dropped, so that no step is listed twice.
    """

    def __init__(self, path, fields, start: int = 0):
        self.path, self.fields = Path(path), fields
        rows = [row for row in self.read(path) if int(row["step"]) <= start] if start else []
        with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(rows)

    @staticmethod
    def read(path) -> list[dict]:
        """All rows of a log as strings."""
        if not Path(path).exists():
            return []
        with open(path, newline="") as file:
            return list(csv.DictReader(file))

    def add(self, **row):
        """Append one row and write it to the disk."""
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.fields).writerow(row)
