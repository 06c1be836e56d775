"""The base of the generator: any Stable Diffusion, or a small one trained from scratch on G.

Both are a directory in the layout of `diffusers` (tokenizer, text encoder, autoencoder, UNet,
scheduler) and are loaded by the same code. The small base follows Rombach et al. 2022 with an
autoencoder in closed form (`PatchAutoencoder`), because on two CPU cores an equally good one
cannot be trained within minutes.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, ModelMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.training_utils import compute_snr
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import atomic_write, resolve
from lesionlib.engine.provenance import digest, file_digest, record, recorded
from lesionlib.engine.settings import SMALL, Base, ControlNet, Training
from lesionlib.engine.training import Schedule, batch_at, fit, generator_at, process_rows

# diffusers warns whenever it loads an autoencoder that is not one of its own classes.
logging.getLogger("diffusers.pipelines.pipeline_utils").addFilter(
    lambda record: "PatchAutoencoder" not in record.getMessage()
)


CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Linear autoencoder: the leading principal components of p x p image patches.

    Encoding is a strided convolution, decoding a transposed one; there is nothing to train. A
    decoder with a `reach` also uses that many neighbours on each side of a patch, so that errors of
    sampled latents do not show as tiles.
    Images (B, 3, H, W) in [-1, 1] become latents (B, latent_channels, H/p, W/p) and back.
    Saved bases name this class in `model_index.json`, so loading them needs lesionlib.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 8,
        patch: int = 4,
        scaling_factor: float = 1.0,
        block_out_channels: tuple = (0, 0, 0),
        reach: int = 0,
    ):
        # diffusers' pipelines take 2 ** (len(block_out_channels) - 1) as pixels per latent pixel
        super().__init__()
        size = (latent_channels, 3, patch, patch)
        self.analysis = nn.Parameter(torch.zeros(size), requires_grad=False)
        wide = patch * (2 * reach + 1)
        size = (latent_channels, 3, wide, wide)
        self.synthesis = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(1, 3, 1, 1), requires_grad=False)

    @classmethod
    def fit(
        cls,
        images: torch.Tensor,
        latent_channels: int,
        patch: int,
        whitening: float,
        reach: int = 0,
        noise: float = 0.2,
    ):
        """From images (N, 3, H, W): components divided by std ** whitening, unit mean variance.

        The decoder with a `reach` is the least-squares one for latents with Gaussian noise of
        standard deviation `noise`, which models the errors of sampled latents.
        """
        stages = int(np.log2(patch)) + 1
        vae = cls(latent_channels, patch, block_out_channels=(0,) * stages, reach=reach)
        vae.mean.data = images.mean((0, 2, 3), keepdim=True)
        patches = F.unfold(images - vae.mean, patch, stride=patch)  # (N, 3pp, L)
        flat = patches.permute(0, 2, 1).reshape(-1, 3 * patch * patch).double()
        variance, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        order = variance.argsort(descending=True)[:latent_channels]
        vectors, std = vectors[:, order].T, variance[order].sqrt()
        scale = std.pow(-whitening)
        scale = scale / (std * scale).square().mean().sqrt()
        shape = vae.analysis.shape
        vae.analysis.data = (vectors * scale[:, None]).reshape(shape).float()
        if not reach:
            vae.synthesis.data = (vectors / scale[:, None]).reshape(shape).float()
            return vae
        near = F.unfold(vae.encode(images).latents, 2 * reach + 1, padding=reach)  # (N, C K K, L)
        near = near.permute(0, 2, 1).flatten(0, 1).double()
        noisy = near.T @ near + len(near) * noise**2 * torch.eye(near.shape[1], dtype=near.dtype)
        weights = torch.linalg.solve(noisy, near.T @ flat)  # (C K K, 3pp)
        # Neighbours contribute to a patch: their offsets are mirrored in the transposed kernel.
        k, p = 2 * reach + 1, patch
        weights = weights.reshape(latent_channels, k, k, 3, p, p).flip(1, 2)
        vae.synthesis.data = weights.permute(0, 3, 1, 4, 2, 5).reshape(vae.synthesis.shape).float()
        return vae

    def encode(self, x, return_dict: bool = True):
        """Latents of images (B, 3, H, W) in [-1, 1]."""
        z = F.conv2d(x - self.mean, self.analysis, stride=self.config.patch)
        return AutoencoderTinyOutput(latents=z) if return_dict else (z,)

    def decode(self, z, return_dict: bool = True, generator=None):
        """Images of latents (B, latent_channels, h, w)."""
        patch, reach = self.config.patch, self.config.reach
        x = F.conv_transpose2d(z, self.synthesis, stride=patch, padding=reach * patch) + self.mean
        return DecoderOutput(sample=x) if return_dict else (x,)


def corrupt_parts(folder) -> list[Path]:
    """Files of a saved base that are missing, truncated or modified."""
    files = recorded(folder / "model_index.json").get("files", {})
    return [
        folder / name
        for name, sha256 in files.items()
        if not (folder / name).exists() or file_digest(folder / name) != sha256
    ]


def load(name_or_path: str) -> StableDiffusionPipeline:
    """A base from a diffusers directory or a hub id; InputError if it cannot be loaded.

    For a base that `save` wrote, the error names a corrupt file.
    """
    local = resolve(SMALL if name_or_path == "small" else name_or_path)
    for path in corrupt_parts(local):
        raise InputError(
            path, "it is corrupt (truncated or modified)", f"delete {local} and start again"
        )
    # Bases saved by lesionlib 0.1 refer to their autoencoder by its former module path.
    sys.modules.setdefault("lesionlib.base", sys.modules[__name__])
    try:
        # No safety checker: it mistakes skin for nudity and blackens the image.
        pipe = StableDiffusionPipeline.from_pretrained(
            str(local) if local.exists() else name_or_path,
            safety_checker=None,
            requires_safety_checker=False,
            local_files_only=local.exists(),
            dtype=torch.float32,  # whatever the files hold
        )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            name_or_path,
            f"no Stable Diffusion base could be loaded ({str(error)[:200]})",
            "set base_model to a diffusers directory, or to the id of a model on the hub and fetch "
            "it where there is a network (./run_all.sh --prefetch with the same preset), or to '' "
            "to train a small base from scratch",
        ) from error
    if "clip_sample" not in pipe.scheduler.config:  # DDIM would clip, which is for pixels
        pipe.scheduler.register_to_config(clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tokenizer_for(prompts, folder, length: int = 77) -> CLIPTokenizer:
    """A CLIP tokenizer of up to `length` tokens, its merges learnt from the study's prompts."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    # CLIP's words, without their spaces: only merges of these can ever be applied
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        sorted(set(prompts)),
        trainers.BpeTrainer(
            vocab_size=1000,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    learnt = json.loads(bpe.to_str())["model"]["merges"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split()) for pair in learnt]
    letters = sorted(alphabet)
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(m) for m in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    options = dict(model_max_length=length, pad_token="<|endoftext|>")
    return CLIPTokenizer(str(vocabulary), str(folder / "merges.txt"), **options)


def pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """Float (B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3)."""
    x = ((x.float().clamp(-1, 1) + 1) * 127.5).round()
    return x.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


@torch.no_grad()
def encode(pipe, images: np.ndarray) -> torch.Tensor:
    """Scaled latents (B, C, h, w) of uint8 images (B, S, S, 3): the mean of their distribution."""
    device = next(pipe.vae.parameters()).device
    out = pipe.vae.eval().encode(pixels(images).to(device, pipe.vae.dtype))
    z = out.latents if hasattr(out, "latents") else out.latent_dist.mode()
    return z.float() * pipe.vae.config.scaling_factor


@torch.no_grad()
def decode_latents(pipe, latents: torch.Tensor) -> np.ndarray:
    """uint8 images (B, H, W, 3) of scaled latents (B, C, h, w)."""
    latents = latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor
    return to_uint8(pipe.vae.decode(latents).sample)


def token_ids(pipe, prompts) -> torch.Tensor:
    """Token ids (B, T) of prompts, padded to the encoder's length; InputError if one is longer."""
    longest = pipe.tokenizer.model_max_length
    counts = [len(ids) for ids in pipe.tokenizer(list(prompts), verbose=False).input_ids]
    if max(counts) > longest:
        raise InputError(
            f"prompt '{list(prompts)[int(np.argmax(counts))]}'",
            f"it has {max(counts)} tokens, but the text encoder reads {longest}",
            "name fewer prompt_details",
        )
    return pipe.tokenizer(
        list(prompts), padding="max_length", max_length=longest, return_tensors="pt"
    ).input_ids


def noised(scheduler, latents, draw: torch.Generator, batch: int, part: slice):
    """Noisy latents, the training target (see `diffused`) and timesteps.

    `latents` are the rows `part` of a batch of `batch`. Random numbers are drawn for the whole
    batch, so that the number of processes that share it changes nothing.
    """
    noise = torch.randn((batch, *latents.shape[1:]), generator=draw)[part].to(latents)
    steps = scheduler.config.num_train_timesteps
    t = torch.randint(0, steps, (batch,), generator=draw)[part].to(latents.device)
    return *diffused(scheduler, latents, noise, t), t


def diffused(scheduler, latents, noise, t):
    """Noisy latents at timesteps t, and the target of the scheduler's prediction type."""
    noisy = scheduler.add_noise(latents, noise, t)
    if scheduler.config.prediction_type == "v_prediction":
        return noisy, scheduler.get_velocity(latents, noise, t)
    return noisy, noise


def denoising_loss(scheduler, predicted, target, t, min_snr: float = 0.0) -> torch.Tensor:
    """Mean squared error; with `min_snr` > 0 Min-SNR weighting (Hang et al. 2023: 5)."""
    if not min_snr:
        return F.mse_loss(predicted.float(), target.float())
    snr = compute_snr(scheduler, t)
    velocity = scheduler.config.prediction_type == "v_prediction"
    weight = snr.clamp(max=min_snr) / (snr + 1 if velocity else snr.clamp(min=1e-8))
    error = F.mse_loss(predicted.float(), target.float(), reduction="none")
    return (weight * error.flatten(1).mean(1)).mean()


def new(images: np.ndarray, prompts, folder, settings: Base, seed: int) -> StableDiffusionPipeline:
    """An untrained small Stable Diffusion for images (N, S, S, 3) and the words of `prompts`.

    `folder` gets the tokenizer's vocabulary.
    """
    torch.manual_seed(seed)
    vae = PatchAutoencoder.fit(
        pixels(images), settings.latent_channels, settings.patch, settings.whitening, settings.reach
    )
    tokenizer = tokenizer_for(prompts, folder / "vocabulary", settings.text_tokens)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=_text_encoder(tokenizer, settings.text_width),
        tokenizer=tokenizer,
        unet=_unet(images.shape[1] // settings.patch, settings),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _text_encoder(tokenizer, width: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _unet(size: int, settings: Base) -> UNet2DConditionModel:
    attention = settings.attention
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=settings.latent_channels,
        out_channels=settings.latent_channels,
        layers_per_block=1,
        block_out_channels=tuple(settings.channels),
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1]),
        cross_attention_dim=settings.text_width,
        addition_embed_type="text" if settings.text_pooled else None,  # as DeepFloyd IF
        attention_head_dim=4,
        norm_num_groups=8,
    )


def _scheduler() -> DDIMScheduler:
    # Zero terminal SNR with trailing steps (Lin et al. 2023): without them contrast is too low.
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


@dataclass(frozen=True)
class Monitor:
    """How often a training is logged and validated.

    `validate(step)` is called every `validate_every` steps (see `training.fit`).
    """

    validate: Callable | None = None
    validate_every: int = 0
    log_every: int = 10


def schedule(settings: Base | ControlNet, training: Training, monitor: Monitor, **more) -> Schedule:
    """The schedule of the base or the ControlNet; `more` fields of it override or add."""
    return Schedule(
        steps=settings.steps,
        lr=settings.lr,
        warmup=round(training.warmup * settings.steps),
        clip=training.gradient_clip,
        ema=training.ema,
        precision=training.precision,
        save_every=training.save_every,
        log_every=monitor.log_every,
        validate_every=monitor.validate_every,
        **more,
    )


class Denoiser(nn.Module):
    """UNet and text encoder of a base as one model, for training both together."""

    def __init__(self, unet, text_encoder):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy, t, ids):
        """Prediction (B, C, h, w) for noisy latents, timesteps (B,) and token ids (B, T)."""
        return self.unet(noisy, t, self.text_encoder(ids)[0]).sample


@dataclass(frozen=True)
class Examples:
    """What a base or a ControlNet is trained on: V copies of each of N images, see `augmentation`.

    Latents are those of `latents.examples`; masks are warped when they are used.
    """

    latents: np.ndarray  # (V, N, C, h, w)
    masks: np.ndarray  # (N, S, S) of 0 and 1
    matrices: torch.Tensor  # (V, N, 2, 3)
    prompts: np.ndarray  # (V, N) of str

    def chosen(self, settings: Base | ControlNet, seed: int, step: int, draw: torch.Generator):
        """Copies, images and dropped prompts (batch,) of a step, drawn for the whole batch."""
        rows = batch_at(step, settings.batch, len(self.masks), seed)
        copies = torch.randint(0, len(self.latents), (settings.batch,), generator=draw)
        dropped = torch.rand(settings.batch, generator=draw) < settings.prompt_dropout
        return copies, rows, dropped

    def latents_of(self, copies: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) of these copies of these images."""
        # NumPy treats a one-element tensor as a number
        return torch.from_numpy(self.latents[copies.numpy(), rows.numpy()])


def train(
    pipe,
    examples: Examples,
    folder,
    settings: Base,
    training: Training,
    record: dict,
    monitor: Monitor | None = None,
) -> StableDiffusionPipeline:
    """Train UNet and text encoder of a base on examples (Sec. 2.2).

    A share `settings.prompt_dropout` of the prompts is emptied, so that the model learns the empty
    prompt. `folder` keeps checkpoint and log, which are valid for one `record` (see
    `training.fit`).
    """
    distinct, texts = np.unique(examples.prompts, return_inverse=True)
    texts = torch.from_numpy(texts.reshape(examples.prompts.shape))
    ids, empty = token_ids(pipe, distinct), token_ids(pipe, [""])[0]
    pipe.unet.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    model = Denoiser(pipe.unet, pipe.text_encoder).requires_grad_(True)
    batch, seed = settings.batch, training.generator_seed
    part = process_rows(batch)

    def loss_at(model, step):
        draw, device = generator_at(seed, step), pipe.unet.device
        copies, rows, dropped = examples.chosen(settings, seed, step, draw)
        text = ids[texts[copies, rows]]
        text[dropped] = empty
        z = examples.latents_of(copies[part], rows[part]).to(device)
        noisy, target, t = noised(pipe.scheduler, z, draw, batch, part)
        predicted = model(noisy, t, text[part].to(device))
        return denoising_loss(pipe.scheduler, predicted, target, t, training.min_snr)

    monitor = monitor or Monitor()
    plan = schedule(settings, training, monitor)
    options = dict(validate=monitor.validate, desc="base", lower="base_batch")
    fit(model, loss_at, folder, plan, record, **options)
    pipe.text_encoder.eval()
    return pipe


def weights_digest(module) -> str:
    """A short SHA-256 of a module's names, shapes and values."""
    total = hashlib.sha256()
    for name, x in sorted(module.state_dict().items()):
        total.update(f"{name}{x.dtype}{tuple(x.shape)}".encode())
        total.update(x.detach().cpu().flatten().clone().view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def pipeline_digest(pipe) -> str:
    """A short SHA-256 of a base: the weights of its parts, its vocabulary and noise schedule."""
    weights = [weights_digest(part) for part in (pipe.vae, pipe.text_encoder, pipe.unet)]
    scale = pipe.vae.config.scaling_factor
    noise = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    return digest(weights, scale, pipe.tokenizer.get_vocab(), noise)


def save(pipe, folder, **facts):
    """Write a base as a diffusers directory, its index last, with its record."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").unlink(missing_ok=True)  # absent until all parts are written
    for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        getattr(pipe, name).save_pretrained(folder / name)
    with atomic_write(folder / "model_index.json") as temporary:
        temporary.write_text(pipe.to_json_string())
    parts = sorted(path for path in folder.glob("*/*") if path.is_file())
    files = {str(path.relative_to(folder)): file_digest(path) for path in parts}
    record(folder / "model_index.json", files=files, **facts)
