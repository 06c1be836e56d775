"""Perceptual networks against the package that holds their weights; the checkerboard's measure."""

import importlib.util

import numpy as np
import pytest
import torch

from lesionlib.engine.errors import InputError
from lesionlib.generators import perceptual


def images(phase: float, size: int) -> np.ndarray:
    """Three uint8 images (3, size, size, 3) by a formula."""
    i, y, x, c = np.indices((3, size, size, 3))
    wave = np.sin(phase + 0.3 * i + x * (0.1 + 0.05 * c) + y * 0.07 * (i + 1))
    return np.uint8(127.5 + 100 * wave)


def tensors(images) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


# Computed once by stlpips_pytorch.stlpips.LPIPS(net="alex", variant="shift_tolerant").
LPIPS = {
    32: [0.03968769, 0.02072454, 0.03041858],
    64: [0.04636139, 0.03216866, 0.02467061],
    61: [0.04657552, 0.03469472, 0.02630254],
}
# Computed once by the layers of its "vgg", with the weights of PerceptualLoss.
LOSS = {32: 0.0088716084, 64: 0.0112567404, 61: 0.0121323802}


@pytest.mark.parametrize("size", LPIPS)
def test_the_distance_is_that_of_the_package(size):
    found = perceptual.lpips(images(0.0, size), images(0.4, size), batch=2)
    np.testing.assert_allclose(found, LPIPS[size], rtol=1e-4)
    assert perceptual.lpips(images(0.0, size)[:1], images(0.0, size)[:1]).tolist() == [0.0]


@pytest.mark.parametrize("size", LOSS)
def test_the_loss_is_that_of_the_packages_layers(size):
    loss = perceptual.PerceptualLoss()
    fake = tensors(images(0.0, size)).requires_grad_()
    real = tensors(images(0.4, size)).requires_grad_()
    found = loss(fake, real)
    assert found.item() == pytest.approx(perceptual.LOSS_FACTOR * LOSS[size], rel=1e-4)
    found.backward()
    assert fake.grad.abs().max() > 0 and real.grad is None
    assert not any(p.requires_grad for p in loss.parameters())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="stlpips-pytorch"):
        perceptual.PerceptualLoss()


def test_a_checkerboard_is_measured():
    rng = np.random.default_rng(0)
    pictures = rng.normal(0, 5, (8, 64, 64, 3))
    for _ in range(3):  # less power at higher frequencies, as in photographs
        pictures = pictures + 0.3 * (np.roll(pictures, 1, 1) + np.roll(pictures, 1, 2))
    pictures = np.uint8(128 + pictures)
    assert perceptual.checkerboard(pictures) == pytest.approx(1, abs=0.3)
    y, x = np.indices((64, 64))
    every_second, every_fourth = x % 2, np.int64(x // 2 % 2)
    for pattern in (every_second, (x + y) % 2, every_fourth):
        marked = pictures + np.uint8(4 * pattern)[:, :, None]
        assert perceptual.checkerboard(marked) > 2
