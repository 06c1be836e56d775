"""What a unit of each kind of work costs: tried on this machine for seconds.

A unit is a training step, a pass of a sampled image, a decoded picture, the start of a kernel, ...
Trainings are those of the run itself, stopped after a few steps; `estimate` multiplies.

Where one thread works, CPU time is measured, not the time that passes: what other programs take, or
a governor that holds a process back, is no property of the work. With several threads or a GPU it
is the time that passes.
"""

import contextlib
import io
import multiprocessing
import os
import resource
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pandas as pd
import torch

from lesionlib.data import augmentation, curation, phantom
from lesionlib.data.plausibility import BRIGHT
from lesionlib.engine import training as engine
from lesionlib.engine.files import ROOT, resolve
from lesionlib.engine.training import Files, device
from lesionlib.evaluation import attributes, distribution, quality
from lesionlib.generators import base, controlnet, latents, pix2pixhd, sd15
from lesionlib.generators.budget import pix2pixhd_settings
from lesionlib.masks import recipe, shapes
from lesionlib.segmentation import cells, measures, networks, reference, training
from lesionlib.segmentation.grid import Cell
from lesionlib.workflow import stage

STEPS = 4  # of each training that is tried; the first two are slower and do not count
PROMPT = "a dermoscopic image of a nevus with globules"
REAL = 768  # side in pixels of pictures of a source that is not at hand
KERNEL = """
from lesionlib import data, evaluation, generators, masks, segmentation
from lesionlib.report import charts, generated, plots
from lesionlib.report.run import Run
generators.jobs, segmentation.cells, evaluation.claims
"""


class Enough(Exception):
    """A training that is tried has made its steps."""


def clock() -> float:
    """Seconds of CPU time where one thread works, else of the time that passes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def seconds_of(work) -> float:
    """The least time of two calls."""
    found = []
    for _ in range(2):
        start = clock()
        work()
        found.append(clock() - start)
    return min(found)


@contextlib.contextmanager
def few_steps():
    """Within this block a training ends after STEPS steps; yields the list of their seconds."""
    whole, found = engine.Loop._step, []

    def timed(loop, step):
        start = clock()
        whole(loop, step)
        found.append(clock() - start)
        if len(found) == STEPS:
            raise Enough

    engine.Loop._step = timed
    try:
        with contextlib.suppress(Enough):
            yield found
    finally:
        engine.Loop._step = whole


def step_of(train) -> float:
    """Seconds of a step of the training that `train` starts, which has many more than STEPS."""
    with few_steps() as found:
        train()
    return statistics.median(found[2:])


def size_of(module) -> int:
    """The number of a module's parameters."""
    return sum(p.numel() for p in module.parameters())


def pairs(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a disc as lesion: images (n, size, size, 3), masks (n, size, size)."""
    rng = np.random.default_rng(0)
    centres, radii = rng.uniform(0.4, 0.6, (n, 2, 1, 1)), rng.uniform(0.15, 0.35, (n, 1, 1))
    away = np.indices((size, size))[None] / size - centres
    masks = np.hypot(away[:, 0], away[:, 1]) < radii
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), masks.astype(np.uint8)


def _measured_side(data) -> int:
    """Side of the masks with which predictions are compared."""
    return data.phantom_size if data.source == "phantom" else REAL


def pipeline(settings, folder, place):
    """The base of a run on the device `place`: that on the disk, or one of its shapes.

    A base of the hub is not downloaded: it counts as of Stable Diffusion 1.5's shapes.
    """
    own, size = settings.base, settings.data.image_size
    if own.model and not resolve(own.path).exists():
        with place:
            return sd15.pipeline([PROMPT], folder)
    if own.model:
        pipe = base.load(own.model)
    else:
        pipe = base.new(pairs(8, size)[0], [PROMPT], folder, own, 0)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.to(place)
    return pipe


def perceptual(weights: str):
    """The perceptual loss of a run; one that would be downloaded has random weights."""
    if weights != "download":
        return pix2pixhd.vgg_loss_or_none(weights)
    import torchvision  # slow import, needed only with VGG19

    return pix2pixhd.VGGLoss(torchvision.models.vgg19().features)


def diffusion_sizes(pipe, controlled, size: int) -> dict[str, int]:
    """Parameters of base and ControlNet, and values in the latents of an image."""
    found = {"base": size_of(pipe.unet) + size_of(pipe.text_encoder)}
    found["latents"] = pipe.unet.config.in_channels * (size // pipe.vae_scale_factor) ** 2
    return found | {"controlnet": size_of(controlled.controlnet)}


def try_diffusion(settings, folder: Path) -> dict:
    """Encoding, training, and sampling of base and ControlNet."""
    own, sampling, batch = settings.controlnet, settings.sampling, settings.controlnet.batch
    if settings.base.is_trained:
        batch = max(batch, settings.base.batch)
    images, masks = pairs(batch, settings.data.image_size)
    pipe = pipeline(settings, folder, device())
    matrices = augmentation.variants(images, masks, settings.augmentation, "controlnet")
    start = clock()
    z = latents.encode_images(pipe, images, masks, matrices, folder)
    found = {"encoded": (clock() - start) / (z.shape[0] * z.shape[1])}
    data = base.Examples(z, masks, matrices, np.full(z.shape[:2], PROMPT))
    many, schedule = {"steps": 1000}, settings.training
    controlled = controlnet.new(pipe, locked=own.locked, middle_only=own.middle_only).to(device())
    sizes = diffusion_sizes(pipe, controlled, settings.data.image_size)
    if not own.model:
        once = own.model_copy(update=many | {"accumulate": 1})
        work = folder / "controlnet"
        found["controlnet"] = step_of(
            lambda: controlnet.train(pipe, controlled, data, work, once, schedule, {})
        )
    found |= sampled(pipe, controlled, masks[: sampling.sample_batch], sampling)
    if settings.base.is_trained:
        once = settings.base.model_copy(update=many)
        found["base"] = step_of(lambda: base.train(pipe, data, folder / "base", once, schedule, {}))
    return {"seconds": found, "parameters": sizes}


def sampled(pipe, controlled, masks, sampling) -> dict[str, float]:
    """Seconds of one row in a DDIM step, and of decoding an image."""
    prompts = [PROMPT] * len(masks)

    def seconds(steps):
        few = sampling.model_copy(update={"ddim_steps": steps})
        return seconds_of(lambda: list(controlnet.sample(pipe, controlled, masks, prompts, few)))

    once = seconds(1)
    step = max(0.0, seconds(3) - once) / 2
    passes = len(masks) * rows(sampling, True, True)
    return {"denoised": step / passes, "decoded": max(0.0, once - step) / len(masks)}


def rows(sampling, prompted: bool, control: bool) -> int:
    """Rows that one image takes in a batch of a DDIM step, as `controlnet.guide` makes them."""
    seen, text = [], torch.zeros(1, 1, 1)

    def noted(z, *_):
        seen.append(len(z))
        return z

    guided = torch.arange(int(prompted and sampling.guidance != 1))
    hints = torch.zeros(1, 1) if control else None
    denoise = controlnet.guide(noted, text, hints, guided, text[: len(guided)], sampling)
    denoise(torch.zeros(1, 1, 1, 1), 0)
    return seen[0]


def gan_stages(settings) -> dict[str, dict]:
    """The stages of a Pix2PixHD training: their names' endings, and the steps to try each."""
    if not settings.pix2pixhd.enhancers:
        return {"": {"steps": 1000}}
    return {"": {"steps": 1000}, "_fine": {"steps": 1, "fine_steps": 1000, "fixed_steps": 0}}


def try_gan(settings, folder: Path, name: str) -> dict:
    """Training and translation of Pix2PixHD or Pix2PixHD+."""
    plus, own = name == "pix2pixhd_plus", pix2pixhd_settings(settings)
    images, masks = pairs(max(own.batch, 16), settings.data.image_size)
    data, found = pix2pixhd.Examples(images, masks, settings.augmentation), {}
    for ending, steps in gan_stages(settings).items():
        options = own.model_copy(update=steps), settings.training, {}
        more = dict(plus=plus, vgg=perceptual(own.vgg))
        work = folder / f"{name}{ending}"
        found[name + ending] = step_of(
            lambda work=work, options=options, more=more: pix2pixhd.train(
                data, work, *options, **more
            )
        )
    both = pix2pixhd.networks(own, 0, plus, own.enhancers)
    both.to(device(), memory_format=torch.channels_last)
    made = seconds_of(lambda: list(pix2pixhd.generate(both[0], masks[:16], device=device())))
    sizes = {name: size_of(both), f"{name} generator": size_of(both[0])}
    return {"seconds": found | {f"{name} image": made / 16}, "parameters": sizes}


def recipe_of(name: str, own) -> training.Recipe:
    """How a network is trained; `own`: the group `segmentation`."""
    return cells.recipe_of(Cell(name, "real", 0, 100, "steps", 0), own, own.batch)


def try_network(settings, folder: Path, name: str) -> dict:
    """Training of a segmentation network, and its predictions."""
    own, n = settings.segmentation, max(2, settings.segmentation.batch)
    part = pairs(n, own.segmentation_size)
    recipe = recipe_of(name, own)
    files = Files(folder / f"{name}.pt", folder / f"{name}.csv")
    found = step_of(
        lambda: training.train(name, part, part, recipe, seed=0, steps=10000, files=files, key="")
    )
    model = networks.build(name, recipe.encoder, recipe.decoder).to(device())
    image = seconds_of(lambda: training.probabilities(model, part[0])) / n
    return {"seconds": {name: found, f"{name} image": image}, "parameters": {name: size_of(model)}}


def try_reference(settings, folder: Path) -> dict:
    """Training of the reference segmenter."""
    own = settings.reference
    part, how = pairs(max(2, own.batch), own.size), reference.recipe(own, settings.augmentation)
    files, facts = Files(folder / "reference.pt", folder / "reference.csv"), {"seed": own.seed}
    few = tuple(array[:2] for array in part)
    found = step_of(lambda: reference.fit(part, few, how, facts | {"steps": 10000}, files, ""))
    return {"seconds": {"reference": found}}


def try_classifier(settings, folder: Path) -> dict:
    """Training of the attribute classifier."""
    images = pairs(attributes.BATCH, settings.data.image_size)[0]
    goals = pd.DataFrame(np.eye(attributes.BATCH, 8))
    warps = settings.augmentation if "classifier" in settings.augmentation.trainings else None
    precision = attributes.precision_of(settings.training)
    options = dict(steps=1000, seed=0, record={}, precision=precision, warps=warps)
    found = step_of(lambda: attributes.train(images, goals, folder / "classifier", **options))
    return {"seconds": {"classifier": found}}


def try_pictures(settings, folder: Path) -> dict:
    """Reading a pair of files; of procedural images painting it, too."""
    data, number = settings.data, 4
    ours = data.source == "phantom"
    start = clock()
    phantom.write_dataset(folder / "pictures", number, _measured_side(data), workers=1)
    painted = (clock() - start) / number
    found = list((folder / "pictures").glob("*/*.*g"))
    images, masks = (sorted(p for p in found if p.suffix == s) for s in (".jpg", ".png"))

    def read():
        for pair in zip(images, masks, strict=True):
            curation.read_facts(*map(str, pair), data.image_size, data.fit, BRIGHT)

    found = seconds_of(read) / number + painted * ours
    return {"seconds": {"picture": found}}


def try_masks(settings, folder: Path) -> dict:
    """Drawing a mask, the mean of the three modes, and the statistics of its shape."""
    size, number, real = settings.data.image_size, 4, pairs(16, settings.data.image_size)[1]

    def draw():
        for mode in recipe.MODES:
            options = dict(mode=mode, real=real, workers=1)
            shapes.statistics(recipe.random_masks(number, size, **options))

    found = seconds_of(draw) / number / len(recipe.MODES)
    return {"seconds": {"mask": found}}


def try_judging(settings, folder: Path) -> dict:
    """Mask fidelity and features of an image, its comparison with another, and of two masks."""

    own, number = settings.reference, 16
    images, masks = pairs(number, settings.data.image_size)
    model = networks.build("unet", own.encoder, own.decoder).to(device()).eval()
    segmenter, lite = reference.ReferenceSegmenter(model, own.size), distribution.imagenet_model()

    def judge():
        reference.fidelity(segmenter, images, masks, own.distractor)
        distribution.imagenet_features(lite, images)

    side = _measured_side(settings.data)
    chance, found = np.full((side, side), 0.4, np.float32), pairs(1, side)[1][0]
    chance += 0.5 * np.roll(found, side // 16, axis=0)
    tolerance = settings.evaluation.surface_tolerance
    measured = seconds_of(lambda: measures.segmentation(chance, found, tolerance))
    compared = seconds_of(lambda: quality.ssim(images, images)) / number
    found = {"judged": seconds_of(judge) / number, "compared": compared, "measured": measured}
    return {"seconds": found}


def try_kernel(settings, folder: Path) -> dict:
    """Starting papermill and a kernel, and the imports of a notebook; CPU time of both."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(KERNEL)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(book, folder / "kernel.ipynb")
    command = [*stage.papermill(), "kernel.ipynb", "out.ipynb"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = dict(env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True)
    subprocess.run([*command, "--no-progress-bar"], cwd=folder, **options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": {"kernel": found}}


ON_CPU = (try_kernel, try_judging, try_pictures, try_masks)  # whatever the device


def needed(settings) -> list[tuple]:
    """What is to be tried for a run besides ON_CPU: (function, arguments), the longest first."""
    gans = [(try_gan, name) for name in settings.design.methods if name != "controlnet"]
    nets = [(try_network, name) for name in settings.segmentation.networks]
    return [(try_diffusion,), *gans, *nets, (try_reference,), (try_classifier,)]


@contextlib.contextmanager
def silence():
    """Within this block neither messages nor the bars of loading a base are shown."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _begin(threads: int):
    """Make a process one like that of a job."""
    os.environ |= {"LESIONLIB_QUIET": "1", "OMP_NUM_THREADS": str(threads)}
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def _try(settings, work, arguments) -> dict:
    with tempfile.TemporaryDirectory() as folder, silence():
        found = work(settings, Path(folder), *arguments)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.max_memory_allocated() / 1e9
    return found | {"memory": memory}


def tried(settings, works, beside: int) -> dict:
    """Seconds of each unit, numbers of parameters, and the largest memory in MB.

    `works`: from `needed`. They are tried in `beside` processes with the threads of a job; where
    there are fewer works than that, each several times, so that the machine is as busy as it will
    be. The mean counts.
    """
    works, found = works * -(-beside // len(works)), {"seconds": {}, "parameters": {}}
    threads, spawn = settings.jobs.threads, multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(beside, spawn, _begin, (threads,)) as pool:
        results = [pool.submit(_try, settings, work, arguments) for work, *arguments in works]
        results = [result.result() for result in results]
    for result in results:
        for unit, seconds in result["seconds"].items():
            found["seconds"].setdefault(unit, []).append(seconds)
        found["parameters"] |= result.get("parameters", {})
    found["seconds"] = {unit: statistics.mean(some) for unit, some in found["seconds"].items()}
    found |= {name: max(r.get(name, 0) for r in results) for name in ("memory", "gpu")}
    return found
