"""What a run will cost: `./run_all.sh --preset NAME --estimate [--gpu h100[:4]]`.

The counts of a run are those of the functions that it uses itself (`planned_cells`, budgets,
recipes); `probe` tries what a unit of each kind costs here, `gpu` counts it for a card that is not
at hand. The jobs of the Snakefile are then packed over cores or GPUs in its order. The steps S*
after which a network has learnt are unknown before the run: both ends of a range are printed.
"""

import argparse
import heapq
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lesionlib.data import phantom, prompts, sources, split
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json, resolve, write_json
from lesionlib.engine.provenance import hardware
from lesionlib.engine.settings import Settings
from lesionlib.engine.stages import STAGES
from lesionlib.engine.training import Schedule
from lesionlib.generators import sets, validation
from lesionlib.generators.budget import diffusion_images, pix2pixhd_settings
from lesionlib.segmentation import cells, grid, plateau
from lesionlib.workflow import gpu, probe
from lesionlib.workflow.status import kept_file

ASSUMED = 2594  # images of a source that is not at hand: as many as ISIC 2018 has
DIAGNOSES = len(phantom.DIAGNOSES)  # that prompts can name: three in ISIC too
EARLY = plateau.LATEST / 3  # share of the longest training at which the low end has its plateau
# What a stage takes beside what is counted (its start, figures, tables), in starts of a kernel: so
# that the recorded times of a `quick` on two cores (figures/quick of 26 November 2026) come out.
FIXED = {
    "01_data": 1.3,
    "02_masks": 1.2,
    "03_controlnet": 2.8,
    "04_pix2pixhd": 1.8,
    "05_image_quality": 2.0,
    "06_segmentation": 1.1,
    "07_figures": 1.0,
    "report": 0.4,
    "grid": 1.3,
}
NOTEBOOKS = 40e6  # bytes of notebooks, figures and report of a run


@dataclass(frozen=True)
class Job:
    """A job of the Snakefile: stage, units of work, the jobs that it waits for, cores."""

    name: str
    stage: str
    work: dict = field(default_factory=dict)
    after: frozenset = frozenset()
    width: int = 1

    def seconds(self, units: dict) -> float:
        """How long it takes, by seconds of each unit."""
        fixed = FIXED[self.stage] * units["kernel"]
        return fixed + sum(number * units[unit] for unit, number in self.work.items() if number)


def packed(jobs, capacity: int, seconds) -> dict[str, tuple[float, float]]:
    """Start and end of each job by its name, if `capacity` cores (or GPUs) work.

    As Snakemake does: whenever cores are free, the first job in the list whose predecessors have
    ended and which fits in begins. `seconds`: a function of a job. ValueError for a job that waits
    for one that is not there.
    """
    left, running, ended, found, now, free = list(jobs), [], set(), {}, 0.0, capacity
    while left or running:
        for job in [job for job in left if job.after <= ended]:
            width = min(job.width, capacity)
            if width <= free:
                left.remove(job)
                free -= width
                found[job.name] = now, now + seconds(job)
                heapq.heappush(running, (found[job.name][1], job.name, width))
        if not running:
            raise ValueError(f"these jobs wait for one that is not there: {[j.name for j in left]}")
        now, name, width = heapq.heappop(running)
        ended.add(name)
        free += width
    return found


def parts(settings: Settings) -> tuple[dict, str]:
    """Images in each part of the split, and the sentence that says where the number is from."""
    data = settings.data
    place, ids = data.isic_root if data.source == "isic" else data.images, ()
    if data.source == "phantom":
        n, told = data.phantoms, "procedural images"
    elif place and resolve(place).exists():
        ids = sources.read(data, "").table.query("mask != ''")["id"]
        n, told = len(ids), "pairs were found"
    else:
        n, told = ASSUMED, "images assumed, as in ISIC 2018: the source is not at hand"
    sizes = split.sizes(n, data.generator_share)
    if data.split not in ("grouped", "paper", "official"):
        named = split.read_file(data.split, ids)[0]
        named = named[named.index.isin(ids)] if len(ids) else named
        sizes = named.value_counts().reindex(split.PARTS, fill_value=0).to_dict()
        if not all(sizes.values()):
            problem = f"no image is in {min(sizes, key=sizes.get)}"
            raise InputError(resolve(data.split), problem, "assign some to it")
    numbers = ", ".join(f"{part} {number:,}" for part, number in sizes.items())
    return sizes, f"{sum(sizes.values()):,} {told} ({numbers})"


def stand_ins(settings: Settings, sizes: dict) -> cells.CellData:
    """Data of the grid with as many images as the run has, of two pixels a side."""
    rng, wanted = np.random.default_rng(0), Counter()

    def pairs(n):
        images = rng.integers(0, 256, (n, 2, 2, 3), dtype=np.uint8)
        return images, rng.integers(0, 2, (n, 2, 2), dtype=np.uint8)

    for cell in grid.planned_cells(settings):
        if name := grid.synthetic_set(cell.method):
            wanted[name] = max(wanted[name], cell.amount)
    synthetic = {name: (*pairs(n), rng.random(n)) for name, n in wanted.items()}
    return cells.CellData({name: pairs(sizes[name]) for name in sizes}, synthetic, {})


def grid_work(settings: Settings, sizes: dict, share: float) -> dict[str, dict]:
    """Units of work of each cell by its name, if S-train alone has its plateau at `share` of the
    longest training (1: not at all).

    A training that several cells share (`cells.Grid.artefact`) counts for the first one in a job.
    """
    own, found, seen = settings.segmentation, {}, set()
    data = stand_ins(settings, sizes)
    begin = None if share >= 1 else round(share * own.most_steps)
    budgets = dict.fromkeys(own.networks, plateau.budget(begin, own.most_steps))
    planned = cells.Grid(data, settings, Path(), budgets=budgets)
    tests = sizes["S-test"] * (1 + len(settings.data.external_tests))
    for _, names in grid.jobs(grid.planned_cells(settings), settings.jobs.cells_per_job):
        for cell in map(grid.Cell.parse, names):
            part, real = cells.training_part(cell, data)
            recipe = cells.recipe_of(cell, own, real)
            artefact = planned.artefact(cell, part, recipe)
            if artefact.digest in seen:
                found[cell.id] = {}
                continue
            seen.add(artefact.digest)
            batch = max(2, min(recipe.batch, len(part[0]))) / max(2, recipe.batch)
            validated = (recipe.validations + 1) * sizes["S-val"]
            found[cell.id] = {
                cell.network: artefact.settings["steps"] * batch,
                f"{cell.network} image": validated + tests,
                "measured": tests,
            }
    return found


def painted(settings: Settings, sizes: dict) -> list[tuple[int, bool, bool, float]]:
    """Images that the diffusion models sample in notebook 03: (number, whether with prompts,
    whether with control, guidance)."""
    design, own = settings.design, settings.sampling
    few, many = min(design.synthetic_amounts), max(design.synthetic_amounts)
    seeds, scale = len(settings.training.generator_seeds), own.guidance
    found = [(sizes["S-test"] * seeds, False, True, scale), (sizes["S-test"], False, False, scale)]
    found.append((many * seeds, True, True, scale))
    for name in grid.control_sets(design.arms, design.mask_mode):
        found.append((few, name != "controlnet_empty", name != "base", scale))
    found.append((4 * own.diversity_samples, False, True, scale))
    asked = DIAGNOSES + len(prompts.ATTRIBUTES), DIAGNOSES * (1 + len(prompts.ATTRIBUTES))
    number = min(own.prompt_samples, many) * asked[0] + asked[1]
    return [*found, (number, True, True, own.prompt_guidance)]


def validation_work(settings: Settings, sizes: dict) -> Counter:
    """Units of the validations of one ControlNet's training."""
    own, steps, n = settings.validation, settings.controlnet.steps, sizes["S-val"]
    plan = Schedule(steps, 0.0, validate_every=own.validate_every)
    times = 1 + sum(map(plan.validates, range(1, steps + 1)))
    times = 1 if settings.controlnet.model else times
    losses = 2 * n * max(1, validation.EVALUATIONS // n)
    passes = probe.rows(settings.sampling, False, True) * settings.sampling.ddim_steps
    few = min(n, own.validation_samples)
    return Counter(denoised=times * (losses + few * passes), decoded=times * few)


def diffusion_work(settings: Settings, sizes: dict) -> Counter:
    """Units of notebook 03."""
    own, warps, seeds = (
        settings.controlnet,
        settings.augmentation,
        settings.training.generator_seeds,
    )
    images, work = diffusion_images(settings), Counter(classifier=settings.classifier.steps)
    work["controlnet"] = images["controlnet"] / own.batch * len(seeds)
    work["base"] = images["base"] / settings.base.batch
    trained = [name for name, number in images.items() if number]
    kept = {warps.variants if name in warps.trainings else 8 for name in trained}
    work["encoded"] = sum(kept) * sizes["G"]
    for unit, number in validation_work(settings, sizes).items():
        work[unit] += number * len(seeds)
    for number, prompted, control, scale in painted(settings, sizes):
        sampling = settings.sampling.model_copy(update={"guidance": scale})
        passes = probe.rows(sampling, prompted, control) * sampling.ddim_steps
        work["denoised"] += number * passes
        work["decoded"] += number
    return work


def gan_work(settings: Settings, sizes: dict) -> Counter:
    """Units of notebook 04."""
    own, work = pix2pixhd_settings(settings), Counter()
    seeds = len(settings.training.generator_seeds)
    for name in settings.design.methods:
        if name != "controlnet":
            stages = zip(probe.gan_stages(settings), (own.steps, own.fine_steps), strict=False)
            work |= {name + ending: steps * seeds for ending, steps in stages}
            made = sizes["S-test"] + max(settings.design.synthetic_amounts)
            work[f"{name} image"] = made * seeds
    return work


def judged(settings: Settings, sizes: dict) -> int:
    """Images that notebook 05 judges."""
    design, many = settings.design, max(settings.design.synthetic_amounts)
    methods = len(design.methods) * len(settings.training.generator_seeds)
    methods += len(design.external_generators)
    return (methods + 2) * sizes["S-test"] + methods * many + sizes["G"] + sizes["S-train"]


def planned_jobs(settings: Settings, sizes: dict, share: float, cores: int) -> list[Job]:
    """The jobs of the Snakefile in the order of their priority; `share`: see `grid_work`."""
    design, threads = settings.design, settings.jobs.threads
    many, n = max(design.synthetic_amounts), sum(sizes.values())
    started = frozenset({"data", "masks"})
    makers = {name: f"external_{name}" for name in design.external_generators}
    gans = {"pix2pixhd"} if set(design.methods) - {"controlnet"} else set()
    every = started | set(makers.values()) | {"controlnet"} | gans
    asked = {"mask": 3 * settings.masks.mask_samples + many, "reference": settings.reference.steps}
    work, planned = grid_work(settings, sizes, share), grid.planned_cells(settings)
    shares, of_cell = [], {}
    divided = grid.jobs(planned, settings.jobs.cells_per_job)
    of_cell = {cell: k for k, (_, names) in enumerate(divided, 1) for cell in names}
    for k, (needed, names) in enumerate(divided, 1):
        makes = {makers.get(s) or sets.source_notebook(s).partition("_")[2] for s in needed}
        found = {
            grid.plateau_cell(grid.Cell.parse(c).network, settings.segmentation).id for c in names
        }
        waits = {f"segmentation_{of_cell[c]:02d}" for c in found if of_cell.get(c, k) != k}
        units = sum((Counter(work[cell]) for cell in names), Counter())
        after = frozenset({"data"} | makes | waits)
        shares.append(Job(f"segmentation_{k:02d}", "grid", units, after, threads))
    done = frozenset(job.name for job in shares)
    quality, final = frozenset(every), done | {"data"}
    seen = dict.fromkeys(("judged", "compared"), judged(settings, sizes))
    last = frozenset({"image_quality", "segmentation", "masks"}) | every - {"data"}
    return [
        Job("controlnet", "03_controlnet", diffusion_work(settings, sizes), started, threads),
        *(Job(name, "04_pix2pixhd", gan_work(settings, sizes), started, threads) for name in gans),
        *shares,
        Job("data", "01_data", {"picture": n / cores}),
        Job("masks", "02_masks", asked, frozenset({"data"})),
        *(Job(name, "report", {}, started) for name in makers.values()),
        Job("image_quality", "05_image_quality", seen, quality),
        Job("segmentation", "06_segmentation", {}, final),
        Job("figures", "07_figures", {}, last),
        Job("pages", "report", {}, frozenset({"image_quality"})),
        Job("report", "report", {}, frozenset({"figures", "pages"})),
    ]


def disk(settings: Settings, sizes: dict, networks: dict) -> float:
    """Bytes that a run writes, about; `networks`: parameters by name."""
    pixels, n = settings.data.image_size**2, sum(sizes.values())
    work = diffusion_work(settings, sizes) + gan_work(settings, sizes)
    seeds = len(settings.training.generator_seeds)
    made = sum(number for unit, number in work.items() if unit == "decoded" or "image" in unit)
    kept = 4 + 12  # bytes of a weight: the model, and a checkpoint with both moments of Adam
    found = NOTEBOOKS + 8 * pixels * n + 2 * pixels * made
    found += 4 * networks["latents"] * work["encoded"]
    trained = {"base": bool(work["base"]), "controlnet": bool(work["controlnet"]) * seeds}
    trained |= {name: seeds for name in settings.design.methods if name != "controlnet"}
    found += sum(networks[name] * kept * number for name, number in trained.items())
    return found + 1e3 * len(grid.planned_cells(settings)) * sizes["S-test"]


@dataclass(frozen=True)
class Machine:
    """Where a run is estimated: cores, and a card and the number of them if it is counted."""

    cores: int
    card: gpu.Card | None = None
    cards: int = 1

    @classmethod
    def here(cls, rest=(), named: str = "") -> "Machine":
        """The cores that Snakemake's options `rest` allow, and the card `named`, such as h100:4."""
        options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        options.add_argument("--cores", "-c", "--jobs", "-j", default="all", nargs="?")
        given, every = options.parse_known_args(rest)[0].cores, len(os.sched_getaffinity(0))
        cores = int(given) if given and given.isdigit() else every
        name, _, number = named.partition(":")
        if named and (name not in gpu.CARDS or not (number or "1").isdigit()):
            problem = f"'{named}' is no card that is known"
            raise InputError("--gpu", problem, f"one of {', '.join(gpu.CARDS)}, or h100:4 for four")
        return cls(cores, gpu.CARDS.get(name), max(1, int(number or 1)))

    def beside(self, settings: Settings) -> int:
        """Jobs that work side by side."""
        return self.cards if self.card else max(1, self.cores // settings.jobs.threads)


def units(settings: Settings, machine: Machine) -> dict:
    """What a unit of each work costs, as `probe.tried` tells; what was tried here is kept."""
    cpu = [(work,) for work in probe.ON_CPU]
    if machine.card is None:
        works = probe.needed(settings) + cpu
        found = probe.tried(settings, works, machine.beside(settings))
        write_json(kept_file(settings), found | {"when": time.strftime("%Y-%m-%d %H:%M")})
        return found
    found = probe.tried(settings, cpu, 1)
    with tempfile.TemporaryDirectory() as folder:
        counted = gpu.counted(settings, machine.card, Path(folder))
    return found | counted | {"seconds": found["seconds"] | counted["seconds"]}


@dataclass
class Estimate:
    """A run's jobs at both ends of the range of S*, and what their units cost."""

    settings: Settings
    machine: Machine
    found: dict

    def __post_init__(self):
        self.sizes, self.told = parts(self.settings)
        shares = [1.0] if self.settings.segmentation.epochs else [EARLY, 1.0]
        self.ends = [
            planned_jobs(self.settings, self.sizes, share, self.machine.cores) for share in shares
        ]

    def plans(self, seconds=None, done=frozenset()) -> list[dict]:
        """`packed` of the jobs that are not `done`, for each end."""
        seconds = seconds or (lambda job: job.seconds(self.found["seconds"]))
        capacity = self.machine.beside(self.settings) if self.machine.card else self.machine.cores
        plans = []
        for jobs in self.ends:
            left = [
                replace(job, after=job.after - done, width=1 if self.machine.card else job.width)
                for job in jobs
                if job.name not in done
            ]
            plans.append(packed(left, capacity, seconds))
        return plans

    def stages(self, plans) -> dict[str, list[float]]:
        """Seconds of all jobs of each stage, for each end."""
        names = {job.name: job.stage for job in self.ends[0]}
        found = {name: [0.0] * len(plans) for name in [*STAGES, "report"]}
        for end, plan in enumerate(plans):
            for job, (start, stop) in plan.items():
                stage = names[job].replace("grid", "06_segmentation")
                found[stage][end] += stop - start
        return found


def span(seconds, unit: float = 60.0) -> str:
    """Both ends as text, in minutes (or another `unit` of seconds), once if they are alike."""
    ends = [f"{x / unit:.{1 if x / unit < 10 else 0}f}" for x in seconds]
    return ends[0] if len(set(ends)) == 1 else " to ".join((ends[0], ends[-1]))


def assumptions(one: Estimate) -> list[str]:
    """What was assumed, as sentences."""
    own, card = one.settings.segmentation, one.machine.card
    lines = []
    if not own.epochs:
        lines.append(
            f"the steps S* of segmentation are unknown before the run: from a plateau at step "
            f"{round(EARLY * own.most_steps)} to none within most_steps = {own.most_steps}"
        )
    if card:
        lines.append(
            f"counted, not tried: {card.flops / 1e12:.0f} TFLOP/s and {card.bytes / 1e12:.2f} TB/s "
            f"({card.source}), of which {gpu.COMPUTE:.0%} and {gpu.MEMORY:.0%} are reached, and "
            f"{1e6 * gpu.LAUNCH:.0f} µs for each operation; what a CPU does was tried here"
        )
    lines.append(f"prompts name {DIAGNOSES} diagnoses; a first start, nothing is done yet")
    return lines


def report(one: Estimate) -> str:
    """The estimate as text: minutes per stage, the time in all, disk, memory, assumptions."""
    settings, machine, plans = one.settings, one.machine, one.plans()
    wall = [max(stop for _, stop in plan.values()) for plan in plans]
    work = [sum(stop - start for start, stop in plan.values()) for plan in plans]
    beside = machine.beside(settings)
    where = hardware()
    if machine.card:
        where = f"{machine.cards} x {machine.card.name}"
    lines = [f"Estimate of {settings.preset} on {where}, {beside} at a time; {one.told}"]
    counts = Counter(job.stage.replace("grid", "06_segmentation") for job in one.ends[0])
    for stage, ends in one.stages(plans).items():
        lines.append(
            f"  {stage:<18}{counts[stage]:>4} job{'s' * (counts[stage] > 1):<2}{span(ends):>14} min"
        )
    total = f"in all about {span(wall)} min"
    if max(wall) >= 7200:
        total += f" ({span(wall, 3600)} h)"
    if machine.card:
        total += f", {span(work, 3600)} GPU-hours"
    space = disk(settings, one.sizes, one.found["parameters"])
    memory = one.found["memory"] / 1e3
    lines.append(f"{total}; disk {space / 1e9:.1f} GB; memory {memory:.1f} GB for the largest job")
    lines += gpu_lines(one)
    return "\n".join([*lines, *(f"assumed: {line}" for line in assumptions(one))])


def gpu_lines(one: Estimate) -> list[str]:
    """What is said of the memory of GPUs."""
    used = one.found.get("gpu")
    if not used:
        return []
    if not isinstance(used, dict):
        return [f"GPU memory: {used:.1f} GB for the largest job"]
    unit, most = max(used.items(), key=lambda item: item[1])
    line, limit = f"GPU memory: {most:.0f} GB ({unit})", one.machine.card.memory / 1e9
    if most > limit:
        line = f"WARNING: {line}, more than the {limit:.0f} GB of the card: lower the batch"
    return [line]


def estimate(settings: Settings, rest=(), named: str = "") -> str:
    """The estimate of a run as text; see `Machine.here` for `rest` and `named`."""
    machine = Machine.here(rest, named)
    return report(Estimate(settings, machine, units(settings, machine)))


class Countdown:
    """The time that a run has left, by what was last tried on this machine (`kept_file`).

    `began`: the time of its start, when none of its jobs was at work yet.
    """

    def __init__(self, settings: Settings, rest, began: float, clock=time.time):
        self.run, self.clock, self.began = resolve(settings.run), clock, began
        self.one = Estimate(settings, Machine.here(rest), read_json(kept_file(settings)))
        self.seen, self.done = {}, set()  # when a job began that is at work; those that have ended

    def first(self) -> str:
        """What is said when the run starts."""
        return report(self.one)

    def _written(self, job: Job, kind: str) -> float:
        """When a log of a job was written: `txt` as it began, `tsv` as it ended; 0 without one."""
        stage = job.stage
        if stage == "grid":
            stage = job.name.replace("segmentation_", "06_segmentation-")
        path = self.run / "logs" / f"{stage}.{kind}"
        return path.stat().st_mtime if path.exists() else 0.0

    def left(self) -> tuple[str, bool]:
        """The time left in words, and whether a job has ended since the last call.

        A job that an earlier start has ended counts as done until it begins anew.
        """
        now, before = self.clock(), set(self.done)
        for job in self.one.ends[0]:
            begun, ended = (self._written(job, kind) for kind in ("txt", "tsv"))
            self.done.discard(job.name)
            if ended and ended >= begun:
                self.done.add(job.name)
            elif begun >= self.began:
                self.seen[job.name] = begun
        units = self.one.found["seconds"]

        def seconds(job):
            return max(0.0, job.seconds(units) - now + self.seen.get(job.name, now))

        plans = self.one.plans(seconds, frozenset(self.done))
        wall = [max((stop for _, stop in plan.values()), default=0.0) for plan in plans]
        return f"the run: about {span(wall)} min left", bool(self.done - before)
