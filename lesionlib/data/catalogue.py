"""The catalogue of a data source: image and mask files by id, joined with its label tables."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lesionlib.data.attribute_masks import attribute_flags
from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve
from lesionlib.engine.provenance import files_state

LONGEST = 10_000  # most characters in a cell of a table
LABELS = ["diagnosis", *ATTRIBUTES, "age", "sex", "site", "lesion_id"]
IMAGE_TYPES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
DIAGNOSES = {  # name in a source: our name
    "nevus": "nevus",
    "nv": "nevus",
    "melanoma": "melanoma",
    "mel": "melanoma",
    "seborrheic_keratosis": "benign keratosis",
    "seborrheic keratosis": "benign keratosis",
    "bkl": "benign keratosis",
    "benign keratosis": "benign keratosis",
    "bcc": "basal cell carcinoma",
    "basal cell carcinoma": "basal cell carcinoma",
    "ak": "actinic keratosis",
    "actinic keratosis": "actinic keratosis",
    "df": "dermatofibroma",
    "dermatofibroma": "dermatofibroma",
    "vasc": "vascular lesion",
    "vascular lesion": "vascular lesion",
    "scc": "squamous cell carcinoma",
    "squamous cell carcinoma": "squamous cell carcinoma",
}
COLUMN_NAMES = {  # column of another table: our column
    "image_id": "id",
    "image": "id",
    "isic_id": "id",
    "anatom_site": "site",
    "anatom_site_general": "site",
    "age_approx": "age",
    "age_approximate": "age",
}
UNKNOWN = {"", "unknown", "nan", "na", "none"}


@dataclass
class Catalogue:
    """The contents of a source: `table` has one row per image file, with paths and labels.

    `orphans` lists files and labels without an image (id, file, reason); `disagreements` lists
    labels on which sources contradict each other (id, label, sources, values); `joined` counts the
    matches of the joined tables.
    """

    table: pd.DataFrame
    orphans: pd.DataFrame
    disagreements: pd.DataFrame
    joined: pd.DataFrame = field(default_factory=pd.DataFrame)


def read_table(path, option: str = "--table") -> pd.DataFrame:
    """A CSV as text; raises InputError if it is missing, unreadable or unsafe.

    Unsafe are cells that a spreadsheet would run as formulas, and cells of more than `LONGEST`
    characters: both would be copied to our tables, prompts and pages.
    """
    if not Path(path).is_file():
        raise InputError(path, "the table does not exist", f"correct the path ({option})")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(path, f"not a readable CSV ({error})", "save it as CSV, UTF-8") from error
    for name, cells in table.items():
        problems = {
            "it begins like a formula": cells.str.match(r"\s*(=|@|[+-][^\d.\s])"),
            f"it has more than {LONGEST:,} characters": cells.str.len() > LONGEST,
        }
        for problem, bad in problems.items():
            if bad.any():
                line = int(bad.to_numpy().argmax()) + 2
                raise InputError(path, f"line {line}, column '{name}': {problem}", "correct it")
    return table


def image_files(folder, option: str) -> tuple[dict[str, Path], list[tuple]]:
    """Image files of a folder by stem (without `_segmentation`), and repeated stems.

    The latter are (id, file, reason). Raises InputError if there is no folder or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "the folder does not exist", f"correct the path ({option} DIR)")
    found, repeated = {}, []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_TYPES or "_superpixels" in path.stem:
            continue
        name = path.stem.removesuffix("_segmentation")
        if name in found:
            repeated.append(
                (name, str(path), f"a second file of this id; {found[name].name} is used")
            )
        else:
            found[name] = path
    if not found:
        raise InputError(
            folder,
            "no image files (jpg, png, bmp, tif)",
            f"give the folder that holds them ({option} DIR)",
        )
    return found, repeated


def _assemble(images, masks, labels, disagreements, joined=None, list_labels=False) -> Catalogue:
    """Join files and labels (one row per id); `list_labels`: labels without images are orphans."""
    (images, double_images), (masks, double_masks) = images, masks
    orphans = double_images + double_masks
    orphans += [(i, str(p), "a mask without image") for i, p in masks.items() if i not in images]
    if list_labels:
        orphans += [(i, "", "a label without image") for i in labels["id"] if i not in images]
    table = pd.DataFrame({"id": sorted(images)})
    table["image"] = [str(images[i]) for i in table["id"]]
    table["mask"] = [str(masks.get(i, "")) for i in table["id"]]
    table = table.merge(labels, on="id", how="left")
    table = table.reindex(columns=["id", "image", "mask", *LABELS])
    for name in ATTRIBUTES:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    words = [name for name in LABELS if name not in ATTRIBUTES]
    table[words] = table[words].fillna("")
    return Catalogue(
        table,
        pd.DataFrame(orphans, columns=["id", "file", "reason"]),
        disagreements,
        pd.DataFrame() if joined is None else joined,
    )


def _agreed(statements: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per id from the labels of several sources (columns id, source and labels).

    Contradictory labels are left empty, empty cells are ignored. Returns the labels and the
    disagreements.
    """
    columns = [name for name in LABELS if name in statements]
    cells = statements.melt(["id", "source"], columns, "label", "value")
    cells = cells[~cells["value"].astype(str).str.lower().isin(UNKNOWN) & cells["value"].notna()]
    values = cells.groupby(["id", "label"])["value"]
    agreed = values.first()[values.nunique() == 1].unstack("label")
    agreed = agreed.reindex(statements["id"].drop_duplicates().sort_values()).reset_index()
    split = values.nunique()[values.nunique() > 1].index
    clash = cells.set_index(["id", "label"]).loc[split] if len(split) else cells.iloc[:0]
    clash = clash.reset_index().groupby(["id", "label"], as_index=False)[["source", "value"]]
    clash = clash.agg(" | ".join).rename(columns={"source": "sources", "value": "values"})
    return agreed.reindex(columns=["id", *LABELS]), clash


def _number(values: pd.Series) -> pd.Series:
    """Ages as text, 55 and 55.0 alike; empty if not a number."""
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers.map(lambda x: "" if pd.isna(x) else f"{x:g}")


def read_csv_labels(table) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels and disagreements of a user's own CSV, whose columns the README explains.

    It needs a column `id` (or `image_id`, `image`, `isic_id`); `diagnosis`, the five attribute
    flags (0/1), `age`, `sex`, `site` and `lesion_id` are used if present. Raises InputError for a
    missing file or column, and for an unknown diagnosis.
    """
    labels = read_table(table)
    labels = labels.rename(columns={k: v for k, v in COLUMN_NAMES.items() if v not in labels})
    if "id" not in labels:
        raise InputError(
            table,
            f"no column 'id' among {', '.join(labels.columns[:8])}",
            "name the column of the image names 'id'",
        )
    labels["id"] = labels["id"].map(lambda value: Path(value).stem if "." in value else value)
    if "diagnosis" in labels:
        known = labels["diagnosis"].str.strip().str.lower()
        strange = sorted(set(known) - set(DIAGNOSES) - UNKNOWN)
        if strange:
            raise InputError(
                table,
                f"unknown diagnosis '{strange[0]}'",
                f"use one of {', '.join(sorted(set(DIAGNOSES.values())))}, or none",
            )
        labels["diagnosis"] = known.map(DIAGNOSES).fillna("")
    if "age" in labels:
        labels["age"] = _number(labels["age"])
    return _agreed(labels.assign(source=Path(table).name))


def read_prompt_labels(path) -> pd.DataFrame:
    """A user's CSV of labels to draw prompts from: columns as in `read_csv_labels`, and `weight`.

    Missing attributes count as absent, a missing weight as 1. Raises InputError for a missing
    file, a missing or unknown column, an unknown diagnosis, or a weight that is not positive.
    """
    table = read_table(resolve(path), "prompt_draw")
    unknown = set(table) - {"diagnosis", *ATTRIBUTES, "age", "sex", "site", "weight"}
    if "diagnosis" not in table or unknown:
        problem = f"unknown column '{min(unknown)}'" if unknown else "no column 'diagnosis'"
        remedy = f"use diagnosis, {', '.join(ATTRIBUTES)}, age, sex, site, weight"
        raise InputError(path, problem, remedy)
    strange = set(table["diagnosis"].str.lower()) - set(DIAGNOSES) - {""}
    if strange:
        names = ", ".join(sorted(set(DIAGNOSES.values())))
        raise InputError(path, f"unknown diagnosis '{min(strange)}'", f"use one of {names}")
    table["diagnosis"] = table["diagnosis"].str.lower().map(DIAGNOSES).fillna("")
    for name in ATTRIBUTES:
        table[name] = pd.to_numeric(table[name], errors="coerce") if name in table else 0
        table[name] = table[name].fillna(0)
    table["weight"] = pd.to_numeric(table["weight"], errors="coerce") if "weight" in table else 1
    if not len(table) or not (table["weight"] > 0).all():
        raise InputError(path, "weights must be positive numbers", "correct the column 'weight'")
    return table


def _one_hot(table: pd.DataFrame) -> pd.Series:
    """Our name of the diagnosis whose column is 1, for each row; empty if none is."""
    flags = table.drop(columns="id").apply(pd.to_numeric, errors="coerce").fillna(0)
    names = flags.idxmax(axis=1).str.lower().map(DIAGNOSES)
    return names.where(flags.max(axis=1) > 0).fillna("")


def _isic_table(root, pattern: str, remedy: str) -> pd.DataFrame:
    """All tables of a folder that match, joined, column `id` first and without `_downsampled`."""
    paths = sorted(Path(root).glob(pattern))
    if not paths:
        raise InputError(Path(root) / pattern, "the table does not exist", remedy)
    found = pd.concat([read_table(path) for path in paths], ignore_index=True)
    found = found.rename(columns={found.columns[0]: "id"})
    found["downsampled"] = found["id"].str.endswith("_downsampled")
    found["id"] = found["id"].str.removesuffix("_downsampled")
    return found


def read_isic_labels(root):
    """Labels of a folder of ISIC tables (2017 Part 3, 2018 Task 2, 2019), joined by id.

    The 2019 tables name many images `ISIC_…_downsampled`; the suffix is removed. Returns labels
    (one row per id), disagreements, and counts of matches among the ids of 2018 Task 1-2. Raises
    InputError for a missing table.
    """
    root = Path(root)
    remedy = "run python -m lesionlib.data.download, or give the folder of the tables"
    truth = _isic_table(root, "ISIC_2019_Training_GroundTruth*.csv", remedy)
    new = pd.DataFrame({"id": truth["id"], "source": "2019"})
    new["diagnosis"] = _one_hot(truth.drop(columns="downsampled"))
    suffixed = set(truth["id"][truth["downsampled"]])
    truth = _isic_table(root, "ISIC-2017_*_Part3_GroundTruth*.csv", remedy)
    truth = truth.drop(columns="downsampled")
    truth["nevus"] = 1 - truth.drop(columns="id").astype(float).max(axis=1)
    old = pd.DataFrame({"id": truth["id"], "source": "2017", "diagnosis": _one_hot(truth)})
    clinical = _isic_table(root, "ISIC_2019_Training_Metadata*.csv", remedy)
    clinical = clinical.rename(columns=COLUMN_NAMES).assign(source="2019 metadata")
    parts = [new, old, clinical]
    if list(root.glob("ISIC-2017_*_metadata.csv")):  # only in the zips of the 2017 images
        earlier = _isic_table(root, "ISIC-2017_*_metadata.csv", remedy)
        parts.append(earlier.rename(columns=COLUMN_NAMES).assign(source="2017 metadata"))
    for part in parts[2:]:
        part["age"] = _number(part["age"])
    attributes = attribute_flags(root)[["id", *ATTRIBUTES]].astype(str)
    parts.append(attributes.assign(source="2018 Task 2"))
    stated = pd.concat(parts, ignore_index=True).drop(columns="downsampled", errors="ignore")
    labels, clashes = _agreed(stated)
    years = {"2017": set(old["id"]), "2019": set(new["id"])}
    listed = set(attributes["id"])
    counts = _join_counts(labels, listed, years, suffixed, clashes)
    part = new[new["id"].isin(listed)]["diagnosis"].value_counts()
    diagnoses = pd.DataFrame({"fact": "2019 says " + part.index, "images": part.to_numpy()})
    return labels, clashes, pd.concat([counts, diagnoses], ignore_index=True)


def _join_counts(labels, listed, years, suffixed, clashes) -> pd.DataFrame:
    """Counts of matches for the ids of 2018 Task 1-2 (those of the attribute table)."""
    part = labels[labels["id"].isin(listed)]
    flags = part[list(ATTRIBUTES)].astype(float)
    facts = {
        "ids of 2018 Task 1-2": len(part),
        "of these in 2019": len(listed & years["2019"]),
        "named …_downsampled there": len(listed & suffixed),
        "of these in 2017": len(listed & years["2017"]),
    }
    facts |= {f"diagnosis: {k}": v for k, v in part["diagnosis"].value_counts().items()}
    facts["diagnosis unknown"] = int(part["diagnosis"].isna().sum())
    facts |= {f"attribute: {name}": int(flags[name].sum()) for name in ATTRIBUTES}
    facts["no attribute"] = int((flags.sum(axis=1) == 0).sum())
    facts |= {f"{name} known": int(part[name].notna().sum()) for name in LABELS[-4:]}
    repeated = part["lesion_id"].dropna().value_counts()
    facts["different lesion_id"] = len(repeated)
    facts["lesion_id with several images"] = int((repeated > 1).sum())
    facts["images of such lesions"] = int(repeated[repeated > 1].sum())
    facts["labels on which sources disagree"] = int(clashes["id"].isin(listed).sum())
    return pd.DataFrame({"fact": facts.keys(), "images": facts.values()})


def pair_folders(source) -> tuple[Path, Path]:
    """Folders of images and masks: `source`/images and `source`/masks, or IMAGES:MASKS."""
    images, separator, masks = str(source).rpartition(":")
    if separator:
        return resolve(images), resolve(masks)
    return resolve(source) / "images", resolve(source) / "masks"


def read_folders(images, masks, table) -> Catalogue:
    """The catalogue of a user's own folders; `table` is a CSV, a folder of ISIC tables, or ''.

    Raises InputError for missing folders, files or columns, and unknown diagnoses.
    """
    files = image_files(images, "--images"), image_files(masks, "--masks")
    if table and Path(table).is_dir():
        return _assemble(*files, *read_isic_labels(table))
    if table:
        return _assemble(*files, *read_csv_labels(table), list_labels=True)
    labels = pd.DataFrame(columns=["id", *LABELS], dtype=str)
    return _assemble(*files, labels, pd.DataFrame(columns=["id", "label", "sources", "values"]))


def read_isic(root) -> Catalogue:
    """The catalogue of unpacked ISIC downloads (2018 Task 1 and 2, labels of 2017 and 2019)."""
    root = Path(root)
    images = image_files(root / "ISIC2018_Task1-2_Training_Input", "isic_root")
    masks = image_files(root / "ISIC2018_Task1_Training_GroundTruth", "isic_root")
    return _assemble(images, masks, *read_isic_labels(root))


def read(source: str, *, images="", masks="", table="", isic_root="") -> Catalogue:
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


def pairs_state(source) -> str:
    """Digest of all files of external pairs (see `pair_folders`); it changes when they do."""
    return files_state(*str(source).split(":"))


def source_state(source: str, images="", masks="", table="", isic_root="") -> str:
    """Digest of names, sizes and times of all source files; it changes when they do."""
    if source == "phantom":
        return "phantom"
    return files_state(*([images, masks, table] if source == "folders" else [isic_root]))
