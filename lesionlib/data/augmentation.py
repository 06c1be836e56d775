"""Paired geometric augmentation: image and mask are oriented, turned, scaled and shifted together.

Real lesions are large and central, the masks of the paper's recipe small and anywhere. A network
that has seen real images in place only has never seen what it is asked to paint, or to segment.
The paper is silent about augmentation; `augment_trainings` names those that use it.

A warp is an affine matrix (2, 3) in coordinates that span the square from -1 to 1, so that one
matrix serves images, masks and every resolution. Border pixels are mirrored.
"""

import cv2
import numpy as np
import torch
from torch.nn import functional

from lesionlib.data import prompts
from lesionlib.data.dataset import shrunk_masks
from lesionlib.engine.settings import Augmentation, Data
from lesionlib.engine.training import generator_at

FINE = 2  # samples per pixel and axis, averaged: a lesion is shrunk without aliasing
TRIES, COARSE = 4, 32  # draws for a single lesion, and side in pixels at which it is looked for


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


def single(masks: np.ndarray, settings: Augmentation, draw: torch.Generator) -> torch.Tensor:
    """Matrices (n, 2, 3) as `drawn`, which rarely mirror a second lesion into the picture.

    Of TRIES draws for each of `masks` (n, S, S), the first with the fewest lesion regions. What
    merely turns or mirrors a picture adds no lesion: fewer than `settings.share` are warped
    further, and few of these shrink a large lesion.
    """
    tries = [drawn(len(masks), settings, draw) for _ in range(TRIES)]
    small = shrunk_masks(masks, min(COARSE, masks.shape[1]))
    counts = [[_regions(mask) for mask in warp_masks(small, matrices)] for matrices in tries]
    best = torch.tensor(np.argmin(counts, axis=0))
    return torch.stack(tries)[best, torch.arange(len(masks))]


def _regions(mask: np.ndarray) -> int:
    """The number of connected lesion regions, as many as possible if there is none."""
    return (cv2.connectedComponents(mask)[0] - 1) or mask.size


def variants(masks: np.ndarray, settings: Augmentation, training: str) -> torch.Tensor:
    """Matrices (V, n, 2, 3) of the copies of n images that a `training` of latents sees.

    The eight orientations of each, or, if the training is one of `settings.trainings`,
    `settings.variants` draws of `single`, always the same for the same masks (n, S, S).
    """
    if training not in settings.trainings:
        return orientations(torch.arange(8))[:, None].expand(-1, len(masks), -1, -1)
    draws = [generator_at(0, number) for number in range(settings.variants)]
    return torch.stack([single(masks, settings, draw) for draw in draws])


def warp(pictures: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Pictures (B, C, S, S) warped by matrices (B, 2, 3), as float32 on their device.

    Mere orientations are exact; otherwise each pixel is the mean of FINE x FINE interpolations.
    """
    pictures, (b, c, s, _) = pictures.float(), pictures.shape
    matrices = matrices.to(pictures)
    options = dict(padding_mode="reflection", align_corners=False)
    exact = (matrices.abs().sort(dim=2).values == matrices.new_tensor([0, 0, 1])).all((1, 2))
    grid = functional.affine_grid(matrices, (b, c, s, s), align_corners=False)
    found = functional.grid_sample(pictures, grid, mode="nearest", **options)
    if not exact.all():
        fine = (int((~exact).sum()), c, FINE * s, FINE * s)
        grid = functional.affine_grid(matrices[~exact], fine, align_corners=False)
        fine = functional.grid_sample(pictures[~exact], grid, mode="bilinear", **options)
        found[~exact] = functional.avg_pool2d(fine, FINE)
    return found


def warp_masks(masks: np.ndarray, matrices: torch.Tensor) -> np.ndarray:
    """Masks (B, S, S) of 0 and 1, warped: lesion where it covers more than half of a pixel."""
    found = warp(torch.from_numpy(np.array(masks, np.uint8))[:, None], matrices)
    return (found[:, 0] > 0.5).to(torch.uint8).numpy()


def warp_images(images: np.ndarray, matrices: torch.Tensor) -> np.ndarray:
    """Images uint8 (B, S, S, 3), warped."""
    found = warp(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2), matrices)
    return found.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def described(table, masks: np.ndarray, matrices: torch.Tensor, settings: Data) -> np.ndarray:
    """Prompts (V, n) of the warped copies of images: size and position, if named, are the copy's.

    `table` has the labels and the prompts of the n images, `masks` (n, S, S) their lesions.
    """
    if not {"size", "position"} & set(settings.prompt_details):
        return np.tile(table["prompt"].to_numpy(str), (len(matrices), 1))
    options = settings.prompt, settings.prompt_details
    warped = (warp_masks(masks, copy) for copy in matrices)
    return np.array([prompts.describe(table, *options, copies) for copies in warped])
