"""What is asked of the generators: masks and prompts of the synthetic pairs."""

import numpy as np
import pandas as pd

from lesionlib.data import catalogue, prompts
from lesionlib.engine.errors import InputError, require
from lesionlib.engine.files import read_json, resolve, write_csv, write_npy
from lesionlib.engine.provenance import digest, record
from lesionlib.masks.recipe import MODES, random_masks


def draw(run, study, *, n, size, mode, seed, prompt, details, draw, **facts):
    """Draw `n` masks and prompts for both generators and write them to data/conditions*.

    Masks are made by `mode` (masks.MODES); labels are drawn from G by `draw` (joint, uniform, or
    a CSV of wishes), sizes and positions in prompts are those of the masks. Row i depends on seed
    and i alone. Returns masks (n, size, size) and the prompts.
    """
    folder = resolve(run) / "data"
    generator_part = study.part("G")
    shapes = random_masks(n, size, seed=seed, mode=mode, real=generator_part.masks)
    wishes, how = generator_part.table, draw
    if draw not in ("joint", "uniform"):
        wishes, how = catalogue.read_wishes(draw), "weight"
    labels = prompts.draw(wishes, n, seed, how)
    texts = prompts.describe(labels, prompt, details, shapes)
    write_npy(folder / "conditions.npy", shapes)
    known = [name for name in catalogue.LABELS if name in labels]
    table = labels[known].assign(index=range(n), prompt=texts, mode=mode, seed=seed)
    write_csv(folder / "conditions.csv", table[["index", "prompt", "mode", "seed", *known]])
    record(
        folder / "conditions.csv",
        data=study.fingerprint,
        conditions=digest(shapes, texts),
        mode=mode,
        draw=draw,
        seed=seed,
        **facts,
    )
    return shapes, texts


def load(run):
    """Masks (n, S, S), prompts and fingerprint of the conditions; needs notebook 02."""
    folder = resolve(run) / "data"
    table = pd.read_csv(require(folder / "conditions.csv", "02_masks"), keep_default_na=False)
    facts = read_json(require(folder / "conditions.csv.json", "02_masks"))
    path = require(folder / "conditions.npy", "02_masks")
    texts = table["prompt"].tolist()
    try:
        shapes = np.load(path)
    except ValueError:  # cut short
        shapes = np.empty(0)
    if digest(shapes, texts) != facts["conditions"]:
        raise InputError(
            path,
            "it or conditions.csv was cut short or changed",
            "delete both and run notebooks/02_masks.ipynb, or ./run_all.sh, again",
        )
    return shapes, texts, facts["conditions"]


def vary(run, study, name: str, n: int, prompt, details):
    """Masks (n, S, S) and prompts of a control set: the first n that were asked, one thing changed.

    `name` as in `grid.control_sets`: controlnet_MODE draws masks by another mode, controlnet_empty
    leaves the prompts empty, base changes neither (it is sampled without control).
    """
    shapes, texts, _ = load(run)
    kind = name.removeprefix("controlnet_")
    if kind not in MODES:
        return shapes[:n], [""] * n if kind == "empty" else texts[:n]
    empty = {name: [""] for name in (*prompts.ATTRIBUTES, "age")}
    path = resolve(run) / "data" / "conditions.csv"
    table = pd.read_csv(path, nrows=n, keep_default_na=False, na_values=empty)
    real, seed = study.part("G").masks, int(table["seed"].iloc[0])
    shapes = random_masks(n, shapes.shape[1], seed=seed, mode=kind, real=real)
    return shapes, prompts.describe(table, prompt, details, shapes)
