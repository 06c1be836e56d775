"""Digests, records, logs, and files that are never half-written."""

import json

import numpy as np
import pytest

from lesionlib.engine import files, provenance
from lesionlib.engine.errors import InputError, require

NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Title"]},
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["n = 1"]},
        {
            "cell_type": "code",
            "metadata": {},
            "source": ["from lesionlib import files  # why\n", "f(n)"],
        },
    ]
}


def digest_of(tmp_path, change):
    notebook = json.loads(json.dumps(NOTEBOOK))
    change(notebook["cells"])
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps(notebook))
    return provenance.notebook_digest(path)


def test_prose_and_parameters_do_not_change_a_notebooks_digest_but_code_does(tmp_path):
    same = digest_of(tmp_path, lambda cells: None)
    assert digest_of(tmp_path, lambda c: c[0].update(source=["# Another"])) == same
    assert digest_of(tmp_path, lambda c: c[1].update(source=["n = 2"])) == same
    comment = ["from lesionlib import files  # because\n", "f(n)"]
    assert digest_of(tmp_path, lambda c: c[2].update(source=comment)) == same
    assert digest_of(tmp_path, lambda c: c[2].update(source=["f(n + 1)"])) != same
    more = ["from lesionlib import files, grid\n", "f(n)"]
    assert digest_of(tmp_path, lambda c: c[2].update(source=more)) != same


def test_code_digest_follows_imports():
    assert "errors" in provenance._imports("from lesionlib.engine.errors import require")
    assert provenance._imports("from lesionlib import data, plots") == {"data", "plots"}
    assert provenance.code_digest("data") != provenance.code_digest("grid")


def test_imports_in_parentheses_are_seen():
    source = "from lesionlib import (\n    data,\n    plots,\n)"
    assert provenance._imports(source) == {"data", "plots"}


def test_digest_distinguishes_content_shape_and_type():
    a = np.zeros((2, 3), np.uint8)
    values = [a, a.reshape(3, 2), a.astype(np.int8), a + 1, "a", {"a": 1}]
    assert len({provenance.digest(value) for value in values}) == len(values)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_a_resumed_log_lists_no_step_twice(tmp_path):
    log = files.Log(tmp_path / "log.csv", ["step", "loss"])
    for step in (1, 2, 3):
        log.add(step=step, loss=step / 10)
    files.Log(tmp_path / "log.csv", ["step", "loss"], start=2).add(step=3, loss=9)
    rows = files.Log.read(tmp_path / "log.csv")
    assert [(r["step"], r["loss"]) for r in rows] == [("1", "0.1"), ("2", "0.2"), ("3", "9")]


def test_a_missing_result_names_the_notebook_to_run(tmp_path):
    with pytest.raises(InputError, match="run notebooks/02_masks.ipynb first"):
        require(tmp_path / "conditions.npy", "02_masks")
