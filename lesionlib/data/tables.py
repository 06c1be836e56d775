"""Tables of labels as people save them: read, columns recognised, cells turned into labels.

`read_table` reads the file; `labels` turns it into our columns and says what it did not use.
"""

import csv
import io
import re
import unicodedata
from pathlib import Path, PureWindowsPath

import pandas as pd

from lesionlib.data.decoding import TYPES
from lesionlib.data.prompts import ATTRIBUTES, PEOPLE
from lesionlib.engine.errors import InputError
from lesionlib.engine.settings import nearest

LONGEST = 10_000  # most characters in a cell that is used
SEPARATORS = (",", ";", "\t", "|")
GROUPS = ["lesion_id", "patient_id"]  # images with an equal value stay in one part of the split
LABELS = ["diagnosis", *ATTRIBUTES, "age", "sex", "site", *GROUPS]
UNKNOWN = {"", "unknown", "nan", "na", "n/a", "none", "null", "-", "?"}
DIAGNOSES = {  # name in a source: our name
    "nevus": "nevus",
    "naevus": "nevus",
    "nv": "nevus",
    "nev": "nevus",
    "melanocytic nevus": "nevus",
    "common nevus": "nevus",
    "atypical nevus": "nevus",
    "melanoma": "melanoma",
    "mel": "melanoma",
    "seborrheic_keratosis": "benign keratosis",
    "seborrheic keratosis": "benign keratosis",
    "seborrhoeic keratosis": "benign keratosis",
    "sek": "benign keratosis",
    "bkl": "benign keratosis",
    "benign keratosis": "benign keratosis",
    "bcc": "basal cell carcinoma",
    "basal cell carcinoma": "basal cell carcinoma",
    "ak": "actinic keratosis",
    "ack": "actinic keratosis",
    "akiec": "actinic keratosis",
    "actinic keratosis": "actinic keratosis",
    "df": "dermatofibroma",
    "dermatofibroma": "dermatofibroma",
    "vasc": "vascular lesion",
    "vascular lesion": "vascular lesion",
    "scc": "squamous cell carcinoma",
    "squamous cell carcinoma": "squamous cell carcinoma",
}
ARCHIVE = {  # words in a diagnosis of the ISIC Archive's five levels: our name
    "nevus": "nevus",
    "melanoma": "melanoma",
    "seborrheic keratosis": "benign keratosis",
    "solar lentigo": "benign keratosis",
    "lichen planus like keratosis": "benign keratosis",
    "lichenoid keratosis": "benign keratosis",
    "pigmented benign keratosis": "benign keratosis",
    "basal cell carcinoma": "basal cell carcinoma",
    "actinic keratosis": "actinic keratosis",
    "squamous cell carcinoma": "squamous cell carcinoma",
    "dermatofibroma": "dermatofibroma",
    "angioma": "vascular lesion",
    "angiokeratoma": "vascular lesion",
    "vascular": "vascular lesion",
    "pyogenic granuloma": "vascular lesion",
}
LEVELS = [f"diagnosis_{level}" for level in (5, 4, 3, 2, 1)]  # from special to general
NAMES = {  # our column: its names in other tables, the likeliest first
    "id": ("image_id", "isic_id", "image", "image_name", "img_id", "filename", "file", "name"),
    "diagnosis": ("dx",),
    "site": ("anatom_site", "anatom_site_general", "localization", "localisation", "location"),
    "age": ("age_approx", "age_approximate"),
    "sex": ("gender",),
    "lesion_id": ("lesion",),
    "patient_id": ("patient",),
}
SEXES = {**{name: name for name in PEOPLE}, "f": "female", "w": "female", "m": "male"}
YES = {"1", "1.0", "true", "yes", "y", "t", "present", "ja", "x"}
NO = {"0", "0.0", "false", "no", "n", "f", "absent", "nein"}


def _text(path) -> str:
    """The text of a file in UTF-8, UTF-16 with a mark, or Windows' encoding of Western Europe."""
    data = Path(path).read_bytes()
    if data.startswith(b"PK\3\4") or b"\0" in data and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(
            path, "not text but a spreadsheet or another binary file", "save it as CSV"
        )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _separator(lines: list[str]) -> str:
    """The separator of a table: the one most frequent in its header; r'\\s+' for columns of spaces.

    A row of text without any is a table of one column.
    """
    counts = {mark: len(next(csv.reader([lines[0]], delimiter=mark))) for mark in SEPARATORS}
    best = max(counts, key=counts.get)
    if counts[best] > 1:
        return best
    widths = {len(line.split()) for line in lines}
    return r"\s+" if len(widths) == 1 and widths != {1} else ","


def read_table(path, option: str = "--table", header="infer") -> pd.DataFrame:
    """A table as text: separator and encoding are recognised, names and cells stripped.

    Column names are folded to lower case; rows and unnamed columns without content are dropped.
    `header` None is a table without one. Raises InputError if it is missing, empty or unreadable.
    """
    if not Path(path).is_file():
        raise InputError(path, "the table does not exist", f"correct the path ({option})")
    remedy = "save it as CSV, UTF-8"
    lines = _text(path).lstrip("\r\n").splitlines(keepends=True)
    if lines and re.match("sep=", lines[0], re.I):  # a line that spreadsheets write for themselves
        lines = lines[1:]
    filled = [line for line in lines[:50] if line.strip()]
    if not filled:
        raise InputError(path, "not a readable CSV (it is empty)", remedy)
    options = dict(dtype=str, keep_default_na=False, skipinitialspace=True, header=header)
    try:
        text = io.StringIO("".join(lines))
        table = pd.read_csv(text, sep=_separator(filled), index_col=False, **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise InputError(path, f"not a readable CSV ({error})", remedy) from error
    table = table.map(lambda cell: unicodedata.normalize("NFC", cell.strip()))
    table.columns = [str(name).strip().casefold() for name in table.columns]
    empty = (table == "").all()
    unnamed = table.columns.str.match(r"unnamed: \d+$") | (table.columns == "")
    table = table.loc[:, ~(unnamed & empty.to_numpy()) & ~table.columns.duplicated()]
    return table[(table != "").any(axis=1)].reset_index(drop=True)


def image_name(cell: str) -> str:
    """The name of an image in a table's cell: without folders and the ending of an image file."""
    path = PureWindowsPath(cell)
    return path.stem if path.suffix.lower() in TYPES else path.name


def check_lengths(path, cells: pd.Series):
    """Raise InputError if a cell that would be used is too long."""
    long = cells.str.len() > LONGEST
    if long.any():
        line = int(long.to_numpy().argmax()) + 2
        problem = f"line {line}, column '{cells.name}': it has more than {LONGEST:,} characters"
        raise InputError(path, problem, "correct it")


def renamed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with our names of columns, where it has not got them already."""
    for ours, others in NAMES.items():
        found = next((name for name in others if name in table), None)
        if ours not in table and found:
            table = table.rename(columns={found: ours})
    return table


def _unused(path, names, used) -> list[str]:
    """A WARNING that lists the columns that are not used; for labels that lack, the likely one."""
    if not names:
        return []
    ours = {other: name for name, others in NAMES.items() for other in (name, *others)}
    ours = {name: name for name in LABELS} | ours
    lacking = [other for other, name in ours.items() if name not in used]
    close = {name: near for name in names if (near := nearest(name, lacking, 0.75))}
    hints = "".join(f"; did you mean '{near}' by '{name}'?" for name, near in close.items())
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return [f"WARNING: {path}: columns that are not used: {listed}{hints}"]


def _cells(path, cells: pd.Series, what: str) -> list[str]:
    """A WARNING on cells of a column that are not what they should be, if there are any."""
    if cells.empty:
        return []
    shown = ", ".join(f"'{value[:40]}'" for value in cells.drop_duplicates().head(3))
    return [f"WARNING: {path}, column '{cells.name}': cells {what}: {len(cells)}, such as {shown}"]


def _one_hot(path, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table with a column `diagnosis` in place of a column 0/1 for each diagnosis.

    In ISIC 2017's tables of melanoma and seborrheic keratosis, neither is a nevus. Rows with more
    than one diagnosis get none, with a WARNING.
    """
    columns = [name for name in table if name in DIAGNOSES]
    if "diagnosis" in table or len(columns) < 2:
        return table, []
    hot = table[columns].apply(pd.to_numeric, errors="coerce").fillna(0)
    names = hot.idxmax(axis=1).map(DIAGNOSES).where(hot.max(axis=1) > 0, "")
    if set(columns) == {"melanoma", "seborrheic_keratosis"}:
        names = names.where(names != "", "nevus")
    several = (hot > 0.5).sum(axis=1) > 1
    clashes = table["id"][several].rename("diagnosis")
    notes = _cells(path, clashes, "that name more than one diagnosis")
    rest = table.drop(columns=[*columns, *table.columns.intersection(["unk"])])
    return rest.assign(diagnosis=names.where(~several, "")), notes


def _archive(path, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table with a column `diagnosis` in place of the ISIC Archive's five levels."""
    levels = [name for name in LEVELS if name in table]
    if "diagnosis" in table or not levels:
        return table, []

    def name(row) -> str:
        return next((ours for cell in row for words, ours in ARCHIVE.items() if words in cell), "")

    cells = table[levels].apply(lambda column: column.str.lower())
    names = cells.apply(name, axis=1)
    last = table[levels].where(table[levels] != "").bfill(axis=1).iloc[:, 0].fillna("")
    strange = last[(names == "") & (last != "")].rename("diagnosis_1 to _5")
    notes = _cells(path, strange, "that are none of our diagnoses, unknown now")
    return table.drop(columns=levels).assign(diagnosis=names), notes


def diagnoses(path, column: pd.Series) -> tuple[pd.Series, list[str]]:
    """Our names of diagnoses, '' for unknown ones, with a WARNING that names the nearest.

    Raises InputError if none is known.
    """
    lower, names = column.str.lower(), ARCHIVE | DIAGNOSES
    values = lower.map(names).fillna("")
    strange = column[values.eq("") & ~lower.isin(UNKNOWN)]
    if strange.empty:
        return values, []
    near = nearest(strange.iloc[0].lower(), names, 0.6)
    hint = f"did you mean '{near}'? " if near else ""
    if (values == "").all():
        problem = f"unknown diagnosis '{strange.iloc[0]}' ({len(strange)} rows, and none is known)"
        listed = ", ".join(sorted(set(DIAGNOSES.values())))
        raise InputError(path, problem, f"{hint}use one of {listed}, or none")
    (note,) = _cells(path, strange, "that are none of our diagnoses, unknown now")
    return values, [f"{note}. {hint}".strip()]


def flags(path, column: pd.Series) -> tuple[pd.Series, list[str]]:
    """A flag as '1', '0' or '' (unknown); WARNINGS for cells that are not 0, 1 or empty."""
    lower = column.str.lower()
    values = lower.map(dict.fromkeys(YES, "1") | dict.fromkeys(NO, "0")).fillna("")
    words = column[values.ne("") & ~lower.isin(("0", "1", "0.0", "1.0"))]
    notes = _cells(path, words, "with words, read as 1 (yes) or 0 (no)")
    # A minus sign may mean absent, or not looked at: it is no flag.
    strange = column[values.eq("") & ~lower.isin(UNKNOWN - {"-"})]
    return values, notes + _cells(path, strange, "that are no flag (0 or 1), unknown now")


def ages(path, column: pd.Series) -> tuple[pd.Series, list[str]]:
    """Ages in years as text, 55 and 55.0 alike; '' and a WARNING if not between 0 and 120."""
    numbers = pd.to_numeric(column.str.replace(",", ".", regex=False), errors="coerce")
    numbers = numbers.where(numbers.between(0, 120))
    strange = column[numbers.isna() & ~column.str.lower().isin(UNKNOWN)]
    text = numbers.map(lambda value: "" if pd.isna(value) else f"{value:g}")
    return text, _cells(path, strange, "that are no age in years, unknown now")


def _sexes(path, column: pd.Series) -> tuple[pd.Series, list[str]]:
    """The sex as female, male or ''; a WARNING for other words."""
    lower = column.str.lower()
    values = lower.map(SEXES).fillna("")
    strange = column[values.eq("") & ~lower.isin(UNKNOWN)]
    return values, _cells(path, strange, "that are neither female nor male, unknown now")


READERS = {"diagnosis": diagnoses, "age": ages, "sex": _sexes, **dict.fromkeys(ATTRIBUTES, flags)}


def find_id(path, table: pd.DataFrame, images) -> tuple[pd.DataFrame, list[str]]:
    """The table with its column of image names called `id`.

    If none has a known name, the one in which most cells name one of the `images`, with a WARNING.
    Raises InputError if there is none.
    """
    table = renamed(table)
    if "id" in table:
        return table, []
    hits = {name: table[name].map(image_name).isin(set(images)).mean() for name in table}
    best = max(hits, key=hits.get, default="")
    if not best or hits[best] < 0.5:
        raise InputError(
            path,
            f"no column 'id' among {', '.join(table.columns[:8])}",
            "name the column of the image names 'id'",
        )
    note = f"WARNING: {path}: the column '{best}' is taken for 'id': {hits[best]:.0%} are images"
    return table.rename(columns={best: "id"}), [note]


def labels(path, table: pd.DataFrame, images=()) -> tuple[pd.DataFrame, list[str]]:
    """Columns id and LABELS (as far as known, text) of a table, and WARNINGS on what is not used.

    `images`: names of the images, by which a column of ids with an unknown name is recognised.
    Raises InputError for a missing column of ids and for unknown diagnoses.
    """
    table, notes = find_id(path, table, images)
    for step in (_one_hot, _archive):
        table, more = step(path, table)
        notes += more
    used = ["id", *(name for name in LABELS if name in table)]
    notes += _unused(path, [name for name in table if name not in used], used)
    found = table[used].copy()
    for name in used:
        check_lengths(path, found[name])
    for name in filter(READERS.get, used):
        found[name], more = READERS[name](path, found[name])
        notes += more
    found["id"] = found["id"].map(image_name)
    nameless = found["id"] == ""
    if nameless.any():
        notes += [f"WARNING: {path}: rows without an id, not used: {nameless.sum()}"]
    return found[~nameless].reset_index(drop=True), notes


def _cause(ids, images) -> str:
    """The likely cause why ids of a table are the names of no images, or ''."""
    if {name.lstrip("0") or "0" for name in images} & set(ids):
        return "; the table has lost leading zeros, as spreadsheets do: format the column as text"
    if {name.casefold() for name in images} & {name.casefold() for name in ids}:
        return "; they differ in capitals"
    return ""


def matched(path, found: pd.DataFrame, images) -> tuple[pd.DataFrame, list[str]]:
    """The labels with the ids of their images, and a WARNING on rows that match no image.

    ISIC's suffix `_downsampled` is removed and capitals are folded where that finds the image.
    Raises InputError, with an example of both sides, if no row matches.
    """
    images = list(images)
    folded = pd.Series(images, index=[name.casefold() for name in images])
    folded = folded[~folded.index.duplicated(keep=False)].to_dict()
    known = set(images)

    def own(name: str) -> str:
        short = name if name in known else name.removesuffix("_downsampled")
        return short if short in known else folded.get(short.casefold(), short)

    found = found.assign(id=found["id"].map(own))
    lost = found["id"][~found["id"].isin(known)].drop_duplicates()
    if lost.empty or not images:
        return found, []
    example, cause = lost.iloc[0], _cause(lost, images)
    if len(lost) == found["id"].nunique():
        raise InputError(
            path,
            f"none of its {len(lost)} ids is the name of an image: '{example}' in the table, "
            f"'{images[0]}' among the {len(images)} images{cause}",
            "make the ids equal to the images' file names without their ending",
        )
    near = nearest(example, images)
    return found, [
        f"WARNING: {path}: ids that are no image: {len(lost)} of {found['id'].nunique()}, for "
        f"example '{example}' (the nearest image is '{near}'){cause}"
    ]
