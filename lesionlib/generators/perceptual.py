"""Perceptual networks that need no download: VGG16 and AlexNet, trained on ImageNet.

Their weights come in the package `stlpips-pytorch` (BSD-2-Clause; Ghildyal and Liu 2022,
"Shift-tolerant perceptual similarity metric", arXiv 2207.13686), which is read, not imported. The
networks differ from the usual ones where they reduce: a weighted mean follows each maximum
("blur-pooled", Zhang 2019, arXiv 1904.11486), and AlexNet's first convolution has stride 1.
"""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lesionlib.engine.errors import InputError
from lesionlib.engine.training import device

PACKAGE = "stlpips_pytorch"
LOSS_NAME, DISTANCE_NAME = "VGG16, blur-pooled", "LPIPS (AlexNet, blur-pooled)"
LOSS_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of relu1_2, 2_2, 3_3 and 4_2
LOSS_FACTOR = 10.0  # without it feature matching outweighs the loss 40 times (64 px images)
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet, in [-1, 1]


class BlurPool(nn.Module):
    """Half the side, rounded, plus one: binomial means of 3x3 with two reflected border pixels."""

    def forward(self, x):
        x = F.pad(x, (2, 2, 2, 2), mode="reflect")
        return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1), 2)  # 1 1 convolved with 1 1 is 1 2 1


def _conv(in_channels, channels, side=3, padding=1):
    return [nn.Conv2d(in_channels, channels, side, padding=padding), nn.ReLU()]


def _pool(side):
    return [nn.MaxPool2d(side, stride=1), BlurPool()]


def _vgg16():
    """The slices up to relu1_2, 2_2, 3_3, 4_3 and 5_3."""
    slices, c = [], 3
    for width, number in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers = _pool(2) if slices else []
        for _ in range(number):
            layers, c = [*layers, *_conv(c, width)], width
        slices.append(layers)
    return slices


def _alexnet():
    """The slices up to the five ReLUs."""
    convolution, relu = _conv(3, 64, 11, 2)
    return [
        [convolution, BlurPool(), relu],
        [*_pool(3), *_conv(64, 192, 5, 2)],
        [*_pool(3), *_conv(192, 384)],
        _conv(384, 256),
        _conv(256, 256),
    ]


def _read(name: str) -> dict:
    """The state dict of a network, "vgg" or "alex"; InputError names the package without it."""
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(spec.submodule_search_locations[0]) if spec else Path(PACKAGE)
    path = folder / "weights" / "vST0.0" / f"{name}_shift_tolerant.pth"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            path,
            f"no weights of a perceptual network could be read ({error})",
            "install the package stlpips-pytorch: ./run_all.sh does so",
        ) from error


class Trunk(nn.Module):
    """The slices of VGG16 ("vgg") or AlexNet ("alex") with their weights, in eval mode, locked.

    Takes images (B, 3, H, W) in [-1, 1], of 24 pixels or more; returns the features after each
    slice (B, C, h, w), the first `n_slices` of them. `heads` are the weights (C,) of their
    channels in LPIPS (Zhang et al. 2018).
    """

    def __init__(self, name: str, n_slices: int = 5):
        super().__init__()
        slices = {"vgg": _vgg16, "alex": _alexnet}[name]()[:n_slices]
        self.slices = nn.ModuleList(nn.Sequential(*layers) for layers in slices)
        state = _read(name)
        own = [k for k in state if k.startswith("net.") and not k.endswith("filt")]
        names = list(self.state_dict())
        self.load_state_dict({n: state[k] for n, k in zip(names, own, strict=False)})
        heads = [state[f"lin{i}.model.1.weight"].flatten() for i in range(n_slices)]
        self.heads = nn.ParameterList(heads)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, x):
        x, found = (x - self.mean) / self.std, []
        for part in self.slices:
            x = part(x)
            found.append(x)
        return found


class PerceptualLoss(nn.Module):
    """Weighted mean absolute differences of VGG16's relu1_2, 2_2, 3_3 and 4_2, times LOSS_FACTOR.

    Takes images (B, 3, H, W) in [-1, 1]; no gradient flows into `real`.
    """

    name = LOSS_NAME

    def __init__(self):
        super().__init__()
        self.trunk = Trunk("vgg", len(LOSS_WEIGHTS))
        self.trunk.slices[-1] = self.trunk.slices[-1][:-2]  # up to relu4_2

    def forward(self, fake, real):
        with torch.no_grad():
            of_real = self.trunk(real)
        parts = zip(LOSS_WEIGHTS, self.trunk(fake), of_real, strict=True)
        total = sum(weight * F.l1_loss(f.float(), r.float()) for weight, f, r in parts)
        return LOSS_FACTOR * total


@torch.no_grad()
def lpips(a: np.ndarray, b: np.ndarray, batch: int = 32) -> np.ndarray:
    """LPIPS distances (N,) of uint8 images a and b (N, S, S, 3): 0 for equal ones.

    Zhang et al. 2018 (arXiv 1801.03924) with the blur-pooled AlexNet and its heads, by which
    DISTANCE_NAME calls it; values are not comparable with those of the original's weights.
    InputError without the package `stlpips-pytorch`.
    """
    trunk, found = Trunk("alex").to(device()), []
    for i in range(0, len(a), batch):
        both = (torch.from_numpy(np.array(x[i : i + batch])).to(device()) for x in (a, b))
        of_a, of_b = (trunk(x.permute(0, 3, 1, 2) / 127.5 - 1) for x in both)
        total = 0.0
        for head, f, g in zip(trunk.heads, of_a, of_b, strict=True):
            f, g = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (f, g))
            total = total + torch.einsum("bchw,c->bhw", (f - g).square(), head).mean((1, 2))
        found.append(total.cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def checkerboard(images: np.ndarray) -> float:
    """How much a pattern with periods of 2 and 4 pixels stands out of images uint8 (N, S, S, 3).

    The mean power of brightness at the frequencies of such a pattern, as transposed convolutions
    leave it (Odena et al. 2016), over that of the frequencies around them: about 1 for real images.
    """
    window = np.hanning(images.shape[1])
    grey = images.mean(axis=3) - images.mean(axis=(1, 2, 3))[:, None, None]
    power = (np.abs(np.fft.fft2(grey * np.outer(window, window))) ** 2).mean(axis=0)
    side = len(power)
    quarters = [(a * side // 4, b * side // 4) for a in range(4) for b in range(4) if a or b]
    peaks, around = [], []
    for row, column in quarters:
        block = np.roll(power, (3 - row, 3 - column), (0, 1))[:7, :7]
        ring = np.ones((7, 7), bool)
        ring[1:6, 1:6] = False
        peaks.append(block[2:5, 2:5].mean())
        around.append(block[ring].mean())
    return float(np.mean(np.divide(peaks, around)))
