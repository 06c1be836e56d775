"""Procedural dermoscopic images with exact lesion masks: the study's embedded data.

Nothing here is a photograph. Skin is a colour times exp(-density x absorption), like light that
passes through pigment: dense superficial melanin looks black, thin brown, deep blue-grey. Every
visual feature is one function named by its term in dermoscopy. Lengths are given in pixels of a
256 px image and scaled; smaller images are the 256 px scene, downsampled by area averaging.

The frequencies are based on 2,594 ISIC training images (1,866 nevi, 519 melanomas, 208 benign
keratoses), but the two rarer diagnoses are raised to 0.22 and 0.18, and the rarer attributes
slightly; otherwise a default set of a few hundred images would contain only a handful of each.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import atomic_write, read_json, write_csv, write_json
from lesionlib.engine.progress import progress

DIAGNOSES = {"nevus": 0.60, "melanoma": 0.22, "benign keratosis": 0.18}
SITES = ("anterior torso", "posterior torso", "lower extremity", "upper extremity", "head/neck")
# per diagnosis: P(attribute), P(site), age mean and standard deviation, all close to ISIC's
PATIENTS = {
    "nevus": ((0.68, 0.08, 0.06, 0.18, 0.28), (0.22, 0.33, 0.22, 0.16, 0.07), 42, 18),
    "melanoma": ((0.66, 0.18, 0.20, 0.18, 0.32), (0.15, 0.22, 0.18, 0.28, 0.17), 62, 15),
    "benign keratosis": ((0.12, 0.03, 0.02, 0.75, 0.04), (0.17, 0.13, 0.14, 0.17, 0.39), 65, 12),
}
# one random stream per feature, so that omitting a feature changes nothing else in the image
STREAMS = ("labels", "tables", "skin", "shape", "pigment", *ATTRIBUTES, "hair", "extras", "noise")
# pale, rosy grey, pink, lilac, yellowish, tan, beige, brown, dark, flushed
SKINS = np.float32([
    (228, 214, 200), (196, 170, 162), (226, 178, 178), (193, 165, 180), (212, 188, 150),
    (205, 160, 125), (190, 168, 150), (172, 124, 92), (135, 95, 72), (226, 128, 118),
])  # fmt: skip
SKIN_SHARES = (0.18, 0.16, 0.14, 0.10, 0.10, 0.10, 0.10, 0.05, 0.03, 0.04)
BROWN = np.array([0.39, 0.80, 1.14], np.float32)  # absorption of melanin in R, G, B
BLUE = np.array([1.00, 0.80, 0.62], np.float32)  # melanin seen through scattering dermis
SOOT = np.array([0.85, 1.00, 1.00], np.float32)  # melanin so dense that no hue is left
BLOOD = np.array([0.12, 0.75, 0.62], np.float32)  # absorption of haemoglobin


@dataclass(frozen=True)
class Phantom:
    """An image, its exact lesion mask, and the labels a clinician would have recorded."""

    image: np.ndarray  # (size, size, 3) uint8 RGB
    mask: np.ndarray  # (size, size) uint8, 1 = lesion
    diagnosis: str
    attributes: dict[str, bool]
    age: int  # years, a multiple of 5
    sex: str
    site: str


def streams(index: int, seed: int = 0) -> dict[str, np.random.Generator]:
    """The random generators of image `index`, one per feature."""
    return dict(zip(STREAMS, np.random.default_rng([seed, index]).spawn(len(STREAMS)), strict=True))


def draw_labels(rng: np.random.Generator) -> dict:
    """Diagnosis, attributes (dict of bool), age (years), sex and site of one patient."""
    diagnosis = str(rng.choice(list(DIAGNOSES), p=list(DIAGNOSES.values())))
    chances, sites, mean, std = PATIENTS[diagnosis]
    flags = [bool(flag) for flag in rng.random(len(ATTRIBUTES)) < chances]
    age = int(5 * np.clip(round(rng.normal(mean, std) / 5), 1, 17))  # ISIC: 5 to 85
    return {
        "diagnosis": diagnosis,
        "attributes": dict(zip(ATTRIBUTES, flags, strict=True)),
        "age": age,
        "sex": str(rng.choice(["female", "male"])),
        "site": str(rng.choice(SITES, p=sites)),
    }


# ---- building blocks -------------------------------------------------------------------------


def noise(rng, size, cells, octaves=1, gain=0.55):
    """Smooth noise (size, size) of unit variance; `cells` = waves per image side, or (y, x)."""
    rows, cols = cells if np.ndim(cells) else (cells, cells)
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        shape = [max(int(n * 2**octave), 1) + 4 for n in (rows, cols)]
        grid = rng.standard_normal(shape, np.float32)
        step = [n * 2**octave / size for n in (cols, rows)]
        origin = [
            1.5 + step[0] / 2,
            1.5 + step[1] / 2,
        ]  # the margin hides edge effects of the cubic interpolation
        affine = np.array([[step[0], 0, origin[0]], [0, step[1], origin[1]]])
        flags = dict(flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT)
        total += gain**octave * cv2.warpAffine(grid, affine, (size, size), **flags)
    return total / (total.std() + 1e-6)


def sigmoid(x):
    """Logistic step from 0 to 1."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def blur(image, sigma):
    """Gaussian blur; `sigma` in pixels of the array."""
    return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.05))


def patch(rng, mask, share, cells=3.0, soft=0.35):
    """A cloudy region (N, N) in 0..1 that covers about `share` of the mask."""
    field = noise(rng, len(mask), cells, octaves=4)
    return sigmoid((field - np.quantile(field[mask > 0], 1 - share)) / soft)


def solid(binary):
    """The largest component of a binary image without its holes, as uint8 0/1."""
    binary = binary.astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=4)
    if count < 2:
        return np.zeros(binary.shape, np.uint8)
    largest = labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    # holes are background that is not 4-connected to the outside
    padded = np.pad((~largest).astype(np.uint8), 1, constant_values=1)
    _, background = cv2.connectedComponents(padded, connectivity=4)
    return (background[1:-1, 1:-1] != background[0, 0]).astype(np.uint8)


def signed_distance(mask):
    """Distance to the border in pixels, positive inside."""
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    return inside - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)


def honeycomb(rng, size, spacing, width):
    """Lines (size, size) in 0..1 between jittered hexagonal cells `spacing` px apart."""
    fine = 2 * size  # twice the resolution avoids staircase artefacts
    step = 2 * spacing
    y, x = np.mgrid[0 : fine + step : step * 0.87, 0 : fine + step : step]
    x[1::2] += step / 2
    points = np.stack([x.ravel(), y.ravel()]) + rng.normal(0, 0.2 * step, (2, x.size))
    points = points.astype(int)[:, ((points >= 0) & (points < fine)).all(0)]
    seeds = np.ones((fine, fine), np.uint8)
    seeds[points[1], points[0]] = 0
    by_pixel = dict(labelType=cv2.DIST_LABEL_PIXEL)
    _, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, **by_pixel)
    wall = np.ones((fine, fine), np.uint8)
    wall[:-1, :-1] = (label[:-1, :-1] == label[1:, :-1]) & (label[:-1, :-1] == label[:-1, 1:])
    away = cv2.distanceTransform(wall, cv2.DIST_L2, 5)
    dark = np.exp(-((away / (2 * width)) ** 2))
    lines = cv2.resize(dark, (size, size), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    bend = [0.35 * spacing * noise(rng, size, size / spacing / 4) for _ in "xy"]
    x, y, border = x + bend[0], y + bend[1], cv2.BORDER_REFLECT
    lines = cv2.remap(lines, x, y, cv2.INTER_LINEAR, borderMode=border)
    return lines * np.clip(0.75 + 0.3 * noise(rng, size, 20, 2), 0, 1)  # walls of uneven darkness


def strokes(size, draw, scale=3):
    """Alpha (size, size) in 0..1 of what `draw(canvas, scale)` paints on a finer canvas."""
    canvas = np.zeros((size * scale, size * scale), np.uint8)
    draw(canvas, scale)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA) / np.float32(255)


def draw_line(canvas, one, other, width):
    """Draw a smooth line of at least 1 px on a uint8 canvas."""
    cv2.line(canvas, one, other, 255, max(width, 1), cv2.LINE_AA)


def draw_ellipse(canvas, centre, axes, turn, stop=360, width=-1):
    """Draw a smooth ellipse, or its arc of `stop` degrees, on a uint8 canvas; -1 fills it."""
    cv2.ellipse(canvas, centre, axes, turn, 0, stop, 255, width, cv2.LINE_AA)


def paint_over(image, alpha, colour):
    """Paint `colour` (3,) or (N, N, 3) on the image with opacity alpha (N, N)."""
    return image + alpha[..., None] * (np.asarray(colour, np.float32) - image)


def spots(rng, mask, count, radius, soft=0.6):
    """Round spots (N, N) in 0..1 inside the mask, radii about `radius` px, no two touching."""
    size, rows = len(mask), []
    room = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    inside = np.argwhere(room > min(1.6 * radius, 0.7 * room.max()))
    for y, x in inside[rng.permutation(len(inside))[: 8 * count]]:
        r = radius * rng.uniform(0.65, 1.45)
        if all((y - v) ** 2 + (x - u) ** 2 > (1.4 * (r + q)) ** 2 for v, u, q in rows):
            rows.append((y, x, r))
        if len(rows) == count:
            break

    def draw(canvas, k):
        for y, x, r in rows:
            axes = (max(round(k * r), 1), max(round(k * r * rng.uniform(0.75, 1)), 1))
            draw_ellipse(canvas, (int(k * x), int(k * y)), axes, rng.uniform(0, 180))

    return blur(strokes(size, draw), soft * radius * 0.6)


# ---- skin and the shape of the lesion --------------------------------------------------------


def furrows(rng, size):
    """Fine skin lines (size, size), about -1..1: two families of stretched ridges that cross."""
    wide, total, angle = int(1.5 * size), np.zeros((size, size), np.float32), rng.uniform(0, 180)
    for turn in (angle, angle + rng.uniform(50, 80)):
        ridges = 1 - 2 * np.abs(noise(rng, wide, (rng.uniform(50, 75), rng.uniform(7, 14))))
        rotation = cv2.getRotationMatrix2D((wide / 2, wide / 2), turn, 1)
        rotation[:, 2] -= (wide - size) / 2
        total += cv2.warpAffine(ridges, rotation, (size, size))
    return np.clip(total / 2, -1, 1)


def vessels(rng, size):
    """Thin branching lines (size, size) in 0..1: where smooth noise crosses zero."""
    ridge = np.abs(noise(rng, size, rng.uniform(10, 18), octaves=2, gain=0.4))
    return np.exp(-((ridge / 0.09) ** 2)) * sigmoid(3 * noise(rng, size, 4))


def skin(rng, size):
    """Bare skin (size, size, 3) as float RGB 0..255: tone, light, mottling, lines, redness."""
    tone = SKINS[rng.choice(len(SKINS), p=SKIN_SHARES)]
    tone = tone * rng.uniform(0.9, 1.12) * (1 + rng.normal(0, 0.02, 3).astype(np.float32))
    melanin = 0.035 * noise(rng, size, 2, 2) + 0.022 * noise(rng, size, 14, 4, 0.8)
    freckles = sigmoid((noise(rng, size, rng.uniform(6, 16), 3) - rng.uniform(2, 4.5)) / 0.4)
    blood = rng.uniform(0.01, 0.07) * noise(rng, size, 5, 5, 0.8)
    blood += rng.choice([0, 0.1, 0.25], p=[0.6, 0.25, 0.15]) * vessels(rng, size)
    light = 1 + 0.05 * noise(rng, size, 1.2) + rng.uniform(0.003, 0.02) * furrows(rng, size)
    density = (melanin + 0.35 * freckles)[..., None] * BROWN + blood[..., None] * BLOOD
    return np.minimum(tone, 243) * light[..., None] * np.exp(-density)


def lesion_shape(rng, size, diagnosis):
    """Lesion mask (size, size) uint8 of 3-60 % of the image, with a ragged border."""
    rough, waves = {
        "nevus": (0.09, 0.04),
        "melanoma": (0.17, 0.11),
        "benign keratosis": (0.10, 0.06),
    }[diagnosis]
    log_area = {"melanoma": (-1.5, 0.7)}.get(diagnosis, (-1.95, 0.75))  # mean, deviation
    area = np.clip(np.exp(rng.normal(*log_area)), 0.04, 0.56)
    radius = np.sqrt(area / np.pi)
    slack = max(0.42 - radius, 0.02) if rng.random() > 0.1 else 0.5  # a tenth may leave the image
    cy, cx = 0.5 + np.clip(rng.normal(0, 0.4, 2), -1, 1) * slack
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) / size
    turn, aspect = rng.uniform(0, np.pi), rng.uniform(0.5, 1)
    u = (np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)) * np.sqrt(aspect) / radius
    v = (np.cos(turn) * (y - cy) - np.sin(turn) * (x - cx)) / np.sqrt(aspect) / radius
    angle, rho = np.arctan2(v, u), np.hypot(u, v)
    for order in range(2, 7):
        height, phase = rng.normal(0, waves) / order**0.5, rng.uniform(0, 2 * np.pi)
        rho = rho * (1 + height * np.cos(order * angle + phase))
    # noise with a wavelength near the radius bends the border, its octaves fray it
    level = rough * rng.uniform(0.6, 1.5) * noise(rng, size, 0.8 / radius, 5, 0.52) - rho
    return solid(level > np.quantile(level, 1 - area))


# ---- structures inside the lesion ------------------------------------------------------------


def pigment(rng, mask, diagnosis):
    """Density of melanin (N, N): soft or sharp border, several shades, darker zones."""
    size, unit = len(mask), len(mask) / 256
    distance = signed_distance(mask)
    fuzzy = {"nevus": (1.2, 6), "melanoma": (1.0, 5), "benign keratosis": (0.6, 1.8)}[diagnosis]
    width = unit * rng.uniform(*fuzzy) * np.exp(0.5 * noise(rng, size, 4))
    fray = 0.6 * noise(rng, size, 30, 3, 0.7) - 0.6  # the mask includes the fading rim
    border = sigmoid(distance / width + fray)
    depth = np.clip(distance / (distance.max() + 1e-6), 0, 1)
    base, spread, shades = {
        "nevus": (0.48, 0.42, 0.16),
        "melanoma": (0.54, 0.42, 0.30),
        "benign keratosis": (0.42, 0.45, 0.16),
    }[diagnosis]
    density = np.clip(base * np.exp(rng.normal(0, spread)), 0.32, 1.9)
    density = density * (1 + rng.uniform(-0.2, 1.0) * (depth**0.7 - 0.3))
    texture = shades * noise(rng, size, 5, 3, 0.7) + 0.17 * noise(rng, size, 28, 3, 0.8)
    density = density * np.exp(texture)
    if diagnosis != "benign keratosis" and rng.random() < 0.6:
        density += rng.uniform(0.3, 0.9) * patch(rng, mask, rng.uniform(0.1, 0.35))
    return border * np.maximum(density, 0.2)


def pigment_network(rng, density, mask):
    """Density with a dark honeycomb in part of the lesion, finer than its shades."""
    unit = len(mask) / 256
    lines = honeycomb(rng, len(mask), unit * rng.uniform(5, 8.5), unit * rng.uniform(0.9, 1.5))
    region = patch(rng, mask, rng.uniform(0.55, 0.95)) * (0.8 + 0.25 * noise(rng, len(mask), 12))
    region = np.clip(region, 0, 1)
    density = density * (1 + region * rng.uniform(0.55, 0.9) * (1.8 * lines - 0.7))
    return density + 0.25 * region * lines * np.minimum(
        2 * density, 1
    )  # visible in faint lesions, too


def negative_network(rng, density, mask):
    """Density with a light honeycomb: pale winding lines around dark oblong cells."""
    unit = len(mask) / 256
    lines = honeycomb(rng, len(mask), unit * rng.uniform(7, 11), unit * rng.uniform(1.5, 2.1))
    region = patch(rng, mask, rng.uniform(0.45, 0.7))
    return density * (1 + region * (0.4 - rng.uniform(0.95, 1.15) * lines))


def globules(rng, density, mask):
    """Density with clustered dark round dots."""
    unit = len(mask) / 256
    cluster = solid((patch(rng, mask, rng.uniform(0.3, 0.8)) > 0.5) & (mask > 0))
    dots = spots(rng, cluster, rng.integers(14, 60), unit * rng.uniform(1.5, 2.6), soft=0.8)
    return density + dots * (rng.uniform(0.5, 0.8) + 0.25 * density)


def streaks(rng, mask):
    """Radial fingers (N, N) in 0..1 that cross the border outward over part of the rim."""
    size, unit = len(mask), len(mask) / 256
    rim = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)[:, 0]
    slope = np.stack(np.gradient(blur(signed_distance(mask), 4 * unit)))[::-1]  # points inward
    first, share = rng.integers(len(rim)), rng.uniform(0.35, 0.9)
    starts = np.arange(0, share * len(rim), 6 * unit)
    starts = (starts + first + rng.normal(0, 3 * unit, starts.size)).astype(int) % len(rim)

    def draw(canvas, k):
        for x, y in rim[starts]:
            inward = slope[:, y, x] / (np.linalg.norm(slope[:, y, x]) + 1e-6)
            inward = inward + rng.normal(0, 0.15, 2)
            steps = unit * np.linspace(-rng.uniform(2, 8), rng.uniform(3, 10), 8)
            path = ((x, y) + steps[:, None] * inward) * k
            for i, (a, b) in enumerate(pairwise(path.astype(int).tolist())):
                draw_line(canvas, a, b, round(k * unit * (0.8 + 0.18 * i)))  # tapering outward

    return blur(strokes(size, draw), 0.8 * unit)


def milia_like_cyst(rng, image, mask, count):
    """Image (N, N, 3) with `count` small whitish-yellow round spots in the lesion."""
    unit = len(mask) / 256
    alpha = spots(rng, mask, count, unit * rng.uniform(1.4, 2.3), soft=0.9)
    alpha = alpha * np.clip(0.75 + 0.3 * noise(rng, len(mask), 12), 0.35, 1)
    glow = blur(alpha, 2.5 * unit)  # cysts shine through the pigment around them
    image = paint_over(image, 0.35 * glow, (225, 205, 165))
    return paint_over(image, rng.uniform(0.7, 0.85) * alpha, (244, 230, 200))


def cerebriform(rng, density, mask):
    """Density with the winding fissures and ridges of a seborrheic keratosis."""
    size = len(mask)
    folds = np.abs(noise(rng, size, rng.uniform(12, 22), octaves=2, gain=0.35))
    fissure = np.exp(-((folds / rng.uniform(0.15, 0.28)) ** 2))
    return density * (0.85 + rng.uniform(0.4, 1.0) * fissure)


def colours(rng, density, mask, diagnosis):
    """Absorption (N, N, 3) of the density: one brown or two, waxy yellow, grey or reddish."""
    waxy = rng.choice([(0.0, -0.1, 0.12), (0.16, 0.03, -0.08), (-0.05, 0.0, -0.04)])
    tints = {"nevus": (0.0, 0.0, 0.0), "melanoma": (0.05, 0.02, -0.06), "benign keratosis": waxy}
    first = BROWN + tints[diagnosis] + rng.normal(0, (0.05, 0.05, 0.07), 3)
    second = first + rng.normal(0, 0.08, 3) + (0.06, 0, -0.06)
    blend = sigmoid(2 * noise(rng, len(mask), 4, 2))[..., None]
    return density[..., None] * (first + blend * (second - first)).astype(np.float32)


def melanoma_colours(rng, image, border, mask):
    """Image with two to four of: black blotches, blue-grey veil, redness, pale regression."""
    parts = rng.permutation(["black", "veil", "red", "regression"])[: rng.integers(2, 5)]
    inner = border * sigmoid(signed_distance(mask) / (3 * len(mask) / 256) - 1)
    for part in sorted(parts, key=("red", "regression", "black", "veil").index):
        region = inner * patch(rng, mask, rng.uniform(0.12, 0.35), 3, 0.45)
        if part == "black":
            image = image * np.exp(-rng.uniform(1.0, 1.8) * region[..., None] * SOOT)
        elif part == "red":
            image = image * np.exp(-rng.uniform(0.4, 0.8) * region[..., None] * BLOOD)
        elif part == "veil":
            image = image * np.exp(-0.5 * region[..., None] * BLUE)
            image = paint_over(image, rng.uniform(0.35, 0.6) * region, (104, 106, 122))
        else:
            image = paint_over(image, rng.uniform(0.5, 0.8) * region, (205, 178, 172))
    return image


# ---- hair and artefacts on top ---------------------------------------------------------------


def hair_curves(rng, size, count, length, bend, thick):
    """Alpha (size, size) of `count` arcs in one main direction that taper to their tips."""
    mean, t = rng.uniform(0, 2 * np.pi), np.linspace(0, 1, 26 if length > 0.1 else 5)[:, None]

    def draw(canvas, k):
        for _ in range(count):
            angle = mean + rng.normal(0, 0.6)
            reach = rng.uniform(0.5, 1.3) * np.array([np.cos(angle), np.sin(angle)])
            arc = t * reach + 2 * t * (1 - t) * (1 + t) * rng.normal(0, bend, 2)
            pixels = ((rng.uniform(-0.1, 1.1, 2) + length * arc) * size * k).astype(int).tolist()
            for i, (a, b) in enumerate(pairwise(pixels)):
                draw_line(canvas, a, b, round(k * thick * (1.2 - 0.9 * i / len(pixels))))

    return strokes(size, draw)


def hair(rng, image):
    """Image with none, a few or many curved hairs, or shaven stubble; some of them light."""
    size, unit = len(image), len(image) / 256
    amount = rng.choice(["none", "few", "many", "stubble"], p=[0.44, 0.34, 0.13, 0.09])
    low, high, length, bend = {
        "none": (0, 1, 0.8, 0.4),
        "few": (1, 8, 0.8, 0.4),
        "many": (10, 34, 0.8, 0.5),
        "stubble": (30, 90, 0.035, 0.1),
    }[amount]
    count, thick = rng.integers(low, high), unit * rng.uniform(0.45, 1.15)
    alpha = hair_curves(rng, size, count, length, bend, thick)
    dark = np.array((34, 25, 22)) + rng.random() * np.array((80, 50, 28))  # black to brown
    shaded = image * (1 - 0.18 * blur(alpha, 2 * unit)[..., None])
    if amount != "stubble" and rng.random() < 0.2:
        return paint_over(shaded, 0.6 * alpha, (228, 210, 176))
    return paint_over(shaded, rng.uniform(0.7, 0.9) * alpha, dark)


def ruler(rng, image):
    """Image with a millimetre scale: a ticked bar near an edge, or ticks along the rim."""
    size, bar = len(image), rng.random() < 0.65
    side, tilt = rng.integers(4), rng.normal(0, 12 if rng.random() < 0.5 else 2)

    def draw(canvas, k):
        full, pen = size * k, max(round(size * k / 420), 1)
        length, y = (0.42, rng.uniform(0.84, 0.94)) if bar else (0.9, 0.975)
        left, ticks = rng.uniform(0.04, 0.96 - length), 10 if bar else rng.integers(8, 16)
        for i, x in enumerate(np.linspace(left, left + length, ticks + 1)):
            tall = (0.03 if i % 5 == 0 else 0.02) if bar else 0.045
            foot, top = (int(x * full), int(y * full)), (int(x * full), int((y - tall) * full))
            draw_line(canvas, foot, top, pen if bar else 2 * pen)
        if bar:
            ends = [(int(x * full), int(y * full)) for x in (left, left + length)]
            draw_line(canvas, *ends, pen)
            below, font = (ends[0][0], ends[0][1] + full // 28), cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(canvas, "mm", below, font, full / 1300, 255, pen, cv2.LINE_AA)
        turn = cv2.getRotationMatrix2D((full / 2, full / 2), 90 * side + tilt, 1)
        canvas[:] = cv2.warpAffine(canvas, turn, (full, full))

    return paint_over(image, rng.uniform(0.55, 0.85) * strokes(size, draw), (48, 44, 46))


def gel_bubbles(rng, image):
    """Image with air bubbles in the contact gel: thin rings, bright on one side."""
    size = len(image)

    def draw(canvas, k, stop=360):
        for (x, y), r in zip(centres, radii, strict=True):
            centre, axes, width = (int(x * k), int(y * k)), (int(r * k), int(r * k * 0.9)), k * size
            draw_ellipse(canvas, centre, axes, turn, stop, max(width // 256, 1))

    count, turn = rng.integers(2, 12), rng.uniform(0, 360)
    centres, radii = rng.uniform(0, size, (count, 2)), size * rng.gamma(3, 0.005, count) + 1
    image = paint_over(image, 0.4 * strokes(size, draw), (120, 100, 95))
    return paint_over(image, 0.75 * strokes(size, partial(draw, stop=130)), (250, 248, 245))


def specular(rng, image, mask):
    """Image with small white glints where the light is mirrored."""
    glint = noise(rng, len(image), (70, 55), octaves=2) - 1.5 * (1 - patch(rng, mask, 0.12, 4))
    return paint_over(image, 0.8 * sigmoid((glint - 2.2) / 0.15), (250, 250, 252))


def vignette(rng, image):
    """Image with corners that darken gently, or the sharp circle of the instrument."""
    size = len(image)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    r = np.hypot(x - rng.normal(0, 0.05), y - rng.normal(0, 0.05))
    image = image * (1 - rng.uniform(0, 0.12) * r**2)[..., None]
    if rng.random() < 0.2:
        edge = sigmoid((r - rng.uniform(1.0, 1.3)) / rng.choice([0.006, 0.03, 0.06]))
        image = paint_over(image, edge, np.array((22, 18, 18)) * rng.uniform(0.3, 1.5))
    return image


# ---- whole images ----------------------------------------------------------------------------


def paint(labels: dict, rngs: dict, size: int, shape=None) -> tuple[np.ndarray, np.ndarray]:
    """Image (size, size, 3) uint8 and mask (size, size) uint8 0/1 of `draw_labels`' labels.

    `shape`: a lesion (256, 256) of 0 and 1, for images of up to 256 px, instead of a drawn one.
    """
    canvas = max(size, 256)  # fine structures are drawn at 256 px, then downsampled
    diagnosis, flags = labels["diagnosis"], labels["attributes"]
    mask = lesion_shape(rngs["shape"], canvas, diagnosis) if shape is None else shape
    rays = streaks(rngs["streaks"], mask) if flags["streaks"] else np.zeros(mask.shape)
    mask = solid((mask > 0) | (rays > 0.5))
    image = lesion_on_skin(labels, rngs, mask, rays)
    image = add_artefacts(rngs["extras"], hair(rngs["hair"], image), mask)
    image = blur(image, rngs["noise"].uniform(0.3, 0.7) * canvas / 256)
    strength, grain = rngs["noise"].uniform(0.8, 2.2), (canvas, canvas, 1)
    image += strength * rngs["noise"].standard_normal(grain, np.float32)
    if size < canvas:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        mask = solid(share > 0.5)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), mask


def lesion_on_skin(labels, rngs, mask, rays):
    """The lesion on its skin (N, N, 3) float RGB, before hair and the optics."""
    diagnosis, flags, rng = labels["diagnosis"], labels["attributes"], rngs["pigment"]
    density = pigment(rng, mask, diagnosis)
    if diagnosis == "benign keratosis":
        density = cerebriform(rng, density, mask)
    for feature in (pigment_network, globules, negative_network):
        if flags[feature.__name__]:
            density = feature(rngs[feature.__name__], density, mask)
    density = density + 0.8 * rays * density[mask > 0].mean() ** 0.5
    density = np.maximum(density, 0).astype(np.float32)
    image = skin(rngs["skin"], len(mask)) * np.exp(-colours(rng, density, mask, diagnosis))
    if diagnosis == "melanoma":
        image = melanoma_colours(rng, image, np.minimum(density, 1), mask)
    if flags["milia_like_cyst"]:
        many = (8, 26) if diagnosis == "benign keratosis" else (5, 12)
        count = rngs["milia_like_cyst"].integers(*many)
        image = milia_like_cyst(rngs["milia_like_cyst"], image, mask, count)
    return image


def add_artefacts(rng, image, mask):
    """Image with random optics and artefacts: ruler, bubbles, glints, vignette."""
    glints = partial(specular, mask=mask)
    for chance, feature in ((0.3, ruler), (0.2, gel_bubbles), (0.2, glints), (1.0, vignette)):
        if rng.random() < chance:
            image = feature(rng, image)
    return image


def sample(index: int, size: int = 256, seed: int = 0) -> Phantom:
    """Phantom `index` of `seed` at `size` px; it depends on these three alone."""
    rngs = streams(index, seed)
    labels = draw_labels(rngs["labels"])
    image, mask = paint(labels, rngs, size)
    return Phantom(image, mask, **labels)


# ---- a folder in ISIC's layout ---------------------------------------------------------------


def write_pair(index, folder, size, seed):
    """Write image and mask of one index into ISIC's folders unless both exist."""
    name = f"ISIC_{9000000 + index}"  # real ids are well below
    image = folder / "ISIC2018_Task1-2_Training_Input" / f"{name}.jpg"
    mask = folder / "ISIC2018_Task1_Training_GroundTruth" / f"{name}_segmentation.png"
    if image.exists() and mask.exists():
        return
    phantom = sample(index, size, seed)
    if not image.exists():
        with atomic_write(image) as path:
            quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
            path.write_bytes(cv2.imencode(".jpg", phantom.image[..., ::-1], quality)[1])
    if not mask.exists():
        with atomic_write(mask) as path:
            path.write_bytes(cv2.imencode(".png", phantom.mask * 255)[1])


def tables(n, seed):
    """The tables of ISIC 2017-2019 (file name -> DataFrame) for n phantoms, gaps included."""
    rows = []
    for index in range(n):
        rngs = streams(index, seed)
        row, gaps = draw_labels(rngs["labels"]), rngs["tables"].random(6)
        row |= {"id": f"ISIC_{9000000 + index}", "gaps": gaps}
        row["id19"] = row["id"] + ("_downsampled" if gaps[0] < 0.7 else "")
        rows.append(row)
    early = rows[: round(0.7 * n)]  # ISIC 2017 has only part of the later images
    codes = {"MEL": "melanoma", "NV": "nevus", "BKL": "benign keratosis"}
    classes = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
    frames = {
        "ISIC2018_Task2_Training_attributes": [
            {"id": r["id"]} | {k: int(v) for k, v in r["attributes"].items()} for r in rows
        ],
        "ISIC-2017_Training_Part3_GroundTruth": [
            {
                "image_id": r["id"],
                "melanoma": float(r["diagnosis"] == "melanoma"),
                "seborrheic_keratosis": float(r["diagnosis"] == "benign keratosis"),
            }
            for r in early
        ],
        "ISIC-2017_Training_Data_metadata": [
            {
                "image_id": r["id"],
                "age_approximate": "unknown" if r["gaps"][1] < 0.06 else r["age"],
                "sex": "unknown" if r["gaps"][1] < 0.05 else r["sex"],
            }
            for r in early
        ],
        "ISIC_2019_Training_GroundTruth": [
            {"image": r["id19"]} | {c: float(codes.get(c) == r["diagnosis"]) for c in classes}
            for r in rows
        ],
        "ISIC_2019_Training_Metadata": [
            {
                "image": r["id19"],
                "age_approx": float(r["age"]) if r["gaps"][1] > 0.06 else None,
                "anatom_site_general": r["site"] if r["gaps"][2] > 0.12 else None,
                "lesion_id": f"MSK4_9{r['id'][-6:]}" if r["gaps"][3] > 0.9 else None,
                "sex": r["sex"] if r["gaps"][1] > 0.05 else None,
            }
            for r in rows
        ],
    }
    return {f"{name}.csv": pd.DataFrame(content) for name, content in frames.items()}


def write_dataset(folder, n, size=256, seed=0, workers=None) -> Path:
    """Write n phantoms and their tables in the layout of the ISIC downloads; resumable.

    `size` in px; `workers` processes (default: one per core). Files that exist are kept, so a
    second call completes an interrupted one; the tables come last. Returns the folder.
    Processes are spawned: a script (not a notebook) calls this under `if __name__ == "__main__"`.
    """
    folder = Path(folder)
    existing, wanted = read_json(folder / "phantoms.json"), {"n": n, "seed": seed, "size": size}
    if existing and ((existing["seed"], existing["size"]) != (seed, size) or existing["n"] > n):
        problem = f"it holds phantoms of {existing}, not {wanted}"
        raise InputError(folder, problem, "choose another folder or delete this one")
    write_json(folder / "phantoms.json", wanted)
    job = partial(write_pair, folder=folder, size=size, seed=seed)
    workers = min(workers or os.cpu_count() or 1, n)
    if workers <= 1:
        for index in progress(range(n), desc="phantoms", total=n):
            job(index)
    else:
        spawn = multiprocessing.get_context("spawn")  # forking a process with threads may hang
        with ProcessPoolExecutor(workers, spawn, cv2.setNumThreads, (1,)) as pool:
            done = pool.map(job, range(n), chunksize=4)
            for _ in progress(done, desc="phantoms", total=n):
                pass
    for name, frame in tables(n, seed).items():
        if not (folder / name).exists() or len(pd.read_csv(folder / name)) != len(frame):
            write_csv(folder / name, frame)
    return folder
