"""The whole study under `smoke`, as a user runs it, and what a second start does."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lesionlib import config, phantom
from lesionlib.files import ROOT
from lesionlib.grid import grid

pytestmark = pytest.mark.study
NAME = "test-smoke"
RUN = ROOT / "runs" / NAME


def run_all(*arguments, name=NAME, preset="smoke"):
    """./run_all.sh as a user calls it; returns the finished process with its output."""
    command = ["./run_all.sh", "--preset", preset, "--name", name, *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def finished():
    """One run of all seven notebooks."""
    shutil.rmtree(RUN, ignore_errors=True)
    process = run_all()
    assert process.returncode == 0, process.stderr[-3000:]
    yield process
    shutil.rmtree(RUN)


def table(name):
    return pd.read_csv(RUN / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""])


def finite(frame):
    return np.isfinite(frame.select_dtypes("number")).all().all()


def test_the_last_lines_are_the_tables_and_the_report(finished):
    lines = finished.stdout.strip().splitlines()
    assert lines[-1] == f"Report: {RUN / 'report' / 'index.html'}"
    assert any(line.startswith("Table 1") for line in lines[-30:])
    assert any(line.startswith("Table 2") for line in lines[-30:])


def test_every_image_is_accounted_for(finished):
    curation = table("curation")
    assert len(curation) == config.load("smoke")["phantoms"]
    assert (curation["status"] == "used").all() and curation["id"].is_unique
    assert set(curation["split"]) == {"G", "S-train", "S-val", "S-test"}


def test_image_quality_has_a_row_per_image_and_method_in_range(finished):
    quality = table("image_quality")
    n = (table("curation")["split"] == "S-test").sum()
    assert quality.groupby("method").size().to_dict() == {"controlnet": n, "pix2pixhd": n}
    assert finite(quality) and quality["mse"].between(0, 1).all()
    assert quality["ssim"].between(-1, 1).all()
    offset = quality["psnr_255"] - quality["psnr_1"]
    assert np.allclose(offset, 48.1308, atol=1e-3)
    assert np.allclose(quality["psnr_1"], -10 * np.log10(quality["mse"]), atol=1e-3)
    assert set(table("table1")["method"]) == {"controlnet", "pix2pixhd"} and finite(table("table1"))


def test_segmentation_has_every_cell_of_the_grid(finished):
    settings = config.load("smoke")
    cells = grid(*(settings[k] for k in ("networks", "methods", "synthetic_amounts", "seeds")))
    rows = table("segmentation")
    found = rows["network"] + "-" + rows["method"] + "-" + rows["amount"].astype(str)
    assert sorted(found + "-seed" + rows["seed"].astype(str)) == sorted(cell.id for cell in cells)
    assert finite(rows) and rows["dice"].between(0, 1).all()


def test_mask_fidelity_has_ceiling_and_chance(finished):
    fidelity = table("mask_fidelity")
    assert set(fidelity["images"]) == {"real", "controlnet", "pix2pixhd", "base"}
    assert finite(fidelity) and fidelity["dice"].between(0, 1).all()


def test_report_and_figures_are_whole_and_offline(finished):
    index = (RUN / "report" / "index.html").read_text()
    pages = sorted(path.name for path in (RUN / "report").glob("0*.html"))
    assert len(pages) == 10 and all(f'href="{page}"' in index for page in pages)
    assert "http" not in index
    for page in pages:
        assert '<script src="http' not in (RUN / "report" / page).read_text()
    assert all((RUN / "figures" / f"figure{n}.png").stat().st_size > 5000 for n in (1, 2, 3, 4))
    assert (RUN / "provenance.json").exists()


def test_a_second_start_has_nothing_to_do(finished):
    again = run_all()
    assert "Nothing to be done" in again.stderr + again.stdout
    assert again.stdout.strip().splitlines()[-1].startswith("Report: ")


def jobs_of_dry_run(*arguments):
    process = run_all("-n", *arguments)
    text = process.stdout + process.stderr
    lines = [line.split() for line in text.split("Job stats:")[-1].splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


def test_a_changed_seed_reruns_its_cells_and_what_follows(finished):
    jobs = jobs_of_dry_run("--config", "seeds=[1]")
    shares = {"segmentation_01", "segmentation_02", "segmentation_03"}
    assert set(jobs) == shares | {"segmentation", "figures", "report", "all", "total"}


def test_a_changed_cell_is_trained_and_the_others_are_read_back(finished):
    lost = "unet-controlnet-8-seed0.csv"
    cells = RUN / "checkpoints" / "cells"
    before = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.csv")}
    for path in (RUN / "cells" / lost, cells / lost):
        path.unlink()
    assert run_all().returncode == 0
    after = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.csv")}
    assert {name for name in before if before[name] != after[name]} == {lost}


def test_a_changed_setting_reruns_only_its_stage_and_what_follows(finished):
    jobs = set(jobs_of_dry_run("--config", "pix2pixhd_steps=9"))
    assert {"pix2pixhd", "image_quality", "figures", "report"} <= jobs
    assert not {"data", "masks", "controlnet"} & jobs


@pytest.mark.slow
def test_a_launched_training_in_two_processes_is_what_the_notebook_goes_on_with(finished):
    command = ("accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no "
               "--dynamo_backend no")
    name = "test-launch"
    process = run_all("--until", "controlnet", "--config", f"launch={command}", name=name)
    assert process.returncode == 0, process.stderr[-3000:]
    logs = [pd.read_csv(ROOT / "runs" / run / "checkpoints" / "controlnet" / "watch.csv")
            for run in (NAME, name)]
    shutil.rmtree(ROOT / "runs" / name)
    np.testing.assert_allclose(*(log["held_out_loss"] for log in logs), rtol=1e-3)


@pytest.mark.parametrize("arguments, said", [
    (["--config", "imagesize=3"], "did you mean 'image_size'"),
    (["--config", "epochs"], "is not KEY=VALUE"),
    (["--images", "nowhere"], "nowhere: this does not exist. Remedy: correct --images"),
    (["--images", "tests"], "without --masks. Remedy: give --images DIR --masks DIR"),
])
def test_wrong_arguments_are_one_clear_error(arguments, said):
    process = run_all(*arguments, name="test-wrong")
    assert process.returncode == 2 and said in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    assert not (ROOT / "runs" / "test-wrong").exists()


def test_a_damaged_pair_stops_the_run_with_one_clear_message_if_asked_to(tmp_path):
    phantom.write_dataset(tmp_path, 24, 64, workers=1)
    images = tmp_path / "ISIC2018_Task1-2_Training_Input"
    masks = tmp_path / "ISIC2018_Task1_Training_GroundTruth"
    broken = sorted(images.iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:500])
    process = run_all("--images", images, "--masks", masks, "--until", "data", "--config",
                      "bad_inputs=stop", name="test-broken")
    executed = ROOT / "runs" / "test-broken" / "notebooks" / "01_data.ipynb"
    assert process.returncode != 0 and executed.exists()
    shutil.rmtree(ROOT / "runs" / "test-broken")
    line = r"01_data\.ipynb, cell \d+: " + f"{broken}: the image is corrupt[^\n]*Remedy: "
    assert re.search(line, process.stderr)


def test_a_notebook_run_too_early_names_its_predecessor(tmp_path):
    command = [sys.executable, "-m", "papermill", "notebooks/02_masks.ipynb",
               str(tmp_path / "out.ipynb"), "-p", "run", str(tmp_path / "run"),
               "--cwd", "notebooks", "--no-progress-bar"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode != 0
    assert "run notebooks/01_data.ipynb first" in process.stderr
