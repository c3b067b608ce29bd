"""The Fréchet distance between two sets of features, its value for infinitely many samples, and how sure both are.

For Gaussians with means m, n and covariances S, T (Dowson and Landau 1982; as "FID" Heusel et al. 2017, eq. 6):

    d^2 = |m - n|^2 + tr S + tr T - 2 tr (S^1/2 T S^1/2)^1/2                                   (1)

In squared units of the features, from 0. The product in the brackets is symmetric, so the trace of its root is the sum
of the square roots of its eigenvalues: no complex numbers and no failure where a covariance has not full rank.

**Bias.** With N samples the expectation of (1) is F + b/N + O(1/N^2), b of the order of the features' number squared.
Chong and Forsyth (2020, section 3.2) draw a line through (1) at several N and read it off at 1/N = 0. We take the
averages over k disjoint blocks of N/k samples for k = 1, 2, ...: each point of the line then uses every sample.

**Interval.** The bootstrap draws N samples again with replacement, that is, a weight for each, and each replicate is
one weighted covariance. Features are multiplied by T^1/2 beforehand (T^1/2 is kept with the reference's statistics), so
a replicate costs one product of a matrix with its own transpose, of which numpy computes half, and one `eigvalsh`: in
all about replicates (0.63 N D^2 + 2 D^3) multiplications. Replicates are biased once more by about b/N, so not their
quantiles but their standard deviation is used: value +- t std (Efron and Tibshirani 1993, ch. 12), which also needs
fewer of them. The interval of `value` covers the expectation of (1) at this count, that of `infinity` covers F. Both
take the reference as given. In simulation they cover at 0.93 to 0.98 for 0.95; where F is 0, a minimum, the replicates
spread up to twice too much and the intervals are too wide. `infinity` is not held above 0: of equal distributions it
lies around it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from moyai.errors import DataError
from moyai.evaluation.values import Features, Source, Value, same_source, student
from moyai.randomness import generator

ROWS = 4096  # brought to float64 at once
BLOCKS = 5  # the smallest blocks of the extrapolation are a fifth of the samples


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
    """The distance at this count, and extrapolated to infinitely many samples."""

    value: Value
    infinity: Value


def fid(
    samples: Features, reference: Statistics | Features, *, replicates: int | None = None, seed: int = 0
) -> Frechet:
    """The Fréchet distance of samples to a reference, each with a 95 % bootstrap interval.

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
    sizes, limit = _extrapolated(weighted, count, dimensions, value, seed)
    drawn = [weighted.distance(_counts(count, seed, i)) for i in range(replicates)]
    error = float(np.std(drawn, ddof=1)) if replicates > 1 else None

    def result(name: str, centre: float, biased: bool, warning: str) -> Value:
        half = None if error is None else error * student(replicates - 1)
        low, high = (None, None) if half is None else (centre - half, centre + half)
        if biased and low is not None:  # an expectation of distances; `infinity` may lie below 0
            low = max(0.0, low)
        return Value(name, centre, count, known.count, samples.source, low, high, error, biased, warning)

    return Frechet(
        result("fid", value, True, _few(count, known.count, dimensions)),
        result("fid-infinity", limit, False, _curved(sizes, dimensions)),
    )


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


def _extrapolated(weighted: _Weighted, count: int, dimensions: int, value: float, seed: int) -> tuple[list[int], float]:
    """The sizes of the blocks, and where the line through the mean distances at these sizes meets 1/N = 0."""
    smallest = min(count // 2, max(count // BLOCKS, 2 * dimensions, 2))
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
        return sizes, value
    _, limit = np.polyfit(1 / np.asarray(sizes, dtype=np.float64), np.asarray(line), 1)
    return sizes, float(limit)


def _few(count: int, reference: int, dimensions: int) -> str:
    least = min(count, reference)
    if least > dimensions:
        return ""
    which = "samples" if count <= reference else "reference pictures"
    return (
        f"{least} {which} for {dimensions} features: the covariance has not full rank and the value is mostly bias; "
        f"take more than {dimensions}, or read KID"
    )


def _curved(sizes: list[int], dimensions: int) -> str:
    if len(sizes) < 2:
        return f"{sizes[0]} samples are too few to extrapolate from"
    if sizes[-1] < 2 * dimensions:
        return (
            f"extrapolated from blocks of {sizes[-1]} samples for {dimensions} features, where bias is no line in 1/N"
        )
    return ""
