"""Nearest neighbours under a bound on memory, and what they say of a set of samples: fidelity apart from variety.

With B(r) the ball around a feature r that reaches to its k-th nearest neighbour in its own set, real features r_i
(i = 1 .. N) and fake ones f_j (j = 1 .. M):

    precision = share of f_j in any B(r_i)          recall   = share of r_i in any B(f_j)
    density   = number of pairs f_j in B(r_i), divided by k M        coverage = share of B(r_i) that hold any f_j

Precision and recall: Kynkaanniemi et al. 2019, eq. 1-2 (k = 3); density and coverage: Naeem et al. 2020, eq. 3-4
(k = 5), which one outlier with its large ball cannot raise. All are shares, 0 to 1, but density, which is about 1 for
equal distributions and may be more. A point on the border is inside, and a feature is no neighbour of itself.
All depend on the counts: compare at the same ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moyai.errors import DataError
from moyai.evaluation.values import Features, Value, Z, same_source, share

MEMORY = 1 << 28  # bytes for the distances in hand
# |x|^2 + |y|^2 - 2 x.y keeps no digit of a squared distance below about 1e-14 of the sum: such points are the same.
SAME = 1e-12


def squared_blocks(x: Tensor, y: Tensor, memory: int = MEMORY) -> Iterator[tuple[slice, slice, Tensor]]:
    """The squared distances of x (N, D) to y (M, D) block by block, with the rows and columns each block stands for.

    float64; each block and the copies it is made from take at most about `memory` bytes.
    """
    dimensions = x.shape[1]
    shift = y[: max(1, memory // (16 * dimensions))].double().mean(0)  # near the middle fewest digits are lost
    side = max(1, math.isqrt(memory // 32))  # the block, and as much again for what it is made from
    side = min(side, max(1, memory // (32 * dimensions)))
    for start in range(0, len(y), side):
        columns = slice(start, min(start + side, len(y)))
        theirs = y[columns].double() - shift
        their_norms = theirs.square().sum(1)
        for begin in range(0, len(x), side):
            rows = slice(begin, min(begin + side, len(x)))
            mine = x[rows].double() - shift
            norms = mine.square().sum(1)[:, None] + their_norms  # (n, m)
            squared = torch.addmm(norms, mine, theirs.T, alpha=-2)
            squared[squared < norms.mul_(SAME)] = 0.0
            yield rows, columns, squared


def nearest(
    queries: Tensor,
    points: Tensor,
    k: int = 1,
    *,
    same: bool = False,
    query_groups: Tensor | None = None,
    point_groups: Tensor | None = None,
    memory: int = MEMORY,
) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query: distances (N, k), ascending, float64, and numbers (N, k), int64.

    same: queries and points are the same set, and none is its own neighbour. Groups ((N,), (M,) int64): a point of the
    query's own group does not count; where too few others are left the distance is infinite and the number -1.
    """
    if not 1 <= k <= len(points) - int(same):
        others = len(points) - int(same)
        raise DataError(f"{k} neighbour(s) were asked of {others} other picture(s); take more pictures or a smaller k")
    distances = torch.full((len(queries), k), torch.inf, dtype=torch.float64)
    numbers = torch.full((len(queries), k), -1, dtype=torch.int64)
    for rows, columns, squared in squared_blocks(queries, points, memory):
        if same:
            i, j = torch.arange(rows.start, rows.stop), torch.arange(columns.start, columns.stop)
            squared[i[:, None] == j] = torch.inf
        if query_groups is not None and point_groups is not None:
            squared[query_groups[rows, None] == point_groups[columns]] = torch.inf
        # The least of a row is found in one pass, several of them in many.
        best, where = squared.min(1, True) if k == 1 else squared.topk(min(k, squared.shape[1]), 1, largest=False)
        where = torch.where(best.isinf(), -1, where + columns.start)
        both = torch.cat([distances[rows], best], 1)
        distances[rows], kept = both.topk(k, dim=1, largest=False)
        numbers[rows] = torch.cat([numbers[rows], where], 1).gather(1, kept)
    return distances.sqrt(), numbers


@dataclass(frozen=True)
class Manifold:
    """Fidelity (precision, density) and variety (recall, coverage) of a set of samples."""

    precision: Value
    recall: Value
    density: Value
    coverage: Value


def manifold(
    samples: Features,
    reference: Features,
    *,
    k: int = 3,
    k_density: int = 5,
    memory: int = MEMORY,
) -> Manifold:
    """Precision and recall with k neighbours, density and coverage with `k_density`.

    The intervals are those of a share of so many pictures (of a mean, for density), with the balls taken as given.
    """
    same_source(samples.source, reference.source)
    most = max(k, k_density)
    fake, real = samples.values, reference.values
    real_distances = nearest(real, real, most, same=True, memory=memory)[0].square()
    fake_radius = nearest(fake, fake, k, same=True, memory=memory)[0][:, k - 1].square()
    real_radius, wide = real_distances[:, k - 1], real_distances[:, k_density - 1]

    precise = torch.zeros(len(fake), dtype=torch.bool)
    recalled, covered = torch.zeros(len(real), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    balls = torch.zeros(len(fake), dtype=torch.int64)  # how many real balls each sample lies in
    for rows, columns, squared in squared_blocks(fake, real, memory):
        precise[rows] |= (squared <= real_radius[columns]).any(1)
        recalled[columns] |= (squared <= fake_radius[rows, None]).any(0)
        inside = squared <= wide[columns]
        balls[rows] += inside.sum(1)
        covered[columns] |= inside.any(0)

    m, n, source = len(fake), len(real), samples.source
    each = balls.double() / k_density
    density, error = float(each.mean()), float(each.std()) / math.sqrt(m)
    return Manifold(
        share(f"precision (k = {k})", int(precise.sum()), m, reference=n, source=source, biased=True),
        _of_reference(f"recall (k = {k})", recalled, m, samples),
        Value(
            f"density (k = {k_density})", density, m, n, source, density - Z * error, density + Z * error, error, True
        ),
        _of_reference(f"coverage (k = {k_density})", covered, m, samples),
    )


def _of_reference(metric: str, hits: Tensor, count: int, samples: Features) -> Value:
    """A share of the reference pictures, though the samples are what is judged."""
    n = len(hits)
    found = share(metric, int(hits.sum()), n, reference=n, source=samples.source)
    return Value(metric, found.value, count, n, samples.source, found.low, found.high, found.error, biased=True)
