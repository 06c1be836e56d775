"""The catalogue of a data source: image and mask files by id, joined with its label tables.

`read` reads any source by its settings; `layouts` knows how public sources lie on a disk.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lesionlib.data import layouts, pairing, tables
from lesionlib.data.attribute_masks import attribute_flags, attribute_sources
from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.data.tables import DIAGNOSES, LABELS, UNKNOWN
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve
from lesionlib.engine.provenance import digest, files_state

CLASHES = ["id", "label", "sources", "values"]
OPTIONAL = ["patient_id", "official"]  # columns that only some sources have
ALWAYS = [name for name in LABELS if name not in OPTIONAL]
CLINICAL = ["age", "sex", "site", "lesion_id"]
ISIC_TABLES = {  # without which `read_isic_labels` does nothing, and what they say
    "ISIC_2019_Training_GroundTruth*.csv": "diagnoses of 2019",
    "ISIC-2017_*_Part3_GroundTruth*.csv": "diagnoses of 2017",
    "ISIC_2019_Training_Metadata*.csv": "age, sex, site and lesion_id",
}


@dataclass
class Catalogue:
    """The contents of a source: `table` has one row per image file, with paths and labels.

    `orphans` lists files and labels without an image (id, file, reason); `disagreements` lists
    labels on which sources contradict each other (id, label, sources, values); `joined` counts the
    matches of the joined tables; `notes` are sentences on what was found, and WARNINGS.
    """

    table: pd.DataFrame
    orphans: pd.DataFrame
    disagreements: pd.DataFrame
    joined: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: list[str] = field(default_factory=list)


def image_files(folder, option: str) -> tuple[dict[str, Path], list[tuple]]:
    """Image files of a folder by name (without `_segmentation`), and those that are not used.

    The latter are (id, file, reason). Raises InputError if there is no folder or no image in it.
    """
    files = pairing.list_files(folder, option)
    return {name.removesuffix("_segmentation"): p for name, p in files.found.items()}, files.unused


def _files(images, masks) -> tuple[pairing.Files, pairing.Files, list[str]]:
    """The files in folders of images and masks; those of one folder given for both told apart."""
    one, other = pairing.list_files(images, "--images"), pairing.list_files(masks, "--masks")
    shared = {path.resolve() for path in one.found.values()} & {
        path.resolve() for path in other.found.values()
    }
    if not shared:
        return one, other, []
    of_images, of_masks, suffix = pairing.divide(one.found, one.folder)
    other = pairing.Files(one.folder, {name: one.found[name] for name in of_masks})
    one.found = {name: one.found[name] for name in of_images}
    return one, other, [f"NOTE: images and masks lie in one folder: masks end in '{suffix}'"]


def _warning(rows, what: str) -> list[str]:
    """A WARNING with the number of `rows` and the first as an example, if there are any."""
    rows = list(rows)
    return [f"WARNING: {what}: {len(rows)}, for example {rows[0]}"] if rows else []


def _file_notes(files, option: str) -> list[str]:
    """How many pictures a folder holds, and what lies beside them."""
    beside = ", ".join(f"{number} {kind}" for kind, number in sorted(files.beside.items()))
    note = f"NOTE: {len(files.found)} {option} in {files.folder}"
    return [note + (f"; beside them: {beside}" if beside else "")]


def _left_masks(masks, pairs) -> list[tuple]:
    """Rows (id, file, reason) of masks that no image uses."""
    taken, rows = set(pairs.values()), []
    images = {name.casefold() for name in pairs}
    for name in sorted(masks.found.keys() - taken):
        cores = {name.casefold().removesuffix(end) for end in ("", *pairing.SUFFIXES)}
        reason = "a second mask of an image" if cores & images else "a mask without image"
        rows.append((name, str(masks.found[name]), reason))
    return rows


def _frame(images, masks, pairs) -> pd.DataFrame:
    """Columns id, image and mask ('' if there is none) of all images, by id."""
    names = sorted(images.found)
    paths = [str(images.found[name]) for name in names]
    shapes = [str(masks.found[pairs[name]]) if name in pairs else "" for name in names]
    return pd.DataFrame({"id": names, "image": paths, "mask": shapes}, dtype=str)


def _paired(images, masks) -> Catalogue:
    """The catalogue of folders of images and masks, without labels."""
    images, masks, notes = _files(images, masks)
    pairs, said = pairing.pair(images.found, masks.found)
    notes += [*_file_notes(images, "images"), *_file_notes(masks, "masks")]
    notes += [f"NOTE: {line}" for line in said]
    orphans = [*images.unused, *masks.unused, *_left_masks(masks, pairs)]
    listed = pd.DataFrame(orphans, columns=["id", "file", "reason"])
    table = _frame(images, masks, pairs)
    reasons = listed["reason"].map(lambda reason: reason.partition(";")[0])
    for reason, group in listed.groupby(reasons.rename("why")):
        notes += _warning(group["file"], f"files left out ({reason})")
    return Catalogue(table, listed, pd.DataFrame(columns=CLASHES), notes=notes)


def _joined(found: Catalogue, labels, clashes, joined=None) -> Catalogue:
    """A catalogue of files with labels (one row per id) and their disagreements."""
    table = found.table.merge(labels, on="id", how="left")
    optional = [name for name in OPTIONAL if name in table and table[name].fillna("").ne("").any()]
    table = table.reindex(columns=["id", "image", "mask", *ALWAYS, *optional])
    for name in ATTRIBUTES:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    words = [name for name in table.columns[3:] if name not in ATTRIBUTES]
    table[words] = table[words].fillna("")
    where = clashes["id"] + ": " + clashes["label"] + " " + clashes["values"]
    notes = found.notes + _warning(where, "labels left empty since rows disagree")
    joined = pd.DataFrame() if joined is None else joined
    return Catalogue(table, found.orphans, clashes, joined, notes)


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
    clash = clash.reset_index().groupby(["id", "label"])[["source", "value"]].agg(" | ".join)
    clash = clash.reset_index().rename(columns={"source": "sources", "value": "values"})
    return agreed.reindex(columns=["id", *LABELS]), clash


def _own_table(found: Catalogue, path) -> Catalogue:
    """A catalogue of files with the labels of a user's own table.

    It needs a column of ids (`id`, or another name in `tables.NAMES`); LABELS are used if present.
    Raises InputError for a missing file or column, an unknown diagnosis, and if no row matches.
    """
    images = found.table["id"]
    labels, notes = tables.labels(path, tables.read_table(path), images)
    labels, more = tables.matched(path, labels, images)
    found.notes += notes + more
    lost = labels["id"][~labels["id"].isin(images)].drop_duplicates()
    rows = pd.DataFrame({"id": lost, "file": "", "reason": "a label without image"})
    found.orphans = pd.concat([found.orphans, rows], ignore_index=True)
    found.notes += _warning(images[~images.isin(labels["id"])], f"images without a row in {path}")
    return _joined(found, *_agreed(labels.assign(source=Path(path).name)))


def read_prompt_labels(path) -> pd.DataFrame:
    """A user's CSV of labels to draw prompts from: columns as in `tables.labels`, and `weight`.

    Missing attributes count as absent, a missing weight as 1. Raises InputError for a missing
    file, a missing or unknown column, an unknown diagnosis, a flag that is not 0 or 1, or a weight
    that is not positive.
    """
    table = tables.read_table(resolve(path), "prompt_draw")
    unknown = set(table) - {"diagnosis", *ATTRIBUTES, "age", "sex", "site", "weight"}
    if "diagnosis" not in table or unknown:
        problem = f"unknown column '{min(unknown)}'" if unknown else "no column 'diagnosis'"
        remedy = f"use diagnosis, {', '.join(ATTRIBUTES)}, age, sex, site, weight"
        raise InputError(path, problem, remedy)
    table["diagnosis"], problems = tables.diagnoses(path, table["diagnosis"])
    if problems:
        raise InputError(path, problems[0].partition(", ")[2], "correct the column 'diagnosis'")
    for name in ATTRIBUTES:
        flags, problems = tables.flags(path, table[name]) if name in table else ("0", [])
        if problems:
            raise InputError(path, f"column '{name}' has cells that are not 0 or 1", "correct them")
        table[name] = pd.Series(flags, table.index).replace("", "0").astype(int)
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
    found = pd.concat([tables.read_table(path) for path in paths], ignore_index=True)
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
    of_2019, of_2017, of_people = ISIC_TABLES
    truth = _isic_table(root, of_2019, remedy)
    new = pd.DataFrame({"id": truth["id"], "source": "2019"})
    new["diagnosis"] = _one_hot(truth.drop(columns="downsampled"))
    suffixed = set(truth["id"][truth["downsampled"]])
    truth = _isic_table(root, of_2017, remedy)
    truth = truth.drop(columns="downsampled")
    truth["nevus"] = 1 - truth.drop(columns="id").astype(float).max(axis=1)
    old = pd.DataFrame({"id": truth["id"], "source": "2017", "diagnosis": _one_hot(truth)})
    clinical = _isic_table(root, of_people, remedy)
    clinical = tables.renamed(clinical).assign(source="2019 metadata")
    parts = [new, old, clinical]
    if list(root.glob("ISIC-2017_*_metadata.csv")):  # only in the zips of the 2017 images
        earlier = _isic_table(root, "ISIC-2017_*_metadata.csv", remedy)
        parts.append(tables.renamed(earlier).assign(source="2017 metadata"))
    for part in parts[2:]:
        part["age"] = tables.ages(root, part["age"])[0]
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
    facts |= {f"{name} known": int(part[name].notna().sum()) for name in CLINICAL}
    repeated = part["lesion_id"].dropna().value_counts()
    facts["different lesion_id"] = len(repeated)
    facts["lesion_id with several images"] = int((repeated > 1).sum())
    facts["images of such lesions"] = int(repeated[repeated > 1].sum())
    facts["labels on which sources disagree"] = int(clashes["id"].isin(listed).sum())
    return pd.DataFrame({"fact": facts.keys(), "images": facts.values()})


def pair_folders(source) -> tuple[Path, Path | str]:
    """Folders of images and masks of a set of pairs.

    `source` is IMAGES:MASKS, a folder with images/ and masks/, or one of a public source or with
    both kinds of files in it, whose folder of masks is ''.
    """
    images, separator, masks = str(source).rpartition(":")
    if separator and not resolve(source).is_dir():
        return resolve(images), resolve(masks)
    root = resolve(source)
    places = root / "images", root / "masks"
    return (root, "") if root.is_dir() and not all(map(Path.is_dir, places)) else places


def own_places(images, masks) -> tuple:
    """Folders of images and masks; without `masks`, those inside of `images`, or it for both."""
    if masks:
        return images, masks
    inner = [layouts.own_folder(images, what) for what in ("images", "masks")]
    if all(inner):
        return inner[0][0], inner[1][0]
    try:
        files = pairing.list_files(images, "--images")
        pairing.divide(files.found, files.folder)
    except InputError as error:
        raise InputError(
            images,
            "no public source is recognised in it, and it was given without --masks",
            "give --images DIR --masks DIR --table FILE",
        ) from error
    return images, images


def read_folders(images, masks="", table="") -> Catalogue:
    """The catalogue of a user's own folders; `table` is a CSV, a folder of ISIC tables, or ''.

    Raises InputError for missing folders, files or columns, and unknown diagnoses.
    """
    found = _paired(*own_places(images, masks))
    if table and Path(table).is_dir():
        return _joined(found, *read_isic_labels(table))
    if table:
        return _own_table(found, table)
    labels = pd.DataFrame(columns=["id", *LABELS], dtype=str)
    return _joined(found, labels, found.disagreements)


def _lacking(root) -> list[str]:
    """What a folder of ISIC 2018 has no labels of: its missing tables, and what they say."""
    found = [f"{told} ({name})" for name, told in ISIC_TABLES.items() if not [*root.glob(name)]]
    places = attribute_sources(root)
    named = " or ".join(path.name for path in places)
    return found if any(map(Path.exists, places)) else [*found, f"attributes ({named})"]


def _layout_labels(name: str, found: Catalogue, paths, root) -> Catalogue:
    """A catalogue of files with the labels of a public source's own tables."""
    parts, images = [], found.table["id"]
    if name == "isic2018":
        lacking = _lacking(Path(root))
        if not lacking:
            return _joined(found, *read_isic_labels(root))
        found.notes.append(
            f"WARNING: {root}: labels that are not there: {'; '.join(lacking)}; "
            "python -m lesionlib.data.download fetches them"
        )
        if any(map(Path.exists, attribute_sources(root))):
            flags = attribute_flags(root)[["id", *ATTRIBUTES]].astype(str)
            parts.append(flags.assign(source="2018 Task 2"))
    for path in paths:
        labels, notes = tables.labels(path, layouts.read_table(name, path), images)
        parts.append(labels.assign(source=Path(path).name))
        found.notes += [note.replace("WARNING", "NOTE") for note in notes]
    if not parts:
        found.notes.append("WARNING: no table of labels lies beside the images: no prompt has any")
        return _joined(found, pd.DataFrame(columns=["id", *LABELS]), found.disagreements)
    labels, notes = tables.matched(
        paths[0] if paths else root, pd.concat(parts, ignore_index=True), images
    )
    found.notes += [note.replace("WARNING", "NOTE") for note in notes]
    found.notes += _warning(
        images[~images.isin(labels["id"])], "images without a row in the tables"
    )
    return _joined(found, *_agreed(labels))


def read_layout(name: str, root, masks="", table="") -> Catalogue:
    """The catalogue of a public source as it was unpacked below `root` (`layouts.LAYOUTS`).

    `masks` and `table` replace its own. Rows have the official part, if there is one, in the column
    `official`. Raises InputError if the source is not there or has no masks.
    """
    place = layouts.search(root).get(name)
    layout = layouts.LAYOUTS[name]
    if place is None:
        folders = ", ".join(images for _, images, _ in layout.parts) or "metadata.csv beside images"
        raise InputError(
            root, f"no {layout.title} in it ({folders})", "correct --images, or source"
        )
    parts, official = [], {}
    for part, images, own in place.parts:
        if not masks and not own:
            problem = f"{images[0].name} has no folder of masks"
            raise InputError(root, problem, "unpack the masks beside it, or give --masks DIR")
        parts.append(_paired(images, masks or own))
        official |= dict.fromkeys(parts[-1].table["id"], part)
    found = Catalogue(
        pd.concat([one.table for one in parts], ignore_index=True),
        pd.concat([one.orphans for one in parts], ignore_index=True),
        parts[0].disagreements,
        notes=[*layouts.terms(name), *(note for one in parts for note in one.notes)],
    )
    if any(official.values()):
        found.table["official"] = found.table["id"].map(official)
    return _own_table(found, table) if table else _layout_labels(name, found, place.tables, root)


def read_isic(root, official: bool = False) -> Catalogue:
    """The catalogue of the ISIC downloads (2018 Task 1 and 2, labels of 2017 and 2019).

    Without `official`, the training set alone.
    """
    root = Path(root)
    if official:
        return read_layout("isic2018", root)
    places = ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth")
    return _joined(_paired(*(root / place for place in places)), *read_isic_labels(root))


def public_source(images, masks="") -> str:
    """The public source that lies below a folder (`layouts.detect`), '' for a user's own folders.

    A folder of images alone, to which masks are given, is a user's own, unless it is one of the
    ISIC Archive. Raises InputError if there is more than one source.
    """
    root = resolve(images)
    name = layouts.detect(root)
    if not masks or name in ("", "isic_archive"):
        return name
    parts = layouts.search(root)[name].parts
    return "" if any(root in folders for _, folders, _ in parts) else name


def read(source: str, *, images="", masks="", table="", isic_root="", official=False) -> Catalogue:
    """The catalogue of a source: own `folders`, a public one, or the ISIC downloads and phantoms.

    `official`: with the official validation and test sets of the ISIC downloads.
    """
    if source in ("isic", "phantom"):
        return read_isic(resolve(isic_root), official)
    if not images:
        remedy = "give --images DIR --masks DIR --table FILE"
        raise InputError("settings", f"source '{source}' without --images", remedy)
    images, masks, table = (resolve(one) if one else "" for one in (images, masks, table))
    name = public_source(images, masks) if source == "folders" else source
    return read_layout(name, images, masks, table) if name else read_folders(images, masks, table)


def read_pairs(source) -> Catalogue:
    """The catalogue of a set of pairs, without labels (`pair_folders`)."""
    images, masks = pair_folders(source)
    return read("folders", images=images, masks=masks)


def pairs_state(source) -> str:
    """Digest of all files of external pairs, and of what lies beside them; it changes when they do.

    `source` as for `pair_folders`; `trained_on.csv` and `generated/` count too.
    """
    whole = resolve(source).is_dir()
    return files_state(source) if whole else files_state(*filter(None, pair_folders(source)))


def files_read(stage: str, settings) -> str:
    """Digest of names, sizes and times of the user's files that a stage reads; '' if it reads none.

    `settings` has the groups that the stage reads as attributes.
    """
    if stage == "02_masks":
        return files_state(settings.masks.prompt_draw)
    if stage != "01_data":
        return ""
    own = settings.data
    source = {"isic": [own.isic_root], "phantom": []}.get(
        own.source, [own.images, own.masks, own.table]
    )
    tests = {name: pairs_state(folder) for name, folder in own.external_tests.items()}
    return digest(files_state(*source, own.split), tests)
