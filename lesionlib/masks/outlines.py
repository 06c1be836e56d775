"""Lesion outlines fitted to real masks: the mask mode `fitted`, which the paper does not have.

An outline is the logarithm of the radius around the lesion's centroid as a Fourier series of the
angle. Where a lesion leaves the image, its outline is unknown: those angles are ignored in the
fit, the series continues smoothly outside, and drawing cuts it off at the border. Size, position,
the low harmonics and the roughness (scale of the high ones) are drawn jointly from a Gaussian
copula with the marginals of the fitted masks, the high harmonics from their spectrum. No drawn
outline is that of a real mask.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.special import ndtr, ndtri

LOW, HIGH = 3, 16  # number of harmonics in the copula; the highest harmonic
ANGLES = 128
SMOOTHNESS = 2e-4  # weight of the penalty k^4 on harmonic k in the least squares


@dataclass(frozen=True)
class Outlines:
    """The result of `fit`: marginals, correlation and spectrum of the outlines of m masks."""

    # (m, d), columns sorted: row, column, log radius, LOW harmonics (cos, sin), log roughness
    marginals: np.ndarray
    correlation: np.ndarray  # (d, d) of the normal scores
    spectrum: np.ndarray  # (HIGH - LOW,) standard deviation of each high harmonic's cosine and sine


def _basis(angles: np.ndarray) -> np.ndarray:
    """Columns 1, cosine and sine of each harmonic at `angles` (n,) in radians: (n, 1 + 2 HIGH)."""
    waves = [f(k * angles) for k in range(1, HIGH + 1) for f in (np.cos, np.sin)]
    return np.stack([np.ones_like(angles), *waves], axis=1)


def harmonics(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroid (row, column) and the series (1 + 2 HIGH,) of log radius, in image sizes.

    `mask` (S, S) of 0 and 1 must not be empty; in each direction its outermost point counts.
    """
    size = len(mask)
    centre = np.argwhere(mask).mean(axis=0)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(contours, key=len)[:, 0, ::-1].astype(float)  # row, column of outermost pixels
    inside = ((points > 0) & (points < size - 1)).all(axis=1)
    rows, columns = (points - centre).T
    radius = np.hypot(rows, columns) + 0.5
    angle = np.arctan2(rows, columns)
    bins = ((angle / (2 * np.pi)) % 1 * ANGLES).astype(int) % ANGLES
    farthest, known = np.zeros(ANGLES), np.zeros(ANGLES)
    for index in np.lexsort((radius, bins)):  # the farthest point of each direction last
        farthest[bins[index]], known[bins[index]] = radius[index], inside[index]
    filled = farthest > 0
    centres = (np.arange(ANGLES) + 0.5) * 2 * np.pi / ANGLES
    weights = known[filled] + 1e-3  # so that a lesion that fills the image has a radius
    basis, values = _basis(centres[filled]), np.log(farthest[filled] / size)
    order = np.repeat(np.arange(HIGH + 1), 2)[1:]
    penalty = np.diag(SMOOTHNESS * order.astype(float) ** 4 * weights.sum() / 16)
    normal = basis.T @ (weights[:, None] * basis) + penalty
    return (centre + 0.5) / size, np.linalg.solve(normal, basis.T @ (weights * values))


def fit(masks: np.ndarray) -> Outlines:
    """Fit outlines to masks (m, S, S) of 0 and 1; ValueError if fewer than 10 hold a lesion."""
    found = [harmonics(mask) for mask in masks if mask.any()]
    if len(found) < 10:
        raise ValueError(f"only {len(found)} masks hold a lesion; a fit needs 10")
    centres, series = (np.array(part) for part in zip(*found, strict=True))
    high = series[:, 1 + 2 * LOW :]
    spectrum = np.sqrt((high.reshape(len(high), -1, 2) ** 2).mean(axis=(0, 2))) + 1e-9
    scaled = high / np.repeat(spectrum, 2)
    roughness = np.log(np.sqrt((scaled**2).mean(axis=1)) + 1e-6)
    numbers = np.column_stack([centres, series[:, : 1 + 2 * LOW], roughness])
    scores = ndtri((numbers.argsort(axis=0).argsort(axis=0) + 0.5) / len(numbers))
    return Outlines(np.sort(numbers, axis=0), np.corrcoef(scores.T), spectrum)


def draw(rng, size: int, outlines: Outlines) -> np.ndarray:
    """Draw a lesion from the fit: uint8 (size, size) of 0 and 1, cut off at the border."""
    scores = rng.multivariate_normal(np.zeros(len(outlines.correlation)), outlines.correlation)
    levels = ndtr(scores) * (len(outlines.marginals) - 1)
    ranks = np.arange(len(outlines.marginals))
    numbers = [np.interp(u, ranks, v) for u, v in zip(levels, outlines.marginals.T, strict=True)]
    centre, low, roughness = np.array(numbers[:2]), numbers[2:-1], np.exp(numbers[-1])
    high = roughness * np.repeat(outlines.spectrum, 2) * rng.normal(size=2 * (HIGH - LOW))
    angles = np.linspace(0, 2 * np.pi, 4 * ANGLES, endpoint=False)
    radius = np.exp(_basis(angles) @ np.concatenate([low, high]))
    points = centre[::-1] + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fine = 4  # subpixels per side of a pixel, averaged below
    canvas = np.zeros((fine * size, fine * size), np.uint8)
    corners = np.round((points * fine * size - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [corners], 1, shift=4)
    share = canvas.reshape(size, fine, size, fine).mean(axis=(1, 3))
    return (share > 0.5).astype(np.uint8)
