"""A diffusion model at work: noising, what control changes, and the DDIM steps.

Notebook 03 and the playground show them.

Everything is computed in 32 bits and nothing is kept.
"""

import numpy as np
import pandas as pd
import torch
from diffusers import DDIMScheduler

from lesionlib.engine.training import generator_at
from lesionlib.generators import controlnet
from lesionlib.generators.base import decode_latents, diffused, encode
from lesionlib.generators.latents import encode_prompts


def _times(scheduler, number: int) -> torch.Tensor:
    """`number` timesteps from the first to the last of the schedule."""
    return torch.linspace(0, scheduler.config.num_train_timesteps - 1, number).round().long()


def _signal(scheduler, times) -> np.ndarray:
    """The schedule's product of alphas (n,) at these timesteps: the share of the image's power."""
    return DDIMScheduler.from_config(scheduler.config).alphas_cumprod[times].numpy()


def _pictures(pipe, latents) -> np.ndarray:
    """uint8 images (n, S, S, 3) of latents (n, C, h, w), one at a time: large ones need memory."""
    return np.concatenate([decode_latents(pipe, one) for one in latents.split(1)])


@torch.no_grad()
def noising(pipe, image: np.ndarray, number: int = 6, seed: int = 0):
    """One image uint8 (S, S, 3) with more and more noise.

    Returns timesteps (n,), `_signal` (n,), and, decoded to uint8 (n, S, S, 3), the noisy latents
    and the training targets.
    """
    times = _times(pipe.scheduler, number)
    latents = encode(pipe, image[None]).expand(number, -1, -1, -1)
    noise = torch.randn(latents[:1].shape, generator=generator_at(seed, 0)).to(latents)
    found = diffused(pipe.scheduler, latents, noise.expand_as(latents), times.to(latents.device))
    pictures = (_pictures(pipe, latents) for latents in found)
    return times.numpy(), _signal(pipe.scheduler, times), *pictures


@torch.no_grad()
def control_effect(pipe, controlled, images: np.ndarray, masks: np.ndarray, seed: int = 0):
    """How much control changes the prediction, before and after training: a row per timestep.

    Images uint8 (N, S, S, 3) with their masks (N, S, S), and the empty prompt. Columns: t; signal,
    see `_signal`; untrained and trained, the norm of the change over that of the prediction.
    """
    latents, times = encode(pipe, images), _times(pipe.scheduler, 5)
    noise = torch.randn(latents.shape, generator=generator_at(seed, 0)).to(latents)
    empty = encode_prompts(pipe, [""])[0].expand(len(images), -1, -1)
    hints, device = controlnet.control_images(masks).to(latents.device), latents.device
    alone = controlnet.ControlledUNet(pipe.unet)
    networks = {"untrained": controlnet.new(pipe, seed).to(device), "trained": controlled}
    rows = []
    for t in times.to(device):
        noisy, _ = diffused(pipe.scheduler, latents, noise, t.expand(len(images)))
        without = alone(noisy, t, empty)
        change = {k: model(noisy, t, empty, hints) - without for k, model in networks.items()}
        rows.append({k: (x.norm() / without.norm()).item() for k, x in change.items()})
    table = pd.DataFrame({"t": times.numpy(), "signal": _signal(pipe.scheduler, times)})
    return table.join(pd.DataFrame(rows))


def predicted_clean(scheduler, z, t, p):
    """The clean latents that a prediction p at noisy latents z implies (Song et al. 2021, eq. 9).

    For predictions of the velocity, and of the noise.
    """
    alpha = DDIMScheduler.from_config(scheduler.config).alphas_cumprod[int(t)]
    signal, noise = alpha.sqrt().to(z), (1 - alpha).sqrt().to(z)
    if scheduler.config.prediction_type == "v_prediction":
        return signal * z - noise * p
    return (z - noise * p) / signal


def denoising(painter, mask: np.ndarray, *arguments, **options):
    """`ddim_steps` with both kinds of latents decoded to uint8 (n, S, S, 3)."""
    times, *latents = ddim_steps(painter, mask, *arguments, **options)
    return times, *(_pictures(painter.pipe, one) for one in latents)


@torch.no_grad()
def ddim_steps(
    painter, mask: np.ndarray, prompt: str = "", number: int = 0, control=True, **changes
):
    """The DDIM steps of one image for a mask (S, S): what the sampler sees and what it predicts.

    The noise is that of the image `number`, as in `controlnet.sample`; `changes` override the
    settings of the `painter`'s sampling. Returns timesteps (n,), the noisy latents (n, C, h, w) and
    the predicted clean ones, of which the last is the image.
    """
    pipe, settings = painter.pipe, painter.settings.sampling.model_copy(update=changes)
    controlled = painter.controlled if control else controlnet.ControlledUNet(pipe.unet)
    device, size = pipe.unet.device, len(mask) // pipe.vae_scale_factor
    embeddings, rows = encode_prompts(pipe, [prompt, ""])
    text, empty = embeddings[rows[:1]], embeddings[rows[1:]]
    guided = torch.arange(int(prompt != "" and settings.guidance != 1), device=device)
    draw = generator_at(settings.sample_seed, number)
    noise = torch.randn((1, pipe.unet.config.in_channels, size, size), generator=draw).to(device)
    seen = []
    with controlled.embedded(controlnet.control_images(mask[None]).to(device)) as embedded:
        denoise = controlnet.guide(
            controlled, text, embedded, guided, empty[: len(guided)], settings
        )

        def watched(z, t):
            seen.append((int(t), z, denoise(z, t)))
            return seen[-1][2]

        options = dict(steps=settings.ddim_steps, eta=settings.ddim_eta)
        controlnet.ddim(watched, pipe.scheduler, noise, [draw], **options)
    clean = [predicted_clean(pipe.scheduler, z, t, p) for t, z, p in seen]
    noisy = torch.cat([z for _, z, _ in seen])
    return np.array([t for t, _, _ in seen]), noisy, torch.cat(clean)
