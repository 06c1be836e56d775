"""The cells of Table 2: each is one training and its measures on every test set."""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import write_csv
from lesionlib.engine.provenance import code_digest, digest, record, recorded
from lesionlib.segmentation import measures
from lesionlib.segmentation.grid import Cell, source
from lesionlib.segmentation.training import predict, probabilities, steps_of, train


def training_part(cell: Cell, images, masks, synthetic, order=None):
    """Images and masks that a cell is trained on.

    The first `cell.share` percent of S-train (`images`, `masks`), then the first `cell.amount`
    synthetic pairs: `synthetic` is (images, masks, mask_fidelity) or None. Of a method that ends
    in "_best", the pairs of the highest mask fidelity come first. InputError if there are too few.
    """
    real = round(len(images) * cell.share / 100)
    there = 0 if synthetic is None else len(synthetic[0])
    if there < cell.amount:
        raise InputError(
            f"cell {cell.id}",
            f"it needs {cell.amount} synthetic pairs of {source(cell.method)}; there are {there}",
            "lower `synthetic_amounts`, or generate more pairs (notebooks 02 to 04)",
        )
    if not cell.amount:
        return images[:real], masks[:real]
    chosen = np.arange(there)
    if cell.method.endswith("_best"):
        chosen = np.argsort(-np.asarray(synthetic[2]), kind="stable")
    chosen = chosen[: cell.amount]
    return tuple(
        np.concatenate([own[:real], added[chosen]])
        for own, added in zip((images, masks), synthetic[:2], strict=True)
    )


def measured(model, tests: dict, tolerance: float) -> pd.DataFrame:
    """`measures.segmentation` of every test image: columns test, id and the measures.

    `tests` maps a name to (images (N, S, S, 3), N masks at their own resolution, ids).
    """
    rows = []
    for name, (images, masks, ids) in tests.items():
        found = zip(ids, probabilities(model, images), masks, strict=True)
        rows += [
            {"test": name, "id": one} | measures.segmentation(probability, mask, tolerance)
            for one, probability, mask in found
        ]
    return pd.DataFrame(rows)


def _read(path) -> pd.DataFrame:
    text = {"id": str, "method": str, "test": str}
    return pd.read_csv(path, dtype=text, float_precision="round_trip")


def run_cell(
    cell: Cell,
    parts: dict,
    synthetic,
    tests: dict,
    *,
    epochs: int,
    matched_steps: int,
    tolerance: float,
    options: dict,
    folder,
    fingerprint: str = "",
) -> pd.DataFrame:
    """Train and test one cell: a row per test image, and what the training was.

    `parts` maps S-train and S-val to (images, masks); `synthetic` as in `training_part`; `tests`
    as in `measured`; `options` go to `train`. Under the schedule "steps" a cell gets
    `matched_steps`, else `epochs`. Columns: those of the cell, test, id, the measures of
    `measures.segmentation`, and the same in every row: pairs, steps, val_dice. Results are
    kept in `folder` by the digest of all that determines them (cell, options, code, `fingerprint`
    of the inputs) and read back; two cells that are the same training share one.
    """
    images, masks = training_part(cell, *parts["S-train"], synthetic)
    steps = matched_steps if cell.schedule == "steps" else None
    steps = steps or steps_of(len(images), epochs, options["batch"])
    trained_on = cell.method if cell.amount else "real", cell.amount, cell.share
    options = options | {
        "augmentation": "classical" if cell.method == "classical" else "flips",
        "steps": steps,
        "seed": cell.seed,
    }
    key = digest(
        cell.network, trained_on, options, tolerance, fingerprint, code_digest("segmentation")
    )
    path = Path(folder) / f"{key}.csv"
    if not path.exists() or recorded(path).get("key") != key:
        began, checkpoint = time.monotonic(), path.with_suffix(".pt")
        model = train(
            cell.network,
            images,
            masks,
            *parts["S-val"],
            key=key,
            checkpoint=checkpoint,
            log_path=path.parent / "logs" / path.name,
            **options,
        )
        val = measures.dice(predict(model, parts["S-val"][0]), parts["S-val"][1])
        facts = {"pairs": len(images), "steps": steps, "val_dice": val.mean()}
        spent = round(time.monotonic() - began, 2)
        rows = measured(model, tests, tolerance).assign(**facts)
        Path(f"{path}.json").unlink(missing_ok=True)  # a record never describes another file
        write_csv(path, rows)
        record(
            path,
            key=key,
            cell=cell.id,
            options=options,
            fingerprint=fingerprint,
            seconds=spent,
            **facts,
        )
        checkpoint.unlink(missing_ok=True)
    rows = _read(path)
    for place, (name, value) in enumerate(asdict(cell).items()):
        rows.insert(place, name, value)
    return rows


ARM = ["network", "method", "amount", "share", "schedule"]
MEASURES = ["dice", "iou", "iou65", "hd95", "nsd", "brier", "ece"]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per arm, test set and seed: mean per image of MEASURES, `dice_pooled`, number of `images`."""
    groups = rows.groupby([*ARM, "test", "seed"], sort=False)
    found = groups[MEASURES].mean()
    found["dice_pooled"] = groups[["tp", "fp", "fn"]].apply(measures.pooled_dice)
    found["images"] = groups.size()
    return found.join(groups[["pairs", "steps", "val_dice"]].first()).reset_index()


def table2(per_seed: pd.DataFrame) -> pd.DataFrame:
    """Per arm and test set: mean and sample sd of `dice` over seeds (one seed: NaN), the means of
    the other measures, optimiser `steps`, number of `seeds`."""
    groups = per_seed.groupby([*ARM, "test"], sort=False)
    found = groups["dice"].agg(dice_mean="mean", dice_sd="std", seeds="size")
    others = ["dice_pooled", *MEASURES[1:], "pairs", "steps"]
    return found.join(groups[others].mean()).reset_index()
