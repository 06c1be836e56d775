"""Writing files so that nothing is ever half-written under its final name."""

import csv
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]  # the repository: notebooks/, config/, runs/


def resolve(path) -> Path:
    """A path of the configuration: absolute, or relative to the repository."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else ROOT / path


@contextmanager
def aside(path):
    """Yield a temporary path of the same suffix beside `path`; rename it on success."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    """Write a JSON file (sorted keys, so that equal values are equal bytes)."""
    with aside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def read_json(path, default=None):
    """The content of a JSON file, or `default` if there is none."""
    path = Path(path)
    return json.loads(path.read_text()) if path.exists() else default


def write_csv(path, frame):
    """Write a pandas table without its index."""
    with aside(path) as temporary:
        frame.to_csv(temporary, index=False)


def write_npy(path, array):
    """Write a NumPy array."""
    with aside(path) as temporary:
        np.save(temporary, array)


class Log:
    """A CSV log that `tail -f` can follow and that a resumed training continues.

    `start` is the step that the training resumes from: later rows of an earlier,
    interrupted attempt are dropped, so that no step is listed twice.
    """

    def __init__(self, path, fields, start: int = 0):
        self.path, self.fields = Path(path), fields
        rows = [row for row in self.read(path) if int(row["step"]) <= start] if start else []
        with aside(path) as temporary, open(temporary, "w", newline="") as file:
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
        """Append one row and flush it to the disk."""
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.fields).writerow(row)
