"""Are the samples copies? Their nearest training pictures, against those of pictures the model never saw.

A sample that lies near a training picture is no copy if fresh data lie as near. So the same distance is taken from
held-out pictures to the training set, and the border is the 1st percentile of these: of samples of a model that only
learned the distribution few are closer, of copies all (compare Meehan et al. 2020, section 3; Carlini et al. 2023,
section 4.2, who likewise judge a distance by those around it).

**How many by chance.** The border is itself drawn: of M held-out pictures it is the one of rank k = 1 + (M - 1) / 100,
between two of them where k is not whole (`numpy.percentile`). Where samples and held-out pictures are of one
distribution, the chance that a sample is within the k-th is Beta(k, M + 1 - k) (David and Nagaraja 2003, section 2.1;
of a k between two, nearly: Hutson 1999), so of N samples there are

    BetaBinomial(N, k, M + 1 - k)      within the border: N k / (M + 1) on average (2 % at M = 100)             (1)

`most_by_chance` is its upper 2.5 % point. An interval that takes the border as exact, as that of `Memorization.close`
does, would accuse a third of honest models and more at M = 100. (1) needs held-out pictures that are independent.

In two spaces: an extractor's features, which see through noise, shifts and grey values, and pixels (the root of the
mean squared difference in grey levels of 255), which no extractor can blind.

**Groups.** Slices of one patient are near each other whether or not they were learned. Where groups are given, a
held-out picture is compared with training pictures of *other* groups only; otherwise slices of a patient who is on both
sides would make the border small and hide copies. The report also counts close samples by the group they are near to.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moyai.errors import DataError
from moyai.evaluation.metrics import pixel_source
from moyai.evaluation.neighbours import MEMORY, nearest
from moyai.evaluation.values import LEVEL, Features, Source, Value, same_source, share

PERCENTILE = 1.0  # of the control's distances: the border
WORST = 10
Kept = Callable[[Callable[[], Tensor]], Tensor]


def fresh(compute: Callable[[], Tensor]) -> Tensor:
    """Computed, whatever may be kept."""
    return compute()


@dataclass(frozen=True)
class Match:
    """A sample and the training picture it is nearest to, by number."""

    sample: int
    training: int
    distance: float
    group: int | None = None  # of the training picture


@dataclass(frozen=True, eq=False)
class Memorization:
    """What one space says.

    `distances` and `neighbours` (N,) of each sample to its nearest training picture; `control` (M,) of each held-out
    picture; `border` the 1st percentile of the control; `close` the share of samples that are not farther than it
    (expected: `expected_by_chance`), its interval with the border held fixed; `worst` the ten nearest, nearest first;
    `by_group` how many close samples each group of the training set has, most first (empty without groups).
    """

    distances: Tensor
    neighbours: Tensor
    control: Tensor
    border: float
    close: Value
    worst: tuple[Match, ...]
    by_group: dict[int, int]

    @property
    def within(self) -> float:
        """The rank of the border in the control: `rank`, or more where held-out pictures lie on it."""
        return max(rank(len(self.control)), float((self.control <= self.border).sum()))

    @property
    def flagged(self) -> Tensor:
        """The numbers of the close samples, nearest first."""
        order = self.distances.argsort(stable=True)
        return order[self.distances[order] <= self.border]


def rank(held_out: int) -> float:
    """The rank of the border among the distances of so many held-out pictures, 1 for the least."""
    return 1 + (held_out - 1) * PERCENTILE / 100


def expected_by_chance(held_out: int, within: float | None = None) -> float:
    """The share of samples that is expected within the border where nothing is copied.

    within: the rank of the border, where it is more than `rank`, as where pictures lie on it.
    """
    return (rank(held_out) if within is None else within) / (held_out + 1)


def most_by_chance(samples: int, held_out: int, within: float | None = None) -> int:
    """So many samples or fewer are within the border in 97.5 % of cases where nothing is copied: a quantile of (1)."""
    a = rank(held_out) if within is None else within
    b = held_out + 1 - a
    none = math.lgamma(b + samples) + math.lgamma(a + b) - math.lgamma(b) - math.lgamma(a + b + samples)
    c = np.arange(samples)  # each probability from the one before it
    steps = np.log((samples - c) * (a + c)) - np.log((c + 1) * (b + samples - c - 1))
    logs = none + np.concatenate([[0.0], np.cumsum(steps)])
    return min(samples, int(np.searchsorted(np.exp(logs).cumsum(), (1 + LEVEL) / 2)))


def in_features(
    samples: Features,
    training: Features,
    held_out: Features,
    *,
    groups: np.ndarray | None = None,
    held_out_groups: np.ndarray | None = None,
    kept: Kept = fresh,
    memory: int = MEMORY,
) -> Memorization:
    """The report in an extractor's features; groups: (training,) and (held out,) int64, both or neither.

    kept: gives the control's distances, of what computes them; a cache may stand in between.
    """
    same_source(samples.source, training.source)
    same_source(samples.source, held_out.source)
    rows = (samples.values, training.values, held_out.values)
    return _report(*rows, samples.source, (groups, held_out_groups), kept, memory)


def in_pixels(
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    held_out_groups: np.ndarray | None = None,
    kept: Kept = fresh,
    memory: int = MEMORY,
) -> Memorization:
    """The report in pixels, (N, C, H, W) uint8 or uint16 each, distances in grey levels of 255."""
    source = pixel_source(samples)
    for others in (training, held_out):
        same_source(source, pixel_source(others))
    scale = 255 / float(np.iinfo(samples.dtype).max) / source.dimensions**0.5
    rows = [torch.from_numpy(np.ascontiguousarray(part)).flatten(1) for part in (samples, training, held_out)]
    return _report(rows[0], rows[1], rows[2], source, (groups, held_out_groups), kept, memory, scale)


def _report(
    samples: Tensor,
    training: Tensor,
    held_out: Tensor,
    source: Source,
    groups: tuple[np.ndarray | None, np.ndarray | None],
    kept: Kept,
    memory: int,
    scale: float = 1.0,
) -> Memorization:
    mine, theirs = _checked(groups, len(training), len(held_out))
    distances, neighbours = (found[:, 0] for found in nearest(samples, training, memory=memory))
    distances = distances * scale

    def against() -> Tensor:
        found = nearest(held_out, training, query_groups=theirs, point_groups=mine, memory=memory)[0]
        return found[:, 0] * scale

    control = kept(against)
    if bool(control.isinf().any()):
        raise DataError("held-out pictures have no training picture of another group to be compared with")
    border = float(np.percentile(control.numpy(), PERCENTILE))
    close = distances <= border
    value = share(
        "share closer than the control's 1st percentile",
        int(close.sum()),
        len(samples),
        reference=len(training),
        source=source,
        biased=True,
        warning=_warning(len(held_out), border),
    )
    return Memorization(
        distances,
        neighbours,
        control,
        border,
        value,
        tuple(_worst(distances, neighbours, mine)),
        {} if mine is None else _by_group(mine[neighbours[close]]),
    )


def _checked(
    groups: tuple[np.ndarray | None, np.ndarray | None], training: int, held_out: int
) -> tuple[Tensor | None, Tensor | None]:
    mine, theirs = groups
    if mine is None and theirs is None:
        return None, None
    if mine is None or theirs is None:
        raise DataError("groups are given of the training pictures or of the held-out ones only; both are needed")
    if len(mine) != training or len(theirs) != held_out:
        raise DataError(
            f"{len(mine)} and {len(theirs)} groups for {training} training and {held_out} held-out pictures"
        )
    return torch.from_numpy(np.asarray(mine, np.int64)), torch.from_numpy(np.asarray(theirs, np.int64))


def _worst(distances: Tensor, neighbours: Tensor, groups: Tensor | None) -> Sequence[Match]:
    found = []
    for sample in distances.argsort(stable=True)[:WORST].tolist():
        training = int(neighbours[sample])
        group = None if groups is None else int(groups[training])
        found.append(Match(sample, training, float(distances[sample]), group))
    return found


def _by_group(found: Tensor) -> dict[int, int]:
    groups, counts = np.unique(found.numpy(), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(groups[i]): int(counts[i]) for i in order}


def _warning(held_out: int, border: float) -> str:
    if held_out < 100:
        return f"the 1st percentile of {held_out} held-out pictures is about their least distance; take 100 or more"
    if border == 0:
        return "1 % of the held-out pictures or more are themselves copies of training pictures"
    return ""
