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
from lesionlib.engine.training import Files
from lesionlib.segmentation import measures, training
from lesionlib.segmentation.grid import Cell, source


@dataclass(frozen=True)
class CellData:
    """What cells are trained and tested on.

    `parts` maps S-train and S-val to (images, masks); `synthetic` is (images, masks,
    mask_fidelity) or None; `tests` maps the name of a test set to (images (N, S, S, 3), N masks at
    their own resolution, ids); `inputs`: digests of all these, by name.
    """

    parts: dict
    synthetic: tuple | None
    tests: dict
    inputs: dict = field(default_factory=dict)


def training_part(cell: Cell, images, masks, synthetic, order=None):
    """Images and masks on which a cell is trained.

    The first `cell.share` percent of S-train (`images`, `masks`), then the first `cell.amount`
    synthetic pairs: `synthetic` is (images, masks, mask_fidelity) or None. Of a method that ends
    in "_best", the pairs of the highest mask fidelity come first. InputError if there are too few.
    """
    real = round(len(images) * cell.share / 100)
    available = 0 if synthetic is None else len(synthetic[0])
    if available < cell.amount:
        wanted = f"{cell.amount} synthetic pairs of {source(cell.method)}"
        raise InputError(
            f"cell {cell.id}",
            f"it needs {wanted}; there are {available}",
            "lower `synthetic_amounts`, or generate more pairs (notebooks 02 to 04)",
        )
    if not cell.amount:
        return images[:real], masks[:real]
    chosen = np.arange(available)
    if cell.method.endswith("_best"):
        chosen = np.argsort(-np.asarray(synthetic[2]), kind="stable")
    chosen = chosen[: cell.amount]
    return tuple(
        np.concatenate([own[:real], added[chosen]])
        for own, added in zip((images, masks), synthetic[:2], strict=True)
    )


def measured(model, tests: dict, tolerance: float) -> pd.DataFrame:
    """`measures.segmentation` of every test image: columns test, id and the measures.

    `tests`: see `CellData`.
    """
    rows = []
    for name, (images, masks, ids) in tests.items():
        found = zip(ids, training.probabilities(model, images), masks, strict=True)
        rows += [
            {"test": name, "id": one} | measures.segmentation(probability, mask, tolerance)
            for one, probability, mask in found
        ]
    return pd.DataFrame(rows)


def _read(path) -> pd.DataFrame:
    text = {"id": str, "method": str, "test": str}
    return pd.read_csv(path, dtype=text, float_precision="round_trip")


def run_cell(cell: Cell, data: CellData, settings: Settings, folder, matched_steps: int = 0):
    """Train and test one cell: a table with a row per test image, and facts about the training.

    `settings`: the groups `segmentation` and `evaluation`. Under the schedule "steps" a cell gets
    `matched_steps`, else `epochs`. Columns: those of the cell, test, id, the measures of
    `measures.segmentation` (surfaces within `surface_tolerance`), and the same in every row: pairs,
    steps, val_dice. The result is an artefact in `folder`, found by its key and read back while
    that is the same; two cells that are the same training share one.
    """
    own = settings.segmentation
    part = training_part(cell, *data.parts["S-train"], data.synthetic)
    steps = matched_steps if cell.schedule == "steps" else None
    steps = steps or training.steps_of(len(part[0]), own.epochs, own.batch)
    recipe = training.Recipe(
        own.batch,
        own.lr,
        precision=own.segmentation_precision,
        validations=own.validations,
        augmentation="classical" if cell.method == "classical" else "flips",
        encoder=own.unet_encoder,
        decoder=tuple(own.unet_decoder),
    )
    facts = asdict(recipe) | {"network": cell.network, "steps": steps, "seed": cell.seed}
    facts |= {"trained_on": [cell.method if cell.amount else "real", cell.amount, cell.share]}
    facts |= {"size": own.segmentation_size, "tolerance": settings.evaluation.surface_tolerance}
    artefact = Artefact(Path(folder), (run_cell,), facts, data.inputs)
    artefact = replace(artefact, path=Path(folder) / f"{artefact.digest}.csv")
    if not artefact.is_current():
        _train_and_measure(artefact, cell, part, data, recipe)
    rows = _read(artefact.path)
    for place, (name, value) in enumerate(asdict(cell).items()):
        rows.insert(place, name, value)
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
    rows = measured(model, data.tests, settings["tolerance"]).assign(**facts)
    Path(f"{path}.json").unlink(missing_ok=True)  # a record never describes another file
    write_csv(path, rows)
    artefact.record(cell=cell.id, seconds=seconds, **facts)
    files.checkpoint.unlink(missing_ok=True)


def run_cells(cells, study: Study, pairs: dict, tests: dict, settings: Settings, folder):
    """Train and test cells one after the other; their tables in one, each also as folder/ID.csv.

    `pairs` maps a set's name to its pairs (images, masks, mask_fidelity, fingerprint); `tests` maps
    a test set's name to (images (N, S, S, 3), N masks at their own resolution, ids). Networks see
    images of `segmentation_size`. Under the schedule "steps" every cell gets as many steps as
    S-train with the largest amount of pairs gets under "epochs", unless `matched_steps` says it.
    """
    own = settings.segmentation
    size, parts = own.segmentation_size, {name: study.part(name) for name in ("S-train", "S-val")}
    parts = {name: dataset.resized(one.images, one.masks, size) for name, one in parts.items()}
    small = {
        name: (*dataset.resized(one.images, one.masks, size), one.fidelity)
        for name, one in pairs.items()
    }
    inputs = {"data": study.fingerprint}
    inputs |= {f"test {n}": digest(images, list(ids), *m) for n, (images, m, ids) in tests.items()}
    tests = {n: (dataset.shrunk(images, size), m, ids) for n, (images, m, ids) in tests.items()}
    most = len(parts["S-train"][0]) + max(settings.design.synthetic_amounts)
    matched = own.matched_steps or training.steps_of(most, own.epochs, own.batch)
    found = []
    for cell in progress(cells, desc="cells"):
        name = source(cell.method)
        sets = {f"synthetic {name}": pairs[name].determining(cell.method)} if name else {}
        data = CellData(parts, small.get(name), tests, inputs | sets)
        rows = run_cell(cell, data, settings, folder / "checkpoints" / "cells", matched)
        write_csv(folder / "cells" / f"{cell.id}.csv", rows)
        found.append(rows)
    return pd.concat(found, ignore_index=True)


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
