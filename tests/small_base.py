"""A tiny base of the study's own classes, with images, masks and prompts to train it on.

`python tests/small_base.py KIND FOLDER [STEPS]` trains a ControlNet (or base, or Pix2PixHD) in
FOLDER: what the tests kill, start again, and start in several processes.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from lesionlib.generators import base, controlnet, latents, pix2pixhd

PROMPTS = ["a dermoscopic image of a nevus", "a dermoscopic image of a melanoma with streaks"]
SIZES = dict(
    latent_channels=8,
    patch=4,
    whitening=0.5,
    channels=[16, 32],
    attention=[False, True],
    text_width=16,
    seed=0,
)


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
    """Its pipeline, and latents of the images, kept in `folder`."""
    images, _, prompts = pairs()
    pipe = base.new(images, prompts, folder, **SIZES)
    return pipe, latents.encode_images(pipe, images, folder)


def train(kind: str, folder, steps: int = 12, **options):
    """Train one of the study's generators in `folder`; returns its weights."""
    torch.set_num_threads(1)
    images, masks, prompts = pairs()
    common = (
        dict(steps=steps, batch=4, lr=1e-3, seed=0, record={"n": 1}, save_every=3, log_every=2)
        | options
    )
    if kind == "pix2pixhd":
        return pix2pixhd.train(
            images,
            masks,
            folder,
            base_channels=4,
            n_downsample=1,
            n_blocks=1,
            disc_channels=4,
            n_enhancers=1,
            fine_steps=steps,
            fixed_steps=4,
            **common,
        ).state_dict()
    pipe, z = untrained(folder)
    common |= dict(prompt_dropout=0.5, ema=0.9, min_snr=5.0)
    if kind == "base":
        base.train(pipe, z, prompts, folder, **common)
        return base.Denoiser(pipe.unet, pipe.text_encoder).state_dict()
    controlled = controlnet.new(pipe, locked=False)
    controlnet.train(pipe, controlled, z, masks, prompts, folder, accumulate=2, **common)
    return controlled.state_dict()


if __name__ == "__main__":
    target = Path(sys.argv[2])
    torch.save(train(sys.argv[1], target, *map(int, sys.argv[3:])), target / "weights.pt")
