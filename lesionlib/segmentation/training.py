"""Table 2: segmentation networks trained on S-train, alone or with synthetic pairs.

Paper (arXiv 2310.02906): U-Net and DCSAU-Net, Dice loss, Adam with 1e-3, batch 256, 350 epochs.
Silent there and chosen here: the U-Net's encoder, flips and quarter turns, and that the weights
of the best validation on S-val are kept; S-test is seen once, after training.
"""

import copy
import time

import numpy as np
import torch
from torch import nn

from lesionlib.engine.files import Log
from lesionlib.engine.progress import progress
from lesionlib.engine.training import (
    Stop,
    batch_at,
    device,
    generator_at,
    load_checkpoint,
    save_checkpoint,
)
from lesionlib.segmentation import measures
from lesionlib.segmentation.networks import AUGMENTATIONS, build, dice_loss, inputs

SAVE_AFTER = 60  # seconds of training that may be lost when it is interrupted


def _check(images, masks, what):
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(
            f"{what}: images must be uint8 (N, S, S, 3) with N > 0; they are "
            f"{images.dtype} {images.shape}"
        )
    if masks.dtype != np.uint8 or masks.shape != images.shape[:3] or masks.max() > 1:
        raise ValueError(
            f"{what}: masks must be uint8 {images.shape[:3]} of 0 and 1; they are "
            f"{masks.dtype} {masks.shape} with maximum {masks.max()}"
        )


def steps_of(n: int, epochs: int, batch: int) -> int:
    """Optimiser steps of `epochs` on n images: epochs x ceil(n / batch), batch at least 2."""
    return epochs * -(-n // max(2, batch))


@torch.inference_mode()
def probabilities(model: nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Probabilities of lesion (N, S, S), float32, for uint8 images (N, S, S, 3)."""
    model.eval()
    where, found = next(model.parameters()).device, []
    for start in range(0, len(images), batch):
        part = torch.from_numpy(images[start : start + batch]).to(where).permute(0, 3, 1, 2)
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


def train(
    network: str,
    images,
    masks,
    val_images,
    val_masks,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    augmentation: str = "flips",
    precision: str = "no",
    validations: int = 10,
    log_path=None,
    checkpoint=None,
    key: str = "",
    **options,
) -> nn.Module:
    """Train a network and return it with the weights of its best validation.

    `images` uint8 (N, S, S, 3), `masks` uint8 (N, S, S) of 0/1, `val_*` likewise, else ValueError.
    Adam minimises `dice_loss` for `steps` steps on full batches cut from shuffled epochs, changed
    by one of AUGMENTATIONS; `precision` no or bf16 (fp16 would need loss scaling). What is drawn
    depends on (seed, step) alone: equal results on a CPU with equal threads. The mean Dice per
    image of the val part is measured `validations` times, the last at the end, and logged to
    `log_path`.
    With `checkpoint`, a path, an interrupted training of the same `key` goes on from there; after a
    signal to stop (`training.Stop`) it is written and InputError raised.
    `options` go to `build`.
    """
    _check(images, masks, "training part")
    _check(val_images, val_masks, "validation part")
    batch = max(2, min(batch, len(images)))  # batch normalisation needs two
    every, change = -(-steps // validations), AUGMENTATIONS[augmentation]
    kind = {"no": None, "bf16": torch.bfloat16}[precision]
    model, optimiser, (best, score, start), (total, done) = _start(
        network, seed, lr, checkpoint, key, **options
    )
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
                val = float(measures.dice(predict(model, val_images), val_masks).mean())
                if val >= score:
                    best, score = copy.deepcopy(model.state_dict()), val
                if log:
                    log.add(step=step + 1, loss=f"{total / done:.6g}", val_dice=f"{val:.6g}")
                total, done = torch.zeros(()), 0
            late = look and time.monotonic() - saved >= SAVE_AFTER
            if checkpoint and (late or stop.asked):
                save_checkpoint(
                    checkpoint,
                    model=model.state_dict(),
                    score=score,
                    step=step + 1,
                    optimiser=optimiser.state_dict(),
                    best=best,
                    record=key,
                    total=total,
                    done=done,
                )
                saved = time.monotonic()
                if stop.asked and step + 1 < steps:
                    raise stop.error(checkpoint, step + 1)
    model.load_state_dict(best)
    return model.eval()
