"""Digests of code: what a function reaches, and nothing else."""

import json
import shutil
import subprocess
import sys

import pytest

from lesionlib.engine import code
from lesionlib.engine.code import Module

PROGRAM = """
import sys
from lesionlib.engine.code import code_digests
print(*code_digests(*sys.argv[1:]).values())
"""
SOURCE = '''
"""A module."""
import math
from os import path, sep
from lesionlib.data import prompts
from lesionlib.masks.shapes import distances as apart

A = 1
B = {"f": A}


def f(x: "C", table=A):
    """Says what f does."""
    other = [table for table in x]  # a comment
    return g(other) + math.pi


def g(A):
    return A + prompts.person(1, 2)


class C:
    """A class."""
    b = B

    def h(self):
        def inner():
            return apart
        return inner


if __name__ == "__main__":
    f(1)
'''


def uses(name, source=SOURCE):
    return {found[0] for found in Module("lesionlib.m", source).read(name)[1]}


def test_uses_are_the_global_names_that_a_definition_reads():
    assert uses("f") == {"A", "g", "math"}
    assert uses("g") == {"prompts"}  # its parameter hides the constant
    assert uses("C") == {"B", "apart"} and uses("B") == {"A"}


def test_docstrings_comments_and_neighbours_in_an_import_do_not_count():
    module = Module("lesionlib.m", SOURCE)
    again = SOURCE.replace("Says what f does.", "Is f.").replace("a comment", "another")
    again = again.replace("import path, sep", "import path, pardir, sep")
    other = Module("lesionlib.m", again)
    for name in ("f", "g", "C", "path"):
        assert module.read(name)[0] == other.read(name)[0]
    assert module.read("f")[0] != Module("m", SOURCE.replace("math.pi", "math.e")).read("f")[0]


def test_what_only_runs_as_a_script_is_no_part_of_the_module():
    assert Module("lesionlib.m", SOURCE).effects == []


@pytest.mark.parametrize("line, said", [
    ("from lesionlib.nowhere import f", "no module lesionlib.nowhere"),
    ("from lesionlib.engine.files import nothing", "lesionlib.engine.files has no nothing"),
    ("import lesionlib.engine.nothing as f", "no module lesionlib.engine.nothing"),
    ("from .files import f", "relative import"),
    ("from lesionlib.data.prompts import *", "name what is used"),
    ("from lesionlib.data import prompts as f\nf.nothing()", "data.prompts has no nothing"),
])  # fmt: skip
def test_an_import_that_cannot_be_resolved_is_an_error(tmp_path, line, said):
    cell = {"cell_type": "code", "metadata": {}, "source": [line + "\nnothing\nf"]}
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(ImportError, match=said):
        code.notebook_digest(path)


NOTEBOOK = [
    {"cell_type": "markdown", "metadata": {}, "source": ["# Title"]},
    {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["n = 1"]},
    {
        "cell_type": "code",
        "metadata": {},
        "source": ["from lesionlib import data  # why\n", "data.prompts.person(n, 1)"],
    },
]


def digest_of(tmp_path, change):
    cells = json.loads(json.dumps(NOTEBOOK))
    change(cells)
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.ipynb"  # digests are cached by path
    path.write_text(json.dumps({"cells": cells}))
    return code.notebook_digest(path)


def test_prose_and_parameters_do_not_change_a_notebooks_digest_but_code_does(tmp_path):
    same = digest_of(tmp_path, lambda cells: None)
    assert digest_of(tmp_path, lambda c: c[0].update(source=["# Another"])) == same
    assert digest_of(tmp_path, lambda c: c[1].update(source=["n = 2"])) == same
    comment = ["from lesionlib import data  # because\n", "data.prompts.person(n, 1)"]
    assert digest_of(tmp_path, lambda c: c[2].update(source=comment)) == same
    other = [comment[0], "data.prompts.person(n + 1, 1)"]
    assert digest_of(tmp_path, lambda c: c[2].update(source=other)) != same
    more = [comment[0], "data.prompts.person(n, 1)\n", "data.split.PARTS"]
    assert digest_of(tmp_path, lambda c: c[2].update(source=more)) != same


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package that a test may edit, and a function that digests in it."""
    root = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(code._file_of("lesionlib").parent, root / "lesionlib", ignore=ignored)

    def digests(*names):
        command = [sys.executable, "-c", PROGRAM, *names]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.split()

    return root / "lesionlib", digests


def edited(package, file, old, new, *names):
    """Which of the names have another digest after one edit, which is taken back."""
    folder, digests = package
    path = folder / file
    source = path.read_text()
    assert source.count(old) >= 1
    before = digests(*names)
    path.write_text(source.replace(old, new, 1))
    try:
        return [n for n, a, b in zip(names, before, digests(*names), strict=True) if a != b]
    finally:
        path.write_text(source)


SAMPLE, TRAIN = "lesionlib.generators.controlnet:sample", "lesionlib.generators.controlnet:train"


def test_an_edit_reaches_what_uses_it_in_whatever_package_and_nothing_else(package):
    names = (SAMPLE, TRAIN, "lesionlib.segmentation.training:train")
    old, new = "def generator_at(seed: int, step: int)", "def generator_at(seed, step: int)"
    assert edited(package, "engine/training.py", old, new, *names) == list(names)
    old, new = "scheduler.set_timesteps(steps)", "scheduler.set_timesteps(2 * steps)"
    assert edited(package, "generators/controlnet.py", old, new, *names) == [SAMPLE]


def test_modules_that_only_keep_results_change_no_digest(package):
    old, new = "Remedy:", "What to do:"
    assert edited(package, "engine/errors.py", old, new, SAMPLE, TRAIN) == []
