"""Whether masks are what they should be: two values, areas rather than outlines, lesions marked."""

from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from lesionlib.data import decoding
from lesionlib.data.decoding import Picture
from lesionlib.engine.errors import InputError

LABELLED = 0.001  # share of a mask that an area of a third value fills, above which it is no mask
FEW = 0.05  # largest share of label maps that are quarantined; more end the reading
DIGITS = 32  # largest value of a mask whose values are numbers of labels, not grey levels
OUTLINE = 0.5  # lesion as a share of what it encloses, below which it is an outline


class MaskRule(NamedTuple):
    """Which pixels are lesion: those of one `value` (-1: the bright ones), or with `invert` not."""

    value: int = -1
    invert: bool = False


BRIGHT = MaskRule()


class LabelMapError(InputError):
    """A mask with more than two values, of which nobody can know which is the lesion."""


def _shares(labels: np.ndarray) -> dict[int, float]:
    """Values that fill areas of a picture (H, W), with their shares of it, the largest first.

    An area has nine equal pixels somewhere: the grey levels of a soft or compressed edge have not.
    """
    flat = labels.astype(np.float32)
    areas = cv2.erode(flat, np.ones((3, 3))) == cv2.dilate(flat, np.ones((3, 3)))
    values, counts = np.unique(labels[areas], return_counts=True)
    found = {int(v): n / labels.size for v, n in zip(values, counts, strict=True)}
    return {v: found[v] for v in sorted(found, key=found.get, reverse=True) if found[v] > LABELLED}


def _third_values(values: np.ndarray) -> dict:
    """Shares of the values of a grey mask (H, W) if there are more than two that mean something."""
    every, top = np.unique(values), values.max().item()
    if len(every) > DIGITS:  # soft edges or compression, which blurs black and white
        shares = _shares(values)
        middle = [v for v in shares if top / 10 < v < top * 9 / 10]
    elif top <= DIGITS and values.dtype.kind != "f":  # numbers of labels: each one counts
        shares = {int(v): np.mean(values == v) for v in every}
        middle = every[1:-1]
    else:
        shares = _shares(values)
        middle = [v for v in shares if 0 < v < top]
    return shares if len(middle) and len(shares) > 2 else {}


def require_two_values(file: Picture, values: np.ndarray):
    """Raise LabelMapError if more than two values, or colours, fill areas of a mask."""
    colours = decoding.colours(file)
    if colours is None:
        shares, shown = _third_values(values), "{}"
    else:
        shares, shown = _shares(colours), "#{:06x}"
    if len(shares) > 2:
        listed = [f"{shown.format(v)} ({share:.1%})" for v, share in list(shares.items())[:8]]
        raise LabelMapError(
            file.path,
            f"the mask has more than two values: {', '.join(listed)}",
            "say which is the lesion (--lesion-value V, for grey masks of --images), or save it in "
            "black and white",
        )


def encloses(lesion: np.ndarray) -> float:
    """The lesion's share (0 to 1) of itself and the holes in it, in a mask (H, W)."""
    scale = min(1, 256 / max(lesion.shape))
    small = cv2.resize(lesion * 255, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) > 0
    outside = cv2.copyMakeBorder((~small).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    parts = cv2.connectedComponents(outside, connectivity=4)[1]
    holes = np.count_nonzero((parts != parts[0, 0]) & (outside == 1))
    return np.count_nonzero(small) / (np.count_nonzero(small) + holes)


def border(lesion: np.ndarray) -> float:
    """The lesion's share of the border of a mask (H, W)."""
    return float(np.concatenate([*lesion[[0, -1]], *lesion[1:-1, [0, -1]].T]).mean())


def require_masks(results, number: int):
    """Raise a LabelMapError for all, if more than FEW of `number` masks are label maps."""
    maps = [result for result in results if isinstance(result, LabelMapError)]
    if len(maps) > FEW * number:
        first, count = maps[0], f"; {len(maps)} masks so far are like it"
        raise LabelMapError(first.where, first.problem + count, first.remedy)


def judge(facts: pd.DataFrame, rule: MaskRule) -> list[str]:
    """WARNINGS on all masks of a set; `facts` has a row per mask (`curation.read_facts`).

    Raises LabelMapError if the masks of a set use different small values for the lesion.
    """
    tops = facts["top"].value_counts()
    tops = tops[tops.index < DIGITS]
    if len(tops) > 1 and rule.value < 0:
        raise LabelMapError(
            "masks",
            "their largest values differ: "
            + ", ".join(f"{top} in {number}" for top, number in tops.items()),
            "say which value is the lesion (--lesion-value V), or save them in black and white",
        )
    wide = int((facts["border"] > 0.5).sum())
    if 2 * wide <= len(facts):
        return []
    return [
        f"WARNING: in {wide} of {len(facts)} masks the lesion covers most of the border, on "
        f"average {facts['border'].mean():.0%} of it: if it is dark there, give --invert-masks"
    ]
