"""Synthetic image-mask pairs: what is asked of the generators, and the folders they fill."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lesionlib.engine.errors import InputError, require
from lesionlib.engine.files import atomic_write, read_json, resolve, write_csv, write_json
from lesionlib.engine.progress import progress
from lesionlib.engine.provenance import digest, file_digest, record, recorded, unchanged


def _write_png(path, array, facts=None):
    text = PngInfo()
    for name, value in (facts or {}).items():
        text.add_text(name, str(value))
    with atomic_write(path) as temporary:
        Image.fromarray(array).save(temporary, pnginfo=text)


def check(path, image: np.ndarray):
    """InputError unless the image (S, S, 3) shows something: not black, not of one colour."""
    if image.max() < 8 or image.std() < 1:
        raise InputError(
            path,
            "the generator made a black or constant image",
            "look at its training log; a safety checker or a NaN blackens images",
        )


def begin(folder, key: str):
    """Empty a folder that was filled for another `key`; every process that paints comes after."""
    if read_json(folder / "key.json") != {"key": key}:
        for old in [*folder.glob("images/*.png"), folder / "manifest.csv"]:
            old.unlink(missing_ok=True)
        write_json(folder / "key.json", {"key": key})


def paint(
    folder,
    masks,
    prompt_list,
    make,
    desc: str,
    *,
    seed: int,
    model: str,
    settings: dict,
    share: tuple = (0, 1),
    block: int = 1,
):
    """Write the images that are missing in `folder`/images, and all masks; returns their table.

    `share` (i, n): of n processes the i-th, which paints every n-th `block` of images; where a
    block is a batch, images do not depend on n.
    """
    table = pd.DataFrame({"image": [f"{i:06d}.png" for i in range(len(masks))]})
    table["mask"], table["prompt"], table["index"] = table["image"], prompt_list, table.index
    table = table.assign(seed=seed, model=model, settings=json.dumps(settings, sort_keys=True))
    paths = [folder / "images" / name for name in table["image"]]
    own = [i for i in range(len(masks)) if i // block % share[1] == share[0]]
    missing = [i for i in own if not paths[i].exists()]
    images, done = make(missing), len(own) - len(missing)
    for i in progress(missing, desc=desc, total=len(own), initial=done):
        image = next(images)
        check(paths[i], image)
        _write_png(folder / "masks" / paths[i].name, masks[i] * 255)
        _write_png(paths[i], image, table.iloc[i].to_dict())
    return table


def fill(
    folder,
    masks: np.ndarray,
    prompt_list,
    make,
    key: str,
    desc: str,
    *,
    seed: int,
    model: str,
    settings: dict,
    segmenter=None,
    **facts,
):
    """Write an image for every mask into `folder`/images and /masks, and a manifest.

    `make(indices)` yields the images (S, S, 3) with these numbers. Images that an interrupted run
    with the same `key` (all that determines them) left behind are kept; a black or constant one
    stops the run (InputError). Every image carries prompt, mask, number, seed, `model` (a digest
    of its weights) and `settings` in its PNG text and in the manifest, which also has
    mask_fidelity, the Dice of `segmenter` with the mask, to filter by. The manifest is written
    last: it says that the set is complete.
    """
    folder = Path(folder)
    begin(folder, key)
    table = paint(folder, masks, prompt_list, make, desc, seed=seed, model=model, settings=settings)
    paths = [folder / "images" / name for name in table["image"]]
    table["sha256"] = [file_digest(path) for path in paths]
    table["mask_sha256"] = [file_digest(folder / "masks" / path.name) for path in paths]
    if segmenter is not None:
        table["mask_fidelity"] = np.concatenate(
            [
                segmenter(read_images(paths[i : i + 256]), masks[i : i + 256]).round(4)
                for i in range(0, len(masks), 256)
            ]
        )
    write_csv(folder / "manifest.csv", table)
    images = digest(table["sha256"].tolist())
    facts = dict(facts, seed=seed, model=model, parameters=settings)
    record(folder / "manifest.csv", key=key, images=images, n=len(masks), **facts)


def read_images(paths) -> np.ndarray:
    """RGB images (n, S, S, 3) of files."""
    return np.stack([cv2.imread(str(path)) for path in paths])[..., ::-1].copy()


def load(folder, notebook: str):
    """Images (n, S, S, 3), masks (n, S, S) of 0 and 1, and fingerprint of a filled folder.

    InputError names what is missing, or was cut short or changed since.
    """
    folder = Path(folder)
    manifest = pd.read_csv(unchanged(require(folder / "manifest.csv", notebook)))
    for kind, column in (("images", "image"), ("masks", "mask")):
        wanted = manifest["sha256" if kind == "images" else "mask_sha256"]
        for name, sha256 in zip(manifest[column], wanted, strict=True):
            path = require(folder / kind / name, notebook)
            if file_digest(path) != sha256:
                raise InputError(
                    path,
                    "it was cut short or changed",
                    "delete it and manifest.csv, then start again: it is made anew",
                )
    images = read_images([folder / "images" / name for name in manifest["image"]])
    masks = [cv2.imread(str(folder / "masks" / n), cv2.IMREAD_GRAYSCALE) for n in manifest["mask"]]
    fingerprint = read_json(require(folder / "manifest.csv.json", notebook))["images"]
    return images, (np.stack(masks) > 127).astype(np.uint8), fingerprint


def made_by(name: str) -> str:
    """The notebook that makes a set; sets from elsewhere come with ./run_all.sh --synthetic."""
    return "04_pix2pixhd" if name == "pix2pixhd" else "03_controlnet"


def with_facts(run, name: str):
    """A run's synthetic set for training: (images, masks, mask_fidelity), record, fingerprint."""
    folder = resolve(run) / "synthetic" / name
    images, masks, fingerprint = load(folder, made_by(name))
    fidelity = pd.read_csv(folder / "manifest.csv")["mask_fidelity"].to_numpy()
    return (images, masks, fidelity), read_json(folder / "manifest.csv.json"), fingerprint


def remark(run, method: str) -> str:
    """What a table must say of a method: whether Pix2PixHD was trained without its VGG loss."""
    if method != "pix2pixhd":
        return ""
    facts = recorded(resolve(run) / "models" / "pix2pixhd" / "model.safetensors")
    return "" if facts.get("parameters", {}).get("vgg", True) else "no VGG loss"
