"""The arrays and labels of a run, shared by all stages."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from lesionlib.data.curation import whole_mask
from lesionlib.data.plausibility import BRIGHT
from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.engine.errors import InputError, require
from lesionlib.engine.files import atomic_write, read_json, resolve, unescaped, write_csv
from lesionlib.engine.progress import progress
from lesionlib.engine.provenance import digest, file_digest, record


@dataclass(frozen=True)
class Study:
    """Arrays and labels of a run, or of a part of it; rows correspond."""

    images: np.ndarray  # (N, S, S, 3) uint8 RGB
    masks: np.ndarray  # (N, S, S) uint8 of 0 and 1
    table: pd.DataFrame  # (N, …) id, diagnosis, attributes, prompt, split, …
    fingerprint: str  # of all images, masks and labels of the run

    def part(self, name: str) -> "Study":
        """The rows of one split: G, S-train, S-val or S-test."""
        rows = np.flatnonzero(self.table["split"] == name)
        return Study(
            np.ascontiguousarray(self.images[rows]),
            np.ascontiguousarray(self.masks[rows]),
            self.table.iloc[rows].reset_index(drop=True),
            self.fingerprint,
        )


def pixels(run) -> Path:
    """Folder of the decoded pixels of a run, kept so that a rerun does not decode them again."""
    return resolve(run) / "checkpoints" / "pixels"


def fingerprint(folder) -> str:
    """Digest of the images, masks and labels in a run's data/."""
    arrays = (file_digest(folder / name) for name in ("images.npy", "masks.npy"))
    return digest(*arrays, (folder / "index.csv").read_bytes())


def save(run, table, orphans, **facts):
    """Write the arrays and tables of a run; the arrays are those that `curate` wrote to `pixels`.

    `table` has one row per image file with status, reason and repairs and, if used, prompt and
    split; `orphans` (id, file, reason) have no image. Writes tables/curation.csv,
    tables/quarantine.csv (unused images and orphans) and data/index.csv with its record.
    """
    folder = resolve(run)
    images, masks = (folder / "data" / name for name in ("images.npy", "masks.npy"))
    for target in (images, masks):
        with atomic_write(target) as temporary:
            shutil.copyfile(pixels(run) / target.name, temporary)
    used = table[table["status"] == "used"]
    assert len(used) == len(np.load(images, mmap_mode="r")) == len(np.load(masks, mmap_mode="r"))
    left_out = table[table["status"] != "used"].rename(columns={"image": "file"})
    quarantine = pd.concat([left_out[["id", "file", "reason"]], orphans], ignore_index=True)
    write_csv(folder / "tables" / "curation.csv", table)
    write_csv(folder / "tables" / "quarantine.csv", quarantine)
    index = used.drop(columns=["status", "reason", "image", "mask"])
    write_csv(folder / "data" / "index.csv", index)
    found = fingerprint(folder / "data")
    record(folder / "data" / "index.csv", data=found, n=len(used), **facts)


def load(run) -> Study:
    """The study's arrays; InputError if notebook 01 has not been run or they are corrupt."""
    folder = resolve(run) / "data"
    index = require(folder / "index.csv", "01_data")
    known = {"dtype": {"id": str}, "na_values": {name: [""] for name in ATTRIBUTES}}
    table = unescaped(pd.read_csv(index, keep_default_na=False, **known))
    facts = read_json(require(folder / "index.csv.json", "01_data"))
    images, masks = (require(folder / name, "01_data") for name in ("images.npy", "masks.npy"))
    if fingerprint(folder) != facts["data"]:
        raise InputError(
            folder,
            "images.npy, masks.npy or index.csv are corrupt (truncated or modified)",
            "delete these three and run notebooks/01_data.ipynb, or ./run_all.sh, again",
        )
    arrays = [np.load(path, mmap_mode="r") for path in (images, masks)]
    return Study(*arrays, table, facts["data"])


def save_originals(path, table, fit: str, rule=BRIGHT):
    """Write the masks of a table's rows (id, image, mask) at full resolution to an .npz, by id.

    `rule` says which of their pixels are lesion.

    Segmentation is evaluated on these, not on the square masks that networks are trained on.
    """
    whole = {
        row.id: whole_mask(row.image, row.mask, fit, rule)
        for row in progress(list(table.itertuples()), desc="masks at full resolution")
    }
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **whole)


def export_masks(run):
    """Write the masks of S-test to data/s_test_masks/ID.png, for external generators."""
    test = load(run).part("S-test")
    for name, mask in zip(test.table["id"], test.masks, strict=True):
        with atomic_write(resolve(run) / "data" / "s_test_masks" / f"{name}.png") as temporary:
            Image.fromarray(mask * 255).save(temporary)


def originals(path, ids, notebook: str = "01_data") -> list[np.ndarray]:
    """The masks that `save_originals` wrote, uint8 (H, W) of 0 and 1, in the order of `ids`."""
    with np.load(require(path, notebook), allow_pickle=False) as whole:
        return [whole[name] for name in ids]


def examples(masks: np.ndarray, n: int = 4, seed: int = 0) -> np.ndarray:
    """Indices of `n` of the masks (N, S, S): one at random from each quantile of lesion area.

    All examples in figures are chosen by this rule, not by eye.
    """
    rng, order = np.random.default_rng(seed), np.argsort(masks.mean(axis=(1, 2)), kind="stable")
    return np.array([rng.choice(part) for part in np.array_split(order, n) if len(part)])


def skin_tone(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Individual typology angle of the skin around each lesion (N,), in degrees; NaN without skin.

    ITA = arctan((L* - 50) / b*) of the median skin pixel (Chardon et al. 1991), lower for darker
    skin; lesions and dark frames (L* < 20) are excluded.
    """
    tones = np.full(len(images), np.nan)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        lab = cv2.cvtColor(np.float32(image) / 255, cv2.COLOR_RGB2LAB)
        skin = lab[(mask == 0) & (lab[..., 0] > 20)]
        if len(skin):
            light, _, yellow = np.median(skin, axis=0)
            tones[i] = np.degrees(np.arctan2(light - 50, max(yellow, 1e-3)))
    return tones


def off_centre(mask: np.ndarray) -> float:
    """Distance of a lesion's centroid from the centre of its mask (S, S), in sides of the mask."""
    return float(np.hypot(*((np.argwhere(mask).mean(axis=0) + 0.5) / len(mask) - 0.5)))


def facts(study: Study) -> pd.DataFrame:
    """Size and place of each lesion and the skin tone around it, with the image's part.

    A row per image: area (% of the image), distance of the lesion's centroid from the centre (% of
    the side), `skin_tone` (degrees), part.
    """
    found = {
        "area (% of image)": 100 * study.masks.mean(axis=(1, 2)),
        "off centre (% of side)": [100 * off_centre(mask) for mask in study.masks],
        "skin tone ITA (degrees)": skin_tone(study.images, study.masks),
    }
    return pd.DataFrame(found).assign(part=study.table["split"].to_numpy())


def shrunk(pictures: np.ndarray, size: int) -> np.ndarray:
    """Pictures (N, S, S, …) resized to (N, size, size, …) by area averaging."""
    if pictures.shape[1] == size:
        return np.ascontiguousarray(pictures)
    return np.stack([cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA) for x in pictures])


def shrunk_masks(masks: np.ndarray, size: int) -> np.ndarray:
    """Masks (N, S, S) of 0 and 1, resized to (N, size, size) by area averaging."""
    return (shrunk(np.float32(masks), size) > 0.5).astype(np.uint8)


def resized(images: np.ndarray, masks: np.ndarray, size: int):
    """Images (N, S, S, 3) and masks (N, S, S) of 0 and 1, resized to `size` by area averaging."""
    return shrunk(images, size), shrunk_masks(masks, size)
