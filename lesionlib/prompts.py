"""Textual prompts from diagnosis and dermoscopic attributes (paper, Sec. 2.1).

The paper names its sources but not its template; ours is one sentence:
`a dermoscopic image of a DIAGNOSIS with ATTRIBUTE, ATTRIBUTE and ATTRIBUTE`.
"""

import numpy as np

ATTRIBUTES = ("pigment_network", "negative_network", "streaks", "milia_like_cyst", "globules")
WORDS = {
    "pigment_network": "pigment network",
    "negative_network": "negative network",
    "streaks": "streaks",
    "milia_like_cyst": "milia-like cysts",
    "globules": "globules",
}


def prompt(diagnosis: str, attributes=(), variant: str = "full") -> str:
    """The prompt of one image; `variant` is full, diagnosis or empty.

    An unknown diagnosis ('') is called a skin lesion; no attribute is named when none is known.
    """
    if variant == "empty":
        return ""
    text = f"a dermoscopic image of a {diagnosis or 'skin lesion'}"
    words = [WORDS[name] for name in attributes]
    if variant == "diagnosis" or not words:
        return text
    return f"{text} with " + (", ".join(words[:-1]) + " and " if words[:-1] else "") + words[-1]


def of_table(table, variant: str = "full") -> list[str]:
    """The prompt of every row of a table with `diagnosis` and the attribute columns."""
    flags = table[list(ATTRIBUTES)].fillna(0).to_numpy(dtype=float) > 0
    names = [[a for a, on in zip(ATTRIBUTES, row, strict=True) if on] for row in flags]
    return [
        prompt(d, n, variant) for d, n in zip(table["diagnosis"].fillna(""), names, strict=True)
    ]


def draw(prompts, n: int, seed: int, first: int = 0) -> list[str]:
    """`n` prompts drawn from the joint distribution of those given; prompt i needs seed and i."""
    pool = sorted(prompts)
    return [pool[np.random.default_rng([seed, first + i, 7]).integers(len(pool))] for i in range(n)]
