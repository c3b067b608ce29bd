"""A grid in place of a codebook (Mentzer et al., "Finite scalar quantization: VQ-VAE made simple", 2024, appendix A.1).

Channel i has L_i levels. With span = (L - 1)(1 - 0.001) / 2, offset = 0 for odd L and 1/2 for even,
width = floor(L / 2),

    z = (tanh(h + tan(offset / span)) span - offset) / width,        value = round(width z) / width

and the code is sum_i (width_i value_i + width_i) prod_{j < i} L_j. Here h is the encoder's output less `centre`, over
`spread`: of each channel the median of the first latents, which is a level (a plain background, or the lack of detail,
is kept as it is), and what lets 99.9 % of them lie where |tanh| < 0.95, so that from the first step on all levels are
in use, as they are of a codebook that starts from k-means (the paper leaves it to the encoder to find the scale, which
a channel of fine detail does not in an hour). `restored` goes back into the encoder's coordinates.

A prior sees z; `quantize` takes any z to its value and a value to itself.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from moyai.errors import ConfigError
from moyai.firststage.config import FSQConfig
from moyai.firststage.quantization import Quantized, rows, straight_through

BOUND_MARGIN = 1e-3  # the paper's eps: how far the bound stays off the outermost rounding edge
WITHIN, EDGE = 0.999, math.atanh(0.95)  # the share of the first latents that lies within this of a grid's middle


class FSQ(nn.Module):
    """A grid: channel i of the latents has `config.levels[i]` levels. ConfigError where the grid has more points than
    64 bits can count.

    `centre` and `spread`, (C, 1, 1), lay it over the encoder's output; `initialised` is whether `initialise` did.
    """

    centre: Tensor
    spread: Tensor
    initialised: Tensor
    levels: Tensor
    basis: Tensor
    span: Tensor
    offset: Tensor
    shift: Tensor
    width: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.config, self.size = config, math.prod(config.levels)
        if self.size >= 2**63:
            raise ConfigError(f"a grid of levels {list(config.levels)} has {self.size} codes; possible: below 2^63")
        self.channels = self.moments = len(config.levels)
        self.register_buffer("centre", torch.zeros(self.channels, 1, 1))
        self.register_buffer("spread", torch.ones(self.channels, 1, 1))
        self.register_buffer("initialised", torch.tensor(False))
        levels = np.array(config.levels)
        span = (levels - 1) * (1 - BOUND_MARGIN) / 2
        offset = np.where(levels % 2 == 1, 0.0, 0.5)
        self._constant("span", span)
        self._constant("offset", offset)
        self._constant("shift", np.tan(offset / span))
        self._constant("width", levels // 2)
        basis = [math.prod(config.levels[:i]) for i in range(self.channels)]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def forward(self, h: Tensor) -> Quantized:
        """h: (B, channels, h, w), the encoder's output, without bounds."""
        reach = (h.float() - self.centre) / self.spread
        z = (torch.tanh(reach + self.shift) * self.span - self.offset) / self.width
        values = straight_through(z, self.quantize(z.detach()))
        return Quantized(z, values, self.codes_of(z), z.new_zeros(len(z)))

    @torch.no_grad()
    def initialise(self, z: Tensor) -> None:
        """Lays the grid over latents z (B, channels, h, w), as `forward` makes them while nothing is laid yet."""
        reach = (
            torch.atanh(((z.double() * self.width + self.offset) / self.span).clamp(-1 + 1e-6, 1 - 1e-6)) - self.shift
        )
        values = rows(reach)
        centre = values.median(0).values
        away = (values - centre).abs().sort(0).values[math.ceil(WITHIN * len(values)) - 1]
        self.centre.copy_(centre[:, None, None])
        self.spread.copy_(torch.where(away > 0, away / EDGE, 1.0)[:, None, None])  # 1: a channel always the same
        self.initialised.fill_(True)

    def restored(self, values: Tensor) -> Tensor:
        """(B, channels, h, w) of the grid to the encoder's outputs that they stand for, the inverse of the bound.

        An outermost level stands for the middle of its tanh. Gradients pass it as the bound's inverse has them there.
        """
        height = (values.float() * self.width + self.offset) / self.span
        most = 1 - 0.5 / (self.levels[:, None, None] - 1)
        height = height + (torch.maximum(torch.minimum(height, most), -most) - height).detach()
        return (torch.atanh(height) - self.shift) * self.spread + self.centre

    def quantize(self, z: Tensor) -> Tensor:
        """(B, channels, h, w) to the nearest levels, in [-1, 1]; it rounds and clips, and does not bound again."""
        return (self._digits(z) - self.width) / self.width

    def codes_of(self, z: Tensor) -> Tensor:
        """(B, channels, h, w) to the numbers of the nearest points of the grid, (B, h, w) int64."""
        return (self._digits(z.detach()).long() * self.basis[:, None, None]).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        """(B, h, w) to the points of those numbers, (B, channels, h, w)."""
        digits = codes[:, None] // self.basis[:, None, None] % self.levels[:, None, None]
        return (digits - self.width) / self.width

    def _digits(self, z: Tensor) -> Tensor:
        """The number of each channel's level, 0 to L - 1, as float32."""
        digits = torch.round(z.float() * self.width) + self.width
        return torch.minimum(digits.clamp_min(0), (self.levels[:, None, None] - 1).float())

    def _constant(self, name: str, values: np.ndarray) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)
