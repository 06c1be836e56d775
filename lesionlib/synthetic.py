"""Synthetic image-mask pairs: what is asked of the generators, and the folders they fill."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lesionlib import catalogue, prompts
from lesionlib.errors import InputError, require
from lesionlib.files import aside, read_json, resolve, write_csv, write_json, write_npy
from lesionlib.masks import random_masks
from lesionlib.progress import progress
from lesionlib.provenance import digest, file_digest, record


def ask(run, study, *, n, size, mode, seed, prompt, details, draw, **facts):
    """Draw `n` masks and prompts for both generators and write them to data/conditions*.

    Masks are made by `mode` (masks.MODES); labels are drawn from G by `draw` (joint, uniform, or
    a CSV of wishes), sizes and positions in prompts are those of the masks. Row i depends on seed
    and i alone. Returns masks (n, size, size) and the prompts.
    """
    folder = resolve(run) / "data"
    generator_part = study.part("G")
    shapes = random_masks(n, size, seed=seed, mode=mode, real=generator_part.masks)
    wishes, how = generator_part.table, draw
    if draw not in ("joint", "uniform"):
        wishes, how = catalogue.read_wishes(draw), "weight"
    labels = prompts.draw(wishes, n, seed, how)
    texts = prompts.of_table(labels, prompt, details, shapes)
    write_npy(folder / "conditions.npy", shapes)
    known = ["diagnosis", *prompts.ATTRIBUTES]
    table = labels[known].assign(index=range(n), prompt=texts, mode=mode, seed=seed)
    write_csv(folder / "conditions.csv", table[["index", "prompt", "mode", "seed", *known]])
    record(
        folder / "conditions.csv",
        data=study.fingerprint,
        conditions=digest(shapes, texts),
        mode=mode,
        draw=draw,
        seed=seed,
        **facts,
    )
    return shapes, texts


def asked(run):
    """Masks (n, S, S), prompts and fingerprint of the conditions; needs notebook 02."""
    folder = resolve(run) / "data"
    table = pd.read_csv(require(folder / "conditions.csv", "02_masks"), keep_default_na=False)
    facts = read_json(require(folder / "conditions.csv.json", "02_masks"))
    shapes = np.load(require(folder / "conditions.npy", "02_masks"))
    return shapes, table["prompt"].tolist(), facts["conditions"]


def _write_png(path, array):
    with aside(path) as temporary:
        if not cv2.imwrite(str(temporary), array):
            raise OSError(f"{path} could not be written")


def fill(folder, masks: np.ndarray, prompt_list, make, key: str, desc: str, **facts):
    """Write an image for every mask into `folder`/images and /masks, and a manifest.

    `make(first)` yields the images (S, S, 3) from index `first` on. Images that an interrupted
    run with the same `key` (all that determines them) left behind are kept. An image that is
    constant stops the run. The manifest is written last: it says that the set is complete.
    """
    folder = Path(folder)
    if read_json(folder / "key.json") != {"key": key}:
        for old in [*folder.glob("images/*.png"), folder / "manifest.csv"]:
            old.unlink(missing_ok=True)
        write_json(folder / "key.json", {"key": key})
    names = [f"{i:06d}.png" for i in range(len(masks))]
    done = next(
        (i for i, n in enumerate(names) if not (folder / "images" / n).exists()), len(names)
    )
    images = make(done)
    for i in progress(range(done, len(names)), desc=desc, total=len(names), initial=done):
        image = next(images)
        if image.max() == image.min():
            raise InputError(
                folder / "images" / names[i],
                "the generator made a constant image",
                "look at its training log; a safety checker or a NaN blackens images",
            )
        _write_png(folder / "masks" / names[i], masks[i] * 255)
        _write_png(folder / "images" / names[i], image[..., ::-1])
    digests = [file_digest(folder / "images" / n) for n in names]
    write_csv(
        folder / "manifest.csv",
        pd.DataFrame(
            {
                "image": names,
                "mask": names,
                "prompt": prompt_list,
                "index": range(len(names)),
                "sha256": digests,
            }
        ),
    )
    record(folder / "manifest.csv", key=key, images=digest(digests), n=len(names), **facts)


def load(folder, notebook: str):
    """Images (n, S, S, 3), masks (n, S, S) of 0 and 1, and fingerprint of a filled folder."""
    folder = Path(folder)
    manifest = pd.read_csv(require(folder / "manifest.csv", notebook))
    images = [cv2.imread(str(require(folder / "images" / n, notebook))) for n in manifest["image"]]
    masks = [
        cv2.imread(str(require(folder / "masks" / n, notebook)), cv2.IMREAD_GRAYSCALE)
        for n in manifest["mask"]
    ]
    fingerprint = read_json(require(folder / "manifest.csv.json", notebook))["images"]
    return np.stack(images)[..., ::-1].copy(), (np.stack(masks) > 127).astype(np.uint8), fingerprint
