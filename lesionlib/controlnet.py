"""ControlNet on a locked Stable Diffusion base, and DDIM sampling with both (paper, Sec. 2.2).

ControlNet: Zhang, Rao, Agrawala 2023 (arXiv 2302.05543), the model of `diffusers`.
DDIM: Song, Meng, Ermon 2021 (arXiv 2010.02502), the scheduler of `diffusers`.
"""

import math

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler
from torch.nn import functional as F

from lesionlib.base import decode_latents, encode_images, flipped, noised, token_ids
from lesionlib.provenance import record
from lesionlib.training import batch_at, device, fit, generator_at


def hint(masks: np.ndarray) -> torch.Tensor:
    """Visual prompt: masks (B, H, W) of 0 and 1 as float (B, 3, H, W) in [0, 1]."""
    hints = torch.from_numpy(np.ascontiguousarray(masks)).float()
    return hints[:, None].expand(-1, 3, -1, -1)


def new(pipe, seed: int = 0) -> ControlNetModel:
    """Trainable copy of the base's encoder with zero convolutions: at first it changes nothing."""
    torch.manual_seed(seed)  # the mask's own layers are drawn at random, and must be repeatable
    scale = pipe.vae_scale_factor  # image pixels per latent pixel; the hint is reduced as much
    widths = (16, 32, 96, 256)[: int(math.log2(scale)) + 1]
    return ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=widths)


@torch.no_grad()
def encode_prompts(pipe, prompts, batch: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Text embeddings (U, 77, D) of the distinct prompts, and the row (B,) of each prompt."""
    distinct, rows = np.unique(np.asarray(list(prompts), dtype=str), return_inverse=True)
    where = pipe.text_encoder.device
    parts = [
        pipe.text_encoder(token_ids(pipe, distinct[i : i + batch]).to(where))[0]
        for i in range(0, len(distinct), batch)
    ]
    return torch.cat(parts), torch.from_numpy(rows.reshape(-1))


def train(
    pipe,
    controlnet,
    images: np.ndarray,
    masks: np.ndarray,
    prompts,
    folder,
    *,
    steps: int,
    batch: int,
    lr: float,
    prompt_dropout: float,
    seed: int,
    record: dict,
    accumulate: int = 1,
    decay: str = "cosine",
    save_every: int = 200,
):
    """Train the ControlNet on images (N, S, S, 3) and masks (N, S, S); the base stays locked.

    Latents of the images and embeddings of the prompts are computed once. A share
    `prompt_dropout` of the prompts is emptied: Table 1 asks for images without a prompt.
    """
    where = device()
    pipe.to(where)
    controlnet.to(where, memory_format=torch.channels_last)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    latents = encode_images(pipe, images)
    words, text_rows = encode_prompts(pipe, [*prompts, ""])

    def loss_at(step):
        draw = generator_at(seed, step)
        rows = batch_at(step, batch, len(images), seed)
        flip = torch.randint(0, 4, (batch,), generator=draw)
        text = text_rows[rows].clone()
        text[torch.rand(batch, generator=draw) < prompt_dropout] = text_rows[-1]
        noisy, t, target = noised(pipe.scheduler, latents[flip, rows].to(where), draw)
        shapes = [
            flipped(masks[r : r + 1], f) for r, f in zip(rows.tolist(), flip.tolist(), strict=True)
        ]
        control = hint(np.concatenate(shapes)).to(where)
        return F.mse_loss(predict(pipe, controlnet, noisy, t, words[text], control), target)

    return fit(
        controlnet,
        loss_at,
        folder,
        steps=steps,
        lr=lr,
        record=record,
        decay=decay,
        warmup=min(100, steps // 10),
        accumulate=accumulate,
        save_every=save_every,
        desc="ControlNet",
    )


def predict(pipe, controlnet, noisy, t, words, control):
    """The base's prediction for noisy latents, steered by the ControlNet if there is one."""
    if controlnet is None:
        return pipe.unet(noisy, t, words).sample
    down, middle = controlnet(noisy, t, words, control, return_dict=False)
    return pipe.unet(
        noisy, t, words, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample


@torch.no_grad()
def sample(
    pipe,
    controlnet,
    masks: np.ndarray,
    prompts,
    *,
    first: int = 0,
    steps: int = 50,
    guidance: float = 1.0,
    eta: float = 0.0,
    seed: int = 0,
    batch: int = 32,
):
    """Yield one uint8 image (S, S, 3) for each mask (N, S, S) and prompt, by DDIM.

    Image i starts from noise that depends on `seed` and `first + i` alone, whatever the batch
    size. `guidance` is the classifier-free scale; at 1, and for empty prompts, the second pass
    is left out. `controlnet=None` samples the base alone.
    """
    where = pipe.unet.device
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    size = masks.shape[1] // pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, size, size)
    words, rows = encode_prompts(pipe, [*prompts, ""])
    empty = words[rows[-1]]
    for i in range(0, len(masks), batch):
        control = hint(masks[i : i + batch]).to(where)
        text = words[rows[i : i + len(control)]]
        guided = guidance != 1 and not torch.equal(text, empty.expand_as(text))
        draws = [generator_at(seed, first + i + j) for j in range(len(control))]
        z = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(where)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            v = predict(pipe, controlnet, z, t, text, control)
            if guided:
                without = predict(pipe, controlnet, z, t, empty.expand_as(text), control)
                v = without + guidance * (v - without)
            extra = (
                torch.stack([torch.randn(shape, generator=draw) for draw in draws]) if eta else None
            )
            z = scheduler.step(v, t, z, eta=eta, variance_noise=extra).prev_sample
        yield from decode_latents(pipe, z)


def save(controlnet, folder, **facts):
    """Write a ControlNet as a diffusers directory (safetensors) with its record."""
    controlnet.save_pretrained(folder)
    record(folder / "diffusion_pytorch_model.safetensors", **facts)
