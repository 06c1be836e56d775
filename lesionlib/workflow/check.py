"""`./run_all.sh --check`: what the images of a run are, before anybody waits for it.

Reads files, tables and as many pairs as it can in `SECONDS`, changes nothing, and draws a contact
sheet.
"""

import os
import time
from contextlib import closing
from functools import partial

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from lesionlib.data import catalogue, curation, plausibility, sources
from lesionlib.data.plausibility import BRIGHT, MaskRule
from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.engine.errors import InputError, say
from lesionlib.engine.files import ROOT, atomic_write, resolve
from lesionlib.engine.settings import Settings
from lesionlib.report import plots

SECONDS = 8  # that decoding may take; of more pairs than that, a random part is read
TILES, SIDE, COLUMNS = 24, 128, 6  # pairs on the contact sheet, pixels of each, pairs in a row


def read_some(table, settings: Settings, rule: MaskRule) -> tuple[list, list]:
    """Row numbers in random order and the result of each: `curation.read_facts` or InputError.

    Images without a mask are not read. Ends after `SECONDS`, but not before `TILES` pairs were
    read.
    """
    order = np.random.default_rng(0).permutation(np.flatnonzero(table["mask"] != ""))
    repeated = table["id"].duplicated().to_numpy()
    rows = [(repeated[i], *table.loc[i, ["id", "image", "mask"]]) for i in order]
    data = settings.data
    read = partial(curation.read_or_error, size=data.image_size, fit=data.fit, rule=rule)
    results, last = [], time.monotonic() + SECONDS
    with closing(curation.in_order(read, rows, os.cpu_count() or 1)) as found:
        for result in found:
            results.append(result)
            if time.monotonic() > last and len(results) >= TILES:
                break
    return list(order[: len(results)]), results


def label_lines(table) -> list[str]:
    """What is known about the images: diagnoses, other labels, groups, official parts."""
    lines = []
    named = table["diagnosis"][table["diagnosis"] != ""].value_counts()
    counts = ", ".join(f"{name} {number}" for name, number in named.items())
    lines.append(f"diagnosis: {named.sum()} of {len(table)}" + (f" ({counts})" if counts else ""))
    known = {name: int((table[name] != "").sum()) for name in ("age", "sex", "site")}
    known |= {name: int(table[name].notna().sum()) for name in ATTRIBUTES}
    counts = ", ".join(f"{name} {number}" for name, number in known.items() if number)
    lines.append(f"known: {counts or 'no other label'}")
    for name in table.columns.intersection(["lesion_id", "patient_id"]):
        values = table[name][table[name] != ""]
        if not values.empty:
            lines.append(f"{name}: {values.nunique()} different in {len(values)} images")
    if "official" in table:
        parts = table["official"].value_counts()
        lines.append("official parts: " + ", ".join(f"{n} {part}" for part, n in parts.items()))
    return lines


def contact_sheet(path, names, pairs):
    """Write a picture of pairs, the mask's outline on each image, its name below it."""
    rows = -(-len(pairs) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (SIDE + 8), rows * (SIDE + 24)), "white")
    draw = ImageDraw.Draw(page)
    for number, (name, (image, mask, *_)) in enumerate(zip(names, pairs, strict=True)):
        x, y = number % COLUMNS * (SIDE + 8) + 4, number // COLUMNS * (SIDE + 24) + 4
        tile = Image.fromarray(plots.outlined(image, mask)).resize((SIDE, SIDE))
        page.paste(tile, (x, y))
        draw.text((x, y + SIDE + 2), name[-20:], fill="black")
    with atomic_write(path) as temporary:
        page.save(temporary)


def describe(name: str, found: catalogue.Catalogue, settings: Settings, rule: MaskRule):
    """Print what a catalogue holds and what would be quarantined; write its contact sheet."""
    table = found.table
    print(f"\n{name}")
    say(found.notes)
    bare = table["image"][table["mask"] == ""]
    pairs = len(table) - len(bare)
    print(f"{pairs} pairs of image and mask, {len(table)} images")
    if len(bare):
        print(f"WARNING: images without a mask: {len(bare)}, for example {bare.iloc[0]}")
    if name == "images":
        say(label_lines(table))
    order, results = read_some(table, settings, rule)
    plausibility.require_masks(results, len(results))
    bad = [str(result) for result in results if isinstance(result, InputError)]
    rows = [i for i, r in zip(order, results, strict=True) if not isinstance(r, InputError)]
    good = [result for result in results if not isinstance(result, InputError)]
    part = "all" if len(results) == pairs else f"what {SECONDS} s allowed, at random, of"
    print(f"{len(good)} of {len(results)} pairs that were read ({part} {pairs}) are usable")
    say(curation.quarantine_notes(bad))
    if name == "images" and len(good) < curation.FEWEST:
        say([f"WARNING: {len(good)} usable pairs are too few: the study needs {curation.FEWEST}"])
    if good:
        say(plausibility.judge(pd.DataFrame([result[3] for result in good]), rule))
        path = resolve(settings.run) / "check" / f"{name}.png"
        contact_sheet(path, table["id"].iloc[rows[:TILES]], good[:TILES])
        print(f"contact sheet: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


def check(settings: Settings) -> int:
    """Describe the images of a run, its further test sets and synthetic pairs; exit status 0.

    Raises InputError for what would end the run.
    """
    data = settings.data
    if data.source == "phantom":
        print("images: procedural ones, made when the run starts (--images DIR names your own)")
    else:
        rule = MaskRule(data.lesion_value, data.invert_masks)
        describe("images", sources.read(data, ""), settings, rule)
    for name, folder in (data.external_tests | settings.design.external_generators).items():
        describe(name, catalogue.read_pairs(folder), settings, BRIGHT)
    return 0
