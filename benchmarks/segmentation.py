"""Segmentation training against a plain PyTorch loop, and what the grid costs beside its trainings.

The plain loop reads and augments image files in a DataLoader with two workers, as most training
scripts do; the files have six megapixels, about the mean of ISIC 2018 (4 MB each). Ours has read
them once (`curation`), which is not timed. Same network, batch, machine and run.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from benchmarks.curation import write_pairs
from lesionlib.data import curation
from lesionlib.engine import settings as config
from lesionlib.engine.files import ROOT
from lesionlib.engine.training import Files, cpu_computes_bf16, device
from lesionlib.segmentation import networks, training

FILES = (3000, 2000)  # pixels
GRID = "bench-grid"
PRECISIONS = ["no", "bf16"] if device().type == "cuda" or cpu_computes_bf16() else ["no"]


class Pairs(Dataset):
    """Image and mask files, read, resized and augmented at every access."""

    def __init__(self, table, size: int):
        self.rows, self.size = table[["image", "mask"]].to_numpy(), size

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        image, mask = self.rows[i]
        image = Image.open(image).convert("RGB").resize((self.size,) * 2, Image.BILINEAR)
        mask = Image.open(mask).convert("L").resize((self.size,) * 2, Image.NEAREST)
        image, mask = functional.to_tensor(image), (functional.to_tensor(mask) > 0.5).float()
        for flip in (functional.hflip, functional.vflip):
            if torch.rand(()) < 0.5:
                image, mask = flip(image), flip(mask)
        turn = int(torch.randint(4, ()))
        image, mask = (torch.rot90(x, turn, (1, 2)) for x in (image, mask))
        mean, std = [networks.MEAN] * 3, [networks.STD] * 3
        return functional.normalize(image, mean, std), mask


def plain_rate(network, table, size, batch, steps, precision="no", **options) -> float:
    """Samples per second of the plain loop, after two steps; in bf16 also in channels_last."""
    model, bf16 = networks.build(network, **options).to(device()), precision == "bf16"
    model.to(memory_format=torch.channels_last if bf16 else torch.contiguous_format)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(
        Pairs(table, size),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )
    step = 0
    while True:
        for image, mask in loader:
            if step == 2:
                start = time.perf_counter()
            if step == 2 + steps:
                return batch * steps / (time.perf_counter() - start)
            with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
                logits = model(image.to(device()))
            loss = networks.dice_loss(logits.float(), mask.to(device()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()  # for its progress bar
            step += 1


def our_rate(network, pairs, recipe, steps) -> tuple[float, float]:
    """Samples per second of ours, and the share of the time from each forward to its backward."""
    build, backward, clock = training.build, torch.Tensor.backward, time.perf_counter
    starts, ends = [], []

    def timed_build(*given, **named):
        model = build(*given, **named)
        model.register_forward_pre_hook(lambda m, _: starts.append(clock()) if m.training else None)
        return model

    def timed_backward(*given, **named):
        backward(*given, **named)
        ends.append(clock())

    def train(number):
        with tempfile.TemporaryDirectory() as folder:
            files = Files(Path(folder) / "checkpoint.pt", Path(folder) / "log.csv")
            how, start = dict(seed=0, steps=number, files=files, key=""), clock()
            training.train(network, pairs, tuple(x[:2] for x in pairs), recipe, **how)
            return clock() - start

    train(2)  # the first one in a process is slower
    before = train(2)  # what every training costs once
    training.build, torch.Tensor.backward = timed_build, timed_backward
    try:
        seconds = train(2 + steps) - before
    finally:
        training.build, torch.Tensor.backward = build, backward
    return recipe.batch * steps / seconds, sum(np.subtract(ends, starts)[2:]) / seconds


def training_rows(settings: config.Segmentation, repeats: int):
    """Rows at 64 and 256 px for the preset's U-Net."""
    options = {"encoder": settings.unet_encoder, "decoder_channels": settings.unet_decoder}
    recipe = training.Recipe(
        settings.batch,
        settings.lr,
        precision=settings.segmentation_precision,
        validations=1,
        encoder=settings.unet_encoder,
        decoder=settings.unet_decoder,
    )
    batch, rows = settings.batch, []
    with tempfile.TemporaryDirectory() as folder:
        table = write_pairs(folder, 48, *FILES)
        for size, steps in ((64, 20), (256, 5)):
            curation.curate(table, size, f"{folder}/{size}")
            pairs = [np.load(f"{folder}/{size}/{name}") for name in curation.NAMES[:2]]
            ours, theirs = [], {precision: [] for precision in PRECISIONS}
            for _ in range(repeats):
                ours.append(our_rate("unet", pairs, recipe, steps))
                for precision, rates in theirs.items():
                    how = dict(precision=precision, **options)
                    rates.append(plain_rate("unet", table, size, batch, steps, **how))
            rate, share = max(ours)
            title = f"segmentation training, {size} px"  # in bf16 at least 1.5 times as fast
            rows += [
                (f"{title}: plain loop, 2 workers ({said})", rate, max(rates), "samples/s")
                for said, rates in zip(("float32", "bf16"), theirs.values(), strict=False)
            ]
            rows += [(f"{title}: share of forward + backward (at least 0.9)", share, 0.9, "")]
    return rows


def grid_row():
    """Seconds of a job of the grid, start-up included, against those of its trainings alone.

    Those without synthetic pairs, of the preset quick; a training of isic is twice as long.
    """
    shutil.rmtree(ROOT / "runs" / GRID, ignore_errors=True)
    own = ["epochs=100", "seeds=[0]", "arms=[steps, real_pairs, classical, low_data]"]

    def run(target):
        command = [
            sys.executable,
            "-m",
            "lesionlib.workflow.cli",
            "--name",
            GRID,
            target,
            "--config",
            *own,
        ]
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start

    run("data")
    seconds = run("segmentation_01")
    cells = ROOT / "runs" / GRID / "checkpoints" / "cells"
    trained = sum(
        json.loads(path.read_text())["seconds_training"] for path in cells.glob("*.csv.json")
    )
    shutil.rmtree(ROOT / "runs" / GRID)
    return ("a job of the grid: its trainings alone (at most 1.15)", seconds, trained, "s")


def rows(repeats: int = 2) -> list[tuple[str, float, float, str]]:
    """(name, ours, reference, unit), the best of alternating repeats, one thread as in a job."""
    settings, threads = config.load("isic"), torch.get_num_threads()
    torch.set_num_threads(settings.jobs.threads)
    try:
        return [*training_rows(settings.segmentation, repeats), grid_row()]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    found = pd.DataFrame(rows(), columns=["name", "ours", "reference", "unit"])
    print(found.to_string(index=False))
