"""The cells of Table 2: each is one training and its measures on every test set."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlib.data import dataset
from lesionlib.data.dataset import Study
from lesionlib.engine.artefacts import Artefact
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import Log, write_csv
from lesionlib.engine.progress import progress
from lesionlib.engine.provenance import digest, recorded
from lesionlib.engine.settings import Settings
from lesionlib.engine.training import Files, resolved_precision
from lesionlib.segmentation import ledger, measures, networks, training
from lesionlib.segmentation.grid import (
    PLATEAU,
    Cell,
    of_generator,
    plateau_cell,
    synthetic_set,
    treatment,
)
from lesionlib.segmentation.measures import MEASURES
from lesionlib.segmentation.plateau import budget, plateau


@dataclass(frozen=True)
class CellData:
    """The data on which cells are trained and tested, at one size, shared by all of them.

    `parts` maps S-train, S-val and G to (images, masks); `synthetic` the names of sets to (images,
    masks, mask_fidelity); `tests` the name of a test set to (images (N, S, S, 3), N masks at their
    own resolution, ids); `inputs`: digests of the test sets by name.
    """

    parts: dict
    synthetic: dict
    tests: dict
    inputs: dict = field(default_factory=dict)


def load_data(study: Study, pairs: dict, tests: dict, size: int) -> CellData:
    """`CellData` of a study at `size` pixels.

    `pairs` maps a set's name to its pairs (`images`, `masks`, `fidelity`); `tests`: see `CellData`.
    """
    parts = {name: study.part(name) for name in ("S-train", "S-val", "G")}
    return CellData(
        {name: dataset.resized(one.images, one.masks, size) for name, one in parts.items()},
        {n: (*dataset.resized(x.images, x.masks, size), x.fidelity) for n, x in pairs.items()},
        {name: (dataset.shrunk(images, size), m, ids) for name, (images, m, ids) in tests.items()},
        {f"test {name}": digest(images, list(ids), *m) for name, (images, m, ids) in tests.items()},
    )


def _synthetic(cell: Cell, pairs: tuple | None):
    """Images and masks of a cell's synthetic pairs, from (images, masks, mask_fidelity) or None.

    The first ones, or those of the highest fidelity, or the first ones with masks that have moved
    on by one pair. InputError if there are too few.
    """
    available = 0 if pairs is None else len(pairs[0])
    if available < cell.amount:
        needed = f"{cell.amount} synthetic pairs of {synthetic_set(cell.method)}"
        raise InputError(
            f"cell {cell.id}",
            f"it needs {needed}; there are {available}",
            "lower `synthetic_amounts`, or generate more pairs (notebooks 02 to 04)",
        )
    images, masks, fidelity = pairs
    chosen = np.arange(available)
    if treatment(cell.method) == "best":
        chosen = np.argsort(-np.asarray(fidelity), kind="stable")
    chosen = chosen[: cell.amount]
    of_masks = np.roll(chosen, 1) if treatment(cell.method) == "shuffled" else chosen
    return images[chosen], masks[of_masks]


def _drawn(part, percent: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`percent` of the images and masks of `part`, drawn at random and kept in their order.

    What one seed draws at a lower percentage is part of what it draws at a higher one.
    """
    order = np.random.default_rng(seed).permutation(len(part[0]))
    rows = np.sort(order[: round(len(order) * percent / 100)])
    return tuple(array[rows] for array in part)


def training_part(cell: Cell, data: CellData):
    """Images and masks on which a cell is trained, and how many of them are of S-train.

    They are `cell.share` percent of S-train, then what is added: synthetic pairs, or `cell.amount`
    percent of G. Both are drawn with the cell's seed: images stand in the order of their names,
    which is one of places and years. InputError if there are too few synthetic pairs.
    """
    part = _drawn(data.parts["S-train"], cell.share, cell.seed)
    if cell.method == "real_pairs":
        added = _drawn(data.parts["G"], cell.amount, cell.seed)
    elif cell.amount:
        added = _synthetic(cell, data.synthetic.get(synthetic_set(cell.method)))
    else:
        return part, len(part[0])
    joined = (np.concatenate(arrays) for arrays in zip(part, added, strict=True))
    return tuple(joined), len(part[0])


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


def recipe_of(cell: Cell, options, real: int) -> training.Recipe:
    """How a cell is trained; `options`: the group `segmentation`; `real`: pairs of S-train."""
    classical = {"warps": networks.CLASSICAL, "colour": networks.COLOUR}
    way = treatment(cell.method)
    return training.Recipe(
        options.batch,
        options.lr,
        precision=options.segmentation_precision,
        validations=options.validations,
        encoder=options.unet_encoder,
        decoder=tuple(options.unet_decoder),
        averaging=options.averaging,
        mixing=way if way in ("first", "mixed") else "added",
        real=real,
        **(classical if cell.method == "classical" else {}),
    )


def train_and_measure(artefact: Artefact, cell: Cell, part, data: CellData, recipe):
    """Train a cell on `part`, (images, masks), and write its result with its record.

    `artefact`: from `Grid.artefact`. The record keeps the curve, (step, Dice on S-val) of each
    validation.
    """
    path, settings, began = artefact.path, artefact.settings, time.monotonic()
    files = Files(path.with_suffix(".pt"), log_of(artefact))
    options = {name: settings[name] for name in ("seed", "steps")}
    val = data.parts["S-val"]
    model = training.train(
        cell.network, part, val, recipe, files=files, key=artefact.digest, **options
    )
    trained = round(time.monotonic() - began, 2)
    dice = measures.dice(training.predict(model, val[0]), val[1])
    facts = {"pairs": len(part[0]), "steps": settings["steps"], "val_dice": dice.mean()}
    rows = measure_tests(model, data.tests, settings["tolerance"]).assign(**facts)
    Path(f"{path}.json").unlink(missing_ok=True)  # a record must never describe another file
    write_csv(path, rows)
    facts["precision"] = resolved_precision(recipe.precision, model)
    facts["seconds"], facts["seconds_training"] = round(time.monotonic() - began, 2), trained
    curve = [(int(row["step"]), float(row["val_dice"])) for row in Log.read(files.log)]
    artefact.record(cell=cell.id, curve=curve, **facts)
    files.checkpoint.unlink(missing_ok=True)


def log_of(artefact: Artefact) -> Path:
    """The log of a cell's training."""
    return artefact.path.parent / "logs" / artefact.path.name


@dataclass
class Grid:
    """Trains and tests the cells of a run, whose results are kept in `folder`.

    `settings`: the groups `segmentation` and `evaluation`. The block `mark(cell, steps, log)` holds
    while a cell is trained.
    """

    data: CellData
    settings: Settings
    folder: Path
    mark: Callable = lambda cell, steps, log: nullcontext()
    budgets: dict = field(default_factory=dict)

    def budget(self, network: str) -> int:
        """Optimiser steps of a network on S-train alone: its `epochs`, or what its plateau asks."""
        options, number = self.settings.segmentation, len(self.data.parts["S-train"][0])
        if options.epochs:
            return training.count_steps(number, options.epochs, options.batch)
        if network not in self.budgets:
            _, curve = self.result(plateau_cell(network, options))
            begin = plateau(curve["step"].to_numpy(), curve["val_dice"], options.plateau_gain)
            self.budgets[network] = budget(begin, options.most_steps)
        return self.budgets[network]

    def steps(self, cell: Cell, pairs: int) -> int:
        """Optimiser steps of a cell with so many pairs: equal ones, or equal epochs."""
        if cell.schedule == PLATEAU:
            return self.settings.segmentation.most_steps
        alone = self.budget(cell.network)
        if cell.schedule == "steps":
            return alone
        return max(1, round(alone * pairs / len(self.data.parts["S-train"][0])))

    def artefact(self, cell: Cell, part, recipe: training.Recipe) -> Artefact:
        """The artefact of a cell, named after its key: cells that amount to the same training
        share one."""
        facts = {"network": cell.network, "steps": self.steps(cell, len(part[0]))}
        facts |= recipe.determining() | {"seed": cell.seed}
        facts["tolerance"] = self.settings.evaluation.surface_tolerance
        inputs = {"training part": digest(*part), "S-val": digest(*self.data.parts["S-val"])}
        found = Artefact(self.folder, (train_and_measure,), facts, inputs | self.data.inputs)
        return replace(found, path=Path(self.folder) / f"{found.digest}.csv")

    def result(self, cell: Cell) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Train and test a cell, or read it back: a row per test image, and its curve.

        Columns of the rows: those of the cell, with `generator` (`grid.of_generator`), test, id,
        the measures of `measures.segmentation` (surfaces within `surface_tolerance`), and, equal in
        all rows, pairs, steps, val_dice and plateau (the step at which it begins, NaN without one).
        Columns of the curve: step and val_dice.
        """
        part, real = training_part(cell, self.data)
        recipe = recipe_of(cell, self.settings.segmentation, real)
        artefact = self.artefact(cell, part, recipe)
        if not artefact.is_current():
            with self.mark(cell, artefact.settings["steps"], log_of(artefact)):
                train_and_measure(artefact, cell, part, self.data, recipe)
        curve = pd.DataFrame(recorded(artefact.path)["curve"], columns=["step", "val_dice"])
        rows = _read_rows(artefact.path)
        method, generator = of_generator(cell.method)
        known = asdict(cell) | {"method": method, "generator": generator}
        for position, (name, value) in enumerate(known.items()):
            rows.insert(position, name, value)
        gain = self.settings.segmentation.plateau_gain
        begin = plateau(curve["step"].to_numpy(), curve["val_dice"], gain)
        return rows.assign(plateau=np.nan if begin is None else begin), curve


def run_cells(cells, study: Study, pairs: dict, tests: dict, settings: Settings, run):
    """Train and test cells one after the other; returns their tables and curves, each joined.

    Each table is also written as cells/ID.csv of the folder `run`. `pairs` and `tests`: see
    `load_data`. Networks are trained on images of `segmentation_size`.
    """
    size, folder = settings.segmentation.segmentation_size, run / "checkpoints" / "cells"
    grid = Grid(
        load_data(study, pairs, tests, size),
        settings,
        folder,
        lambda cell, steps, log: ledger.running(run, cell, steps, log),
    )
    found, curves = [], []
    for cell in progress(cells, desc="cells of the grid"):
        rows, curve = grid.result(cell)
        path = run / "cells" / f"{cell.id}.csv"
        if not path.exists() or path.read_text() != rows.to_csv(index=False):
            write_csv(path, rows)  # else it keeps its time: jobs that were given it are up to date
        ledger.finished(run, cell)
        curves.append(curve.assign(cell=cell.id, **asdict(cell)))
        found.append(rows)
        if cell.schedule == PLATEAU and rows["plateau"].isna().all():
            print(
                f"WARNING: {cell.network} has no plateau within `most_steps`, "
                f"{settings.segmentation.most_steps} steps on S-train alone: Table 2 compares "
                "networks that still learn"
            )
    return pd.concat(found, ignore_index=True), pd.concat(curves, ignore_index=True)


def learnt(curves: pd.DataFrame, gain: float) -> pd.DataFrame:
    """Where each training's plateau begins (NaN without one): a row per cell of `curves`.

    `curves`: from `run_cells`; `gain`: as for `plateau.plateau`. Columns: those of the cell, steps,
    val_dice (the best one) and plateau.
    """
    rows = []
    for _, curve in curves.groupby("cell", sort=False):
        facts = curve.iloc[0].drop(["step", "val_dice"]).to_dict()
        facts |= {"steps": curve["step"].max(), "val_dice": curve["val_dice"].max()}
        begin = plateau(curve["step"].to_numpy(), curve["val_dice"], gain)
        rows.append(facts | {"plateau": np.nan if begin is None else begin})
    return pd.DataFrame(rows)


ARM = ["network", "method", "amount", "share", "schedule"]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per arm, test set and seed: mean per image of MEASURES, `dice_pooled`, number of `images`.

    Each generator seed has rows of its own."""
    groups = rows.groupby([*ARM, "test", "generator", "seed"], sort=False)
    found = groups[MEASURES].mean()
    found["dice_pooled"] = groups[["tp", "fp", "fn"]].apply(measures.pooled_dice)
    found["images"] = groups.size()
    return found.join(groups[["pairs", "steps", "val_dice", "plateau"]].first()).reset_index()


def table2(per_seed: pd.DataFrame) -> pd.DataFrame:
    """Per arm and test set: mean and sample sd of `dice` over trainings (one: NaN), the means of
    the other measures, optimiser `steps`, numbers of `seeds` and `generators`, and `unfinished`,
    the number of trainings that ended before their plateau."""
    groups = per_seed.groupby([*ARM, "test"], sort=False)
    found = groups["dice"].agg(dice_mean="mean", dice_sd="std")
    found["seeds"], found["generators"] = groups["seed"].nunique(), groups["generator"].nunique()
    found["unfinished"] = groups["plateau"].agg(lambda steps: int(steps.isna().sum()))
    others = ["dice_pooled", *MEASURES[1:], "pairs", "steps"]
    return found.join(groups[others].mean()).reset_index()
