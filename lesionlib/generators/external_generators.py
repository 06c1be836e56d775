"""Synthetic pairs of generators that are not ours.

`python -m lesionlib.generators.external_generators RUN NAME WHERE FIT` imports a set of them.
"""

import sys

import numpy as np

from lesionlib.data import catalogue, curation, dataset, duplicates
from lesionlib.data.external_tests import read_pairs
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve
from lesionlib.engine.provenance import digest
from lesionlib.generators import sets
from lesionlib.segmentation import reference

TRAINED_ON = "trained_on.csv"


def has_generated(where) -> bool:
    """Whether somebody's folder holds images for the masks of S-test, WHERE/generated."""
    return (resolve(where) / "generated").is_dir()


def _images_by_id(folder, ids, size, fit):
    """Images (n, size, size, 3) of `folder`, whose files are called by `ids`."""
    files = catalogue.image_files(folder, "--synthetic")[0]
    missing = [name for name in ids if name not in files]
    if missing:
        raise InputError(
            folder,
            f"{len(missing)} of the {len(ids)} masks of S-test have no image, "
            f"{missing[0]} among them",
            "call each image by the mask's name",
        )
    return np.stack([curation.read_image(files[name], size, fit) for name in ids])


def read(run, name: str, where, *, fit: str):
    """Import somebody's synthetic pairs as synthetic/NAME and, if there, generated/NAME.

    `where` holds images/ and masks/ of one stem each; generated/ID.png, optional, are images for
    the masks of S-test; trained_on.csv, optional, lists the ids (column id) of the generator's
    training images. Without it, a synthetic image that shows a picture of S is an InputError, as a
    listed image of S is for the notebooks (`leakage`).
    """
    study, folder, segmenter = dataset.load(run), resolve(run), reference.load(run)
    work, size = folder / "checkpoints" / "elsewhere" / name, study.images.shape[1]
    table, images, masks = read_pairs(where, size, fit, work)
    listed = resolve(where) / TRAINED_ON
    trained_on = None
    if listed.exists():
        trained_on = catalogue.read_table(listed, "--synthetic")["id"].tolist()
    else:
        held = study.images[(study.table["split"] != "G").to_numpy()]
        copies = duplicates.copies(held, images)
        if len(copies):
            raise InputError(
                table["image"][copies["made"].iloc[0]],
                "it shows a picture of S",
                f"train the generator on G only and list its images in {TRAINED_ON}",
            )
    facts = dict(
        seed="", settings={"from": str(where)}, model=digest(images, masks), segmenter=segmenter
    )
    options = facts | {"trained_on": trained_on, "data": study.fingerprint}
    sets.fill(
        folder / "synthetic" / name,
        masks,
        [""] * len(masks),
        lambda i: iter(images[i]),
        key=facts["model"],
        desc=name,
        **options,
    )
    if has_generated(where):
        test = study.part("S-test")
        made = _images_by_id(resolve(where) / "generated", test.table["id"], size, fit)
        sets.fill(
            folder / "generated" / name,
            test.masks,
            [""] * len(made),
            lambda i: iter(made[i]),
            key=digest(made),
            desc=name,
            **options,
        )


if __name__ == "__main__":
    *arguments, framing = sys.argv[1:]
    read(*arguments, fit=framing)
