"""Mask fidelity of generators, for both kinds of masks, between chance and that of real images.

Fidelity is the Dice of the reference segmenter's prediction with the mask that an image was painted
from. Masks of S-test have their lesions where real ones are; those of the training pairs, which
train the networks of Table 2, have them anywhere. For each kind it is compared with that of real
images: the originals of S-test, and the same moved to the training pairs' masks. It is no upper
bound: a generator that paints clear outlines can be easier to segment than real images.
"""

import numpy as np
import pandas as pd

from lesionlib.data.prompts import SIZES
from lesionlib.evaluation.paper import display_name

KINDS = ("S-test", "training pairs")
HIT, GOOD = 0.5, 0.7  # fidelity from which a lesion is said to be in its mask, and to fill it
FEW = 0.05  # share of missed masks, or of images with distractors, up to which nothing is said


def per_image(judge, real: pd.DataFrame, test, made: dict, pairs: dict) -> pd.DataFrame:
    """Fidelity of real and generated images on both kinds of masks: a row per image.

    `judge(images, masks)` gives the rows of `reference.fidelity`; `real` is of
    `reference.on_real_images`; `test` the study's S-test; `made` {name: images for its masks};
    `pairs` {name: training pairs}. Columns: id (that of the S-test image, or the pair's number),
    images, masks, those of `judge`.
    """
    kinds = dict(zip(["in place", "moved"], KINDS, strict=True))
    parts = [real.assign(images="real", masks=real["images"].map(kinds))]
    for name, images in made.items():
        parts.append(judge(images, test.masks).assign(images=name, masks=KINDS[0]))
    for name, one in pairs.items():
        parts.append(judge(one.images, one.masks).assign(images=name, masks=KINDS[1]))
    rows = pd.concat(parts, ignore_index=True)
    number = rows.groupby(["images", "masks"]).cumcount()
    names = test.table["id"].reindex(number).to_numpy()
    rows["id"] = np.where(rows["masks"] == KINDS[0], names, number.map("{:06d}".format))
    first = ["id", "images", "masks"]
    return rows[[*first, *rows.columns.drop(first)]]


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per kind of masks and set of images.

    `rows` has a row per image: `images` (a generator, base, or real), `masks` (one of KINDS)
    and the columns of `reference.fidelity`. Columns: n, mean fidelity, share_50 and share_70
    (at or above HIT and GOOD), the means by lesion size, chance, real (mean fidelity of real
    images), of_real (the mean as a share of it), with_distractor (share of images).
    """
    found = []
    for (masks, images), part in rows.groupby(["masks", "images"], sort=False):
        dice, of_real = part["dice"], (rows["masks"] == masks) & (rows["images"] == "real")
        real = rows.loc[of_real, "dice"].mean()
        found.append(
            {"images": images, "masks": masks, "n": len(part), "mean": dice.mean()}
            | {"share_50": (dice >= HIT).mean(), "share_70": (dice >= GOOD).mean()}
            | {size: dice[part["size"] == size].mean() for size in SIZES}
            | {"chance": part["chance"].mean(), "real": real}
            | {"of_real": dice.mean() / real}
            | {"with_distractor": (part["distractors"] > 0).mean()}
        )
    return pd.DataFrame(found)


def sentences(summary: pd.DataFrame) -> list[str]:
    """What `table` says of each generator: both kinds of masks, and whether its pairs miss them."""
    found = []
    for images, part in summary.groupby("images", sort=False):
        if images in ("real", "base"):
            continue
        kinds = part.set_index("masks")
        means = [
            f"{row['mean']:.3f} on the masks of {'' if kind == 'S-test' else 'the '}{kind} "
            f"({row['of_real']:.0%} of the {row['real']:.3f} of real images; chance "
            f"{row['chance']:.3f})"
            for kind, row in kinds.iterrows()
        ]
        found.append(f"{display_name(images)}: fidelity {', '.join(means)}. {_misses(kinds)}")
    return found


def _misses(kinds: pd.DataFrame) -> str:
    """Whether the training pairs of a generator miss their masks, and which do so most."""
    if KINDS[1] not in kinds.index:
        return "It has no training pairs."
    row = kinds.loc[KINDS[1]]
    missed, sizes = 1 - row["share_50"], row[list(SIZES)].dropna().astype(float)
    text = f"{missed:.0%} of its {row['n']:,} training pairs miss their masks (below {HIT})"
    if missed > FEW:
        text = f"**{text}**, most where lesions are {sizes.idxmin()} (mean {sizes.min():.3f})"
    return f"{text}; {row['with_distractor']:.0%} show another lesion outside."
