"""Table 2: segmentation networks trained on S-train, alone or with synthetic pairs.

Paper (arXiv 2310.02906): U-Net and DCSAU-Net, Dice loss, Adam with 1e-3, batch 256, 350 epochs.
Silent there and chosen here: the U-Net's encoder, flips and quarter turns, and that the weights
of the best validation on S-val are kept; S-test is seen once, after training.
"""

import copy
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from lesionlib.dcsaunet import DCSAUNet
from lesionlib.errors import InputError
from lesionlib.files import Log, write_csv
from lesionlib.grid import Cell, grid  # noqa: F401 (callers take both from here)
from lesionlib.metrics import dice
from lesionlib.progress import progress
from lesionlib.provenance import code_digest, digest, record, recorded
from lesionlib.training import batch_at, device, generator_at, load_checkpoint, save_checkpoint

NETWORKS = ("unet", "dcsaunet")
DECODER = (64, 48, 32, 16, 16)  # narrower than smp's default (256, 128, 64, 32, 16)
MEAN, STD = 0.5, 0.25  # fixed, so that no network knows more of the data than its pixels
SAVE_AFTER = 60  # seconds of training that may be lost when it is interrupted


def build(network: str, encoder: str = "resnet18", decoder_channels=DECODER) -> nn.Module:
    """An untrained network, float (B, 3, S, S) to logits (B, 1, S, S); ValueError if unknown.

    "unet" is segmentation-models-pytorch's without pretrained weights, with a stage per entry of
    `decoder_channels`; "dcsaunet" (S a multiple of 16) ignores the options.
    """
    if network == "unet":
        import segmentation_models_pytorch as smp  # fifteen seconds, not for everybody

        model = smp.Unet(encoder, encoder_depth=len(decoder_channels), encoder_weights=None,
                         decoder_channels=tuple(decoder_channels), in_channels=3, classes=1)
    elif network == "dcsaunet":
        model = DCSAUNet(3, 1)
    else:
        raise ValueError(f"unknown network '{network}'; there are: {', '.join(NETWORKS)}")
    return model.to(memory_format=torch.channels_last)  # a fifth faster on a CPU


def dice_loss(logits: torch.Tensor, target: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """Soft Dice loss, a scalar in [0, 1], of logits and 0/1 targets of one shape.

    Sums run over the pixels of the whole batch: large lesions count for more than small ones.
    It is segmentation-models-pytorch's DiceLoss with half of `smooth` (in pixels).
    """
    probability = logits.sigmoid()
    both, total = (probability * target).sum(), probability.sum() + target.sum()
    return 1 - (2 * both + smooth) / (total + smooth)


def augment(pairs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each of (B, C, S, S) in one of the eight positions of a square, drawn uniformly."""
    bits = torch.rand((3, len(pairs), 1, 1, 1), generator=generator) < 0.5
    down, across, diagonal = bits.to(pairs.device)  # each (B, 1, 1, 1)
    pairs = torch.where(down, pairs.flip(2), pairs)
    pairs = torch.where(across, pairs.flip(3), pairs)
    return torch.where(diagonal, pairs.transpose(2, 3), pairs)


def inputs(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, S, S) to what the networks take: scaled to [0, 1], less MEAN, over STD."""
    return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def _check(images, masks, what):
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"{what}: images must be uint8 (N, S, S, 3) with N > 0; they are "
                         f"{images.dtype} {images.shape}")
    if masks.dtype != np.uint8 or masks.shape != images.shape[:3] or masks.max() > 1:
        raise ValueError(f"{what}: masks must be uint8 {images.shape[:3]} of 0 and 1; they are "
                         f"{masks.dtype} {masks.shape} with maximum {masks.max()}")


def steps_of(n: int, epochs: int, batch: int) -> int:
    """Optimiser steps of `train` on n images: epochs x ceil(n / batch), batch at least 2."""
    return epochs * -(-n // max(2, batch))


def predict(model: nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Masks (N, S, S), uint8: 1 where the probability on uint8 (N, S, S, 3) is above 0.5."""
    model.eval()
    where, found = next(model.parameters()).device, []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            part = torch.from_numpy(images[start:start + batch]).to(where).permute(0, 3, 1, 2)
            found.append((model(inputs(part))[:, 0] > 0).cpu().numpy())
    return np.concatenate(found).astype(np.uint8)


def _start(network, seed, lr, checkpoint, key, **options):
    """Model, optimiser, and (best weights, their validation Dice, step): fresh, or as saved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(network, **options).to(device())
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    state = load_checkpoint(checkpoint, key) if checkpoint else None
    if state is None:
        return model, optimiser, (None, -1.0, 0)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return model, optimiser, (state["best"], state["score"], state["step"])


def _loss(model, pairs, step, batch, seed):
    """Loss of one step on pairs (N, S, S, 4): image and mask as one picture."""
    chosen = pairs[batch_at(step, batch, len(pairs), seed).to(pairs.device)]  # (B, S, S, 4)
    chosen = augment(chosen.permute(0, 3, 1, 2), generator_at(seed, step))  # (B, 4, S, S)
    return dice_loss(model(inputs(chosen[:, :3])), chosen[:, 3:].float())


def train(network: str, images, masks, val_images, val_masks, *, epochs: int, batch: int,
          lr: float, seed: int, val_every: int | None = None, log_path=None, checkpoint=None,
          key: str = "", **options) -> nn.Module:
    """Train a network and return it with the weights of its best validation.

    `images` uint8 (N, S, S, 3), `masks` uint8 (N, S, S) of 0/1, `val_*` likewise, else ValueError.
    Adam minimises `dice_loss` for `steps_of` steps on full batches cut from shuffled epochs. What
    is drawn depends on (seed, step) alone: equal results on a CPU with equal threads. The mean
    Dice per image of the val part is measured every `val_every` epochs (default: at most ten
    times) and at the end, and logged to `log_path`. With `checkpoint`, a path, an interrupted
    training of the same `key` goes on from there. `options` go to `build`.
    """
    _check(images, masks, "training part")
    _check(val_images, val_masks, "validation part")
    steps = steps_of(len(images), epochs, batch)
    batch = max(2, min(batch, len(images)))  # batch normalisation needs two
    every = (val_every or -(-epochs // 10)) * (steps // epochs)
    model, optimiser, (best, score, start) = _start(network, seed, lr, checkpoint, key, **options)
    pairs = torch.from_numpy(np.concatenate([images, masks[..., None]], axis=-1)).to(device())
    log = Log(log_path, ["step", "loss", "val_dice"], start) if log_path else None
    total, done, saved = 0, 0, time.monotonic()
    for step in progress(range(start, steps), desc=network, total=steps, initial=start):
        model.train()
        optimiser.zero_grad(set_to_none=True)
        loss = _loss(model, pairs, step, batch, seed)
        loss.backward()
        optimiser.step()
        total, done = total + loss.detach(), done + 1
        if (step + 1) % every and step + 1 < steps:
            continue
        val = float(dice(predict(model, val_images), val_masks).mean())
        if val >= score:
            best, score = copy.deepcopy(model.state_dict()), val
        if log:
            log.add(step=step + 1, loss=f"{total / done:.6g}", val_dice=f"{val:.6g}")
        total = done = 0
        if checkpoint and time.monotonic() - saved >= SAVE_AFTER:
            save_checkpoint(checkpoint, model=model.state_dict(), score=score, step=step + 1,
                            optimiser=optimiser.state_dict(), best=best, record=key)
            saved = time.monotonic()
    model.load_state_dict(best)
    return model.eval()


def _training_part(cell, parts, synthetic):
    """S-train with the first `cell.amount` synthetic pairs behind it: images, masks."""
    if not cell.amount:
        return parts["S-train"][:2]
    there = 0 if synthetic is None else len(synthetic[0])
    if there < cell.amount:
        raise InputError(f"cell {cell.id}", f"it needs {cell.amount} synthetic pairs of "
                         f"{cell.method}; there are {there}",
                         "lower `synthetic_amounts`, or generate more pairs (notebooks 02 to 04)")
    return tuple(np.concatenate([own, added[:cell.amount]])
                 for own, added in zip(parts["S-train"][:2], synthetic, strict=True))


def _read(path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"id": str, "method": str}, float_precision="round_trip")


def run_cell(cell: Cell, parts: dict, synthetic, options: dict, folder,
             fingerprint: str = "") -> pd.DataFrame:
    """Train and test one cell: a row per S-test image, kept in `folder`/ID.csv.

    `parts` maps S-train, S-val, S-test to (images, masks, ids); `synthetic` is (images, masks)
    of the method or None, InputError if too few; `options` go to `train`. Columns: network,
    method, amount, seed, id, dice, and the same in every row: steps, seconds, val_dice. The file
    is read back if its record has the key of cell, options, code, and `fingerprint` (of inputs).
    """
    path = Path(folder) / f"{cell.id}.csv"
    key = digest(asdict(cell), options, fingerprint, code_digest("segmentation"))
    if path.exists() and recorded(path).get("key") == key:
        return _read(path)
    images, masks = _training_part(cell, parts, synthetic)
    began, checkpoint = time.monotonic(), path.with_suffix(".pt")
    model = train(cell.network, images, masks, *parts["S-val"][:2], seed=cell.seed, key=key,
                  log_path=path.parent / "logs" / path.name, checkpoint=checkpoint, **options)
    val, test = (dice(predict(model, parts[name][0]), parts[name][1])
                 for name in ("S-val", "S-test"))
    facts = {"steps": steps_of(len(images), options["epochs"], options["batch"]),
             "seconds": round(time.monotonic() - began, 2), "val_dice": val.mean()}
    rows = pd.DataFrame({**asdict(cell), "id": parts["S-test"][2], "dice": test, **facts})
    Path(f"{path}.json").unlink(missing_ok=True)  # a record never describes another file
    write_csv(path, rows)
    record(path, key=key, cell=cell.id, options=options, fingerprint=fingerprint, **facts)
    checkpoint.unlink(missing_ok=True)
    return _read(path)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per network, method, amount, seed: mean `dice` per image and number of `images`."""
    groups = rows.groupby(["network", "method", "amount", "seed"], sort=False)["dice"]
    return groups.agg(dice="mean", images="size").reset_index()


def table2(per_seed: pd.DataFrame) -> pd.DataFrame:
    """Per network, method, amount: mean and sample sd of `dice` over seeds (one seed: NaN)."""
    groups = per_seed.groupby(["network", "method", "amount"], sort=False)["dice"]
    return groups.agg(dice_mean="mean", dice_sd="std", seeds="size").reset_index()
