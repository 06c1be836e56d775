"""Synthetic image-mask pairs: the folders that generators fill."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lesionlib.engine.artefacts import Artefact
from lesionlib.engine.errors import InputError, require
from lesionlib.engine.files import atomic_write, read_json, resolve, write_csv, write_json
from lesionlib.engine.progress import progress
from lesionlib.engine.provenance import digest, file_digest, recorded, unchanged


def _text(facts: dict) -> dict[str, str]:
    """The text that an image carries."""
    return {name: str(value) for name, value in facts.items()}


def _write_png(path, array, facts=None):
    text = PngInfo()
    for name, value in _text(facts or {}).items():
        text.add_text(name, value)
    with atomic_write(path) as temporary:
        Image.fromarray(array).save(temporary, pnginfo=text)


def check(path, image: np.ndarray):
    """InputError if the image (S, S, 3) is black or of a single colour."""
    if image.max() < 8 or image.std() < 1:
        raise InputError(
            path,
            "the generator produced a black or constant image",
            "check its training log; a safety checker or a NaN blackens images",
        )


@dataclass(frozen=True)
class Request:
    """A request for a set of image-mask pairs: what determines its images.

    `masks` (n, S, S) of 0 and 1 and `prompts` in the order of the images' numbers; `code`: the
    functions that make the images (`artefacts.Artefact`); `model`: a digest of the weights;
    `seed` and `settings`: what the images depend on, which the manifest names too; `inputs`:
    digests of what else they depend on; `first`: the number of the first image.
    """

    folder: Path
    masks: np.ndarray
    prompts: list[str]
    code: tuple
    model: str
    seed: int | str
    settings: dict
    inputs: dict
    first: int = 0

    @cached_property
    def artefact(self) -> Artefact:
        """The manifest, whose existence means that the set is complete."""
        settings = {"seed": self.seed, **({"first": self.first} if self.first else {})}
        settings |= self.settings
        inputs = {"model": self.model, "prompts": digest(list(self.prompts)), **self.inputs}
        inputs["masks"] = digest(self.masks)
        return Artefact(self.folder / "manifest.csv", self.code, settings, inputs)

    def table(self) -> pd.DataFrame:
        """A row per pair: image, mask, prompt, index, seed, model, settings."""
        numbers = range(self.first, self.first + len(self.masks))
        names = [f"{i:06d}.png" for i in numbers]
        table = pd.DataFrame({"image": names, "mask": names, "prompt": self.prompts})
        table["index"] = numbers
        settings = json.dumps(self.settings, sort_keys=True)
        return table.assign(seed=self.seed, model=self.model, settings=settings)


def begin(request: Request):
    """Delete images of other code, settings or inputs, and those modified after the manifest.

    An image depends on no mask or prompt but its own: where only others have changed, as when a set
    grows, it is kept. To be called before any process generates images of the set.
    """
    folder, key = request.folder, request.artefact.key
    known = (read_json(folder / "key.json") or {}).get("key")
    alike = known is not None and _without_pairs(known) == _without_pairs(key)
    manifest = request.artefact.path
    if alike and manifest.exists() and recorded(manifest).get("key") == known:
        for path, listed in _listed(folder, pd.read_csv(manifest)):
            if not path.exists() or file_digest(path) != listed:
                print(f"WARNING: {path}: it is corrupt (truncated or modified); it is rebuilt")
                (folder / "images" / path.name).unlink(missing_ok=True)
    if known != key:
        kept = _kept(request) if alike else set()
        for old in {*folder.glob("images/*.png"), manifest} - kept:
            old.unlink(missing_ok=True)
        write_json(folder / "key.json", {"key": key})


def _without_pairs(key: dict) -> dict:
    """The key of a set without its masks and prompts."""
    inputs = {n: x for n, x in key["inputs"].items() if n not in ("masks", "prompts")}
    return key | {"inputs": inputs}


def _kept(request: Request) -> set[Path]:
    """The whole images of a set whose own mask, prompt and other facts are as requested."""
    kept, folder = set(), request.folder
    for mask, facts in zip(request.masks, request.table().to_dict("records"), strict=True):
        path = folder / "images" / facts["image"]
        try:
            with Image.open(path) as image, Image.open(folder / "masks" / path.name) as own:
                image.load()  # raises if it is truncated
                if image.text == _text(facts) and np.array_equal(own, mask * 255):
                    kept.add(path)
        except (OSError, SyntaxError):  # missing or corrupt
            continue
    return kept


def _listed(folder, manifest: pd.DataFrame):
    """(path, digest) of every image and mask in a manifest."""
    for part, column, digests in (("images", "image", "sha256"), ("masks", "mask", "mask_sha256")):
        for name, known in zip(manifest[column], manifest[digests], strict=True):
            yield folder / part / name, known


def paint(request: Request, make, share: tuple = (0, 1), block: int = 1) -> pd.DataFrame:
    """Write the missing images of a set with their masks; returns the set's table.

    `share` (i, n): this process is number i of n and writes every n-th `block` of images; if
    blocks are batches, images do not depend on n.
    """
    table, folder = request.table(), request.folder
    paths = [folder / "images" / name for name in table["image"]]
    indices = [i for i in range(len(table)) if i // block % share[1] == share[0]]
    missing = [i for i in indices if not paths[i].exists()]
    images, done = make(missing), len(indices) - len(missing)
    desc = f"{folder.parent.name}/{folder.name}"
    for i in progress(missing, desc=desc, total=len(indices), initial=done):
        image = next(images)
        check(paths[i], image)
        _write_png(folder / "masks" / paths[i].name, request.masks[i] * 255)
        _write_png(paths[i], image, table.iloc[i].to_dict())
    return table


def fill(request: Request, make, segmenter=None, **facts):
    """Write an image for every mask into the set's folder/images and /masks, and a manifest.

    `make(indices)` yields the images (S, S, 3) with these numbers. Images of an interrupted run
    are kept if nothing that determines them has changed; a black or constant image stops the run
    (InputError). Every image carries prompt, mask, number, seed, `model` and `settings` in
    its PNG text and in the manifest, which also has mask_fidelity, the Dice of `segmenter` with
    the mask, to filter by. The manifest is written last and marks the set as complete. `facts`
    are added to its record.
    """
    begin(request)
    table, folder, masks = paint(request, make), request.folder, request.masks
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
    request.artefact.record(
        pairs=digest(table[["sha256", "mask_sha256"]].to_numpy().tolist()),
        n=len(masks),
        seed=request.seed,
        model=request.model,
        parameters=request.settings,
        **facts,
    )


def read_images(paths) -> np.ndarray:
    """RGB images (n, S, S, 3) of files."""
    return np.stack([cv2.imread(str(path)) for path in paths])[..., ::-1].copy()


def load(folder, notebook: str):
    """Images (n, S, S, 3), masks (n, S, S) of 0 and 1, and fingerprint of a filled folder.

    The fingerprint covers both. InputError names a missing or corrupt file.
    """
    folder = Path(folder)
    manifest = pd.read_csv(unchanged(require(folder / "manifest.csv", notebook)))
    for path, known in _listed(folder, manifest):
        if file_digest(require(path, notebook)) != known:
            raise InputError(
                path,
                "it is corrupt (truncated or modified)",
                "delete it and manifest.csv, then start again: it is rebuilt",
            )
    images = read_images([folder / "images" / name for name in manifest["image"]])
    masks = [cv2.imread(str(folder / "masks" / n), cv2.IMREAD_GRAYSCALE) for n in manifest["mask"]]
    fingerprint = read_json(require(folder / "manifest.csv.json", notebook))["pairs"]
    return images, (np.stack(masks) > 127).astype(np.uint8), fingerprint


def source_notebook(name: str) -> str:
    """The notebook that generates a set, for messages about missing files."""
    return "04_pix2pixhd" if name.startswith("pix2pixhd") else "03_controlnet"


@dataclass(frozen=True)
class Pairs:
    """A synthetic set for training segmentation networks."""

    images: np.ndarray  # (n, S, S, 3)
    masks: np.ndarray  # (n, S, S) of 0 and 1
    fidelity: np.ndarray  # (n,) Dice of the reference segmenter
    facts: dict  # the record of the manifest


def load_pairs(run, name: str) -> Pairs:
    """The synthetic set `name` of a run; InputError as `load`."""
    folder = resolve(run) / "synthetic" / name
    images, masks, _ = load(folder, source_notebook(name))
    fidelity = pd.read_csv(folder / "manifest.csv")["mask_fidelity"].to_numpy()
    facts = read_json(folder / "manifest.csv.json")
    return Pairs(images, masks, fidelity, facts)


def remark(run, method: str) -> str:
    """The remark on a method in tables: perceptual loss and upsampling of Pix2PixHD and its kin."""
    if method not in ("pix2pixhd", "pix2pixhd_plus"):
        return ""
    facts = recorded(resolve(run) / "models" / method / "model.safetensors")
    known = {"vgg": "none", "upsampling": "transposed"} | facts.get("parameters", {})
    return f"perceptual loss: {known['vgg']}; {known['upsampling']} convolutions"
