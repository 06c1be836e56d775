"""Pretrain the base that comes with the repository, on an endless stream of procedural images.

    python -m models.pretrain [--work runs/pretrain] [--steps N] [--start DIR] [--publish]

`models/small` is a small Stable Diffusion that has never seen a patient's pixel: what Stable
Diffusion is to the paper, it is to the presets that two CPU cores can run. Images come from
`lesionlib.data.phantom` with a seed that no preset may use. Half of them are as the phantoms of the
study; in the other half the lesion is small and anywhere, as under the paper's automatic masks.
Image and mask are warped (`augmentation.copied`), prompts come from the whole grammar, and every
step has one of three resolutions.

First the text encoder learns to tell which prompt belongs to which image (`contrast`; Radford et
al. 2021: that of Stable Diffusion is also a CLIP's), then it is locked and the UNet is trained.
Without this the UNet learns to ignore prompts, whose random embeddings are only noise to it.

A producer process paints the stream ahead of the training. The images of a step depend on the step
alone, so an interrupted run continues as if nothing had happened; run it again with the same
arguments. `validations.csv` in the work folder holds KID to held-out procedural images. With
`--start` the UNet of a published base is trained on, at half the learning rate, and the stream goes
on where that base's ended; its text encoder stays as it is.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lesionlib.data import augmentation, phantom, prompts
from lesionlib.data.catalogue import DIAGNOSES
from lesionlib.data.dataset import resized
from lesionlib.engine import settings as presets
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, atomic_write, read_json, resolve, write_csv
from lesionlib.engine.provenance import code_version, digest, hardware
from lesionlib.engine.settings import Augmentation, Base, Sampling
from lesionlib.engine.training import Average, Schedule, fit, generator_at, load_checkpoint
from lesionlib.evaluation import distribution
from lesionlib.generators import base, controlnet
from lesionlib.masks import recipe

SEED = 31_002_906  # of all procedural images here; no preset may use it (`check_seeds`)
TARGET = ROOT / "models" / "small"
SIDE = 128  # pixels at which the stream is kept
SHARD, FIRST, WINDOW, EVERY = 256, 4, 48, 150  # images; shards at the start, at most; steps for one
SIZES = {64: (0.7, 32), 32: (0.1, 64), 128: (0.2, 8)}  # share of the steps, and batch, by side
CONTRAST = {32: (1.0, 128)}  # the same for the text encoder's training
HELD_OUT = 512  # images that are never trained on
DROPOUT, DETAIL = 0.1, 0.5  # shares of empty prompts, and of prompts with each of `prompts.DETAILS`
EMA = 0.999  # decay of the moving average of the weights
LR, FURTHER = 1e-3, 5e-4  # peak learning rate of a new base, and of one that is trained on
MODEL = Base(model="", text_width=128, text_pooled=True, text_tokens=56)
WARPS = Augmentation()
SITES = (*phantom.SITES, "lateral torso", "palms/soles", "oral/genital")  # of ISIC


def check_seeds():
    """InputError if a preset's procedural images, which are to be unseen, have this seed."""
    for name in presets.presets():
        if presets.load(name).data.data_seed == SEED:
            raise InputError(name, f"data_seed {SEED} is the pretraining's", "choose another")


def moved(mask: np.ndarray, rng) -> np.ndarray:
    """A lesion (S, S) shrunk and moved to a random place; as it was if nothing would be left."""
    size, scale = len(mask), rng.uniform(0.3, 0.9)
    target = rng.uniform(0.1, 0.9, 2) * size
    x, y = np.argwhere(mask).mean(0)[::-1]
    matrix = np.float32([[scale, 0, target[0] - scale * x], [0, scale, target[1] - scale * y]])
    found = cv2.warpAffine(np.float32(mask), matrix, (size, size)) > 0.5
    return phantom.solid(found) if found.mean() > 0.01 else mask


def painted(index: int):
    """Image (SIDE, SIDE, 3), mask (SIDE, SIDE) and labels of number `index` of the stream."""
    rngs = phantom.streams(index, SEED)
    labels, rng = phantom.draw_labels(rngs["labels"]), rngs["tables"]
    shape, kind = None, rng.random()
    if kind < 0.25:
        shape = recipe.random_masks(1, 256, seed=SEED, first=index % 2**31, workers=1)[0]
    elif kind < 0.5:
        shape = moved(phantom.lesion_shape(rngs["shape"], 256, labels["diagnosis"]), rng)
    image, mask = phantom.paint(labels, rngs, SIDE, shape)
    return image, mask, labels["attributes"] | labels


def make_shard(folder: Path, number: int):
    """Write one shard of the stream, unless it exists; number -1 is held out."""
    path = folder / f"{number:05d}.npz"
    if path.exists():
        return
    n = SHARD if number >= 0 else HELD_OUT
    first = number * SHARD if number >= 0 else 10**9
    images, masks, labels = zip(*(painted(first + i) for i in range(n)), strict=True)
    table = json.dumps([{k: v for k, v in row.items() if k != "attributes"} for row in labels])
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, images=np.stack(images), masks=np.stack(masks), table=np.array(table))


def produce(folder: Path, shards: range):
    """Paint shards in order, at low priority."""
    os.nice(10)
    cv2.setNumThreads(1)
    for number in (-1, *shards):
        make_shard(folder, number)


@lru_cache(WINDOW + 2)
def shard(folder: Path, number: int):
    """Images, masks and labels of a shard, waiting until it is painted."""
    path = folder / f"{number:05d}.npz"
    while not path.exists():
        time.sleep(1)
    with np.load(path, allow_pickle=False) as found:
        return found["images"], found["masks"], json.loads(str(found["table"]))


def window(step: int, begin: int = 0) -> range:
    """Numbers of the shards that a step draws from, if the training began with step `begin`."""
    last = FIRST + step // EVERY
    return range(max(begin // EVERY, last - WINDOW), last)


def sentence(labels: dict, mask: np.ndarray, rng, dropout: float = DROPOUT) -> str:
    """A random prompt of the grammar for an image; a share `dropout` is empty."""
    if rng.random() < dropout:
        return ""
    details = [name for name in prompts.DETAILS if rng.random() < DETAIL]
    return prompts.prompt(labels, "diagnosis" if rng.random() < 0.1 else "full", details, mask)


def batch_of(folder: Path, step: int, sizes: dict | None = None, dropout=DROPOUT, begin=0):
    """Images (B, S, S, 3), and their prompts, of a step.

    `sizes` as SIZES, `begin` as in `window`.
    """
    sizes = sizes or SIZES
    rng, shards = np.random.default_rng([SEED, step, len(sizes)]), window(step, begin)
    sides = list(sizes)
    size = int(rng.choice(sides, p=[sizes[side][0] for side in sides]))
    rows = rng.integers(len(shards) * SHARD, size=sizes[size][1])
    chosen = [(shard(folder, shards[row // SHARD]), row % SHARD) for row in rows]
    images, masks = (np.stack([part[k][i] for part, i in chosen]) for k in (0, 1))
    images, masks = resized(images, masks, size)
    cut = augmentation.cut_off(images, masks)
    matrices = augmentation.copied(masks, cut, WARPS, generator_at(SEED, step))
    warped = augmentation.warp_masks(masks, matrices)
    labels = [part[2][i] for part, i in chosen]
    texts = [sentence(row, mask, rng, dropout) for row, mask in zip(labels, warped, strict=True)]
    return augmentation.warp_images(images, masks, matrices), texts


def vocabulary() -> list[str]:
    """Sentences that hold every word of the grammar, to learn the tokenizer from."""
    rng, found = np.random.default_rng(SEED), []
    for index in range(3000):
        labels = phantom.draw_labels(phantom.streams(index, SEED)["labels"])
        labels |= labels["attributes"] | {"diagnosis": rng.choice(sorted(set(DIAGNOSES.values())))}
        labels["site"] = rng.choice(SITES)
        mask = np.zeros((32, 32), np.uint8)
        row, column = rng.integers(0, 24, 2)
        mask[row : row + rng.integers(4, 30), column : column + 16] = 1
        found.append(prompts.prompt(labels, "full", prompts.DETAILS, mask))
    return found


class Pairing(nn.Module):
    """A text encoder, and an image encoder that tells which prompt is that of an image."""

    def __init__(self, text_encoder):
        super().__init__()
        self.text_encoder, width = text_encoder, text_encoder.config.hidden_size
        self.image_encoder = timm.create_model("resnet10t", num_classes=width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # as CLIP

    def forward(self, images, ids):
        """Similarities (B, B) of images (B, 3, S, S) and of prompts, as token ids (B, T)."""
        seen = F.normalize(self.image_encoder(images).float(), dim=1)
        read = F.normalize(self.text_encoder(ids).pooler_output.float(), dim=1)
        return self.log_scale.exp().clamp(max=100) * seen @ read.T


def contrast(pipe, work: Path, steps: int, record: dict):
    """Train the text encoder of a pipeline (Radford et al. 2021), then lock it."""
    stream, folder = work / "stream", work / "text_encoder"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(SEED)

    def loss_at(model, step):
        images, texts = batch_of(stream, step, CONTRAST, dropout=0.0)
        similarity = model(base.pixels(images), base.token_ids(pipe, texts))
        own = torch.arange(len(texts))
        return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2

    plan = Schedule(steps, 1e-3, warmup=min(100, steps // 4), precision="auto")
    fit(Pairing(pipe.text_encoder), loss_at, folder, plan, record, desc="text encoder")
    pipe.text_encoder.requires_grad_(False).eval()


@torch.no_grad()
def prompt_gain(pipe, images: np.ndarray, texts: list[str]) -> float:
    """By which share the denoising loss rises if each image (N, S, S, 3) has another's prompt."""
    z, ids = base.encode(pipe, images), base.token_ids(pipe, texts)
    noise, losses = torch.randn(z.shape, generator=generator_at(SEED, 0)), []
    for order in (torch.arange(len(ids)), torch.arange(len(ids)).roll(1)):
        text = pipe.text_encoder(ids[order])[0]
        for step in (200, 500, 800, 950):
            t = torch.full((len(z),), step)
            noisy, target = base.diffused(pipe.scheduler, z, noise, t)
            losses.append(F.mse_loss(pipe.unet(noisy, t, text).sample, target).item())
    return sum(losses[4:]) / sum(losses[:4]) - 1


def validator(pipe, folder: Path):
    """A function of the step: KID to the held-out images and `prompt_gain`; it keeps samples."""
    images, masks, labels = shard(folder, -1)
    real, small = resized(images, masks, 64)
    rng, model = np.random.default_rng(SEED), distribution.imagenet_model()
    told = [sentence(row, mask, rng, 0.0) for row, mask in zip(labels[:256], small, strict=False)]
    texts = [prompts.prompt(row) if rng.random() < 0.5 else "" for row in labels[: len(real) // 2]]
    known = distribution.imagenet_features(model, real)
    settings, empty = Sampling(ddim_steps=15, sample_seed=SEED, guidance=1.0), masks[: len(texts)]
    empty = resized(images[: len(texts)], empty, 64)[1]

    @torch.no_grad()
    def validate(step: int) -> dict:
        made = np.stack(list(controlnet.sample(pipe, None, empty, texts, settings)))
        side = math.isqrt(min(len(made), 64))
        sheet = np.concatenate([np.concatenate(row, 1) for row in np.split(made[: side**2], side)])
        cv2.imwrite(str(folder.parent / f"samples_{step:06d}.png"), sheet[..., ::-1])
        features = distribution.imagenet_features(model, made)
        mean, sd = distribution.kid(features, known, size=len(features) // 2)
        gain = prompt_gain(pipe, real[: len(told)], told)
        return {"kid": mean, "kid_sd": sd, "prompt_gain": gain}

    return validate


def trainings(start: str) -> list[dict]:
    """The trainings of the base `start`, oldest first: steps, code, hardware, perhaps hours."""
    if not start:
        return []
    known = read_json(resolve(start) / "model_index.json.json")
    machine = known["environment"]["hardware"]
    alone = {"steps": known["steps"], "code": known["code"], "hardware": machine}
    return known.get("trainings", [alone])


def begin_of(start: str) -> int:
    """The step of the stream with which a training that begins with the base `start` begins."""
    return sum(training["steps"] for training in trainings(start))


def untrained(work: Path, steps: int, start: str = ""):
    """The pipeline before its training, its UNet with the text encoder, and the record."""
    begin = begin_of(start)
    images = np.concatenate([shard(work / "stream", n)[0] for n in window(begin, begin)])
    first = resized(images, np.zeros(images.shape[:3]), 64)[0]
    pipe = base.load(start) if start else base.new(first, vocabulary(), work, MODEL, SEED)
    pipe.unet.to(memory_format=torch.channels_last)
    model = base.Denoiser(pipe.unet.requires_grad_(True), pipe.text_encoder)
    record = {"steps": steps, "seed": SEED, "stream": digest(first)}
    return pipe, model, record | ({"start": base.pipeline_digest(pipe)} if start else {})


def text_steps(steps: int) -> int:
    """Steps of the text encoder's training beside `steps` of the UNet's."""
    return max(1, steps // 8)


def prepare_text_encoder(pipe, work: Path, steps: int, start: str, record: dict):
    """Train the text encoder of a new base; that of the base `start` is locked as it is."""
    if start:
        pipe.text_encoder.requires_grad_(False).eval()
    else:
        contrast(pipe, work, text_steps(steps), record)


def so_far(work: Path, steps: int, start: str = ""):
    """The pipeline with the averaged weights of the last checkpoint, and that checkpoint's step."""
    pipe, model, record = untrained(work, steps, start)
    state = load_checkpoint(work / "checkpoint.pt", record)
    if state is None:
        raise InputError(work / "checkpoint.pt", "no checkpoint of this training", "start it first")
    prepare_text_encoder(pipe, work, steps, start, record)  # trained before: this loads it
    average = Average([p for p in model.parameters() if p.requires_grad], EMA)
    average.load(state["average"])
    average.finish()
    return pipe, state["step"]


def train(work: Path, steps: int, start: str = ""):
    """The pretrained pipeline; the stream lies in work/stream."""
    stream, (pipe, model, record) = work / "stream", untrained(work, steps, start)
    prepare_text_encoder(pipe, work, steps, start, record)
    begin = begin_of(start)

    def loss_at(model, step):
        step += begin
        images, texts = batch_of(stream, step, begin=begin)
        z, draw = base.encode(pipe, images), generator_at(SEED + 1, step)
        noisy, target, t = base.noised(pipe.scheduler, z, draw, len(z), slice(None))
        predicted = model(noisy, t, base.token_ids(pipe, texts))
        return base.denoising_loss(pipe.scheduler, predicted, target, t)

    lr, every = (FURTHER, 400) if start else (LR, 1000)
    plan = Schedule(steps, lr, warmup=200, ema=EMA, precision="auto", validate_every=every)
    began, path = time.monotonic(), work / "seconds.json"
    spent = json.loads(path.read_text()) if path.exists() else 0.0
    try:
        fit(model, loss_at, work, plan, record, validate=validator(pipe, stream), desc="base")
    finally:
        path.write_text(json.dumps(spent + time.monotonic() - began))
    return pipe


def publish(pipe, work: Path, steps: int, done: int, start: str = ""):
    """Write the base after `done` of `steps` to models/small, in half precision, with its card."""
    curve, begin = pd.read_csv(work / "validations.csv"), begin_of(start)
    curve["step"] += begin
    if start:
        curve = pd.concat([pd.read_csv(resolve(start) / "validations.csv"), curve])
    hours = round(json.loads((work / "seconds.json").read_text()) / 3600, 2)
    last = {"steps": done, "code": code_version(), "hardware": hardware(), "hours": hours}
    history = [*trainings(start), last]
    shutil.rmtree(TARGET, ignore_errors=True)
    early, end = curve.iloc[1], curve.iloc[-1]
    facts = dict(
        unet=sum(p.numel() for p in pipe.unet.parameters()) / 1e6,
        images=(FIRST + (begin + done - 1) // EVERY) * SHARD,
        history="; then ".join(
            f"{one['steps']:,} steps by version {one['code']} on {one['hardware']}"
            + (f" ({one['hours']} hours)" if "hours" in one else "")
            for one in history
        ),
        first=early["kid"],
        first_step=int(early["step"]),
        last=end["kid"],
        gain=end["prompt_gain"],
        text=text_steps(history[0]["steps"]),
        commands="`, then `".join(
            f"python -m models.pretrain --steps {one['steps']}" + " --start models/small" * (i > 0)
            for i, one in enumerate(history)
        ),
    )
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.half()
    if start:  # else the files would name this machine's folders
        for part in (pipe, pipe.unet, pipe.vae):
            part.register_to_config(_name_or_path=start)
    write_csv(TARGET / "validations.csv", curve)
    card = (ROOT / "models" / "card.md").read_text()
    card = card.format(seed=SEED, held_out=HELD_OUT, **facts)
    (TARGET / "README.md").write_text(card)
    command = f"python -m models.pretrain --steps {steps}" + (f" --start {start}" if start else "")
    facts = {"command": command, "steps": begin + done, "trainings": history}
    base.save(pipe, TARGET, data_seed=SEED, **facts)


def main():
    """Read the arguments, start the producer, train and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="runs/pretrain", help="folder of stream and checkpoint")
    parser.add_argument("--steps", type=int, default=8000, help="optimiser steps")
    parser.add_argument("--start", default="", help="folder of a base that is trained on")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training")
    parser.add_argument(
        "--publish", action="store_true", help="only publish what the training has reached so far"
    )
    options = parser.parse_args()
    check_seeds()
    torch.set_num_threads(options.threads)
    work = resolve(options.work)
    (work / "stream").mkdir(parents=True, exist_ok=True)
    if options.publish:
        pipe, done = so_far(work, options.steps, options.start)
        return publish(pipe, work, options.steps, done, options.start)
    spawn = multiprocessing.get_context("spawn")
    begin = begin_of(options.start)
    shards = range(begin // EVERY, FIRST + (begin + options.steps) // EVERY)
    producer = spawn.Process(target=produce, args=(work / "stream", shards), daemon=True)
    producer.start()
    try:
        steps, start = options.steps, options.start
        publish(train(work, steps, start), work, steps, steps, start)
    except InputError as error:
        sys.exit(str(error))
    finally:
        producer.terminate()


if __name__ == "__main__":
    main()
