"""Synthetic pairs of external generators.

`python -m lesionlib.generators.external_generators RUN NAME SOURCE FIT` imports a set of them.
"""

import shutil
import sys

import numpy as np

from lesionlib.data import catalogue, curation, dataset, duplicates, tables
from lesionlib.data.external_tests import read_pairs
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve
from lesionlib.engine.provenance import digest
from lesionlib.generators import sets
from lesionlib.segmentation import reference

TRAINED_ON = "trained_on.csv"


def has_generated(source) -> bool:
    """Whether a folder of pairs holds images for the masks of S-test, SOURCE/generated."""
    return (resolve(source) / "generated").is_dir()


def _images_by_id(folder, ids, size, fit):
    """Images (n, size, size, 3) of `folder`, whose files are named after `ids`."""
    files = catalogue.image_files(folder, "--synthetic")[0]
    missing = [name for name in ids if name not in files]
    if missing:
        raise InputError(
            folder,
            f"{len(missing)} of the {len(ids)} masks of S-test have no image, "
            f"{missing[0]} among them",
            "name each image after its mask",
        )
    return np.stack([curation.read_image(files[name], size, fit) for name in ids])


def listed(source, study) -> list | None:
    """Ids of a generator's training images from trained_on.csv in its folder; None without it."""
    path = resolve(source) / TRAINED_ON
    if not path.exists():
        return None
    found = tables.read_table(path, "--synthetic")
    ids = tables.find_id(path, found, study.table["id"])[0]["id"]
    return ids.map(tables.image_name).tolist()


def refuse_copies(study, images, files):
    """InputError if one of the generated `images`, which lie in `files`, is a copy of one of S."""
    held_out = study.images[(study.table["split"] != "G").to_numpy()]
    copies = duplicates.copies(held_out, images)
    if len(copies):
        raise InputError(
            files[copies["made"].iloc[0]],
            "it shows a picture of S",
            f"train the generator on G only and list its images in {TRAINED_ON}",
        )


def read(run, name: str, source, *, fit: str):
    """Import the pairs of an external generator as synthetic/NAME and, if any, generated/NAME.

    `source` holds images/ and masks/ with one pair per stem; generated/ID.png, optional, are images
    for the masks of S-test; trained_on.csv, optional, lists the ids (column id) of the generator's
    training images. Without it, a synthetic image that shows a picture of S is an InputError, as a
    listed image of S is for the notebooks (`leakage`). Everything is read again at every
    call; pairs that the source no longer contains are removed.
    """
    study, folder, segmenter = dataset.load(run), resolve(run), reference.load(run)
    size, test = study.images.shape[1], study.part("S-test")
    work = folder / "checkpoints" / "external_generators" / name
    table, images, masks = read_pairs(source, size, fit, work)
    facts = {"trained_on": listed(source, study), "data": study.fingerprint}
    if facts["trained_on"] is None:
        refuse_copies(study, images, table["image"])
    model = digest(images, masks)

    def write(target, images, masks):
        inputs = {"images": digest(images)}
        prompts, settings = [""] * len(masks), {"from": str(source)}
        request = sets.Request(target, masks, prompts, (), model, "", settings, inputs)
        sets.fill(request, lambda numbers: iter(images[numbers]), segmenter, **facts)

    write(folder / "synthetic" / name, images, masks)
    target = folder / "generated" / name
    if has_generated(source):
        ids = test.table["id"]
        write(target, _images_by_id(resolve(source) / "generated", ids, size, fit), test.masks)
    else:
        shutil.rmtree(target, ignore_errors=True)


if __name__ == "__main__":
    *arguments, fit_name = sys.argv[1:]
    read(*arguments, fit=fit_name)
