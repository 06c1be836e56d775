"""The grid of Table 2: which network is trained on which data, for how long, with which seed."""

import re
from dataclasses import dataclass, replace

from lesionlib.engine.settings import Settings

ARMS = (
    "table",  # the paper: S-train alone, and with each amount of each generator, equal epochs
    "steps",  # the same for equal optimiser steps, the schedule of all arms below
    "real_pairs",  # real pairs of G in place of synthetic ones: the positive control
    "shuffled",  # synthetic pairs with masks of other pairs, which must hurt
    "classical",  # S-train alone with classical augmentation
    "low_data",  # a share of S-train
    "synthetic_only",  # no real images
    "masks",  # masks of the other two modes
    "prompts",  # empty prompts, and all combinations of labels equally often
    "filtered",  # the synthetic pairs of the highest mask fidelity
    "mixing",  # synthetic pairs first and real ones then; half of each batch synthetic
    "base",  # images of the base without control
    "plus",  # Pix2PixHD+, which the paper does not have, as a further generator of the arms above
)
MODES = ("paper", "real", "fitted")  # of masks, as in masks.recipe.MODES
ALONE = ("real", "classical", "real_pairs")  # methods without synthetic pairs
TREATMENTS = ("best", "shuffled", "first", "mixed")  # endings of methods: the set used otherwise
SCHEDULES = ("epochs", "steps")
PLATEAU = (
    "plateau"  # schedule of the one training per network from which the others' length follows
)
COST = {"unet": 1, "unet_imagenet": 1, "dcsaunet": 4}  # of a training, relative


@dataclass(frozen=True)
class Cell:
    """One training.

    `method`: real or classical (`amount` 0); real_pairs, `amount` percent of G; or a set of
    synthetic pairs, of which the first `amount` are added to `share` percent of S-train, with
    an ending of TREATMENTS in that way. `schedule`: epochs, steps or plateau.
    """

    network: str
    method: str
    amount: int
    share: int
    schedule: str
    seed: int

    @property
    def id(self) -> str:
        """The cell's name, also of its result file."""
        arm = f"{self.network}-{self.method}-{self.amount}-share{self.share}"
        return f"{arm}-{self.schedule}-seed{self.seed}"

    @classmethod
    def parse(cls, name: str) -> "Cell":
        """The cell of this name; ValueError if it is not the name of a cell."""
        try:
            network, method, amount, share, schedule, seed = name.split("-")
            numbers = int(amount), int(share.removeprefix("share")), int(seed.removeprefix("seed"))
            return cls(network, method, *numbers[:2], schedule, numbers[2])
        except ValueError:
            raise ValueError(
                f"'{name}' is not a cell; a valid name is unet-controlnet-100-share100-epochs-seed0"
            ) from None


def repeats(method: str, seeds) -> dict[int, str]:
    """Name of a method's sets and models by generator seed: METHOD, then METHOD_seedN."""
    return {seed: f"{method}_seed{seed}" if i else method for i, seed in enumerate(seeds)}


def of_generator(method: str) -> tuple[str, str]:
    """A method of a cell and the seed of its generator: "first", or N for METHOD_seedN."""
    name, _, seed = method.partition("_seed")
    return name, seed or "first"


def control_sets(arms, mask_mode: str) -> list[str]:
    """Further synthetic sets that the arms need; notebook 03 generates them."""
    others = [f"controlnet_{mode}" for mode in MODES if mode != mask_mode]
    prompts = ["controlnet_empty", "controlnet_uniform"]
    wanted = {"masks": others, "prompts": prompts, "base": ["base"]}
    return [name for arm in ARMS if arm in arms for name in wanted.get(arm, [])]


def treatment(method: str) -> str:
    """How a method uses its synthetic set: one of TREATMENTS, or '' as the paper does."""
    ending = method.rpartition("_")[2]
    return ending if ending in TREATMENTS else ""


def synthetic_set(method: str) -> str:
    """The synthetic set that a method's pairs come from, or ''."""
    return "" if method in ALONE else re.sub(rf"_({'|'.join(TREATMENTS)})$", "", method)


def generators(settings: Settings) -> list[str]:
    """The methods of Table 2; see ARMS for Pix2PixHD+. External generators are further ones."""
    design = settings.design
    own = [m for m in design.methods if m != "pix2pixhd_plus" or "plus" in design.arms]
    return [*own, *design.external_generators]


def _schedule(design) -> str:
    """The schedule of the arms beyond the paper's table."""
    return "steps" if "steps" in design.arms else "epochs"


def table_arms(network: str, settings: Settings) -> list[tuple[str, int, int, str]]:
    """(method, amount, share, schedule) of the paper's table, with all generator seeds."""
    design, own, methods = settings.design, settings.segmentation, generators(settings)
    amounts, alone, found = sorted(design.synthetic_amounts), ("real", 0, 100), []
    if network in own.brief_networks:
        return [(*a, _schedule(design)) for a in (alone, (methods[0], amounts[-1], 100))]
    seeds = settings.training.generator_seeds
    names = [
        n for m in methods for n in (repeats(m, seeds).values() if m in design.methods else [m])
    ]
    for arm, schedule in (("table", "epochs"), ("steps", "steps")):
        if arm in design.arms:
            limit = own.equal_epochs_up_to if schedule == "epochs" else 0
            paid = [amount for amount in amounts if not limit or amount <= limit]
            found.append((*alone, schedule))
            found += [(name, amount, 100, schedule) for name in names for amount in paid]
    return found


def headroom_arms(network: str, settings: Settings) -> list[tuple[str, int, int]]:
    """(method, amount, share) of S-train alone at low shares, and with real pairs of G."""
    arms, own = settings.design.arms, settings.segmentation
    brief, most = network in own.brief_networks, max(own.real_pairs)
    low = sorted({own.control_share, *([] if brief or "low_data" not in arms else own.data_shares)})
    low = [share for share in low if share < 100]
    found = [("real", 0, share) for share in low]
    if "real_pairs" in arms:
        found += [("real_pairs", most, share) for share in (100, *reversed(low))]
        found += [("real_pairs", n, 100) for n in sorted(own.real_pairs) if n < most and not brief]
    return found


def control_arms(network: str, settings: Settings) -> list[tuple[str, int, int]]:
    """(method, amount, share) of the other arms that the paper's table does not have."""
    design, own, methods = settings.design, settings.segmentation, generators(settings)
    amounts, at, arms = design.synthetic_amounts, own.control_share, design.arms
    few, many, first = min(amounts), max(amounts), methods[0]
    if network in own.brief_networks:
        return [(first, few, at)] if at < 100 else []
    asked = [at] if at < 100 else [s for s in own.data_shares if s < 100 and "low_data" in arms]
    wanted = {
        "shuffled": [(f"{first}_shuffled", few, at)],
        "classical": [("classical", 0, 100)],
        "synthetic_only": [(method, many, 0) for method in methods],
        "filtered": [(f"{method}_best", few, at) for method in methods],
        "mixing": [(f"{first}_{way}", few, at) for way in ("first", "mixed")],
    }
    found = [(method, few, share) for share in asked for method in methods]
    found += [arm for name in ARMS if name in arms for arm in wanted.get(name, [])]
    return found + [(name, few, at) for name in control_sets(arms, design.mask_mode)]


def arms_of(network: str, settings: Settings) -> list[tuple[str, int, int, str]]:
    """(method, amount, share, schedule) of all trainings of a network, in order, each once."""
    design, own = settings.design, settings.segmentation
    found = table_arms(network, settings)
    if network in own.control_networks:
        headroom, schedule = headroom_arms(network, settings), _schedule(design)
        found += [(*arm, schedule) for arm in headroom]
        paid = not own.equal_epochs_up_to and network not in own.brief_networks
        if "table" in design.arms and "real_pairs" in design.arms and paid:
            found.append(("real_pairs", max(own.real_pairs), 100, "epochs"))
        found += [(*arm, schedule) for arm in control_arms(network, settings)]
    return list(dict.fromkeys(found))


def seeds_of(network: str, arm, own) -> list[int]:
    """The seeds with which an arm of `arms_of` is trained; `own`: the group `segmentation`."""
    alone = arm[0] == "real" and arm[2] == 100
    every = alone and network in own.control_networks and network not in own.brief_networks
    return own.seeds if every or not own.arm_seeds else own.seeds[: own.arm_seeds]


def plateau_cell(network: str, own) -> Cell:
    """The training of a network that finds its plateau; `own`: the group `segmentation`."""
    return Cell(network, "real", 0, 100, PLATEAU, own.seeds[0])


def planned_cells(settings: Settings) -> list[Cell]:
    """The grid of a run in the order in which it is best trained.

    First what finds each network's plateau, then all arms with the first seed, so that a table
    exists early, then with the second one, and so on.
    """
    own = settings.segmentation
    cells = [] if own.epochs else [plateau_cell(network, own) for network in own.networks]
    arms = {network: arms_of(network, settings) for network in own.networks}
    for seed in own.seeds:
        for network, some in arms.items():
            cells += [Cell(network, *a, seed) for a in some if seed in seeds_of(network, a, own)]
    return cells


def _maker(cell: Cell) -> str:
    """The generator, or group of generators of one notebook, that a cell waits for."""
    name = of_generator(synthetic_set(cell.method))[0]
    return "controlnet" if name == "base" or name.startswith("controlnet_") else name


def jobs(cells: list[Cell], per_job: int) -> list[tuple[list[str], list[str]]]:
    """Synthetic sets and cell names of jobs of about `per_job` trainings of the U-Net.

    A job needs sets of one generator and the plateau of one network only, so that it need not wait
    for others. The order of `cells` is kept: jobs that begin earlier in it come first. Both
    schedules of one arm without further pairs, which may be the same training, are in one job, so
    that it is not trained twice.
    """
    position = {cell: number for number, cell in enumerate(cells)}
    found = {cell.id: [cell] for cell in cells if cell.schedule == PLATEAU}
    for needed in dict.fromkeys((_maker(cell), cell.network) for cell in cells):
        units, spent = {}, 0
        for cell in cells:
            if (_maker(cell), cell.network) == needed and cell.schedule != PLATEAU:
                schedule = cell.schedule if cell.amount else ""
                units.setdefault(replace(cell, schedule=schedule), []).append(cell)
        for unit, some in units.items():
            found.setdefault((needed, spent // per_job), []).extend(some)
            spent += COST[unit.network]
    ordered = sorted(found.values(), key=lambda some: position[some[0]])
    return [
        (
            [name for name in dict.fromkeys(synthetic_set(c.method) for c in some) if name],
            [cell.id for cell in some],
        )
        for some in ordered
    ]
