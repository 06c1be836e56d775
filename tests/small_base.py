"""A tiny base of the study's own classes, with images, masks and prompts to train it on.

`python tests/small_base.py KIND FOLDER [STEPS]` trains a ControlNet (or base, Pix2PixHD, or the
reference segmenter) in FOLDER: what the tests kill, start again, and start in several processes.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lesionlib.data.dataset import Study
from lesionlib.engine import training as loop
from lesionlib.engine.settings import (
    Augmentation,
    Base,
    ControlNet,
    Pix2PixHD,
    Reference,
    Settings,
    Training,
)
from lesionlib.generators import base, controlnet, latents, pix2pixhd
from lesionlib.segmentation import reference

PROMPTS = ["a dermoscopic image of a nevus", "a dermoscopic image of a melanoma with streaks"]
SMALL = Base(model="", channels=[16, 32], attention=[False, True], text_width=16, reach=0)


def pairs(n: int = 24):
    """n images (n, 32, 32, 3) with a dark square, its masks, and prompts."""
    rng = np.random.default_rng(0)
    images = rng.integers(150, 250, (n, 32, 32, 3), dtype=np.uint8)
    masks = np.zeros((n, 32, 32), np.uint8)
    for i in range(n):
        top, left = rng.integers(4, 14, 2)
        masks[i, top : top + 12, left : left + 12] = 1
    images[masks == 1] //= 3
    return images, masks, (PROMPTS * n)[:n]


def untrained(folder):
    """Its pipeline, not trained."""
    images, _, prompts = pairs()
    return base.new(images, prompts, folder, SMALL, 0)


def examples(pipe, folder, training="controlnet", given=None):
    """The examples of a training on the images, their latents kept in `folder`."""
    images, masks, prompts = given or pairs()
    part = Study(images, masks, pd.DataFrame({"prompt": prompts}), "f")
    return latents.examples(pipe, part, Settings(), training, folder)


def train(kind: str, folder, steps: int = 12, **options):
    """Train a generator, or the reference segmenter, in `folder`; returns its weights."""
    torch.set_num_threads(1)
    images, masks, prompts = pairs()
    monitor, common = base.Monitor(log_every=2), dict(steps=steps, batch=4, lr=1e-3)
    training = Training(ema=0.9, min_snr=5.0, **{"save_every": 3} | options)
    if kind == "pix2pixhd":
        sizes = dict(channels=4, downsample=1, blocks=1, disc_channels=4, enhancers=1)
        own = Pix2PixHD(fine_steps=steps, fixed_steps=4, **sizes, **common)
        data, options = pix2pixhd.Examples(images, masks), dict(log_every=2)
        model = pix2pixhd.train(data, folder, own, training, {"n": 1}, **options)
        return model.state_dict()
    if kind == "reference":
        parts = pd.DataFrame({"split": ["S-train"] * 16 + ["S-val"] * 4 + ["G"] * 4})
        own = Reference(size=32, steps=2 * steps, batch=8, lr=3e-3, decoder=[16, 8, 8])
        study = Study(images, masks, parts, "f")
        return reference.train(folder, study, own, Augmentation()).model.state_dict()
    pipe = untrained(folder)
    data = examples(pipe, folder)
    common["prompt_dropout"] = 0.5
    if kind == "base":
        base.train(pipe, data, folder, Base(**common), training, {"n": 1}, monitor)
        return base.Denoiser(pipe.unet, pipe.text_encoder).state_dict()
    controlled, own = controlnet.new(pipe, locked=False), ControlNet(accumulate=2, **common)
    controlnet.train(pipe, controlled, data, folder, own, training, {"n": 1}, monitor)
    return controlled.state_dict()


if __name__ == "__main__":
    target = Path(sys.argv[2])
    loop.SAVE_AFTER = 0  # the reference segmenter saves at each validation
    torch.save(train(sys.argv[1], target, *map(int, sys.argv[3:])), target / "weights.pt")
