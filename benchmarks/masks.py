"""Masks per second at 512 px: ours against the paper's recipe written down literally."""

import time

import cv2
import elasticdeform
import numpy as np
from scipy import ndimage
from skimage.measure import label

from lesionlib.masks import recipe

SIZE = 512


def literal(n: int, numbers=recipe.Recipe()):  # noqa: B008
    """n masks, one after another, each step on the whole canvas; only single regions are kept."""
    rng, found = np.random.default_rng(0), []
    side = 2 * round((numbers.element * SIZE - 1) / 2) + 1
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    rows, columns = (np.indices((SIZE, SIZE)) + 0.5) / SIZE
    while len(found) < n:
        centre = rng.uniform(numbers.min_radius, 1 - numbers.min_radius, 2)
        radius = rng.uniform(numbers.min_radius, min(*centre, *(1 - centre)))
        canvas = (np.hypot(rows - centre[0], columns - centre[1]) <= radius).astype(np.float32)
        canvas = ndimage.gaussian_filter(canvas, numbers.blur * SIZE, mode="constant")
        canvas = elasticdeform.deform_random_grid(
            canvas, sigma=numbers.displacement * SIZE, points=numbers.grid, order=3
        )
        mask = (canvas > 0.5).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, element)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, element)
        if label(mask, connectivity=1, return_num=True)[1] == 1:
            found.append(mask)
    return np.stack(found)


def rate(work, n: int) -> float:
    """Masks per second of a call for n of them."""
    start = time.perf_counter()
    work(n)
    return n / (time.perf_counter() - start)


def rows(repeats: int = 3) -> list[tuple[str, float, float, str]]:
    """(name, ours, reference, unit), the best of alternating repeats."""
    ours, reference = [], []
    recipe.random_masks(4, SIZE)
    for _ in range(repeats):
        ours.append(rate(lambda n: recipe.random_masks(n, SIZE), 300))
        reference.append(rate(literal, 30))
    return [("masks at 512 px", max(ours), max(reference), "masks/s")]
