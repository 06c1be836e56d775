"""Image quality and Dice with values by hand."""

import numpy as np
import pytest

from lesionlib import metrics

BLACK = np.zeros((1, 8, 8, 3), np.uint8)


def test_mse_and_psnr_by_hand():
    grey = np.full_like(BLACK, 51)  # 0.2 in [0, 1]
    assert metrics.mse(BLACK, grey) == pytest.approx(0.04)
    assert metrics.psnr_unit(0.04) == pytest.approx(13.979, abs=1e-3)
    assert metrics.psnr_paper(0.04) == pytest.approx(13.979 + 48.131, abs=1e-3)


def test_the_papers_psnr_is_the_usual_one_plus_48_13():
    values = np.array([0.06, 0.09, 0.5])
    np.testing.assert_allclose(metrics.psnr_paper(values) - metrics.psnr_unit(values),
                               metrics.PSNR_OFFSET)
    assert metrics.PSNR_OFFSET == pytest.approx(48.1308, abs=1e-4)


def test_identical_images_are_finite_and_best():
    table = metrics.image_quality(BLACK, BLACK)
    assert table["mse"][0] == 0 and table["ssim"][0] == pytest.approx(1)
    assert table["psnr_1"][0] == pytest.approx(58.92, abs=0.01)


def test_more_noise_is_worse_in_every_measure():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (3, 32, 32, 3)).astype(np.uint8)
    noise = rng.normal(0, 1, image.shape)
    near, far = (metrics.image_quality(image, np.clip(image + s * noise, 0, 255).astype(np.uint8))
                 for s in (5, 40))
    assert (near["mse"] < far["mse"]).all() and (near["ssim"] > far["ssim"]).all()
    assert (near["psnr_1"] > far["psnr_1"]).all()


def test_dice_by_hand():
    a, b = np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)
    a[0, 0], b[0, 0, :2] = 1, 1  # 4 and 2 pixels, 2 in common: 2 * 2 / 6
    a[1, 0], b[1, 1] = 1, 1  # nothing in common
    np.testing.assert_allclose(metrics.dice(a, b), [2 / 3, 0, 1])  # both empty: 1
    assert metrics.dice_pooled(a, b) == pytest.approx(2 * 2 / 14)


def test_values_other_than_0_and_1_are_refused():
    with pytest.raises(ValueError, match="0 and 1 only"):
        metrics.dice(np.full((1, 2, 2), 255), np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="must be uint8"):
        metrics.mse(BLACK / 255, BLACK)
