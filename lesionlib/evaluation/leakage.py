"""Data leakage: checks that stop a run if training data overlap validation or test data."""

import numpy as np

from lesionlib.engine.errors import InputError
from lesionlib.engine.provenance import digest

SMALLEST = 32  # lesion pixels of a mask; smaller ones may be equal by chance


def check_parts(study, mode: str):
    """InputError if an id, an image or a group lies in two parts of the split of a `dataset.Study`.

    With the `mode` "paper", whose split ignores groups, groups are not checked.
    """
    table = study.table
    pictures = [digest(np.ascontiguousarray(image)) for image in study.images]
    keys = {"id": table["id"], "picture": pictures}
    if "group" in table and mode != "paper":
        keys["group of one lesion or picture"] = table["group"]
    for name, values in keys.items():
        repeated = table.assign(value=np.asarray(values)).groupby("value")["split"].nunique() > 1
        if repeated.any():
            rows = np.asarray(values) == repeated.idxmax()
            ids = ", ".join(table["id"][rows].astype(str).head(3))
            raise InputError(
                "the split in data/index.csv",
                f"one {name} lies in several parts ({ids})",
                "run notebook 01 again; a split of your own must keep each in one part",
            )


def _orientations(mask):
    """A mask (S, S) or image (S, S, 3) in all eight orientations (quarter turns, reflections), as
    bytes."""
    for oriented in (mask, mask.swapaxes(0, 1)):
        for flipped in (oriented, oriented[::-1], oriented[:, ::-1], oriented[::-1, ::-1]):
            yield np.ascontiguousarray(flipped).tobytes()


def check_real_pairs(study):
    """InputError if a picture of G is one of S-val or S-test, in any of eight orientations.

    Pictures of G are added to S-train as the positive control of Table 2.
    """
    table, held_out = study.table, {}
    for row in np.flatnonzero(table["split"].isin(["S-val", "S-test"]).to_numpy()):
        held_out |= dict.fromkeys(_orientations(study.images[row]), row)
    for row in np.flatnonzero((table["split"] == "G").to_numpy()):
        same = held_out.get(np.ascontiguousarray(study.images[row]).tobytes())
        if same is not None:
            first, second = (str(table["id"].iloc[i]) for i in (row, same))
            raise InputError(
                "real pairs of G",
                f"the picture of {first} is that of {second} in {table['split'].iloc[same]}",
                "run notebook 01 again; a split of your own must keep each picture in one part",
            )


def check_synthetic(name: str, masks, facts: dict, study):
    """InputError if a synthetic set contains validation or test data of a `dataset.Study`.

    `facts` is the record of its manifest. A set leaks if its generator was trained on an image of
    S (`trained_on`), if it was made for other data or another split (`data`), or if one of its
    `masks` (n, S, S) is a mask of S-val or S-test in any of eight orientations. Masks of G and of
    S-train are fine.
    """
    source, table = f"synthetic set {name}", study.table
    s_ids = set(table["id"][table["split"] != "G"].astype(str))
    known = sorted(s_ids & {str(i) for i in facts.get("trained_on") or []})
    if known:
        problem = f"its generator was trained on {len(known)} images of S, {known[0]} among them"
        raise InputError(source, problem, "train generators on G only")
    if facts.get("data") not in (None, study.fingerprint):
        raise InputError(
            source,
            "it was made for other data or another split",
            "run the notebooks 02 to 04 again with the same `run`",
        )
    held_out = {}
    for row in np.flatnonzero(table["split"].isin(["S-val", "S-test"]).to_numpy()):
        mask = np.ascontiguousarray(study.masks[row])
        if mask.sum() >= SMALLEST:
            held_out |= dict.fromkeys(_orientations(mask), str(table["id"].iloc[row]))
    for number, mask in enumerate(masks):
        if (owner := held_out.get(np.ascontiguousarray(mask).tobytes())) is not None:
            raise InputError(
                source,
                f"mask {number} is the mask of {owner}, which is kept for validation or test",
                "make synthetic images from other masks",
            )
