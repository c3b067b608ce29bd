"""Pictures judged beside held-out pictures, by one extractor, at one count; of a run, its first stage too.

    reference         training pictures
    held out          the floor: real pictures the model has not seen, in the same number as the samples
    first stage       those held-out pictures through the latents and back (rFID, PSNR, SSIM, MS-SSIM)
    as many samples   of the samples as many as there are held-out pictures, where these are fewer
    samples           drawn from the model as a request says, or given

No value means anything alone: each stands beside the floor, with the counts and the extractor's name. Whether a picture
obeys its condition is measured by judges of their own (`obedience`), and whether it is a copy in features and in pixels
(`memorization`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from moyai import tasks
from moyai.data.images import ImageSet, to_uint
from moyai.errors import DataError
from moyai.evaluation import features as feature_cache
from moyai.evaluation.features import Extractor, Pixels
from moyai.evaluation.memorization import Memorization
from moyai.evaluation.networks import OwnExtractor
from moyai.evaluation.obedience import Obedience
from moyai.evaluation.rows import (
    Pictures,
    Reference,
    Searched,
    copies,
    fidelity,
    measure,
    perceptual_distance,
    without_floor,
)
from moyai.evaluation.values import Features, Value
from moyai.evaluation.wording import NEAR, ROWS
from moyai.firststage.codec import Codec
from moyai.model import LatentModel

Progress = Callable[[str, int, int], None]
REFERENCE = 20_000  # training pictures the others are compared with, at most
SEARCHED = 200_000  # training pictures that copies are looked for among, at most
NEIGHBOURHOOD = 5_000  # of those, for precision and its kin, whose cost is the product of the counts


@dataclass(frozen=True, eq=False)
class Assessment:
    """The values of each row by metric, the copies that were looked for, and the pictures they are of."""

    values: Mapping[str, Mapping[str, Value]]
    copies: Mapping[str, Memorization]  # in "features" and in "pixels"
    samples: np.ndarray  # (N, H, W, C)
    features: Features  # of the samples
    reference: Reference
    facts: Mapping[str, Any]
    names: tuple[str, ...] = ()  # of the samples, where they are files

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        rows = {row: {name: _plain(v) for name, v in values.items()} for row, values in self.values.items()}
        names = self.reference.searched.names
        copies = {space: _plain_copies(found, names, self.names) for space, found in self.copies.items()}
        return {"rows": rows, "facts": dict(self.facts), "copies": copies}


def assess(
    model: LatentModel,
    train: ImageSet,
    held_out: ImageSet,
    extractor: Extractor,
    request: tasks.Request,
    *,
    cache: Path,
    progress: Progress,
    judges: Mapping[str, Obedience] | None = None,
    targets: Mapping[str, np.ndarray] | None = None,
) -> Assessment:
    """Draw the request's pictures and measure everything, the first stage too, unless the model works on pixels.

    targets: what each picture of the request is asked to be, by field, (N,) each; the request's own where it is None.
    """
    drawn = tasks.collect(model, request, lambda done, total: progress("sampling", done, total))
    samples = Pictures(_planes(drawn), request.fields() if targets is None else targets)
    index = _spread(held_out.count, len(drawn))
    decoded = _reconstructions(model.codec, held_out, index, progress)
    again = None if np.array_equal(decoded, _rows(held_out.pixels, index)) else decoded
    found = assess_pictures(
        samples, train, held_out, extractor, again=again, judges=judges, cache=cache, progress=progress
    )
    return replace(found, facts={**found.facts, "request": request.plain(), "model_hash": model.digest})


def assess_pictures(
    samples: Pictures,
    train: ImageSet,
    held_out: ImageSet,
    extractor: Extractor,
    *,
    cache: Path,
    progress: Progress,
    again: np.ndarray | None = None,
    judges: Mapping[str, Obedience] | None = None,
) -> Assessment:
    """Measure pictures that are there already. The floor has as many held-out pictures, at most all.

    again: reconstructions of those held-out pictures, (n, C, H, W), as evenly chosen as the floor is. DataError where
    sizes, channels or depths differ from the reference's.
    """
    judges, index = judges or {}, _spread(held_out.count, len(samples.pixels))
    real = Pictures(_rows(held_out.pixels, index), _asked(held_out, index, judges))
    check_alike(samples.pixels, real.pixels)
    first = {} if again is None else {"first stage": replace(real, pixels=again)}
    reference = _reference(train, extractor, cache, progress)
    judged = {"held out": real, **first, "samples": samples}
    of = {row: _features(extractor, pictures.pixels, cache, row, progress) for row, pictures in judged.items()}
    if len(index) < len(samples.pixels):
        fewer = _spread(len(samples.pixels), len(index))
        judged["as many samples"] = samples.rows(fewer)
        of["as many samples"] = of["samples"].rows(torch.from_numpy(fewer))
    values = _values(of, judged, reference, judges, progress)
    if again is not None:
        values["first stage"] |= _likeness(real.pixels, again, extractor)
    groups = None if held_out.groups is None else held_out.groups[index]
    progress("looking for copies", 0, 1)
    found = copies(of["samples"], samples.pixels, reference.searched, of["held out"], real.pixels, groups, cache)
    progress("looking for copies", 1, 1)
    values["samples"] |= {NEAR[space]: each.close for space, each in found.items()}
    facts = {"samples": len(samples.pixels), **_facts(extractor, reference, len(index), groups)}
    facts |= {"searched for copies": len(reference.searched.features), "training": train.count}
    return Assessment(values, found, _upright(samples.pixels), of["samples"], reference, facts, samples.names)


def assess_first_stage(
    codec: Codec,
    train: ImageSet,
    held_out: ImageSet,
    extractor: Extractor,
    count: int,
    *,
    cache: Path,
    progress: Progress,
    judges: Mapping[str, Obedience] | None = None,
) -> dict[str, Any]:
    """A first stage by itself: at most `count` held-out pictures through it and back, beside the floor; as JSON holds
    an assessment, without samples."""
    judges, index = judges or {}, _spread(held_out.count, count)
    real = Pictures(_rows(held_out.pixels, index), _asked(held_out, index, judges))
    again = _reconstructions(codec, held_out, index, progress)
    judged = {"held out": real, "first stage": replace(real, pixels=again)}
    reference = _reference(train, extractor, cache, progress)
    of = {row: _features(extractor, pictures.pixels, cache, row, progress) for row, pictures in judged.items()}
    values = _values(of, judged, reference, judges, progress)
    values["first stage"] |= _likeness(real.pixels, again, extractor)
    rows = {row: {name: _plain(v) for name, v in measured.items()} for row, measured in values.items()}
    groups = None if held_out.groups is None else held_out.groups[index]
    return {"rows": rows, "facts": _facts(extractor, reference, len(index), groups), "copies": {}}


def _likeness(real: np.ndarray, again: np.ndarray, extractor: Extractor) -> dict[str, Value]:
    """What is measured of each reconstruction and its original."""
    found: dict[str, Value] = dict(fidelity(real, again))
    if isinstance(extractor, OwnExtractor):  # one whose maps are at hand
        far = perceptual_distance(real, again, extractor)
        found[far.metric] = far
    return found


def _facts(extractor: Extractor, reference: Reference, held_out: int, groups: np.ndarray | None) -> dict[str, Any]:
    """What the values are of, beside the samples."""
    facts: dict[str, Any] = {"extractor": str(extractor.source), "held out": held_out}
    facts |= {"reference": len(reference.features), "neighbourhood": len(reference.neighbourhood)}
    if groups is not None:
        facts["groups held out"] = len(np.unique(groups))
    if isinstance(extractor, OwnExtractor):
        facts["extractor is able to"] = extractor.able
    return facts


def _values(
    of: Mapping[str, Features],
    judged: Mapping[str, Pictures],
    reference: Reference,
    judges: Mapping[str, Obedience],
    progress: Progress,
) -> dict[str, dict[str, Value]]:
    """The measures of each row; of samples that are more than the held-out pictures, with a warning."""
    values, by_class = {}, all("class" in pictures.targets for pictures in judged.values())
    for number, row in enumerate((row for row in ROWS if row in judged), 1):
        progress("measuring", number, len(judged))
        values[row] = measure(of[row], reference, judged[row], judges, by_class=by_class)
    if "as many samples" in judged:
        floor = len(of["held out"])
        values["samples"] = {name: without_floor(value, floor) for name, value in values["samples"].items()}
    return values


# ---- pictures


def _reference(train: ImageSet, extractor: Extractor, cache: Path, progress: Progress) -> Reference:
    """Copies are looked for among all training pictures, unless these are very many; the rest is compared with some."""
    whole = train.subset(_spread(train.count, SEARCHED))  # its pictures stay where they are
    all_of_it = _features(extractor, whole.pixels, cache, "training pictures", progress)
    searched = Searched(whole.pixels, all_of_it, tuple(whole.names), whole.groups)
    index = _spread(whole.count, REFERENCE)
    some, found = whole, all_of_it
    if len(index) < whole.count:
        some, chosen = whole.subset(index), all_of_it.rows(torch.from_numpy(index))
        found = replace(chosen, content=feature_cache.content_hash(some.pixels))
    near = found.rows(torch.from_numpy(_spread(len(found), NEIGHBOURHOOD)))
    known = feature_cache.statistics(found, cache=cache)
    return Reference(some.pixels, found, near, known, searched)


def _features(extractor: Extractor, pixels: Pixels, cache: Path, what: str, progress: Progress) -> Features:
    return feature_cache.extract(
        extractor, pixels, cache=cache, progress=lambda done, total: progress(f"features of {what}", done, total)
    )


def check_alike(samples: np.ndarray, real: np.ndarray) -> None:
    """DataError, with both, where samples are not of the reference's size, channels and depth."""
    if samples.shape[1:] == real.shape[1:] and samples.dtype == real.dtype:
        return

    def said(pixels: np.ndarray) -> str:
        channels, height, width = pixels.shape[1:]
        return f"{height} x {width} with {channels} channel(s) of {8 * pixels.dtype.itemsize} bits"

    raise DataError(f"the samples are {said(samples)} and the reference is {said(real)}: make both alike")


def _asked(images: ImageSet, index: np.ndarray, judges: Mapping[str, Obedience]) -> dict[str, np.ndarray]:
    """What real pictures are, by field: the classes, and all that there is a judge of."""
    return {name: images.fields[name][index] for name in {"class", *judges} if name in images.fields}


def _reconstructions(codec: Codec, images: ImageSet, index: np.ndarray, progress: Progress) -> np.ndarray:
    out = []
    for start in range(0, len(index), 64):
        batch = images.batch(index[start : start + 64]).to(codec.mean.device)
        decoded = codec.decode(codec.encode(cast(torch.Tensor, batch.images), batch.fields), batch.fields)
        out.append(_planes(to_uint(decoded.cpu(), bits=images.bits)))
        progress("reconstructing", min(start + 64, len(index)), len(index))
    return np.concatenate(out)


def _planes(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) to (N, C, H, W)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _upright(pixels: np.ndarray) -> np.ndarray:
    """(N, C, H, W) to (N, H, W, C)."""
    return pixels.transpose(0, 2, 3, 1)


def _rows(pixels: Any, index: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[index])


def _spread(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` of `count` numbers, evenly: (n,) int64."""
    return np.linspace(0, count - 1, min(count, wanted)).astype(np.int64)


# ---- as JSON holds it


def _plain(value: Value) -> dict[str, Any]:
    names = ("metric", "value", "low", "high", "error", "count", "reference", "warning")
    return {**{name: getattr(value, name) for name in names}, "source": str(value.source)}


def _plain_copies(found: Memorization, names: tuple[str, ...], mine: tuple[str, ...]) -> dict[str, Any]:
    """The border, the nearest samples with the names of their training pictures, and the close ones by group. A sample
    is named where it has a name, and numbered in the request where it has none."""
    worst = [
        {
            "sample": mine[m.sample] if mine else m.sample,
            "training": names[m.training],
            "distance": m.distance,
            "group": m.group,
        }
        for m in found.worst
    ]
    by_group = {str(group): count for group, count in found.by_group.items()}
    close = int(found.close.value * found.close.count + 0.5)
    plain = {"border": found.border, "within": found.within, "close": close, "worst": worst}
    return {**plain, "by_group": by_group} if by_group else plain
