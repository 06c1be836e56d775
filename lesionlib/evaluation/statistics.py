"""What a difference between two arms is worth: intervals, tests, equivalence and power.

One design throughout: a score for each seed and each image, the same images for every arm. Seeds
and images are both samples of something larger, so both are resampled, and a difference that only
holds for these seeds is no finding. With one seed the seeds' part is unknown and left out: tables
say how many seeds there were.
"""

import math

import numpy as np
import pandas as pd
from scipy import stats

MARGIN = 0.005  # Dice below which a difference does not matter: half a point
DRAWS = 2000


def _parts(scores: np.ndarray):
    """Variance of the grand mean of scores (seeds, images), and its degrees of freedom.

    Two crossed samples: the variances of seed means and of image means over their numbers are
    added (which counts the residual twice, on the safe side); degrees after Satterthwaite.
    """
    terms = [
        (means.var(ddof=1) / len(means), len(means) - 1)
        for means in (scores.mean(axis=1), scores.mean(axis=0))
        if len(means) > 1
    ]
    total = sum(term for term, _ in terms)
    spread = sum(term**2 / n for term, n in terms)
    return total, (total**2 / spread if spread else math.inf)


def _scores(scores) -> np.ndarray:
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite (seeds, images); they are {scores.shape}")
    return scores


def interval(scores, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean of scores (seeds, images) or (images,), with a bootstrap interval of that level.

    Seeds and images are drawn with replacement at the same time (pigeonhole bootstrap, Owen 2007).
    With few seeds such draws spread too little: their quantiles are stretched to the variance and
    the t distribution that the numbers of seeds and images call for. ValueError if not finite.
    """
    scores = _scores(scores)
    draw, (rows, columns) = np.random.default_rng(seed), scores.shape
    weights = [draw.multinomial(n, [1 / n] * n, DRAWS) / n for n in (rows, columns)]
    apart = np.einsum("ds,si,di->d", weights[0], scores, weights[1], optimize=True) - scores.mean()
    variance, freedom = _parts(scores)
    mean = float(scores.mean())
    if not variance or not apart.std():
        return mean, mean, mean
    tails = np.array([0.5 - level / 2, 0.5 + level / 2])
    stretch = stats.t.ppf(tails[1], freedom) / stats.norm.ppf(tails[1])
    stretch *= math.sqrt(variance) / apart.std()
    low, high = mean + stretch * np.quantile(apart, tails)
    return mean, float(low), float(high)


def compare(some, others, margin: float = MARGIN, seed: int = 0) -> dict:
    """Mean difference of two arms, scores (seeds, images) of the same images, and what it is worth.

    Keys: difference with its 95 % interval (low, high); p of the t test whose variance holds seeds
    and images; p_images of Wilcoxon's signed-rank test over images, which takes these seeds as the
    only ones; effect, the difference in standard deviations of the images' differences;
    equivalent, whether the 90 % interval lies within `margin`; detectable, the smallest difference
    that this design finds with 80 % power. ValueError if seeds or images are not as many.
    """
    some, others = _scores(some), _scores(others)
    if some.shape[1] != others.shape[1]:
        raise ValueError(f"arms of {some.shape[1]} and {others.shape[1]} images are not paired")
    if len(some) != len(others):
        raise ValueError(f"arms of {len(some)} and {len(others)} seeds are not paired")
    apart = some - others
    mean, low, high = interval(apart, seed=seed)
    _, near_low, near_high = interval(apart, level=0.90, seed=seed)
    variance, freedom = _parts(apart)
    error, of_images = math.sqrt(variance), apart.mean(axis=0)
    wanted = stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom) if error else 0.0
    spread = of_images.std(ddof=1) if len(of_images) > 1 else 0.0
    return {
        "difference": mean,
        "low": low,
        "high": high,
        "p": float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0),
        "p_images": float(stats.wilcoxon(of_images).pvalue) if of_images.any() else 1.0,
        "effect": float(mean / spread) if spread else 0.0,
        "equivalent": bool(-margin < near_low and near_high < margin),
        "detectable": float(wanted * error),
        "images": apart.shape[1],
        "seeds": len(apart),
    }


def holm(p) -> np.ndarray:
    """P values adjusted for their number by Holm's step-down procedure, in their order."""
    p = np.asarray(p, dtype=float)
    order = p.argsort()
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]).clip(max=1)
    return adjusted[order.argsort()]


def table(arms: dict, against: str, margin: float = MARGIN) -> pd.DataFrame:
    """A row per arm {name: scores (seeds, images)}: its mean and interval, and `compare` with one.

    `against` names the arm that all others are compared with; their p values are Holm's.
    """
    rows = []
    for name, scores in arms.items():
        mean, low, high = interval(scores)
        row = {"arm": name, "mean": mean, "mean_low": low, "mean_high": high}
        rows.append(row | ({} if name == against else compare(scores, arms[against], margin)))
    found = pd.DataFrame(rows)
    others = found["arm"] != against
    if others.any():
        found.loc[others, "p_holm"] = holm(found.loc[others, "p"])
    return found
