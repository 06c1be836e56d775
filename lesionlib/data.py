"""Images, masks and labels: reading, joining, splitting, and the arrays that all stages share."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lesionlib import prompts
from lesionlib.errors import InputError, require
from lesionlib.files import read_json, resolve, write_csv, write_npy
from lesionlib.progress import progress
from lesionlib.prompts import ATTRIBUTES
from lesionlib.provenance import digest, record

COLUMNS = ["id", "image", "mask", "diagnosis", *ATTRIBUTES, "age", "sex", "site"]
SPLITS = ("G", "S-train", "S-val", "S-test")
IMAGE_TYPES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
DIAGNOSES = {  # the names that sources use, and ours
    "nevus": "nevus",
    "nv": "nevus",
    "melanoma": "melanoma",
    "mel": "melanoma",
    "seborrheic_keratosis": "benign keratosis",
    "seborrheic keratosis": "benign keratosis",
    "bkl": "benign keratosis",
    "benign keratosis": "benign keratosis",
    "bcc": "basal cell carcinoma",
    "ak": "actinic keratosis",
    "df": "dermatofibroma",
    "vasc": "vascular lesion",
    "scc": "squamous cell carcinoma",
}


def read_table(path) -> pd.DataFrame:
    """A CSV as text; raises InputError if it is missing or cannot be parsed."""
    if not Path(path).is_file():
        raise InputError(path, "the table does not exist", "correct the path (--table)")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(path, f"not a readable CSV ({error})", "save it as CSV, UTF-8") from error


def image_files(folder, option: str) -> dict[str, Path]:
    """Image files of a folder by stem, without `_segmentation`; raises InputError if none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "the folder does not exist", f"correct the path ({option} DIR)")
    found = {
        path.stem.removesuffix("_segmentation"): path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_TYPES and "_superpixels" not in path.stem
    }
    if not found:
        raise InputError(
            folder,
            "no image files (jpg, png, bmp, tif)",
            f"give the folder that holds them ({option} DIR)",
        )
    return found


def _catalogue(images: dict, masks: dict, labels: pd.DataFrame) -> pd.DataFrame:
    """One row per image id: files, diagnosis, attributes (0/1 or NaN), age, sex, site."""
    table = pd.DataFrame({"id": sorted(images)})
    table["image"] = [str(images[i]) for i in table["id"]]
    table["mask"] = [str(masks.get(i, "")) for i in table["id"]]
    labels = labels.drop_duplicates("id")
    table = table.merge(labels, on="id", how="left").reindex(columns=COLUMNS)
    table["diagnosis"] = table["diagnosis"].fillna("")
    for name in ATTRIBUTES:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def read_folders(images, masks, table) -> pd.DataFrame:
    """The catalogue of somebody's own folders.

    The CSV needs a column `id` (or `image_id`, `image`, `isic_id`); `diagnosis`, the five
    attribute flags (0/1), `age`, `sex` and `site` (or `anatom_site`) are used if present.
    Raises InputError for missing folders, files or columns, and unknown diagnoses.
    """
    labels = read_table(table) if table else pd.DataFrame({"id": []}, dtype=str)
    names = {
        "image_id": "id",
        "image": "id",
        "isic_id": "id",
        "anatom_site": "site",
        "anatom_site_general": "site",
        "age_approx": "age",
        "age_approximate": "age",
    }
    labels = labels.rename(columns={k: v for k, v in names.items() if v not in labels})
    if "id" not in labels:
        raise InputError(
            table,
            f"no column 'id' among {', '.join(labels.columns[:8])}",
            "name the column of the image names 'id'",
        )
    labels["id"] = labels["id"].map(lambda value: Path(value).stem if "." in value else value)
    if "diagnosis" in labels:
        known = labels["diagnosis"].str.strip().str.lower()
        strange = sorted(set(known) - set(DIAGNOSES) - {"", "unknown"})
        if strange:
            raise InputError(
                table,
                f"unknown diagnosis '{strange[0]}'",
                f"use one of {', '.join(sorted(set(DIAGNOSES.values())))}, or none",
            )
        labels["diagnosis"] = known.map(DIAGNOSES).fillna("")
    kept = [name for name in COLUMNS if name in labels and name not in ("image", "mask")]
    return _catalogue(image_files(images, "--images"), image_files(masks, "--masks"), labels[kept])


def _one_hot(table: pd.DataFrame) -> pd.Series:
    """The name of the column that holds 1 in each row, as our diagnosis."""
    flags = table.drop(columns="id").apply(pd.to_numeric, errors="coerce").fillna(0)
    names = flags.idxmax(axis=1).str.lower().map(DIAGNOSES)
    return names.where(flags.max(axis=1) > 0).fillna("")


def read_isic(root) -> pd.DataFrame:
    """The catalogue of unpacked ISIC downloads (2018 Task 1 and 2, labels of 2017 and 2019).

    Ids of 2019 are joined without their `_downsampled` suffix. Where both years know a
    diagnosis, 2019 is used; raises InputError if they contradict each other.
    """
    root = Path(root)
    images = image_files(root / "ISIC2018_Task1-2_Training_Input", "isic_root")
    masks = image_files(root / "ISIC2018_Task1_Training_GroundTruth", "isic_root")

    def table(name, key):
        found = read_table(root / name).rename(columns={key: "id"})
        found["id"] = found["id"].str.removesuffix("_downsampled")
        return found

    truth = table("ISIC_2019_Training_GroundTruth.csv", "image")
    new = pd.DataFrame({"id": truth["id"], "diagnosis": _one_hot(truth)})
    truth = table("ISIC-2017_Training_Part3_GroundTruth.csv", "image_id")
    truth["nevus"] = 1 - truth.drop(columns="id").astype(float).max(axis=1)
    old = pd.DataFrame({"id": truth["id"], "diagnosis": _one_hot(truth)})
    both = new.merge(old, on="id", suffixes=("", "_2017"))
    conflict = both[both["diagnosis"] != both["diagnosis_2017"]]
    if len(conflict):
        raise InputError(
            root,
            f"2017 and 2019 disagree on the diagnosis of {list(conflict['id'])[:5]}",
            "correct one of the tables ISIC-2017_…Part3… or ISIC_2019_…GroundTruth",
        )
    labels = pd.concat([new, old]).drop_duplicates("id")
    meta = table("ISIC_2019_Training_Metadata.csv", "image").rename(
        columns={"age_approx": "age", "anatom_site_general": "site"}
    )
    attributes = table("ISIC2018_Task2_Training_attributes.csv", "id")
    labels = labels.merge(meta, on="id", how="outer").merge(attributes, on="id", how="outer")
    return _catalogue(images, masks, labels)


def catalogue(source: str, *, images="", masks="", table="", isic_root="") -> pd.DataFrame:
    """The catalogue of a source: `folders`, or the ISIC layout (`isic`, and phantoms)."""
    if source == "folders":
        for value, option in ((images, "--images"), (masks, "--masks")):
            if not value:
                raise InputError(
                    "settings",
                    f"source 'folders' without {option}",
                    "give --images DIR --masks DIR --table FILE",
                )
        return read_folders(resolve(images), resolve(masks), resolve(table) if table else "")
    return read_isic(resolve(isic_root))


def source_state(source: str, images="", masks="", table="", isic_root="") -> str:
    """Digest of names, sizes and times of all source files: it changes when the data do."""
    if source == "phantom":
        return "phantom"
    paths = [images, masks, table] if source == "folders" else [isic_root]
    files = [
        f
        for p in paths
        if p
        for f in (
            [resolve(p)]
            if resolve(p).is_file()
            else sorted(resolve(p).rglob("*"))
            if resolve(p).is_dir()
            else []
        )
    ]
    return digest([(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()])


def read_pair(image_path: str, mask_path: str, size: int):
    """One image (size, size, 3) uint8 RGB and its mask (size, size) of 0 and 1, squashed.

    Areas are averaged; a mask pixel is lesion where the average exceeds one half. Raises
    InputError that names the file: no mask, unreadable or truncated, of different sizes, empty.
    """
    if not mask_path:
        raise InputError(
            image_path,
            "no mask of the same stem",
            "add STEM.png or STEM_segmentation.png to the masks, or remove the image",
        )
    image = cv2.imread(image_path, cv2.IMREAD_COLOR)
    if image is None or not _complete(image_path):
        raise InputError(image_path, "the image is corrupt or truncated", "replace the file")
    mask = cv2.imread(mask_path, cv2.IMREAD_GRAYSCALE)
    if mask is None or not _complete(mask_path):
        raise InputError(mask_path, "the mask is corrupt or truncated", "replace the file")
    if mask.shape != image.shape[:2]:
        raise InputError(
            mask_path,
            f"the mask is {mask.shape[1]}x{mask.shape[0]} but its image "
            f"is {image.shape[1]}x{image.shape[0]} pixels",
            "export the mask at the size of the image",
        )
    lesion = (mask > (127 if mask.max() > 1 else 0)).astype(np.float32)
    small = cv2.resize(lesion, (size, size), interpolation=cv2.INTER_AREA) > 0.5
    if not small.any():
        raise InputError(
            mask_path,
            f"no lesion is left in the mask at {size} px",
            "remove the image or raise image_size",
        )
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), small.astype(np.uint8)


def _complete(path) -> bool:
    """False if a JPEG or PNG lacks its end marker: decoders fill the rest with grey."""
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(max(0, Path(path).stat().st_size - 64))
        end = file.read()
    if start[:2] == b"\xff\xd8":
        return b"\xff\xd9" in end
    return b"IEND" in end if start == b"\x89PNG" else True


def curate(table: pd.DataFrame, size: int, bad_inputs: str = "skip"):
    """Read every pair of a catalogue: images (N, size, size, 3), masks (N, size, size), table.

    The returned table has all rows, with `status` used or left out, and `reason` (file,
    problem, remedy). With bad_inputs='stop' the first problem is raised instead.
    """
    images, masks, reasons = [], [], []
    for image_path, mask_path in progress(
        list(zip(table["image"], table["mask"], strict=True)), desc="read"
    ):
        try:
            image, mask = read_pair(image_path, mask_path, size)
            images.append(image)
            masks.append(mask)
            reasons.append("")
        except InputError as error:
            if bad_inputs == "stop":
                raise
            reasons.append(str(error))
    table = table.assign(status=["left out" if r else "used" for r in reasons], reason=reasons)
    if len(images) < 20:
        first = next((r for r in reasons if r), "")
        raise InputError(
            Path(table["image"].iloc[0]).parent,
            f"only {len(images)} usable image-mask pairs; the study needs 20. {first}",
            "add images, or mend those that were left out",
        )
    return np.stack(images), np.stack(masks), table


def split(n: int, generator_share: float, seed: int) -> np.ndarray:
    """Uniformly random split names (n,): G, then S in train, val, test as 7:1:2 (paper, Sec. 3)."""
    n_generator = round(n * generator_share)
    n_segment = n - n_generator
    n_val, n_test = max(1, round(0.1 * n_segment)), max(1, round(0.2 * n_segment))
    names = np.repeat(SPLITS, [n_generator, n_segment - n_val - n_test, n_val, n_test])
    return names[np.random.default_rng([seed, 2018]).permutation(n)]


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


def save(run, images, masks, table, **facts):
    """Write the arrays and tables of a run (data/, tables/curation.csv) with their record."""
    folder = resolve(run)
    used = table[table["status"] == "used"]
    write_npy(folder / "data" / "images.npy", images)
    write_npy(folder / "data" / "masks.npy", masks)
    write_csv(folder / "tables" / "curation.csv", table)
    index = used.drop(columns=["status", "reason", "image", "mask"])
    write_csv(folder / "data" / "index.csv", index)
    fingerprint = digest(images, masks, index.to_csv(index=False).encode())
    record(folder / "data" / "index.csv", data=fingerprint, n=len(images), **facts)


def load(run) -> Study:
    """The study's arrays; raises InputError if notebook 01 has not been run."""
    folder = resolve(run) / "data"
    index = require(folder / "index.csv", "01_data")
    table = pd.read_csv(index, keep_default_na=False, na_values={a: [""] for a in ATTRIBUTES})
    facts = read_json(require(folder / "index.csv.json", "01_data"))
    return Study(
        np.load(require(folder / "images.npy", "01_data"), mmap_mode="r"),
        np.load(require(folder / "masks.npy", "01_data"), mmap_mode="r"),
        table,
        facts["data"],
    )


def add_prompts(table: pd.DataFrame, variant: str) -> pd.DataFrame:
    """The table with a column `prompt`."""
    return table.assign(prompt=prompts.of_table(table, variant))


def resized(images: np.ndarray, masks: np.ndarray, size: int):
    """Images (N, S, S, 3) and masks (N, S, S) at another size, areas averaged."""
    if images.shape[1] == size:
        return np.ascontiguousarray(images), np.ascontiguousarray(masks)
    small = [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images]
    soft = [
        cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        for mask in masks
    ]
    return np.stack(small), (np.stack(soft) > 0.5).astype(np.uint8)
