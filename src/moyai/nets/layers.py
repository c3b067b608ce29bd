"""The parts the convolutional networks are made of; attention has a chapter of its own (nets/attention.py).

`ResBlock` (He et al. 2016, in the pre-normalised form of Ho et al. 2020):

    h = conv(silu(norm(x))) + linear(emb),   out = skip(x) + conv(dropout(silu(norm(h))))

where the linear layer may scale and shift the second norm's output instead (Dhariwal and Nichol 2021), and planes of a
condition may scale and shift both, place by place (SPADE, Park et al. 2019).

Modules whose last layer starts at zero are the identity at first, so that a fresh network is a known function and
gradients are well scaled from step one.

Every module takes maps of any height and width and any memory format, in float32 or under autocast.
"""

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.nets.modulation import Spade, modulated

M = TypeVar("M", bound=nn.Module)


def timestep_embedding(time: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of times on the scale 0..1000, cos first, then sin: (B,) -> (B, width), float32."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=time.device) / half
    angles = time.float()[:, None] * torch.exp(-math.log(max_period) * exponents)  # (B, half)
    return F.pad(torch.cat((angles.cos(), angles.sin()), dim=1), (0, width - 2 * half))


def groups_for(channels: int, at_most: int) -> int:
    """The largest divisor of `channels` that is at most `at_most`."""
    return next(g for g in range(min(channels, at_most), 0, -1) if channels % g == 0)


def zeroed(module: M) -> M:
    """The module with all its parameters at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else needs: in place where no gradient will ask for its input."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """Two convolutions around a residual; `emb` (B, time_width), already activated, shifts what lies between them.

    scale_shift: it scales and shifts the second norm's output instead. planes: channels of the planes that `forward`
    may be given for SPADE. resample: the block also halves the map (sides rounded up), or doubles it, or brings it
    to a given size.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        time_width: int | None = None,
        groups: int = 32,
        dropout: float = 0.0,
        eps: float = 1e-5,
        scale_shift: bool = False,
        planes: int | None = None,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1 = nn.GroupNorm(groups_for(channels_in, groups), channels_in, eps)
        self.spade1 = None if planes is None else Spade(channels_in, planes)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.emb = None if time_width is None else nn.Linear(time_width, channels_out * (2 if scale_shift else 1))
        self.norm2 = nn.GroupNorm(groups_for(channels_out, groups), channels_out, eps)
        self.spade2 = None if planes is None else Spade(channels_out, planes)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(
        self,
        x: Tensor,
        emb: Tensor | None = None,
        planes: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        h = self.norm1(x)
        if self.spade1 is not None and planes is not None:
            h = self.spade1(h, planes)
        h, x = self._resized(silu(h), size), self._resized(x, size)
        h = self.conv1(h)
        told = None if self.emb is None or emb is None else self.emb(emb)[:, :, None, None]
        if told is not None and not self.scale_shift:
            h = h.add_(told)  # in place: no backward asks for a convolution's output
        h = self.norm2(h)
        if self.spade2 is not None and planes is not None:
            h = self.spade2(h, planes)
        if told is not None and self.scale_shift:
            h = modulated(h, *told.chunk(2, dim=1))
        h = self.conv2(self.dropout(silu(h)))
        return h + (x if self.skip is None else self.skip(x))

    def _resized(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        if self.resample is None:
            return x
        if self.resample == "down":
            return F.avg_pool2d(x, 2, ceil_mode=True)
        return F.interpolate(x, size=size or (2 * x.shape[-2], 2 * x.shape[-1]), mode="nearest")


class Downsample(nn.Module):
    """A convolution of stride 2: sides n become ceil(n / 2).

    The centred form pads all sides by one. The other pads only to the right and below, as the published
    autoencoders do, and once more where a side is odd, so that no row is lost.
    """

    def __init__(self, channels: int, *, centred: bool = True) -> None:
        super().__init__()
        self.centred = centred
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if centred else 0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.centred:
            h, w = x.shape[-2:]
            x = F.pad(x, (0, 1 + w % 2, 0, 1 + h % 2))
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to a given size (twice the side when none is given), then a 3x3 convolution.

    For exactly twice the side both are one transposed convolution of size 4 and stride 2, which reads each small
    pixel once where the plain form multiplies four copies of it: 16 products an output pixel group instead of 36.
    Along one axis, with kernel (a, b, c), the even outputs are a x[i-1] + (b + c) x[i] and the odd ones
    (a + b) x[i] + c x[i+1], so that its kernel is (c, b + c, a + b, a).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        h, w = x.shape[-2:]
        if size is None or tuple(size) == (2 * h, 2 * w):
            return F.conv_transpose2d(x, self._folded(), self.conv.bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, size=size, mode="nearest"))

    def _folded(self) -> Tensor:
        weight = self.conv.weight  # (out, in, 3, 3)
        for axis in (2, 3):
            a, b, c = weight.unbind(axis)
            weight = torch.stack((c, b + c, a + b, a), dim=axis)
        return weight.transpose(0, 1)  # (in, out, 4, 4)
