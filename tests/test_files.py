"""Nothing half-written, and one run at a time in a folder."""

import subprocess
import sys

import pytest

from lesionlib import files
from lesionlib.errors import InputError

HOLDER = """
import subprocess, sys, time
from lesionlib.files import held
with held(sys.argv[1]) as hold:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                             pass_fds=[hold])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_file_that_fails_while_it_is_written_leaves_the_old_one(tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(RuntimeError), files.aside(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(tmp_path / "a.json") == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_held_until_the_last_process_of_its_holder_is_dead(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)],
                              stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    with pytest.raises(InputError, match=f"process {holder.pid} on .*, since .*--name"):
        with files.held(tmp_path):
            pass
    holder.kill()
    holder.wait()
    with pytest.raises(InputError, match=f"process {holder.pid} "), files.held(tmp_path):
        pass  # what it started still runs
    subprocess.run(["kill", "-9", str(child)], check=True)
    for _ in range(100):
        try:
            with files.held(tmp_path):
                return
        except InputError:
            continue
    pytest.fail("still held by nobody")
