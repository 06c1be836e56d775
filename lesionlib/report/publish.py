"""A finished run as a folder for a code host: notebooks, figures, tables, provenance.

`./run_all.sh --publish runs/NAME` fills figures/NAME. Patients' images stay private: real images
are replaced by the public versions that `plots.show` has written beside them.
"""

import base64
import io
import json
import shutil
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, atomic_write, read_json, resolve
from lesionlib.report import pages

FIGURES, README = ROOT / "figures", ROOT / "README.md"
LARGEST = 15 * 2**20  # bytes of a published folder
LARGE_TABLE = 2 * 2**20  # bytes of a table that is left out (rows by image, seed and arm)
FROM, TO = "<!-- results: {} -->", "<!-- end of results -->"
OF_PATIENTS = ("curation", "quarantine", "disagreements", "near_duplicates")  # a row per image
PLACES = ("images", "masks", "table", "isic_root")


def plain(text: str, settings: dict) -> str:
    """A text without the folders of this machine: of them only the last name is left."""
    named = [settings[key] for key in PLACES if settings[key]]
    named += [*settings["others"].values(), *settings["external"].values()]
    for path in [part for one in named for part in str(one).split(":")]:
        if Path(path).is_absolute():
            text = text.replace(path, f".../{Path(path).name}")
    return text.replace(f"{ROOT}/", "").replace(str(ROOT), ".").replace(str(Path.home()), "~")


def small(png: bytes) -> bytes:
    """A PNG with a palette of 256 colours, dithered: about half of the bytes."""
    picture, whole = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    whole.quantize(palette=whole.quantize(256)).save(picture, "PNG", optimize=True)
    return picture.getvalue()


def notebook(path, figures, show_images: bool, settings: dict) -> str:
    """An executed notebook's text; every picture is the public version if it has one.

    A picture that `plots.show` did not make could hold anything: InputError unless `show_images`.
    """
    content = json.loads(path.read_text())
    for number, cell in enumerate(content["cells"], 1):
        for output in cell.get("outputs", []):
            if "image/png" not in output.get("data", {}):
                continue
            name = output.get("metadata", {}).get("image/png", {}).get("figure", "")
            public = figures / "public" / f"{name}.png"
            if not name and not show_images:
                raise InputError(
                    path,
                    f"cell {number} shows a picture of unknown content",
                    "draw it with plots.show, which knows what may be shown",
                )
            data = base64.b64decode(output["data"]["image/png"])
            if public.exists() and not show_images:
                data = public.read_bytes()
            output["data"]["image/png"] = base64.b64encode(small(data)).decode()
    content["metadata"].get("papermill", {}).pop("parameters", None)
    return plain(json.dumps(content, indent=1, ensure_ascii=False), settings)


def _copy_text(source, target, settings):
    with atomic_write(target) as temporary:
        temporary.write_text(plain(source.read_text(), settings))


def publish(run, show_images: bool = False) -> Path:
    """Copy what may be shown of a finished run to figures/NAME; returns that folder.

    The notebooks of the grid's shares are left out. Procedural images are nobody's: all of them are
    shown. With `show_images` real ones are too. InputError if the run is not finished, or if it
    would take more than 15 MB.
    """
    run = resolve(run)
    provenance = read_json(run / "provenance.json")
    if provenance is None:
        raise InputError(
            run,
            "it is no finished run: there is no provenance.json",
            "let ./run_all.sh finish it first",
        )
    settings = provenance["settings"]
    show_images = show_images or settings["source"] == "phantom"
    target, made = FIGURES / run.name, FIGURES / f".{run.name}"
    shutil.rmtree(made, ignore_errors=True)
    try:
        for path in pages.executed(run):
            if "-" not in path.stem:
                text = notebook(path, run / "figures", show_images, settings)
                with atomic_write(made / "notebooks" / path.name) as temporary:
                    temporary.write_text(text)
        for path in sorted((run / "figures").glob("*.[ps][nv]g")):
            public = run / "figures" / "public" / path.name
            chosen = public if public.exists() and not show_images else path
            data = chosen.read_bytes()
            with atomic_write(made / path.name) as temporary:
                temporary.write_bytes(small(data) if path.suffix == ".png" else data)
        for path in sorted((run / "tables").glob("*.csv")):
            private = path.stem in OF_PATIENTS and not show_images
            if not private and path.stat().st_size <= LARGE_TABLE:
                _copy_text(path, made / "tables" / path.name, settings)
        _copy_text(run / "provenance.json", made / "provenance.json", settings)
        _write_report(made, run.name)
        sizes = {path: path.stat().st_size for path in made.rglob("*") if path.is_file()}
        if sum(sizes.values()) > LARGEST:
            most = max(sizes, key=sizes.get)
            whole, largest = (x / 2**20 for x in (sum(sizes.values()), sizes[most]))
            problem = f"{whole:.0f} MB are more than 15, {most.name} alone {largest:.0f}"
            raise InputError(made, problem, "publish a smaller run")
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    _index()
    _readme(run.name)
    return target


def _write_report(made, name: str):
    """index.html of a published folder: the run's report with what may be shown."""
    facts, links = read_json(made / "provenance.json"), []
    for path in sorted((made / "notebooks").glob("*.ipynb")):
        links.append((f"notebooks/{path.name}", pages.title(path), facts["minutes"][path.stem]))
    with atomic_write(made / "index.html") as temporary:
        temporary.write_text(pages.index(made, facts, links, made, "", name))


def _index():
    """figures/README.md: which run each published folder is."""
    lines = ["# Published runs", "", "Made by `./run_all.sh --publish runs/NAME`.", ""]
    for folder in sorted(path.parent for path in FIGURES.glob("*/provenance.json")):
        facts = read_json(folder / "provenance.json")
        settings, minutes = facts["settings"], facts["minutes"]
        kind = (
            "procedural images"
            if settings["source"] == "phantom"
            else ("real images, which are replaced by the outlines of their lesions")
        )
        lines.append(
            f"- [`{folder.name}`]({folder.name}): preset `{settings['preset']}`, {kind}, "
            f"{len(settings['seeds'])} seeds, {sum(minutes.values()):.0f} minutes of notebooks, "
            f"lesionlib {facts['code']}, Python {facts['environment']['python']}, "
            f"torch {facts['environment']['packages']['torch']}."
        )
    with atomic_write(FIGURES / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _rows(table: pd.DataFrame) -> list[str]:
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def results(folder) -> str:
    """The tables of a published folder as Markdown, with intervals, n and seeds."""
    facts = read_json(folder / "provenance.json")
    n, seeds = facts["images"]["S-test"], len(facts["settings"]["seeds"])
    lines = [
        f"Table 1: S-test, empty prompt, n = {n}, mean with 95 % interval over images.",
        "",
        *_rows(pages.image_table(folder)),
        f"Table 2: Dice on S-test, n = {n}, seeds: {seeds}; mean with 95 % interval over images "
        "and seeds.",
        "",
        *_rows(pages.dice_table(folder)),
        f"Is the lesion in its mask? A U-Net that knows real images only, n = {n}:",
        "",
        *_rows(pages.fidelity_table(folder)),
        "What this run says of the paper's claims:",
        "",
        *_rows(pages.verdict_table(folder)),
    ]
    return "\n".join(lines)


def _readme(name: str):
    """Put the results of a published run between its marks in README.md, if there are any."""
    text, start = README.read_text(), FROM.format(name)
    if start in text:
        before, _, rest = text.partition(start)
        after = rest.partition(TO)[2]
        with atomic_write(README) as temporary:
            temporary.write_text(f"{before}{start}\n{results(FIGURES / name)}\n{TO}{after}")


if __name__ == "__main__":
    try:
        print(publish(sys.argv[1], "--show-images" in sys.argv[2:]))
    except InputError as error:
        sys.exit(f"publish: {error}")
