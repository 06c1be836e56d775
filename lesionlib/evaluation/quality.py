"""Image quality in comparison with an original (Table 1), with every convention stated."""

import math

import numpy as np
import pandas as pd
from skimage.metrics import structural_similarity

from lesionlib.generators import perceptual

PSNR_OFFSET = 20 * math.log10(255)  # dB by which range 255 exceeds range 1 at the same MSE: 48.13
MSE_FLOOR = (1 / 255) ** 2 / 12  # variance of rounding to 8 bits: PSNR of at most 58.92 dB


def _check_images(a, b):
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3:
        raise ValueError(f"images must both be (N, H, W, 3); they are {a.shape} and {b.shape}")
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"images must be uint8; they are {a.dtype} and {b.dtype}")


def mse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean squared error per image (N,) over pixels and channels, of values scaled to [0, 1].

    `a` and `b` are uint8 (N, H, W, 3); ValueError otherwise.
    """
    _check_images(a, b)
    return np.array(
        [np.mean((x.astype(float) - y) ** 2) / 255**2 for x, y in zip(a, b, strict=True)]
    )


def psnr(mse, data_range: float):
    """Peak signal-to-noise ratio 10 log10(data_range^2 / mse) in dB, shaped as `mse`.

    `mse` is that of images in [0, 1], for which data_range 1 is consistent; 255 is the paper's
    convention (arXiv 2310.02906), higher by PSNR_OFFSET. Values below MSE_FLOOR, which 8-bit
    images cannot resolve, count as MSE_FLOOR, so that identical images have a finite PSNR.
    """
    return 10 * np.log10(data_range**2 / np.maximum(mse, MSE_FLOOR))


def psnr_unit(mse):
    """PSNR in dB at data range 1, the range of the images that `mse` compares; see `psnr`."""
    return psnr(mse, 1.0)


def psnr_paper(mse):
    """PSNR in dB at data range 255 for an MSE on [0, 1], the paper's convention; see `psnr`."""
    return psnr(mse, 255.0)


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity per image (N,) of uint8 images (N, H, W, 3); ValueError otherwise.

    Wang et al. 2004 as in scikit-image: images in [0, 1], data range 1, uniform window of 7 x 7
    pixels, sample covariance, K1 = 0.01, K2 = 0.03, mean over pixels (without a border of 3 px)
    and channels. Sides below 7 px raise ValueError.
    """
    _check_images(a, b)
    return np.array(
        [
            structural_similarity(x / 255, y / 255, channel_axis=-1, data_range=1.0)
            for x, y in zip(a, b, strict=True)
        ]
    )


def image_quality(real: np.ndarray, generated: np.ndarray) -> pd.DataFrame:
    """Columns mse, psnr_255, psnr_1 (dB), ssim, lpips; a row per pair of uint8 images (N, H, W, 3).

    LPIPS: Zhang et al. 2018, see `generators.perceptual.lpips`.
    """
    error = mse(real, generated)
    return pd.DataFrame(
        {
            "mse": error,
            "psnr_255": psnr_paper(error),
            "psnr_1": psnr_unit(error),
            "ssim": ssim(real, generated),
            "lpips": perceptual.lpips(real, generated),
        }
    )


def table1(quality: pd.DataFrame) -> pd.DataFrame:
    """Table 1 of rows per method, generator_seed and id: means over images and seeds, by method.

    Columns method, n (images), seeds, the means, and of each measure MEASURE_sd, the standard
    deviation of the seeds' means (NaN for one seed).
    """
    measures = ["mse", "psnr_255", "psnr_1", "ssim", "lpips"]
    keys = ["method", "generator_seed"]
    by_seed = quality.groupby(keys, sort=False)[measures].mean().groupby("method", sort=False)
    counts = quality.groupby("method", sort=False)["id"].nunique().rename("n")
    seeds = by_seed.size().rename("seeds")
    spread = by_seed.std().add_suffix("_sd")
    return pd.concat([counts, seeds, by_seed.mean(), spread], axis=1).reset_index()
