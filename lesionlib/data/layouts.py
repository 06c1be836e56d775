"""How public sources of dermoscopic images lie on a disk once they are unpacked.

`LAYOUTS` is the table of names: folders of images and masks by official part, label tables, terms.
A folder is recognised by its name, wherever it lies below the given one.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lesionlib.data import tables
from lesionlib.engine.errors import InputError

DEPTH = 5  # levels below the given folder that are searched
OWN = {  # names of folders inside a user's own
    "images": ("images", "image", "img", "imgs"),
    "masks": ("masks", "mask", "segmentations", "segmentation", "labels", "groundtruth", "gt"),
}


@dataclass(frozen=True)
class Layout:
    """A public source. Names are regular expressions, compared without regard to capitals.

    `parts` are (official part or '', folders of images, folders of masks); `tables` are the files
    of labels; `overlap` says which of its pictures occur elsewhere.
    """

    title: str
    licence: str
    citation: str
    overlap: str
    parts: tuple
    tables: tuple = ()


_PART1 = r"isic-2017_{}_data", r"isic-2017_{}_part1_groundtruth"
_TASK1 = r"isic2018_task1-2_{}_input", r"isic2018_task1_{}_groundtruth"
_2016 = r"isbi2016_isic_part1_{}_data", r"isbi2016_isic_part1_{}_groundtruth"
_UNSURE = "not verified: read the licence and attribution files that lie beside the images"


def _parts(names, **places) -> tuple:
    """(official part, image folders, mask folders) with the source's word for each part."""
    return tuple((part, *(name.format(word) for name in names)) for part, word in places.items())


LAYOUTS = {
    "ham10000": Layout(
        "HAM10000, masks by Tschandl",
        "CC BY-NC 4.0",
        "Tschandl et al. 2018, Sci. Data 5, 180161; Tschandl et al. 2020, Nat. Med. 26, 1229",
        "ISIC 2018 Task 3 and a part of ISIC 2019; no image of ISIC 2018 Task 1. Images of one "
        "lesion_id show one lesion, and further duplicates are known (arXiv:2401.14497)",
        (("", r"ham10000_images.*", r"ham10000_segmentations.*"),),
        (r"ham10000_metadata(\.csv|\.tab|\.txt)?",),
    ),
    "ph2": Layout(
        "PH2",
        "research and education only, no redistribution",
        "Mendonca et al. 2013, IEEE EMBC, 5437",
        "none known with ISIC",
        (("", r"imd\d+_dermoscopic_image", r"imd\d+_lesion"),),
        (r"ph2_dataset\.txt", r"ph2_dataset\.csv"),
    ),
    "isic2016": Layout(
        "ISIC 2016 Part 1",
        f"understood to be CC0, {_UNSURE}",
        "Gutman et al. 2016, arXiv:1605.01397",
        "at least 339 of the 379 test images are in the training set of ISIC 2018",
        _parts(_2016, train="training", test="test"),
        (r"isbi2016_isic_part3_\w+_groundtruth\.csv",),
    ),
    "isic2017": Layout(
        "ISIC 2017 Part 1",
        f"understood to be CC0, {_UNSURE}",
        "Codella et al. 2017, arXiv:1710.05006",
        "1,800 of the training, 121 of the validation and at least 528 of the 600 test images are "
        "in the training set of ISIC 2018",
        _parts(_PART1, train="training", val="validation", test=r"test(?:_v2)?"),
        (r"isic-2017_\w+_part3_groundtruth.*\.csv", r"isic-2017_\w+_metadata\.csv"),
    ),
    "isic2018": Layout(
        "ISIC 2018 Task 1",
        f"understood to be CC0, but also listed as CC BY-NC 4.0, {_UNSURE}",
        "Codella et al. 2018, arXiv:1902.03368; Tschandl et al. 2018, Sci. Data 5, 180161",
        "contains most of ISIC 2016 and 2017; config/isic2018_near_duplicates.csv lists 41 pairs",
        _parts(_TASK1, train="training", val="validation", test="test"),
        (
            r"isic_2019_training_(groundtruth|metadata).*\.csv",
            r"isic-2017_\w+_part3_groundtruth.*\.csv",
            r"isic-2017_\w+_metadata\.csv",
        ),
    ),
    "isic_archive": Layout(
        "a download of the ISIC Archive",
        "by image, column copyright_license of metadata.csv",
        "ISIC Archive, https://www.isic-archive.com, and the attribution of each image",
        "holds the images of all ISIC challenges, of HAM10000 and of BCN20000",
        (),
        (r"metadata.*\.csv",),
    ),
}


@dataclass
class Found:
    """A layout on the disk: (official part, image folders, mask folders), and tables."""

    parts: list = field(default_factory=list)
    tables: list = field(default_factory=list)


def _outermost(folders: list[Path]) -> list[Path]:
    """Folders without those below another one: unpacking often doubles a name."""
    return [path for path in folders if not set(path.parents) & set(folders)]


def _listing(root) -> tuple[list[Path], list[Path]]:
    """Folders below `root`, itself included, and files, to a depth of `DEPTH`."""
    folders, files, root = [], [], Path(root)
    for place, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if name != "__MACOSX" and name[0] != ".")
        folders.append(Path(place))
        files += [Path(place, name) for name in sorted(names) if not name.startswith("._")]
        if len(Path(place).relative_to(root).parts) >= DEPTH:
            inner.clear()
    return folders, files


def _is_archive(path: Path) -> bool:
    """Whether a file is the ISIC Archive's metadata: a table with isic_id and images beside it."""
    with open(path, errors="replace") as file:
        first = file.readline(2000).lower()
    beside = any(
        other.suffix.lower() in (".jpg", ".jpeg", ".png") for other in path.parent.iterdir()
    )
    return "isic_id" in first and beside


def search(root) -> dict[str, Found]:
    """The public sources that lie below `root`, by name."""
    folders, files = _listing(root)

    def of(paths, pattern):
        return [path for path in paths if re.fullmatch(pattern, path.name, re.I)]

    result = {}
    for name, layout in LAYOUTS.items():
        found = Found()
        for part, images, masks in layout.parts:
            places = [_outermost(of(folders, pattern)) for pattern in (images, masks)]
            if places[0]:
                found.parts.append((part, *places))
        found.tables = [path for pattern in layout.tables for path in of(files, pattern)]
        if name == "isic_archive":
            found.tables = [path for path in found.tables if _is_archive(path)]
            found.parts = [("", [path.parent], _masks_beside(path)) for path in found.tables[:1]]
        if found.parts:
            result[name] = found
    return result


def _masks_beside(table: Path) -> list[Path]:
    """The folder of masks beside a table of the ISIC Archive, in a list; [] if there is none."""
    return own_folder(table.parent, "masks")


def own_folder(root, what: str) -> list[Path]:
    """The subfolder of `root` that is called like images or masks (`what`), in a list, or []."""
    inner = sorted(path for path in Path(root).iterdir() if path.is_dir())
    return [path for path in inner if path.name.lower() in OWN[what]][:1]


def detect(root, option: str = "--images") -> str:
    """The name of the public source below a folder, or '' if there is none.

    Raises InputError if there are several.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(root, "the folder does not exist", f"correct the path ({option} DIR)")
    names = list(search(root))
    if len(names) > 1:
        raise InputError(
            root,
            f"it holds {', '.join(LAYOUTS[name].title for name in names)}",
            f"give the folder of one of them, or name it: --config source={names[0]}",
        )
    return names[0] if names else ""


def terms(name: str) -> list[str]:
    """Sentences on a source: what it is, its licence, what to cite, what it shares with others."""
    one = LAYOUTS[name]
    return [
        f"NOTE: source: {one.title} (source={name})",
        f"NOTE: licence: {one.licence}",
        f"NOTE: please cite: {one.citation}",
        f"NOTE: known overlap: {one.overlap}",
    ]


def _ph2(path) -> pd.DataFrame:
    """PH2_dataset.txt as a table with our columns; its cells stand between upright lines."""
    rows = [
        re.split(r"\|+", line.strip().strip("|")) for line in path.read_text("latin-1").splitlines()
    ]
    rows = [[cell.strip() for cell in row] for row in rows if len(row) > 5]
    header = [cell.casefold() for cell in rows[0]]
    table = pd.DataFrame([row for row in rows[1:] if len(row) == len(header)], columns=header)
    codes = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}
    present = {"t": "1", "at": "1", "p": "1", "a": "0"}  # typical, atypical, present, absent
    renamed = {
        "pigment network": "pigment_network",
        "dots/globules": "globules",
        "streaks": "streaks",
    }
    found = {"id": table["name"], "diagnosis": table["clinical diagnosis"].map(codes).fillna("")}
    found |= {
        ours: table[theirs].str.lower().map(present).fillna("") for theirs, ours in renamed.items()
    }
    return pd.DataFrame(found)


def _isic2016(path) -> pd.DataFrame:
    """A table of ISIC 2016 Part 3, which has no header; malignant is melanoma, benign unknown."""
    table = tables.read_table(path, header=None).iloc[:, :2]
    table.columns = ["id", "diagnosis"]
    malignant = table["diagnosis"].str.lower().isin(("malignant", "1", "1.0"))
    return table.assign(diagnosis=malignant.map({True: "melanoma", False: ""}))


def read_table(name: str, path) -> pd.DataFrame:
    """A label table of a public source, with columns that `tables.labels` knows."""
    if name == "ph2" and Path(path).suffix == ".txt":
        return _ph2(Path(path))
    return _isic2016(path) if name == "isic2016" else tables.read_table(path)
