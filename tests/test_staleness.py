"""An artefact is remade when, and only when, something that determines its bytes has changed.

The finished run is asked, in copies of the repository with one edit each, what that code would not
have made; then three edits are followed through a real start.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from whole_study import NAME, RUN

from lesionlib.data import curation, phantom
from lesionlib.engine.files import ROOT

pytestmark = pytest.mark.study
COMMAND = ["-m", "lesionlib.workflow.cli", "--preset", "smoke", "--name", NAME]
PROGRAM = """
import json, sys
from lesionlib.engine import trace
print(json.dumps(trace.outdated(sys.argv[1])))
"""
IMAGES = {"images of the ControlNet and its base", "images of Pix2PixHD"}
SEGMENTATION = {"reference segmenter", "cells", "02_masks", "06_segmentation"}
# an edit of this function outdates these artefacts, and notebooks with their tables and figures
EDITS = {
    "decoding": ("data/decoding.py", "grey", {"pixels", "01_data"}),
    "mask recipe": ("masks/recipe.py", "blurred", {"02_masks", "03_controlnet"}),
    "loss of the base": ("generators/base.py", "Denoiser.forward", {"03_controlnet"}),
    "loss of the ControlNet": (
        "generators/controlnet.py",
        "train",
        {"ControlNet", "03_controlnet"},
    ),
    "ddim": (
        "generators/controlnet.py",
        "ddim",
        {"images of the ControlNet and its base", "validations", "03_controlnet"},
    ),
    "Pix2PixHD's generate": (
        "generators/pix2pixhd.py",
        "generate",
        {"images of Pix2PixHD", "04_pix2pixhd"},
    ),
    "training of the U-Net": ("segmentation/training.py", "train", SEGMENTATION),
    "measure of segmentation": (
        "segmentation/measures.py",
        "boundary",
        {"cells", "02_masks", "05_image_quality", "06_segmentation"},
    ),
    "measure of images": ("evaluation/quality.py", "ssim", {"05_image_quality"}),
    "retry of a download": ("data/download.py", "download", set()),
    "plot": ("report/plots.py", "strongest_texture", {"07_figures"}),
}


def kind(name: str) -> str:
    """What an outdated record or stage is, in the words of EDITS."""
    folder, _, rest = name.partition("/")
    if folder in ("generated", "synthetic"):
        maker = rest.partition("/")[0]
        external, gan = "pairs of external generators", "images of Pix2PixHD"
        makers = {"gan": external, "pix2pixhd": gan, "pix2pixhd_plus": gan}
        return makers.get(maker, min(IMAGES, key=lambda x: "its" not in x))
    named = {
        "checkpoints/cells": "cells",
        "checkpoints/pixels": "pixels",
        "data/external": "pixels",
        "checkpoints/external_generators": "pixels",
        "checkpoints/controlnet": "validations",
        "models/base": "base",
        "models/controlnet": "ControlNet",
        "models/pix2pixhd": "Pix2PixHD",
        "models/reference_segmenter": "reference segmenter",
        "checkpoints/reference_segmenter": "reference segmenter",
        "models/attribute_classifier": "attribute classifier",
    }
    found = [words for start, words in named.items() if name.startswith(start)]
    return found[0] if found else name.partition("-")[0]  # a stage; shares of 06 are one


def edited(source: str, function: str) -> str:
    """A module's source with one more statement in a function (Class.method for a method)."""
    *outer, name = function.split(".")
    nodes = ast.parse(source).body
    for one in outer:
        nodes = next(n for n in nodes if getattr(n, "name", "") == one).body
    node = next(n for n in nodes if getattr(n, "name", "") == name)
    first = node.body[1] if ast.get_docstring(node) else node.body[0]
    lines = source.splitlines(keepends=True)
    lines.insert(first.lineno - 1, " " * first.col_offset + "assert True\n")
    return "".join(lines)


@pytest.fixture(scope="module")
def copy(finished, tmp_path_factory):
    """A copy of the repository that may be edited, with the finished run in it."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("lesionlib", "notebooks", "config", "profiles", "models"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "CITATION.cff"):
        shutil.copy2(ROOT / name, root / name)
    shutil.copytree(RUN, root / "runs" / NAME)
    shutil.copytree(ROOT / ".snakemake" / "metadata", root / ".snakemake" / "metadata")
    place = root / "runs" / NAME / "logs" / "place.txt"  # Snakemake's records come along
    place.write_text(f"{place.parents[1]}\n")
    return root


def start(copy, *arguments):
    """A Python of the copy's package."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {
        "PYTHONPATH": str(copy),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment)


def outdated(copy) -> set[str]:
    """Kinds of artefacts of the run that the copy's code would not have made; without tables,
    which their stage stands for."""
    process = start(copy, "-c", PROGRAM, f"runs/{NAME}")
    assert process.returncode == 0, process.stderr
    names = [name for name in json.loads(process.stdout) if not name.startswith("tables/")]
    return set(map(kind, names))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_outdates_what_its_code_makes_and_nothing_else(copy, name):
    file, function, expected = EDITS[name]
    path = copy / "lesionlib" / file
    source = path.read_text()
    path.write_text(edited(source, function))
    found = outdated(copy)
    path.write_text(source)
    assert found == expected


def test_without_an_edit_and_after_one_of_prose_nothing_is_outdated(copy):
    path = copy / "lesionlib" / "generators" / "controlnet.py"
    source = path.read_text()
    other = source.replace("Song et al. 2021, equation 12", "equation 12 of Song et al. 2021")
    assert other != source
    path.write_text(f"# A comment.\n{other}")
    found = outdated(copy)
    path.write_text(source)
    assert found == outdated(copy) == set()


@pytest.mark.parametrize(
    "old, new, read, other",
    [
        ("most_steps: 3", "most_steps: 4", "segmentation_", "masks"),
        ("reference_steps: 4", "reference_steps: 5", "masks", "data"),
    ],
)
def test_a_setting_edited_in_the_preset_reruns_the_jobs_that_read_it(
    copy, external, old, new, read, other
):
    preset = copy / "config" / "smoke.yaml"
    text = preset.read_text()
    assert old in text
    preset.write_text(text.replace(old, new))
    process = start(copy, *COMMAND, *external, "-n")
    preset.write_text(text)
    said = process.stdout + process.stderr
    reasons = re.search(r"^ +params have changed.*\n +(.*)", said, re.M)
    assert process.returncode == 0 and reasons, said[-3000:]
    found = reasons.group(1).split(", ")
    assert any(name.startswith(read) for name in found) and other not in found


def test_a_renamed_run_has_nothing_to_do_until_a_setting_changes(copy, external):
    renamed = copy / "runs" / "renamed"
    shutil.copytree(copy / "runs" / NAME, renamed)
    command = [*COMMAND[:-1], renamed.name, *external, "-n"]
    process = start(copy, *command)
    assert "Nothing to be done" in process.stdout + process.stderr
    process = start(copy, *command, "--config", "ddim_steps=5", "-R", "figures")
    shutil.rmtree(renamed)
    rules = re.findall(r"^rule (\w+):", process.stdout + process.stderr, re.M)
    assert {"controlnet", "image_quality", "segmentation", "figures"} <= set(rules)
    assert not {"data", "masks", "pix2pixhd"} & set(rules)


def state(folder: Path, *patterns) -> dict:
    """Files below a run: the bytes of each, of pictures the pixels (their text names the model)."""
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    return {
        str(path.relative_to(folder)): cv2.imread(str(path)).tobytes()
        if path.suffix == ".png"
        else path.read_bytes()
        for path in paths
    }


def study(copy, external, *more):
    """The run of the copy, started again."""
    process = start(copy, *COMMAND, *external, *more)
    assert process.returncode == 0, process.stderr[-3000:]
    return copy / "runs" / NAME


def cells(run) -> dict:
    """The method of every cell that was trained, by the name of its file."""
    found = {}
    for path in (run / "checkpoints" / "cells").glob("*.csv"):
        facts = json.loads(Path(f"{path}.json").read_text())
        found[path.name] = facts["cell"].split("-")[1]
    return found


@contextmanager
def turned(path: Path):
    """A picture turned upside down; afterwards it is as before, with its time."""
    content, times = path.read_bytes(), path.stat()
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), np.ascontiguousarray(np.rot90(picture, 2)))
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture(scope="module")
def followed(copy, external):
    """The run before and after: half of what `ddim` and `generate` made, another external pair."""
    run, gan = copy / "runs" / NAME, Path(external[1].partition("=")[2])
    before = {name: state(run, *globs) for name, globs in GLOBS.items()}, cells(run)
    for file, old, new in (
        ("controlnet.py", "    return z\n\n\ndef guide", "    return z / 2\n\n\ndef guide"),
        ("pix2pixhd.py", "(out + 1) * 127.5", "(out + 1) * 64"),
    ):
        path = copy / "lesionlib" / "generators" / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    with turned(sorted((gan / "masks").iterdir())[0]):
        study(copy, external)
    yield before, ({name: state(run, *globs) for name, globs in GLOBS.items()}, cells(run))


WEIGHTS = ("models/*/*.safetensors", "models/*/*/*.safetensors")
GLOBS = {
    "weights": WEIGHTS,
    "images": ("generated/[bcp]*/images/*.png", "synthetic/[bcp]*/images/*.png"),
    "external images": ("synthetic/gan/images/*.png",),
    "external masks": ("synthetic/gan/masks/*.png",),
    "tables": ("tables/*.csv",),
}


def test_edited_sampling_remakes_every_image_and_no_weight(followed):
    (before, _), (after, _) = followed
    assert before["weights"] == after["weights"] and len(before["weights"]) >= 5
    assert set(before["images"]) == set(after["images"]) and len(before["images"]) > 60
    assert not [name for name, image in before["images"].items() if after["images"][name] == image]


def test_a_corrected_external_pair_is_imported_and_trained_on_again(followed):
    (before, old), (after, new) = followed
    assert before["external images"] == after["external images"]
    assert before["external masks"] != after["external masks"]
    added = {new[name] for name in set(new) - set(old)}
    assert {"gan", "controlnet", "pix2pixhd"} <= added and not {"real", "classical"} & added


def test_a_corrected_mask_of_an_external_test_set_is_measured_again(followed, copy, external):
    clinic = Path(external[3].partition("=")[2])
    run = copy / "runs" / NAME
    cell = sorted((run / "cells").glob("unet-real-0-*.csv"))[0]
    before, kept = pd.read_csv(cell), state(run, *GLOBS["images"])
    weights = state(run, *WEIGHTS)
    made = [run / "generated" / name / "manifest.csv" for name in ("controlnet", "pix2pixhd")]
    targets = [str(path.relative_to(copy)) for path in (cell, *made)]
    with turned(sorted((clinic / "masks").iterdir())[0]):
        study(copy, external, *targets)
        process = start(copy, *COMMAND, *external, "-n", f"runs/{NAME}/tables/external.csv")
    rules = re.findall(r"^rule (\w+):", process.stdout + process.stderr, re.M)
    assert "segmentation" in rules and not {"data", "controlnet", "pix2pixhd"} & set(rules)
    after = pd.read_csv(cell)
    differing = before["test"][before["brier"] != after["brier"]]
    assert len(before) == len(after) and differing.tolist() == ["clinic"]
    assert kept == state(run, *GLOBS["images"]) and weights == state(run, *WEIGHTS)


@pytest.mark.parametrize("part", ["image", "mask"])
def test_a_corrected_file_is_read_again_and_only_its_row_changes(tmp_path, part):
    phantom.write_dataset(tmp_path / "raw", 24, 64, 5, workers=1)
    folders = {
        "image": "ISIC2018_Task1-2_Training_Input",
        "mask": "ISIC2018_Task1_Training_GroundTruth",
    }
    files = {name: sorted((tmp_path / "raw" / f).glob("ISIC_*")) for name, f in folders.items()}
    table = pd.DataFrame({"id": range(24)} | {k: list(map(str, v)) for k, v in files.items()})
    curation.curate(table, 32, tmp_path / "out")
    arrays = [np.load(tmp_path / "out" / f"{name}.npy").copy() for name in ("images", "masks")]
    path = table[part][7]
    cv2.imwrite(path, np.ascontiguousarray(np.rot90(cv2.imread(path), 2)))
    curation.curate(table, 32, tmp_path / "out")
    again = [np.load(tmp_path / "out" / f"{name}.npy") for name in ("images", "masks")]
    changed = [
        np.flatnonzero((a != b).reshape(24, -1).any(1)).tolist()
        for a, b in zip(arrays, again, strict=True)
    ]
    assert changed == ([[7], []] if part == "image" else [[], [7]])
