"""The conditions of the synthetic pairs: the masks and prompts from which they are generated."""

import numpy as np
import pandas as pd

from lesionlib.data import catalogue, prompts
from lesionlib.engine.errors import InputError, require
from lesionlib.engine.files import read_json, resolve, write_csv, write_npy
from lesionlib.engine.provenance import digest, record
from lesionlib.masks.recipe import MODES, random_masks


def candidates(table, method: str) -> tuple[pd.DataFrame, str]:
    """The labels that prompts are drawn from, and how (`prompts.draw`): those in `table`, or in the
    file that `method` names."""
    if method in ("joint", "uniform"):
        return table, method
    return catalogue.read_prompt_labels(method), "weight"


def draw(run, study, settings, **facts) -> tuple[np.ndarray, list[str]]:
    """Draw masks and prompts for both generators and write them to data/conditions*.

    Uses the groups `data`, `design` and `masks` of `settings`: as many pairs as the largest of
    `synthetic_amounts`, masks of `mask_mode` (`recipe.MODES`), labels drawn from G by
    `prompt_draw` (joint, uniform, or the path of a CSV for `catalogue.read_prompt_labels`). Sizes
    and positions in prompts describe the drawn masks. Row i depends only on `mask_seed` and i;
    `facts` go into the record. Returns masks (n, size, size) and prompts.
    """
    folder, part = resolve(run) / "data", study.part("G")
    n, size = max(settings.design.synthetic_amounts), settings.data.image_size
    mode, seed = settings.design.mask_mode, settings.masks.mask_seed
    masks = random_masks(n, size, seed=seed, mode=mode, real=part.masks)
    table, method = candidates(part.table, settings.masks.prompt_draw)
    labels = prompts.draw(table, n, seed, method)
    sentences = prompts.describe(labels, settings.data.prompt, settings.data.prompt_details, masks)
    write_npy(folder / "conditions.npy", masks)
    known = [name for name in catalogue.LABELS if name in labels]
    table = labels[known].assign(index=range(n), prompt=sentences, mode=mode, seed=seed)
    write_csv(folder / "conditions.csv", table[["index", "prompt", "mode", "seed", *known]])
    facts |= {"mode": mode, "draw": settings.masks.prompt_draw, "seed": seed}
    facts |= {"data": study.fingerprint, "conditions": digest(masks, sentences)}
    record(folder / "conditions.csv", **facts)
    return masks, sentences


def load(run) -> tuple[np.ndarray, list[str], str]:
    """Masks (n, S, S), prompts and fingerprint of the conditions that notebook 02 has written.

    Raises InputError if they are missing or corrupt.
    """
    folder = resolve(run) / "data"
    table = pd.read_csv(require(folder / "conditions.csv", "02_masks"), keep_default_na=False)
    facts = read_json(require(folder / "conditions.csv.json", "02_masks"))
    path = require(folder / "conditions.npy", "02_masks")
    sentences = table["prompt"].tolist()
    try:
        masks = np.load(path)
    except ValueError:  # truncated
        masks = np.empty(0)
    if digest(masks, sentences) != facts["conditions"]:
        raise InputError(
            path,
            "it or conditions.csv is corrupt (truncated or modified)",
            "delete both and run notebooks/02_masks.ipynb, or ./run_all.sh, again",
        )
    return masks, sentences, facts["conditions"]


def vary(run, study, settings, name: str) -> tuple[np.ndarray, list[str]]:
    """Masks (n, S, S) and prompts of a control set: the first conditions with one thing changed.

    `name` as in `grid.control_sets`: controlnet_MODE draws masks in another mode, controlnet_empty
    empties the prompts, controlnet_uniform draws their labels uniformly, base changes neither (it
    is sampled without control). n is the smallest of `settings.design.synthetic_amounts`.
    """
    masks, sentences, _ = load(run)
    n, change = min(settings.design.synthetic_amounts), name.removeprefix("controlnet_")
    if change not in (*MODES, "uniform"):
        return masks[:n], [""] * n if change == "empty" else sentences[:n]
    empty = {name: [""] for name in (*prompts.ATTRIBUTES, "age")}
    path = resolve(run) / "data" / "conditions.csv"
    table = pd.read_csv(path, nrows=n, keep_default_na=False, na_values=empty)
    part, seed, masks = study.part("G"), int(table["seed"].iloc[0]), masks[:n]
    if change == "uniform":
        table = prompts.draw(part.table, n, seed, "uniform")
    else:
        masks = random_masks(n, masks.shape[1], seed=seed, mode=change, real=part.masks)
    return masks, prompts.describe(table, settings.data.prompt, settings.data.prompt_details, masks)
