"""A row of an evaluation's table: every measure of one set of pictures against the reference.

The measures themselves are in `frechet`, `metrics`, `neighbours`, `memorization`, `obedience` and `moyai.similarity`;
here stands which of them are taken, and from which counts on they mean something.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moyai import similarity
from moyai.evaluation import frechet, memorization, metrics
from moyai.evaluation.features import Pixels, distances, to_images
from moyai.evaluation.memorization import Memorization
from moyai.evaluation.neighbours import manifold, own_radii
from moyai.evaluation.networks import OwnExtractor
from moyai.evaluation.obedience import Obedience
from moyai.evaluation.values import Features, Source, Value

FEW_BALLS = 50  # below so many pictures, shares of balls of 3 and 5 neighbours say little
FEW_OF_CLASS = 10  # below so many pictures a class, class confidence is held down by the count
FEW_SLICED = 200  # below so many pictures, the sliced Wasserstein distance is mostly that of the sampling
SMALL = 4096  # numbers of a picture that copies are looked for in: larger ones are averaged to at most so many


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures to judge, (N, C, H, W) uint8 or uint16, by field what each was asked to be, (N,), and what each is
    called where they lie, () where they have only numbers."""

    pixels: np.ndarray
    targets: Mapping[str, np.ndarray] = field(default_factory=dict)  # "class": int64; "position": 0 to 1
    names: tuple[str, ...] = ()

    def rows(self, index: np.ndarray) -> "Pictures":
        targets = {name: values[index] for name, values in self.targets.items()}
        return Pictures(self.pixels[index], targets, tuple(self.names[i] for i in index) if self.names else ())


@dataclass(frozen=True, eq=False)
class Searched:
    """The training pictures that copies are looked for among."""

    pixels: Pixels  # (T, C, H, W)
    features: Features
    names: tuple[str, ...]
    groups: np.ndarray | None  # (T,) int64


@dataclass(frozen=True, eq=False)
class Reference:
    """The training pictures that others are compared with."""

    pixels: Pixels  # (M, C, H, W)
    features: Features
    neighbourhood: Features  # some of these, for what costs the product of the counts
    statistics: frechet.Statistics
    searched: Searched

    @cached_property
    def radii(self) -> Tensor:
        """How far the neighbourhood's own neighbours are, squared, once for all that is compared with it."""
        return own_radii(self.neighbourhood)


def measure(
    mine: Features,
    reference: Reference,
    judged: Pictures,
    judges: Mapping[str, Obedience],
    *,
    by_class: bool = True,
) -> dict[str, Value]:
    """Every measure of a set of pictures and its features, by name. RequestError where the reference's features are
    another extractor's.

    by_class: whether pairs are of one class where classes are known; no row of a table knows them unless all do.
    """
    distance = frechet.fid(mine, reference.statistics)
    near = manifold(mine, reference.neighbourhood, radii=reference.radii)
    found = [distance.value, distance.infinity, metrics.kid(mine, reference.features)]
    fewest = min(len(mine), len(reference.neighbourhood))
    few = f"neighbourhoods of {fewest} pictures say little; take {FEW_BALLS} or more"
    balls = (near.precision, near.recall, near.density, near.coverage)
    found += [warned(value, few) if fewest < FEW_BALLS else value for value in balls]
    for name, judge in judges.items():
        if name in judged.targets:
            found += judge.measure(judged.pixels, judged.targets[name])
    if mine.probabilities is not None:
        value, wanted = metrics.class_confidence(mine), FEW_OF_CLASS * mine.probabilities.shape[1]
        few = f"{len(mine)} pictures hold it down by their number; take {wanted} or more"
        found.append(warned(value, few) if len(mine) < wanted else value)
    value, fewest = metrics.sliced_wasserstein(judged.pixels, reference.pixels), min(len(mine), len(reference.pixels))
    few = f"between {fewest} pictures and others of their own kind it is large already; take {FEW_SLICED} or more"
    found.append(warned(value, few) if fewest < FEW_SLICED else value)
    labels = judged.targets.get("class") if by_class else None
    if labels is None or np.unique(labels, return_counts=True)[1].max() > 1:  # else no two are of one class
        found.append(metrics.ms_ssim_diversity(judged.pixels, labels))
    return {value.metric.split(" (")[0]: value for value in found}


def fidelity(real: np.ndarray, again: np.ndarray) -> dict[str, Value]:
    """PSNR, SSIM and MS-SSIM of reconstructions, means over pictures (N, C, H, W) with their standard errors.

    Equal pictures, whose PSNR is infinite, count as if one of their values were wrong by one level.
    """
    source = metrics.pixel_source(real)
    top = float(np.iinfo(real.dtype).max)
    scales = f"ms-ssim ({metrics.scales_told(*real.shape[2:])})"
    out = {}
    for name, compare in (("psnr", similarity.psnr), ("ssim", similarity.ssim), (scales, similarity.ms_ssim)):
        parts = []
        for rows in _batches(real):
            x, y = (torch.from_numpy(p[rows].astype(np.float32)) for p in (real, again))
            parts.append(compare(x, y, top=top))
        each = torch.cat(parts)
        if name == "psnr":
            each = each.clamp_max(10 * math.log10(top**2 * source.dimensions))
        out[name.split(" (")[0]] = _mean(name, each, source)
    return out


def perceptual_distance(real: np.ndarray, again: np.ndarray, judge: OwnExtractor) -> Value:
    """The mean perceptual distance of reconstructions, 0 to 2, in the maps of the network that judges: another one
    than a first stage may have been trained by."""
    with torch.no_grad():
        parts = [judge.perceptual(to_images(real[rows]), to_images(again[rows])) for rows in _batches(real)]
    return _mean("perceptual distance", torch.cat(parts), judge.source)


def _mean(name: str, each: Tensor, source: Source) -> Value:
    """The mean over pictures (N,), with its standard error."""
    return Value(name, float(each.mean()), len(each), 0, source, error=float(each.std()) / len(each) ** 0.5)


def _batches(pixels: np.ndarray) -> list[slice]:
    """At most 256 pictures at once, fewer of large ones."""
    size = max(1, min(256, metrics.NUMBERS // int(np.prod(pixels.shape[1:]))))
    return [slice(start, start + size) for start in range(0, len(pixels), size)]


def copies(
    mine: Features,
    samples: np.ndarray,
    training: Searched,
    theirs: Features,
    real: np.ndarray,
    groups: np.ndarray | None,
    cache: Path | None = None,
) -> dict[str, Memorization]:
    """The nearest training pictures of samples in "features" and in "pixels", with held-out pictures as the control.

    groups: of the held-out pictures `real`, where the data have groups. The control's distances are kept in the folder
    `cache`, under the hash of both sets.
    """
    mine_of, theirs_of = (training.groups, groups) if groups is not None else (None, None)
    apart = "all" if mine_of is None or theirs_of is None else _hashed(mine_of) + _hashed(theirs_of)

    def kept(name: str) -> memorization.Kept:
        told = f"control in {name}, {apart}"
        return lambda make: distances(told, training.features, theirs, len(real), make, cache=cache)

    small = [_small(pixels) for pixels in (samples, training.pixels, real)]
    return {
        "features": memorization.in_features(
            mine, training.features, theirs, groups=mine_of, held_out_groups=theirs_of, kept=kept("features")
        ),
        "pixels": memorization.in_pixels(
            small[0], small[1], small[2], groups=mine_of, held_out_groups=theirs_of, kept=kept(f"pixels, {SMALL}")
        ),
    }


def _hashed(groups: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(groups, "<i8").data).hexdigest()


def _small(pixels: Pixels) -> np.ndarray:
    """Pictures averaged over squares until each has at most `SMALL` numbers; a copy stays a copy."""
    count, channels, height, width = pixels.shape
    side = 1
    while channels * (height // side) * (width // side) > SMALL:
        side += 1
    if side == 1:
        return np.asarray(pixels)
    h, w = height // side, width // side
    parts = []
    for start in range(0, count, 256):
        cut = pixels[start : start + 256][:, :, : h * side, : w * side].astype(np.float32)
        parts.append(cut.reshape(len(cut), channels, h, side, w, side).mean((3, 5)).round().astype(pixels.dtype))
    return np.concatenate(parts)


def without_floor(value: Value, held_out: int) -> Value:
    """A value that depends on its count, warned of where there are not as many held-out pictures."""
    if not value.biased:
        return value
    return warned(
        value,
        f"{held_out} held-out pictures are fewer than {value.count} samples: the floor at this count is not known, so "
        "compare it with 'as many samples'",
    )


def warned(value: Value, warning: str) -> Value:
    """The value with one more warning."""
    return replace(value, warning="; ".join(filter(None, (value.warning, warning))))
