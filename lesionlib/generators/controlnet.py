"""ControlNet on a locked Stable Diffusion base, and DDIM sampling with both (paper, Sec. 2.2).

ControlNet: Zhang, Rao, Agrawala 2023 (arXiv 2302.05543), the model of `diffusers`.
DDIM: Song, Meng, Ermon 2021 (arXiv 2010.02502), the scheduler of `diffusers`.
"""

import copy
import math
import shutil
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import nn

from lesionlib.data.augmentation import warp_masks
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json, resolve, write_json
from lesionlib.engine.provenance import digest, record, unchanged
from lesionlib.engine.settings import ControlNet, Sampling, Training
from lesionlib.engine.training import (
    device,
    fit,
    generator_at,
    memory_errors,
    process_rows,
    resolved_precision,
)
from lesionlib.generators.base import (
    Examples,
    Monitor,
    decode_latents,
    denoising_loss,
    noised,
    schedule,
    weights_digest,
)
from lesionlib.generators.latents import encode_prompts

WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name for a model's file


def control_images(masks: np.ndarray) -> torch.Tensor:
    """Control images (B, 3, H, W), float in [0, 1], of masks (B, H, W): the visual prompts."""
    hints = torch.from_numpy(np.ascontiguousarray(masks)).float()
    return hints[:, None].expand(-1, 3, -1, -1)


class ControlledUNet(nn.Module):
    """The UNet of a base, controlled by a ControlNet (None: the base alone).

    `middle_only`: control enters the middle block only, not the skip connections.
    """

    def __init__(self, unet, controlnet=None, middle_only: bool = False):
        super().__init__()
        self.unet, self.controlnet, self.middle_only = unet, controlnet, middle_only

    def forward(self, noisy, t, embeddings, hints=None, scale: float = 1.0):
        """Prediction (B, C, h, w) for noisy latents, timesteps, embeddings and control images.

        If there are fewer control images than rows, the last rows are predicted without control;
        `scale`: a factor on what the ControlNet adds.
        """
        if self.controlnet is None:
            return self.unet(noisy, t, embeddings).sample
        n, free = len(hints), len(noisy) - len(hints)
        given = noisy[:n], t if t.ndim == 0 else t[:n], embeddings[:n], hints
        down, middle = self.controlnet(*given, scale, return_dict=False)
        if self.middle_only:
            down = [torch.zeros_like(x) for x in down]
        if free:
            down, middle = [padded(x, free) for x in down], padded(middle, free)
        return self.unet(
            noisy,
            t,
            embeddings,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample

    @contextmanager
    def embedded(self, hints):
        """Yield the embedding of control images (B, 3, H, W), to be passed in their place.

        It does not depend on noise or timestep: sampling need not compute it in every step.
        """
        if self.controlnet is None:
            yield None
            return
        layers = self.controlnet.controlnet_cond_embedding
        self.controlnet.controlnet_cond_embedding = nn.Identity()
        try:
            yield layers(hints)
        finally:
            self.controlnet.controlnet_cond_embedding = layers

    def digest(self) -> str:
        """A short SHA-256 of the weights of UNet and ControlNet."""
        parts = [self.unet, *([self.controlnet] if self.controlnet is not None else [])]
        return digest([weights_digest(part) for part in parts], self.middle_only)


def padded(residuals: torch.Tensor, number: int) -> torch.Tensor:
    """A ControlNet's residuals (B, ...) with zeros for `number` further rows."""
    return torch.cat([residuals, residuals.new_zeros(number, *residuals.shape[1:])])


def new(pipe, seed: int = 0, *, locked: bool = True, middle_only: bool = False) -> ControlledUNet:
    """The base of `pipe` with a new ControlNet, which at first changes nothing.

    The ControlNet is a trainable copy of the base's encoder and middle, joined by zero
    convolutions. `locked`: the base stays as it is (`sd_locked` of lllyasviel/ControlNet);
    otherwise a copy of its decoder is trained too.
    """
    torch.manual_seed(seed)  # the layers that embed the hints are initialised at random
    scale = pipe.vae_scale_factor  # image pixels per latent pixel, by which hints are reduced too
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
    examples: Examples,
    folder,
    settings: ControlNet,
    training: Training,
    record: dict,
    monitor: Monitor | None = None,
) -> ControlledUNet:
    """Train all parameters of `controlled` that require gradients on examples.

    `folder` keeps the embeddings of the prompts, checkpoint and logs, which are valid for one
    `record` (see `training.fit`). A share `settings.prompt_dropout` of the prompts is emptied:
    Table 1 needs images without a prompt.
    """
    pipe.to(device())
    texts = examples.prompts
    embeddings, text_rows = encode_prompts(pipe, [*texts.ravel(), ""], folder)
    embeddings = torch.from_numpy(np.array(embeddings)).to(pipe.device)
    text_rows, empty = text_rows[:-1].view(texts.shape), text_rows[-1]
    batch, seed = settings.batch, training.generator_seed
    part = process_rows(batch)
    if training.gradient_checkpointing:
        controlled.unet.enable_gradient_checkpointing()
        controlled.controlnet.enable_gradient_checkpointing()

    def loss_at(model, step):
        draw, device = generator_at(seed, step), embeddings.device
        copies, rows, dropped = examples.chosen(settings, seed, step, draw)
        text = torch.where(dropped, empty, text_rows[copies, rows])
        copies, rows = copies[part], rows[part]
        z = examples.latents_of(copies, rows).to(device)
        noisy, target, t = noised(pipe.scheduler, z, draw, batch, part)
        warps = examples.matrices[copies, rows]
        hints = control_images(warp_masks(examples.masks[rows.numpy()], warps))
        predicted = model(noisy, t, embeddings[text[part]], hints.to(device))
        return denoising_loss(pipe.scheduler, predicted, target, t, training.min_snr)

    extra = dict(decay=settings.decay, accumulate=settings.accumulate)
    monitor = monitor or Monitor()
    plan = schedule(settings, training, monitor, **extra)
    lower = "controlnet_batch (and raise controlnet_accumulate), or set gradient_checkpointing"
    options = dict(validate=monitor.validate, desc="ControlNet", lower=lower)
    fit(controlled, loss_at, folder, plan, record, **options)
    if training.gradient_checkpointing:
        controlled.unet.disable_gradient_checkpointing()
    return controlled


def ddim(denoise, scheduler, z: torch.Tensor, draws, *, steps: int, eta: float = 0.0):
    """Samples (B, ...) of noise z (B, ...): Song et al. 2021, equation 12, by `diffusers`.

    `denoise(z, t)` returns a prediction of the scheduler's type; `draws`: a torch.Generator for
    each sample, used if `eta` > 0 (0: deterministic; 1: as much noise as DDPM).
    """
    scheduler = DDIMScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    # With 1 and zero terminal SNR the first step has the root of 0, negative by rounding.
    eta = min(eta, 1 - 1e-4)
    for t in scheduler.timesteps:
        extra = None
        if eta:
            extra = torch.stack([torch.randn(z.shape[1:], generator=draw) for draw in draws]).to(z)
        z = scheduler.step(denoise(z, t), t, z, eta=eta, variance_noise=extra).prev_sample
    return z


def guide(controlled: ControlledUNet, text, embedded, guided, empty, settings: Sampling):
    """A function of (z, t): the guided prediction for z (B, C, h, w), with embeddings `text`.

    With p the prediction with text and control, p + (guidance - 1) (p - the one without text), in
    the rows `guided`, + (control_guidance - 1) (p - the one without control): each term sharpens
    the model's own classifier, of the prompt and of the mask (Ho and Salimans 2022,
    arXiv 2207.12598). All passes that are needed are rows of one batch, which is never slower.
    `embedded`: from `ControlledUNet.embedded`; `empty`: the empty prompt's embeddings.
    """
    n, pull = len(text), settings.control_guidance - 1
    rows, texts = [torch.arange(n, device=guided.device), guided], [text, empty]
    hints = None if embedded is None else torch.cat([embedded, embedded[guided]])
    free = n if pull and embedded is not None else 0  # rows without control
    rows, texts = torch.cat([*rows, rows[0][:free]]), torch.cat([*texts, text[:free]])

    def denoise(z, t):
        found = controlled(z[rows], t, texts, hints, settings.conditioning_scale).float()
        p, without_text, without_control = found.split([n, len(guided), free])
        total = p.clone()
        total[guided] += (settings.guidance - 1) * (p[guided] - without_text)
        return total + pull * (p - without_control) if free else total

    return denoise


@torch.no_grad()
def sample(
    pipe,
    controlled: ControlledUNet | None,
    masks: np.ndarray,
    prompts,
    settings: Sampling,
    *,
    indices=None,
    precision: str = "no",
):
    """Yield one uint8 image (S, S, 3) for each mask (N, S, S) and prompt, by DDIM.

    The image with number indices[i] (default: i) starts from noise that depends on
    `settings.sample_seed` and that number alone: batch size, order and number of processes change
    it by no more than the rounding of sums. Guidance by prompt and mask: see `guide`; images with
    the empty prompt need no pass for the former, and at scale 1 no image does.
    `controlled=None` samples the base alone. `precision`: see `training.resolved_precision`.
    """
    device, batch, seed = pipe.unet.device, settings.sample_batch, settings.sample_seed
    controlled = controlled or ControlledUNet(pipe.unet.to(memory_format=torch.channels_last))
    indices = range(len(masks)) if indices is None else indices
    size = masks.shape[1] // pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, size, size)
    embeddings, rows = encode_prompts(pipe, [*prompts, ""])
    empty_row = rows[-1]
    precision = resolved_precision(precision, pipe.unet)
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for i in range(0, len(masks), batch):
        hints = control_images(masks[i : i + batch]).to(device)
        text_rows = rows[i : i + len(hints)]
        guided = (
            torch.nonzero((text_rows != empty_row) & (settings.guidance != 1)).flatten().to(device)
        )
        draws = [generator_at(seed, int(n)) for n in indices[i : i + batch]]
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(device)
        text, empty = embeddings[text_rows], embeddings[empty_row].expand(len(guided), -1, -1)
        steps = dict(steps=settings.ddim_steps, eta=settings.ddim_eta)
        with (
            memory_errors("sample_batch"),
            torch.autocast(device.type, dtype, enabled=precision != "no"),
        ):
            with controlled.embedded(hints) as embedded:
                denoise = guide(controlled, text, embedded, guided, empty, settings)
                z = ddim(denoise, pipe.scheduler, noise, draws, **steps)
        yield from decode_latents(pipe, z)


def given(pipe, name: str) -> ControlledUNet:
    """A trained ControlNet, a diffusers directory or a hub id, on the base of `pipe`.

    InputError if it cannot be loaded, or was made for another base.
    """
    local, where = resolve(name).exists(), f"controlnet_model: {name}"
    try:
        control = ControlNetModel.from_pretrained(
            str(resolve(name)) if local else name, local_files_only=local, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        remedy = "give a directory with config.json and weights, or the id of a model on the hub"
        raise InputError(where, f"no ControlNet is there ({str(error)[:200]})", remedy) from error
    own, theirs = pipe.unet.config, control.config
    halvings = len(theirs.conditioning_embedding_out_channels) - 1
    sizes = {key: (theirs[key], own[key]) for key in ("in_channels", "cross_attention_dim")}
    sizes["block_out_channels"] = (list(theirs.block_out_channels), list(own.block_out_channels))
    sizes["pixels per latent pixel"] = (2**halvings, pipe.vae_scale_factor)
    for key, (its, the_base) in sizes.items():
        if its != the_base:
            problem = f"it is for another base: {key} {its}, not {the_base}"
            raise InputError(where, problem, "set base_model to the base that it was trained on")
    return (
        ControlledUNet(pipe.unet.requires_grad_(False), control)
        .eval()
        .to(pipe.unet.device, memory_format=torch.channels_last)
    )


def save(controlled: ControlledUNet, folder, **facts):
    """Write a ControlNet as a diffusers directory (safetensors), with its record.

    If the base's decoder was trained too, the whole UNet is saved, in `folder`/unet.
    """
    shutil.rmtree(folder / "unet", ignore_errors=True)
    if any(p.requires_grad for p in controlled.unet.parameters()):
        controlled.unet.save_pretrained(folder / "unet")
        record(folder / "unet" / WEIGHTS)
    controlled.controlnet.save_pretrained(folder)
    write_json(folder / "controlled.json", {"middle_only": controlled.middle_only})
    record(folder / WEIGHTS, **facts)


def load(pipe, folder) -> ControlledUNet:
    """The ControlNet that `save` wrote, on the base of `pipe`; InputError if there is none."""
    if not (folder / "config.json").exists():
        raise InputError(folder, "no ControlNet is saved here", "run notebooks/03_controlnet.ipynb")
    unchanged(folder / WEIGHTS)
    control, unet = ControlNetModel.from_pretrained(folder), pipe.unet
    if (folder / "unet").exists():
        unchanged(folder / "unet" / WEIGHTS)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    controlled = ControlledUNet(
        unet, control, read_json(folder / "controlled.json", {}).get("middle_only")
    )
    return controlled.eval().to(pipe.unet.device, memory_format=torch.channels_last)
