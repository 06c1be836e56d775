"""The cells of Table 2: each is one training and its measures on every test set."""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlib.data import dataset
from lesionlib.data.dataset import Study
from lesionlib.engine.artefacts import Artefact
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import write_csv
from lesionlib.engine.progress import progress
from lesionlib.engine.provenance import digest
from lesionlib.engine.settings import Settings
from lesionlib.engine.training import Files, resolved_precision
from lesionlib.segmentation import measures, networks, training
from lesionlib.segmentation.grid import Cell, synthetic_set
from lesionlib.segmentation.measures import MEASURES


@dataclass(frozen=True)
class CellData:
    """The data on which cells are trained and tested.

    `parts` maps S-train and S-val to (images, masks); `synthetic` is (images, masks,
    mask_fidelity) or None; `tests` maps the name of a test set to (images (N, S, S, 3), N masks at
    their own resolution, ids); `inputs`: digests of the test sets by name.
    """

    parts: dict
    synthetic: tuple | None
    tests: dict
    inputs: dict = field(default_factory=dict)


def training_part(cell: Cell, images, masks, synthetic, order=None):
    """Images and masks on which a cell is trained.

    They are the first `cell.share` percent of S-train (`images`, `masks`), then the first
    `cell.amount` synthetic pairs: `synthetic` is (images, masks, mask_fidelity) or None. For a
    method that ends in "_best", the pairs of the highest mask fidelity come first. InputError if
    there are too few.
    """
    real = round(len(images) * cell.share / 100)
    available = 0 if synthetic is None else len(synthetic[0])
    if available < cell.amount:
        needed = f"{cell.amount} synthetic pairs of {synthetic_set(cell.method)}"
        raise InputError(
            f"cell {cell.id}",
            f"it needs {needed}; there are {available}",
            "lower `synthetic_amounts`, or generate more pairs (notebooks 02 to 04)",
        )
    if not cell.amount:
        return images[:real], masks[:real]
    chosen = np.arange(available)
    if cell.method.endswith("_best"):
        chosen = np.argsort(-np.asarray(synthetic[2]), kind="stable")
    chosen = chosen[: cell.amount]
    return tuple(
        np.concatenate([arrays[:real], added[chosen]])
        for arrays, added in zip((images, masks), synthetic[:2], strict=True)
    )


def measure_tests(model, tests: dict, tolerance: float) -> pd.DataFrame:
    """`measures.segmentation` of every test image: columns test, id and the measures.

    `tests`: see `CellData`.
    """
    rows = []
    for name, (images, masks, ids) in tests.items():
        predictions = zip(ids, training.probabilities(model, images), masks, strict=True)
        rows += [
            {"test": name, "id": image_id} | measures.segmentation(probability, mask, tolerance)
            for image_id, probability, mask in predictions
        ]
    return pd.DataFrame(rows)


def _read_rows(path) -> pd.DataFrame:
    text = {"id": str, "method": str, "test": str}
    return pd.read_csv(path, dtype=text, float_precision="round_trip")


def run_cell(cell: Cell, data: CellData, settings: Settings, folder, matched_steps: int = 0):
    """Train and test one cell; returns a table with a row per test image.

    `settings`: the groups `segmentation` and `evaluation`. Under the schedule "steps" a cell gets
    `matched_steps`, else `epochs`. Columns: those of the cell, test, id, the measures of
    `measures.segmentation` (surfaces within `surface_tolerance`), and, equal in all rows, pairs,
    steps and val_dice. The result is an artefact in `folder`, named after its key and read back
    while that is the same; cells that amount to the same training share one.
    """
    options = settings.segmentation
    part = training_part(cell, *data.parts["S-train"], data.synthetic)
    steps = matched_steps if cell.schedule == "steps" else None
    steps = steps or training.count_steps(len(part[0]), options.epochs, options.batch)
    classical = {"warps": networks.CLASSICAL, "colour": networks.COLOUR}
    recipe = training.Recipe(
        options.batch,
        options.lr,
        precision=options.segmentation_precision,
        validations=options.validations,
        encoder=options.unet_encoder,
        decoder=tuple(options.unet_decoder),
        **(classical if cell.method == "classical" else {}),
    )
    facts = recipe.determining() | {"network": cell.network, "steps": steps, "seed": cell.seed}
    facts["tolerance"] = settings.evaluation.surface_tolerance
    inputs = {"training part": digest(*part), "S-val": digest(*data.parts["S-val"]), **data.inputs}
    artefact = Artefact(Path(folder), (run_cell,), facts, inputs)
    artefact = replace(artefact, path=Path(folder) / f"{artefact.digest}.csv")
    if not artefact.is_current():
        _train_and_measure(artefact, cell, part, data, recipe)
    rows = _read_rows(artefact.path)
    for position, (name, value) in enumerate(asdict(cell).items()):
        rows.insert(position, name, value)
    return rows


def _train_and_measure(artefact: Artefact, cell: Cell, part, data: CellData, recipe):
    path, settings, began = artefact.path, artefact.settings, time.monotonic()
    files = Files(path.with_suffix(".pt"), path.parent / "logs" / path.name)
    options = {name: settings[name] for name in ("seed", "steps")}
    val = data.parts["S-val"]
    model = training.train(
        cell.network, part, val, recipe, files=files, key=artefact.digest, **options
    )
    dice = measures.dice(training.predict(model, val[0]), val[1])
    facts = {"pairs": len(part[0]), "steps": settings["steps"], "val_dice": dice.mean()}
    seconds = round(time.monotonic() - began, 2)
    rows = measure_tests(model, data.tests, settings["tolerance"]).assign(**facts)
    Path(f"{path}.json").unlink(missing_ok=True)  # a record must never describe another file
    write_csv(path, rows)
    facts["precision"] = resolved_precision(recipe.precision, model)
    artefact.record(cell=cell.id, seconds=seconds, **facts)
    files.checkpoint.unlink(missing_ok=True)


def run_cells(cells, study: Study, pairs: dict, tests: dict, settings: Settings, folder):
    """Train and test cells one after the other; returns their tables joined.

    Each table is also written as folder/cells/ID.csv.

    `pairs` maps a set's name to its pairs (`images`, `masks`, `fidelity`); `tests` maps
    a test set's name to (images (N, S, S, 3), N masks at their own resolution, ids). Networks are
    trained on images of `segmentation_size`. Under the schedule "steps" every cell is trained for
    `matched_steps`, or, if that is 0, for as many as S-train with the largest amount of pairs
    under "epochs".
    """
    options = settings.segmentation
    size = options.segmentation_size
    parts = {name: study.part(name) for name in ("S-train", "S-val")}
    parts = {name: dataset.resized(one.images, one.masks, size) for name, one in parts.items()}
    resized = {
        name: (*dataset.resized(one.images, one.masks, size), one.fidelity)
        for name, one in pairs.items()
    }
    inputs = {f"test {n}": digest(images, list(ids), *m) for n, (images, m, ids) in tests.items()}
    tests = {n: (dataset.shrunk(images, size), m, ids) for n, (images, m, ids) in tests.items()}
    most = len(parts["S-train"][0]) + max(settings.design.synthetic_amounts)
    matched = options.matched_steps or training.count_steps(most, options.epochs, options.batch)
    found = []
    for cell in progress(cells, desc="cells"):
        data = CellData(parts, resized.get(synthetic_set(cell.method)), tests, inputs)
        rows = run_cell(cell, data, settings, folder / "checkpoints" / "cells", matched)
        write_csv(folder / "cells" / f"{cell.id}.csv", rows)
        found.append(rows)
    return pd.concat(found, ignore_index=True)


ARM = ["network", "method", "amount", "share", "schedule"]


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
