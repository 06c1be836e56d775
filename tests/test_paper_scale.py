"""The true shapes of Stable Diffusion 1.5: always counted, trained and sampled on request.

`./run_all.sh --test -m slow` takes some minutes and 16 GB of memory.
"""

import time

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from lesionlib.data import augmentation
from lesionlib.engine import settings as config
from lesionlib.engine.settings import ControlNet, Sampling, Training
from lesionlib.generators import base, controlnet, latents, sd15

PROMPT = "a dermoscopic image of a melanoma"


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_numbers_of_parameters():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sd15.UNET)
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    assert count(unet) == 859_520_964 and count(control) == 361_279_120


@pytest.mark.slow
def test_one_training_step_and_one_ddim_step_at_256(tmp_path, capsys):
    settings = config.load("paper")
    pipe = sd15.pipeline([PROMPT], tmp_path)
    controlled = controlnet.new(pipe, locked=settings.controlnet.locked)
    assert count(controlled.controlnet) == 361_279_120
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    masks = np.zeros((1, 256, 256), np.uint8)
    masks[:, 64:160, 64:160] = 1
    start = time.perf_counter()
    matrices = augmentation.orientations(torch.arange(2))[:, None]
    z = latents.encode_images(pipe, images, masks, matrices, tmp_path)
    encoded = time.perf_counter()
    own = ControlNet(
        steps=1, batch=1, lr=settings.controlnet.lr, prompt_dropout=0.0, decay="constant"
    )
    training = Training(gradient_checkpointing=True, warmup=0.0, ema=0.0)
    data = base.Examples(z, masks, matrices, np.full((2, 1), PROMPT))
    controlnet.train(pipe, controlled, data, tmp_path, own, training, {})
    trained = time.perf_counter()
    made = next(controlnet.sample(pipe, controlled, masks, [PROMPT], Sampling(ddim_steps=1)))
    ended = time.perf_counter()
    assert z.shape == (2, 1, 4, 32, 32) and made.shape == (256, 256, 3)
    assert controlled.controlnet.controlnet_mid_block.weight.abs().max() > 0
    with capsys.disabled():
        seconds = np.diff([start, encoded, trained, ended]).round()
        print(
            f"\nSD 1.5's shapes at 256 px, seconds for two encodings, a training step with its "
            f"checkpoint, a DDIM step with decoding: {seconds}"
        )
