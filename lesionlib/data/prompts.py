"""Textual prompts from diagnosis, dermoscopic attributes and clinical details (paper, Sec. 2.1).

The paper names its sources but not its template. Ours, published so that others can use it:

    prompt     = "a dermoscopic image of " lesion [ attributes ] { ", " detail }
    lesion     = ("a " | "an ") (diagnosis | "skin lesion")
    attributes = " with " word { ", " word } [ " and " word ]     in the order of ATTRIBUTES
    detail     = size | position | "on the " site | "of a " [ age "-year-old " ] person
    size       = "small" | "medium-sized" | "large"               below 10 %, 30 % of the image
    position   = "in the centre" | "in the " [ "upper " | "lower " ] [ "left" | "right" ] ...

`full` says all that is known, with the details that `prompt_details` names, in their order;
`diagnosis` names the lesion alone; `empty` is the empty prompt. What is unknown is left out. The
longest sentence has 60 of CLIP's 77 tokens; `base.token_ids` refuses longer ones of a user's own.
"""

import numpy as np
import pandas as pd

ATTRIBUTES = ("pigment_network", "negative_network", "streaks", "milia_like_cyst", "globules")
WORDS = {
    "pigment_network": "pigment network",
    "negative_network": "negative network",
    "streaks": "streaks",
    "milia_like_cyst": "milia-like cysts",
    "globules": "globules",
}
DETAILS = ("size", "position", "site", "person")
PEOPLE = {"female": "woman", "male": "man"}
MEDIUM, LARGE = 0.10, 0.30  # share of the image from which a lesion is medium-sized, large
CENTRAL = 0.12  # distance of the centroid from the centre, per axis and in image sizes


def lesion_size(mask: np.ndarray) -> str:
    """In words, how much of the image the lesion of a mask (S, S) of 0 and 1 covers."""
    area = mask.mean()
    return "small" if area < MEDIUM else "medium-sized" if area < LARGE else "large"


def lesion_position(mask: np.ndarray) -> str:
    """In words, where the centroid of a mask (S, S) of 0 and 1 lies; '' for an empty mask."""
    if not mask.any():
        return ""
    row, column = (np.argwhere(mask).mean(axis=0) + 0.5) / len(mask) - 0.5
    up = "upper" if row < -CENTRAL else "lower" if row > CENTRAL else ""
    side = "left" if column < -CENTRAL else "right" if column > CENTRAL else ""
    if up and side:
        return f"in the {up} {side}"
    if up:
        return f"in the {up} part"
    return f"on the {side} side" if side else "in the centre"


def person(age, sex) -> str:
    """`of a 55-year-old woman`, as far as age (years) and sex (female, male) are known."""
    years = pd.to_numeric(age, errors="coerce")
    noun = PEOPLE.get(str(sex).lower(), "")
    if np.isnan(years):
        return f"of a {noun}" if noun else ""
    article = "an" if int(years) in (8, 11, 18) or 80 <= years < 90 else "a"
    return f"of {article} {years:.0f}-year-old {noun or 'person'}"


def prompt(labels: dict, variant: str = "full", details=(), mask=None) -> str:
    """The prompt of one image: `labels` may hold diagnosis, attribute flags, site, age, sex.

    `variant` is full, diagnosis or empty; `details` a choice of DETAILS, of which size and
    position are read from `mask` (S, S) of 0 and 1.
    """
    if variant == "empty":
        return ""
    lesion = labels.get("diagnosis") or "skin lesion"
    text = f"a dermoscopic image of {'an' if lesion[0] in 'aeiou' else 'a'} {lesion}"
    if variant == "diagnosis":
        return text
    words = [WORDS[name] for name in ATTRIBUTES if labels.get(name) == 1]
    if words:
        text += " with " + (", ".join(words[:-1]) + " and " if words[:-1] else "") + words[-1]
    said = {"person": person(labels.get("age", ""), labels.get("sex", ""))}
    said["site"] = f"on the {labels['site']}" if labels.get("site") else ""
    if mask is not None:
        said |= {"size": lesion_size(mask), "position": lesion_position(mask)}
    return ", ".join([text, *[said[name] for name in details if said.get(name)]])


def describe(table: pd.DataFrame, variant: str = "full", details=(), masks=None) -> list[str]:
    """The prompt of every row of a table of labels; `masks` (n, S, S) are those of the rows."""
    rows = table.to_dict("records")
    shapes = [None] * len(rows) if masks is None else masks
    return [prompt(row, variant, details, m) for row, m in zip(rows, shapes, strict=True)]


def _weights(table: pd.DataFrame, how: str) -> np.ndarray:
    """Chances of the rows (n,): equal, or equal for each combination of labels."""
    if how == "joint":
        return np.full(len(table), 1 / len(table))
    if how == "uniform":
        key = table[["diagnosis", *ATTRIBUTES]].fillna(-1).astype(str).agg("|".join, axis=1)
        weights = 1 / key.map(key.value_counts()).to_numpy(float)
    else:
        weights = pd.to_numeric(table["weight"], errors="coerce").to_numpy(float)
    return weights / weights.sum()


def draw(table: pd.DataFrame, n: int, seed: int, how: str = "joint", first: int = 0):
    """Labels to ask for: n rows, drawn from a table of labels; row i needs seed and i alone.

    `how` is joint: rows of the table, as common as there; uniform: each combination of
    diagnosis and attributes in the table is equally likely; weight: by the column of that name.
    """
    table = table.sort_values("id") if "id" in table else table
    reach = np.cumsum(_weights(table, how))
    chances = [np.random.default_rng([seed, first + i, 7]).random() for i in range(n)]
    rows = np.minimum(np.searchsorted(reach, chances, side="right"), len(table) - 1)
    return table.iloc[rows].reset_index(drop=True)
