"""`./run_all.sh --generate RUN --out DIR -n 1000`: pairs on demand, from a finished run.

from lesionlib.workflow.generate import Order, generate
table = generate(Order("runs/quick", "pairs", 1000, mask_mode="fitted"))

Candidates are generated in rounds, each a set of `generators.sets` in DIR/.work, in one process or
in several (`python -m lesionlib.workflow.generate DIR NUMBER`); those of sufficient fidelity become
DIR/images and DIR/masks, then DIR/manifest.csv and DIR/README.md are written. An interrupted order
goes on where it stopped.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lesionlib.data import curation, dataset, duplicates, pairing, prompts
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json, resolve, write_csv, write_json
from lesionlib.engine.progress import progress
from lesionlib.engine.provenance import digest, record
from lesionlib.engine.settings import nearest
from lesionlib.engine.training import device
from lesionlib.evaluation import leakage
from lesionlib.generators import controlnet, jobs, pix2pixhd, sets
from lesionlib.masks import conditions, recipe
from lesionlib.segmentation import reference
from lesionlib.workflow import cards, processes

GENERATORS = ("controlnet", "pix2pixhd", "pix2pixhd_plus")
MOST = 20  # candidates per pair before a least fidelity is given up
FEWEST = 16  # candidates of a further round
BLOCK = 1000  # pairs that are compared with the training images at once


@dataclass(frozen=True)
class Order:
    """What is ordered: `n` pairs of the finished run in `run`, into the folder `out`.

    n: 0 is one for each of the given masks, or 100 pairs.
    masks: a folder of masks, taken in turn; if empty they are drawn.
    mask_mode: paper, real or fitted (`masks.recipe`); if empty, as in the run.
    prompt: one sentence for all images; None draws labels of the run's G.
    diagnosis: shares of diagnoses among the prompts; what is left of 1 goes to all others.
    generator: one of GENERATORS.
    min_fidelity: least Dice of the reference segmenter with the mask; others are generated instead.
    seed: of masks, prompts and noise. processes: that generate side by side.
    """

    run: str
    out: str
    n: int = 0
    masks: str = ""
    mask_mode: str = ""
    prompt: str | None = None
    diagnosis: dict = field(default_factory=dict)
    generator: str = "controlnet"
    min_fidelity: float = 0.0
    seed: int = 0
    processes: int = 1

    def check(self):
        """InputError for values that cannot be meant."""
        drawn = self.mask_mode or "paper"
        rules = (
            (self.generator not in GENERATORS, "generator", f"one of {', '.join(GENERATORS)}"),
            (drawn not in recipe.MODES, "mask-mode", f"one of {', '.join(recipe.MODES)}"),
            (self.masks and self.mask_mode, "mask-mode", "left out where --masks are given"),
            (not 0 <= self.min_fidelity < 1, "min-fidelity", "at least 0 and less than 1"),
            (self.n < 0 or self.processes < 1 or self.seed < 0, "n", "no negative number"),
            (self.prompt is not None and self.diagnosis, "prompt", "given without --diagnosis"),
            (
                sum(self.diagnosis.values()) > 1 + 1e-9,
                "diagnosis",
                "shares with a sum of at most 1",
            ),
        )
        if self.generator != "controlnet":
            wished = self.prompt is not None or self.diagnosis
            rules += ((wished, "generator", "controlnet with a prompt: Pix2PixHD reads none"),)
        for broken, name, remedy in rules:
            if broken:
                value = getattr(self, name.replace("-", "_"))
                raise InputError(f"--{name}", f"{value!r} is not possible", f"it must be {remedy}")


def load_generator(folder, settings, name: str, seed: int) -> jobs.Painter | jobs.Translator:
    """What generates images as the finished run in `folder` does, with its generator `name`."""
    if name != "controlnet":
        generator = pix2pixhd.load(folder / "models" / name).to(device())
        return jobs.Translator(generator, seed)
    pipe = jobs.load_base(folder, settings)
    controlled = controlnet.load(pipe, folder / "models" / name)
    sampling = settings.sampling.model_copy(update={"sample_seed": seed})
    settings = settings.model_copy(update={"sampling": sampling})
    return jobs.Painter(folder, settings, pipe, controlled)


class Maker:
    """Draws the conditions of an order and generates its candidates, by number."""

    def __init__(self, order: Order):
        order.check()
        self.order, self.folder = order, resolve(order.run)
        self.settings = cards.finished(self.folder)
        self.study = dataset.load(self.folder)

    @cached_property
    def given(self) -> np.ndarray:
        """The masks (m, S, S) of the order's folder, in the order of their names."""
        files = pairing.list_files(self.order.masks, "--masks").found
        size, fit = self.study.masks.shape[1], self.settings.data.fit
        paths = [files[name] for name in sorted(files)]
        return np.stack([_read_mask(path, size, fit) for path in progress(paths, desc="masks")])

    @cached_property
    def painter(self) -> jobs.Painter | jobs.Translator:
        """What generates the images."""
        return load_generator(self.folder, self.settings, self.order.generator, self.order.seed)

    @property
    def number(self) -> int:
        """How many pairs are ordered."""
        return self.order.n or (len(self.given) if self.order.masks else 100)

    @property
    def most(self) -> int:
        """How many candidates there can be: one mask gives one image where there is no noise."""
        noise = self.order.generator == "controlnet" or self.painter.generator.config["noise"]
        if self.order.masks and not noise:
            return len(self.given)
        return self.number * (MOST if self.order.min_fidelity else 1)

    def _labels(self, first: int, n: int) -> pd.DataFrame:
        table, seed = self.study.part("G").table, self.order.seed
        method = self.settings.masks.prompt_draw
        if self.order.diagnosis:
            weight = _weights(table["diagnosis"].fillna(""), self.order.diagnosis)
            table, method = table.assign(weight=weight), "weight"
        else:
            table, method = conditions.candidates(table, method)
        return prompts.draw(table, n, seed, method, first)

    def conditions(self, first: int, n: int) -> tuple[np.ndarray, list[str]]:
        """Masks (n, S, S) and prompts of the candidates `first` to `first` + n - 1."""
        order, data = self.order, self.settings.data
        if order.masks:
            shapes = self.given[(first + np.arange(n)) % len(self.given)]
        else:
            mode, real = (
                order.mask_mode or self.settings.design.mask_mode,
                self.study.part("G").masks,
            )
            options = dict(seed=order.seed, mode=mode, real=real, first=first)
            shapes = recipe.random_masks(n, real.shape[1], **options)
        if order.generator != "controlnet":
            return shapes, [""] * n
        if order.prompt is not None:
            return shapes, [order.prompt] * n
        details = data.prompt, data.prompt_details
        return shapes, prompts.describe(self._labels(first, n), *details, shapes)

    def request(self, first: int, n: int) -> sets.Request:
        """The request for one round of candidates."""
        target = resolve(self.order.out) / ".work" / f"from-{first:06d}"
        shapes, texts = self.conditions(first, n)  # before models are loaded, which takes longer
        return replace(self.painter.request(target, shapes, texts), first=first)

    def paint(self, first: int, n: int, share=(0, 1)):
        """Write the images of a round, or of one process's share of it."""
        request = self.request(first, n)
        block = self.settings.sampling.sample_batch
        sets.paint(request, self.painter.paint(request), share, block)


def _read_mask(path, size: int, fit: str) -> np.ndarray:
    """A mask (size, size) of 0 and 1 without its image; InputError if nothing is left of it."""
    whole = np.float32(curation.whole_mask(path, path, fit))
    mask = cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA) > 0.5
    if not mask.any() or mask.all():
        raise InputError(path, f"no lesion with a border is left at {size} px", "remove it")
    return mask.astype(np.uint8)


def _weights(diagnoses: pd.Series, shares: dict) -> np.ndarray:
    """A weight for each label of G, so that diagnoses have these shares."""
    for name in shares:
        if not (diagnoses == name).any():
            known = sorted(set(diagnoses) - {""})
            problem = f"the run's training images have no {name}"
            remedy = f"did you mean {nearest(name, known)}? There are: {', '.join(known)}"
            raise InputError("--diagnosis", problem, remedy)
    counts, rest = diagnoses.value_counts(), ~diagnoses.isin(list(shares))
    left = max(0.0, 1 - sum(shares.values())) / max(rest.sum(), 1)
    return np.array([shares[d] / counts[d] if d in shares else left for d in diagnoses])


def _side_by_side(maker: Maker, first: int, n: int):
    """Let the order's processes write the images of a round; InputError if one of them fails."""
    order, work = maker.order, resolve(maker.order.out) / ".work"
    write_json(work / "round.json", {"first": first, "n": n})
    threads = str(max(1, (os.cpu_count() or 1) // order.processes))
    quiet = processes.environment() | {"OMP_NUM_THREADS": threads, "LESIONLIB_QUIET": "1"}
    command = [sys.executable, "-m", "lesionlib.workflow.generate", str(work.parent)]
    with contextlib.ExitStack() as stack:
        running = []
        for i in range(order.processes):
            log = stack.enter_context(open(work / f"process-{i}.txt", "wb"))
            options = dict(stdout=log, stderr=log, env=quiet, start_new_session=True)
            running.append(subprocess.Popen([*command, str(i)], **options))
            stack.callback(running[-1].wait)
            stack.callback(running[-1].kill)  # called first; nothing happens once it has ended
        failed = _failed(running, work / f"from-{first:06d}" / "images", n)
    if failed:
        log = work / f"process-{running.index(failed[0])}.txt"
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise InputError(log, f"a process failed ({last})", "see there; then start again")


def _failed(running, images: Path, n: int) -> list:
    """Wait, with a progress bar, until all processes have ended or some have failed: these."""
    with progress(desc="images", total=n) as bar:
        while any(process.poll() is None for process in running):
            bar.update(len(list(images.glob("[0-9]*.png"))) - bar.n)
            if failed := [process for process in running if process.poll()]:
                return failed
            time.sleep(0.2)
    return [process for process in running if process.poll()]


def _round(maker: Maker, first: int, n: int) -> pd.DataFrame:
    """The manifest of a round of candidates, generated unless it is there."""
    request = maker.request(first, n)
    if maker.order.processes > 1 and not request.artefact.is_current():
        sets.begin(request)
        _side_by_side(maker, first, n)
    sets.fill(request, maker.painter.paint(request), reference.load(maker.folder))
    return pd.read_csv(request.folder / "manifest.csv", keep_default_na=False).assign(
        folder=str(request.folder)
    )


def candidates(maker: Maker) -> pd.DataFrame:
    """The candidates of all rounds, until enough have the least fidelity of the order.

    InputError if that is not reached by `Maker.most` candidates.
    """
    least, wanted, most, found = maker.order.min_fidelity, maker.number, maker.most, []
    first, n = 0, min(wanted, most)
    while n:
        found.append(_round(maker, first, n))
        fidelity = pd.concat(found)["mask_fidelity"]
        good, first = int((fidelity >= least).sum()), first + n
        if good >= wanted:
            return pd.concat(found, ignore_index=True)
        n = max(FEWEST, round(1.1 * (wanted - good) * first / max(good, 1)))
        n = min(n, most - first)
    where, median = f"--min-fidelity {least}" if least else "-n", f"{fidelity.median():.2f}"
    problem = f"{good} of {first} candidates will do (median fidelity {median}), not {wanted}"
    raise InputError(where, problem, "lower it, order fewer pairs, or give more masks")


def _claim(maker: Maker) -> bool:
    """Mark the folder as that of this order; True if the order is complete there.

    InputError if it holds anything else.
    """
    out, model = resolve(maker.order.out), maker.request(0, 1).model
    what = {k: v for k, v in asdict(maker.order).items() if k not in ("out", "processes")}
    key = digest({**what, "n": maker.number, "model": model, "data": maker.study.fingerprint})
    done = read_json(out / "manifest.csv.json", {}).get("order")
    known = done or read_json(out / ".work" / "order.json", {}).get("key")
    others = [path for path in out.glob("*") if path.name != ".work"] if out.exists() else []
    if known != key and (known or others):
        problem = "it holds pairs of another order" if known else f"it holds {others[0].name}"
        raise InputError(out, problem, "give a folder that does not exist yet (--out DIR)")
    if not done:
        write_json(out / ".work" / "order.json", {"key": key, "order": asdict(maker.order)})
    return bool(done)


def _copy(source: Path, target: Path):
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _near_copies(study, paths) -> np.ndarray:
    """Whether each of these images shows the same picture as one of G (`duplicates.copies`)."""
    copied, real = np.zeros(len(paths), bool), study.part("G").images
    for i in range(0, len(paths), BLOCK):
        made = sets.read_images(paths[i : i + BLOCK])
        copied[i + duplicates.copies(real, made)["made"].to_numpy(int)] = True
    return copied


def held_out_masks(maker: Maker, masks) -> str:
    """A WARNING if a mask (S, S) of 0 and 1 is one of the run's S-val or S-test, or ''."""
    try:
        leakage.check_synthetic("pairs", masks, {}, maker.study)
    except InputError as error:
        return f"WARNING: {error.problem}: do not evaluate on the run's S what is trained on these"
    return ""


def generate(order: Order) -> pd.DataFrame:
    """Write the pairs of an order to its folder; returns their manifest, a row per pair.

    Columns: image and mask (files), prompt, index, seed, model, settings, sha256, mask_sha256,
    mask_fidelity, near_copy (of a training image). InputError for an unfinished run, for what the
    run cannot do, and if the folder holds something else.
    """
    maker, out = Maker(order), resolve(order.out)
    if _claim(maker):
        print(f"NOTE: {out}: this order is complete")
        return pd.read_csv(out / "manifest.csv", keep_default_na=False)
    made = candidates(maker)
    table = made[made["mask_fidelity"] >= order.min_fidelity].head(maker.number)
    for row in table.itertuples():
        for part, name in (("images", row.image), ("masks", row.mask)):
            _copy(Path(row.folder) / part / name, out / part / name)
    table = table.drop(columns="folder").reset_index(drop=True)
    paths = [out / "images" / name for name in table["image"]]
    table["near_copy"] = _near_copies(maker.study, paths)
    files = (str(out / "masks" / name) for name in table["mask"])
    warning = held_out_masks(maker, ((cv2.imread(f, 0) > 127).view(np.uint8) for f in files))
    print(warning, end="\n" * bool(warning))
    known = read_json(out / ".work" / "order.json")["key"]
    cards.write_data_card(maker, table, len(made), warning)
    cards.write_trained_on(out, maker.settings, maker.study.part("G"), order.generator)
    write_csv(out / "manifest.csv", table)
    pairs = digest(table[["sha256", "mask_sha256"]].to_numpy().tolist())
    record(out / "manifest.csv", order=known, pairs=pairs, n=len(table), seed=order.seed)
    shutil.rmtree(out / ".work")
    return table


def options(parser):
    """The command line's options."""
    add = parser.add_argument
    add("--generate", required=True, metavar="RUN", help="a finished run: runs/NAME")
    add("--out", required=True, metavar="DIR", help="the folder for the pairs")
    add("-n", type=int, default=0, help="how many pairs (default: one a mask, or 100)")
    add("--masks", default="", metavar="DIR", help="masks to use, in turn")
    add("--mask-mode", default="", help=f"draw masks: one of {', '.join(recipe.MODES)}")
    add("--prompt", help="one sentence for all images")
    shares = "shares among the prompts, such as melanoma=0.5,nevus=0.2"
    add("--diagnosis", default="", metavar="NAME=SHARE,...", help=shares)
    add("--generator", default="controlnet", help=f"one of {', '.join(GENERATORS)}")
    add("--min-fidelity", type=float, default=0.0, help="least Dice of image and mask, 0 to 1")
    add("--seed", type=int, default=0, help="of masks, prompts and noise")
    add("--processes", type=int, default=1, help="processes that generate side by side")


def _shares(text: str) -> dict:
    """Shares by name from `melanoma=0.5,nevus=0.2`."""
    try:
        pairs = [item.split("=") for item in filter(None, text.split(","))]
        return {name.strip(): float(share) for name, share in pairs}
    except ValueError as error:
        remedy = "write --diagnosis melanoma=0.5,nevus=0.2"
        raise InputError("--diagnosis", f"'{text}' is not NAME=SHARE", remedy) from error


def main(given) -> int:
    """Run the command with its parsed options; returns the exit status."""
    values = vars(given) | {"diagnosis": _shares(given.diagnosis)}
    values["out"], values["run"] = os.path.abspath(given.out), values.pop("generate")
    if given.masks:
        values["masks"] = os.path.abspath(given.masks)
    start, out = time.monotonic(), values["out"]
    with processes.stoppable():
        table = generate(Order(**values))
    size = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
    print(
        f"{len(table)} pairs in {out}: {time.monotonic() - start:.0f} s, {size / 1e6:.1f} MB, "
        f"fidelity {table['mask_fidelity'].mean():.3f}, {table['near_copy'].sum()} near-copies"
    )
    return 0


if __name__ == "__main__":
    place = Path(sys.argv[1]) / ".work"
    one = Maker(Order(**read_json(place / "order.json")["order"]))
    part = read_json(place / "round.json")
    one.paint(part["first"], part["n"], (int(sys.argv[2]), one.order.processes))
