"""Pix2PixHD, image synthesis from masks by a conditional GAN: the paper's baseline (Table 1).

Paper: Wang et al. 2018, "High-resolution image synthesis and semantic manipulation with
conditional GANs" (arXiv 1711.11585). Reference implementation: github.com/NVIDIA/pix2pixHD at
14b3b3c. This is an independent implementation of the same functions. Parameters carry the
names of its checkpoints, so that weights can be exchanged in both directions. Instance
normalisation has neither weights nor state.

Pix2PixHD+ is ours, not the paper's: the same training with bilinear upsampling and convolution in
place of transposed convolutions (Odena et al. 2016, "Deconvolution and checkerboard artifacts"),
spectral beside instance normalisation in the discriminators (Miyato et al. 2018, arXiv 1802.05957),
and noise, so that one mask has many images, with the mode-seeking term of Mao et al. 2019 (arXiv
1903.05628). In training part of the noise is what the real image tells: the colours of its skin and
lesion. Otherwise the losses that compare with that image favour the mean colour for every noise.
(The original's feature encoder, Sec. 3.4, serves the same end; the paper's baseline has none.)
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from lesionlib.data.augmentation import drawn, orientations, warp
from lesionlib.data.dataset import resized
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import atomic_write, read_json, write_json
from lesionlib.engine.settings import Augmentation, Pix2PixHD, Training
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
from lesionlib.generators.perceptual import PerceptualLoss

WIDEST = 512  # largest number of channels of the discriminator
VGG_SLICES = ((0, 2), (2, 7), (7, 12), (12, 21), (21, 30))  # up to relu1_1, 2_1, 3_1, 4_1, 5_1
VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
SCALES = 2  # of the discriminator, without enhancers
LAMBDA_FEAT = 10.0  # weight of feature matching and VGG loss


class StyledNorm(nn.Module):
    """Instance normalisation, then a scale and a shift of each channel that noise (B, k) gives."""

    def __init__(self, channels: int, noise: int):
        super().__init__()
        self.norm, self.style = nn.InstanceNorm2d(channels), nn.Linear(noise, 2 * channels)
        nn.init.normal_(self.style.weight, 0.0, 0.1)
        nn.init.zeros_(self.style.bias)

    def forward(self, x, noise):
        scale, shift = self.style(noise)[:, :, None, None].chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class Layers(nn.Sequential):
    """Layers one after the other; those that noise (B, k) changes get it, too."""

    def forward(self, x, noise=None):
        for layer in self:
            x = layer(x, noise) if isinstance(layer, StyledNorm | ResidualBlock) else layer(x)
        return x


def _norm(channels, noise=0):
    return StyledNorm(channels, noise) if noise else nn.InstanceNorm2d(channels)


def _norm_relu(channels, noise=0):
    return [_norm(channels, noise), nn.ReLU(inplace=True)]


def _first(in_channels, channels):  # 7x7, same size
    return [nn.ReflectionPad2d(3), nn.Conv2d(in_channels, channels, 7), *_norm_relu(channels)]


def _halve(c):  # (B, c, H, W) to (B, 2c, H/2, W/2)
    return [nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), *_norm_relu(2 * c)]


def _double(c, resize=False, noise=0):  # (B, c, H, W) to (B, c/2, 2H, 2W)
    conv = nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1)
    if resize:
        convolution = nn.Conv2d(c, c // 2, 3, padding=1, padding_mode="reflect")
        conv = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), convolution)
    return [conv, *_norm_relu(c // 2, noise)]


def _last(channels, out_channels):  # 7x7, same size, values in [-1, 1]
    return [nn.ReflectionPad2d(3), nn.Conv2d(channels, out_channels, 7), nn.Tanh()]


def _pyramid(x, levels):
    """x (B, C, H, W) and its reductions by 2, 4, ...: means of 3x3, the padding not counted."""
    pyramid = [x]
    while len(pyramid) < levels:
        pyramid.append(F.avg_pool2d(pyramid[-1], 3, stride=2, padding=1, count_include_pad=False))
    return pyramid


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions of x with reflected borders; keeps the shape (B, channels, H, W)."""

    def __init__(self, channels: int, noise: int = 0):
        super().__init__()
        self.conv_block = Layers(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            *_norm_relu(channels, noise),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            _norm(channels, noise),
        )

    def forward(self, x, noise=None):
        return x + self.conv_block(x, noise)


class GlobalGenerator(nn.Module):
    """Generator of one resolution: (B, in_channels, H, W) to (B, out_channels, H, W) in [-1, 1].

    `n_downsample` halvings, `n_blocks` residual blocks, as many doublings; `base_channels` at
    full resolution, doubled at every halving. H and W: multiples of 2 ** n_downsample, not the
    first. 182,443,267 parameters for three channels and the defaults. Of Pix2PixHD+: `resize`
    (bilinear upsampling and convolution) and `noise`, the number of values (B, noise) that it
    takes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_channels: int = 64,
        n_downsample: int = 4,
        n_blocks: int = 9,
        *,
        resize: bool = False,
        noise: int = 0,
    ):
        super().__init__()
        self.config = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            n_blocks=n_blocks,
            base_channels=base_channels,
            n_downsample=n_downsample,
            resize=resize,
            noise=noise,
        )
        widths = [base_channels * 2**i for i in range(n_downsample + 1)]
        layers = _first(in_channels, base_channels)
        for width in widths[:-1]:
            layers += _halve(width)
        layers += [ResidualBlock(widths[-1], noise) for _ in range(n_blocks)]
        for width in widths[:0:-1]:
            layers += _double(width, resize, noise)
        self.model = Layers(*layers, *_last(base_channels, out_channels))

    def forward(self, x, noise=None):
        return self.model(x, noise)


class LocalEnhancer(nn.Module):
    """A global generator on a reduced input, refined by `n_enhancers` finer generators.

    (B, in_channels, H, W) to (B, out_channels, H, W) in [-1, 1]. `base_channels` counts at full
    resolution; the inner generator, without its last convolution, has 2 ** n_enhancers times
    as many and halves `n_downsample` times more. `options`: `n_blocks_local` (residual blocks of
    each enhancer, 3), and `resize` and `noise` of GlobalGenerator.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_channels: int = 32,
        n_downsample: int = 4,
        n_blocks: int = 9,
        n_enhancers: int = 1,
        **options,
    ):
        super().__init__()
        n_blocks_local = options.pop("n_blocks_local", 3)
        width = base_channels * 2**n_enhancers
        inner = GlobalGenerator(in_channels, out_channels, width, n_downsample, n_blocks, **options)
        own = dict(n_enhancers=n_enhancers, n_blocks_local=n_blocks_local)
        self.config = inner.config | {"base_channels": base_channels} | own
        self.n_enhancers, self.model = n_enhancers, inner.model[:-3]
        for n in range(1, n_enhancers + 1):
            width //= 2
            up = [ResidualBlock(2 * width, self.config["noise"]) for _ in range(n_blocks_local)]
            up += _double(2 * width, self.config["resize"], self.config["noise"])
            if n == n_enhancers:
                up += _last(width, out_channels)
            down = [*_first(in_channels, width), *_halve(width)]
            self.add_module(f"model{n}_1", nn.Sequential(*down))
            self.add_module(f"model{n}_2", Layers(*up))

    def forward(self, x, noise=None):
        *finer, coarsest = _pyramid(x, self.n_enhancers + 1)
        y = self.model(coarsest, noise)
        for n, level in enumerate(reversed(finer), 1):
            down, up = getattr(self, f"model{n}_1"), getattr(self, f"model{n}_2")
            y = up(down(level) + y, noise)
        return y


class MultiscaleDiscriminator(nn.Module):
    """PatchGAN discriminators on the input (B, in_channels, H, W) and on its reductions.

    Returns one list per scale, full resolution first, with the outputs of all n_layers + 2
    layers, the last one the scores (B, 1, h, w). In the parameters' names, as in the reference,
    scale 0 is the coarsest. 5,535,618 parameters for six channels and the defaults.
    """

    def __init__(
        self, in_channels: int, base_channels: int = 64, n_layers: int = 3, n_scales: int = 2
    ):
        super().__init__()
        self.n_layers, self.n_scales = n_layers, n_scales
        for scale in range(n_scales):
            for i, layer in enumerate(self._layers(in_channels, base_channels)):
                self.add_module(f"scale{scale}_layer{i}", layer)

    def _layers(self, in_channels, base_channels):
        widths = [min(base_channels * 2**i, WIDEST) for i in range(self.n_layers + 1)]
        for i, width in enumerate(widths):
            conv = nn.Conv2d(in_channels, width, 4, 1 if i == self.n_layers else 2, padding=2)
            norm = [nn.InstanceNorm2d(width)] if i else []
            yield nn.Sequential(conv, *norm, nn.LeakyReLU(0.2, inplace=True))
            in_channels = width
        yield nn.Sequential(nn.Conv2d(in_channels, 1, 4, padding=2))

    def forward(self, x):
        outputs = [[level] for level in _pyramid(x, self.n_scales)]
        for i, scale in enumerate(reversed(outputs)):
            for j in range(self.n_layers + 2):
                scale.append(getattr(self, f"scale{i}_layer{j}")(scale[-1]))
        return [scale[1:] for scale in outputs]


def diversity_loss(first, second, noise, other) -> torch.Tensor:
    """Mode-seeking loss of images of one mask, first and second (B, 3, H, W) (Mao et al. 2019).

    The distance of their noises (B, k) over that of the images, as mean absolute differences. The
    images are compared as means of squares of an eighth of the side, that is by their colours.
    """
    pool = max(1, first.shape[-1] // 8)
    apart = F.l1_loss(F.avg_pool2d(first.float(), pool), F.avg_pool2d(second.float(), pool))
    return F.l1_loss(noise, other) / (apart + 1e-5)


def load_reference_state_dict(model: nn.Module, state_dict: dict) -> nn.Module:
    """Load a state dict of the reference into a generator, enhancer or discriminator.

    A discriminator's must come from a training with feature matching, the reference's default.
    The prefix `module.` of DataParallel is removed from keys. InputError names the keys
    that are missing, superfluous or of another shape.
    """
    try:
        model.load_state_dict({k.removeprefix("module."): x for k, x in state_dict.items()})
    except RuntimeError as error:
        raise InputError(
            type(model).__name__,
            f"the checkpoint does not fit ({error})",
            "build the model with the sizes that it was trained with",
        ) from error
    return model


def gan_loss(outputs, is_real: bool) -> torch.Tensor:
    """Least-squares GAN loss of a discriminator's outputs (list of lists), summed over scales."""
    return sum((scale[-1] - float(is_real)).square().mean() for scale in outputs)


def feature_matching_loss(fake, real, n_layers: int) -> torch.Tensor:
    """Mean absolute differences of all layers but the last, times 4 / (n_layers + 1) / scales.

    `fake` and `real`: outputs of the discriminator; no gradient flows into `real`.
    """
    total = sum(
        F.l1_loss(f, r.detach())
        for of_fake, of_real in zip(fake, real, strict=True)
        for f, r in zip(of_fake[:-1], of_real[:-1], strict=True)
    )
    return total * 4 / (n_layers + 1) / len(fake)


class VGGLoss(nn.Module):
    """Weighted mean absolute differences of VGG19's relu1_1, 2_1, 3_1, 4_1 and 5_1.

    `features`: torchvision's layers of that name. Takes images (B, 3, H, W) in [-1, 1] as they
    are: the reference does not normalise them either. No gradient flows into `real`.
    """

    name = "VGG19"

    def __init__(self, features: nn.Sequential):
        super().__init__()
        self.slices = nn.ModuleList(features[a:b] for a, b in VGG_SLICES)
        self.eval().requires_grad_(False)

    def forward(self, fake, real):
        total, real = 0.0, real.detach()
        for part, weight in zip(self.slices, VGG_WEIGHTS, strict=True):
            fake, real = part(fake), part(real)
            total = total + weight * F.l1_loss(fake, real)
        return total


def vgg_loss_or_none(weights: str = "auto") -> VGGLoss | PerceptualLoss | None:
    """The perceptual loss with ImageNet weights; its `name` says which network it is.

    `weights`: "off" (None); "disk" (torchvision's `vgg19-*.pth` in the cache of torch.hub, else
    None); "auto" (VGG19 as "disk", else the VGG16 of `perceptual`); "download" (VGG19 from that
    cache, else downloaded into it, else None with a warning); or the path of such a file.
    InputError if the weights cannot be used.
    """
    if weights == "off":
        return None
    if weights == "download" and not _cached():
        import torchvision  # slow import, needed only with VGG19

        try:
            torchvision.models.VGG19_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:
            print(f"WARNING: VGG19 could not be downloaded ({error}): training without its loss")
    if weights in ("auto", "disk", "download"):
        if not (found := _cached()):
            return PerceptualLoss() if weights == "auto" else None
        weights = found[0]
    return _vgg19(weights)


def _cached() -> list[Path]:
    """Paths of VGG19 weights in the cache of torch.hub."""
    return sorted(Path(torch.hub.get_dir(), "checkpoints").glob("vgg19-*.pth"))


def _vgg19(path) -> VGGLoss:
    import torchvision  # slow import, needed only with VGG19

    with torch.device("meta"):
        features = torchvision.models.vgg19().features
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {key: state[f"features.{key}"].float() for key in features.state_dict()}
        features.load_state_dict(state, assign=True)
    except (OSError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            path,
            f"no VGG19 weights could be read ({error!r})",
            'give torchvision\'s vgg19-*.pth, or "off" for no such loss',
        ) from error
    return VGGLoss(features)


def one_hot(masks) -> torch.Tensor:
    """Masks (B, H, W) of 0 (skin) and 1 (lesion), array or tensor, as float (B, 2, H, W).

    ValueError for other values.
    """
    masks = torch.as_tensor(np.array(masks, dtype=np.uint8))
    if masks.numel() and masks.max() > 1:
        raise ValueError(f"masks must hold 0 and 1 only; the largest value is {masks.max()}")
    return torch.stack([1 - masks, masks], dim=1).float()


@dataclass(frozen=True)
class Examples:
    """Images uint8 (N, S, S, 3), masks (N, S, S) of 0 and 1, and how both are warped."""

    images: np.ndarray
    masks: np.ndarray
    augmentation: Augmentation = Augmentation()

    def check(self, n_downsample: int):
        """ValueError unless images, masks and the number of halvings agree."""
        images, masks, unit = self.images, self.masks, 2**n_downsample
        if images.shape != (*masks.shape, 3) or images.dtype != np.uint8 or not len(masks):
            raise ValueError(
                f"images must be uint8 (N, S, S, 3) and masks (N, S, S) with N > 0; they "
                f"are {images.dtype} {images.shape} and {masks.shape}"
            )
        one_hot(masks)
        if any(size % unit or size == unit for size in masks.shape[1:]):
            raise ValueError(
                f"{n_downsample} halvings need sizes of {2 * unit}, {3 * unit}, ...; "
                f"they are {masks.shape[1:]}"
            )

    def colours(self) -> torch.Tensor:
        """Mean colours of skin and lesion, whitened (N, 6): of mean 0 and unit covariance.

        A region that an image does not have counts as of the image's mean colour.
        """
        pairs = zip(self.images, self.masks, strict=True)
        means = np.stack([_region_means(image, mask) for image, mask in pairs])
        means -= means.mean(axis=0)
        covariance = means.T @ means / len(means) + np.eye(6)  # of squared grey levels
        whitened = np.linalg.solve(np.linalg.cholesky(covariance), means.T).T
        return torch.from_numpy(whitened).float()

    def resized(self, side: int) -> "Examples":
        """The same examples with images of another side."""
        images, masks = resized(self.images, self.masks, side)
        return replace(self, images=images, masks=masks)

    def batch(self, step: int, batch: int, seed: int):
        """Images (B, 3, S, S) in [-1, 1] and conditions (B, 2, S, S) of a step.

        Each pair is warped at random if the settings name this training; otherwise it is shown in
        one of the eight orientations. Warps are those of `augmentation.drawn`, mirrored at the
        border: with `copied`, the generator paints dark corners into most images.
        """
        rows, draw = batch_at(step, batch, len(self.images), seed).numpy(), generator_at(seed, step)
        if "pix2pixhd" in self.augmentation.trainings:
            matrices = drawn(batch, self.augmentation, draw)
        else:
            matrices = orientations(torch.randint(0, 8, (batch,), generator=draw))
        pairs = np.concatenate([self.images[rows], self.masks[rows, :, :, None]], axis=3)
        pairs = warp(torch.from_numpy(pairs).permute(0, 3, 1, 2), matrices)
        return pairs[:, :3] / 127.5 - 1, one_hot(pairs[:, 3] > 0.5)


def _region_means(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean colours (6,) of the skin and the lesion of an image (S, S, 3) with its mask (S, S)."""
    parts = (image[mask == region] for region in (0, 1))
    means = [(part if len(part) else image.reshape(-1, 3)).mean(axis=0) for part in parts]
    return np.concatenate(means)


def networks(
    settings: Pix2PixHD, seed: int, plus: bool = False, n_enhancers: int = 0
) -> nn.ModuleList:
    """Generator and discriminator for two-channel masks; convolutions drawn from N(0, 0.02).

    Transposed convolutions start as a linear interpolation of such draws, which has no
    checkerboard (the original draws each weight; the function is the same). With `n_enhancers` the
    generator is a LocalEnhancer whose inner global generator has `settings.channels`, and the
    discriminator has `n_enhancers` more scales. `plus`: those of Pix2PixHD+.
    """
    kind, number = (LocalEnhancer, [n_enhancers]) if n_enhancers else (GlobalGenerator, [])
    sizes = settings.channels // 2**n_enhancers, settings.downsample, settings.blocks, *number
    extra = dict(resize=plus or settings.resize, noise=settings.noise if plus else 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scales = SCALES + n_enhancers
        critic = MultiscaleDiscriminator(5, settings.disc_channels, n_scales=scales)
        both = nn.ModuleList([kind(2, 3, *sizes, **extra), critic])
        for module in both.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0.0, 0.02)
            if isinstance(module, nn.ConvTranspose2d):
                line = torch.tensor([0.5, 1.0, 0.5])  # one sample, or the mean of its neighbours
                module.weight.data = module.weight.data[:, :, 1:2, 1:2] * line.outer(line)
        if plus:
            for module in critic.modules():
                if isinstance(module, nn.Conv2d):
                    spectral_norm(module)
    return both


@dataclass(frozen=True)
class Terms:
    """What a step is made of, besides GAN loss and feature matching.

    `vgg`: the perceptual loss, if any, for the first `vgg_images` of the batch (0: all);
    `diversity`: weight of `diversity_loss`; `precision` no, bf16 or fp16; `scale` is applied to
    the losses before differentiation.
    """

    vgg: nn.Module | None = None
    vgg_images: int = 0
    diversity: float = 0.0
    precision: str = "no"
    scale: Callable = lambda loss: loss

    def autocast(self, device_type: str):
        """The context of mixed precision."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(device_type, dtype, enabled=self.precision != "no")


def gradients(generator, discriminator, real, condition, terms: Terms, noise=None) -> dict:
    """Accumulate the gradients of both networks for one batch; returns the losses.

    Discriminator: half the sum of its losses on fake and real images. Generator: GAN loss +
    LAMBDA_FEAT (feature matching + perceptual loss) + diversity. `noise` (B + h, k), for a
    generator with noise: the last h rows make second images of the first h conditions.
    """
    n, device_type = len(real), real.device.type
    with terms.autocast(device_type):
        if noise is None:
            fake = generator(condition)
        else:
            again = len(noise) - n
            made = generator(torch.cat([condition, condition[:again]]), noise)
            fake, second = made[:n], made[n:]
        pairs = torch.cat([condition.repeat(2, 1, 1, 1), torch.cat([fake.detach(), real])], dim=1)
        outputs = discriminator(pairs)
    halves = ([[layer.float().chunk(2)[i] for layer in scale] for scale in outputs] for i in (0, 1))
    of_fake, of_real = halves
    losses = {"d_real": gan_loss(of_real, True), "d_fake": gan_loss(of_fake, False)}
    terms.scale((losses["d_fake"] + losses["d_real"]) / 2).backward()
    discriminator.requires_grad_(False)
    with terms.autocast(device_type):
        of_fake = discriminator(torch.cat([condition, fake], dim=1))
        if terms.vgg is not None:
            seen = terms.vgg_images or n
            losses["g_vgg"] = terms.vgg(fake[:seen], real[:seen])
    of_fake = [[layer.float() for layer in scale] for scale in of_fake]
    losses["g_gan"] = gan_loss(of_fake, True)
    losses["g_feat"] = feature_matching_loss(of_fake, of_real, discriminator.n_layers)
    total = losses["g_gan"] + LAMBDA_FEAT * (losses["g_feat"] + losses.get("g_vgg", 0))
    if noise is not None:
        losses["g_div"] = diversity_loss(fake[:again], second, noise[:again], noise[n:])
        total = total + terms.diversity * losses["g_div"]
    terms.scale(total).backward()
    discriminator.requires_grad_(True)
    return {name: loss.item() for name, loss in losses.items()}


class Adversarial(Task):
    """Generator and discriminator `both`, trained together by Adam on images and masks.

    In the first `fixed_steps` only the modules `free` of the generator are trained, if there are
    any; then all are, with a new optimiser (in the original that of the generator only).
    """

    desc, lower, digits = "Pix2PixHD", "pix2pixhd_batch or pix2pixhd_channels", 5
    remedy = "lower pix2pixhd_lr, or set precision to no; then start again"

    def __init__(self, both, data: Examples, settings: Pix2PixHD, training, vgg=None, free=()):
        self.data, self.settings, self.training, self.free = data, settings, training, free
        both.to(device(), memory_format=torch.channels_last)
        super().__init__(both, self._adam(both))
        self.precision = resolved_precision(training.precision, both[0])
        self.scaler = torch.amp.GradScaler(device().type, enabled=training.precision == "fp16")
        self.terms = Terms(
            vgg=None if vgg is None else vgg.to(device()),
            vgg_images=settings.vgg_images,
            diversity=settings.diversity,
            precision=self.precision,
            scale=self.scaler.scale,
        )
        self.fixed_steps = settings.fixed_steps if free else 0
        self.noise = both[0].config["noise"]
        self.colours = data.colours()[:, : self.noise] if self.noise else None
        extra = ["g_vgg"] * (vgg is not None) + ["g_div"] * bool(self.noise)
        self.columns = ["d_real", "d_fake", "g_gan", "g_feat", *extra, "lr"]

    def _adam(self, both):
        lr = self.settings.lr
        return torch.optim.Adam(both.parameters(), lr=lr, betas=(0.5, 0.999), fused=True)

    def begin(self, start):
        if start < self.fixed_steps:
            self.model[0].requires_grad_(False)
            for module in self.free:
                module.requires_grad_(True)

    def before(self, step):
        if step == self.fixed_steps and self.fixed_steps:
            self.model.requires_grad_(True)
            self.optimiser = self._adam(self.model)

    def gradients(self, step):
        batch, seed = self.settings.batch, self.training.generator_seed
        real, condition = (
            x.to(device(), memory_format=torch.channels_last)
            for x in self.data.batch(step, batch, seed)
        )
        noise = None
        if self.noise:
            draw = generator_at(seed + 1, step)  # not the numbers that warp the images
            noise = torch.randn(batch + (batch + 1) // 2, self.noise, generator=draw)
            rows = batch_at(step, batch, len(self.data.images), seed)
            noise[:batch, : self.colours.shape[1]] = self.colours[rows]
            noise = noise.to(device())
        yield gradients(*self.model, real, condition, self.terms, noise)

    def update(self):
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def state(self):
        return super().state() | {"scaler": self.scaler.state_dict()}

    def load(self, state):
        super().load(state)
        self.scaler.load_state_dict(state["scaler"])

    def finish(self):
        self.model.requires_grad_(True)
        return self.model[0].eval()


def train(
    examples: Examples,
    out_dir,
    settings: Pix2PixHD,
    training: Training,
    record: dict,
    *,
    plus: bool = False,
    vgg: nn.Module | None = None,
    log_every: int = 10,
) -> nn.Module:
    """Train a generator on examples; with `plus` that of Pix2PixHD+.

    The learning rate is constant for half of the steps, then falls linearly to zero. Without
    enhancers, the global generator is trained for `steps` steps. With them, training is coarse to
    fine (Wang et al. 2018, Sec. 3.1): the global generator on images reduced by
    2 ** n_enhancers, then the enhancer on the full images for `fine_steps` steps, in the first
    `fixed_steps` of which the global generator stays fixed. The trained scales of the
    discriminator are kept.

    `out_dir` gets `checkpoint.pt` and `log.csv` (mean losses of `log_every` steps, without
    their factors); the first of two stages writes to `out_dir`/coarse. `vgg`: from
    `vgg_loss_or_none`. `record`: see `training.Loop`. ValueError for shapes that do not fit.
    """
    number, seed = settings.enhancers, training.generator_seed
    examples.check(settings.downsample + number)
    both, out_dir = networks(settings, seed, plus), Path(out_dir)
    plan = dict(decay="linear", save_every=training.save_every, log_every=log_every)

    def stage(task, folder, steps):
        task.desc = "Pix2PixHD+" if plus else task.desc
        files = Files(folder / "checkpoint.pt", folder / "log.csv")
        return Loop(task, files, Schedule(steps, settings.lr, **plan), record).run()

    if not number:
        task = Adversarial(both, examples, settings, training, vgg)
        return stage(task, out_dir, settings.steps)
    small = examples.resized(examples.images.shape[1] // 2**number)
    task = Adversarial(both, small, settings, training, vgg)
    stage(task, out_dir / "coarse", settings.steps)
    fine = networks(settings, seed, plus, number)
    trained = both.state_dict()  # matched by name and shape, as in the original
    initial = fine.state_dict()
    fine.load_state_dict(
        initial | {k: x for k, x in trained.items() if k in initial and initial[k].shape == x.shape}
    )
    last = [fine[0].get_submodule(f"model{number}_{i}") for i in (1, 2)]
    task = Adversarial(fine, examples, settings, training, vgg, last)
    return stage(task, out_dir, settings.fine_steps)


@torch.no_grad()
def generate(
    generator: nn.Module, masks: np.ndarray, indices=None, *, seed=0, batch=16, device="cpu"
):
    """Yield a uint8 image (S, S, 3) per mask (N, S, S) of 0 and 1, in order.

    The noise of the image with number indices[i] (default: i), if the generator takes any, depends
    on `seed` and that number alone; the batch size changes nothing.
    """
    generator.eval().to(device)
    indices, k = range(len(masks)) if indices is None else indices, generator.config["noise"]
    for i in range(0, len(masks), batch):
        draws = [generator_at(seed, int(number)) for number in indices[i : i + batch]]
        noise = torch.stack([torch.randn(k, generator=draw) for draw in draws]) if k else None
        condition = one_hot(masks[i : i + batch]).to(device)
        out = generator(condition, noise if noise is None else noise.to(device))
        out = ((out + 1) * 127.5).round().to("cpu", torch.uint8)  # (B, 3, S, S)
        yield from out.permute(0, 2, 3, 1).contiguous().numpy()


def save(generator: nn.Module, folder):
    """Write `model.safetensors` and `config.json` (the constructor's arguments) into `folder`."""
    with atomic_write(Path(folder) / "model.safetensors") as temporary:
        save_model(generator, temporary)
    write_json(Path(folder) / "config.json", generator.config)


def load(folder) -> nn.Module:
    """The generator that `save` wrote, on the CPU; InputError if the folder holds none.

    Its weights lie in memory as in training: another layout can change an image by a grey level.
    """
    config, path = read_json(Path(folder) / "config.json"), Path(folder) / "model.safetensors"
    if config is None or not path.exists():
        raise InputError(folder, "no Pix2PixHD generator is saved here", "train it first")
    generator = (LocalEnhancer if "n_enhancers" in config else GlobalGenerator)(**config)
    load_model(generator, path)
    return generator.to(memory_format=torch.channels_last).eval()
