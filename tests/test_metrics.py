"""Metrics against values worked out by hand, and their order: better is better."""

import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lesionlib.data import curation
from lesionlib.evaluation import quality
from lesionlib.segmentation import measures


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
    return (
        np.stack([image] * 4).astype(np.uint8),
        np.clip(np.stack(copies), 0, 255).astype(np.uint8),
    )


def test_mse_by_hand():
    assert quality.mse(flat(0, 10, 7), flat(255, 61, 7)) == pytest.approx([1, 0.04, 0])
    one = flat(0)
    one[0, 0, 0, 0] = 51  # a fifth, in one of 8 x 8 x 3 values
    assert quality.mse(flat(0), one) == pytest.approx([0.04 / 192])
    assert quality.mse(flat(61), flat(10)) == pytest.approx([0.04])  # no wrap-around of uint8


def test_psnr_by_hand_in_both_conventions():
    assert pytest.approx(48.1308, abs=1e-4) == quality.PSNR_OFFSET
    assert quality.psnr_unit(np.array([1, 0.1, 0.01])) == pytest.approx([0, 10, 20])
    assert quality.psnr_paper(0.01) == pytest.approx(68.1308, abs=1e-4)
    errors = np.array([0.3, 0.02, 1e-4, 0])
    gap = quality.psnr_paper(errors) - quality.psnr_unit(errors)
    assert gap == pytest.approx(np.full(4, quality.PSNR_OFFSET))
    # the unscaled MSE at range 255 is the unit convention, not the paper's
    assert quality.psnr(0.04 * 255**2, 255) == pytest.approx(quality.psnr_unit(0.04))


def test_identical_images_have_a_finite_psnr():
    assert quality.psnr_unit(0.0) == pytest.approx(10 * np.log10(12 * 255**2))
    assert quality.psnr_unit(0.0) == pytest.approx(58.92, abs=0.01)
    assert quality.psnr_unit((1 / 255) ** 2) < quality.psnr_unit(0.0)  # all values off by one


def test_ssim_by_hand():
    a, b = 51 / 255, 102 / 255  # flat images leave the luminance term alone
    expected = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)
    assert quality.ssim(flat(51, 9), flat(102, 9)) == pytest.approx([expected, 1])


def test_ssim_window_is_seven_wide():
    with pytest.raises(ValueError):
        quality.ssim(flat(0, size=6), flat(0, size=6))
    assert quality.ssim(flat(0, size=7), flat(0, size=7)) == pytest.approx([1])


def test_ssim_of_one_window_by_the_formula():
    rng = np.random.default_rng(2)
    x, y = (rng.integers(0, 256, (1, 7, 7, 3), np.uint8) for _ in range(2))
    values = []
    for c in range(3):
        u, v = x[0, ..., c].ravel() / 255, y[0, ..., c].ravel() / 255
        (uu, uv), (_, vv) = np.cov(u, v)
        values.append(
            (2 * u.mean() * v.mean() + 1e-4)
            * (2 * uv + 9e-4)
            / ((u.mean() ** 2 + v.mean() ** 2 + 1e-4) * (uu + vv + 9e-4))
        )
    assert quality.ssim(x, y) == pytest.approx([np.mean(values)])


def test_quality_falls_with_noise_and_rows_keep_their_order(noisy):
    table = quality.image_quality(*noisy)
    assert list(table.columns) == ["mse", "psnr_255", "psnr_1", "ssim", "lpips"]
    assert list(table.index) == [0, 1, 2, 3]
    assert (np.diff(table[["mse", "lpips"]], axis=0) > 0).all()
    assert (np.diff(table[["psnr_255", "psnr_1", "ssim"]], axis=0) < 0).all()
    back = quality.image_quality(noisy[0][::-1], noisy[1][::-1])
    assert back.to_numpy() == pytest.approx(table.to_numpy()[::-1], rel=1e-5)
    swapped = quality.image_quality(noisy[1], noisy[0])
    assert swapped.to_numpy() == pytest.approx(table.to_numpy(), rel=1e-5)


def test_table1_averages_over_images_and_seeds_and_gives_the_spread_of_the_seeds():
    rows = [
        {"method": method, "generator_seed": seed, "id": i, "mse": seed + i, "psnr_255": 1.0}
        for method, seeds in (("a", (0, 1)), ("b", (0,)))
        for seed in seeds
        for i in range(3)
    ]
    frame = pd.DataFrame(rows).assign(psnr_1=1.0, ssim=0.5, lpips=0.1)
    table = quality.table1(frame).set_index("method")
    assert table["n"].tolist() == [3, 3] and table["seeds"].tolist() == [2, 1]
    assert table["mse"].tolist() == [1.5, 1.0]
    assert (
        table.loc["a", "mse_sd"] == pytest.approx(np.sqrt(0.5)) and table.loc["a", "ssim_sd"] == 0
    )
    assert np.isnan(table.loc["b", "mse_sd"])


def test_quality_of_identical_images_is_finite(noisy):
    table = quality.image_quality(noisy[0], noisy[0])
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
    assert measures.dice(*masks()) == pytest.approx([4 / 6, 0, 1, 1])
    assert measures.dice(*(m.astype(bool) for m in masks())) == pytest.approx([4 / 6, 0, 1, 1])
    empty = np.zeros((1, 4, 4), np.uint8)
    assert measures.dice(empty, 1 - empty) == pytest.approx([0])


def test_pooled_dice_by_hand():
    pred, target = masks()
    rows = pd.DataFrame([measures.segmentation(*pair) for pair in zip(pred, target, strict=True)])
    assert measures.pooled_dice(rows) == pytest.approx(2 * 6 / (9 + 7))
    nothing = pd.DataFrame([measures.segmentation(pred[0] * 0, target[0] * 0)])
    assert measures.pooled_dice(nothing) == 1.0


def squares():
    """Predicted and true masks (H, W) with what is known of them."""
    empty = np.zeros((40, 60), np.uint8)
    square, shifted, pixel = empty.copy(), empty.copy(), empty.copy()
    square[10:30, 10:30] = 1
    shifted[10:30, 14:34] = 1
    pixel[10, 10] = 1
    diagonal = np.hypot(40, 60)
    return {
        "same": (square, square, dict(dice=1, iou65=1, hd95=0, nsd=1, brier=0, ece=0)),
        "both empty": (empty, empty, dict(dice=1, iou=1, iou65=1, hd95=0, nsd=1, brier=0)),
        "nothing found": (empty, square, dict(dice=0, iou65=0, hd95=1, nsd=0, fn=400 / 2400)),
        "all found": (1 - empty, square, dict(dice=800 / 2800, iou=400 / 2400, fp=2000 / 2400)),
        "moved by four": (
            shifted,
            square,
            dict(dice=0.8, iou=320 / 480, iou65=320 / 480, hd95=4 / diagonal, brier=160 / 2400),
        ),
        "one pixel": (
            pixel,
            square,
            dict(
                dice=2 / 401,
                tp=1 / 2400,
                hd95=np.percentile(
                    [
                        np.hypot(y - 10, x - 10)
                        for y, x in np.argwhere(measures._outline(square > 0))
                    ],
                    95,
                )
                / diagonal,
            ),
        ),
    }


@pytest.mark.parametrize("case", squares())
def test_measures_of_hand_made_masks(case):
    pred, target, wanted = squares()[case]
    found = measures.segmentation(pred.astype(np.float32), target)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_below_0_65_the_thresholded_jaccard_is_zero():
    assert measures.thresholded_jaccard([0.649, 0.65, 0.9]).tolist() == [0, 0.65, 0.9]


def shapes(n=12, seed=0):
    """Random predictions and targets of several sizes, all with something in them."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        size = rng.integers(30, 90, 2)
        y, x = np.mgrid[: size[0], : size[1]]
        pair = []
        for _ in range(2):
            centre, radii = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.15, 0.6, 2) * size
            pair.append(((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1)
        yield pair


def test_boundary_distances_are_those_of_monai():
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    for pred, target in shapes():
        ours = measures.boundary(pred, target, 0.05)
        both = [torch.from_numpy(mask)[None, None] for mask in (pred, target)]
        diagonal = np.hypot(*pred.shape)
        theirs = compute_hausdorff_distance(*both, include_background=True, percentile=95)
        assert ours["hd95"] * diagonal == pytest.approx(theirs.item(), abs=1e-4)
        near = compute_surface_dice(*both, [0.05 * diagonal], include_background=True)
        assert ours["nsd"] == pytest.approx(near.item(), abs=1e-6)


def test_the_whole_hausdorff_distance_is_scikit_images():
    from skimage.metrics import hausdorff_distance

    for pred, target in shapes(seed=1):
        ours = max(apart.max() for apart in measures.surface_distances(pred, target))
        assert ours == pytest.approx(hausdorff_distance(*map(measures._outline, (pred, target))))


def test_overlap_is_that_of_the_official_scorer_and_128_is_background(tmp_path):
    sys.modules.setdefault("zipfile_deflate64", zipfile)  # of its zip reader, which we do not use
    from isic_challenge_scoring.segmentation import SegmentationScore

    rows, rng = [], np.random.default_rng(5)
    for name in ("truth", "found"):
        (tmp_path / name).mkdir()
    for i, pair in enumerate(shapes()):
        for name, mask in zip(("truth", "found"), pair, strict=True):
            ground = rng.choice([0, 128], mask.shape, p=[0.9, 0.1])
            grey = np.where(mask, 255, ground).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / name / f"ISIC_{i:07d}.png")
        photo = tmp_path / "image.png"
        Image.fromarray(rng.integers(0, 255, (*mask.shape, 3), np.uint8)).save(photo)
        target, pred = (
            curation.whole_mask(photo, tmp_path / name / f"ISIC_{i:07d}.png")
            for name in ("truth", "found")
        )
        rows.append(measures.segmentation(pred.astype(np.float32), target))
    ours = pd.DataFrame(rows).mean()
    theirs = SegmentationScore.from_dir(tmp_path / "truth", tmp_path / "found")
    assert ours["iou65"] == pytest.approx(theirs.overall)
    assert 0 < theirs.overall < theirs.macro_average["jaccard"]  # some lie below 0.65
    for name, other in (("dice", "dice"), ("iou", "jaccard")):
        assert ours[name] == pytest.approx(theirs.macro_average[other])


def test_calibration_of_known_probabilities():
    target = np.zeros((10, 10), bool)
    target[:3] = True  # three tenths of the pixels
    honest = measures.calibration(np.full((10, 10), 0.3), target)
    assert honest == pytest.approx({"brier": 0.3 * 0.7, "ece": 0})
    sure = measures.calibration(np.full((10, 10), 0.95), target)
    assert sure["ece"] == pytest.approx(0.65)
    right = measures.calibration(target.astype(float), target)
    assert right == pytest.approx({"brier": 0, "ece": 0})


def test_a_prediction_is_measured_at_the_masks_own_resolution():
    small = np.zeros((16, 16), np.float32)
    small[4:12, 4:12] = 1
    target = np.zeros((96, 128), np.uint8)
    target[24:72, 32:96] = 1
    assert measures.segmentation(small, target)["dice"] > 0.97
    assert measures.segmentation(small.T[::-1] * 0.49, target)["dice"] == 0


def test_dice_counts_beyond_eight_bits():
    full = np.ones((1, 64, 64), np.uint8)
    half = full.copy()
    half[:, 32:] = 0
    assert measures.dice(full, half) == pytest.approx([2 / 3])


def test_dice_rises_with_overlap():
    target = np.zeros((5, 10, 10), np.uint8)
    pred = target.copy()
    target[:, :, :5] = 1
    for i in range(5):
        pred[i, :, 4 - i : 9 - i] = 1
    assert (np.diff(measures.dice(pred, target)) > 0).all()


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        quality.mse(flat(0) / 255, flat(0) / 255)
    for other in (flat(0, 0), flat(0)[..., :1], flat(0)[0]):
        with pytest.raises(ValueError, match="must both be"):
            quality.mse(flat(0), other)
        with pytest.raises(ValueError, match="must both be"):
            quality.ssim(flat(0), other)
    pred, target = masks()
    with pytest.raises(ValueError, match="0 and 1"):
        measures.dice(pred * 255, target)
    with pytest.raises(ValueError, match="must both be"):
        measures.dice(pred[:2], target)
