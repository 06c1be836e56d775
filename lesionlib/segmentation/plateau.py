"""When a network has learnt: the plateau of its validation curve, and the budget that follows.

The rule: the validation Dice is smoothed (mean of three neighbours), and its highest value so far
is followed. The plateau begins at the first validation after which this rises by less than `gain`,
provided that this is no later than LATEST of the training: a curve that still rises in the last
quarter has no plateau yet.

The steps that S-train alone needs, S*, are the beginning of the plateau of one long training; every
arm is then trained for ROOM S* steps, so that S-train alone can show its plateau in them with
every seed.
"""

import math

import numpy as np

LATEST = 0.75  # share of a training by which its plateau must have begun
ROOM = 1.5  # steps of a training as a multiple of S*


def smoothed(dice) -> np.ndarray:
    """The mean of each value (n,) and its two neighbours; at the ends of the two that there are."""
    return np.array([np.mean(dice[max(0, i - 1) : i + 2]) for i in range(len(dice))])


def plateau(steps, dice, gain: float) -> int | None:
    """The step at which the plateau of a curve begins, or None if it has none yet.

    `steps` (n,) of the validations in rising order and their `dice` (n,); `gain` in Dice.
    ValueError without a validation.
    """
    if not len(steps) or len(steps) != len(dice):
        raise ValueError(f"{len(steps)} steps and {len(dice)} validations are no curve")
    best = np.maximum.accumulate(smoothed(dice))
    begin = int(steps[np.argmax(best > best[-1] - gain)])
    return begin if begin <= LATEST * steps[-1] else None


def budget(begin: int | None, longest: int) -> int:
    """Optimiser steps of every arm if the plateau begins at step `begin`.

    Without a plateau the `longest` training has to do.
    """
    return longest if begin is None else min(longest, math.ceil(ROOM * begin))
