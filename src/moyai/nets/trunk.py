"""A small convolutional trunk: pictures to features, fast enough to be trained on the user's own data in minutes.

Four stages of two 3 x 3 convolutions, each with BatchNorm and ReLU; every stage after the first halves the sides and
doubles the channels. The average of the last map over its places is the vector that extractors of our own compare
pictures by; the four maps themselves are what the perceptual distance compares.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

WIDTH = 16  # channels of the first stage; the last has eight times as many
LARGEST = 64  # larger sides are averaged down to at most this before the vector is made
_LAYERS = 3  # modules a convolution: itself, BatchNorm, ReLU; two of them make a stage


class Trunk(nn.Module):
    """(B, C, H, W) in [-1, 1] -> (B, 8 width): four stages of two 3 x 3 convolutions, then the average over places."""

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        widths = (width, 2 * width, 4 * width, 8 * width)
        stages: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip((channels, *widths), widths, strict=False)):
            stages += _convolution(inputs, outputs, 1 if i == 0 else 2) + _convolution(outputs, outputs, 1)
        self.stages = nn.Sequential(*stages)

    def features(self, x: Tensor) -> list[Tensor]:
        """The map after each stage, at the full size of x: (B, width 2^i, H / 2^i, W / 2^i), sides rounded up."""
        maps = []
        for i, layer in enumerate(self.stages, start=1):
            x = layer(x)
            if i % (2 * _LAYERS) == 0:
                maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        if (shrink := math.ceil(max(x.shape[2:]) / LARGEST)) > 1:
            x = F.avg_pool2d(x, shrink, ceil_mode=True)
        return self.stages(x).mean((2, 3))


class FoldedTrunk(nn.Module):
    """A trained trunk's `features` in evaluation mode, a third cheaper: each BatchNorm is folded into its convolution,
    and maps lie channels last. A copy: the trunk it is made of stays as it is."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        frozen = list(copy.deepcopy(trunk).eval().requires_grad_(False).stages)
        self.convolutions = nn.ModuleList()
        for convolution, norm in zip(frozen[::_LAYERS], frozen[1::_LAYERS], strict=True):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                self.convolutions.append(fuse_conv_bn_eval(convolution, norm))

    def features(self, x: Tensor) -> list[Tensor]:
        """As `Trunk.features`."""
        maps = []
        for i, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(x.contiguous(memory_format=torch.channels_last)), inplace=True)
            if i % 2:
                maps.append(x)
        return maps


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
