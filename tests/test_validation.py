"""Validations during training can tell a ControlNet that works from one that does not."""

import numpy as np
import pytest
import torch
from small_base import pairs, untrained
from torch import nn

from lesionlib.engine.settings import Sampling
from lesionlib.generators import base, validation
from lesionlib.generators.controlnet import ControlledUNet


class Oracle(nn.Module):
    """Predicts the exact velocity given an image's own mask, and is off by one otherwise."""

    def __init__(self, pipe, images, masks):
        super().__init__()
        self.pipe, self.z = pipe, base.encode(pipe, images)
        self.masks = torch.from_numpy(masks)

    def forward(self, noisy, t, words, hints):
        alpha = self.pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        own = [(self.masks == mask).flatten(1).all(1).float().argmax() for mask in hints[:, 0]]
        z = self.z[torch.stack(own)]
        noise = (noisy - alpha.sqrt() * z) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * z


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return untrained(folder)


def validated(pipe, controlled, folder, images, masks, monkeypatch):
    painted = np.repeat(masks[:3, ..., None] * 100 + 50, 3, axis=-1)
    monkeypatch.setattr(validation, "sample", lambda *a, **k: iter(painted))
    data = validation.HeldOut(images, masks, 3, Sampling(ddim_steps=2))
    segmenter = lambda made, few: np.full(len(few), 0.25)  # noqa: E731
    return validation.validator(pipe, controlled, data, segmenter, folder)(7), painted


def test_a_control_that_works_has_a_lower_loss_with_the_right_mask_than_with_another(
    small, tmp_path, monkeypatch
):
    images, masks, _ = pairs(12)
    oracle = Oracle(small, images, masks)
    row, painted = validated(small, oracle, tmp_path, images, masks, monkeypatch)
    assert row["held_out_loss"] < 1e-3 < 0.05 < row["wrong_mask_loss"]
    assert row["mask_fidelity"] == 0.25
    assert np.array_equal(np.load(tmp_path / "000007.npy"), painted)


def test_a_base_alone_cannot_tell_masks_apart_and_is_measured_alike_each_time(
    small, tmp_path, monkeypatch
):
    images, masks, _ = pairs(12)
    first, _ = validated(small, ControlledUNet(small.unet), tmp_path, images, masks, monkeypatch)
    second, _ = validated(small, ControlledUNet(small.unet), tmp_path, images, masks, monkeypatch)
    assert first == second and first["held_out_loss"] == first["wrong_mask_loss"]


def test_strips_are_of_the_first_the_last_and_some_between(tmp_path):
    assert validation.strips(tmp_path) == {}
    for step in (0, 50, 100, 150, 200):
        np.save(tmp_path / f"{step:06d}.npy", np.full(2, step))
    assert list(validation.strips(tmp_path, 3)) == ["step 0", "step 100", "step 200"]
    assert len(validation.strips(tmp_path, 9)) == 5
