"""The jobs of notebooks 03 and 04: train and generate whatever is not current.

`python -m lesionlib.generators.jobs JOB.json`, also under `accelerate launch`, runs a training or
sampling in separate processes; `launch` writes the job and starts it. `run` is a run's folder,
`settings` any object with the groups of `engine.settings` as attributes, `facts` additions to the
records.
"""

import json
import shlex
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lesionlib.data import dataset
from lesionlib.engine.artefacts import Artefact
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import Log, read_json, resolve, write_json, write_npy
from lesionlib.engine.progress import quieten
from lesionlib.engine.provenance import digest, file_digest, recorded
from lesionlib.engine.settings import Sampling, Settings
from lesionlib.engine.training import device, resolved_precision
from lesionlib.generators import base, controlnet, external_generators, pix2pixhd, sets, validation
from lesionlib.generators.budget import pix2pixhd_settings
from lesionlib.generators.latents import examples
from lesionlib.masks import conditions
from lesionlib.segmentation import reference
from lesionlib.segmentation.grid import control_sets, repeats

quieten()  # what loads and saves a base has bars of its own

# groups of settings that jobs read
LAUNCHED = ("data", "augmentation", "base", "training", "controlnet", "validation", "sampling")


def of_seed(settings, seed: int) -> SimpleNamespace:
    """The settings with `seed` as the only one of `generator_seeds`.

    Trainings read these, so that a further seed does not outdate those that are done.
    """
    training = settings.training.model_copy(update={"generator_seeds": [seed]})
    return SimpleNamespace(**{**vars(settings), "training": training})


def load_base(run, settings):
    """The pipeline of the named base, or of the run's own, on this process's device."""
    name = f"{run}/models/base" if settings.base.is_trained else settings.base.model
    return base.load(name).to(device())


def prepare_base(run, settings, **facts):
    """The base's pipeline; the run's own, if there is one, is trained on G unless it is current."""
    if not settings.base.is_trained:
        return load_base(run, settings)
    settings = of_seed(settings, settings.training.generator_seed)
    folder, part, name = resolve(run), dataset.load(run).part("G"), settings.base.model
    target, work = (folder / name / "base" for name in ("models", "checkpoints"))
    groups = {name: getattr(settings, name).determining() for name in ("base", "training")}
    groups["augmentation"] = settings.augmentation.applied("base")
    code = (base.new, base.train, examples)
    inputs = {"G": digest(part.images, part.masks, part.table["prompt"].tolist())}
    if name:
        inputs["base"] = base.pipeline_digest(base.load(name))
    index = Artefact(target / "model_index.json", code, groups, inputs)
    if not index.is_current() or base.corrupt_parts(target):
        options = part.table["prompt"], work, settings.base, settings.training.generator_seed
        pipe = base.load(name).to(device()) if name else base.new(part.images, *options)
        data = examples(pipe, part, settings, "base", folder / "checkpoints" / "latents")
        base.train(pipe, data, work, settings.base, settings.training, index.key)
        facts["precision"] = resolved_precision(settings.training.precision, pipe.unet)
        base.save(pipe, target, key=index.key, **facts)
    return load_base(run, settings)


class ControlNetTraining:
    """The training of a run's ControlNet, and its validations.

    Each has its own key: a change of the sampling or of the reference segmenter outdates the
    validations, not the weights. Then only the final weights are validated again.
    """

    def __init__(self, run, settings, pipe=None, name: str = "controlnet"):
        settings = of_seed(settings, settings.training.generator_seed)
        self.run, self.settings, self.study = resolve(run), settings, dataset.load(run)
        self.name = name
        self.folder, self.target = (self.run / part / name for part in ("checkpoints", "models"))
        self.pipe = pipe or load_base(run, settings)
        self.given = None  # the ControlNet, if it is not to be trained
        self.weights = self._weights()
        code = (validation.validator, base.PatchAutoencoder, reference.ReferenceSegmenter)
        groups = {
            "validation": dict(settings.validation),
            "sampling": self._sampling().determining(),
        }
        segmenter = self.run / "models" / "reference_segmenter" / "model.safetensors"
        part = self.study.part("S-val")
        inputs = {"weights": self.weights.digest, "segmenter": file_digest(segmenter)}
        inputs["S-val"] = digest(part.images, part.masks)
        self.log = Artefact(self.folder / "validations.csv", code, groups, inputs)

    def _weights(self) -> Artefact:
        """The weights: trained on G, or those that are given (`controlnet_model`)."""
        path, settings = self.target / controlnet.WEIGHTS, self.settings
        inputs = {"base": base.pipeline_digest(self.pipe)}
        if settings.controlnet.model:
            self.given = controlnet.given(self.pipe, settings.controlnet.model)
            return Artefact(path, (), {}, inputs | {"given": self.given.digest()})
        groups = {n: getattr(settings, n).determining() for n in ("controlnet", "training")}
        groups["augmentation"] = settings.augmentation.applied("controlnet")
        part = self.study.part("G")
        inputs["G"] = digest(part.images, part.masks, part.table["prompt"].tolist())
        return Artefact(path, (controlnet.new, controlnet.train, examples), groups, inputs)

    def _sampling(self) -> Sampling:
        """Empty prompts, and the seed of the training; otherwise as images are sampled."""
        seed = self.settings.training.generator_seed
        changed = {"sample_seed": seed, "guidance": 1.0, "ddim_eta": 0.0}
        return self.settings.sampling.model_copy(update=changed)

    def _validator(self, controlled):
        part, settings = self.study.part("S-val"), self.settings
        options = (
            settings.validation.validation_samples,
            self._sampling(),
            settings.training.precision,
        )
        data = validation.HeldOut(part.images, part.masks, *options)
        segmenter, folder = reference.load(self.run), self.folder / "validations"
        return validation.validator(self.pipe, controlled, data, segmenter, folder)

    def fit(self) -> controlnet.ControlledUNet:
        """Train, or continue from the checkpoint; returns at once if training is complete."""
        part, settings, seed = (
            self.study.part("G"),
            self.settings,
            self.settings.training.generator_seed,
        )
        options = {
            "locked": settings.controlnet.locked,
            "middle_only": settings.controlnet.middle_only,
        }
        controlled = controlnet.new(self.pipe, seed, **options).to(device())
        monitor = base.Monitor(self._validator(controlled), settings.validation.validate_every)
        latents = self.folder.parent / "latents"
        data = examples(self.pipe, part, settings, "controlnet", latents)
        groups = settings.controlnet, settings.training
        key, folder = self.weights.key, self.folder
        return controlnet.train(self.pipe, controlled, data, folder, *groups, key, monitor=monitor)

    def complete(self, **facts) -> controlnet.ControlledUNet:
        """The ControlNet, trained and validated unless both are current; saved with its record."""
        current = self._is_current()
        self._drop_outdated_validations(current)
        if not current and self.settings.training.launch and not self.given:
            command = self.settings.training.launch
            launch(command, self.run, self.settings, "train", name=self.name)
        if current:
            controlled = controlnet.load(self.pipe, self.target)
        else:
            controlled = self.given or self.fit()
        if not self.log.path.exists():
            why = "The validations are outdated, the trained weights are not"
            why = "The ControlNet was given" if self.given else why
            print(f"{why}: only the final weights are validated")
            step = 0 if self.given else self.settings.controlnet.steps
            found = self._validator(controlled)(step)
            row = {name: f"{value:.6g}" for name, value in found.items()}
            Log(self.log.path, ["step", *found]).add(step=step, **row)
        if not self.log.is_current():
            self.log.record()
        if not current:
            facts["precision"] = resolved_precision(self.settings.training.precision, controlled)
            controlnet.save(controlled, self.target, key=self.weights.key, **facts)
        return controlnet.load(self.pipe, self.target)

    def _is_current(self) -> bool:
        unet = self.target / "unet" / controlnet.WEIGHTS
        whole = self.settings.controlnet.locked or recorded(unet)
        return bool(whole and (self.target / "config.json").exists() and self.weights.is_current())

    def _drop_outdated_validations(self, current: bool):
        """Delete the validations unless they, or an unfinished training, have the current key."""
        key_file = self.folder / "validations_key.json"
        unfinished = not current and read_json(key_file) == self.log.key
        if not (self.log.is_current() or unfinished):
            self.log.path.unlink(missing_ok=True)
            for path in (self.folder / "validations").glob("*.npy"):
                path.unlink()
            write_json(key_file, self.log.key)


def trained_on(settings, study) -> dict:
    """Ids of the images that the ControlNet was trained on: of G, or as a given one lists them."""
    if not settings.controlnet.model:
        return {"trained_on": study.part("G").table["id"].tolist()}
    return {"trained_on": external_generators.listed(settings.controlnet.model, study)}


def check_given(run, settings, study):
    """InputError if a given ControlNet that does not list its images has generated one of S."""
    if settings.controlnet.model and trained_on(settings, study)["trained_on"] is None:
        folder = resolve(run) / "synthetic" / "controlnet" / "images"
        paths = sorted(folder.glob("*.png"))
        external_generators.refuse_copies(study, sets.read_images(paths), paths)


class Painter:
    """Generates images of a run with its base `pipe` and a `ControlledUNet`, if there is one.

    `model`: the folder in models/ that it was loaded from.
    """

    def __init__(self, run, settings, pipe, controlled=None, *, model="controlnet", **facts):
        self.run, self.settings, self.facts = resolve(run), settings, facts
        self.pipe, self.controlled, self.model = pipe, controlled, model
        self.base = base.pipeline_digest(pipe)

    @cached_property
    def segmenter(self) -> reference.ReferenceSegmenter:
        """The run's reference segmenter."""
        return reference.load(self.run)

    def request(self, name, masks, prompts, control: bool = True) -> sets.Request:
        """The request for the set in the folder `name`; without `control` of the base alone."""
        sampling, precision = self.settings.sampling, self.settings.training.precision
        values = dict(steps=sampling.ddim_steps, eta=sampling.ddim_eta, guidance=sampling.guidance)
        if control and self.controlled:
            values["control_guidance"] = sampling.control_guidance
            values["conditioning_scale"] = sampling.conditioning_scale
        code = (controlnet.sample, base.PatchAutoencoder)
        model = self._model(control) or controlnet.ControlledUNet(self.pipe.unet)
        return sets.Request(
            folder=self.run / name,
            masks=masks,
            prompts=list(prompts),
            code=code,
            model=model.digest(),
            seed=sampling.sample_seed,
            settings=values | {"precision": precision},
            inputs={"base": self.base},
        )

    def _model(self, control: bool):
        return self.controlled if control else None

    def sample(self, masks, prompts, indices=None, control: bool = True, **changes):
        """Yield images of masks (n, S, S), see `controlnet.sample`; `changes` of its settings."""
        sampling = self.settings.sampling.model_copy(update=changes)
        options = dict(indices=indices, precision=self.settings.training.precision)
        return controlnet.sample(
            self.pipe, self._model(control), masks, prompts, sampling, **options
        )

    def paint(self, request: sets.Request, control: bool = True):
        """A function of rows that yields these images of a set."""
        return lambda rows: self.sample(
            request.masks[rows],
            [request.prompts[i] for i in rows],
            [request.first + i for i in rows],
            control,
        )

    def fill(self, name, masks, prompts, control: bool = True):
        """Generate a set in the folder `name` of the run, unless it is current (`sets.fill`)."""
        request = self.request(name, masks, prompts, control)
        command = self.settings.training.launch
        if command and not request.artefact.is_current():
            sets.begin(request)
            path = self.run / "checkpoints" / "controlnet" / "masks.npy"
            write_npy(path, masks)
            job = dict(name=str(name), masks=str(path), prompts=list(prompts))
            job["model"] = self.model if control else ""
            launch(command, self.run, self.settings, "sample", **job)
        used = resolved_precision(self.settings.training.precision, self.pipe.unet)
        facts = self.facts | {"precision": used}
        sets.fill(request, self.paint(request, control), self.segmenter, **facts)

    def fill_controls(self, study):
        """Generate the sets for the controls of notebook 06, each with one thing changed."""
        design = self.settings.design
        for name in control_sets(design.arms, design.mask_mode):
            masks, prompts = conditions.vary(self.run, study, self.settings, name)
            self.fill(f"synthetic/{name}", masks, prompts, control=name != "base")


def further_controlnets(run, settings, pipe, **facts):
    """Train a ControlNet for each further generator seed, and generate its images (`grid.repeats`).

    The same as with the first seed: of S-test's masks with empty prompts, and the synthetic pairs.
    """
    test, conditioned = dataset.load(run).part("S-test"), conditions.load(run)[:2]
    seeds = settings.training.generator_seeds
    for seed, name in list(repeats("controlnet", seeds).items())[1:]:
        own = of_seed(settings, seed)
        controlled = ControlNetTraining(run, own, pipe, name).complete(**facts)
        painter = Painter(run, own, pipe, controlled, model=name, **facts)
        painter.fill(f"generated/{name}", test.masks, [""] * len(test.masks))
        painter.fill(f"synthetic/{name}", *conditioned)


def prepare_pix2pixhd(run, settings, plus: bool = False, name: str = "", **facts):
    """The run's Pix2PixHD generator, or with `plus` that of Pix2PixHD+, trained on G unless it is
    current. `name`: of the model, if not the method's (`grid.repeats`)."""
    name = name or ("pix2pixhd_plus" if plus else "pix2pixhd")
    folder, part, options = resolve(run), dataset.load(run).part("G"), pix2pixhd_settings(settings)
    target, vgg = folder / "models" / name, pix2pixhd.vgg_loss_or_none(options.vgg)
    values = {key: getattr(settings.training, key) for key in ("generator_seed", "precision")}
    values |= options.determining() | {"augmentation": settings.augmentation.applied("pix2pixhd")}
    # `vgg` is read as the digest of its weights, an input
    unread = {"vgg", "resize"} if plus else {"vgg", "noise", "diversity"}
    values = {"plus": plus} | {key: x for key, x in values.items() if key not in unread}
    inputs = {"G": digest(part.images, part.masks), "vgg": base.weights_digest(vgg) if vgg else ""}
    weights = Artefact(target / "model.safetensors", (pix2pixhd.train,), values, inputs)
    if not weights.is_current():
        examples = pix2pixhd.Examples(part.images, part.masks, settings.augmentation)
        groups, work = (options, settings.training), folder / "checkpoints" / name
        generator = pix2pixhd.train(examples, work, *groups, weights.key, plus=plus, vgg=vgg)
        pix2pixhd.save(generator, target)
        facts["precision"] = resolved_precision(settings.training.precision, generator)
        upsampling = "resize" if plus or options.resize else "transposed"
        parameters = {"vgg": vgg.name if vgg else "none", "upsampling": upsampling}
        weights.record(parameters=parameters, **facts)
    return pix2pixhd.load(target).to(device())


class Translator:
    """Generates images by Pix2PixHD or Pix2PixHD+; `seed` is that of the noise, if it takes any."""

    def __init__(self, generator, seed: int):
        self.generator, self.seed = generator, seed

    def request(self, folder, masks, prompts) -> sets.Request:
        """The request for a set in `folder`; prompts are noted, not read."""
        return sets.Request(
            folder=folder,
            masks=masks,
            prompts=list(prompts),
            code=(pix2pixhd.generate, pix2pixhd.GlobalGenerator, pix2pixhd.LocalEnhancer),
            model=base.weights_digest(self.generator),
            seed=self.seed,
            settings=self.generator.config,
            inputs={},
        )

    def paint(self, request: sets.Request):
        """A function of rows that yields these images of a set."""
        where = dict(seed=self.seed, device=device())
        return lambda rows: pix2pixhd.generate(
            self.generator, request.masks[rows], [request.first + i for i in rows], **where
        )


def fill_pix2pixhd(run, settings, generator, name, masks, prompts, **facts):
    """Generate a set by Pix2PixHD or Pix2PixHD+ in the folder `name` of a run, unless current."""
    translator = Translator(generator, settings.training.generator_seed)
    request = translator.request(resolve(run) / name, masks, prompts)
    sets.fill(request, translator.paint(request), reference.load(run), **facts)


def further_pix2pixhds(run, settings, plus: bool = False, **facts):
    """Train a generator for each further generator seed, and generate its images, as with the first
    seed (see `further_controlnets`)."""
    test, conditioned = dataset.load(run).part("S-test"), conditions.load(run)[:2]
    method, seeds = "pix2pixhd_plus" if plus else "pix2pixhd", settings.training.generator_seeds
    for seed, name in list(repeats(method, seeds).items())[1:]:
        own = of_seed(settings, seed)
        generator = prepare_pix2pixhd(run, own, plus, name, **facts)
        target = run, own, generator
        fill_pix2pixhd(*target, f"generated/{name}", test.masks, [""] * len(test.masks), **facts)
        fill_pix2pixhd(*target, f"synthetic/{name}", *conditioned, **facts)


def launch(command: str, run, settings, what: str, **job):
    """Run a job in processes that `command`, such as "accelerate launch", starts.

    `what`: train, or sample (`sample_job`, with the arguments `job`). The processes write the same
    files as this one would, with which the caller continues. InputError if the command fails.
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
            "read the messages above; with an empty `launch` the notebook's kernel does the work",
        ) from error


def train_job(run, settings, name: str):
    """Train a run's ControlNet `name` in this process, one of several."""
    ControlNetTraining(run, settings, name=name).fit()


def sample_job(run, settings, name, masks, prompts, model: str):
    """Generate the batches of a set that are this process's share.

    `name`: the set's folder in the run; `masks`: path of the array (.npy); `model`: the ControlNet
    in models/, or "" if the base alone paints them.
    """
    from accelerate import PartialState  # slow import, needed only with several processes

    pipe = load_base(run, settings)
    controlled = controlnet.load(pipe, resolve(run) / "models" / model) if model else None
    painter, state = Painter(run, settings, pipe, controlled), PartialState()
    request = painter.request(name, np.load(masks), prompts, bool(model))
    share = state.process_index, state.num_processes
    work = painter.paint(request, bool(model))
    sets.paint(request, work, share, settings.sampling.sample_batch)


if __name__ == "__main__":
    values = json.loads(Path(sys.argv[1]).read_text())
    work = {"train": train_job, "sample": sample_job}[values["what"]]
    work(values["run"], Settings(**values["settings"]), **values["job"])
