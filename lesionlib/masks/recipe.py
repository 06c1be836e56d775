"""Random lesion masks, drawn from scratch or from real ones: the generators' visual prompts.

The recipe follows Du et al. 2023 (arXiv 2310.02906), who state the operations and their order but
no parameters; those in `Recipe` are ours. Lengths are fractions of the image size, so a recipe
gives the same shapes at every size; pixel centres lie at (index + 0.5) / size.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import cv2
import numpy as np
from scipy import ndimage

from lesionlib.engine.errors import InputError
from lesionlib.engine.progress import progress
from lesionlib.masks import outlines

try:
    from elasticdeform import deform_grid
except ImportError:  # the same deformation by scipy, see `_sample`
    deform_grid = None

HAVE_ELASTICDEFORM = deform_grid is not None
MODES = ("paper", "real", "fitted")
SCALES = (0.7, 1.3)  # mode real: range of the factor on lengths
STRIP = 24  # rows that are deformed at once
SHIFT = 0.05  # mode real: largest shift per axis, in image sizes
SMALLEST = 0.003  # mode fitted: smallest lesion area, as a share of the image


@dataclass(frozen=True)
class Recipe:
    """Parameters of the mask generator; lengths in image sizes.

    Mode real uses only grid, displacement and max_tries; mode fitted only max_tries.
    """

    min_radius: float = 0.10  # smallest radius of the circle, and distance from centre to edge
    blur: float = 0.02  # standard deviation of the Gaussian blur
    grid: int = 4  # control points per side of the elastic deformation
    displacement: float = 0.06  # standard deviation of each control point's shift, per axis
    element: float = 0.05  # diameter of the elliptical element, rounded to an odd pixel count
    max_tries: int = 50  # shapes drawn for one mask before InputError

    def __post_init__(self):
        if not 0 < self.min_radius < 0.5 or self.grid < 2 or self.max_tries < 1:
            raise ValueError(f"needs 0 < min_radius < 0.5, grid >= 2, max_tries >= 1: {self}")
        if min(self.blur, self.displacement, self.element) < 0:
            raise ValueError(f"blur, displacement and element must not be negative: {self}")


def _box(picture: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Row and column slices around all nonzero pixels, widened by `margin` within the image."""
    left, top, width, height = cv2.boundingRect((picture != 0).view(np.uint8))
    return (
        slice(max(top - margin, 0), top + height + margin),
        slice(max(left - margin, 0), left + width + margin),
    )


@cache
def _weights(size: int, points: int) -> np.ndarray:
    """Matrix (size, points) from control points to the cubic spline through them at each pixel."""
    at = [np.linspace(0, points - 1, size)]
    return np.stack(
        [ndimage.map_coordinates(unit, at, order=3, mode="mirror") for unit in np.eye(points)],
        axis=1,
    )


def sources(shape, displacement: np.ndarray, window=np.s_[:, :]) -> list[np.ndarray]:
    """Row and column coordinates x + d(x) at which `elastic` samples the pixels of `window`."""
    down, across = (
        _weights(s, g)[part].astype(displacement.dtype)
        for s, g, part in zip(shape, displacement.shape[1:], window, strict=True)
    )
    rows, columns = (
        np.arange(s, dtype=displacement.dtype)[part] for s, part in zip(shape, window, strict=True)
    )
    # einsum, not BLAS, whose threads would compete with ours
    bent = np.einsum("ig,dgh->dih", down, displacement)
    shifts = np.einsum("dih,hj->dij", bent, np.ascontiguousarray(across.T))
    return [rows[:, None] + shifts[0], columns + shifts[1]]


def spline_coefficients(image: np.ndarray) -> np.ndarray:
    """Coefficients of the cubic spline through the float `image`; < 1e-9 beyond 16 px of it."""
    found, part = np.zeros_like(image), _box(image, 16)
    if image.any():
        found[part] = ndimage.spline_filter(image[part], 3, output=image.dtype, mode="mirror")
    return found


def _sample(coefficients, displacement, order, window):
    """The pixels of `window` (two slices) of the deformed picture, from its coefficients."""
    if HAVE_ELASTICDEFORM:
        return deform_grid(coefficients, displacement, order=order, prefilter=False, crop=window)
    return ndimage.map_coordinates(
        coefficients,
        sources(coefficients.shape, displacement, window),
        order=order,
        prefilter=False,
    )


def elastic(image: np.ndarray, displacement: np.ndarray, order: int = 3) -> np.ndarray:
    """Float `image` (H, W) sampled at x + d(x), 0 outside; ValueError for integers at order > 0.

    `displacement` (2, g, g) holds the shifts, in pixels and rows first, of control points that span
    the image from its first to its last pixel and are joined by a cubic spline (Ronneberger et al.
    2015). Computed by `elasticdeform.deform_grid`, or by SciPy if that is not installed.
    """
    if order and image.dtype.kind != "f":
        raise ValueError(f"order {order} overshoots and wraps around in {image.dtype}; pass floats")
    knots = spline_coefficients(image) if order > 1 else image
    whole = tuple(slice(0, s) for s in image.shape)
    return _sample(knots, np.asarray(displacement, float), order, whole)


def elastic_mask(image: np.ndarray, displacement: np.ndarray, order: int = 3) -> np.ndarray:
    """`elastic(...) > 0.5` as uint8, computed only near the outline.

    A spline of order 3 or less is a weighted mean, with non-negative weights, of the coefficients
    within 2 px. Where all or none of these exceed 0.5, the result is known without sampling.
    """
    knots = spline_coefficients(image) if order > 1 else image
    neighbours = np.ones((5, 5), np.uint8)
    inside = cv2.erode((knots > 0.5 + 1e-4).view(np.uint8), neighbours, borderValue=0)
    classes = inside + cv2.dilate(
        (knots > 0.5 - 1e-4).view(np.uint8), neighbours
    )  # 2: lesion, 1: unknown
    rows, columns = sources(image.shape, displacement.astype(np.float32))
    classes = cv2.remap(classes, columns, rows, cv2.INTER_NEAREST)
    mask = classes // 2
    for top in range(0, len(mask), STRIP):
        strip = slice(top, min(top + STRIP, len(mask)))
        unknown = (classes[strip] == 1).any(0)
        ends = np.flatnonzero(np.diff(unknown, prepend=False, append=False))
        for left, right in ends.reshape(-1, 2):
            part = strip, slice(left, right)
            mask[part] = _sample(knots, displacement, order, part) > 0.5
    return mask


def circle(rng, size: int, recipe: Recipe) -> np.ndarray:
    """Float32 (size, size) of 0/1: random centre, radius from min_radius to the nearest edge."""
    centre = rng.uniform(recipe.min_radius, 1 - recipe.min_radius, 2)
    radius = rng.uniform(recipe.min_radius, min(*centre, *(1 - centre)))
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    squares = (at[:, None] - centre[0]) ** 2 + (at - centre[1]) ** 2
    return (squares <= radius**2).astype(np.float32)


def moved(rng, size: int, real: np.ndarray) -> np.ndarray:
    """One of the masks `real` (m, S, S) at random, resized, rotated and shifted, as float32.

    Resizing and rotation keep the lesion's centroid; parts outside the (size, size) image are lost.
    """
    mask = real[rng.integers(len(real))].astype(np.float32)
    scale, angle = rng.uniform(*SCALES), rng.uniform(0, 2 * np.pi)
    shift = rng.uniform(-SHIFT, SHIFT, 2)
    if not mask.any():
        return np.zeros((size, size), np.float32)
    centroid = np.argwhere(mask).mean(0)[::-1]  # x, y
    target = ((centroid + 0.5) / len(mask) + shift) * size - 0.5
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn * scale * size / len(mask)
    matrix = np.column_stack([linear, target - linear @ centroid])
    return cv2.warpAffine(mask, matrix, (size, size), flags=cv2.INTER_LINEAR)


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with `sigma` in pixels, truncated at 4 sigma, zeros beyond the border."""
    if not sigma or not picture.any():
        return picture.copy()
    reach = round(4 * sigma)
    part, found = _box(picture, reach), np.zeros_like(picture)
    found[part] = cv2.GaussianBlur(
        picture[part], (2 * reach + 1,) * 2, sigma, borderType=cv2.BORDER_CONSTANT
    )
    return found


def opened_and_closed(mask: np.ndarray, diameter: float) -> np.ndarray:
    """Morphological opening, then closing, by an ellipse of `diameter` pixels, rounded to odd."""
    side = 2 * max(round((diameter - 1) / 2), 0) + 1
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    part, found = _box(mask, side), np.zeros_like(mask)  # each operation reaches half a side
    if mask.any():
        opened = cv2.morphologyEx(mask[part], cv2.MORPH_OPEN, element)
        found[part] = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, element)
    return found


def grown(mask: np.ndarray) -> np.ndarray:
    """The region grown over 4 neighbours from the first lesion pixel, uint8 0/1 as `mask`."""
    if not mask.any():
        return np.zeros_like(mask)
    region = mask.copy()
    row, column = divmod(int(mask.argmax()), mask.shape[1])
    cv2.floodFill(region, None, (column, row), 2)
    return region // 2


def drawn_displacement(rng, size: int, recipe: Recipe) -> np.ndarray:
    """Random shifts (2, grid, grid) of the control points, in pixels."""
    return rng.normal(0, recipe.displacement * size, (2, recipe.grid, recipe.grid))


def paper_shape(rng, size: int, recipe: Recipe, show: bool = False) -> dict[str, np.ndarray]:
    """One attempt in mode paper: the picture (size, size) after each step, float or uint8 0/1.

    The deformed picture is computed only if `show`: a mask needs it only near its outline.
    """
    start = circle(rng, size, recipe)
    blur = blurred(start, recipe.blur * size)
    shifts = drawn_displacement(rng, size, recipe)
    bent = {"elastic": elastic(blur, shifts)} if show else {}
    mask = elastic_mask(blur, shifts)
    smooth = opened_and_closed(mask, recipe.element * size)
    return {
        "circle": start,
        "blur": blur,
        **bent,
        "threshold": mask,
        "open and close": smooth,
        "region growing": grown(smooth),
    }


def real_shape(rng, size: int, recipe: Recipe, real: np.ndarray) -> dict[str, np.ndarray]:
    """One attempt in mode real: the picture (size, size) after each step, float or uint8 0/1."""
    start = moved(rng, size, real)
    mask = elastic_mask(start, drawn_displacement(rng, size, recipe), order=1)
    return {"resize and rotate": start, "threshold": mask, "region growing": grown(mask)}


def fitted_shape(rng, size: int, recipe: Recipe, fit: outlines.Outlines) -> dict[str, np.ndarray]:
    """One attempt in mode fitted: an outline drawn from the fit, uint8 0/1; empty if too small."""
    mask = outlines.draw(rng, size, fit)
    mask *= mask.mean() >= SMALLEST
    return {"outline": mask, "region growing": grown(mask)}


def is_one_region(pictures: dict[str, np.ndarray]) -> bool:
    """Whether the grown region is not empty and covers the whole mask it was grown in."""
    before, region = list(pictures.values())[-2:]
    return bool(region.any() and np.array_equal(before, region))


def _accepted(shape, size: int, seed: int, recipe: Recipe, index: int):
    """Pictures of the first single-region shape for mask `index`, and how many were rejected."""
    rng = np.random.default_rng([seed, index])
    for rejected in range(recipe.max_tries):
        pictures = shape(rng, size, recipe)
        if is_one_region(pictures):
            return pictures, rejected
    raise InputError(
        f"mask {index} of seed {seed} at {size} px",
        f"none of {recipe.max_tries} shapes was a single region",
        "reduce the recipe's displacement or element, or raise max_tries; in mode real, check that "
        "most real masks are not empty and hold a single region",
    )


def steps(size: int, seed: int, index: int, recipe: Recipe = Recipe()) -> dict[str, np.ndarray]:  # noqa: B008
    """Pictures (size, size) after each step of mask `index` in mode paper; the last is the mask.

    Keys: circle, blur, elastic (floats), threshold, open and close, region growing (uint8 0/1).
    They belong to the accepted shape and come from the same code as `random_masks`.
    """
    return _accepted(partial(paper_shape, show=True), size, seed, recipe, index)[0]


def _check_real(mode: str, real):
    """`real` as an array; ValueError unless it is uint8 (m, S, S) of 0 and 1 with m > 0."""
    if real is None:
        raise ValueError(f"mode '{mode}' needs real masks: pass `real`, uint8 (m, S, S) of 0/1")
    real = np.asarray(real)
    if real.ndim != 3 or real.shape[1] != real.shape[2] or real.dtype != np.uint8 or not real.size:
        raise ValueError(f"`real` must be uint8 (m, S, S), m > 0; it is {real.dtype} {real.shape}")
    if real.max() > 1:
        raise ValueError(f"`real` must hold 0 and 1 only; the largest value is {real.max()}")
    return real


def random_masks_counted(
    n: int,
    size: int,
    seed: int = 0,
    mode: str = "paper",
    recipe: Recipe = Recipe(),  # noqa: B008
    real=None,
    first: int = 0,
    workers: int | None = None,
) -> tuple[np.ndarray, int]:
    """Masks `first` to `first + n - 1` of `seed`, and how many shapes were rejected for them.

    Masks are uint8 (n, size, size) of 0 and 1, 1 = lesion. Mode paper (arXiv 2310.02906): circle,
    blur, elastic deformation, threshold, opening and closing. Mode real: one of `real`, uint8
    (m, S, S) of 0 and 1, resized by 0.7 to 1.3, rotated, shifted and deformed. Mode fitted:
    outlines drawn from a distribution fitted to `real` (see `outlines`). Shapes that are empty or
    consist of several regions are rejected and redrawn. A mask depends only on its index, seed,
    size, mode, recipe and `real`, not on n or `workers` (threads; default: one per core). Masks
    may touch the border, as real ones do.

    ValueError: unknown mode or unusable `real`. InputError: no single region within the recipe's
    max_tries.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mask mode {mode!r}; valid: {', '.join(MODES)}")
    shape = paper_shape
    if mode == "real":
        shape = partial(real_shape, real=_check_real(mode, real))
    elif mode == "fitted":
        shape = partial(fitted_shape, fit=outlines.fit(_check_real(mode, real)))
    one = partial(_accepted, shape, size, seed, recipe)
    masks, rejected = np.zeros((n, size, size), np.uint8), 0
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        found = pool.map(one, range(first, first + n))
        for i, (pictures, failed) in enumerate(progress(found, desc="masks", total=n)):
            masks[i], rejected = pictures["region growing"], rejected + failed
    return masks, rejected


def random_masks(n: int, size: int, **options) -> np.ndarray:
    """The masks of `random_masks_counted`, which explains the options, without the count."""
    return random_masks_counted(n, size, **options)[0]
