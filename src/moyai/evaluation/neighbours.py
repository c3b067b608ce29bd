"""Nearest neighbours under a bound on memory, and what they say of a set of samples: fidelity apart from variety.

With B(r) the ball around a feature r that reaches to its k-th nearest neighbour in its own set, real features r_i
(i = 1 .. N) and fake ones f_j (j = 1 .. M):

    precision = share of f_j in any B(r_i)          recall   = share of r_i in any B(f_j)
    density   = number of pairs f_j in B(r_i), divided by k M        coverage = share of B(r_i) that hold any f_j

Precision and recall: Kynkaanniemi et al. 2019, eq. 1-2 (k = 3); density and coverage: Naeem et al. 2020, eq. 3-4
(k = 5), which one outlier with its large ball cannot raise. All are shares, 0 to 1, but density, which is about 1 for
equal distributions and may be more. A point on the border is inside, and a feature is no neighbour of itself.
All depend on the counts: compare at the same ones.

**Errors** are of other samples, the reference held fixed. Precision is a share of the samples, density a mean over
them. Recall and coverage are shares of the reference, but it is the samples that vary, and one of them may own many
pictures: theirs is the jackknife over samples (Efron and Stein 1981). With R_-i the value without sample i (for recall,
the balls that ended at it or reached beyond it grow to the next neighbour) and u_i = R - R_-i,

    error^2 = (M - 1) / M  sum_i (u_i - mean u)^2                                                                   (1)

which is on average no less than the variance, and up to twice the error in few dimensions. All u_i come of the one walk
over the pairs: a picture's value changes with a sample only if that holds it alone, or if nothing or one ball holds it
and another reaches it when it grows. The interval is Wilson's of as many pictures as have this error.

Distances are taken from `pairs`: as quick as float32, as true as float64.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moyai.errors import DataError
from moyai.evaluation.pairs import Block, blocks
from moyai.evaluation.values import Features, Value, Z, same_source, share

MEMORY = 1 << 28  # bytes for the distances in hand
PAIR = 64  # bytes of a pair that is kept, with what is made of it
CROWDED = 16  # times as many pairs as are asked for: more are not measured one by one


def nearest(
    queries: Tensor,
    points: Tensor,
    k: int = 1,
    *,
    same: bool = False,
    root: bool = True,
    query_groups: Tensor | None = None,
    point_groups: Tensor | None = None,
    memory: int = MEMORY,
) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query: distances (N, k), ascending, float64, and numbers (N, k), int64.

    same: queries and points are the same set, and none is its own neighbour. Groups ((N,), (M,) int64): a point of the
    query's own group does not count; where too few others are left the distance is infinite and the number -1.
    root: False gives squared distances.
    """
    if not 1 <= k <= len(points) - int(same):
        others = len(points) - int(same)
        raise DataError(f"{k} neighbour(s) were asked of {others} other picture(s); take more pictures or a smaller k")
    squared = torch.full((len(queries), k), torch.inf, dtype=torch.float64)
    numbers = torch.full((len(queries), k), -1, dtype=torch.int64)
    for block in blocks(queries, points, memory):
        rows, columns = block.rows, block.columns
        if same:
            both = torch.tensor(range(max(rows.start, columns.start), min(rows.stop, columns.stop)), dtype=torch.int64)
            block.low[both - rows.start, both - columns.start] = torch.inf
        if query_groups is not None and point_groups is not None:
            block.low.masked_fill_(query_groups[rows, None] == point_groups[columns], torch.inf)
        here, which = _nearest_in(block, squared)
        here, order = torch.cat([squared[rows], here], 1).sort(dim=1, stable=True)
        squared[rows], numbers[rows] = here[:, :k], torch.cat([numbers[rows], which], 1).gather(1, order)[:, :k]
    return squared.sqrt() if root else squared, numbers


def _nearest_in(block: Block, known: Tensor) -> tuple[Tensor, Tensor]:
    """The k nearest in one block, squared distances (n, k) and numbers (n, k), with infinite and -1 for none.

    known: (N, k), what was found in other blocks; points farther than these may be left out.
    """
    k = known.shape[1]
    n, m = block.low.shape
    found = torch.full((n, k), torch.inf, dtype=torch.float64)
    numbers = torch.full((n, k), -1, dtype=torch.int64)
    bound = known[:, -1].clone()
    bound[block.rows] = torch.minimum(bound[block.rows], _kth(block, k))
    if block.count_at_most(bound) > CROWDED * n * k:
        found[:, :m], numbers[:, :m] = block.in_float64().topk(min(k, m), 1, largest=False)
        numbers[:, :m] += block.columns.start
        numbers[found.isinf()] = -1
        return found, numbers
    i, j = block.at_most(bound)
    squared = block.exact(i, j)
    order = np.lexsort((j.numpy(), squared.numpy(), i.numpy()))
    i, j, squared = i[order], j[order], squared[order]
    place = torch.arange(len(i)) - torch.searchsorted(i, i)  # within the row
    kept = place < k
    i, place = i[kept] - block.rows.start, place[kept]
    found[i, place], numbers[i, place] = squared[kept], j[kept]
    return found, numbers


def _kth(block: Block, k: int) -> Tensor:
    """No less than the k-th least squared distance in each row of a block, (n,): the largest of some k of the row."""
    n, m = block.low.shape
    if m < k:
        return torch.full((n,), torch.inf, dtype=torch.float64)
    # The least of a row is found in one pass, several of them in many.
    some = block.low.argmin(1, keepdim=True) if k == 1 else block.low.topk(k, 1, largest=False, sorted=False).indices
    i = torch.arange(block.rows.start, block.rows.stop).repeat_interleave(k)
    return block.exact(i, some.flatten() + block.columns.start).view(n, k).amax(1)


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
    radii: Tensor | None = None,
    memory: int = MEMORY,
) -> Manifold:
    """Precision and recall with k neighbours, density and coverage with `k_density`.

    radii: (N, most) float64, `own_radii` of the reference, where these are known, most being the larger k or more.
    The intervals are of other samples, the reference held fixed; (1) for recall and coverage.
    """
    same_source(samples.source, reference.source)
    fake, real = samples.values, reference.values
    own = own_radii(reference, max(k, k_density), memory=memory) if radii is None else radii
    real_radius, wide = own[:, k - 1], own[:, k_density - 1]
    fake_radius, grown, neighbours = _balls(fake, k, memory)

    precise = torch.zeros(len(fake), dtype=torch.bool)
    recalled, covered = _Held(len(fake), len(real), memory), _Held(len(fake), len(real), memory)
    balls = torch.zeros(len(fake), dtype=torch.int64)  # how many real balls each sample lies in
    for block in blocks(fake, real, memory):
        i, j = block.at_most(grown)
        squared = block.measured(i, j, fake_radius[i], grown[i])
        held = squared <= fake_radius[i]
        recalled.add(i[held], j[held])
        reached = ~held & (squared <= grown[i])
        recalled.reach(i[reached], j[reached])
        i, j = block.at_most_by_column(torch.maximum(real_radius, wide))
        squared = block.measured(i, j, real_radius[j], wide[j])
        precise[i[squared <= real_radius[j]]] = True
        inside = squared <= wide[j]
        balls += i[inside].bincount(minlength=len(fake))
        covered.add(i[inside], j[inside])

    m, n, source = len(fake), len(real), samples.source
    each = balls.double() / k_density
    density, error = float(each.mean()), float(each.std()) / math.sqrt(m)
    return Manifold(
        share(f"precision (k = {k})", int(precise.sum()), m, reference=n, source=source, biased=True),
        _of_reference(f"recall (k = {k})", recalled, recalled.influence(neighbours), samples),
        Value(
            f"density (k = {k_density})", density, m, n, source, density - Z * error, density + Z * error, error, True
        ),
        _of_reference(f"coverage (k = {k_density})", covered, covered.influence(neighbours), samples),
    )


def own_radii(features: Features, k: int = 5, *, memory: int = MEMORY) -> Tensor:
    """The squared distances of each feature to its k nearest others of the set, ascending, (N, k) float64."""
    return nearest(features.values, features.values, k, same=True, root=False, memory=memory)[0]


def _balls(fake: Tensor, k: int, memory: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each sample the squared radius of its ball, and of the one it would have with one of its k neighbours less,
    (M,) float64 each, and the numbers of these neighbours, (M, k)."""
    more = max(k, min(k + 1, len(fake) - 1))  # where no other is left the ball stays as it is
    squared, numbers = nearest(fake, fake, more, same=True, root=False, memory=memory)
    return squared[:, k - 1], squared[:, more - 1], numbers[:, :k]


class _Held:
    """Which of n reference pictures are held by the balls of m samples, and how many would be with a sample less."""

    def __init__(self, m: int, n: int, memory: int) -> None:
        self.m, self.n, self.most = m, n, max(n, memory // PAIR)
        self.count = torch.zeros(n, dtype=torch.int64)
        self.sole = torch.zeros(n, dtype=torch.int64)  # the sum of the holders' numbers: of one holder, its own
        self._reached: list[tuple[Tensor, Tensor]] = []

    def add(self, i: Tensor, j: Tensor) -> None:
        """Samples i hold pictures j."""
        self.count += j.bincount(minlength=self.n)
        self.sole.index_add_(0, j, i)

    def reach(self, i: Tensor, j: Tensor) -> None:
        """The balls of samples i would hold pictures j if they grew. Of more than fit in the memory the rest is left
        out; a picture with two holders needs none."""
        room = self.most - sum(len(one) for one, _ in self._reached)
        few = (self.count[j] < 2).nonzero()[: max(0, room), 0]
        self._reached.append((i[few], j[few]))

    def influence(self, neighbours: Tensor) -> Tensor:
        """How many pictures fewer are held without each sample, (m,) int64: those it holds alone, less those that balls
        reach which grow without it. neighbours: (m, k), the samples whose absence lets each ball grow."""
        lost = self.sole[self.count == 1].bincount(minlength=self.m)
        if not self._reached:
            return lost
        i, j = (torch.cat(parts) for parts in zip(*self._reached, strict=True))
        few = self.count[j] < 2
        gone, j = neighbours[i[few]], j[few, None].expand(-1, neighbours.shape[1])
        counts = (self.count[j] == 0) | (self.sole[j] == gone)
        kept = torch.unique(gone[counts] * self.n + j[counts]) // self.n
        return lost - kept.bincount(minlength=self.m)


def _of_reference(metric: str, held: _Held, influence: Tensor, samples: Features) -> Value:
    """A share of the reference pictures, though the samples are what is judged, with the error (1)."""
    m, n = held.m, held.n
    p = float((held.count > 0).double().mean())
    each = influence.double() / n
    error = math.sqrt((m - 1) / m * float((each - each.mean()).square().sum()))
    inner = (p * n + 0.5) / (n + 1)  # a share of 0 or 1 has a spread too
    count = min(n, inner * (1 - inner) / error**2) if error else n
    middle = (p + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(p * (1 - p) / count + Z**2 / (4 * count**2))
    low, high = max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))
    return Value(metric, p, m, n, samples.source, low, high, error, biased=True)
