"""The work of notebooks 03 and 04 on a run: what is outdated is trained or generated again.

`python -m lesionlib.generators.jobs JOB.json`, also under `accelerate launch`, does a training or
sampling in processes of its own; `launch` writes the job and starts it. `run` is a run's folder,
`settings` anything with the groups of `engine.settings` as attributes, `facts` additions to the
records.
"""

import json
import shlex
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lesionlib.data import dataset
from lesionlib.engine.artefacts import Artefact
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import Log, read_json, resolve, write_json, write_npy
from lesionlib.engine.provenance import file_digest, recorded
from lesionlib.engine.settings import Sampling, Settings
from lesionlib.engine.training import device
from lesionlib.generators import base, controlnet, pix2pixhd, sets, validation
from lesionlib.generators.latents import encode_images
from lesionlib.masks import conditions
from lesionlib.segmentation import reference
from lesionlib.segmentation.grid import control_sets

LAUNCHED = ("base", "training", "controlnet", "validation", "sampling")  # groups that jobs read


def load_base(run, settings):
    """The pipeline of the named base, or of the run's own, on this process's device."""
    return base.load(settings.base.model or f"{run}/models/base").to(device())


def prepare_base(run, settings, **facts):
    """The base's pipeline. If none is named, a small one is trained on G unless it is current."""
    folder, study = resolve(run), dataset.load(run)
    target, work, part = (
        folder / "models" / "base",
        folder / "checkpoints" / "base",
        study.part("G"),
    )
    groups = {name: getattr(settings, name).determining() for name in ("base", "training")}
    code, inputs = (base.new, base.train, encode_images), {"data": study.fingerprint}
    index = Artefact(target / "model_index.json", code, groups, inputs)
    if not settings.base.model and (not index.is_current() or base.corrupt_parts(target)):
        prompts, seed = part.table["prompt"], settings.training.generator_seed
        pipe = base.new(part.images, prompts, work, settings.base, seed)
        z = encode_images(pipe, part.images, folder / "checkpoints" / "latents")
        base.train(pipe, z, prompts, work, settings.base, settings.training, index.key)
        base.save(pipe, target, key=index.key, **facts)
    return load_base(run, settings)


class ControlNetTraining:
    """The training of a run's ControlNet, and the validations that watch it.

    Either has its own key: an edit of the sampling or of the reference segmenter outdates the
    validations, not the weights. Then only the final weights are validated again.
    """

    def __init__(self, run, settings, pipe=None):
        self.run, self.settings, self.study = resolve(run), settings, dataset.load(run)
        self.folder, self.target = (
            self.run / part / "controlnet" for part in ("checkpoints", "models")
        )
        self.pipe = pipe or load_base(run, settings)
        groups = {n: getattr(settings, n).determining() for n in ("controlnet", "training")}
        inputs = {"data": self.study.fingerprint, "base": base.pipeline_digest(self.pipe)}
        code = (controlnet.new, controlnet.train, encode_images)
        self.weights = Artefact(self.target / controlnet.WEIGHTS, code, groups, inputs)
        code = (validation.validator, base.PatchAutoencoder, reference.ReferenceSegmenter)
        groups = {"validation": dict(settings.validation), "sampling": dict(self._sampling())}
        segmenter = self.run / "models" / "reference_segmenter" / "model.safetensors"
        inputs = {"weights": self.weights.digest, "segmenter": file_digest(segmenter)}
        self.log = Artefact(self.folder / "validations.csv", code, groups, inputs)

    def _sampling(self) -> Sampling:
        own = self.settings
        return Sampling(ddim_steps=own.sampling.ddim_steps, sample_seed=own.training.generator_seed)

    def _validator(self, controlled):
        part, own = self.study.part("S-val"), self.settings
        options = own.validation.validation_samples, self._sampling(), own.training.precision
        data = validation.HeldOut(part.images, part.masks, *options)
        segmenter, folder = reference.load(self.run), self.folder / "validations"
        return validation.validator(self.pipe, controlled, data, segmenter, folder)

    def fit(self) -> controlnet.ControlledUNet:
        """Train, or continue from the checkpoint; returns at once if that is complete."""
        part, own, seed = self.study.part("G"), self.settings, self.settings.training.generator_seed
        options = {"locked": own.controlnet.locked, "middle_only": own.controlnet.middle_only}
        controlled = controlnet.new(self.pipe, seed, **options).to(device())
        monitor = base.Monitor(self._validator(controlled), own.validation.validate_every)
        z = encode_images(self.pipe, part.images, self.folder.parent / "latents")
        examples = controlnet.Examples(z, part.masks, part.table["prompt"].tolist())
        groups = own.controlnet, own.training
        key, folder = self.weights.key, self.folder
        return controlnet.train(
            self.pipe, controlled, examples, folder, *groups, key, monitor=monitor
        )

    def complete(self, **facts) -> controlnet.ControlledUNet:
        """The ControlNet, trained and validated unless both are current; saved with its record."""
        current = self._is_current()
        self._drop_outdated_validations(current)
        if not current and self.settings.training.launch:
            launch(self.settings.training.launch, self.run, self.settings, "train")
        controlled = controlnet.load(self.pipe, self.target) if current else self.fit()
        if not self.log.path.exists():
            print(
                "The validations are outdated, the trained weights are not: "
                "only the final weights are validated"
            )
            step = self.settings.controlnet.steps
            found = self._validator(controlled)(step)
            row = {name: f"{value:.6g}" for name, value in found.items()}
            Log(self.log.path, ["step", *found]).add(step=step, **row)
        if not self.log.is_current():
            self.log.record()
        if not current:
            controlnet.save(controlled, self.target, key=self.weights.key, **facts)
        return controlnet.load(self.pipe, self.target)

    def _is_current(self) -> bool:
        unet = self.target / "unet" / controlnet.WEIGHTS
        whole = self.settings.controlnet.locked or recorded(unet)
        return bool(whole and (self.target / "config.json").exists() and self.weights.is_current())

    def _drop_outdated_validations(self, current: bool):
        """Keep those of this key: all of them, or of a training that is not complete."""
        begun = self.folder / "validations_key.json"
        unfinished = not current and read_json(begun) == self.log.key
        if not (self.log.is_current() or unfinished):
            self.log.path.unlink(missing_ok=True)
            for path in (self.folder / "validations").glob("*.npy"):
                path.unlink()
            write_json(begun, self.log.key)


class Painter:
    """Generates images of a run with its base `pipe` and, unless it is None, a ControlNet."""

    def __init__(self, run, settings, pipe, controlled: controlnet.ControlledUNet | None, **facts):
        self.run, self.settings, self.facts = resolve(run), settings, facts
        self.pipe, self.controlled = pipe, controlled
        self.base = base.pipeline_digest(pipe)

    @cached_property
    def segmenter(self) -> reference.ReferenceSegmenter:
        """The run's reference segmenter."""
        return reference.load(self.run)

    def request(self, name, masks, prompts, control: bool = True) -> sets.Request:
        """The set in the folder `name` of the run; without `control` by the base alone."""
        own, precision = self.settings.sampling, self.settings.training.precision
        values = dict(steps=own.ddim_steps, eta=own.ddim_eta, guidance=own.guidance)
        code = (controlnet.sample, base.PatchAutoencoder)
        model = self._model(control) or controlnet.ControlledUNet(self.pipe.unet)
        return sets.Request(
            folder=self.run / name,
            masks=masks,
            prompts=list(prompts),
            code=code,
            model=model.digest(),
            seed=own.sample_seed,
            settings=values | {"precision": precision},
            inputs={"base": self.base},
        )

    def _model(self, control: bool):
        return self.controlled if control else None

    def sample(self, masks, prompts, indices=None, control: bool = True, **changes):
        """Yield images of masks (n, S, S), see `controlnet.sample`; `changes` of its settings."""
        own = self.settings.sampling.model_copy(update=changes)
        options = dict(indices=indices, precision=self.settings.training.precision)
        return controlnet.sample(self.pipe, self._model(control), masks, prompts, own, **options)

    def paint(self, request: sets.Request, control: bool = True):
        """A function of image numbers that samples these images of a set."""
        return lambda numbers: self.sample(
            request.masks[numbers], [request.prompts[i] for i in numbers], numbers, control
        )

    def fill(self, name, masks, prompts, control: bool = True):
        """Generate a set into the folder `name` of the run, unless it is there (`sets.fill`)."""
        request = self.request(name, masks, prompts, control)
        command = self.settings.training.launch
        if command and not request.artefact.is_current():
            sets.begin(request)
            path = self.run / "checkpoints" / "controlnet" / "masks.npy"
            write_npy(path, masks)
            job = dict(name=str(name), masks=str(path), prompts=list(prompts), control=control)
            launch(command, self.run, self.settings, "sample", **job)
        sets.fill(request, self.paint(request, control), self.segmenter, **self.facts)

    def fill_controls(self, study):
        """Generate the sets that the controls of notebook 06 need, each with one thing changed."""
        design = self.settings.design
        for name in control_sets(design.arms, design.mask_mode):
            masks, prompts = conditions.vary(self.run, study, self.settings, name)
            self.fill(f"synthetic/{name}", masks, prompts, control=name != "base")


def prepare_pix2pixhd(run, settings, **facts):
    """The run's Pix2PixHD generator, trained on G unless it is current."""
    folder, study, own = resolve(run), dataset.load(run), settings.pix2pixhd
    part, target = study.part("G"), folder / "models" / "pix2pixhd"
    vgg = pix2pixhd.vgg_loss_or_none(own.vgg)
    names = ("generator_seed", "precision")
    values = own.determining() | {name: getattr(settings.training, name) for name in names}
    del values["vgg"]  # it says where to look for the weights, whose digest is among the inputs
    inputs = {"data": study.fingerprint, "vgg": base.weights_digest(vgg) if vgg else ""}
    weights = Artefact(target / "model.safetensors", (pix2pixhd.train,), values, inputs)
    if not weights.is_current():
        work, groups = folder / "checkpoints" / "pix2pixhd", (own, settings.training)
        arrays = part.images, part.masks
        generator = pix2pixhd.train(*arrays, work, *groups, weights.key, vgg=vgg)
        pix2pixhd.save(generator, target)
        weights.record(parameters={"vgg": vgg is not None}, **facts)
    return pix2pixhd.load(target).to(device(), memory_format=torch.channels_last)


def fill_pix2pixhd(run, settings, generator, name, masks, prompts, **facts):
    """Generate a set by Pix2PixHD into the folder `name` of a run, unless it is there."""
    own = settings.pix2pixhd
    sizes = dict(base_channels=own.channels, n_downsample=own.downsample, n_blocks=own.blocks)
    request = sets.Request(
        folder=resolve(run) / name,
        masks=masks,
        prompts=list(prompts),
        code=(pix2pixhd.generate, pix2pixhd.GlobalGenerator, pix2pixhd.LocalEnhancer),
        model=base.weights_digest(generator),
        seed=settings.training.generator_seed,
        settings=sizes | {"disc_channels": own.disc_channels, "n_enhancers": own.enhancers},
        inputs={},
    )

    def make(numbers):
        return pix2pixhd.generate(generator, masks[numbers], device=device())

    sets.fill(request, make, reference.load(run), **facts)


def launch(command: str, run, settings, what: str, **job):
    """Do a job in processes that `command`, such as "accelerate launch", starts; InputError.

    `what`: train or sample (`sample_job`, with the arguments `job`). What the processes leave
    behind is what this one would have left: the caller continues with it.
    """
    path = resolve(run) / "checkpoints" / "controlnet" / "job.json"
    groups = {name: getattr(settings, name).model_dump(mode="json") for name in LAUNCHED}
    write_json(path, {"run": str(run), "settings": groups, "what": what, "job": job})
    words = [*shlex.split(command), "-m", "lesionlib.generators.jobs", str(path)]
    try:
        subprocess.run(words, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"launch: {command}",
            f"the command failed ({error})",
            "read the messages above; with an empty `launch` the notebook's own process works",
        ) from error


def train_job(run, settings):
    """Train a run's ControlNet in this process, one of several."""
    ControlNetTraining(run, settings).fit()


def sample_job(run, settings, name, masks, prompts, control: bool):
    """Generate this process's share of a set: a batch of every so many is its own.

    `name`: the set's folder in the run; `masks`: path of the array (.npy); without `control` by
    the base alone.
    """
    from accelerate import PartialState  # slow import, needed only with several processes

    pipe = load_base(run, settings)
    controlled = controlnet.load(pipe, resolve(run) / "models" / "controlnet") if control else None
    painter, state = Painter(run, settings, pipe, controlled), PartialState()
    request = painter.request(name, np.load(masks), prompts, control)
    share = state.process_index, state.num_processes
    sets.paint(request, painter.paint(request, control), share, settings.sampling.sample_batch)


if __name__ == "__main__":
    values = json.loads(Path(sys.argv[1]).read_text())
    work = {"train": train_job, "sample": sample_job}[values["what"]]
    work(values["run"], Settings(**values["settings"]), **values["job"])
