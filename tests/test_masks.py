"""The mask generator: one region, reproducible in any selection, the same at every size."""

import cv2
import numpy as np
import pytest

from lesionlib.engine.errors import InputError
from lesionlib.masks import recipe
from lesionlib.masks.recipe import Recipe, elastic, random_masks, random_masks_counted, steps

STEPS = ["circle", "blur", "elastic", "threshold", "open and close", "region growing"]


@pytest.fixture(scope="module")
def drawn():
    return random_masks(40, 64, seed=3)


@pytest.fixture(scope="module")
def real():
    """Twelve ellipses around the centre, areas from 3 to 25 % of the image."""
    blank = np.zeros((12, 64, 64), np.uint8)
    for i, mask in enumerate(blank):
        cv2.ellipse(mask, (28 + i, 35 - i), (8 + i, 6 + i), 20 * i, 0, 360, 1, -1)
    return blank


def blob_pair():
    """A mask of two separate squares."""
    mask = np.zeros((32, 32), np.uint8)
    mask[3:9, 3:9] = mask[20:28, 20:28] = 1
    return mask


def components(mask):
    return cv2.connectedComponents(mask, connectivity=4)[0] - 1


def test_masks_are_one_region_of_zero_and_one(drawn, real):
    others = [random_masks(40, 64, mode=mode, real=real) for mode in ("real", "fitted")]
    for some in (drawn, *others):
        assert some.dtype == np.uint8 and some.shape == (40, 64, 64)
        assert set(np.unique(some)) == {0, 1}
        assert [components(m) for m in some] == [1] * 40
        assert len({m.tobytes() for m in some}) == 40


@pytest.mark.parametrize("mode", recipe.MODES)
def test_a_mask_depends_on_its_index_alone(mode, real):
    twelve = random_masks(12, 48, seed=5, mode=mode, real=real)
    assert np.array_equal(twelve[:4], random_masks(4, 48, seed=5, mode=mode, real=real))
    assert np.array_equal(twelve[7:], random_masks(5, 48, seed=5, mode=mode, real=real, first=7))
    other = random_masks(12, 48, seed=6, mode=mode, real=real)
    assert not np.array_equal(twelve, other)
    assert not np.array_equal(twelve[1:], other[:11])  # seeds are not shifted copies
    assert random_masks(0, 48, mode=mode, real=real).shape == (0, 48, 48)


@pytest.mark.parametrize("mode", recipe.MODES)
def test_workers_change_nothing(mode, real):
    one = random_masks(12, 48, seed=5, mode=mode, real=real, workers=1)
    assert np.array_equal(one, random_masks(12, 48, seed=5, mode=mode, real=real, workers=5))


def test_sampling_near_the_outline_is_sampling_everywhere():
    for i in range(20):
        rng = np.random.default_rng(i)
        picture = recipe.blurred(recipe.circle(rng, 96, Recipe()), 2)
        shifts = recipe.drawn_displacement(rng, 96, Recipe())
        whole = (elastic(picture, shifts) > 0.5).astype(np.uint8)
        assert (whole != recipe.elastic_mask(picture, shifts)).sum() <= 1  # float32, float64


def test_paper_mode_ignores_real_masks(drawn, real):
    assert np.array_equal(drawn[:3], random_masks(3, 64, seed=3, real=real))


def test_steps_end_in_the_mask_and_show_every_operation(drawn):
    pictures = steps(64, 3, 11)
    assert list(pictures) == STEPS
    assert all(p.shape == (64, 64) for p in pictures.values())
    assert np.array_equal(pictures["region growing"], drawn[11])
    assert set(np.unique(pictures["circle"])) == {0, 1}
    assert len(np.unique(pictures["blur"])) > 10
    assert np.array_equal(pictures["threshold"], pictures["elastic"] > 0.5)


def test_circles_keep_the_threshold_and_the_edge():
    numbers = Recipe(min_radius=0.15)
    rng = np.random.default_rng(0)
    for _ in range(200):
        circle = recipe.circle(rng, 100, numbers)
        area = circle.mean()
        assert np.pi * 0.15**2 * 0.97 < area < np.pi * 0.5**2
        height, width = np.ptp(np.argwhere(circle), axis=0) + 1
        assert abs(height - width) <= 1  # whole: nothing is cut off by the edge
        assert area == pytest.approx(np.pi * height * width / 4 / 1e4, rel=0.07)


def test_without_deformation_the_mask_is_the_circle():
    numbers = Recipe(displacement=0, blur=0.005, element=0)
    pictures = [steps(128, 0, i, numbers) for i in range(10)]
    for p in pictures:
        circle, mask = p["circle"] > 0, p["region growing"] > 0
        assert (circle ^ mask).sum() <= 0.02 * circle.sum()


def test_a_recipe_is_the_same_at_every_size():
    small, large = random_masks(30, 64, seed=1), random_masks(30, 192, seed=1)
    shrunk = (
        np.stack(
            [
                cv2.resize(m.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)
                for m in large
            ]
        )
        > 0.5
    )
    overlap = 2 * (shrunk & (small > 0)).sum((1, 2)) / (shrunk.sum((1, 2)) + small.sum((1, 2)))
    assert overlap.min() > 0.9 and overlap.mean() > 0.97


def test_blur_is_a_fraction_of_the_size():
    for size in (64, 256):
        p = steps(size, 0, 1)
        assert np.allclose(p["blur"], recipe.blurred(p["circle"], 0.02 * size))


def test_real_mode_keeps_area_within_its_range(real):
    some = random_masks(150, 64, mode="real", real=real, recipe=Recipe(displacement=0))
    areas, given = some.mean((1, 2)), real.mean((1, 2))
    assert areas.min() > 0.9 * 0.7**2 * given.min()
    assert areas.max() < 1.1 * 1.3**2 * given.max()
    assert areas.max() > 1.2 * given.max() and areas.min() < 0.8 * given.min()  # both are used
    bent = random_masks(150, 64, mode="real", real=real).mean((1, 2))
    assert np.median(bent) == pytest.approx(np.median(areas), rel=0.2)


def test_real_mode_resizes_by_the_very_factor(monkeypatch, real):
    monkeypatch.setattr(recipe, "SCALES", (1, 1))
    for size in (64, 128):
        some = random_masks(20, size, mode="real", real=real[5:6], recipe=Recipe(displacement=0))
        assert some.mean((1, 2)) == pytest.approx(real[5].mean(), rel=0.04)
        centres = np.array([np.argwhere(m).mean(0) + 0.5 for m in some]) / size
        home = (np.argwhere(real[5]).mean(0) + 0.5) / 64
        assert np.abs(centres - home).max() <= recipe.SHIFT + 0.005


def test_region_growing_finds_only_the_region_of_its_seed():
    region = recipe.grown(blob_pair())
    assert region.sum() == 36 and region[3:9, 3:9].all()
    assert not recipe.is_one_region({"mask": blob_pair(), "grown": region})
    assert recipe.is_one_region({"mask": region, "grown": recipe.grown(region)})
    blank = np.zeros_like(region)
    assert not recipe.is_one_region({"mask": blank, "grown": recipe.grown(blank)})


def test_region_growing_does_not_cross_a_corner():
    corner = np.kron(np.eye(2, dtype=np.uint8), np.ones((3, 3), np.uint8))
    assert recipe.grown(corner).sum() == 9


def test_opening_removes_specks_and_closing_fills_notches():
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 1
    mask[2, 2] = 1
    mask[20, 10:14] = 0
    smooth = recipe.opened_and_closed(mask, 5)
    assert smooth[2, 2] == 0 and smooth[20, 13] == 1
    assert np.array_equal(recipe.opened_and_closed(mask, 1), mask)


def test_rejected_shapes_are_redrawn_and_counted(real):
    mixed = np.stack([np.zeros_like(real[0]), real[4]])  # an empty mask, half of the draws
    some, rejected = random_masks_counted(40, 64, mode="real", real=mixed)
    assert 15 < rejected < 80
    assert [components(m) for m in some] == [1] * 40
    parts = [random_masks_counted(20, 64, mode="real", real=mixed, first=f)[1] for f in (0, 20)]
    assert sum(parts) == rejected


def test_strong_deformation_is_rejected_in_paper_mode_too():
    some, rejected = random_masks_counted(60, 64, recipe=Recipe(displacement=0.15))
    assert rejected > 0 and all(components(m) == 1 for m in some)


def test_giving_up_says_which_mask_and_what_to_do():
    with pytest.raises(InputError, match="mask 4 of seed 2 at 32 px.*3 shapes.*Remedy"):
        random_masks(
            1,
            32,
            seed=2,
            mode="real",
            real=np.zeros((1, 32, 32), np.uint8),
            first=4,
            recipe=Recipe(max_tries=3),
        )
    with pytest.raises(InputError, match="element"):
        random_masks(1, 32, recipe=Recipe(element=1.0, max_tries=2))


def test_unusable_arguments_are_refused(real):
    with pytest.raises(ValueError, match="mode 'fitted' needs real masks"):
        random_masks(1, 32, mode="fitted")
    with pytest.raises(ValueError, match="only 3 masks .* needs 10"):
        random_masks(1, 32, mode="fitted", real=real[:3])
    with pytest.raises(ValueError, match="'ellipse'.*paper, real"):
        random_masks(1, 32, mode="ellipse")
    with pytest.raises(ValueError, match="pass `real`"):
        random_masks(1, 32, mode="real")
    with pytest.raises(ValueError, match="largest value is 255"):
        random_masks(1, 32, mode="real", real=real * 255)
    with pytest.raises(ValueError, match="must be uint8"):
        random_masks(1, 32, mode="real", real=real[0])
    for wrong in ({"min_radius": 0.5}, {"grid": 1}, {"max_tries": 0}, {"blur": -0.1}):
        with pytest.raises(ValueError):
            Recipe(**wrong)


def test_constant_displacement_shifts_the_picture():
    picture = np.random.default_rng(0).random((20, 24))
    shifted = elastic(picture, np.stack([np.full((3, 3), 2.0), np.full((3, 3), -3.0)]), order=0)
    # rounding may put the outermost samples just outside, hence 17 and 4 for 18 and 3
    assert np.array_equal(shifted[:17, 4:], picture[2:19, 1:21])
    assert not shifted[18:].any() and not shifted[:, :3].any()
    still = elastic(picture, np.zeros((2, 4, 4)), order=3)
    assert still[1:-1, 1:-1] == pytest.approx(picture[1:-1, 1:-1], abs=1e-6)


def test_elastic_refuses_integers_that_would_wrap_around():
    mask = np.ones((16, 16), np.uint8)
    with pytest.raises(ValueError, match="wraps around"):
        elastic(mask, np.zeros((2, 3, 3)), order=3)
    assert np.array_equal(elastic(mask, np.zeros((2, 3, 3)), order=0), mask)


@pytest.mark.skipif(not recipe.HAVE_ELASTICDEFORM, reason="elasticdeform is not installed")
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(
    "shape, grid, dtype", [((48, 48), 4, float), ((33, 64), 5, np.float32), ((64, 64), 2, float)]
)
def test_scipy_does_what_elasticdeform_does(monkeypatch, order, shape, grid, dtype):
    rng = np.random.default_rng(1)
    picture = cv2.GaussianBlur(rng.random(shape), (0, 0), 1.5).astype(dtype)
    shifts = rng.normal(0, 4, (2, grid, grid))
    theirs = elastic(picture, shifts, order)
    monkeypatch.setattr(recipe, "HAVE_ELASTICDEFORM", False)
    assert np.abs(elastic(picture, shifts, order) - theirs).max() < 1e-3


@pytest.mark.skipif(not recipe.HAVE_ELASTICDEFORM, reason="elasticdeform is not installed")
def test_masks_are_the_same_without_elasticdeform(monkeypatch, drawn):
    monkeypatch.setattr(recipe, "HAVE_ELASTICDEFORM", False)
    assert (random_masks(5, 64, seed=3) != drawn[:5]).mean() < 1e-3


@pytest.mark.skipif(not recipe.HAVE_ELASTICDEFORM, reason="elasticdeform is not installed")
def test_the_reference_of_the_benchmark_makes_masks_of_the_same_kind():
    from benchmarks.masks import literal

    some = literal(6)
    assert some.shape == (6, 512, 512) and [components(m) for m in some] == [1] * 6
    ours = random_masks(6, 512)
    assert 0.2 < some.mean() / ours.mean() < 5
