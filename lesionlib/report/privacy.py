"""Names of a user's own image files, which may be those of patients, leave published texts.

Each name becomes `case-0001`, the same one wherever it stands. Names of public sources are kept.
"""

import csv
import html
import io
import json
import re
import unicodedata
from functools import cache
from pathlib import Path

import pandas as pd

from lesionlib.data import catalogue, layouts, split
from lesionlib.data.pairing import DOCUMENTS, TYPES, normal
from lesionlib.engine.files import resolve

SHORT = 4  # shorter names, and numbers up to SHORT digits, are replaced where they stand alone
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?")
WORD = r"(?<![^\W_])", r"(?![^\W_])"  # no letter or digit before, none after
LISTS = ("curation", "quarantine", "disagreements")  # tables of a run whose column id has names
PUBLIC = ("phantom", "isic", *layouts.LAYOUTS)
USUAL = {name for names in layouts.OWN.values() for name in names}  # of folders: images, masks, ...


def _folder_names(path: Path) -> set[str]:
    """The names of the folders in a relative path, as they stand before a file; no usual ones."""
    return {f"{name}/" for name in path.parts if name.casefold() not in USUAL}


def _in_folders(folders) -> set[str]:
    """Names of all files below folders, with and without their ending, and of their folders."""
    found = set()
    for folder in map(resolve, filter(None, folders)):
        for path in folder.rglob("*"):
            if path.is_dir():
                found |= _folder_names(path.relative_to(folder))
            elif path.suffix.lower() not in DOCUMENTS:
                found |= {path.name, path.stem}
    return found


def _in_tables(paths, folders=()) -> set[str]:
    """Names in the columns id, image, mask and file of tables; also of what is below folders."""
    found, folders = set(), [resolve(folder) for folder in folders if folder]
    for path in paths:
        if not Path(path).is_file():
            continue
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column in table.columns.intersection(["id", "image", "mask", "file"]):
            for cell in table[column].unique():
                own = Path(cell)
                found |= {cell} if column == "id" else {own.name, own.stem}
                for folder in filter(own.is_relative_to, folders):
                    found |= _folder_names(own.relative_to(folder).parent)
    return found - {""}


def _in_split(path: str, ids) -> set[str]:
    """The ids in the CSV of a split, also those of no image; none if the split is a word."""
    return set(split.read_file(path, ids)[0].index) if resolve(path).is_file() else set()


def own_names(run, settings: dict) -> set[str]:
    """Names of files and folders, and ids, of a run's own images: not of public sources, but of
    further test sets."""
    tests = settings.get("external_tests", {})
    sets = [*tests.values(), *settings.get("external_generators", {}).values()]
    folders = [folder for one in sets for folder in catalogue.pair_folders(one)]
    tables = [run / "data" / "external" / name / "index.csv" for name in tests]
    if settings["source"] not in PUBLIC:
        folders += [settings["images"], settings["masks"]]
        tables += [run / "tables" / f"{name}.csv" for name in LISTS]
    found = _in_folders(folders) | _in_tables(tables, folders)
    known = _in_tables([run / "tables" / "curation.csv"])
    if settings["source"] in PUBLIC:
        return found - known
    return found | _in_split(settings["split"], known)


class Pseudonyms:
    """Replaces names in texts. `names` are file names and ids of images, and folders (`name/`)."""

    def __init__(self, names):
        stems = sorted({self._stem(name) for name in names if name})
        numbers = {stem: f"case-{number:04d}" for number, stem in enumerate(stems, 1)}
        self.alias = {}
        for name in filter(None, names):
            stem = self._stem(name)
            alias = numbers[stem] + normal(name)[len(stem) :]
            for form in {name, normal(name), unicodedata.normalize("NFD", name)}:
                self.alias[form] = self.alias[html.escape(form)] = alias
        self.long = sorted((name for name in self.alias if not self._is_short(name)), key=len)[::-1]
        self.text = cache(self.text)  # the cells of a table are few texts, each in many rows

    @staticmethod
    def _stem(name: str) -> str:
        path = Path(normal(name))
        return path.stem if path.suffix.lower() in TYPES else path.name

    @staticmethod
    def _is_short(name: str) -> bool:
        short = len(name) < SHORT or (name.isdigit() and len(name) <= SHORT)
        return short and not name.endswith("/")

    def text(self, text: str) -> str:
        """A text without the names, also where a table has cut them short (`surnam...`)."""
        if text in self.alias:
            return self.alias[text]
        for name in self.long:
            if name in text:
                before, after = (r"(?<![\w.])", r"(?![\w]|\.\d)") if name.isdigit() else WORD
                pattern = f"{before}{re.escape(name)}{'' if name.endswith('/') else after}"
                text = re.sub(pattern, self.alias[name], text)
        return re.sub(r"[^\s\"'<>/\\]{3,}(?=\.\.\.|…)", self._cut, text)

    def _cut(self, match) -> str:
        start = match[0].rstrip(".")
        return "case-" if any(name.startswith(start) for name in self.long) else match[0]

    def value(self, value):
        """A JSON value without the names, in keys too; pictures are left alone."""
        if isinstance(value, dict):
            kept = {key: v for key, v in value.items() if key.startswith("image/")}
            rest = {self.text(k): self.value(v) for k, v in value.items() if k not in kept}
            return rest | kept
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def json(self, text: str) -> str:
        """A JSON document without the names."""
        value = self.value(json.loads(text))
        return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def table(self, text: str) -> str:
        """A CSV without the names; short ones go from its column id only."""
        rows = list(csv.reader(io.StringIO(text)))
        column = rows[0].index("id") if rows and "id" in rows[0] else -1
        for row in rows[1:]:
            for i, cell in enumerate(row):
                plain = i != column and (self._is_short(cell) or NUMBER.fullmatch(cell))
                row[i] = cell if plain else self.text(cell)
        page = io.StringIO()
        csv.writer(page, lineterminator="\n").writerows(rows)
        return page.getvalue()
