"""The preset for one large GPU, one step per stage on the CPU: it starts when a GPU is there.

`./run_all.sh --test -m slow tests/test_isic_gpu.py` takes some minutes and some GB of memory.
"""

import shutil
import subprocess

import pandas as pd
import pytest

from lesionlib.engine.files import ROOT, read_json

NAME = "test-isic-gpu"
SHORT = [
    "source=phantom",
    "images=",  # those of the preset are real ones
    "masks=",
    "table=",
    "phantoms=60",
    "phantom_size=128",
    "mask_samples=20",
    "synthetic_amounts=[2,4,6]",
    "base_steps=1",
    "controlnet_steps=1",
    "pix2pixhd_steps=1",
    "classifier_steps=1",
    "reference_steps=2",
    "epochs=1",
    "seeds=[0]",
    "arms=[table]",
    "ddim_steps=1",
    "prompt_samples=1",
    "diversity_samples=2",
    "validation_samples=2",
    "base_batch=4",
    "controlnet_batch=4",
    "sample_batch=4",
    "pix2pixhd_batch=2",
]


@pytest.mark.slow
def test_every_stage_of_isic_gpu_takes_its_first_step():
    shutil.rmtree(ROOT / "runs" / NAME, ignore_errors=True)
    command = ["./run_all.sh", "--preset", "isic-gpu", "--name", NAME, "--config", *SHORT]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    run = ROOT / "runs" / NAME
    settings = read_json(run / "provenance.json")["settings"]
    assert settings["image_size"] == settings["segmentation_size"] == 128
    assert settings["precision"] == settings["segmentation_precision"] == "bf16"
    table = pd.read_csv(run / "tables" / "table2.csv")
    assert set(table["network"]) == {"unet", "dcsaunet"} and table["dice_mean"].notna().all()
    shutil.rmtree(run)
