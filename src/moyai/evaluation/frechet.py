"""The Fréchet distance between two sets of features, its value for infinitely many samples, and how sure both are.

For Gaussians with means m, n and covariances S, T (Dowson and Landau 1982; as "FID" Heusel et al. 2017, eq. 6):

    d^2 = |m - n|^2 + tr S + tr T - 2 tr (S^1/2 T S^1/2)^1/2                                   (1)

In squared units of the features, from 0. The product in the brackets is symmetric, so the trace of its root is the sum
of the square roots of its eigenvalues: no complex numbers and no failure where a covariance has not full rank.

**Bias.** With N samples the expectation of (1) is F + b/N + O(1/N^2), b of the order of the features' number D squared.
Chong and Forsyth (2020, section 3.2) draw a line through (1) at several N and read it off at 1/N = 0. We take the
averages over k disjoint blocks of N/k samples for k = 1, 2, ...: each point of the line then uses every sample. Blocks
have at least 5 D samples, as below that the line bends: where all variances are v, it ends about v D^3 / (16 N^2) too
low for k = 1, 2. With fewer than 10 D samples there are no such blocks, so `infinity` has a warning and no interval.

`infinity` is F *against this reference*: that of M pictures has its own bias, about b/M, which no number of samples
takes away. Of equal distributions it lies around b/M, not around 0 (2.9 for D = 128, M = 1,438), so values against
references of other sizes are not compared. It is not held above 0.

**Interval.** The bootstrap draws N samples again with replacement, that is, a weight for each, and each replicate is
one weighted covariance. Features are multiplied by T^1/2 beforehand (T^1/2 is kept with the reference's statistics), so
a replicate costs one product of a matrix with its own transpose, of which numpy computes half, and one `eigvalsh`: in
all about replicates (0.63 N D^2 + 2 D^3) multiplications. Replicates are biased once more by about b/N, so not their
quantiles but their standard deviation is used: value +- t std (Efron and Tibshirani 1993, ch. 12), which also needs
fewer of them. The interval of `value` covers the expectation of (1) at this count, that of `infinity` covers F. Both
take the reference as given.

In simulation, of Gaussians of equal variances (for which the line bends most) against a reference of a million:
both cover at 0.93 to 0.98 for 0.95 at 5 features (N = 150, F = 1.25) and 24 (N = 600, F = 6). At 128 features and
F = 1.28 `infinity` covers at 0.95 to 1.00 (N = 1,300 to 3,200): it is low by 0.10 to 0.06, but so near to 0, where F
is least, replicates spread 1.5 to 2.7 times too much, and both intervals are that much too wide. More than 128 features
were not measured: with equal variances N has to grow faster than D for the line to hold, so 10 D may be too few there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from moyai.errors import DataError
from moyai.evaluation.values import Features, Source, Value, same_source, student
from moyai.randomness import generator

ROWS = 4096  # brought to float64 at once
BLOCKS = 5  # the smallest blocks of the extrapolation are a fifth of the samples
ENOUGH = 10  # samples for each feature, from which on the bias is nearly b/N; half as many in the smallest blocks


@dataclass(frozen=True, eq=False)
class Statistics:
    """Count, mean (D,) and scatter (D, D), the sum of (x - mean)(x - mean)^T, in float64: what (1) needs of a set."""

    count: int
    mean: Tensor
    scatter: Tensor
    source: Source
    known_root: Tensor | None = None  # of the covariance, where it was computed before

    @staticmethod
    def of(rows: Tensor, source: Source) -> "Statistics":
        """Of rows (n, D), n > 0, of any length: no more than `ROWS` of them are held in float64 at once."""
        if rows.ndim != 2 or rows.shape[1] != source.dimensions or len(rows) == 0:
            raise DataError(f"features of {source} are (N, {source.dimensions}), not {tuple(rows.shape)}")
        parts = []
        for part in rows.split(ROWS):
            values = part.double()
            mean = values.mean(0)
            centred = values - mean
            parts.append(Statistics(len(part), mean, centred.T @ centred, source))
        return merged(parts)

    @property
    def covariance(self) -> Tensor:
        """(D, D), divided by count - 1."""
        if self.count < 2:
            raise DataError("one picture has no covariance; at least 2 are needed")
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, (D, D)."""
        return _root(self.covariance) if self.known_root is None else self.known_root


def merged(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts together (Chan, Golub and LeVeque 1983, eq. 1.5), one part at a time."""
    whole: Statistics | None = None
    for part in parts:
        if whole is None:
            whole = part
            continue
        same_source(whole.source, part.source)
        count = whole.count + part.count
        step = part.mean - whole.mean
        mean = whole.mean + step * (part.count / count)
        between = torch.outer(step, step) * (whole.count * part.count / count)
        whole = Statistics(count, mean, whole.scatter + part.scatter + between, whole.source)
    if whole is None:
        raise DataError("there are no features to take statistics of")
    return whole


def distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Equation (1) of means (D,) and covariances (D, D)."""
    root = _root(covariance.double())
    product = root @ other_covariance.double() @ root
    shift = (mean.double() - other_mean.double()).square().sum()
    traces = covariance.double().trace() + other_covariance.double().trace()
    return max(0.0, float(shift + traces) - 2 * _trace_of_root(product))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _trace_of_root(product: Tensor) -> float:
    """The sum of the square roots of the eigenvalues. What is rounding only counts as zero: its root would be 1e-8 of
    the largest, times the number of directions the samples do not reach."""
    values = torch.linalg.eigvalsh((product + product.T) / 2)
    floor = values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return float(values[values > floor].sqrt().sum())


@dataclass(frozen=True)
class Frechet:
    """The distance at this count, and extrapolated to infinitely many samples against the same reference."""

    value: Value
    infinity: Value


def fid(
    samples: Features, reference: Statistics | Features, *, replicates: int | None = None, seed: int = 0
) -> Frechet:
    """The Fréchet distance of samples to a reference, each with a 95 % bootstrap interval (`infinity` only from 10
    samples for each feature).

    replicates: of the bootstrap; 100 for up to 256 features, else 20; below 2 there is no interval. For 10,000 samples
    that is 3 s of one core at 256 features and 35 s at 2,048 (`benchmarks/evaluate_speed.py`).
    """
    known = reference if isinstance(reference, Statistics) else Statistics.of(reference.values, reference.source)
    same_source(samples.source, known.source)
    count, dimensions = samples.values.shape
    if replicates is None:
        replicates = 100 if dimensions <= 256 else 20
    weighted = _Weighted(samples.values, known)
    value = max(0.0, weighted.distance(None))
    limit = _extrapolated(weighted, count, dimensions, value, seed)
    drawn = [weighted.distance(_counts(count, seed, i)) for i in range(replicates)]
    error = float(np.std(drawn, ddof=1)) if replicates > 1 else None
    curved = _curved(count, dimensions)

    def result(name: str, centre: float, warning: str) -> Value:
        return Value(name, centre, count, known.count, samples.source, warning=warning)

    biased = replace(result("fid", value, _few(count, known.count, dimensions)), biased=True)
    infinity = replace(result("fid-infinity", limit, curved), by_reference=True)
    if error is not None:
        half = error * student(replicates - 1)
        biased = replace(biased, low=max(0.0, value - half), high=value + half, error=error)
        if not curved:
            infinity = replace(infinity, low=limit - half, high=limit + half, error=error)
    return Frechet(biased, infinity)


class _Weighted:
    """Equation (1) of weighted samples against fixed statistics, with all that does not depend on the weights done."""

    def __init__(self, values: Tensor, reference: Statistics) -> None:
        self.shift = values.double().mean(0)  # centred, so that the weighted sums of squares lose no digits
        self.offset = self.shift - reference.mean
        self.rows = values.double() - self.shift  # (N, D)
        self.norms = self.rows.square().sum(1)  # (N,)
        self.turned = self.rows @ reference.root  # (N, D), whose covariance is root S root
        self.trace = reference.covariance.trace()
        self.space = np.empty(self.turned.shape)  # (N, D), used again by each replicate

    def distance(self, weights: Tensor | None) -> float:
        """weights: (N,) float64, how often each sample counts; None is once each."""
        weights = torch.ones_like(self.norms) if weights is None else weights
        count = int(weights.sum())
        mean = weights @ self.rows / count  # (D,)
        turned_mean = weights @ self.turned / count
        used = np.flatnonzero(weights.numpy())  # about 63 % of a bootstrap replicate
        part = self.space[: len(used)]
        np.take(self.turned.numpy(), used, axis=0, out=part, mode="clip")
        np.multiply(part, np.sqrt(weights.numpy()[used])[:, None], out=part)
        square = torch.from_numpy(part.T @ part)  # numpy sees the transpose of one array and computes one triangle
        product = (square - count * torch.outer(turned_mean, turned_mean)) / (count - 1)
        trace = (weights @ self.norms - count * mean.square().sum()) / (count - 1)
        return float((self.offset + mean).square().sum() + trace + self.trace) - 2 * _trace_of_root(product)


def _counts(count: int, seed: int, replicate: int) -> Tensor:
    """How often each of `count` samples is drawn when `count` are drawn with replacement, (count,) float64."""
    drawn = generator(seed, "bootstrap", replicate).integers(0, count, count)
    return torch.from_numpy(np.bincount(drawn, minlength=count).astype(np.float64))


def _extrapolated(weighted: _Weighted, count: int, dimensions: int, value: float, seed: int) -> float:
    """Where the line through the mean distances at several sizes of blocks meets 1/N = 0; `value` where there is one
    size only."""
    smallest = min(count // 2, max(count // BLOCKS, ENOUGH * dimensions // 2, 2))
    order = torch.from_numpy(generator(seed, "extrapolation").permutation(count))
    sizes, line = [count], [value]
    for blocks in range(2, BLOCKS + 1):
        size = count // blocks
        if size < max(2, smallest):
            break
        found = []
        for start in range(0, blocks * size, size):
            chosen = torch.zeros(count, dtype=torch.float64)
            chosen[order[start : start + size]] = 1
            found.append(weighted.distance(chosen))
        sizes.append(size)
        line.append(float(np.mean(found)))
    if len(sizes) < 2:
        return value
    _, limit = np.polyfit(1 / np.asarray(sizes, dtype=np.float64), np.asarray(line), 1)
    return float(limit)


def _few(count: int, reference: int, dimensions: int) -> str:
    least = min(count, reference)
    if least >= ENOUGH * dimensions:
        return ""
    which = "samples" if count <= reference else "reference pictures"
    rank = "the covariance has not full rank and " if least <= dimensions else ""
    return (
        f"{least} {which} for {dimensions} features: {rank}the value can be mostly bias; compare it with the floor at "
        f"the same count only, take {ENOUGH * dimensions} or more, or read KID"
    )


def _curved(count: int, dimensions: int) -> str:
    if count < 4:  # which cannot be halved
        return f"{count} samples are too few to extrapolate from"
    if count < ENOUGH * dimensions:
        return (
            f"extrapolated from {count} samples for {dimensions} features, where bias is no line in 1/N, so without an "
            f"interval; take {ENOUGH * dimensions} or more"
        )
    return ""
