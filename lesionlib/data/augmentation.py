"""Paired geometric augmentation: image and mask are oriented, turned, scaled and shifted together.

Real lesions are large and central, the masks of the paper's recipe small and anywhere. A network
that has seen real images in place only has never seen what it is asked to paint, or to segment.
The paper is silent about augmentation; `augment_trainings` names those that use it.

A warp is an affine matrix (2, 3) in coordinates that span the square from -1 to 1, so that one
matrix serves images, masks and every resolution. In the copies of base and ControlNet, a picture's
own skin, mirrored, goes on beyond its border without the lesion: a copy of one lesion shows one.
The trainings that draw warps anew in every step mirror picture and mask alike.
"""

import cv2
import numpy as np
import torch
from torch.nn import functional

from lesionlib.data import prompts
from lesionlib.data.dataset import resized, shrunk_masks
from lesionlib.engine.settings import Augmentation, Data
from lesionlib.engine.training import generator_at

FINE = 2  # samples per pixel and axis, averaged: a lesion is shrunk without aliasing
SIDE = 64  # pixels, at most, at which skin is painted and the border is looked at
CUT = 0.02  # share of the border at which a lesion or dark surroundings are cut off
DARK = 0.5  # of a picture's brightest tenth: what is darker at the border is no skin


def orientations(number: torch.Tensor) -> torch.Tensor:
    """Matrices (n, 2, 3) of the eight orientations, numbered 0 to 7 (n,); 0 changes nothing."""
    linear = torch.eye(2).repeat(len(number), 1, 1)
    linear[:, 0] *= torch.where(number & 1 > 0, -1.0, 1.0)[:, None]
    linear[:, 1] *= torch.where(number & 2 > 0, -1.0, 1.0)[:, None]
    linear = torch.where((number & 4 > 0)[:, None, None], linear.flip(1), linear)
    return torch.cat([linear, torch.zeros(len(number), 2, 1)], dim=2)


def drawn(n: int, settings: Augmentation, draw: torch.Generator) -> torch.Tensor:
    """Random matrices (n, 2, 3): an orientation each and, for a share of them, a warp.

    Warps turn by any angle up to `settings.angle`, scale the lesion by a factor that is uniform on
    a logarithmic scale, and shift it.
    """
    matrices = orientations(torch.randint(0, 8, (n,), generator=draw))
    draws = torch.rand((n, 5), generator=draw)
    turn = torch.deg2rad(settings.angle * (2 * draws[:, 0] - 1))
    smallest, largest = settings.scale
    scale = smallest * (largest / smallest) ** draws[:, 1]
    shift = 2 * settings.shift * (2 * draws[:, 2:4] - 1)  # the square spans -1 to 1
    cos, sin = turn.cos() / scale, turn.sin() / scale
    warp = torch.stack([cos, -sin, sin, cos], dim=1).view(n, 2, 2)
    # A matrix leads from the place in the result to the place in the picture: it is the inverse.
    centre = -(warp @ shift[:, :, None])
    whole = matrices[:, :, :2] @ torch.cat([warp, centre], dim=2)
    chosen = draws[:, 4] < settings.share
    return torch.where(chosen[:, None, None], whole, matrices)


def cut_off(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether (n,) more than the skin of images (n, S, S, 3) goes on beyond their borders.

    So it is if the lesion, from masks (n, S, S), or the dark surroundings of a round field of
    view take more than CUT of the border: what lies beyond then cannot be made up.
    """
    images, masks = resized(images, masks, min(SIDE, masks.shape[1]))
    border = np.ones(masks.shape[1:], bool)
    border[1:-1, 1:-1] = False
    grey = images.mean(axis=3)
    light = np.percentile(grey, 90, axis=(1, 2), keepdims=True)
    return ((masks > 0) | (grey <= DARK * light))[:, border].mean(axis=1) > CUT


def copied(
    masks: np.ndarray, cut: np.ndarray, settings: Augmentation, draw: torch.Generator
) -> torch.Tensor:
    """Matrices (n, 2, 3) as `drawn` for pictures with masks (n, S, S).

    Those that are `cut` (n,), see `cut_off`, and those of whose lesion less than half would be
    left, are merely oriented: fewer than `settings.share` are warped.
    """
    warps = drawn(len(masks), settings, draw)
    plain = orientations(torch.randint(0, 8, (len(masks),), generator=draw))
    small = shrunk_masks(masks, min(SIDE, masks.shape[1]))
    whole = small.sum((1, 2)) / torch.linalg.det(warps[:, :, :2]).abs().numpy()
    lost = warp_masks(small, warps).sum((1, 2)) < whole / 2
    return torch.where(torch.from_numpy(cut | lost)[:, None, None], plain, warps)


def variants(images, masks, settings: Augmentation, training: str) -> torch.Tensor:
    """Matrices (V, n, 2, 3) of the copies of n images that a `training` of latents sees.

    The eight orientations of each, or, if the training is one of `settings.trainings`,
    `settings.variants` draws of `copied`, always the same for the same images (n, S, S, 3) and
    masks (n, S, S).
    """
    if training not in settings.trainings:
        return orientations(torch.arange(8))[:, None].expand(-1, len(masks), -1, -1)
    cut, draws = cut_off(images, masks), (generator_at(0, i) for i in range(settings.variants))
    return torch.stack([copied(masks, cut, settings, draw) for draw in draws])


def warp(pictures: torch.Tensor, matrices: torch.Tensor, beyond="reflection") -> torch.Tensor:
    """Pictures (B, C, S, S) warped by matrices (B, 2, 3), as float32 on their device.

    Mere orientations are exact; otherwise each pixel is the mean of FINE x FINE interpolations.
    What lies `beyond` the border is its reflection or "zeros".
    """
    pictures, (b, c, s, _) = pictures.float(), pictures.shape
    matrices = matrices.to(pictures)
    options = dict(padding_mode=beyond, align_corners=False)
    exact = oriented(matrices)
    grid = functional.affine_grid(matrices, (b, c, s, s), align_corners=False)
    found = functional.grid_sample(pictures, grid, mode="nearest", **options)
    if not exact.all():
        fine = (int((~exact).sum()), c, FINE * s, FINE * s)
        grid = functional.affine_grid(matrices[~exact], fine, align_corners=False)
        fine = functional.grid_sample(pictures[~exact], grid, mode="bilinear", **options)
        found[~exact] = functional.avg_pool2d(fine, FINE)
    return found


def oriented(matrices: torch.Tensor) -> torch.Tensor:
    """Which (B,) of matrices (B, 2, 3) merely turn by right angles or mirror."""
    return (matrices.abs().sort(dim=2).values == matrices.new_tensor([0, 0, 1])).all((1, 2))


def warp_masks(masks: np.ndarray, matrices: torch.Tensor) -> np.ndarray:
    """Masks (B, S, S) of 0 and 1, warped: lesion where it covers more than half of a pixel."""
    found = warp(torch.from_numpy(np.array(masks, np.uint8))[:, None], matrices, "zeros")
    return (found[:, 0] > 0.5).to(torch.uint8).numpy()


def warp_images(images: np.ndarray, masks: np.ndarray, matrices: torch.Tensor) -> np.ndarray:
    """Images uint8 (B, S, S, 3) with masks (B, S, S), warped: their `skin` goes on beyond them."""
    moved, side = (~oriented(matrices)).numpy(), images.shape[1]
    around = np.array(images)
    around[moved] = skin(around[moved], masks[moved])
    known = np.where(moved[:, None, None], ~_rim(side), True)[..., None]
    own = warp(_channels_first(np.concatenate([images * known, known], axis=3)), matrices, "zeros")
    found = own[:, :3] + (1 - own[:, 3:]) * warp(_channels_first(around), matrices)
    return found.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def skin(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Images uint8 (n, S, S, 3) whose lesion, from masks (n, S, S), and rim are painted over.

    From what is around them (Telea 2004), at SIDE pixels or less: what is painted is smooth.
    """
    found, side = np.array(images), images.shape[1]
    small = min(SIDE, side)
    for image, mask in zip(found, masks, strict=True):
        near = cv2.dilate(np.uint8(mask), np.ones((1 + side // 21 * 2,) * 2, np.uint8)) > 0
        near |= _rim(side)
        hole = cv2.resize(np.float32(near), (small, small), interpolation=cv2.INTER_AREA) > 0
        painted = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        painted = cv2.inpaint(painted, np.uint8(hole), 3, cv2.INPAINT_TELEA)
        image[near] = cv2.resize(painted, (side, side))[near]
    return found


def _rim(side: int) -> np.ndarray:
    """The outermost pixels (side, side) of a picture, which may be a frame, as bool."""
    rim, width = np.ones((side, side), bool), max(1, side // 32)
    rim[width:-width, width:-width] = False
    return rim


def described(table, masks: np.ndarray, matrices: torch.Tensor, settings: Data) -> np.ndarray:
    """Prompts (V, n) of the warped copies of images: size and position, if named, are the copy's.

    `table` has the labels and the prompts of the n images, `masks` (n, S, S) their lesions.
    """
    if not {"size", "position"} & set(settings.prompt_details):
        return np.tile(table["prompt"].to_numpy(str), (len(matrices), 1))
    options = settings.prompt, settings.prompt_details
    warped = (warp_masks(masks, copy) for copy in matrices)
    return np.array([prompts.describe(table, *options, copies) for copies in warped])
