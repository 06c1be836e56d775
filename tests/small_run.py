"""A tiny finished run: data, base, ControlNet, Pix2PixHD and a stand-in for the segmenter."""

import numpy as np
import pandas as pd
from small_base import SMALL, pairs

from lesionlib.data import dataset
from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.engine.files import write_csv, write_json
from lesionlib.engine.settings import (
    ControlNet,
    Data,
    Pix2PixHD,
    Sampling,
    Settings,
    Training,
    Validation,
)
from lesionlib.generators import jobs
from lesionlib.segmentation import reference

SETTINGS = Settings(
    data=Data(image_size=32),
    base=SMALL.model_copy(update={"steps": 2, "batch": 4}),
    training=Training(ema=0.0, precision="no"),
    controlnet=ControlNet(steps=3, batch=4, lr=0.1, locked=False),
    validation=Validation(validate_every=3, validation_samples=2),
    sampling=Sampling(ddim_steps=2, sample_batch=3),
    pix2pixhd=Pix2PixHD(
        channels=8, downsample=1, blocks=1, disc_channels=4, steps=2, batch=4, vgg="off"
    ),
)


def judged(images, masks) -> np.ndarray:
    """A fidelity that depends on the image: what a reference segmenter does, at no cost."""
    return images.mean(axis=(1, 2, 3)) % 1


def write_data(folder):
    """data/ of a run: 24 pairs of nevi and melanomas, 16 of them in G."""
    images, masks, prompts = pairs()
    split = ["G"] * 16 + ["S-val"] * 4 + ["S-test"] * 4
    labels = {"id": [f"i{k:02d}" for k in range(24)], "prompt": prompts, "split": split}
    labels |= {"diagnosis": ["nevus", "nevus", "nevus", "melanoma"] * 6}
    labels |= dict.fromkeys(ATTRIBUTES, 0)
    (folder / "data").mkdir(parents=True)
    np.save(folder / "data" / "images.npy", images)
    np.save(folder / "data" / "masks.npy", masks)
    write_csv(folder / "data" / "index.csv", pd.DataFrame(labels))
    facts = {"data": dataset.fingerprint(folder / "data")}
    write_json(folder / "data" / "index.csv.json", facts)


def finish(folder, monkeypatch):
    """Make the run in `folder`; `monkeypatch` puts `judged` in place of its segmenter."""
    monkeypatch.setattr(reference, "load", lambda run: judged)
    write_data(folder)
    weights = folder / "models" / "reference_segmenter" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"none")
    pipe = jobs.prepare_base(folder, SETTINGS)
    jobs.ControlNetTraining(folder, SETTINGS, pipe).complete()
    for plus in (False, True):
        jobs.prepare_pix2pixhd(folder, SETTINGS, plus)
    write_json(folder / "provenance.json", {"settings": SETTINGS.flat()})
