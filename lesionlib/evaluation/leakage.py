"""What a network or generator must not know: checks that stop a run and say why."""

import numpy as np

from lesionlib.engine.errors import InputError
from lesionlib.engine.provenance import digest

SMALLEST = 32  # pixels of a mask below which two may be equal by chance


def parts(study, how: str):
    """InputError if an id, a picture, or (unless `how` is paper) a group lies in two parts."""
    table = study.table
    pictures = [digest(np.ascontiguousarray(image)) for image in study.images]
    facts = {"id": table["id"], "picture": pictures}
    if "group" in table and how != "paper":
        facts["group of one lesion or picture"] = table["group"]
    for what, values in facts.items():
        several = table.assign(value=np.asarray(values)).groupby("value")["split"].nunique() > 1
        if several.any():
            rows = np.asarray(values) == several.idxmax()
            ids = ", ".join(table["id"][rows].astype(str).head(3))
            raise InputError(
                "the split in data/index.csv",
                f"one {what} lies in several parts ({ids})",
                "run notebook 01 again; a split of your own must keep each in one part",
            )


def _positions(mask):
    """A mask (S, S) in the eight positions of a square, as bytes."""
    for turned in (mask, mask.T):
        for flipped in (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1]):
            yield np.ascontiguousarray(flipped).tobytes()


def synthetic(name: str, masks, facts: dict, study):
    """InputError if a synthetic set knows what it must not: the training would be worth nothing.

    `facts` is the record of its manifest. Its generator was trained on an image of S
    (`trained_on`); it was made for other data or another split (`data`); or one of its `masks`
    (n, S, S) is a mask of S-val or S-test, in any of eight positions.
    """
    where, table = f"synthetic set {name}", study.table
    held = set(table["id"][table["split"] != "G"].astype(str))
    known = sorted(held & {str(i) for i in facts.get("trained_on") or []})
    if known:
        problem = f"its generator was trained on {len(known)} images of S, {known[0]} among them"
        raise InputError(where, problem, "train generators on G only")
    if facts.get("data") not in (None, study.fingerprint):
        raise InputError(
            where,
            "it was made for other data or another split",
            "run the notebooks 02 to 04 again with the same `run`",
        )
    rows = np.flatnonzero(table["split"].isin(["S-val", "S-test"]).to_numpy())
    unseen = {}
    for row in rows:
        mask = np.ascontiguousarray(study.masks[row])
        if mask.sum() >= SMALLEST:
            unseen |= dict.fromkeys(_positions(mask), str(table["id"].iloc[row]))
    for number, mask in enumerate(masks):
        if (owner := unseen.get(np.ascontiguousarray(mask).tobytes())) is not None:
            raise InputError(
                where,
                f"mask {number} is the mask of {owner}, which is kept for validation or test",
                "make synthetic images from other masks",
            )
