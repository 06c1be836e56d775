"""Whether a ControlNet is learning, measured during training: its loss cannot say so.

The training loss is mostly noise that no mask explains. These can tell success from failure: the
loss on held-out images with fixed noise and timesteps, the same with another image's mask (the
two part when control begins to work), and where a segmenter sees the lesion in a few samples.
"""

import numpy as np
import torch
from torch.nn import functional as F

from lesionlib.engine.files import write_npy
from lesionlib.engine.training import generator_at
from lesionlib.generators.base import diffused, encode
from lesionlib.generators.controlnet import hint, sample
from lesionlib.generators.latents import encode_prompts

EVALUATIONS = 128  # pairs of noise and timestep for the held-out loss, or one for each image


@torch.no_grad()
def validator(
    pipe,
    controlled,
    images: np.ndarray,
    masks: np.ndarray,
    segmenter,
    folder,
    *,
    samples: int,
    ddim_steps: int,
    seed: int,
    precision: str = "no",
    batch: int = 32,
):
    """A function for `training.fit`'s `validate`, on held-out images (N, S, S, 3) and masks.

    Prompts are empty, as in the evaluation. The function returns held_out_loss, wrong_mask_loss
    and mask_fidelity (mean Dice of `segmenter` over `samples` images by DDIM), and writes these
    images to `folder`/NNNNNN.npy; seeds, noise and timesteps are the same every time.
    """
    where = pipe.unet.device
    latents = torch.cat([encode(pipe, images[i : i + batch]) for i in range(0, len(images), batch)])
    draw = generator_at(seed, -1)
    n = len(images) * max(1, EVALUATIONS // len(images))
    rows = torch.arange(n) % len(images)
    noise = torch.randn((n, *latents.shape[1:]), generator=draw)
    times = (torch.arange(n) + 0.5) * pipe.scheduler.config.num_train_timesteps / n
    times = times[torch.randperm(n, generator=draw)].long()
    words = encode_prompts(pipe, [""])[0]

    def loss(shift):
        shown, total = np.roll(masks, shift, axis=0), 0.0
        for i in range(0, n, batch):
            own = rows[i : i + batch]
            t, z = times[i : i + batch].to(where), latents[own.to(where)]
            noisy, target = diffused(pipe.scheduler, z, noise[i : i + batch].to(where), t)
            control = hint(shown[own.numpy()]).to(where)
            predicted = controlled(noisy, t, words.expand(len(own), -1, -1), control)
            total += F.mse_loss(predicted.float(), target.float()).item() * len(own)
        return total / n

    def validate(step: int) -> dict:
        few = masks[:samples]
        options = dict(steps=ddim_steps, seed=seed, batch=batch, precision=precision)
        made = np.stack(list(sample(pipe, controlled, few, [""] * len(few), **options)))
        write_npy(folder / f"{step:06d}.npy", made)
        return {
            "held_out_loss": loss(0),
            "wrong_mask_loss": loss(1),
            "mask_fidelity": float(segmenter(made, few).mean()),
        }

    return validate


def sheets(folder, every: int = 6) -> dict[str, np.ndarray]:
    """Images (n, S, S, 3) by label "step N": the first, the last, and some between."""
    paths = sorted(folder.glob("[0-9]*.npy"))
    chosen = np.unique(np.linspace(0, len(paths) - 1, every).round().astype(int)) if paths else []
    return {f"step {int(paths[i].stem)}": np.load(paths[i]) for i in chosen}
