"""Further test sets: read like any other pairs, and never trained on."""

from pathlib import Path

import numpy as np
import pandas as pd

from lesionlib.data import catalogue, curation, dataset, duplicates
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve, write_csv, write_npy
from lesionlib.engine.provenance import digest, record


def read_pairs(where, size: int, fit: str, work, bad_inputs: str = "skip"):
    """Table (id, image, mask, …) of the usable pairs of `where`, images (n, size, size, 3), masks.

    Read as any other pairs are (`curation`); what cannot be used is printed. InputError if nothing
    can.
    """
    images, masks = catalogue.pair_folders(where)
    found = catalogue.read_folders(images, masks, "")
    table = curation.curate(found.table, size, work, fit, bad_inputs, fewest=1)
    for reason in table["reason"][table["status"] != "used"]:
        print(f"WARNING: left out: {reason}")
    used = table[table["status"] == "used"].reset_index(drop=True)
    return used, *(np.load(Path(work) / name) for name in ("images.npy", "masks.npy"))


def read(run, name: str, where, study, *, fit: str, bad_inputs: str = "skip"):
    """Read a further test set into data/external/NAME of a run; returns how many pairs it has.

    Pictures that the study has too, by id or by `duplicates.copies`, are left out, with a
    warning: parts of ISIC 2016 and 2017 are in ISIC 2018. InputError if none is left.
    """
    folder = resolve(run) / "data" / "external" / name
    table, images, _ = read_pairs(where, study.images.shape[1], fit, folder / "pixels", bad_inputs)
    known = table["id"].isin(study.table["id"]).to_numpy(copy=True)
    known[duplicates.copies(study.images, images)["made"].astype(int)] = True
    if known.any():
        first = table["id"][known.argmax()]
        print(
            f"WARNING: external {name}: {known.sum()} of {len(table)} pictures are in the study "
            f"itself, {first} among them; they are left out"
        )
    if known.all():
        raise InputError(where, "all of its pictures are in the study", "give another test set")
    left = table[~known].reset_index(drop=True)
    write_npy(folder / "images.npy", images[~known])
    dataset.save_originals(folder / "originals.npz", left, fit)
    write_csv(folder / "index.csv", left[["id", "image"]])
    record(folder / "index.csv", data=digest(images[~known], left["id"].tolist()), n=len(left))
    return len(left)


def load(run, name: str):
    """Images (n, S, S, 3), masks at their own resolution, and ids of a further test set."""
    folder = resolve(run) / "data" / "external" / name
    ids = pd.read_csv(folder / "index.csv", dtype=str)["id"]
    return np.load(folder / "images.npy"), dataset.originals(folder / "originals.npz", ids), ids
