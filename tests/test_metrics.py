"""Metrics against values worked out by hand, and their order: better is better."""

import numpy as np
import pytest

from lesionlib import metrics


def flat(*values, size=8):
    """Grey uint8 images (N, size, size, 3) of the given values."""
    return np.stack([np.full((size, size, 3), v, np.uint8) for v in values])


@pytest.fixture(scope="module")
def noisy():
    """An image four times, and copies with more and more noise."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 190, 32)
    image = np.stack([np.add.outer(ramp, ramp) / 2] * 3, -1)
    copies = [image + rng.normal(0, s, image.shape) for s in (2, 8, 20, 45)]
    return (np.stack([image] * 4).astype(np.uint8),
            np.clip(np.stack(copies), 0, 255).astype(np.uint8))


def test_mse_by_hand():
    assert metrics.mse(flat(0, 10, 7), flat(255, 61, 7)) == pytest.approx([1, 0.04, 0])
    one = flat(0)
    one[0, 0, 0, 0] = 51  # a fifth, in one of 8 x 8 x 3 values
    assert metrics.mse(flat(0), one) == pytest.approx([0.04 / 192])
    assert metrics.mse(flat(61), flat(10)) == pytest.approx([0.04])  # no wrap-around of uint8


def test_psnr_by_hand_in_both_conventions():
    assert pytest.approx(48.1308, abs=1e-4) == metrics.PSNR_OFFSET
    assert metrics.psnr_unit(np.array([1, 0.1, 0.01])) == pytest.approx([0, 10, 20])
    assert metrics.psnr_paper(0.01) == pytest.approx(68.1308, abs=1e-4)
    errors = np.array([0.3, 0.02, 1e-4, 0])
    gap = metrics.psnr_paper(errors) - metrics.psnr_unit(errors)
    assert gap == pytest.approx(np.full(4, metrics.PSNR_OFFSET))
    # the unscaled MSE at range 255 is the unit convention, not the paper's
    assert metrics.psnr(0.04 * 255**2, 255) == pytest.approx(metrics.psnr_unit(0.04))


def test_identical_images_have_a_finite_psnr():
    assert metrics.psnr_unit(0.0) == pytest.approx(10 * np.log10(12 * 255**2))
    assert metrics.psnr_unit(0.0) == pytest.approx(58.92, abs=0.01)
    assert metrics.psnr_unit((1 / 255) ** 2) < metrics.psnr_unit(0.0)  # all values off by one


def test_ssim_by_hand():
    a, b = 51 / 255, 102 / 255  # flat images leave the luminance term alone
    expected = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)
    assert metrics.ssim(flat(51, 9), flat(102, 9)) == pytest.approx([expected, 1])


def test_ssim_window_is_seven_wide():
    with pytest.raises(ValueError):
        metrics.ssim(flat(0, size=6), flat(0, size=6))
    assert metrics.ssim(flat(0, size=7), flat(0, size=7)) == pytest.approx([1])


def test_ssim_of_one_window_by_the_formula():
    rng = np.random.default_rng(2)
    x, y = (rng.integers(0, 256, (1, 7, 7, 3), np.uint8) for _ in range(2))
    values = []
    for c in range(3):
        u, v = x[0, ..., c].ravel() / 255, y[0, ..., c].ravel() / 255
        (uu, uv), (_, vv) = np.cov(u, v)
        values.append((2 * u.mean() * v.mean() + 1e-4) * (2 * uv + 9e-4)
                      / ((u.mean() ** 2 + v.mean() ** 2 + 1e-4) * (uu + vv + 9e-4)))
    assert metrics.ssim(x, y) == pytest.approx([np.mean(values)])


def test_quality_falls_with_noise_and_rows_keep_their_order(noisy):
    table = metrics.image_quality(*noisy)
    assert list(table.columns) == ["mse", "psnr_255", "psnr_1", "ssim"]
    assert list(table.index) == [0, 1, 2, 3]
    assert (np.diff(table["mse"]) > 0).all()
    assert (np.diff(table[["psnr_255", "psnr_1", "ssim"]], axis=0) < 0).all()
    back = metrics.image_quality(noisy[0][::-1], noisy[1][::-1])
    assert back.to_numpy() == pytest.approx(table.to_numpy()[::-1])
    swapped = metrics.image_quality(noisy[1], noisy[0])
    assert swapped.to_numpy() == pytest.approx(table.to_numpy())


def test_quality_of_identical_images_is_finite(noisy):
    table = metrics.image_quality(noisy[0], noisy[0])
    assert np.isfinite(table.to_numpy()).all()
    assert (table["ssim"] == 1).all() and (table["mse"] == 0).all()


def masks():
    """Predictions and targets: overlap of 2 in 4 + 2, none, both empty, equal."""
    pred, target = np.zeros((2, 4, 4, 4), np.uint8)
    pred[0, 0, :4], target[0, 0, :2] = 1, 1
    pred[1, 0, 0] = target[1, 3, 3] = 1
    pred[3, 1:3, 1:3] = target[3, 1:3, 1:3] = 1
    return pred, target


def test_dice_by_hand():
    assert metrics.dice(*masks()) == pytest.approx([4 / 6, 0, 1, 1])
    assert metrics.dice(*(m.astype(bool) for m in masks())) == pytest.approx([4 / 6, 0, 1, 1])
    empty = np.zeros((1, 4, 4), np.uint8)
    assert metrics.dice(empty, 1 - empty) == pytest.approx([0])


def test_pooled_dice_by_hand():
    assert metrics.dice_pooled(*masks()) == pytest.approx(2 * 6 / (9 + 7))
    empty = np.zeros((2, 4, 4), np.uint8)
    assert metrics.dice_pooled(empty, empty) == 1.0
    assert isinstance(metrics.dice_pooled(*masks()), float)


def test_dice_counts_beyond_eight_bits():
    full = np.ones((1, 64, 64), np.uint8)
    half = full.copy()
    half[:, 32:] = 0
    assert metrics.dice(full, half) == pytest.approx([2 / 3])
    assert metrics.dice_pooled(full, half) == pytest.approx(2 / 3)


def test_dice_rises_with_overlap():
    target = np.zeros((5, 10, 10), np.uint8)
    pred = target.copy()
    target[:, :, :5] = 1
    for i in range(5):
        pred[i, :, 4 - i:9 - i] = 1
    assert (np.diff(metrics.dice(pred, target)) > 0).all()


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        metrics.mse(flat(0) / 255, flat(0) / 255)
    for other in (flat(0, 0), flat(0)[..., :1], flat(0)[0]):
        with pytest.raises(ValueError, match="must both be"):
            metrics.mse(flat(0), other)
        with pytest.raises(ValueError, match="must both be"):
            metrics.ssim(flat(0), other)
    pred, target = masks()
    for measure in (metrics.dice, metrics.dice_pooled):
        with pytest.raises(ValueError, match="0 and 1"):
            measure(pred * 255, target)
        with pytest.raises(ValueError, match="must both be"):
            measure(pred[:2], target)
