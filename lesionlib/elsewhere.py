"""Image-mask pairs from elsewhere: somebody's generator, or a further test set.

`python -m lesionlib.elsewhere RUN NAME WHERE FIT` imports a set of synthetic pairs.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlib import catalogue, curation, data, distribution, judge, synthetic
from lesionlib.errors import InputError
from lesionlib.files import resolve, write_csv, write_npy
from lesionlib.provenance import digest, record

TRAINED_ON = "trained_on.csv"


def pairs(where, size: int, fit: str, work, bad_inputs: str = "skip"):
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


def read_test_set(run, name: str, where, study, *, fit: str, bad_inputs: str = "skip"):
    """Read a further test set into data/external/NAME of a run; returns how many pairs it has.

    Pictures that the study has too, by id or by `distribution.copies`, are left out, with a
    warning: parts of ISIC 2016 and 2017 are in ISIC 2018. InputError if none is left.
    """
    folder = resolve(run) / "data" / "external" / name
    table, images, _ = pairs(where, study.images.shape[1], fit, folder / "pixels", bad_inputs)
    known = table["id"].isin(study.table["id"]).to_numpy(copy=True)
    known[distribution.copies(study.images, images)["made"].astype(int)] = True
    if known.any():
        first = table["id"][known.argmax()]
        print(f"WARNING: external {name}: {known.sum()} of {len(table)} pictures are in the study "
              f"itself, {first} among them; they are left out")
    if known.all():
        raise InputError(where, "all of its pictures are in the study", "give another test set")
    left = table[~known].reset_index(drop=True)
    write_npy(folder / "images.npy", images[~known])
    data.save_originals(folder / "originals.npz", left, fit)
    write_csv(folder / "index.csv", left[["id", "image"]])
    record(folder / "index.csv", data=digest(images[~known], left["id"].tolist()), n=len(left))
    return len(left)


def load_test_set(run, name: str):
    """Images (n, S, S, 3), masks at their own resolution, and ids of a further test set."""
    folder = resolve(run) / "data" / "external" / name
    ids = pd.read_csv(folder / "index.csv", dtype=str)["id"]
    return np.load(folder / "images.npy"), data.originals(folder / "originals.npz", ids), ids


def has_generated(where) -> bool:
    """Whether somebody's folder holds images for the masks of S-test, WHERE/generated."""
    return (resolve(where) / "generated").is_dir()


def _images_by_id(folder, ids, size, fit):
    """Images (n, size, size, 3) of `folder`, whose files are called by `ids`."""
    files = catalogue.image_files(folder, "--synthetic")[0]
    missing = [name for name in ids if name not in files]
    if missing:
        raise InputError(folder, f"{len(missing)} of the {len(ids)} masks of S-test have no image, "
                         f"{missing[0]} among them", "call each image by the mask's name")
    return np.stack([curation.read_image(files[name], size, fit) for name in ids])


def read_synthetic(run, name: str, where, *, fit: str):
    """Import somebody's synthetic pairs as synthetic/NAME and, if there, generated/NAME.

    `where` holds images/ and masks/ of one stem each; generated/ID.png, optional, are images for
    the masks of S-test; trained_on.csv, optional, lists the ids (column id) of the generator's
    training images. Without it, a synthetic image that shows a picture of S is an InputError, as a
    listed image of S is for the notebooks (`leakage`).
    """
    study, folder, ask = data.load(run), resolve(run), judge.load(run)
    work, size = folder / "checkpoints" / "elsewhere" / name, study.images.shape[1]
    table, images, masks = pairs(where, size, fit, work)
    listed = resolve(where) / TRAINED_ON
    trained_on = None
    if listed.exists():
        trained_on = catalogue.read_table(listed, "--synthetic")["id"].tolist()
    else:
        held = study.images[(study.table["split"] != "G").to_numpy()]
        copies = distribution.copies(held, images)
        if len(copies):
            raise InputError(table["image"][copies["made"].iloc[0]], "it shows a picture of S",
                             f"train the generator on G only and list its images in {TRAINED_ON}")
    facts = dict(seed="", settings={"from": str(where)}, model=digest(images, masks), judge=ask)
    options = facts | {"trained_on": trained_on, "data": study.fingerprint}
    synthetic.fill(folder / "synthetic" / name, masks, [""] * len(masks), lambda i: iter(images[i]),
                   key=facts["model"], desc=name, **options)
    if has_generated(where):
        test = study.part("S-test")
        made = _images_by_id(resolve(where) / "generated", test.table["id"], size, fit)
        synthetic.fill(folder / "generated" / name, test.masks, [""] * len(made),
                       lambda i: iter(made[i]), key=digest(made), desc=name, **options)


if __name__ == "__main__":
    *arguments, framing = sys.argv[1:]
    read_synthetic(*arguments, fit=framing)
