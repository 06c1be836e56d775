"""Comparison of two arms: intervals, tests, equivalence and power.

One crossed design throughout: a score for each seed and each image, the same images in every arm;
if a generator was trained with several seeds, for each of these too: (generators, seeds, images).
All of them are samples of a population, so all are resampled: a difference must hold beyond the
seeds at hand. With one seed the variance between seeds is unknown and left out; tables state the
number of seeds and of generators.
"""

import math
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

MARGIN = 0.005  # equivalence margin in Dice: half a point
DRAWS = 2000  # bootstrap samples


def _parts(scores: np.ndarray):
    """Variance of the grand mean of scores (…, seeds, images), and its degrees of freedom.

    The squared standard errors over the means of seeds, of images and of generators are added,
    which counts the residual several times and is therefore conservative; degrees of freedom after
    Satterthwaite.
    """
    axes = range(scores.ndim)
    every = [scores.mean(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    terms = [(x.var(ddof=1) / len(x), len(x) - 1) for x in every if len(x) > 1]
    total = sum(term for term, _ in terms)
    spread = sum(term**2 / n for term, n in terms)
    return total, (total**2 / spread if spread else math.inf)


def _scores(scores) -> np.ndarray:
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    if scores.ndim > 3 or not scores.size or not np.isfinite(scores).all():
        shape = "(seeds, images) or (generators, seeds, images)"
        raise ValueError(f"scores must be finite, shaped {shape}; they are {scores.shape}")
    return scores


@lru_cache(maxsize=32)
def _weights(n: int, axis: int, seed: int, draws: int) -> np.ndarray:
    """Shares (draws, n) of n seeds or images in samples drawn with replacement."""
    draw = np.random.default_rng((seed, axis))
    return draw.multinomial(n, [1 / n] * n, draws) / n


def _resampled(scores: np.ndarray, seed: int) -> np.ndarray:
    """Grand means (DRAWS,) of scores whose axes are all resampled."""
    names = "gsi"[-scores.ndim :]
    shares = [_weights(n, axis, seed, DRAWS) for axis, n in enumerate(scores.shape[::-1], 1)]
    rule = f"{names},{','.join(f'd{name}' for name in names[::-1])}->d"
    return np.einsum(rule, scores, *shares, optimize=True)


def interval(scores, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean of scores (…, seeds, images) or (images,), with the bounds of a bootstrap interval.

    All axes are resampled together (pigeonhole bootstrap, Owen 2007). With few seeds this
    underestimates the spread, so the quantiles are rescaled to the unbiased variance and the t
    distribution for these numbers of seeds and images. ValueError if scores are not finite.
    """
    scores = _scores(scores)
    deviations = _resampled(scores, seed) - scores.mean()
    variance, freedom = _parts(scores)
    mean = float(scores.mean())
    if not variance or not deviations.std():
        return mean, mean, mean
    tails = np.array([0.5 - level / 2, 0.5 + level / 2])
    stretch = stats.t.ppf(tails[1], freedom) / stats.norm.ppf(tails[1])
    stretch *= math.sqrt(variance) / deviations.std()
    low, high = mean + stretch * np.quantile(deviations, tails)
    return mean, float(low), float(high)


def compare(first, second, margin: float = MARGIN, seed: int = 0) -> dict:
    """Compare two arms, scores (…, seeds, images) or (images,) of the same images.

    Keys: difference, the mean of first - second, with its 95 % interval (low, high); p of the t
    test with the variance over seeds and images; p_images of Wilcoxon's signed-rank test over
    images, which treats these seeds as fixed; effect, the difference in standard deviations of the
    differences per image; equivalent, whether the 90 % interval lies within `margin`; detectable,
    the smallest difference that this design finds with 80 % power; images, seeds and generators,
    their numbers. ValueError if the numbers of seeds or images differ.
    """
    first, second = _scores(first), _scores(second)
    for axis, name in ((-1, "images"), (-2, "seeds")):
        numbers = first.shape[axis], second.shape[axis]
        if numbers[0] != numbers[1]:
            raise ValueError(f"arms of {numbers[0]} and {numbers[1]} {name} are not paired")
    differences = first - second
    mean, low, high = interval(differences, seed=seed)
    _, inner_low, inner_high = interval(differences, level=0.90, seed=seed)
    variance, freedom = _parts(differences)
    error = math.sqrt(variance)
    per_image = differences.mean(axis=tuple(range(differences.ndim - 1)))
    quantiles = stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom) if error else 0.0
    spread = per_image.std(ddof=1) if len(per_image) > 1 else 0.0
    return {
        "difference": mean,
        "low": low,
        "high": high,
        "p": float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0),
        "p_images": float(stats.wilcoxon(per_image).pvalue) if per_image.any() else 1.0,
        "effect": float(mean / spread) if spread else 0.0,
        "equivalent": bool(-margin < inner_low and inner_high < margin),
        "detectable": float(quantiles * error),
        "images": differences.shape[-1],
        "seeds": differences.shape[-2],
        "generators": len(differences) if differences.ndim == 3 else 1,
    }


def holm(p) -> np.ndarray:
    """P values corrected for multiple testing by Holm's step-down procedure, in the same order."""
    p = np.asarray(p, dtype=float)
    order = p.argsort()
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]).clip(max=1)
    return adjusted[order.argsort()]


def table(arms: dict, against: str, interval=interval, compare=compare) -> pd.DataFrame:
    """A row per arm {name: scores}: mean, 95 % interval, and `compare`'s results.

    `against` names the arm that all others are compared with; p_holm corrects over all of them.
    `interval` and `compare` know the kind of scores.
    """
    rows = []
    for name, scores in arms.items():
        mean, low, high = interval(scores)
        row = {"arm": name, "mean": mean, "mean_low": low, "mean_high": high}
        rows.append(row | ({} if name == against else compare(scores, arms[against])))
    found = pd.DataFrame(rows)
    others = found["arm"] != against
    if others.any():
        found.loc[others, "p_holm"] = holm(found.loc[others, "p"])
    return found
