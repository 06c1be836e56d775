"""Publish a finished run as a folder for a code host: notebooks, figures, tables, provenance.

`./run_all.sh --publish runs/NAME` fills figures/NAME. Images of patients stay private: figures with
real images are replaced by the public versions that `plots.show` has written beside them, and names
of files by pseudonyms (`privacy`).
"""

import base64
import gzip
import io
import json
import shutil
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from lesionlib.engine import trace
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, atomic_write, read_json, resolve, run_lock
from lesionlib.engine.provenance import file_digest
from lesionlib.engine.stages import STAGES
from lesionlib.report import findings, forest, notebooks, pages
from lesionlib.report.privacy import Pseudonyms, own_names

FIGURES = ROOT / "figures"
LARGEST = 20 * 2**20  # bytes of a published folder
LARGE_TABLE = 2 * 2**20  # bytes; larger tables (a row per image, seed and arm) are compressed
OF_PATIENTS = ("curation", "quarantine", "disagreements", "near_duplicates")  # a row per image
UNFINISHED = "let ./run_all.sh finish it first"


def shorten_paths(text: str, settings: dict, run) -> str:
    """The text with absolute paths of this machine shortened to their last component.

    Those in the folder of the run, which may lie outside of this repository, begin with its name.
    """
    values = [
        v for one in settings.values() for v in (one.values() if type(one) is dict else [one])
    ]
    parts = {part for value in values if isinstance(value, str) for part in value.split(":")}
    for path in sorted(parts, key=len, reverse=True):
        if Path(path).is_absolute() and Path(path).name:
            text = text.replace(path, f".../{Path(path).name}")
    text = text.replace(f"{run}/", f"runs/{run.name}/")
    return text.replace(f"{ROOT}/", "").replace(str(ROOT), ".").replace(str(Path.home()), "~")


def compress(png: bytes) -> bytes:
    """The smaller one of the PNG as it is and with a dithered palette of 256 colours."""
    whole = Image.open(io.BytesIO(png)).convert("RGB")
    found = []
    for picture in (whole, whole.quantize(palette=whole.quantize(256))):
        picture.save(file := io.BytesIO(), "PNG", optimize=True)
        found.append(file.getvalue())
    return min(found, key=len)


def notebook(path, figures, show_images: bool, settings: dict, names: Pseudonyms) -> str:
    """The text of an executed notebook, its pictures replaced by their public versions, if any.

    Names of own images (`names`) are replaced in its outputs and its prose.
    A picture that `plots.show` did not draw could show anything: InputError unless `show_images`.
    """
    content = json.loads(path.read_text())
    content["metadata"].get("papermill", {}).pop("parameters", None)
    content = json.loads(
        shorten_paths(json.dumps(content, ensure_ascii=False), settings, figures.parent)
    )
    for number, cell in enumerate(content["cells"], 1):
        part = "source" if cell["cell_type"] == "markdown" else "outputs"
        cell[part] = names.value(cell.get(part, ""))
        for output in cell.get("outputs", []):
            if "image/png" not in output.get("data", {}):
                continue
            name = output.get("metadata", {}).get("image/png", {}).get("figure", "")
            public = figures / "public" / f"{name}.png"
            if not name and not show_images:
                raise InputError(
                    path,
                    f"cell {number} shows a picture of unknown content",
                    "draw it with plots.show, which writes public versions",
                )
            data = base64.b64decode(output["data"]["image/png"])
            if public.exists() and not show_images:
                data = public.read_bytes()
            output["data"]["image/png"] = base64.b64encode(compress(data)).decode()
    return json.dumps(content, indent=1, ensure_ascii=False)


def publish(run, show_images: bool = False) -> Path:
    """Copy the publishable part of a finished run to figures/NAME; returns that folder.

    The notebooks of single jobs of the grid are left out. Procedural images are always shown, real
    ones only with `show_images`. InputError if the run is not finished, active or half rerun, if
    its notebooks are of several versions of the code, or if the folder would exceed LARGEST.
    """
    run = resolve(run)
    if not (run / "provenance.json").exists():
        problem = "it is not a finished run: there is no provenance.json"
        raise InputError(run, problem, UNFINISHED)
    with run_lock(run):
        return _publish(run, read_json(run / "provenance.json"), show_images)


def check_finished(run, provenance: dict):
    """Raise InputError if results or notebooks are not those with which a run was finished."""
    for name, digest in provenance.get("sha256", {}).items():
        if not (run / name).exists() or file_digest(run / name) != digest:
            raise InputError(run / name, "it has changed since the run was finished", UNFINISHED)
    for failed in filter(None, map(notebooks.failure, pages.executed(run))):
        raise InputError(run, f"a notebook has failed ({failed})", UNFINISHED)


def check_versions(run):
    """Raise InputError if the notebooks of a run were executed by different versions of the code,
    since no reader could tell which of them made a number."""
    versions = {}
    for name, facts in trace.stages(run).items():
        if name in STAGES:
            versions.setdefault(facts["code"], []).append(name)
    if len(versions) > 1:
        said = "; ".join(f"{', '.join(names)}: {code}" for code, names in versions.items())
        raise InputError(
            run,
            f"its notebooks are of {len(versions)} versions of the code ({said})",
            "execute all of them by one, with `-R data` at the end of the run's command; "
            "what has not changed is read back",
        )


def _publish(run, provenance: dict, show_images: bool) -> Path:
    check_finished(run, provenance)
    check_versions(run)
    settings = provenance["settings"]
    names = Pseudonyms(own_names(run, settings))
    show_images = show_images or settings["source"] == "phantom"
    target, partial = FIGURES / run.name, FIGURES / f".{run.name}" / run.name
    shutil.rmtree(partial.parent, ignore_errors=True)
    try:
        _copy_notebooks(run, partial, show_images, settings, names)
        _copy_figures(run, partial, show_images)
        for path in sorted((run / "tables").glob("*.csv")):
            if path.stem in OF_PATIENTS and not show_images:
                continue
            text = names.table(shorten_paths(path.read_text(), settings, run))
            _write_table(partial / "tables" / path.name, text)
        text = shorten_paths(json.dumps(provenance, ensure_ascii=False), settings, run)
        _write(partial / "provenance.json", names.json(text))
        write_pages(partial)
        _check_size(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial.parent, ignore_errors=True)
    _write_index()
    return target


def write_pages(folder):
    """Write index.html, forest.svg and README.md of a published folder from its tables."""
    pages.write_index(folder / "index.html", folder, _links(folder), folder)
    _write(folder / "README.md", results(folder))


def _links(folder) -> list[tuple[str, str]]:
    """(address, title) of the notebooks of a published folder."""
    executed = sorted((folder / "notebooks").glob("*.ipynb"))
    return [(f"notebooks/{path.name}", pages.title(path)) for path in executed]


def _write(path, content: str | bytes):
    with atomic_write(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def _write_table(path, text: str):
    data = text.encode()
    if len(data) > LARGE_TABLE:  # the same bytes each time: no time in them
        path, data = path.with_name(f"{path.name}.gz"), gzip.compress(data, mtime=0)
    _write(path, data)


def _copy_notebooks(run, target, show_images: bool, settings: dict, names: Pseudonyms):
    for path in pages.executed(run):
        text = notebook(path, run / "figures", show_images, settings, names)
        _write(target / "notebooks" / path.name, text)


def _copy_figures(run, target, show_images: bool):
    for path in sorted((run / "figures").glob("*.[ps][nv]g")):
        public = run / "figures" / "public" / path.name
        data = (public if public.exists() and not show_images else path).read_bytes()
        _write(target / path.name, compress(data) if path.suffix == ".png" else data)


def _check_size(folder):
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(sizes.values()) > LARGEST:
        largest = max(sizes, key=sizes.get)
        every = (sum(sizes.values()), LARGEST, sizes[largest])
        total, limit, most = (size / 2**20 for size in every)
        problem = f"{total:.0f} MB are more than {limit:.0f}; {largest.name} alone has {most:.0f}"
        raise InputError(folder, problem, "publish a smaller run")


def _write_index():
    """Write figures/README.md, which describes the run in each published folder."""
    lines = ["# Published runs", "", "Made by `./run_all.sh --publish runs/NAME`.", ""]
    for folder in sorted(path.parent for path in FIGURES.glob("*/provenance.json")):
        facts = read_json(folder / "provenance.json")
        settings = facts["settings"]
        images = "procedural images"
        if settings["source"] != "phantom":
            images = "real images, which are replaced by the outlines of their lesions"
        lines.append(
            f"- [`{folder.name}`]({folder.name}/README.md): preset `{settings['preset']}`, "
            f"{images}, {pages.spent(facts)} of notebooks, lesionlib {facts['code']}, "
            f"Python {facts['environment']['python']}, "
            f"torch {facts['environment']['packages']['torch']}."
        )
    _write(FIGURES / "README.md", "\n".join(lines) + "\n")


def _rows(table: pd.DataFrame) -> list[str]:  # DataFrame.to_markdown would need tabulate
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _section(title: str, text: str, table: pd.DataFrame) -> list[str]:
    """A heading, a paragraph and a table as lines; nothing if the table is empty."""
    return [] if table.empty else [f"## {title}", "", text, "", *_rows(table)]


def results(folder) -> str:
    """The page of a published folder as Markdown: what `pages.write_index` shows, without style."""
    facts, rows = read_json(folder / "provenance.json"), findings.tested(folder)
    n, seeds = facts["images"]["S-test"], findings.span(findings.table(folder, "table2")["seeds"])
    worth = [f"- {sentence}" for sentence in findings.table(folder, "worth")["sentence"]]
    picture, caption = next(iter(pages.FIGURES.items()))
    notes, plot = pages.NOTES, f"![{forest.alternative_text(rows)}](forest.svg)"
    over_images, over_seeds = (
        f"{measured}, n = {n}{more}; mean with 95 % interval over images"
        for measured, more in (("Empty prompt", ""), ("Dice", f", seeds: {seeds}"))
    )
    tables = (
        ("Table 1: image quality on S-test", f"{over_images}.", pages.image_table(folder)),
        (
            "Table 2: segmentation of S-test",
            f"{over_seeds} and seeds. {notes['table2']}",
            pages.dice_table(folder),
        ),
        ("Could a gain have been shown?", notes["headroom"], pages.headroom_table(folder)),
        ("Is the lesion in its mask?", notes["fidelity"], pages.fidelity_table(folder)),
        (
            "The numbers behind the verdicts",
            f"{forest.CAPTION} {notes['verdicts']}",
            pages.claims_table(folder),
        ),
    )
    made = (
        "Made from the tables by `./run_all.sh --publish`; `index.html` is the same for a browser."
    )
    lines = [
        *[f"# The run {folder.name}", ""],
        *_section("This run against the paper", made, findings.against_paper(folder, facts)),
        *[notes["parts"], ""],
        *["## Abstract", "", " ".join(findings.abstract(folder, facts)), ""],
        *[f"![{caption}]({picture}.png)", "", caption, "", "## All claims", "", plot, ""],
        *(line for parts in tables for line in _section(*parts)),
        *(["## The worth of synthetic pairs", "", notes["worth"], "", *worth, ""] if worth else []),
        *["## Notebooks", "", *(f"1. [{title}]({link})" for link, title in _links(folder)), ""],
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(publish(sys.argv[1], "--show-images" in sys.argv[2:]))
    except InputError as error:
        sys.exit(f"publish: {error}")
