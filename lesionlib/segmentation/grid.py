"""The grid of Table 2: which network is trained on which data, for how long, with which seed."""

from dataclasses import dataclass, replace

from lesionlib.engine.settings import Settings

ARMS = (
    "table",  # the paper: S-train alone, and with each amount of each generator, equal epochs
    "steps",  # the same for equal optimiser steps, the schedule of all arms below
    "classical",  # S-train alone with classical augmentation
    "synthetic_only",  # no real images
    "masks",  # masks of the other two modes
    "prompts",  # empty prompts
    "filtered",  # the synthetic pairs of the highest mask fidelity
    "base",  # images of the base without control
    "low_data",  # a share of S-train
    "plus",  # Pix2PixHD+, which the paper does not have, as a further generator of the arms above
)
MODES = ("paper", "real", "fitted")  # of masks, as in masks.recipe.MODES
ALONE = ("real", "classical")  # methods without synthetic pairs


@dataclass(frozen=True)
class Cell:
    """One training.

    `method`: real or classical (`amount` 0), or a set of synthetic pairs, of which the first
    `amount` are added to the first `share` percent of S-train; `schedule`: epochs or steps.
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


def control_sets(arms, mask_mode: str) -> list[str]:
    """Further synthetic sets that the arms need; notebook 03 generates them."""
    others = [f"controlnet_{mode}" for mode in MODES if mode != mask_mode]
    wanted = {"masks": others, "prompts": ["controlnet_empty"], "base": ["base"]}
    return [name for arm in ARMS if arm in arms for name in wanted.get(arm, [])]


def synthetic_set(method: str) -> str:
    """The synthetic set that a method's pairs come from, or ''."""
    return "" if method in ALONE else method.removesuffix("_best")


def control_arms(methods, amounts, arms, shares, mask_mode: str) -> list[tuple[str, int, int]]:
    """(method, amount, share) of the arms that the paper's table does not have."""
    few, many, found = min(amounts), max(amounts), []
    if "classical" in arms:
        found.append(("classical", 0, 100))
    if "synthetic_only" in arms:
        found += [(method, many, 0) for method in methods]
    found += [(name, few, 100) for name in control_sets(arms, mask_mode)]
    if "filtered" in arms:
        found += [(f"{method}_best", few, 100) for method in methods]
    if "low_data" in arms:
        low = [share for share in shares if share < 100]
        found += [("real", 0, share) for share in low]
        found += [(method, few, share) for share in low for method in methods]
    return found


def grid(networks, control_networks, methods, amounts, seeds, arms, shares, mask_mode):
    """All cells in a stable order: network, arm, schedule, seed.

    The paper's table is trained for every network, the other `arms` for `control_networks`, with
    equal optimiser steps if "steps" is among them.
    """
    table = [("real", 0, 100), *((m, amount, 100) for m in methods for amount in amounts)]
    schedules = ["epochs"] * ("table" in arms) + ["steps"] * ("steps" in arms)
    controls = control_arms(methods, amounts, arms, shares, mask_mode)
    cells = []
    for network in networks:
        trained = [(*arm, schedule) for schedule in schedules for arm in table]
        if network in control_networks:
            trained += [(*arm, "steps" if "steps" in arms else "epochs") for arm in controls]
        cells += [Cell(network, *arm, seed) for arm in trained for seed in seeds]
    return cells


def planned_cells(settings: Settings) -> list[Cell]:
    """The grid of a run, with external generators as further methods; see ARMS for Pix2PixHD+."""
    design, segmentation = settings.design, settings.segmentation
    methods = [m for m in design.methods if m != "pix2pixhd_plus" or "plus" in design.arms]
    methods += design.external_generators
    return grid(
        segmentation.networks,
        segmentation.control_networks,
        methods,
        design.synthetic_amounts,
        segmentation.seeds,
        design.arms,
        segmentation.data_shares,
        design.mask_mode,
    )


def jobs(cells: list[Cell], per_job: int) -> list[tuple[list[str], list[str]]]:
    """Synthetic sets and cell names of jobs of about `per_job` cells and similar duration.

    A job needs sets of one generator only, so that it need not wait for the other. The two
    schedules of the largest set, which may be the same training, are in one job, so that it is
    not trained twice.
    """

    def generator(cell):
        name = synthetic_set(cell.method)
        return "controlnet" if name == "base" or name.startswith("controlnet_") else name

    most, found = max((cell.amount for cell in cells), default=0), []
    for needed in dict.fromkeys(map(generator, cells)):
        units = {}
        for cell in cells:
            if generator(cell) == needed:
                schedule = "" if cell.amount == most else cell.schedule
                units.setdefault(replace(cell, schedule=schedule), []).append(cell)
        n_jobs = -(-sum(map(len, units.values())) // per_job)
        shares = [list(units.values())[i::n_jobs] for i in range(n_jobs)]
        for share in ([cell for unit in chosen for cell in unit] for chosen in shares if chosen):
            sets = dict.fromkeys(synthetic_set(cell.method) for cell in share)
            found.append(([name for name in sets if name], [cell.id for cell in share]))
    return found
