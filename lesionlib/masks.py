"""Lesion masks from nothing or from real masks: the visual prompts of the synthetic images.

The recipe is that of Du et al. 2023 (arXiv 2310.02906), which gives the operations and their order
but no numbers; those in `Recipe` are ours. Lengths are fractions of the image size, so a recipe
means the same at every size; pixel centres lie at (index + 0.5) / size.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from lesionlib.errors import InputError
from lesionlib.progress import progress

try:
    from elasticdeform import deform_grid
except ImportError:  # the same deformation by scipy, see `elastic_scipy`
    deform_grid = None

HAVE_ELASTICDEFORM = deform_grid is not None
MODES = ("paper", "real")
SCALES = (0.7, 1.3)  # mode real: range of the factor on lengths
SHIFT = 0.05  # mode real: largest shift per axis, in image sizes


@dataclass(frozen=True)
class Recipe:
    """Numbers of the mask generator; lengths in image sizes. Mode real uses grid to displacement
    and max_tries."""

    min_radius: float = 0.10  # least radius of the circle, and least distance of centre to edge
    blur: float = 0.02  # standard deviation of the Gaussian blur
    grid: int = 4  # control points per side of the elastic deformation
    displacement: float = 0.06  # standard deviation of each control point's shift, per axis
    element: float = 0.05  # diameter of the elliptical element, rounded to an odd pixel count
    max_tries: int = 50  # shapes drawn for one mask before giving up

    def __post_init__(self):
        if not 0 < self.min_radius < 0.5 or self.grid < 2 or self.max_tries < 1:
            raise ValueError(f"needs 0 < min_radius < 0.5, grid >= 2, max_tries >= 1: {self}")
        if min(self.blur, self.displacement, self.element) < 0:
            raise ValueError(f"blur, displacement and element must not be negative: {self}")


def elastic_scipy(image: np.ndarray, displacement: np.ndarray, order: int = 3) -> np.ndarray:
    """What `elasticdeform.deform_grid` computes, by scipy; arguments as `elastic`."""
    axes = [np.linspace(0, g - 1, s)
            for g, s in zip(displacement.shape[1:], image.shape, strict=True)]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    shift = [ndimage.map_coordinates(d, at, order=3, mode="mirror") for d in displacement]
    return ndimage.map_coordinates(image, np.indices(image.shape) + shift, order=order)


def elastic(image: np.ndarray, displacement: np.ndarray, order: int = 3) -> np.ndarray:
    """Float `image` (H, W) sampled at x + d(x), 0 outside; ValueError for integers at order > 0.

    `displacement` (2, g, g) in pixels, rows first: shifts of control points that span the image
    from its first to its last pixel, joined by a cubic spline (Ronneberger et al. 2015).
    """
    if order and image.dtype.kind != "f":
        raise ValueError(f"order {order} overshoots and wraps around in {image.dtype}; pass floats")
    displacement = np.asarray(displacement, float)
    if HAVE_ELASTICDEFORM:
        return deform_grid(image, displacement, order=order)
    return elastic_scipy(image, displacement, order)


def circle(rng, size: int, recipe: Recipe) -> np.ndarray:
    """Float32 (size, size) of 0/1: random centre, radius from min_radius to the nearest edge."""
    centre = rng.uniform(recipe.min_radius, 1 - recipe.min_radius, 2)
    radius = rng.uniform(recipe.min_radius, min(*centre, *(1 - centre)))
    rows, columns = (np.indices((size, size)) + 0.5) / size
    return (np.hypot(rows - centre[0], columns - centre[1]) <= radius).astype(np.float32)


def moved(rng, size: int, real: np.ndarray) -> np.ndarray:
    """A random one of `real` (m, S, S), resized, rotated and shifted: float32 (size, size).

    Resizing and rotation are about the lesion's centroid; what leaves the picture is cut.
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


def deformed(rng, picture: np.ndarray, recipe: Recipe, order: int) -> np.ndarray:
    """`picture` (size, size) under a random elastic deformation, float."""
    scale = recipe.displacement * len(picture)
    return elastic(picture, rng.normal(0, scale, (2, recipe.grid, recipe.grid)), order)


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, `sigma` in pixels, with nothing beyond the border."""
    return ndimage.gaussian_filter(picture, sigma, mode="constant")


def opened_and_closed(mask: np.ndarray, diameter: float) -> np.ndarray:
    """Morphological opening, then closing, by an ellipse of `diameter` pixels, rounded to odd."""
    side = 2 * max(round((diameter - 1) / 2), 0) + 1
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, element),
                            cv2.MORPH_CLOSE, element)


def grown(mask: np.ndarray) -> np.ndarray:
    """The region grown over 4 neighbours from the first lesion pixel, uint8 0/1 as `mask`."""
    seeds = np.argwhere(mask)
    if not len(seeds):
        return np.zeros_like(mask)
    region = mask.copy()
    cv2.floodFill(region, None, (int(seeds[0, 1]), int(seeds[0, 0])), 2)
    return (region == 2).astype(np.uint8)


def _thresholded(picture):
    return (picture > 0.5).astype(np.uint8)


def paper_shape(rng, size: int, recipe: Recipe) -> dict[str, np.ndarray]:
    """One try of mode paper: every step's picture (size, size), float or uint8 0/1, in order."""
    start = circle(rng, size, recipe)
    blur = blurred(start, recipe.blur * size)
    bent = deformed(rng, blur, recipe, order=3)
    mask = _thresholded(bent)
    smooth = opened_and_closed(mask, recipe.element * size)
    return {"circle": start, "blur": blur, "elastic": bent, "threshold": mask,
            "open and close": smooth, "region growing": grown(smooth)}


def real_shape(rng, size: int, recipe: Recipe, real: np.ndarray) -> dict[str, np.ndarray]:
    """One try of mode real: every step's picture (size, size), float or uint8 0/1, in order."""
    start = moved(rng, size, real)
    bent = deformed(rng, start, recipe, order=1)
    mask = _thresholded(bent)
    return {"resize and rotate": start, "elastic": bent, "threshold": mask,
            "region growing": grown(mask)}


def is_one_region(pictures: dict[str, np.ndarray]) -> bool:
    """Whether the grown region is not empty and is all of the mask it was grown in."""
    before, region = list(pictures.values())[-2:]
    return bool(region.any() and np.array_equal(before, region))


def _accepted(size, seed, index, recipe, real=None):
    """Pictures of the first shape of one region for mask `index`, and how many were rejected."""
    rng = np.random.default_rng([seed, index])
    for rejected in range(recipe.max_tries):
        pictures = (paper_shape(rng, size, recipe) if real is None
                    else real_shape(rng, size, recipe, real))
        if is_one_region(pictures):
            return pictures, rejected
    raise InputError(
        f"mask {index} of seed {seed} at {size} px",
        f"none of {recipe.max_tries} shapes was a single region",
        "reduce the recipe's displacement or element, or raise max_tries"
        if real is None else "see whether most real masks hold a single region, not empty")


def steps(size: int, seed: int, index: int, recipe: Recipe = Recipe()) -> dict[str, np.ndarray]:  # noqa: B008
    """Pictures (size, size) of each step of mode paper's mask `index`; the last is the mask.

    Keys: circle, blur, elastic (floats), threshold, open and close, region growing (uint8 0/1).
    They are those of the accepted shape, from the code that `random_masks` runs.
    """
    return _accepted(size, seed, index, recipe)[0]


def _checked(real):
    """`real` as an array; ValueError unless uint8 (m, S, S) of 0 and 1 with m > 0."""
    if real is None:
        raise ValueError("mode 'real' transforms real masks: pass `real`, uint8 (m, S, S) of 0/1")
    real = np.asarray(real)
    if real.ndim != 3 or real.shape[1] != real.shape[2] or real.dtype != np.uint8 or not real.size:
        raise ValueError(f"`real` must be uint8 (m, S, S), m > 0; it is {real.dtype} {real.shape}")
    if real.max() > 1:
        raise ValueError(f"`real` must hold 0 and 1 only; the largest value is {real.max()}")
    return real


def random_masks(n: int, size: int, seed: int = 0, mode: str = "paper",
                 recipe: Recipe = Recipe(), real=None, first: int = 0,  # noqa: B008
                 return_rejected: bool = False):
    """Masks `first` to `first + n - 1` of `seed`: uint8 (n, size, size) of 0 and 1, 1 = lesion.

    Mode paper (arXiv 2310.02906): circle, blur, elastic deformation, threshold, opening and
    closing. Mode real: one of `real`, uint8 (m, S, S) of 0/1, resized by 0.7 to 1.3, rotated,
    shifted and deformed. Shapes that are empty or not one region are redrawn; with
    `return_rejected` their count follows the masks. A mask depends on its index, seed, size,
    mode, recipe and `real` alone. Masks may touch the border, as real ones do. ValueError: mode or
    `real` unusable; InputError: no single region within the recipe's max_tries.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mask mode {mode!r}; valid: {', '.join(MODES)}")
    real = _checked(real) if mode == "real" else None
    masks, rejected = np.zeros((n, size, size), np.uint8), 0
    for i in progress(range(n), desc="masks"):
        pictures, failed = _accepted(size, seed, first + i, recipe, real)
        masks[i], rejected = pictures["region growing"], rejected + failed
    return (masks, rejected) if return_rejected else masks
