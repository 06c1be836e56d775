"""What notebook 03 shows of a diffusion model at work: it is what training and sampling do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_base import PROMPTS, pairs, untrained

from lesionlib.engine.settings import Sampling
from lesionlib.generators import base, controlnet, demonstration


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    pipe = untrained(tmp_path_factory.mktemp("base"))
    controlled = controlnet.new(pipe)
    for layer in (
        *controlled.controlnet.controlnet_down_blocks,
        controlled.controlnet.controlnet_mid_block,
    ):
        torch.nn.init.normal_(layer.weight, std=0.3)
    sampling = Sampling(ddim_steps=3, guidance=2.0, control_guidance=1.5)
    return SimpleNamespace(
        pipe=pipe, controlled=controlled.eval(), settings=SimpleNamespace(sampling=sampling)
    )


@pytest.mark.parametrize("prompt, control", [("", True), (PROMPTS[1], True), (PROMPTS[1], False)])
def test_the_last_prediction_is_the_image_that_is_sampled(painter, prompt, control):
    mask, model = pairs()[1][0], painter.controlled if control else None
    options = dict(settings=painter.settings.sampling, indices=[5])
    sampled = next(controlnet.sample(painter.pipe, model, mask[None], [prompt], **options))
    times, noisy, clean = demonstration.denoising(painter, mask, prompt, 5, control)
    assert list(times) == [999, 666, 332]
    assert noisy.shape == clean.shape == (3, *sampled.shape)
    np.testing.assert_allclose(clean[-1].astype(int), sampled, atol=1)
    assert abs(clean[0].astype(int) - sampled).max() > 1


def test_without_pull_by_the_mask_the_prediction_is_that_of_the_base(painter):
    mask = pairs()[1][0]
    with_mask = demonstration.denoising(painter, mask, control_guidance=0.0)[2]
    alone = demonstration.denoising(painter, mask, control=False)[2]
    np.testing.assert_allclose(with_mask.astype(int), alone, atol=1)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_a_right_prediction_implies_the_clean_latents(painter, kind):
    scheduler = type(painter.pipe.scheduler).from_config(
        painter.pipe.scheduler.config, prediction_type=kind
    )
    latents, noise = torch.randn(2, 1, 8, 4, 4)
    noisy, target = base.diffused(scheduler, latents, noise, torch.tensor([500]))
    found = demonstration.predicted_clean(scheduler, noisy, 500, target)
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=1e-4)


def test_noise_grows_until_the_target_is_the_negative_of_the_latents(painter):
    image = pairs()[0][0]
    times, signal, noisy, target = demonstration.noising(painter.pipe, image, 3)
    assert list(times) == [0, 500, 999] and signal[0] > 0.99 and signal[-1] < 1e-6
    kept = base.decode_latents(painter.pipe, base.encode(painter.pipe, image[None]))[0]
    assert abs(noisy[0].astype(int) - kept).mean() < 10 < abs(noisy[-1].astype(int) - kept).mean()
    negative = base.decode_latents(painter.pipe, -base.encode(painter.pipe, image[None]))[0]
    np.testing.assert_allclose(target[-1].astype(int), negative, atol=1)


def test_a_new_controlnet_changes_nothing_and_a_trained_one_does(painter):
    images, masks, _ = pairs(2)
    table = demonstration.control_effect(painter.pipe, painter.controlled, images, masks)
    assert (table["untrained"] == 0).all() and (table["trained"] > 0.001).all()
    assert list(table["t"]) == [0, 250, 500, 749, 999]
