"""Masks: one component each, a function of seed and index, and elastic deformation by hand."""

import numpy as np
import pytest
from skimage.measure import label

from lesionlib import masks
from lesionlib.errors import InputError


@pytest.fixture(scope="module")
def automatic():
    return masks.random_masks(40, 64, seed=3)


def test_automatic_masks_are_single_components_of_zeros_and_ones(automatic):
    assert automatic.shape == (40, 64, 64) and automatic.dtype == np.uint8
    assert set(np.unique(automatic)) == {0, 1}
    assert all(label(mask, connectivity=1).max() == 1 for mask in automatic)
    assert len({mask.tobytes() for mask in automatic}) == 40


def test_mask_i_depends_on_seed_and_index_alone(automatic):
    np.testing.assert_array_equal(masks.random_masks(3, 64, seed=3), automatic[:3])
    np.testing.assert_array_equal(masks.random_masks(2, 64, seed=3, first=7), automatic[7:9])
    assert (masks.random_masks(3, 64, seed=4) != automatic[:3]).any()


def test_a_recipe_means_the_same_at_every_size(automatic):
    large = masks.random_masks(20, 128, seed=3)
    assert np.abs(large.mean((1, 2)) - automatic[:20].mean((1, 2))).max() < 0.03


def test_the_steps_shown_are_those_that_make_the_mask(automatic):
    pictures = masks.steps(64, 3, 5)
    assert list(pictures) == ["circle", "blur", "elastic", "threshold", "open and close",
                              "region growing"]
    np.testing.assert_array_equal(pictures["region growing"], automatic[5])


def test_the_circle_has_the_threshold_as_least_radius_and_ends_at_the_edge():
    recipe = masks.Recipe(min_radius=0.2)
    for seed in range(30):
        circle = masks.circle(np.random.default_rng(seed), 100, recipe)
        rows, columns = np.nonzero(circle)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert abs(height - width) <= 2 and 38 <= height <= 100
        assert circle.sum() == pytest.approx(np.pi * (height / 2) ** 2, rel=0.06)


def test_transformed_real_masks_keep_about_their_area():
    real = np.zeros((1, 64, 64), np.uint8)
    real[0, 22:42, 20:44] = 1
    made = masks.random_masks(30, 64, seed=0, mode="real", real=real)
    ratio = made.sum((1, 2)) / real.sum()
    assert 0.3 < ratio.min() < 0.9 and 1.1 < ratio.max() < 2.2


def test_region_growing_takes_one_of_two_regions():
    two = np.zeros((8, 8), np.uint8)
    two[1:3, 1:3] = two[5:7, 5:7] = 1
    assert masks.grown(two).sum() == 4
    assert not masks.is_one_region({"mask": two, "region growing": masks.grown(two)})


def test_opening_removes_a_speck_and_closing_a_hole():
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 1
    mask[20, 20], mask[2, 2] = 0, 1
    smooth = masks.opened_and_closed(mask, 5)
    assert smooth[20, 20] == 1 and smooth[2, 2] == 0


def test_a_constant_displacement_is_a_shift():
    image = np.random.default_rng(0).random((20, 20))
    shift = np.zeros((2, 4, 4))
    shift[0] = 3
    for deform in (masks.elastic, masks.elastic_scipy):
        np.testing.assert_allclose(deform(image, shift)[:16], image[3:19], atol=1e-6)


@pytest.mark.skipif(not masks.HAVE_ELASTICDEFORM, reason="elasticdeform is not installed")
def test_scipy_deforms_as_elasticdeform_does():
    rng = np.random.default_rng(1)
    image, displacement = rng.random((33, 33)), rng.normal(0, 2, (2, 4, 4))
    for order in (0, 1, 3):
        ours, theirs = (f(image, displacement, order) for f in (masks.elastic_scipy, masks.elastic))
        assert np.mean(np.abs(ours - theirs) > 1e-3) < 0.01


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="unknown mask mode 'circle'; valid: paper, real"):
        masks.random_masks(1, 32, mode="circle")
    with pytest.raises(ValueError, match="pass `real`"):
        masks.random_masks(1, 32, mode="real")
    with pytest.raises(ValueError, match="wraps around"):
        masks.elastic(np.zeros((8, 8), np.uint8), np.zeros((2, 4, 4)))
    with pytest.raises(InputError, match="single region"):
        masks.random_masks(1, 32, mode="real", real=np.zeros((1, 32, 32), np.uint8))
