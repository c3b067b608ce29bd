"""What the networks over codes have in common.

A code network gives the probabilities of a map of codes by the chain rule, code by code in reading order (left to
right, then down):

    p(codes) = prod_t p(code_t | code_1 .. code_{t-1}, what is told)

Trained, all factors come from one pass over the whole map. Drawing walks from code to code and keeps what was computed
on the way; the walk's logits are those of the pass, up to rounding.
"""

from typing import Protocol

from torch import Tensor, nn

from moyai.batch import Cond
from moyai.nets.layers import ResBlock

NOTHING = Cond()


class Walk(Protocol):
    """A map being drawn, code by code."""

    def __call__(self, code: Tensor | None) -> Tensor:
        """The logits of the next code, (B, codes); `code` is the one before it, (B,) int64, None at first."""


class CodeNet(Protocol):
    """A network over maps of codes 0 .. codes - 1 of one shape. Implementations are modules."""

    codes: int
    shape: tuple[int, int]

    def __call__(self, codes: Tensor, cond: Cond = NOTHING) -> Tensor:
        """(B, h, w) int64 to the logits of every code given those before it, (B, codes, h, w)."""

    def walk(self, count: int, cond: Cond = NOTHING) -> Walk:
        """Begins to draw `count` maps."""


class Guide(nn.Module):
    """Maps known beforehand, of the codes' size, as a network takes them: (B, channels, h, w) -> (B, width, h, w).

    Every place sees them on all sides, up to five places away: they are no codes to come.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.residual = nn.Sequential(ResBlock(width, width), ResBlock(width, width))

    def forward(self, maps: Tensor) -> Tensor:
        return self.residual(self.conv(maps))
