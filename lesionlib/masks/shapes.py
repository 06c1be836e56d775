"""How closely masks resemble real ones: shape statistics and distances between them."""

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance
from skimage.measure import find_contours, regionprops

STATISTICS = ("area", "row", "column", "eccentricity", "solidity", "roughness", "contact")


def _length(points: np.ndarray) -> float:
    return np.hypot(*np.diff(points, axis=0).T).sum()


def statistics(masks: np.ndarray) -> pd.DataFrame:
    """One row per mask (n, S, S) of 0 and 1; columns are STATISTICS.

    Area as a share of the image; row and column of the centroid in image sizes; eccentricity of
    the ellipse with equal second moments; solidity, the share of the convex hull that is lesion;
    roughness, outline length over that of the convex hull minus 1, at the masks' resolution;
    contact, the share of the image's border pixels that are lesion. ValueError for an empty mask.
    """
    rows = []
    for mask in masks:
        if not mask.any():
            raise ValueError("an empty mask has no shape")
        region = regionprops(mask)[0]
        outline = max(find_contours(np.pad(mask, 1).astype(float), 0.5), key=len)
        hull = max(find_contours(np.pad(region.image_convex, 1).astype(float), 0.5), key=len)
        border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
        row, column = (np.array(region.centroid) + 0.5) / len(mask)
        rough = _length(outline) / _length(hull) - 1
        facts = region.eccentricity, region.solidity, rough, border.mean()
        rows.append((mask.mean(), row, column, *facts))
    return pd.DataFrame(rows, columns=STATISTICS)


def distances(sample: pd.DataFrame, real: pd.DataFrame) -> pd.Series:
    """Wasserstein distance of each statistic, in standard deviations of `real`, and their `sum`."""
    found = {
        name: wasserstein_distance(sample[name], real[name]) / max(real[name].std(), 1e-9)
        for name in STATISTICS
    }
    return pd.Series(found | {"sum": sum(found.values())})


def two_sample_accuracy(sample: pd.DataFrame, real: pd.DataFrame, seed: int = 0) -> float:
    """Cross-validated accuracy of a random forest that tells the masks `sample` from `real` ones.

    0.5 is chance, 1 means always right (classifier two-sample test, Lopez-Paz & Oquab 2017). Both
    sides are balanced: the larger one is subsampled at random.
    """
    from sklearn.ensemble import RandomForestClassifier  # slow import (2 s), needed only here
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    n = min(len(sample), len(real))
    both = pd.concat([frame.sample(n, random_state=seed) for frame in (sample, real)])
    forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return cross_val_score(forest, both.to_numpy(), np.repeat([0, 1], n), cv=folds).mean()
