"""Textual prompts from diagnosis, dermoscopic attributes and clinical details (paper, Sec. 2.1).

The paper names its sources of labels but not its template. Ours is:

    prompt     = "a dermoscopic image of " lesion [ attributes ] { ", " detail }
    lesion     = ("a " | "an ") (diagnosis | "skin lesion")
    attributes = " with " word { ", " word } [ " and " word ]     in the order of ATTRIBUTES
    detail     = size | position | "on the " site | "of a " [ age "-year-old " ] person
    size       = "small" | "medium-sized" | "large"               below 10 %, 30 % of the image
    position   = "in the centre" | "in the " [ "upper " | "lower " ] [ "left" | "right" ] ...

`full` includes everything known, and the details in `prompt_details` in their order;
`diagnosis` names the lesion alone; `empty` is the empty prompt. Unknown labels are omitted. The
longest sentence has 60 of CLIP's 77 tokens; `base.token_ids` rejects longer ones.
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
SIZES = ("small", "medium-sized", "large")
PEOPLE = {"female": "woman", "male": "man"}
MEDIUM, LARGE = (0.10, 0.30)  # least shares of the image of a medium-sized and a large lesion
CENTRAL = 0.12  # largest offset per axis, in image sizes, of a centroid that counts as central


def lesion_size(mask: np.ndarray) -> str:
    """The lesion size in words, from the area of a mask (S, S) of 0 and 1."""
    area = mask.mean()
    return "small" if area < MEDIUM else "medium-sized" if area < LARGE else "large"


def lesion_position(mask: np.ndarray) -> str:
    """The lesion position in words, from the centroid of a mask (S, S); '' for an empty mask."""
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

    `variant` is full, diagnosis or empty; `details` is a selection of DETAILS, of which size and
    position are computed from `mask` (S, S) of 0 and 1.
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
    phrases = {"person": person(labels.get("age", ""), labels.get("sex", ""))}
    phrases["site"] = f"on the {labels['site']}" if labels.get("site") else ""
    if mask is not None:
        phrases |= {"size": lesion_size(mask), "position": lesion_position(mask)}
    return ", ".join([text, *[phrases[name] for name in details if phrases.get(name)]])


def describe(table: pd.DataFrame, variant: str = "full", details=(), masks=None) -> list[str]:
    """The prompts of all rows of a table of labels; `masks` (n, S, S) correspond to the rows."""
    rows = table.to_dict("records")
    masks = [None] * len(rows) if masks is None else masks
    return [prompt(row, variant, details, m) for row, m in zip(rows, masks, strict=True)]


def _weights(table: pd.DataFrame, method: str) -> np.ndarray:
    """Probabilities of the rows (n,), see `draw`."""
    if method == "joint":
        return np.full(len(table), 1 / len(table))
    if method == "uniform":
        key = table[["diagnosis", *ATTRIBUTES]].fillna(-1).astype(str).agg("|".join, axis=1)
        weights = 1 / key.map(key.value_counts()).to_numpy(float)
    else:
        weights = pd.to_numeric(table["weight"], errors="coerce").to_numpy(float)
    return weights / weights.sum()


def draw(table: pd.DataFrame, n: int, seed: int, method: str = "joint", first: int = 0):
    """Draw labels for prompts: n rows of a table of labels; row i depends only on seed and i.

    `method`: joint (as frequent as in the table), uniform (each combination of diagnosis and
    attributes in the table equally often), or weight (in proportion to the column `weight`).
    """
    table = table.sort_values("id") if "id" in table else table
    cumulative = np.cumsum(_weights(table, method))
    uniform = [np.random.default_rng([seed, first + i, 7]).random() for i in range(n)]
    rows = np.minimum(np.searchsorted(cumulative, uniform, side="right"), len(table) - 1)
    return table.iloc[rows].reset_index(drop=True)
