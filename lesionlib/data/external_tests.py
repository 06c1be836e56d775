"""External test sets: read and curated like the study's own pairs, never used for training.

A set is a folder with images/ and masks/, or IMAGES:MASKS (`catalogue.pair_folders`). Notebook 01
reads each into data/external/NAME of the run; notebook 06 evaluates on it.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from lesionlib.data import catalogue, curation, dataset, duplicates
from lesionlib.engine.errors import InputError, say
from lesionlib.engine.files import resolve, unescaped, write_csv, write_npy
from lesionlib.engine.provenance import digest, record


def read_pairs(source, size: int, fit: str, work, bad_inputs: str = "skip"):
    """Table (id, image, mask, …), images (n, size, size, 3) and masks of the usable pairs of a set.

    Found and curated in the folder `work` like any other pairs (`curation.curate`); files that are
    not used and unusable pairs are named in WARNINGS. InputError if no pair is usable.
    """
    found = catalogue.read_pairs(source)
    say(found.notes)
    table = curation.curate(found.table, size, work, fit, bad_inputs, fewest=1)
    say(curation.quarantine_notes(table["reason"][table["status"] != "used"]))
    used = table[table["status"] == "used"].reset_index(drop=True)
    print(f"NOTE: {source}: {len(used)} of {len(table)} images are used")
    return used, *(np.load(Path(work) / name) for name in ("images.npy", "masks.npy"))


def read(run, name: str, source, study, *, fit: str, bad_inputs: str = "skip") -> int:
    """Read an external test set into data/external/NAME of a run; returns its number of pairs.

    Pictures that are also in the study (`duplicates.copies`) are left out with a WARNING: ISIC 2018
    contains parts of ISIC 2016 and 2017. The same id in two data sets does not make two files the
    same picture. InputError if none is left.
    """
    folder = resolve(run) / "data" / "external" / name
    table, images, _ = read_pairs(source, study.images.shape[1], fit, folder / "pixels", bad_inputs)
    known = np.zeros(len(table), bool)
    known[duplicates.copies(study.images, images)["made"].astype(int)] = True
    if known.any():
        first = table["id"][known.argmax()]
        print(
            f"WARNING: external {name}: {known.sum()} of {len(table)} pictures are also in "
            f"the study, for example {first}; they are left out"
        )
    if known.all():
        raise InputError(source, "all of its pictures are in the study", "give another test set")
    left = table[~known].reset_index(drop=True)
    write_npy(folder / "images.npy", images[~known])
    dataset.save_originals(folder / "originals.npz", left, fit)
    write_csv(folder / "index.csv", left[["id", "image"]])
    record(folder / "index.csv", data=digest(images[~known], left["id"].tolist()), n=len(left))
    return len(left)


def load(run, name: str):
    """Images (n, S, S, 3), masks at full resolution, and ids of an external test set."""
    folder = resolve(run) / "data" / "external" / name
    ids = unescaped(pd.read_csv(folder / "index.csv", dtype=str, keep_default_na=False))["id"]
    return np.load(folder / "images.npy"), dataset.originals(folder / "originals.npz", ids), ids
