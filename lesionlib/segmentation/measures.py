"""Measures of segmentations with their conventions: pure functions on NumPy arrays."""

import cv2
import numpy as np
import pandas as pd
from scipy.ndimage import binary_erosion, distance_transform_edt

MEASURES = ["dice", "iou", "iou65", "hd95", "nsd", "brier", "ece"]  # of `segmentation`, in tables


def _check_masks(pred, target):
    if pred.shape != target.shape or pred.ndim != 3:
        raise ValueError(f"masks must both be (N, H, W); they are {pred.shape} and {target.shape}")
    for mask in (pred, target):
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("masks must hold 0 and 1 only; threshold them first")


def dice(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Dice coefficient per image, (N,), of 0/1 masks (N, H, W), else ValueError; both empty: 1."""
    _check_masks(pred, target)
    pred, target = pred.astype(bool), target.astype(bool)
    both, total = (pred & target).sum((1, 2)), pred.sum((1, 2)) + target.sum((1, 2))
    return np.where(total == 0, 1.0, 2 * both / np.maximum(total, 1))


def jaccard(dice):
    """Intersection over union for a Dice coefficient (or an array of them)."""
    return dice / (2 - dice)


def thresholded_jaccard(jaccard, least: float = 0.65):
    """ISIC 2018's score: the Jaccard index, and 0 where it is below `least`."""
    return np.where(np.asarray(jaccard) < least, 0.0, jaccard)


def _outline(mask):
    return mask & ~binary_erosion(mask)


def surface_distances(pred: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels from each outline pixel of `pred` to `target`'s outline, and the other way round.

    Both are bool (H, W) and not empty. Outlines are the pixels that an erosion by a cross
    removes, with the image's border as outside.
    """
    x, y, width, height = cv2.boundingRect((pred | target).view(np.uint8))
    part = np.s_[y : y + height, x : x + width]
    ours, theirs = (_outline(np.pad(mask[part], 1)) for mask in (pred, target))
    return distance_transform_edt(~theirs)[ours], distance_transform_edt(~ours)[theirs]


def boundary(pred: np.ndarray, target: np.ndarray, tolerance: float) -> dict:
    """HD95 and normalised surface distance (NSD) of bool masks (H, W), which may differ in size
    from image to image: lengths are fractions of the image's diagonal.

    hd95: the larger of the two directed 95th percentiles; nsd: the share of both outlines within
    `tolerance` of the other. Both masks empty: 0 and 1; one empty: 1 (a diagonal) and 0.
    """
    if not pred.any() or not target.any():
        same = float(pred.any() == target.any())
        return {"hd95": 1 - same, "nsd": same}
    from_pred, from_target = (
        distances / np.hypot(*pred.shape) for distances in surface_distances(pred, target)
    )
    near = (from_pred <= tolerance).sum() + (from_target <= tolerance).sum()
    hd95 = max(np.percentile(from_pred, 95), np.percentile(from_target, 95))
    return {"hd95": float(hd95), "nsd": float(near / (len(from_pred) + len(from_target)))}


def calibration(probability: np.ndarray, target: np.ndarray, bins: int = 10) -> dict:
    """Brier score and expected calibration error (ECE) over pixels.

    `probability` (H, W) in [0, 1], `target` (H, W) bool. ECE: |mean probability - share of lesion|
    within equal bins of probability, weighted by their pixels (Guo et al. 2017).
    """
    bin_of = np.minimum((probability * bins).astype(int), bins - 1).ravel()
    sums = (np.bincount(bin_of, x.ravel().astype(float), bins) for x in (probability, target))
    differences = np.abs(np.subtract(*sums))
    return {
        "brier": float(np.mean((probability - target) ** 2)),
        "ece": float(differences.sum() / probability.size),
    }


def segmentation(probability: np.ndarray, target: np.ndarray, tolerance: float = 0.02) -> dict:
    """All measures of one prediction, at the resolution of its mask.

    `probability` (S, S) float is enlarged (bilinear) to `target` (H, W) of 0/1 and cut at 0.5.
    Keys: dice, iou, iou65 (ISIC's thresholded Jaccard), hd95 and nsd (`boundary`), brier and ece
    (`calibration`), and tp, fp, fn as shares of the image's pixels (for pooled measures).
    """
    whole = cv2.resize(np.float32(probability), target.shape[::-1], interpolation=cv2.INTER_LINEAR)
    pred, target = whole > 0.5, target.astype(bool)
    parts = {"tp": pred & target, "fp": pred & ~target, "fn": ~pred & target}
    counts = {name: float(part.mean()) for name, part in parts.items()}
    total = 2 * counts["tp"] + counts["fp"] + counts["fn"]
    score = 2 * counts["tp"] / total if total else 1.0
    iou = jaccard(score)
    measures = {"dice": score, "iou": iou, "iou65": float(thresholded_jaccard(iou))}
    return measures | boundary(pred, target, tolerance) | calibration(whole, target) | counts


def pooled_dice(rows: pd.DataFrame) -> float:
    """Dice over the pixels of all images at once, from columns tp, fp and fn of `segmentation`.

    Every image weighs the same, whatever its resolution.
    """
    tp, wrong = rows["tp"].sum(), (rows["fp"] + rows["fn"]).sum()
    return float(2 * tp / (2 * tp + wrong)) if tp + wrong else 1.0
