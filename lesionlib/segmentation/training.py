"""Table 2: segmentation networks trained on S-train, alone or with synthetic pairs.

Paper (arXiv 2310.02906): U-Net and DCSAU-Net, Dice loss, Adam with 1e-3, batch 256, 350 epochs.
Not stated there and chosen here: the U-Net's encoder, flips and quarter turns, and keeping the
weights of the best validation on S-val; S-test is predicted once, after training.
"""

import copy
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lesionlib.engine.settings import Augmentation
from lesionlib.engine.training import (
    Files,
    Loop,
    Schedule,
    Task,
    batch_at,
    device,
    generator_at,
    resolved_precision,
)
from lesionlib.segmentation import measures
from lesionlib.segmentation.networks import DECODER, augment, build, dice_loss, inputs

MADE = 2**31  # added to the seed by which synthetic halves of batches are drawn
AVERAGE_EVERY = 5  # steps between two movements of the average, which read and write all weights


@dataclass(frozen=True)
class Recipe:
    """How a segmentation network is trained.

    `precision` no, bf16 or auto (fp16 would need loss scaling); `decay` of the learning rate as in
    `engine.training.Schedule`; `validations`: how often the Dice
    on S-val is measured; `warps` and `colour`: the augmentation (`networks.augment`), without warps
    the eight orientations; `encoder` and `decoder` (channels) are the U-Net's (`networks.build`).
    `averaging`: length of the moving average of the weights that is validated and returned, as a
    share of the steps so far; 0 for the weights themselves.

    The first `real` pairs of the training part are real, the others synthetic. `mixing`: "added",
    batches are drawn from all of them alike; "first", for half of the steps from the synthetic
    ones, then from the real ones; "mixed", half of each batch is synthetic.
    """

    batch: int
    lr: float
    precision: str = "no"
    decay: str = "constant"
    validations: int = 10
    warps: Augmentation | None = None
    colour: float = 0.0
    encoder: str = "resnet18"
    decoder: tuple = DECODER
    averaging: float = 0.0
    mixing: str = "added"
    real: int = 0

    def determining(self) -> dict:
        """All of it that determines the weights, as JSON values."""
        warps = self.warps and self.warps.model_dump(exclude={"trainings", "variants"})
        unread = {"real"} if self.mixing == "added" else set()
        facts = asdict(self) | {"decoder": list(self.decoder), "warps": warps}
        return {name: value for name, value in facts.items() if name not in unread}


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


def count_steps(n: int, epochs: int, batch: int) -> int:
    """Optimiser steps of `epochs` on n images: epochs x ceil(n / batch), batch at least 2."""
    return epochs * -(-n // max(2, batch))


@torch.inference_mode()
def probabilities(model: nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Probabilities of lesion (N, S, S), float32, for uint8 images (N, S, S, 3)."""
    model.eval()
    model_device, found = next(model.parameters()).device, []
    for start in range(0, len(images), batch):
        part = torch.from_numpy(images[start : start + batch]).to(model_device).permute(0, 3, 1, 2)
        found.append(model(inputs(part))[:, 0].float().sigmoid().cpu().numpy())
    return np.concatenate(found)


def predict(model: nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Masks (N, S, S), uint8: 1 where the probability on uint8 (N, S, S, 3) is above 0.5."""
    return (probabilities(model, images, batch) > 0.5).astype(np.uint8)


def _average(model: nn.Module, share: float) -> AveragedModel:
    """The moving average of a network's weights and batch statistics, over `share` of the steps.

    A step's weight is a power of its number, so that the average is as long at the end of a short
    training as of a long one, relative to it (Karras et al. 2024, arXiv 2312.02696, Sec. 3.1). It
    is moved every AVERAGE_EVERY steps and before a validation. `engine.training.Average` would
    leave out the statistics, without which averaged weights predict badly.
    """

    def move(averaged, current, n):
        kept = (1 - 1 / (1 + int(n))) ** (1 / share)
        get_ema_multi_avg_fn(kept)(averaged, current, n)

    return AveragedModel(model, multi_avg_fn=move, use_buffers=True)


class Segmentation(Task):
    """A network that minimises `dice_loss` by Adam and keeps its best weights on `val_part`."""

    desc, lower, columns, has_validation = "unet", "batch", ("loss", "val_dice"), True

    def __init__(self, network: str, part, val_part, recipe: Recipe, seed: int, steps: int):
        self.desc, self.recipe, self.val_part = network, recipe, val_part
        self.seed, self.turn = seed, steps // 2  # step at which "first" turns to the real pairs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(network, recipe.encoder, recipe.decoder).to(device())
        super().__init__(model, torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True))
        images, masks = part
        self.pairs = torch.from_numpy(np.concatenate([images, masks[..., None]], axis=-1))
        self.pairs = self.pairs.to(device())  # (N, S, S, 4): image and mask as channels
        self.batch = max(2, min(recipe.batch, len(images)))  # batch normalisation needs two
        self.precision = resolved_precision(recipe.precision, model)
        self.average = _average(model, recipe.averaging) if recipe.averaging else None
        self.best, self.score = None, -1.0

    def before(self, step):
        if self.average and step and step % AVERAGE_EVERY == 0:
            self.average.update_parameters(self.model)

    def rows(self, step: int) -> torch.Tensor:
        """Numbers (B,) of the pairs in the batch of a step; see `Recipe`."""
        batch, real, seed = self.batch, self.recipe.real, self.seed
        made = len(self.pairs) - real
        if self.recipe.mixing == "added":
            return batch_at(step, batch, len(self.pairs), seed)
        if self.recipe.mixing == "first" and step < self.turn:
            return real + batch_at(step, batch, made, seed)
        if self.recipe.mixing == "first":
            return batch_at(step - self.turn, batch, real, seed)
        half = batch // 2
        of_made = batch_at(step, half, made, seed + MADE)
        return torch.cat([batch_at(step, batch - half, real, seed), real + of_made])

    def loss(self, step: int) -> torch.Tensor:
        """The Dice loss of the batch of a step."""
        rows = self.rows(step)
        chosen = self.pairs[rows.to(self.pairs.device)]  # (B, S, S, 4)
        draw, recipe = generator_at(self.seed, step), self.recipe
        chosen = augment(chosen.permute(0, 3, 1, 2), draw, recipe.warps, recipe.colour)
        enabled = self.precision == "bf16"
        with torch.autocast(self.pairs.device.type, torch.bfloat16, enabled=enabled):
            logits = self.model(inputs(chosen[:, :3]))
        return dice_loss(logits.float(), (chosen[:, 3:] > 0.5).float())

    def gradients(self, step):
        loss = self.loss(step)
        loss.backward()
        yield {"loss": loss.detach()}

    def validate(self, step):
        images, masks = self.val_part
        model = self.model
        if self.average:
            self.average.update_parameters(self.model)
            model = self.average.module
        score = float(measures.dice(predict(model, images), masks).mean())
        if score >= self.score:
            self.best, self.score = copy.deepcopy(model.state_dict()), score
        return {"val_dice": score}

    def state(self):
        average = self.average.state_dict() if self.average else None
        return super().state() | {"best": self.best, "score": self.score, "average": average}

    def load(self, state):
        super().load(state)
        if self.average:
            self.average.load_state_dict(state["average"])
        self.best, self.score = state["best"], state["score"]

    def finish(self):
        self.model.load_state_dict(self.best)
        return self.model.eval()


def train(
    network: str, part, val_part, recipe: Recipe, *, seed: int, steps: int, files: Files, key
) -> nn.Module:
    """Train a network and return it with the weights of its best validation.

    `part` and `val_part`: uint8 images (N, S, S, 3) and masks (N, S, S) of 0/1, else ValueError.
    Adam minimises `dice_loss` for `steps` steps on full batches from shuffled epochs. Random
    numbers depend on seed and step alone: equal results on a CPU with equal threads. The mean Dice
    per image of `val_part` is measured `recipe.validations` times, the last at the end.

    `files.log` gets a row at each validation. An interrupted training of the same `key` continues
    from `files.checkpoint`, which is written at most once in `training.SAVE_AFTER` seconds;
    InputError as `training.Loop.run`.
    """
    _check(*part, "training part")
    _check(*val_part, "validation part")
    every = -(-steps // recipe.validations)
    intervals = {"save_every": 0, "log_every": every, "validate_every": every}
    schedule = Schedule(
        steps, recipe.lr, decay=recipe.decay, precision=recipe.precision, **intervals
    )
    task = Segmentation(network, part, val_part, recipe, seed, steps)
    return Loop(task, files, schedule, key).run()
