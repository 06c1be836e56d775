"""Nothing half-written, and one run at a time in a folder."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from lesionlib.engine import files, provenance, training
from lesionlib.engine.errors import InputError

HOLDER = """
import subprocess, sys, time
from lesionlib.engine.files import atomic_write, run_lock
with run_lock(sys.argv[1]) as hold, atomic_write(sys.argv[1] + "/tables/table.csv") as half:
    half.write_text("a,b")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                             pass_fds=[hold])
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        files.write_json(disk / "a.json", 1)
        with pytest.raises(InputError, match="a.json: it could not be written: no space"):
            files.write_json(disk / "a.json", "x" * 200_000)
        with pytest.raises(InputError, match="b.npy.*no space is left"):
            files.write_npy(disk / "b.npy", np.zeros(100_000))
        with pytest.raises(InputError, match="c.pt.*no space is left"):
            training.save_checkpoint(disk / "c.pt", x=torch.zeros(100_000))
        assert files.read_json(disk / "a.json") == 1
        assert [path.name for path in disk.iterdir()] == ["a.json"]
    finally:
        # Lazily: torch may still hold the file that it could not write.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_damaged_json_file_is_named(tmp_path):
    for damaged in (b'{"a": 1', b"\xff\xfe", b""):
        (tmp_path / "a.json").write_bytes(damaged)
        with pytest.raises(
            InputError, match="a.json: it is corrupt .truncated or modified.. Remedy: delete"
        ):
            files.read_json(tmp_path / "a.json", {})


def test_an_artefact_that_is_not_what_was_recorded_is_refused_or_made_anew(tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    provenance.record(path, key="k")
    assert provenance.recorded(path)["key"] == "k" and provenance.unchanged(path) == path
    path.write_text("a,b\n1,3\n")
    with pytest.raises(InputError, match="table.csv: it is corrupt"):
        provenance.unchanged(path)
    assert provenance.recorded(path) == {}
    assert "WARNING: " in capsys.readouterr().out
    (tmp_path / "table.csv.json").write_text("{")
    assert provenance.recorded(path) == {}


def test_a_folder_is_held_until_its_holders_last_process_is_dead_and_tidied_then(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    child = int(holder.stdout.readline())
    with pytest.raises(InputError, match=f"process {holder.pid} on .*, since .*--name"):
        with files.run_lock(tmp_path):
            pass
    holder.kill()
    holder.wait()
    for kept in ("table.csv", ".v1.2.csv.away", ".ipynb_checkpoints"):
        (tmp_path / "tables" / kept).write_text("")
    assert list((tmp_path / "tables").glob(f".table.{holder.pid}.csv"))
    with pytest.raises(InputError, match=f"process {holder.pid} "), files.run_lock(tmp_path):
        pass  # what it started still runs
    subprocess.run(["kill", "-9", str(child)], check=True)
    for _ in range(100):
        try:
            with files.run_lock(tmp_path):
                names = {path.name for path in (tmp_path / "tables").iterdir()}
                assert names == {"table.csv", ".v1.2.csv.away", ".ipynb_checkpoints"}
                return
        except InputError:
            time.sleep(0.1)
    pytest.fail("still held by nobody")
