"""Scales and shifts of what is normalised: how a condition reaches into a network without being one of its inputs.

    x -> norm(x) (1 + scale) + shift

with scales and shifts for each channel, made of a vector (adaptive normalisation), or for each channel and place, made
of planes such as a map of regions (SPADE: Park et al. 2019, "Semantic image synthesis with spatially-adaptive
normalization", equation 1). A map that is joined to a network's input is soon washed out by normalisation; here it
speaks again after each one. Both start at zero, where nothing happens.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (1 + scale) + shift: nothing happens where both are zero."""
    return x * (1 + scale) + shift


class Spade(nn.Module):
    """Normalised maps (B, C, h, w), scaled and shifted place by place as planes (B, P, H, W) of any size say.

    The planes are averaged to h x w and go through two convolutions, of which the last starts at zero.
    """

    def __init__(self, channels: int, planes: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(planes, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, 2 * channels, 3, padding=1)  # rows: scales, then shifts
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, planes: Tensor) -> Tensor:
        planes = F.interpolate(planes.to(self.out.weight.dtype), size=x.shape[-2:], mode="area")
        scale, shift = self.out(F.silu(self.hidden(planes))).chunk(2, dim=1)
        return modulated(x, scale, shift)
