"""The segmentation networks, their loss, their inputs and their augmentation."""

import torch
from torch import nn
from torch.nn import functional

from lesionlib.segmentation.dcsaunet import DCSAUNet

NETWORKS = ("unet", "dcsaunet")
DECODER = (64, 48, 32, 16, 16)  # narrower than smp's default (256, 128, 64, 32, 16)
MEAN, STD = 0.5, 0.25  # fixed, not computed from the data


def build(network: str, encoder: str = "resnet18", decoder_channels=DECODER) -> nn.Module:
    """An untrained network, float (B, 3, S, S) to logits (B, 1, S, S); ValueError if unknown.

    "unet" is segmentation-models-pytorch's without pretrained weights, with a stage per entry of
    `decoder_channels`; "dcsaunet" (S a multiple of 16) ignores the options.
    """
    if network == "unet":
        import segmentation_models_pytorch as smp  # slow import (15 s), needed only for the U-Net

        model = smp.Unet(
            encoder,
            encoder_depth=len(decoder_channels),
            encoder_weights=None,
            decoder_channels=tuple(decoder_channels),
            in_channels=3,
            classes=1,
        )
    elif network == "dcsaunet":
        model = DCSAUNet(3, 1)
    else:
        raise ValueError(f"unknown network '{network}'; there are: {', '.join(NETWORKS)}")
    return model.to(memory_format=torch.channels_last)  # a fifth faster on a CPU


def dice_loss(logits: torch.Tensor, target: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """Soft Dice loss, a scalar in [0, 1], of logits and 0/1 targets of one shape.

    Sums run over the pixels of the whole batch: large lesions weigh more than small ones.
    Equals segmentation-models-pytorch's DiceLoss with half of `smooth` (in pixels).
    """
    probability = logits.sigmoid()
    both, total = (probability * target).sum(), probability.sum() + target.sum()
    return 1 - (2 * both + smooth) / (total + smooth)


def augment(pairs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each of (B, C, S, S) in one of eight orientations, drawn uniformly."""
    bits = torch.rand((3, len(pairs), 1, 1, 1), generator=generator) < 0.5
    down, across, diagonal = bits.to(pairs.device)  # each (B, 1, 1, 1)
    pairs = torch.where(down, pairs.flip(2), pairs)
    pairs = torch.where(across, pairs.flip(3), pairs)
    return torch.where(diagonal, pairs.transpose(2, 3), pairs)


TURN, SCALE, SHIFT, COLOUR = 180.0, (0.8, 1.25), 0.1, 0.2  # ranges of classical augmentation


def augment_classically(pairs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Classical augmentation of uint8 (B, 4, S, S), image and mask (0/1), as float32.

    On top of `augment`: rotation by any angle, scaling by 0.8 to 1.25, shifts of up to a tenth of
    the side (mirrored at the border), brightness, contrast and saturation by up to a fifth.
    """
    pairs = augment(pairs, generator).float()
    n = len(pairs)
    draw = torch.rand((n, 7), generator=generator).to(pairs.device)
    angle = torch.deg2rad(TURN * (2 * draw[:, 0] - 1))
    scale = SCALE[0] * (SCALE[1] / SCALE[0]) ** draw[:, 1]
    shift = 2 * SHIFT * (2 * draw[:, 2:4] - 1)  # the square spans -1 to 1
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(n, 2, 3)
    grid = functional.affine_grid(matrix, pairs.shape, align_corners=False)
    pairs = functional.grid_sample(pairs, grid, padding_mode="reflection", align_corners=False)
    light, contrast, colour = ((1 + COLOUR * (2 * draw[:, 4:] - 1)).T)[..., None, None, None]
    image = pairs[:, :3] * light
    image = (image - image.mean((1, 2, 3), keepdim=True)) * contrast + image.mean(
        (1, 2, 3), keepdim=True
    )
    grey = image.mean(1, keepdim=True)
    image = ((image - grey) * colour + grey).clamp(0, 255)
    return torch.cat([image, (pairs[:, 3:] > 0.5).float()], dim=1)


AUGMENTATIONS = {"flips": augment, "classical": augment_classically}


def inputs(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, S, S) of 0 to 255 as input of the networks: (x / 255 - MEAN) / STD."""
    return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
