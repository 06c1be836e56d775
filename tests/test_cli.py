"""The command line: errors are one clear line, values reach the run, one signal ends it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionlib.engine import files, provenance
from lesionlib.engine.files import ROOT
from lesionlib.workflow import cli, processes


@pytest.fixture
def folders(tmp_path):
    """Two folders with 22 images and masks, which have umlauts and braces in their path."""
    rng, place = np.random.default_rng(0), tmp_path / "Bilder ü #1 {b}"
    for name in ("images", "masks"):
        (place / name).mkdir(parents=True)
    for k in range(22):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8 + k % 4 : 24] = 255
        Image.fromarray(mask).save(place / "masks" / f"{k:03d}_M.png")
        picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        picture.save(place / "images" / f"{k:03d}.png")
    return place


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--image", "x"], "--image: there is no such option. Remedy: did you mean --images?"),
        (["--dry-runn"], "did you mean --dry-run?"),
        (["--name"], "expected one argument"),
        (["--name", "a/b"], "it is no name of a folder"),
        (["--config", "seeds=[0,1"], "seeds=[0,1 is broken off or misspelt. Remedy: it must be"),
        (["--config", "image_size=33"], "setting 'image_size': 33 does not fit"),
        (["--synthetic", "my gan=tests"], "a NAME is lower-case letters"),
        (["--images", "tests", "--masks", "tests", "--config", "source=phantom"], "phantom does"),
        (["--lesion-value", "two", "--check"], "it must be an integer, at least -1"),
        (["--images", "nowhere", "--check"], "nowhere: the folder does not exist"),
        (["--verify", "runs/a", "runs/b"], "runs/b: this command takes no such argument"),
        (["--publish", "runs/a", "--typo"], "--typo: this command takes no such argument"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(arguments, said, capsys):
    assert cli.main(["--preset", "smoke", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize("name", ["3.10", "3.1", "2024_01_05", "001", "run #2", "Läsion {b}"])
def test_a_name_reaches_the_snakefile_as_it_was_written(name, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(cli, "resolve", lambda path: tmp_path / path)
    given = {"images": "/ü #1/{b}", "split": "001"}
    told = json.loads(
        (tmp_path / cli.write_settings("smoke", name, given, f"runs/{name}")).read_text()
    )
    folder = told.pop("folder", f"runs/{name}")
    assert told == given | {"preset": "smoke", "name": name}
    (tmp_path / "runs" / name).mkdir()
    assert (tmp_path / folder).resolve() == tmp_path / "runs" / name
    assert all(sign not in folder for sign in " #{}ä")


def test_a_dry_run_with_unusual_names_and_paths_plans_the_study(folders):
    name = "test ü #2 {b}"
    given = ["--images", str(folders), "--external", f"clinic={folders}", "--name", name]
    command = [sys.executable, "-m", "lesionlib.workflow.cli", "--preset", "smoke", "-n", *given]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    assert "image_quality" in process.stdout + process.stderr
    assert not (ROOT / "runs" / name).exists()


def test_a_run_without_pix2pixhd_promises_no_page_of_it():
    command = [sys.executable, "-m", "lesionlib.workflow.cli", "--preset", "smoke", "-n"]
    command += ["--name", "test-controlnet", "--config", "methods=[controlnet]"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = process.stdout + process.stderr
    assert process.returncode == 0 and "report/03_controlnet.html" in said
    assert "04_pix2pixhd" not in said


def test_folders_of_pairs_may_have_a_colon_in_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    given = cli.parser().parse_args(["--external", "one=a:b", "--external", "two=x:y"])
    found = cli.overrides(given)["external_tests"]
    assert found == {"one": f"{tmp_path}/a:b", "two": f"{tmp_path}/x:{tmp_path}/y"}


STAND_IN = """#!/bin/sh
echo "$0 $*" >> "{log}"
case "$*" in
  "-c "*) exec {python} -c "import sys; sys.version_info = {version}; $2" ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *uv.txt) exit 1 ;;
esac
"""


@pytest.fixture
def first_start(tmp_path):
    """Starts run_all.sh with the Python that it is given beside `pythons` {name: version}, each of
    which cannot install anything; the name of the one that made the environment, '' if none."""
    log, bin = tmp_path / "log", tmp_path / "bin"
    for folder in (bin, tmp_path / "requirements"):
        folder.mkdir()
    (tmp_path / "requirements" / "uv.txt").touch()
    for name in ("run_all.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("bash", "cat", "cksum", "cp", "dirname", "mkdir"):
        (bin / name).symlink_to(shutil.which(name))

    def start(**pythons):
        log.write_text("")
        for name, version in pythons.items():
            path = bin / name.replace("_", ".")
            path.write_text(STAND_IN.format(log=log, python=sys.executable, version=version))
            path.chmod(0o755)
        command = ["bash", tmp_path / "run_all.sh"]
        process = subprocess.run(command, env={"PATH": str(bin)}, capture_output=True, text=True)
        assert process.returncode == 1 and "uv could not be installed" in process.stderr
        makers = [line.split()[0] for line in log.read_text().splitlines() if "-m venv" in line]
        return Path(makers[0]).name if makers else ""

    return start


def test_remains_of_an_interrupted_first_start_are_made_again(first_start, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")  # `python -m pip --version` fails
    python.chmod(0o755)
    assert first_start(python3=(3, 11)) == "python3"
    assert first_start() == ""  # with pip it stays as it is


@pytest.mark.parametrize(
    "pythons, chosen",
    [
        ({"python3": (3, 12)}, "python3"),
        ({"python3": (3, 15), "python3_12": (3, 12)}, "python3.12"),
        ({"python3": (3, 10), "python3_13": (3, 13)}, "python3.13"),
        ({"python3": (3, 15)}, "python3"),
    ],
)
def test_a_python_that_the_pinned_packages_are_made_for_is_preferred(first_start, pythons, chosen):
    assert first_start(**pythons) == chosen


def test_check_says_what_was_found_and_writes_nothing_but_a_contact_sheet(folders, capsys):
    (folders / "masks" / "000_M.png").write_bytes(b"")
    (folders / "masks" / "stray.png").write_bytes(b"x")
    run = ROOT / "runs" / "test-check"
    try:
        assert cli.main(["--check", "--name", "test-check", "--images", str(folders)]) == 0
        assert [path.name for path in run.rglob("*") if path.is_file()] == ["images.png"]
    finally:
        for path in sorted(run.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        run.rmdir()
    text = capsys.readouterr().out
    assert "22 pairs of image and mask" in text and "'NAME_M' for the mask" in text
    assert "21 of 22 pairs that were read (all 22) are usable" in text
    assert "WARNING: 1 quarantined (the mask is an empty file)" in text
    assert "WARNING: files left out (a mask without image): 1" in text


CHILD = """
import signal, sys, time
def end(*_):
    open(sys.argv[2], "w").write("checkpoint")
    sys.exit()
signal.signal(signal.SIGTERM, end)
open(sys.argv[2] + ".started", "w")
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], "ipykernel_launcher", sys.argv[2]]).wait()
time.sleep(2)
print("a message that nobody wants")
"""
COMMAND = """
import sys
from lesionlib.workflow import cli, processes
cli.run_other = lambda options, rest: processes.run([sys.executable, *sys.argv[1:]])
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_with_one_line_after_the_checkpoint(tmp_path, number):
    mark = tmp_path / "kernel"
    command = [sys.executable, "-c", COMMAND, "-c", PARENT, CHILD, str(mark)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not (tmp_path / "kernel.started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert said.split() == "run_all.sh: stopped; the same command goes on from here".split()
    assert mark.read_text() == "checkpoint"


def test_what_failed_is_told_in_the_order_of_time(tmp_path):
    folder = processes.failures(tmp_path)
    folder.mkdir(parents=True)
    for k, name in enumerate(("b", "a")):
        (folder / f"{name}.txt").write_text(f"{name}.ipynb, cell 3: why\n")
        os.utime(folder / f"{name}.txt", (k, k))
    assert processes.told_failures(tmp_path) == ["b.ipynb, cell 3: why", "a.ipynb, cell 3: why"]
    processes.forget_failures(tmp_path)
    assert processes.told_failures(tmp_path) == []


def test_the_code_of_another_clone_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    assert provenance.other_clone() == ""
    (tmp_path / "lesionlib").mkdir()
    (tmp_path / "lesionlib" / "__init__.py").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert f"this is {tmp_path}, but the code of {ROOT} runs" in provenance.header("x")
    script = (ROOT / "run_all.sh").read_text()
    assert "export PYTHONPATH=$PWD" in script
    assert processes.environment()["PYTHONPATH"].split(":")[0] == str(files.ROOT)
