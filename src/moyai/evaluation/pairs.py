"""Squared distances of many vectors to many, at the price of float32 and with the answers of float64.

With rows x_i and columns y_j about their middle, one product of matrices in float32 gives

    sq_ij = |x_i - y_j|^2 = |x_i|^2 + |y_j|^2 - 2 x_i . y_j,      wrong by at most  c (|x_i|^2 + |y_j|^2)           (1)

with c = (D + 16) 2^-23, the rounding of a sum of D products (Higham 2002, section 3.1). So with

    low_ij = (1 - c) |y_j|^2 - 2 x_i . y_j,      base_i = (1 - c) |x_i|^2,      slack_ij = 2 c (|x_i|^2 + |y_j|^2)

which takes no second pass over the block,

    low_ij + base_i  <=  sq_ij  <=  low_ij + base_i + slack_ij                                                      (2)

Pairs that (2) rules out are the most by far. Of the others, those whose side of a limit (2) leaves open are measured
again, as the sum of squared differences in float64. So no answer depends on the rounding of (1).

Where many points lie on one another (a model that draws one picture only), (2) leaves open too much to be measured
pair by pair; such a block is computed by (1) in float64 as a whole (`in_float64`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import Tensor

# In float64, (1) keeps no digit of a squared distance below about 1e-14 of the sum: such points are the same.
SAME = 1e-12
_LARGEST = torch.finfo(torch.float32).max
_UP = torch.tensor(torch.inf)


@dataclass(frozen=True, eq=False)
class Block:
    """The bounds (2) of some of the rows x (N, D) against some of the columns y (M, D), of any type of numbers.

    Pairs are told by their numbers among all rows and columns, (p,) int64 each. `low` may be set to infinity where a
    pair is not to count.
    """

    x: Tensor
    y: Tensor
    rows: slice
    columns: slice
    shift: Tensor  # (D,) float64, the middle
    low: Tensor  # (n, m) float32
    base: Tensor  # (n,) float64
    row_slack: Tensor  # (n,) float64
    column_slack: Tensor  # (m,) float64
    memory: int

    def at_most(self, limit: Tensor) -> tuple[Tensor, Tensor]:
        """All pairs of which sq_ij may be at most limit_i, (N,) float64; some are more."""
        return self._pairs(self.low <= self._border(limit))

    def count_at_most(self, limit: Tensor) -> int:
        """How many these are."""
        return int(np.count_nonzero((self.low <= self._border(limit)).numpy()))

    def _border(self, limit: Tensor) -> Tensor:
        return torch.nextafter((limit[self.rows] - self.base).float(), _UP).clamp_max(_LARGEST)[:, None]

    def at_most_by_column(self, limit: Tensor) -> tuple[Tensor, Tensor]:
        """All pairs of which sq_ij may be at most limit_j, (M,) float64."""
        border = torch.nextafter(-self.base.float(), _UP)
        return self._pairs(self.low - limit[self.columns].float() <= border[:, None])

    def _pairs(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        i, j = np.divmod(np.flatnonzero(chosen.numpy()), chosen.shape[1])  # ten times as fast as torch's nonzero
        return torch.from_numpy(i + self.rows.start), torch.from_numpy(j + self.columns.start)

    def measured(self, i: Tensor, j: Tensor, *limits: Tensor) -> Tensor:
        """Of pairs, numbers (p,) float64 that lie on the same side of each of the limits (p,) as sq_ij does: at most
        the limit where sq_ij is, and more where it is more."""
        n, m = i - self.rows.start, j - self.columns.start
        least = self.low[n, m].double() + self.base[n]
        most = least + self.row_slack[n] + self.column_slack[m]
        left_open = torch.zeros(len(i), dtype=torch.bool)
        for limit in limits:
            left_open |= (least <= limit) & (limit < most)
        least[left_open] = self.exact(i[left_open], j[left_open])
        return least

    def exact(self, i: Tensor, j: Tensor) -> Tensor:
        """sq_ij of pairs, (p,) float64; infinite where `low` was set so."""
        found = torch.empty(len(i), dtype=torch.float64)
        at_once = max(1, self.memory // (32 * self.x.shape[1]))
        for start in range(0, len(i), at_once):
            some = slice(start, start + at_once)
            one, other = (values.numpy()[k[some].numpy()] for values, k in ((self.x, i), (self.y, j)))
            apart = torch.from_numpy(np.subtract(one, other, dtype=np.float64))
            found[some] = apart.square_().sum(1)
        found[self.low[i - self.rows.start, j - self.columns.start].isinf()] = torch.inf
        return found

    def in_float64(self) -> Tensor:
        """All sq_ij of the block, (n, m), by (1) in float64; infinite where `low` was set so."""
        mine, theirs = self.x[self.rows].double() - self.shift, self.y[self.columns].double() - self.shift
        norms = mine.square().sum(1)[:, None] + theirs.square().sum(1)
        squared = torch.addmm(norms, mine, theirs.T, alpha=-2)
        squared.masked_fill_(squared < norms.mul_(SAME), 0.0)
        return squared.masked_fill_(self.low.isinf(), torch.inf)


def blocks(x: Tensor, y: Tensor, memory: int) -> Iterator[Block]:
    """All rows x (N, D) against all columns y (M, D), D the same, block by block; each takes at most `memory` bytes
    with what it is made from."""
    dimensions = x.shape[1]
    c = (dimensions + 16) * 2.0**-23
    shift = y[: max(1, memory // (32 * dimensions))].double().mean(0)  # near the middle fewest digits are lost
    side = max(1, isqrt(memory // 32))
    high, wide = (max(1, min(n, memory // (64 * dimensions))) for n in (side // 4, 2 * side))
    for start in range(0, len(y), wide):
        columns = slice(start, min(start + wide, len(y)))
        theirs = y[columns].double() - shift
        their_norms = theirs.square().sum(1)
        bias, theirs = ((1 - c) * their_norms).float(), theirs.float()
        for begin in range(0, len(x), high):
            rows = slice(begin, min(begin + high, len(x)))
            mine = x[rows].double() - shift
            norms = mine.square().sum(1)
            low = torch.addmm(bias, mine.float(), theirs.T, alpha=-2)
            slack = 2 * c * norms, 2 * c * their_norms
            yield Block(x, y, rows, columns, shift, low, (1 - c) * norms, *slack, memory)
