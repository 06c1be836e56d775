"""DCSAU-Net, a segmentation network with split attention, one of the two in the paper.

Paper: Xu et al. 2023, "DCSAU-Net: A deeper and more compact split-attention U-Net for medical
image segmentation", Computers in Biology and Medicine 154. Reference implementation:
github.com/xq141839/DCSAU-Net at 40b796e. An independent implementation of the same function:
parameters carry the names of its checkpoints, so that weights can be exchanged in both directions.
One thing differs: there, all models of a process share the weights of encoder and decoder through
a module-level object; here, every model has its own.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from lesionlib.engine.errors import InputError

STEM = 64  # channels at full resolution
# (channels in, bottleneck width, whether the first block smooths) of the stages, from full
# resolution down and up again. A stage returns four times its bottleneck width.
ENCODER = ((64, 32, False), (128, 64, True), (256, 128, True), (512, 128, True))
DECODER = ((1024, 64, True), (512, 32, True), (256, 16, True), (128, 16, False))
REDUCTION = 2 ** len(ENCODER)


class PrimaryFeatures(nn.Module):
    """Stem ("PFC"): a 7x7, a residual depthwise 7x7 and a 1x1 convolution.

    (B, in_channels, H, W) to (B, channels, H, W). ReLU comes before batch normalisation.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.input_layer = self._unit(in_channels, channels, 7)
        self.depthwise = self._unit(channels, channels, 7, groups=channels)
        self.pointwise = self._unit(channels, channels, 1)

    @staticmethod
    def _unit(in_channels, channels, kernel, groups=1):
        conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, groups=groups)
        return nn.Sequential(conv, nn.ReLU(inplace=True), nn.BatchNorm2d(channels))

    def forward(self, x):
        x = self.input_layer(x)
        return self.pointwise(x + self.depthwise(x))


class SplitAttention(nn.Module):
    """Two branches, the second one convolution deeper, mixed by a softmax per channel.

    (B, width, H, W) to the same shape. After Zhang et al. 2020 (ResNeSt, arXiv 2004.08955),
    radix 2; feeding the first branch into the second is DCSAU-Net's addition.
    """

    def __init__(self, width: int):
        super().__init__()
        hidden = max(width // 2, 32)
        self.conv = nn.Conv2d(width, 2 * width, 3, padding=1, groups=2, bias=False)
        self.bn0 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, 2 * width, 1)

    def forward(self, x):
        first, second = F.relu(self.bn0(self.conv(x))).chunk(2, dim=1)  # (B, width, H, W) each
        second = F.relu(self.bn2(self.conv2(first + second)))
        pooled = (first + second).mean((2, 3), keepdim=True)  # (B, width, 1, 1)
        scores = self.fc2(F.relu(self.bn1(self.fc1(pooled))))  # (B, 2 width, 1, 1)
        share = scores.unflatten(1, (2, -1)).softmax(dim=1)  # (B, 2, width, 1, 1)
        return share[:, 0] * first + share[:, 1] * second


class Bottleneck(nn.Module):
    """Residual block 1x1, split attention, 1x1: (B, in_channels, H, W) to (B, 4 width, H, W).

    `smooth` adds a 3x3 mean (with zero padding) after the attention; `project` puts a 1x1
    convolution on the skip path, needed when the number of channels changes.
    """

    def __init__(self, in_channels: int, width: int, smooth: bool, project: bool):
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = SplitAttention(width)
        self.smooth = nn.AvgPool2d(3, stride=1, padding=1) if smooth else nn.Identity()
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = nn.Identity()
        if project:  # the checkpoints number these layers from 1
            projection = nn.Conv2d(in_channels, out, 1, bias=False)
            self.downsample = nn.Sequential(nn.Identity(), projection, nn.BatchNorm2d(out))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.smooth(self.conv2(y))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def stage(in_channels: int, width: int, smooth: bool) -> nn.Sequential:
    """Two bottlenecks; the first changes the number of channels to 4 width."""
    first = Bottleneck(in_channels, width, smooth, project=in_channels != 4 * width)
    return nn.Sequential(first, Bottleneck(4 * width, width, smooth=False, project=False))


def join(skip, x):
    """Upsample x (B, C, h, w) bilinearly by 2 and append it to the channels of skip."""
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    return torch.cat([skip, x], dim=1)


class DCSAUNet(nn.Module):
    """DCSAU-Net: float (B, in_channels, H, W) to logits (B, n_classes, H, W).

    H and W must be multiples of 16, and in training B must be at least 2 (the attention
    normalises pooled features, one value per channel and image); else ValueError. No sigmoid
    or softmax is applied. 2,598,785 parameters for three channels and one class.
    """

    def __init__(self, in_channels: int = 3, n_classes: int = 1):
        super().__init__()
        self.in_channels = in_channels
        self.pfc = PrimaryFeatures(in_channels, STEM)
        self.down1, self.down2, self.down3, self.down4 = (stage(*sizes) for sizes in ENCODER)
        self.up1, self.up2, self.up3, self.up4 = (stage(*sizes) for sizes in DECODER)
        self.out_conv = nn.Conv2d(STEM, n_classes, 1)
        self._initialise()

    def _initialise(self):
        """Encoder and decoder: N(0, 2 / (kernel area x channels out)); the rest as PyTorch does."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and name.startswith(("down", "up")):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))

    def _check(self, x):
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"DCSAUNet takes (B, {self.in_channels}, H, W); the input is {tuple(x.shape)}"
            )
        height, width = x.shape[2:]
        if height % REDUCTION or width % REDUCTION or not x.numel():
            raise ValueError(
                f"DCSAUNet halves the image {len(ENCODER)} times: height and width must be "
                f"multiples of {REDUCTION}; they are {height} and {width}"
            )
        if self.training and len(x) < 2:
            raise ValueError("DCSAUNet cannot be trained with a batch of one image")

    def forward(self, x):
        self._check(x)
        x0 = self.pfc(x)  # (B, 64, H, W)
        x1 = self.down1(F.max_pool2d(x0, 2))  # (B, 128, H/2, W/2)
        x2 = self.down2(F.max_pool2d(x1, 2))  # (B, 256, H/4, W/4)
        x3 = self.down3(F.max_pool2d(x2, 2))  # (B, 512, H/8, W/8)
        y = self.down4(F.max_pool2d(x3, 2))  # (B, 512, H/16, W/16)
        y = self.up1(join(x3, y))  # (B, 256, H/8, W/8)
        y = self.up2(join(x2, y))  # (B, 128, H/4, W/4)
        y = self.up3(join(x1, y))  # (B, 64, H/2, W/2)
        y = self.up4(join(x0, y))  # (B, 64, H, W)
        return self.out_conv(y)


def load_reference_state_dict(model: DCSAUNet, state_dict: dict) -> DCSAUNet:
    """Load a state dict of the reference implementation (593 keys for any model of it).

    InputError names the keys that are missing, superfluous or of another shape.
    """
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise InputError(
            type(model).__name__,
            f"the checkpoint does not fit ({error})",
            "give the state dict of a DCSAU-Net with the same channels and classes",
        ) from error
    return model
