"""Statistics of lesion shapes by hand, their distances, and outlines fitted to real masks."""

import cv2
import numpy as np
import pandas as pd
import pytest

from lesionlib.engine.files import ROOT
from lesionlib.masks import outlines, shapes
from lesionlib.masks.recipe import random_masks

REAL = ROOT.parent / "shared" / "data" / "isic256" / "masks"


def disc(size, row, column, radius):
    rows, columns = np.indices((size, size)) + 0.5
    return (np.hypot(rows - row, columns - column) <= radius).astype(np.uint8)


def test_statistics_of_a_square_by_hand():
    square = np.zeros((1, 40, 40), np.uint8)
    square[0, 10:30, 4:24] = 1
    found = shapes.statistics(square).iloc[0]
    assert found["area"] == 400 / 1600 and found["solidity"] == 1 and found["contact"] == 0
    assert found["row"] == pytest.approx(0.5) and found["column"] == pytest.approx(14 / 40)
    assert found["eccentricity"] == pytest.approx(0) and found["roughness"] == pytest.approx(0)


def test_statistics_of_other_shapes():
    cut = disc(60, 0, 30, 20)  # half of a disc lies outside
    star = np.zeros((60, 60), np.uint8)
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    radius = 18 + 6 * np.cos(8 * angle)
    points = np.stack([30 + radius * np.cos(angle), 30 + radius * np.sin(angle)], 1)
    cv2.fillPoly(star, [points.astype(np.int32)], 1)
    flat = np.zeros((60, 60), np.uint8)
    cv2.ellipse(flat, (30, 30), (24, 8), 0, 0, 360, 1, -1)
    found = shapes.statistics(np.stack([cut, star, flat]))
    assert found["contact"].tolist() == pytest.approx([40 / 236, 0, 0])
    assert found["solidity"][1] < 0.8 < found["solidity"][2]
    assert found["roughness"][1] > 0.2 > found["roughness"][2]
    assert found["eccentricity"][2] == pytest.approx(np.sqrt(1 - (8 / 24) ** 2), abs=0.02)
    with pytest.raises(ValueError, match="empty"):
        shapes.statistics(np.zeros((1, 8, 8), np.uint8))


def test_distances_are_in_standard_deviations():
    rng = np.random.default_rng(0)
    real = pd.DataFrame(rng.normal(size=(400, 7)) * 3, columns=shapes.STATISTICS)
    shifted = real.assign(area=real["area"] + 2 * real["area"].std())
    found = shapes.distances(shifted, real)
    assert found["area"] == pytest.approx(2) and found["sum"] == pytest.approx(2)
    assert shapes.two_sample_accuracy(shifted, real) > 0.75
    other = pd.DataFrame(rng.normal(size=(300, 7)) * 3, columns=shapes.STATISTICS)
    assert shapes.two_sample_accuracy(other, real) == pytest.approx(0.5, abs=0.08)


@pytest.fixture(scope="module")
def blobs():
    """120 irregular blobs, a third of which leave the picture, with their positions to the left."""
    rng, found = np.random.default_rng(0), []
    for i in range(120):
        angle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
        radius = rng.uniform(8, 16) * (1 + 0.15 * np.cos(2 * angle + rng.uniform(0, 6)))
        radius += rng.normal(0, 0.6) * np.cos(7 * angle)
        column = 26 if i % 3 else 6
        points = np.stack([column + radius * np.cos(angle), 32 + radius * np.sin(angle)], 1)
        mask = np.zeros((64, 64), np.uint8)
        cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, shift=4)
        found.append(mask)
    return np.stack(found)


def test_the_fit_draws_shapes_like_those_it_saw(blobs):
    drawn = random_masks(300, 64, mode="fitted", real=blobs)
    real, fitted = shapes.statistics(blobs), shapes.statistics(drawn)
    paper = shapes.statistics(random_masks(300, 64))
    near, far = shapes.distances(fitted, real)["sum"], shapes.distances(paper, real)["sum"]
    assert near < far / 3
    assert (fitted["contact"] > 0).mean() == pytest.approx(1 / 3, abs=0.15)
    assert not any((drawn[:, None] == blobs[None]).all(axis=(2, 3)).ravel())  # none is a copy


def test_no_contact_with_the_border_where_there_is_none(blobs):
    inner = blobs[np.flatnonzero(np.arange(120) % 3)]
    drawn = shapes.statistics(random_masks(150, 64, mode="fitted", real=inner))
    assert (drawn["contact"] > 0).mean() < 0.03


def test_fitted_outlines_mean_the_same_at_every_size(blobs):
    small = shapes.statistics(random_masks(60, 64, mode="fitted", real=blobs))
    large = shapes.statistics(random_masks(60, 192, mode="fitted", real=blobs))
    difference = (small - large)[["area", "row", "column", "eccentricity"]].abs()
    assert difference.median().max() < 0.01 and difference.max().max() < 0.12


def test_a_disc_has_a_constant_radius_and_a_cut_one_goes_on_outside():
    centre, series = outlines.harmonics(disc(64, 32, 30, 16))
    assert centre == pytest.approx([0.5, 30 / 64])
    assert series[0] == pytest.approx(np.log(0.25), abs=0.03)
    assert np.abs(series[1:]).max() < 0.02
    _, cut = outlines.harmonics(disc(64, 10, 32, 20))
    up = outlines._basis(np.array([-np.pi / 2])) @ cut  # towards the border, 14 px away
    assert np.exp(up[0]) * 64 > 14


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real masks")
def test_fitted_is_three_times_closer_to_real_masks_than_the_paper():
    paths = sorted(REAL.glob("*.png"))[::4]
    real = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) / 255 for path in paths]
    real = np.stack([cv2.resize(m, (64, 64), interpolation=cv2.INTER_AREA) > 0.5 for m in real])
    real = real[real.any(axis=(1, 2))].astype(np.uint8)
    real = real[np.random.default_rng(0).permutation(len(real))]
    seen, held_out = real[: len(real) // 2], shapes.statistics(real[len(real) // 2 :])
    sums = {
        mode: shapes.distances(
            shapes.statistics(random_masks(300, 64, mode=mode, real=seen)), held_out
        )["sum"]
        for mode in ("paper", "fitted")
    }
    assert sums["fitted"] * 3 < sums["paper"]
