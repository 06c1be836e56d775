"""Validations of a ControlNet during its training: does it learn to follow the mask?

The training loss cannot tell, since most of it is noise that no mask explains. The validations
measure the held-out loss, on held-out images with fixed noise and timesteps; the mismatched-mask
loss, the same with another image's mask (the held-out loss falls below it once the model uses the
mask); and mask fidelity, the Dice of the reference segmenter on a few samples with their masks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from lesionlib.engine.files import write_npy
from lesionlib.engine.settings import Sampling
from lesionlib.engine.training import generator_at
from lesionlib.generators.base import diffused, encode
from lesionlib.generators.controlnet import ControlledUNet, control_images, sample
from lesionlib.generators.latents import encode_prompts

EVALUATIONS = 128  # pairs of noise and timestep for the held-out loss, or one for each image


@dataclass(frozen=True)
class HeldOut:
    """Held-out images (N, S, S, 3), their masks (N, S, S), and the number of samples.

    Images are sampled by the settings `sampling`, whose seed also draws noise and timesteps.
    """

    images: np.ndarray
    masks: np.ndarray
    samples: int
    sampling: Sampling
    precision: str = "no"


class HeldOutLoss:
    """The loss of a ControlNet on held-out images, with fixed noise and timesteps."""

    def __init__(self, pipe, data: HeldOut):
        self.pipe, self.masks, self.batch = pipe, data.masks, data.sampling.sample_batch
        images, batch = data.images, self.batch
        parts = [encode(pipe, images[i : i + batch]) for i in range(0, len(images), batch)]
        self.latents, draw = torch.cat(parts), generator_at(data.sampling.sample_seed, -1)
        n = len(images) * max(1, EVALUATIONS // len(images))
        self.rows = torch.arange(n) % len(images)
        self.noise = torch.randn((n, *self.latents.shape[1:]), generator=draw)
        times = (torch.arange(n) + 0.5) * pipe.scheduler.config.num_train_timesteps / n
        self.times = times[torch.randperm(n, generator=draw)].long()
        self.empty = encode_prompts(pipe, [""])[0]

    def __call__(self, controlled: ControlledUNet, shift: int = 0) -> float:
        """The mean loss with each image's own mask, or that of the image `shift` places before."""
        masks, total, n = np.roll(self.masks, shift, axis=0), 0.0, len(self.rows)
        device = self.pipe.unet.device
        for i in range(0, n, self.batch):
            part = slice(i, i + self.batch)
            rows, t, noise = self.rows[part], self.times[part].to(device), self.noise[part]
            latents = self.latents[rows.to(device)]
            noisy, target = diffused(self.pipe.scheduler, latents, noise.to(device), t)
            hints = control_images(masks[rows.numpy()]).to(device)
            predicted = controlled(noisy, t, self.empty.expand(len(rows), -1, -1), hints)
            total += F.mse_loss(predicted.float(), target.float()).item() * len(rows)
        return total / n


@torch.no_grad()
def validator(pipe, controlled: ControlledUNet, data: HeldOut, segmenter, folder):
    """A function of the step for `base.Monitor`, which measures `controlled` on held-out images.

    Prompts are empty, as in the evaluation. The function returns held_out_loss, wrong_mask_loss
    (with mismatched masks) and mask_fidelity (mean Dice of `segmenter` over sampled images), and
    writes these images to `folder`/NNNNNN.npy; seeds, noise and timesteps never change.
    """
    loss, masks = HeldOutLoss(pipe, data), data.masks[: data.samples]

    @torch.no_grad()
    def validate(step: int) -> dict:
        options = dict(settings=data.sampling, precision=data.precision)
        images = np.stack(list(sample(pipe, controlled, masks, [""] * len(masks), **options)))
        write_npy(folder / f"{step:06d}.npy", images)
        return {
            "held_out_loss": loss(controlled),
            "wrong_mask_loss": loss(controlled, 1),
            "mask_fidelity": float(segmenter(images, masks).mean()),
        }

    return validate


def strips(folder, number: int = 6) -> dict[str, np.ndarray]:
    """Validation images (n, S, S, 3) by label "step N", at `number` steps from first to last."""
    paths = sorted(folder.glob("[0-9]*.npy"))
    chosen = np.unique(np.linspace(0, len(paths) - 1, number).round().astype(int)) if paths else []
    return {f"step {int(paths[i].stem)}": np.load(paths[i]) for i in chosen}
