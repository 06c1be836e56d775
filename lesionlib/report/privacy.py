"""Names of a user's own image files, which may be those of patients, leave published texts.

Each name becomes `case-0001`, the same one wherever it stands. Names of public sources are kept.
"""

import csv
import html
import io
import json
import re
import unicodedata
from pathlib import Path

import pandas as pd

from lesionlib.data import catalogue, layouts
from lesionlib.data.pairing import DOCUMENTS, TYPES, normal
from lesionlib.engine.files import resolve

SHORT = 4  # shorter names, and numbers up to SHORT digits, are replaced where they stand alone
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?")
WORD = r"(?<![^\W_])", r"(?![^\W_])"  # no letter or digit before, none after
LISTS = ("curation", "quarantine", "disagreements")  # tables of a run whose column id has names
PUBLIC = ("phantom", "isic", *layouts.LAYOUTS)


def _in_folders(folders) -> set[str]:
    """Names of all files below folders, with and without their ending."""
    found = set()
    for folder in filter(None, folders):
        for path in Path(resolve(folder)).rglob("*"):
            if path.is_file() and path.suffix.lower() not in DOCUMENTS:
                found |= {path.name, path.stem}
    return found


def _in_tables(paths) -> set[str]:
    """Names in the columns id, image, mask and file of tables."""
    found = set()
    for path in paths:
        if not Path(path).is_file():
            continue
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column in table.columns.intersection(["id", "image", "mask", "file"]):
            for cell in table[column].unique():
                own = Path(cell)
                found |= {cell} if column == "id" else {own.name, own.stem}
    return found - {""}


def own_names(run, settings: dict) -> set[str]:
    """File names and ids of a run's own images: not of public sources, but of further test sets."""
    tests = settings.get("external_tests", {})
    sets = [*tests.values(), *settings.get("external_generators", {}).values()]
    folders = [folder for one in sets for folder in catalogue.pair_folders(one)]
    tables = [run / "data" / "external" / name / "index.csv" for name in tests]
    if settings["source"] not in PUBLIC:
        folders += [settings["images"], settings["masks"]]
        tables += [run / "tables" / f"{name}.csv" for name in LISTS]
    public = set()
    if settings["source"] in PUBLIC:
        public = _in_tables([run / "tables" / "curation.csv"])
    return (_in_folders(folders) | _in_tables(tables)) - public


class Pseudonyms:
    """Replaces names in texts. `names` are file names and ids of images."""

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

    @staticmethod
    def _stem(name: str) -> str:
        path = Path(normal(name))
        return path.stem if path.suffix.lower() in TYPES else path.name

    @staticmethod
    def _is_short(name: str) -> bool:
        return len(name) < SHORT or (name.isdigit() and len(name) <= SHORT)

    def text(self, text: str) -> str:
        """A text without the names, also where a table has cut them short (`surnam...`)."""
        if text in self.alias:
            return self.alias[text]
        for name in self.long:
            if name in text:
                before, after = (r"(?<![\w.])", r"(?![\w]|\.\d)") if name.isdigit() else WORD
                pattern = f"{before}{re.escape(name)}{after}"
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
        return json.dumps(self.value(json.loads(text)), indent=1, sort_keys=True) + "\n"

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
