"""Splits of the images into G, S-train, S-val and S-test, and their audit.

The paper splits uniformly at random (Sec. 3). ISIC 2018 contains lesions that were photographed
twice and pictures under two ids, often cropped and coloured differently, so a random split leaks.
The split `grouped` keeps such pictures in one part (`duplicates.groups`).
"""

import numpy as np
import pandas as pd

from lesionlib.data.catalogue import read_table
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve

PARTS = ("G", "S-train", "S-val", "S-test")


def sizes(n: int, generator_share: float) -> dict[str, int]:
    """Images per part: `generator_share` of n in G, the rest 7:1:2 (paper, Sec. 3)."""
    generator = round(n * generator_share)
    rest = n - generator
    val, test = max(1, round(0.1 * rest)), max(1, round(0.2 * rest))
    return dict(zip(PARTS, (generator, rest - val - test, val, test), strict=True))


def uniform(n: int, generator_share: float, seed: int) -> np.ndarray:
    """The paper's split: uniformly random part names (n,), regardless of groups."""
    wanted = sizes(n, generator_share)
    names = np.repeat(list(wanted), list(wanted.values()))
    return names[np.random.default_rng([seed, 2018]).permutation(n)]


def grouped(group: np.ndarray, generator_share: float, seed: int) -> np.ndarray:
    """Random part names (n,) of exact sizes that keep rows of equal `group` (n,) in one part.

    Groups are placed from large to small, in random order among equals, into a part with room for
    them, with probability proportional to the room left. Raises InputError if a group does not fit
    into any part.
    """
    rng = np.random.default_rng([seed, 2018])
    left = sizes(len(group), generator_share)
    names = np.empty(len(group), dtype=object)
    members = pd.Series(range(len(group))).groupby(group).apply(list)
    order = sorted(rng.permutation(len(members)), key=lambda g: -len(members.iloc[g]))
    for rows in (members.iloc[g] for g in order):
        room = np.array([k if k >= len(rows) else 0 for k in left.values()], float)
        if not room.any():
            raise InputError(
                "split 'grouped'",
                f"a group of {len(rows)} images that belong together does not fit into any part",
                "correct the column lesion_id, or set split to paper",
            )
        part = rng.choice(PARTS, p=room / room.sum())
        names[rows], left[part] = part, left[part] - len(rows)
    return names.astype(str)


def from_file(path, ids) -> np.ndarray:
    """Part names of `ids` from a CSV with columns id and split.

    Raises InputError if a column, an image or a part is missing, or a part is unknown.
    """
    path = resolve(path)
    table = read_table(path, "split")
    if not {"id", "split"} <= set(table):
        raise InputError(path, "no columns 'id' and 'split'", "add them")
    known = table.drop_duplicates("id").set_index("id")["split"]
    wrong = sorted(set(known) - set(PARTS))
    if wrong:
        raise InputError(path, f"unknown part '{wrong[0]}'", f"use one of {', '.join(PARTS)}")
    missing = [name for name in ids if name not in known]
    if missing:
        raise InputError(
            path,
            f"it has no part for {len(missing)} images, {missing[0]} among them",
            "add them, or set split to grouped",
        )
    names = known.loc[list(ids)].to_numpy().astype(str)
    empty = sorted(set(PARTS) - set(names))
    if empty:
        raise InputError(path, f"no image is in {empty[0]}", "assign some to it")
    return names


def make(method: str, table: pd.DataFrame, group: np.ndarray, generator_share: float, seed: int):
    """Part names (n,) by `method`: grouped, paper, or the path of a CSV with id and split."""
    if method == "paper":
        return uniform(len(table), generator_share, seed)
    if method == "grouped":
        return grouped(group, generator_share, seed)
    return from_file(method, table["id"])


def audit(names: np.ndarray, table: pd.DataFrame, pairs: pd.DataFrame, group) -> pd.DataFrame:
    """Counts of lesions, near-duplicate pairs and groups that each two parts share."""
    lesion = table["lesion_id"].fillna("").to_numpy()
    found = pairs.assign(one=names[pairs["a"].astype(int)], two=names[pairs["b"].astype(int)])

    def shared(labels, one, two):
        return len((set(labels[names == one]) & set(labels[names == two])) - {""})

    rows = []
    for i, one in enumerate(PARTS):
        for two in PARTS[i + 1 :]:
            across = found[["one", "two"]].isin([one, two]).all(axis=1)
            across &= found["one"] != found["two"]
            counts = shared(lesion, one, two), int(across.sum()), shared(group, one, two)
            rows.append((f"{one} / {two}", *counts))
    return pd.DataFrame(rows, columns=["border", "lesions", "near-duplicate pairs", "groups"])


def check(method: str, crossing: pd.DataFrame):
    """Raise InputError if `audit` found divided groups, unless the split is the paper's."""
    broken = crossing[crossing["groups"] > 0]
    if method != "paper" and len(broken):
        raise InputError(
            f"split '{method}'",
            f"{broken['groups'].sum()} groups of the same lesion or picture lie on both sides of "
            + ", ".join(broken["border"]),
            "put each group into one part (tables/near_duplicates.csv lists pictures), or set "
            "split to paper",
        )
