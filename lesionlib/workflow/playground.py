"""A lesion painted on the spot: a mask and a sentence in, an image of each generator out.

`./run_all.sh --play` opens notebooks/playground.ipynb, whose widgets (`workflow.board`) show what a
`Studio` does. It uses a finished run, or the small base of the repository where there is none.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lesionlib.data import dataset, phantom, prompts
from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, resolve, run_lock, unescaped, write_csv
from lesionlib.engine.provenance import digest, file_digest
from lesionlib.engine.training import device
from lesionlib.generators import base, demonstration, jobs, pix2pixhd, sets
from lesionlib.masks import conditions, recipe
from lesionlib.segmentation import measures, reference
from lesionlib.workflow import cards
from lesionlib.workflow.generate import GENERATORS, load_generator


@dataclass(frozen=True)
class Wish:
    """What is asked for: a mask (S, S) of 0 and 1, a prompt, the scales of guidance, a seed."""

    mask: np.ndarray
    prompt: str
    guidance: float
    control_guidance: float
    seed: int

    @property
    def key(self) -> str:
        """Equal for equal wishes."""
        return digest(*vars(self).values())


@dataclass(frozen=True)
class Lesion:
    """The image that a generator made of a wish, and what the reference segmenter finds in it.

    latents: what each DDIM step started from, and the clean ones that were predicted; None for a
    GAN. found, fidelity (Dice with the mask): None where there is no segmenter.
    """

    generator: str
    wish: Wish
    image: np.ndarray  # (S, S, 3)
    latents: torch.Tensor | None  # (steps, 2, C, h, w)
    found: np.ndarray | None = None  # (s, s) of 0 and 1, at the segmenter's size
    fidelity: float | None = None


def newest() -> Path | None:
    """The folder of the run that was finished last, or None."""
    finished = (ROOT / "runs").glob("*/provenance.json")
    last = max(finished, key=lambda path: path.stat().st_mtime, default=None)
    return last and last.parent


class _Numbered(sets.Request):
    """A request for a single image, with a number in the folder, and the noise of number 0."""

    def table(self):
        return super().table().assign(index=0)


def _kept(folder: Path) -> pd.DataFrame:
    """The manifest of the pairs in a folder; InputError if it holds anything else."""
    path, table = folder / "manifest.csv", pd.DataFrame(columns=["image", "generator"])
    if path.exists():
        table = unescaped(pd.read_csv(path, keep_default_na=False))
    known = {*table["image"], f"{len(table):06d}.png"}  # the latter may remain of a killed kernel
    files = (path for part in ("images", "masks") for path in (folder / part).glob("[!.]*"))
    strange = next((path for path in files if path.name not in known), None)
    if strange or "generator" not in table:
        problem = f"it holds {strange.name}" if strange else "its manifest is of something else"
        raise InputError(folder, problem, "give a folder of its own for the pairs that are kept")
    return table


class Studio:
    """Paints lesions with all generators of a finished run, or with the small base alone.

    `run`: its folder; if empty, the newest one. `generators` has the names of what it paints with.
    InputError if the run is not finished, or has no generator.
    """

    def __init__(self, run: str | Path = ""):
        self.folder, self.study, self.segmenter = (resolve(run) if run else newest()), None, None
        if self.folder is None:
            self.settings = config.Settings()
            painter = jobs.Painter("", self.settings, base.load("small").to(device()))
            self.generators = {"base": painter}
            return
        self.settings = cards.finished(self.folder)
        known = [name for name in GENERATORS if (self.folder / "models" / name).is_dir()]
        if not known:
            raise InputError(self.folder, "it has no generator", "name another run")
        self.study, self.segmenter = dataset.load(self.folder), reference.load(self.folder)
        load = (load_generator(self.folder, self.settings, name, 0) for name in known)
        self.generators = dict(zip(known, load, strict=True))

    @property
    def size(self) -> int:
        """Side of images and masks in pixels."""
        return self.settings.data.image_size

    @property
    def diagnoses(self) -> list[str]:
        """Diagnoses that the generators have seen, the most frequent first."""
        if self.study is None:
            return list(phantom.DIAGNOSES)
        names = self.study.part("G").table["diagnosis"].fillna("")
        return names[names != ""].value_counts(sort=True).index.tolist()

    def automatic(self, number: int) -> np.ndarray:
        """A mask (S, S) of the run's pairs, or one that is drawn as the paper's are."""
        if self.folder:
            masks = conditions.load(self.folder)[0]
            return masks[number % len(masks)]
        return recipe.random_masks(1, self.size, first=number)[0]

    def prompt(self, labels: dict, mask: np.ndarray) -> str:
        """The prompt of a lesion with these labels, worded as in the training.

        The small base, which has no ControlNet, is told the size and the position of the mask.
        """
        if self.folder is None:
            return prompts.prompt(labels, "full", ("size", "position"), mask)
        data = self.settings.data
        return prompts.prompt(labels, data.prompt, data.prompt_details, mask)

    def paint(self, wish: Wish) -> list[Lesion]:
        """A lesion of each generator; InputError for a mask without lesion or without skin."""
        if not wish.mask.any() or wish.mask.all():
            problem = "it is empty" if not wish.mask.any() else "it leaves no skin"
            raise InputError("mask", problem, "paint one lesion, or take an automatic mask")
        return [self._judged(self._painted(name, wish)) for name in self.generators]

    def _of_wish(self, name: str, wish: Wish) -> jobs.Painter | jobs.Translator:
        """The generator with the seed and the guidance of a wish."""
        maker = copy.copy(self.generators[name])
        if isinstance(maker, jobs.Translator):
            maker.seed = wish.seed
            return maker
        changes = {"guidance": wish.guidance, "control_guidance": wish.control_guidance}
        changes["sample_seed"] = wish.seed
        sampling = maker.settings.sampling.model_copy(update=changes)
        maker.settings = maker.settings.model_copy(update={"sampling": sampling})
        return maker

    def _painted(self, name: str, wish: Wish) -> Lesion:
        maker = self._of_wish(name, wish)
        if isinstance(maker, jobs.Translator):
            options = dict(seed=wish.seed, device=device())
            image = next(pix2pixhd.generate(maker.generator, wish.mask[None], **options))
            return Lesion(name, wish, image, None)
        with_control = maker.controlled is not None
        _, *both = demonstration.ddim_steps(maker, wish.mask, wish.prompt, control=with_control)
        image = base.decode_latents(maker.pipe, both[1][-1:])[0]
        return Lesion(name, wish, image, torch.stack(both, 1))

    def _judged(self, lesion: Lesion) -> Lesion:
        if self.segmenter is None:
            return lesion
        found = self.segmenter.predictions(lesion.image[None])
        masks = dataset.shrunk_masks(lesion.wish.mask[None], self.segmenter.size)
        return replace(lesion, found=found[0], fidelity=float(measures.dice(found, masks)[0]))

    def step(self, lesion: Lesion, number: int) -> np.ndarray:
        """Images (2, S, S, 3) of DDIM step `number` (from 1): its start, and what is expected."""
        pipe = self.generators[lesion.generator].pipe
        return base.decode_latents(pipe, lesion.latents[number - 1])

    def keep(self, lesion: Lesion, folder) -> Path:
        """Add a pair to images/, masks/ and manifest.csv of a folder; returns the image's path.

        The row is written last, and what has none is overwritten by the next pair: no pair is ever
        half-written. InputError if the folder holds anything else.
        """
        folder, wish = resolve(folder), lesion.wish
        with run_lock(folder):
            table = _kept(folder)
            maker = self._of_wish(lesion.generator, wish)
            prompt = "" if isinstance(maker, jobs.Translator) else wish.prompt
            request = maker.request(folder, wish.mask[None], [prompt])
            request = _Numbered(**vars(request) | {"first": len(table)})
            paths = [folder / part / f"{len(table):06d}.png" for part in ("images", "masks")]
            for path in paths:
                path.unlink(missing_ok=True)
            row = sets.paint(request, lambda numbers: iter([lesion.image]))
            digests = dict(zip(("sha256", "mask_sha256"), map(file_digest, paths), strict=True))
            fidelity = "" if lesion.fidelity is None else round(lesion.fidelity, 4)
            row = row.assign(**digests, mask_fidelity=fidelity, generator=lesion.generator)
            if self.study is not None:
                part = self.study.part("G")
                cards.write_trained_on(folder, self.settings, part, lesion.generator)
            rows = pd.concat([table, row], ignore_index=True) if len(table) else row
            write_csv(folder / "manifest.csv", rows)
        return paths[0]
