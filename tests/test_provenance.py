"""Digests, records, logs, and files that are never half-written."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lesionlib.engine import files, provenance
from lesionlib.engine.errors import InputError, require


def test_digest_distinguishes_content_shape_and_type():
    a = np.zeros((2, 3), np.uint8)
    values = [a, a.reshape(3, 2), a.astype(np.int8), a + 1, "a", {"a": 1}]
    assert len({provenance.digest(value) for value in values}) == len(values)


def test_the_state_of_a_folder_is_that_of_its_own_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    before = provenance.files_state(tmp_path)
    derived = "ISIC2018_Task2_Training_attributes.csv"
    masks = tmp_path / "ISIC2018_Task2_Training_GroundTruth_v3"
    masks.mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", derived):
        (tmp_path / name).write_bytes(b"x")
        assert provenance.files_state(tmp_path) == before, name
    assert provenance.files_state(tmp_path / ".DS_Store") != provenance.files_state("")
    masks.rmdir()
    assert provenance.files_state(tmp_path) != before  # without the masks it is an input
    (tmp_path / derived).unlink()
    assert provenance.files_state(tmp_path) == before
    (tmp_path / "b.png").write_bytes(b"1")
    assert provenance.files_state(tmp_path) != before


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


def test_a_processor_is_told_by_its_name_and_instructions():
    """Two machines of one name may compute in different precision."""
    lines = "processor : 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_bf16 sse\n"
    assert provenance.processor(lines) == "AMD EPYC (avx512_bf16)"
    older = lines.replace(" avx512f avx512_bf16", "")
    assert provenance.processor(older + older.replace("EPYC", "other")) == "AMD EPYC (avx2)"
    assert provenance.processor("Processor : ARMv8\n") == ""


def test_the_header_names_the_gpu_before_anything_has_imported_torch(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho A card\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    caches = provenance.gpus, provenance.hardware
    for one in caches:
        one.cache_clear()
    try:
        assert provenance.gpus() == ["A card"] and provenance.hardware().endswith("A card")
        fake = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "A card")
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=fake))
        assert "· A card" in provenance.header("x").splitlines()[0]
        fake.is_available = lambda: False  # a driver that this torch cannot use
        assert provenance.header("x").splitlines()[0].endswith("· CPU")
    finally:
        for one in caches:
            one.cache_clear()
