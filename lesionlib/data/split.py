"""Splits of the images into G, S-train, S-val and S-test, and their audit.

The paper splits uniformly at random (Sec. 3). ISIC 2018 contains lesions that were photographed
twice and pictures under two ids, often cropped and coloured differently, so a random split leaks.
The split `grouped` keeps such pictures in one part (`duplicates.groups`).
"""

import numpy as np
import pandas as pd

from lesionlib.data.tables import find_id, image_name, read_table
from lesionlib.engine.errors import InputError, say
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
    """Random part names (n,) that keep rows of equal `group` (n,) in one part.

    Groups are placed from large to small, in random order among equals, into a part with room for
    them, with probability proportional to the room left; one that has room nowhere goes where most
    is left. The sizes are therefore targets, met exactly as far as the groups allow. Raises
    InputError if a part would be empty.
    """
    rng = np.random.default_rng([seed, 2018])
    left = sizes(len(group), generator_share)
    members = pd.Series(range(len(group))).groupby(group).apply(list)
    order = sorted(rng.permutation(len(members)), key=lambda g: -len(members.iloc[g]))
    placed = {part: [] for part in PARTS}
    for rows in (members.iloc[g] for g in order):
        room = np.array([k if k >= len(rows) else 0 for k in left.values()], float)
        part = rng.choice(PARTS, p=room / room.sum()) if room.any() else max(left, key=left.get)
        placed[part].append(rows)
        left[part] -= len(rows)
    _fill_empty(placed, left)
    names = np.empty(len(group), dtype=object)
    for part, groups in placed.items():
        names[np.concatenate(groups)] = part
    return names.astype(str)


def _fill_empty(placed: dict, left: dict):
    """Move the smallest group of the fullest part that has several into each part without one."""
    for part in PARTS:
        if placed[part]:
            continue
        givers = [name for name in PARTS if len(placed[name]) > 1]
        if not givers:
            raise InputError(
                "split 'grouped'",
                f"{part} would be empty: there are only {sum(map(len, placed.values()))} groups of "
                "images that belong together",
                "correct the columns lesion_id and patient_id, or set split to paper",
            )
        giver = min(givers, key=left.get)
        placed[part].append(placed[giver].pop(int(np.argmin(list(map(len, placed[giver]))))))
        for name, sign in ((giver, 1), (part, -1)):
            left[name] += sign * len(placed[part][0])


def official(table: pd.DataFrame, group: np.ndarray, generator_share: float, seed: int):
    """Part names (n,) with the source's own test set as S-test and validation set as S-val.

    The training set is divided into G (`generator_share` of it) and S-train, groups together; where
    the source has no validation set, S-val is drawn from it too. Raises InputError without a test
    set on the disk.
    """
    part = table["official"].to_numpy() if "official" in table else np.array([""] * len(table))
    if not {"train", "test"} <= set(part):
        raise InputError(
            "split 'official'",
            "the official training and test sets of the source are not both on the disk",
            "unpack ISIC 2016, 2017 or 2018 with its test set (--images DIR), or ./run_all.sh "
            "--fetch and source=isic; else set split to grouped",
        )
    training = part == "train"
    drawn = grouped(group[training], generator_share, seed).astype(object)
    names = np.array([{"val": "S-val"}.get(name, "S-test") for name in part], dtype=object)
    drawn[drawn == "S-test"] = "S-train"
    if "val" in part:
        drawn[drawn == "S-val"] = "S-train"
    names[training] = drawn
    return names.astype(str)


def reached(names: np.ndarray, method: str, generator_share: float) -> str:
    """A WARNING if the sizes of a grouped split are not those that were aimed at, else ''."""
    wanted = sizes(len(names), generator_share)
    got = {part: int((names == part).sum()) for part in PARTS}
    if method != "grouped" or got == wanted:
        return ""
    shown = ", ".join(f"{got[part]} in {part} ({wanted[part]})" for part in PARTS)
    return f"WARNING: sizes of the split, in brackets those aimed at: {shown}; groups stay together"


def read_file(path, ids=()) -> tuple[pd.Series, list[str]]:
    """Part names by image id from a CSV with columns id and split, and WARNINGS.

    `ids`: the images, by which a column of ids with an unknown name is recognised. Raises
    InputError if a column is missing, a part is unknown, or an id is in more than one.
    """
    path = resolve(path)
    table = read_table(path, "split")
    if "split" not in table:
        raise InputError(path, "no columns 'id' and 'split'", "add them")
    table, notes = find_id(path, table, ids)
    table["id"] = table["id"].map(image_name)
    known = table.drop_duplicates(["id", "split"]).set_index("id")["split"]
    wrong = sorted(set(known) - set(PARTS))
    if wrong:
        raise InputError(path, f"unknown part '{wrong[0]}'", f"use one of {', '.join(PARTS)}")
    twice = known[known.index.duplicated(keep=False)]
    if len(twice):
        name = twice.index[0]
        problem = f"'{name}' is in more than one part: {', '.join(twice[[name]])}"
        raise InputError(path, problem, "leave one row of it")
    return known, notes


def from_file(path, ids) -> np.ndarray:
    """Part names of `ids` from a CSV, as `read_file`; InputError also if it lacks one or a part."""
    path = resolve(path)
    known, notes = read_file(path, ids)
    unused = known.index[~known.index.isin(list(ids))]
    if len(unused):
        notes.append(f"WARNING: {path}: ids that are no image: {len(unused)}, as {unused[0]}")
    say(notes)
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
    """Part names (n,) by `method`: grouped, paper, official, or a CSV with id and split."""
    if method == "official":
        return official(table, group, generator_share, seed)
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
    """Raise InputError if `audit` found divided groups, unless the split is that of others.

    The paper's split divides groups at random; of an official one, a WARNING says what it divides.
    """
    broken = crossing[crossing["groups"] > 0]
    if method == "paper" or broken.empty:
        return
    borders = ", ".join(broken["border"])
    problem = f"{broken['groups'].sum()} groups of the same lesion, patient or picture lie on both "
    problem += f"sides of {borders}"
    if method == "official":
        print(f"WARNING: the official split divides: {problem}; scores on S-test are too good")
        return
    raise InputError(
        f"split '{method}'",
        problem,
        "put each group into one part (tables/near_duplicates.csv lists pictures), or set split "
        "to paper",
    )
