"""The worth of synthetic pairs in real ones.

Dice rises with the number of real pairs in training: shares of S-train, then real pairs of G added
to it (`knots`). An arm with synthetic pairs is placed on this curve: it is worth as many more real
pairs as would have brought the network from S-train alone to the same Dice. Between two knots the
curve is linear in the logarithm of the number of pairs.

The interval holds every number of pairs at which arm and curve are not told apart by the crossed
bootstrap of their difference (`statistics.interval`): a test inverted, so that it also covers where
the curve is flat, and has no end there.
"""

import math

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from lesionlib.evaluation import claims, statistics
from lesionlib.evaluation.paper import display_name
from lesionlib.segmentation.grid import ALONE

COLUMNS = "network schedule method amount share start dice worth low high sentence".split()
STEPS = 4  # numbers of pairs that are tried between two knots


def knots(images: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
    """Numbers of real pairs in rising order, each with its scores (`claims.arms`).

    `images`: rows per image of one network and schedule, with the number of training `pairs`.
    """
    added = (images["method"] == "real_pairs") & (images["share"] == 100)
    real = images[(images["method"] == "real") | added]
    found = [
        (int(rows["pairs"].iloc[0]), *claims.arms(rows).values())
        for _, rows in real.groupby(["amount", "share"])
    ]
    return sorted(found, key=lambda one: one[0])


def _place(dice: float, numbers, curve) -> float:
    """The number of real pairs that gives this Dice on a curve that never falls."""
    rising = curve + 1e-9 * np.arange(len(curve))  # so that it can be inverted
    return float(np.exp(np.interp(dice, rising, np.log(numbers))))


def _undecided(first, second) -> tuple[float, float] | None:
    """The part of the way from one interval (low, high) to the next in which it contains zero.

    As shares of the way, along which both bounds are linear; None if there is no such part.
    """
    start, end = 0.0, 1.0
    for a, b in ((first[0], second[0]), (-first[1], -second[1])):  # where neither is above zero
        if a > 0 and b > 0:
            return None
        if a > 0:
            start = max(start, a / (a - b))
        elif b > 0:
            end = min(end, a / (a - b))
    return (start, end) if start <= end else None


def _bounds(arm: np.ndarray, numbers, curve: list[np.ndarray]) -> tuple[float, float] | None:
    """The smallest and the largest number of real pairs that are not told apart from an arm.

    `arm` and each of `curve`: scores (generators, seeds, images). -inf or inf where they reach an
    end of the curve; None if there is no such number.
    """
    found, last = [], len(numbers) - 2
    for i, (one, scores) in enumerate(zip(numbers[:-1], curve[:-1], strict=True)):
        shares, ratio = np.linspace(0, 1, STEPS + 1), numbers[i + 1] / one
        steps = [(1 - share) * scores + share * curve[i + 1] for share in shares]
        intervals = [statistics.interval(arm - between)[1:] for between in steps]
        for k, part in enumerate(map(_undecided, intervals[:-1], intervals[1:])):
            if part:
                low, high = (one * ratio ** ((k + share) / STEPS) for share in part)
                low = -math.inf if i == k == part[0] == 0 else low
                found += [low, math.inf if (i, k, part[1]) == (last, STEPS - 1, 1) else high]
    return (min(found), max(found)) if found else None


def worth(arm: pd.DataFrame, real: list, start: int) -> dict:
    """What an arm with synthetic pairs beside `start` real ones is worth in further real pairs.

    `real`: from `knots`, at least two. Keys: dice of the arm; worth, with low and high of its 95 %
    interval, inf or -inf if it reaches an end of the curve; at_least and at_most: whether the arm
    lies beyond one of its ends. ValueError if there is no curve.
    """
    if len(real) < 2:
        raise ValueError("a curve needs S-train alone with at least two numbers of pairs")
    numbers = [number for number, _ in real]
    arm, *curve = claims.paired(arm, *(scores for _, scores in real))
    dice, monotone = float(arm.mean()), isotonic_regression([one.mean() for one in curve]).x
    place = _place(dice, numbers, monotone)
    ends = {"at_most": dice <= monotone[0], "at_least": dice >= monotone[-1]}
    least, most = -math.inf if ends["at_most"] else place, math.inf if ends["at_least"] else place
    bounds = _bounds(arm, numbers, curve) or (least, most)  # which need not hold the place itself
    low, high = min(bounds[0], least), max(bounds[1], most)
    return {"dice": dice, "worth": place - start, "low": low - start, "high": high - start} | ends


def _number(pairs: float) -> str:
    """A number of pairs, rounded; never -0."""
    return f"{round(pairs):,}"


def _range(low: float, high: float) -> str:
    """An interval in words; at most one of its ends is infinite."""
    if math.isinf(high):
        return f"{_number(low)} or more"
    return f"{_number(high)} or fewer" if math.isinf(low) else f"{_number(low)} to {_number(high)}"


def sentence(row: dict) -> str:
    """The worth of an arm in words: how many real pairs alone would have done as well."""
    method, network = display_name(row["method"]), display_name(row["network"])
    pairs = f"pairs ({method})" if ", " in method else f"{method} pairs"
    arm = f"{network}, {claims.where(row['schedule'], 100)}: {row['start']:,} real pairs and "
    arm += f"{row['amount']:,} {pairs}"
    if math.isinf(row["low"]) and math.isinf(row["high"]):
        return f"{arm} cannot be placed: the curve tells no number of real pairs apart from them."
    does, bound = "do as well as", ""
    if row["at_least"]:
        does, bound = "do at least as well as the curve's most,", "at least "
    elif row["at_most"]:
        does, bound = "do no better than the curve's fewest,", "at most "
    return (
        f"{arm} {does} {_number(row['start'] + row['worth'])} real pairs alone; worth: {bound}"
        f"{_number(row['worth'])} real pairs (95 % interval {_range(row['low'], row['high'])})."
    )


def table(images: pd.DataFrame) -> pd.DataFrame:
    """The worth of every arm with synthetic and real pairs: a row for each, with its sentence.

    `images` as for `claims.table2_claims`. Only under schedules and for networks with at least two
    numbers of real pairs.
    """
    rows = []
    for (network, schedule), part in images.groupby(["network", "schedule"], sort=False):
        real = knots(part)
        made = part[~part["method"].isin(ALONE) & (part["share"] > 0)]
        for (method, amount, share), own in made.groupby(["method", "amount", "share"], sort=False):
            if len(real) < 2:
                continue
            row = {"network": network, "schedule": schedule, "method": method, "amount": amount}
            row |= {"share": share, "start": int(own["pairs"].iloc[0]) - amount}
            row |= worth(*claims.arms(own).values(), real, row["start"])
            rows.append(row | {"sentence": sentence(row)})
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=COLUMNS)
