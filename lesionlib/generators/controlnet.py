"""ControlNet on a locked Stable Diffusion base, and DDIM sampling with both (paper, Sec. 2.2).

ControlNet: Zhang, Rao, Agrawala 2023 (arXiv 2302.05543), the model of `diffusers`.
DDIM: Song, Meng, Ermon 2021 (arXiv 2010.02502), the scheduler of `diffusers`.
"""

import copy
import math
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import nn

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json, write_json
from lesionlib.engine.provenance import digest, record, unchanged
from lesionlib.engine.training import batch_at, device, fit, generator_at, memory, share
from lesionlib.generators import latents as cache
from lesionlib.generators.base import decode_latents, denoising_loss, flipped, noised


def hint(masks: np.ndarray) -> torch.Tensor:
    """Visual prompt: masks (B, H, W) of 0 and 1 as float (B, 3, H, W) in [0, 1]."""
    hints = torch.from_numpy(np.ascontiguousarray(masks)).float()
    return hints[:, None].expand(-1, 3, -1, -1)


class ControlledUNet(nn.Module):
    """A base's UNet, controlled by a ControlNet (None: the base alone).

    `middle_only`: control enters the middle block only, not the skip connections.
    """

    def __init__(self, unet, controlnet=None, middle_only: bool = False):
        super().__init__()
        self.unet, self.controlnet, self.middle_only = unet, controlnet, middle_only

    def forward(self, noisy, t, words, control=None):
        """Prediction (B, C, h, w) for noisy latents, timesteps, embeddings and hints."""
        if self.controlnet is None:
            return self.unet(noisy, t, words).sample
        down, middle = self.controlnet(noisy, t, words, control, return_dict=False)
        if self.middle_only:
            down = [torch.zeros_like(x) for x in down]
        return self.unet(
            noisy,
            t,
            words,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample

    @contextmanager
    def seen_once(self, control):
        """Yield what the hint layers make of hints (B, 3, H, W), to be given in their place.

        Noise and timestep play no part in it: sampling need not compute it in every step.
        """
        if self.controlnet is None:
            yield None
            return
        layers = self.controlnet.controlnet_cond_embedding
        self.controlnet.controlnet_cond_embedding = nn.Identity()
        try:
            yield layers(control)
        finally:
            self.controlnet.controlnet_cond_embedding = layers

    def digest(self) -> str:
        """A short SHA-256 of all weights that make the picture."""
        parts = [self.unet, *([self.controlnet] if self.controlnet is not None else [])]
        return digest([cache.weights_digest(part) for part in parts], self.middle_only)


def new(pipe, seed: int = 0, *, locked: bool = True, middle_only: bool = False) -> ControlledUNet:
    """The base of `pipe` with a new ControlNet: at first it changes nothing.

    The ControlNet is a trainable copy of the base's encoder and middle, joined by zero
    convolutions. `locked`: the base stays as it is (`sd_locked` of lllyasviel/ControlNet);
    otherwise a copy of its decoder is trained too.
    """
    torch.manual_seed(seed)  # the mask's own layers are drawn at random, and must be repeatable
    scale = pipe.vae_scale_factor  # image pixels per latent pixel; the hint is reduced as much
    widths = (16, 32, 96, 256)[: int(math.log2(scale)) + 1]
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=widths)
    unet = pipe.unet.requires_grad_(False)
    if not locked:
        unet = copy.deepcopy(unet)
        for part in (unet.up_blocks, unet.conv_norm_out, unet.conv_out):
            part.requires_grad_(True)
    if middle_only:
        control.controlnet_down_blocks.requires_grad_(False)
    return ControlledUNet(unet, control, middle_only).to(memory_format=torch.channels_last)


def train(
    pipe,
    controlled: ControlledUNet,
    latents: np.ndarray,
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
    min_snr: float = 0.0,
    warmup: float = 0.1,
    gradient_checkpointing: bool = False,
    **options,
) -> ControlledUNet:
    """Train on latents (4, N, C, h, w) of `latents.encode_images` and masks (N, S, S).

    What the base has of frozen parts is read from `folder`'s cache. A share `prompt_dropout` of
    the prompts is emptied: Table 1 asks for images without a prompt. `warmup`: share of the steps
    in which the rate rises; `options` go to `training.fit`.
    """
    where, own = device(), share(batch)
    pipe.to(where)
    words, text_rows = cache.encode_prompts(pipe, [*prompts, ""], folder)
    words = torch.from_numpy(np.array(words)).to(where)
    if gradient_checkpointing:
        controlled.unet.enable_gradient_checkpointing()
        controlled.controlnet.enable_gradient_checkpointing()

    def loss_at(model, step):
        draw = generator_at(seed, step)
        rows = batch_at(step, batch, len(masks), seed)
        flip = torch.randint(0, 4, (batch,), generator=draw)[own]
        text = text_rows[rows].clone()
        text[torch.rand(batch, generator=draw) < prompt_dropout] = text_rows[-1]
        rows = rows[own]
        z = torch.from_numpy(latents[flip.numpy(), rows.numpy()]).to(where)
        noisy, target, t = noised(pipe.scheduler, z, draw, batch, own)
        pairs = zip(flip.tolist(), rows.tolist(), strict=True)
        control = hint(np.concatenate([flipped(masks[r : r + 1], f) for f, r in pairs])).to(where)
        predicted = model(noisy, t, words[text[own]], control)
        return denoising_loss(pipe.scheduler, predicted, target, t, min_snr)

    rising = round(warmup * steps)
    fit(
        controlled,
        loss_at,
        folder,
        steps=steps,
        lr=lr,
        record=record,
        warmup=rising,
        desc="ControlNet",
        **options,
        lower="controlnet_batch (and raise controlnet_accumulate), or set gradient_checkpointing",
    )
    if gradient_checkpointing:
        controlled.unet.disable_gradient_checkpointing()
    return controlled


def ddim(denoise, scheduler, z: torch.Tensor, draws, *, steps: int, eta: float = 0.0):
    """Samples (B, ...) of noise z (B, ...): Song et al. 2021, equation 12, by `diffusers`.

    `denoise(z, t)` gives the scheduler's kind of prediction; `draws`: a torch.Generator for each
    sample, used if `eta` > 0 (0: deterministic; 1: as much noise as DDPM).
    """
    scheduler = DDIMScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    # At 1 and zero terminal SNR the first step takes the root of 0, which rounding makes negative.
    eta = min(eta, 1 - 1e-4)
    for t in scheduler.timesteps:
        extra = None
        if eta:
            extra = torch.stack([torch.randn(z.shape[1:], generator=draw) for draw in draws]).to(z)
        z = scheduler.step(denoise(z, t), t, z, eta=eta, variance_noise=extra).prev_sample
    return z


def guide(controlled: ControlledUNet, text, seen, guided, empty, guidance: float):
    """A function of (z, t): predictions with embeddings `text`, classifier-free for rows `guided`.

    `seen`: of `ControlledUNet.seen_once`; `empty`: the empty prompt's embeddings for these rows.
    """

    def denoise(z, t):
        predicted = controlled(z, t, text, seen).float()
        if len(guided):
            some = None if seen is None else seen[guided]
            without = controlled(z[guided], t, empty, some).float()
            predicted[guided] = without + guidance * (predicted[guided] - without)
        return predicted

    return denoise


@torch.no_grad()
def sample(
    pipe,
    controlled: ControlledUNet | None,
    masks: np.ndarray,
    prompts,
    *,
    indices=None,
    steps: int = 50,
    guidance: float = 1.0,
    eta: float = 0.0,
    seed: int = 0,
    batch: int = 32,
    precision: str = "no",
):
    """Yield one uint8 image (S, S, 3) for each mask (N, S, S) and prompt, by DDIM.

    The image with number indices[i] (default: i) starts from noise that depends on `seed` and
    that number alone, whatever batch size, order, or number of processes: it is the same up to
    the rounding of sums. `guidance` is the classifier-free scale; samples whose prompt is empty
    need no second pass, nor does anyone at scale 1. `controlled=None` samples the base alone.
    """
    where = pipe.unet.device
    controlled = controlled or ControlledUNet(pipe.unet.to(memory_format=torch.channels_last))
    indices = range(len(masks)) if indices is None else indices
    size = masks.shape[1] // pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, size, size)
    words, rows = cache.encode_prompts(pipe, [*prompts, ""])
    none = rows[-1]
    kind = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for i in range(0, len(masks), batch):
        control = hint(masks[i : i + batch]).to(where)
        asked = rows[i : i + len(control)]
        guided = torch.nonzero((asked != none) & (guidance != 1)).flatten().to(where)
        draws = [generator_at(seed, int(n)) for n in indices[i : i + batch]]
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(where)
        text, empty = words[asked], words[none].expand(len(guided), -1, -1)

        with memory("sample_batch"), torch.autocast(where.type, kind, enabled=precision != "no"):
            with controlled.seen_once(control) as seen:
                denoise = guide(controlled, text, seen, guided, empty, guidance)
                z = ddim(denoise, pipe.scheduler, noise, draws, steps=steps, eta=eta)
        yield from decode_latents(pipe, z)


def save(controlled: ControlledUNet, folder, **facts):
    """Write a ControlNet as a diffusers directory (safetensors), with its record.

    A decoder that was trained too makes a UNet of its own, in `folder`/unet.
    """
    if any(p.requires_grad for p in controlled.unet.parameters()):
        controlled.unet.save_pretrained(folder / "unet")
    controlled.controlnet.save_pretrained(folder)
    write_json(folder / "controlled.json", {"middle_only": controlled.middle_only})
    record(folder / "diffusion_pytorch_model.safetensors", **facts)


def load(pipe, folder) -> ControlledUNet:
    """What `save` wrote, on the base of `pipe`; InputError if there is none."""
    if not (folder / "config.json").exists():
        raise InputError(folder, "no ControlNet is saved here", "run notebooks/03_controlnet.ipynb")
    unchanged(folder / "diffusion_pytorch_model.safetensors")
    control = ControlNetModel.from_pretrained(folder)
    own = (folder / "unet").exists()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet") if own else pipe.unet
    controlled = ControlledUNet(
        unet, control, read_json(folder / "controlled.json", {}).get("middle_only")
    )
    return controlled.eval().to(pipe.unet.device, memory_format=torch.channels_last)
