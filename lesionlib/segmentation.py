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
from torch.nn import functional

from lesionlib import metrics
from lesionlib.dcsaunet import DCSAUNet
from lesionlib.errors import InputError
from lesionlib.files import Log, write_csv
from lesionlib.grid import Cell, source
from lesionlib.progress import progress
from lesionlib.provenance import code_digest, digest, record, recorded
from lesionlib.training import (
    Stop,
    batch_at,
    device,
    generator_at,
    load_checkpoint,
    save_checkpoint,
)

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


TURN, SCALE, SHIFT, COLOUR = 180.0, (0.8, 1.25), 0.1, 0.2  # of classical augmentation


def augment_classically(pairs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Classical augmentation of uint8 (B, 4, S, S), image and mask (0/1), as float32.

    On top of `augment`: rotation by any angle, scaling by 0.8 to 1.25, shifts of up to a tenth of
    the side (mirrored at the border), brightness, contrast and saturation by up to a fifth.
    """
    pairs = augment(pairs, generator).float()
    n, where = len(pairs), pairs.device
    draw = torch.rand((n, 7), generator=generator).to(where)
    angle = torch.deg2rad(TURN * (2 * draw[:, 0] - 1))
    scale = SCALE[0] * (SCALE[1] / SCALE[0]) ** draw[:, 1]
    shift = 2 * SHIFT * (2 * draw[:, 2:4] - 1)  # the square spans -1 to 1
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(n, 2, 3)
    places = functional.affine_grid(matrix, pairs.shape, align_corners=False)
    pairs = functional.grid_sample(pairs, places, padding_mode="reflection", align_corners=False)
    light, contrast, colour = ((1 + COLOUR * (2 * draw[:, 4:] - 1)).T)[..., None, None, None]
    image = pairs[:, :3] * light
    image = (image - image.mean((1, 2, 3), keepdim=True)) * contrast + image.mean(
        (1, 2, 3), keepdim=True)
    grey = image.mean(1, keepdim=True)
    image = ((image - grey) * colour + grey).clamp(0, 255)
    return torch.cat([image, (pairs[:, 3:] > 0.5).float()], dim=1)


AUGMENTATIONS = {"flips": augment, "classical": augment_classically}


def inputs(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, S, S) of 0 to 255 to what the networks take: in [0, 1], less MEAN, over STD."""
    return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def _check(images, masks, what):
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"{what}: images must be uint8 (N, S, S, 3) with N > 0; they are "
                         f"{images.dtype} {images.shape}")
    if masks.dtype != np.uint8 or masks.shape != images.shape[:3] or masks.max() > 1:
        raise ValueError(f"{what}: masks must be uint8 {images.shape[:3]} of 0 and 1; they are "
                         f"{masks.dtype} {masks.shape} with maximum {masks.max()}")


def steps_of(n: int, epochs: int, batch: int) -> int:
    """Optimiser steps of `epochs` on n images: epochs x ceil(n / batch), batch at least 2."""
    return epochs * -(-n // max(2, batch))


@torch.inference_mode()
def probabilities(model: nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Probabilities of lesion (N, S, S), float32, for uint8 images (N, S, S, 3)."""
    model.eval()
    where, found = next(model.parameters()).device, []
    for start in range(0, len(images), batch):
        part = torch.from_numpy(images[start:start + batch]).to(where).permute(0, 3, 1, 2)
        found.append(model(inputs(part))[:, 0].float().sigmoid().cpu().numpy())
    return np.concatenate(found)


def predict(model: nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Masks (N, S, S), uint8: 1 where the probability on uint8 (N, S, S, 3) is above 0.5."""
    return (probabilities(model, images, batch) > 0.5).astype(np.uint8)


def _start(network, seed, lr, checkpoint, key, **options):
    """Model, optimiser, and what a training goes on from, fresh or as saved.

    That is: best weights, their validation Dice, step; loss since the last look, its steps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(network, **options).to(device())
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    state = load_checkpoint(checkpoint, key) if checkpoint else None
    if state is None:
        return model, optimiser, (None, -1.0, 0), (torch.zeros(()), 0)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    best = state["best"], state["score"], state["step"]
    return model, optimiser, best, (state["total"], state["done"])


def _loss(model, pairs, step, batch, seed, change, kind):
    """Loss of one step on pairs (N, S, S, 4): image and mask as one picture."""
    chosen = pairs[batch_at(step, batch, len(pairs), seed).to(pairs.device)]  # (B, S, S, 4)
    chosen = change(chosen.permute(0, 3, 1, 2), generator_at(seed, step))  # (B, 4, S, S)
    with torch.autocast(pairs.device.type, kind or torch.bfloat16, enabled=kind is not None):
        logits = model(inputs(chosen[:, :3]))
    return dice_loss(logits.float(), chosen[:, 3:].float())


def train(network: str, images, masks, val_images, val_masks, *, steps: int, batch: int, lr: float,
          seed: int, augmentation: str = "flips", precision: str = "no", looks: int = 10,
          log_path=None, checkpoint=None, key: str = "", **options) -> nn.Module:
    """Train a network and return it with the weights of its best validation.

    `images` uint8 (N, S, S, 3), `masks` uint8 (N, S, S) of 0/1, `val_*` likewise, else ValueError.
    Adam minimises `dice_loss` for `steps` steps on full batches cut from shuffled epochs, changed
    by one of AUGMENTATIONS; `precision` no or bf16 (fp16 would need loss scaling). What is drawn
    depends on (seed, step) alone: equal results on a CPU with equal threads. The mean Dice per
    image of the val part is measured `looks` times, the last at the end, and logged to `log_path`.
    With `checkpoint`, a path, an interrupted training of the same `key` goes on from there; after a
    signal to stop (`training.Stop`) it is written and InputError raised.
    `options` go to `build`.
    """
    _check(images, masks, "training part")
    _check(val_images, val_masks, "validation part")
    batch = max(2, min(batch, len(images)))  # batch normalisation needs two
    every, change = -(-steps // looks), AUGMENTATIONS[augmentation]
    kind = {"no": None, "bf16": torch.bfloat16}[precision]
    model, optimiser, (best, score, start), (total, done) = _start(
        network, seed, lr, checkpoint, key, **options)
    pairs = torch.from_numpy(np.concatenate([images, masks[..., None]], axis=-1)).to(device())
    log = Log(log_path, ["step", "loss", "val_dice"], start) if log_path else None
    saved = time.monotonic()
    with Stop() as stop:
        for step in progress(range(start, steps), desc=network, total=steps, initial=start):
            model.train()
            optimiser.zero_grad(set_to_none=True)
            loss = _loss(model, pairs, step, batch, seed, change, kind)
            loss.backward()
            optimiser.step()
            total, done = total + loss.detach(), done + 1
            look = not (step + 1) % every or step + 1 == steps
            if look:
                val = float(metrics.dice(predict(model, val_images), val_masks).mean())
                if val >= score:
                    best, score = copy.deepcopy(model.state_dict()), val
                if log:
                    log.add(step=step + 1, loss=f"{total / done:.6g}", val_dice=f"{val:.6g}")
                total, done = torch.zeros(()), 0
            late = look and time.monotonic() - saved >= SAVE_AFTER
            if checkpoint and (late or stop.asked):
                save_checkpoint(checkpoint, model=model.state_dict(), score=score, step=step + 1,
                                optimiser=optimiser.state_dict(), best=best, record=key,
                                total=total, done=done)
                saved = time.monotonic()
                if stop.asked and step + 1 < steps:
                    raise stop.error(checkpoint, step + 1)
    model.load_state_dict(best)
    return model.eval()


def training_part(cell: Cell, images, masks, synthetic, order=None):
    """Images and masks that a cell is trained on.

    The first `cell.share` percent of S-train (`images`, `masks`), then the first `cell.amount`
    synthetic pairs: `synthetic` is (images, masks, mask_fidelity) or None. Of a method that ends
    in "_best", the pairs of the highest mask fidelity come first. InputError if there are too few.
    """
    real = round(len(images) * cell.share / 100)
    there = 0 if synthetic is None else len(synthetic[0])
    if there < cell.amount:
        raise InputError(f"cell {cell.id}", f"it needs {cell.amount} synthetic pairs of "
                         f"{source(cell.method)}; there are {there}",
                         "lower `synthetic_amounts`, or generate more pairs (notebooks 02 to 04)")
    if not cell.amount:
        return images[:real], masks[:real]
    chosen = np.arange(there)
    if cell.method.endswith("_best"):
        chosen = np.argsort(-np.asarray(synthetic[2]), kind="stable")
    chosen = chosen[:cell.amount]
    return tuple(np.concatenate([own[:real], added[chosen]])
                 for own, added in zip((images, masks), synthetic[:2], strict=True))


def measured(model, tests: dict, tolerance: float) -> pd.DataFrame:
    """`metrics.segmentation` of every test image: columns test, id and the measures.

    `tests` maps a name to (images (N, S, S, 3), N masks at their own resolution, ids).
    """
    rows = []
    for name, (images, masks, ids) in tests.items():
        found = zip(ids, probabilities(model, images), masks, strict=True)
        rows += [{"test": name, "id": one} | metrics.segmentation(probability, mask, tolerance)
                 for one, probability, mask in found]
    return pd.DataFrame(rows)


def _read(path) -> pd.DataFrame:
    text = {"id": str, "method": str, "test": str}
    return pd.read_csv(path, dtype=text, float_precision="round_trip")


def run_cell(cell: Cell, parts: dict, synthetic, tests: dict, *, epochs: int, matched_steps: int,
             tolerance: float, options: dict, folder, fingerprint: str = "") -> pd.DataFrame:
    """Train and test one cell: a row per test image, and what the training was.

    `parts` maps S-train and S-val to (images, masks); `synthetic` as in `training_part`; `tests`
    as in `measured`; `options` go to `train`. Under the schedule "steps" a cell gets
    `matched_steps`, else `epochs`. Columns: those of the cell, test, id, the measures of
    `metrics.segmentation`, and the same in every row: pairs, steps, val_dice. Results are
    kept in `folder` by the digest of all that determines them (cell, options, code, `fingerprint`
    of the inputs) and read back; two cells that are the same training share one.
    """
    images, masks = training_part(cell, *parts["S-train"], synthetic)
    steps = matched_steps if cell.schedule == "steps" else None
    steps = steps or steps_of(len(images), epochs, options["batch"])
    trained_on = cell.method if cell.amount else "real", cell.amount, cell.share
    options = options | {"augmentation": "classical" if cell.method == "classical" else "flips",
                         "steps": steps, "seed": cell.seed}
    key = digest(cell.network, trained_on, options, tolerance, fingerprint,
                 code_digest("segmentation"))
    path = Path(folder) / f"{key}.csv"
    if not path.exists() or recorded(path).get("key") != key:
        began, checkpoint = time.monotonic(), path.with_suffix(".pt")
        model = train(cell.network, images, masks, *parts["S-val"], key=key, checkpoint=checkpoint,
                      log_path=path.parent / "logs" / path.name, **options)
        val = metrics.dice(predict(model, parts["S-val"][0]), parts["S-val"][1])
        facts = {"pairs": len(images), "steps": steps, "val_dice": val.mean()}
        spent = round(time.monotonic() - began, 2)
        rows = measured(model, tests, tolerance).assign(**facts)
        Path(f"{path}.json").unlink(missing_ok=True)  # a record never describes another file
        write_csv(path, rows)
        record(path, key=key, cell=cell.id, options=options, fingerprint=fingerprint,
               seconds=spent, **facts)
        checkpoint.unlink(missing_ok=True)
    rows = _read(path)
    for place, (name, value) in enumerate(asdict(cell).items()):
        rows.insert(place, name, value)
    return rows


ARM = ["network", "method", "amount", "share", "schedule"]
MEASURES = ["dice", "iou", "iou65", "hd95", "nsd", "brier", "ece"]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per arm, test set and seed: mean per image of MEASURES, `dice_pooled`, number of `images`."""
    groups = rows.groupby([*ARM, "test", "seed"], sort=False)
    found = groups[MEASURES].mean()
    found["dice_pooled"] = groups[["tp", "fp", "fn"]].apply(metrics.pooled_dice)
    found["images"] = groups.size()
    return found.join(groups[["pairs", "steps", "val_dice"]].first()).reset_index()


def table2(per_seed: pd.DataFrame) -> pd.DataFrame:
    """Per arm and test set: mean and sample sd of `dice` over seeds (one seed: NaN), the means of
    the other measures, optimiser `steps`, number of `seeds`."""
    groups = per_seed.groupby([*ARM, "test"], sort=False)
    found = groups["dice"].agg(dice_mean="mean", dice_sd="std", seeds="size")
    others = ["dice_pooled", *MEASURES[1:], "pairs", "steps"]
    return found.join(groups[others].mean()).reset_index()
