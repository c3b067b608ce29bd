"""Measures of a set of samples beside the Fréchet distance: KID, class confidence and accuracy, diversity, pixels.

Pictures are stored integers, (N, C, H, W) uint8 or uint16, as a file would hold them; features are `values.Features`.

| function | what | unit, range | better |
|---|---|---|---|
| `kid` | squared MMD with a cubic kernel | kernel units; about 0 for one distribution, may be negative | lower |
| `class_confidence` | the Inception score of the extractor's classes | 1 to the number of classes | higher |
| `class_accuracy` | share of samples taken for the class they were asked to be | 0 to 1 | higher |
| `ms_ssim_diversity` | mean MS-SSIM of pairs of samples | 0 to 1 | as the data's |
| `sliced_wasserstein` | distance of the pixel distributions | grey levels of 255 | lower |
"""

import math

import numpy as np
import torch
from torch import Tensor

from moyai.errors import DataError, RequestError
from moyai.evaluation.features import Pixels
from moyai.evaluation.values import Features, Source, Value, Z, same_source, share, student
from moyai.randomness import generator
from moyai.similarity import ms_ssim, scales, window

KID_BLOCKS = 10  # at least, so that their spread says something
KID_ROWS = 2000  # at most in a block: the kernel of one is rows x rows
NUMBERS = 1 << 22  # of pictures, brought to floats at once: 4 M, 32 MB in float64


def kid(samples: Features, reference: Features, *, seed: int = 0) -> Value:
    """The kernel distance (Binkowski et al. 2018, eq. 4) with its standard error.

    The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) with the kernel
    (x . y / D + 1)^3. Both sets are shuffled and cut into as many disjoint blocks; the value is the mean over pairs of
    blocks, and since they share no picture, their standard deviation / sqrt(blocks) is an honest error (random subsets
    that overlap, as often used, give one that is too small).
    """
    same_source(samples.source, reference.source)
    fewest = min(len(samples), len(reference))
    blocks = max(min(KID_BLOCKS, fewest // 2), math.ceil(len(samples) / KID_ROWS))
    blocks = max(1, min(blocks, fewest // 2))
    mine = _blocks(samples.values, blocks, seed, "samples")
    theirs = _blocks(reference.values, blocks, seed, "reference")
    found = [mmd2(x[:KID_ROWS].double(), y[:KID_ROWS].double()) for x, y in zip(mine, theirs, strict=True)]
    value, error = float(np.mean(found)), None
    low = high = None
    if blocks > 1:
        error = float(np.std(found, ddof=1)) / math.sqrt(blocks)
        half = student(blocks - 1) * error  # a handful of blocks: their spread is itself uncertain
        low, high = value - half, value + half
    few = f"{fewest} pictures give blocks of {fewest // blocks}: read the error" if fewest < 20 * blocks else ""
    return Value("kid", value, len(samples), len(reference), samples.source, low, high, error, warning=few)


def mmd2(x: Tensor, y: Tensor) -> float:
    """The unbiased squared MMD of (m, D) and (n, D), m and n at least 2, with the kernel (x . y / D + 1)^3."""
    m, n = len(x), len(y)
    own, mine = _kernel_sums(x.numpy(), x.numpy())
    other, theirs = _kernel_sums(y.numpy(), y.numpy())
    between, _ = _kernel_sums(x.numpy(), y.numpy())
    return (own - mine) / (m * (m - 1)) + (other - theirs) / (n * (n - 1)) - 2 * between / (m * n)


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The sums of the kernel over all pairs and over its diagonal. For one array against itself numpy computes one
    triangle of the product; the cube is taken in place."""
    k = x @ y.T
    k /= x.shape[1]
    k += 1
    diagonal = float((k.diagonal() ** 3).sum())
    flat = k.reshape(-1)
    return float(np.square(flat) @ flat), diagonal


def _blocks(values: Tensor, blocks: int, seed: int, purpose: str) -> list[Tensor]:
    """Shuffled, because samples often lie class by class and a block has to be like the whole."""
    order = torch.from_numpy(generator(seed, f"kid/{purpose}").permutation(len(values)))
    return [values[rows] for rows in order.tensor_split(blocks)]


def class_confidence(samples: Features) -> Value:
    """exp of the mean KL(p(y|x) | p(y)) over the samples (Salimans et al. 2016, section 4), with its standard error.

    Called the Inception score where the classes are ImageNet's. High where each sample is surely of one class and all
    classes occur. Over all samples at once, not the mean of ten splits (Barratt and Sharma 2018, section 4.1). The
    error is the delta method's: to first order, p(y) does not move the mean.
    """
    p = _probabilities(samples)
    tiny = torch.finfo(torch.float64).tiny
    each = (p * (p.clamp_min(tiny).log() - p.mean(0).clamp_min(tiny).log())).sum(1)  # (N,)
    value = math.exp(float(each.mean()))
    error = value * float(each.std()) / math.sqrt(len(samples))
    low, high = max(1.0, value - Z * error), min(float(p.shape[1]), value + Z * error)
    return Value("class confidence", value, len(samples), 0, samples.source, low, high, error, biased=True)


def class_accuracy(samples: Features, asked: Tensor) -> Value:
    """The share of samples that the extractor takes for the class they were asked to be; asked: (N,) class numbers."""
    p = _probabilities(samples)
    _check_classes(asked, len(samples), p.shape[1])
    hits = p.argmax(1) == asked
    absent = sorted(set(range(p.shape[1])) - set(asked.tolist()))
    warning = f"no sample of class {', '.join(map(str, absent))} was judged" if absent else ""
    return share("class accuracy", int(hits.sum()), len(samples), reference=0, source=samples.source, warning=warning)


def accuracy_by_class(samples: Features, asked: Tensor) -> dict[int, Value]:
    """`class_accuracy` of each class that was asked for."""
    p = _probabilities(samples)
    _check_classes(asked, len(samples), p.shape[1])
    hits = p.argmax(1) == asked
    return {
        label: share(
            f"accuracy of class {label}",
            int(hits[asked == label].sum()),
            int((asked == label).sum()),
            reference=0,
            source=samples.source,
        )
        for label in sorted(set(asked.tolist()))
    }


def _probabilities(samples: Features) -> Tensor:
    if samples.probabilities is None:
        raise RequestError(f"the extractor {samples.source} knows no classes; take one trained with labels")
    return samples.probabilities.double()


def _check_classes(asked: Tensor, count: int, classes: int) -> None:
    if asked.shape != (count,):
        raise DataError(f"{count} samples need as many classes, not {tuple(asked.shape)}")
    if not 0 <= int(asked.min()) <= int(asked.max()) < classes:
        found = f"{int(asked.min())} to {int(asked.max())}"
        raise DataError(f"classes {found} are not among the extractor's, which are 0 to {classes - 1}")


# ---- of pixels


def ms_ssim_diversity(
    pixels: np.ndarray, labels: np.ndarray | None = None, *, pairs: int = 2000, seed: int = 0, batch: int = 256
) -> Value:
    """The mean MS-SSIM of random pairs of different samples (Odena et al. 2017, section 4.2): 1 where all are the same.

    pixels: (N, C, H, W); labels: (N,), then both of a pair are of one class. As many scales as the pictures have room
    for. Beside the same number of held-out pictures: lower than theirs is noise, higher is a lack of variety. The error
    is that of other pictures and other pairs, of the same classes.
    """
    source = pixel_source(pixels)
    first, second = _pairs(len(pixels), labels, pairs, seed)
    top, batch = float(np.iinfo(pixels.dtype).max), min(batch, max(1, NUMBERS // source.dimensions))
    found = [
        ms_ssim(_floats(pixels[first[i : i + batch]]), _floats(pixels[second[i : i + batch]]), top=top)
        for i in range(0, len(first), batch)
    ]
    each = torch.cat(found)
    value, error = float(each.mean()), error_of_pairs(each.double().numpy(), first, second, labels)
    name = f"ms-ssim of pairs ({'' if labels is None else 'of one class, '}{scales_told(*pixels.shape[2:])})"
    return Value(name, value, len(pixels), 0, source, value - Z * error, value + Z * error, error)


def scales_told(height: int, width: int) -> str:
    """How MS-SSIM was taken of pictures of this size, in words."""
    count = scales(height, width)
    return f"{count} scale{'s' if count > 1 else ''}, window {window(height, width)}"


def error_of_pairs(each: np.ndarray, first: np.ndarray, second: np.ndarray, labels: np.ndarray | None) -> float:
    """The standard error of the mean of `each` (M,), what was measured of pairs of pictures, (M,) numbers each.

    Pairs that share a picture are not independent, so there are fewer of them than it seems. With r the residuals about
    their class's mean, summed over the draws of a pair (Aronow, Samii and Assenova 2015, eq. 4)

        var = (sum over pictures (sum of r of its pairs)^2 - sum over pairs r^2) / M^2,      at least sum r^2 / M^2

    to which the spread of the classes' means over the draws of classes comes.
    """
    kinds = (
        np.zeros(len(each), np.int64)
        if labels is None
        else np.unique(np.asarray(labels)[first], return_inverse=True)[1]
    )
    means = (np.bincount(kinds, each) / np.bincount(kinds))[kinds]
    low, high = np.minimum(first, second).astype(np.int64), np.maximum(first, second)
    pairs, which = np.unique(low * (high.max() + 1) + high, return_inverse=True)
    sums = np.bincount(which, each - means)
    ends = np.divmod(pairs, high.max() + 1)
    of_pictures = np.bincount(np.concatenate(ends), np.concatenate([sums, sums]))
    shared = float(np.square(of_pictures).sum() - np.square(sums).sum())
    within = max(shared, float(np.square(each - means).sum()))
    return math.sqrt(within + float(np.square(means - each.mean()).sum())) / len(each)


def _pairs(count: int, labels: np.ndarray | None, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different samples, (pairs,) each, of one class where there are labels."""
    labels = np.zeros(count, dtype=np.int64) if labels is None else np.asarray(labels)
    if labels.shape != (count,):
        raise DataError(f"{count} pictures need as many labels, not {labels.shape}")
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    if counts.max() < 2:
        raise DataError(f"{count} picture(s), no two of one class: there are no pairs to compare")
    starts, counts = starts[counts > 1], counts[counts > 1]
    rng = generator(seed, "pairs")
    chosen = rng.choice(len(counts), pairs, p=counts / counts.sum())
    one = rng.integers(0, counts[chosen])
    other = (one + rng.integers(1, counts[chosen])) % counts[chosen]  # never the same
    return order[starts[chosen] + one], order[starts[chosen] + other]


def sliced_wasserstein(
    samples: Pixels, reference: Pixels, *, directions: int = 256, seed: int = 0, at_once: int = 1 << 25
) -> Value:
    """The sliced 2-Wasserstein distance of two sets of pictures in pixels (Bonneel et al. 2015, section 3).

        SW = sqrt(mean over unit directions u of W2(u . x, u . y)^2),      W2 in one dimension by sorting

    In grey levels of 255: adding 3 to every pixel gives 3. The error is that of the
    directions drawn; at few samples SW is far from 0 also between two halves of the data, so read it beside its floor.
    """
    source = pixel_source(samples)
    same_source(source, pixel_source(reference))
    d = source.dimensions
    scale = 255 / float(np.iinfo(samples.dtype).max)
    squares = []
    step = max(1, min(at_once // (len(samples) + len(reference)), NUMBERS // d))
    for start in range(0, directions, step):
        rows = range(start, min(start + step, directions))
        drawn = np.stack([generator(seed, "directions", i).standard_normal(d) for i in rows])  # (L, d)
        unit = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
        squares.append(_w2_squared(_projected(samples, unit), _projected(reference, unit)))
    each = torch.cat(squares) * scale**2  # a step of 1 in every pixel has |v|^2 = d, and |v|^2 / d along a direction
    value = math.sqrt(float(each.mean()))
    error = float(each.std()) / math.sqrt(directions) / (2 * value) if value and directions > 1 else 0.0
    counts = len(samples), len(reference)
    return Value("sliced wasserstein", value, *counts, source, value - Z * error, value + Z * error, error, biased=True)


def _projected(pixels: Pixels, unit: Tensor) -> Tensor:
    """Each picture along each direction, sorted: (L, N) float64."""
    parts, size = [], max(1, min(1024, NUMBERS // unit.shape[1]))
    for start in range(0, len(pixels), size):
        rows = np.asarray(pixels[start : start + size]).astype(np.float64).reshape(-1, unit.shape[1])
        parts.append(unit @ torch.from_numpy(rows).T)
    projected = torch.cat(parts, 1).numpy()
    projected.sort(axis=1)  # numpy's is ten times as fast as torch's
    return torch.from_numpy(projected)


def _w2_squared(x: Tensor, y: Tensor) -> Tensor:
    """The squared distance of sorted samples (L, n) and (L, m): the integral over u of the squared difference of their
    quantiles, which are constant between the multiples of 1/n and of 1/m. (L,)"""
    n, m = x.shape[1], y.shape[1]
    cuts = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))  # in units of 1/(n m), exact
    widths = torch.from_numpy(np.diff(cuts) / (n * m))
    left = torch.from_numpy(cuts[:-1])
    return (x[:, left // m] - y[:, left // n]).square() @ widths


def pixel_source(pixels: Pixels) -> Source:
    """What pixels are features of. DataError where these are not at least two pictures."""
    if pixels.ndim != 4 or pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"pictures are (N, C, H, W) uint8 or uint16, not {pixels.shape} {pixels.dtype}")
    if len(pixels) < 2:
        raise DataError(f"{len(pixels)} picture(s) have no distribution to compare; at least 2 are needed")
    count, height, width = pixels.shape[1:]
    bits = pixels.dtype.itemsize * 8
    return Source(f"pixels {height} x {width} x {count}, {bits} bit", "", count * height * width)


def _floats(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(pixels).astype(np.float32))
