"""Does the picture obey its condition? Measures for each field that a picture can be asked to have.

    class      share of pictures that a classifier of the training pictures takes for the class asked for
    position   mean absolute difference between the position asked for and the one a regressor reads, in slices
    a number   the same for any other field of floats, such as an age, in that field's own units
    a map      mIoU of the map of regions asked for and the one a segmenter reads
    caption    of scenes of shapes: shares of pictures whose colours, shapes, sizes, relations are as told, by program

Each judge but the last is a network of our own, trained on the real training pictures (`networks`, `regressor`,
`segmenter`) and cached; whichever extractor the distances are measured in, obedience is measured by these. No judge is
perfect, so every value stands beside that of held-out real pictures, asked for what they are: samples cannot be
expected to do better.

A new condition enters here: a class with `field` and `measure`, and in `judges` which fields it is for.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from moyai.data.grammar import parse
from moyai.data.images import ImageSet
from moyai.errors import DataError
from moyai.evaluation import extractors, keeping, metrics, networks, regressor, segmenter
from moyai.evaluation.features import extract
from moyai.evaluation.scenes import SceneJudge
from moyai.evaluation.values import Value, Z
from moyai.randomness import generator

Progress = Callable[[str, int, int], None]
STEPS = 1200  # of training a regressor
SEGMENTER_STEPS = 500
SLICES = 31  # of the range that positions are fractions of: the unit of the error
RESAMPLES = 200  # of the pictures, for the error of mIoU


class Obedience(Protocol):
    """What measures one condition."""

    @property
    def field(self) -> str:
        """The field of the data, and of a request, that it judges."""
        ...

    def measure(self, pixels: np.ndarray, asked: np.ndarray) -> Sequence[Value]:
        """Pictures (N, C, H, W) uint8 or uint16, and what each was asked to be, (N, ...): one value or more."""
        ...


class ClassAccuracy:
    """The share of pictures taken for their class, asked as class numbers (N,) int64."""

    field = "class"

    def __init__(self, classifier: networks.OwnExtractor, cache: Path) -> None:
        self.classifier, self.cache = classifier, cache

    def measure(self, pixels: np.ndarray, asked: np.ndarray) -> Sequence[Value]:
        features = extract(self.classifier, pixels, cache=self.cache)
        return (metrics.class_accuracy(features, torch.from_numpy(np.asarray(asked, dtype=np.int64))),)


class NumberError:
    """The mean of |asked - read|, with its standard error, of numbers (N,) in the units of their field."""

    def __init__(self, judge: regressor.Regressor, cache: Path) -> None:
        self.judge, self.cache, self.field = judge, cache, judge.field
        self.scale, self.unit = 1.0, ""

    def measure(self, pixels: np.ndarray, asked: np.ndarray) -> Sequence[Value]:
        asked = np.asarray(asked, dtype=np.float64)
        if asked.shape != (len(pixels),):
            raise DataError(f"{len(pixels)} pictures need as many values of {self.field}, not {asked.shape}")
        self.check(asked)
        features = extract(self.judge, pixels, cache=self.cache)
        each = np.abs(self.judge.read(features.values) - asked) * self.scale
        value, error = float(each.mean()), float(each.std(ddof=1)) / len(each) ** 0.5
        name, low, high = f"{self.field} error{self.unit}", max(0.0, value - Z * error), value + Z * error
        return (Value(name, value, len(each), 0, self.judge.source, low, high, error),)

    def check(self, asked: np.ndarray) -> None:
        """DataError for numbers that cannot be asked for."""
        if not np.isfinite(asked).all():
            raise DataError(f"{int((~np.isfinite(asked)).sum())} values of {self.field} asked for are not finite")


class PositionError(NumberError):
    """The same for positions, which are fractions of the range, 0 to 1, and whose error is told in slices of it."""

    def __init__(self, judge: regressor.Regressor, cache: Path) -> None:
        super().__init__(judge, cache)
        self.scale, self.unit = float(SLICES), f" (slices of {SLICES})"

    def check(self, asked: np.ndarray) -> None:
        if not ((asked >= 0) & (asked <= 1)).all():
            raise DataError(f"positions are fractions, 0 to 1, not {asked.min():g} to {asked.max():g}")


class MapAgreement:
    """mIoU of the maps (N, H, W) of region numbers asked for and those read from the pictures.

    Its error is that of drawing as many pictures again with replacement (Efron 1979).
    """

    def __init__(self, judge: segmenter.Segmenter, field: str) -> None:
        self.judge, self.field = judge, field

    def measure(self, pixels: np.ndarray, asked: np.ndarray) -> Sequence[Value]:
        asked, count, regions = np.asarray(asked), len(pixels), self.judge.regions
        segmenter.check_maps(asked, (count, *pixels.shape[2:]), regions)
        common, together = segmenter.overlaps(self.judge.read(pixels), asked, regions)
        value = segmenter.mean_iou(common, together)
        again = generator(0, "map agreement").integers(0, count, (RESAMPLES, count))
        error = float(np.std([segmenter.mean_iou(common[rows], together[rows]) for rows in again]))
        low, high = max(0.0, value - Z * error), min(1.0, value + Z * error)
        return (Value(f"{self.field} mIoU", value, count, 0, self.judge.source, low, high, error),)


def judges(
    train: ImageSet,
    cache: Path,
    progress: Progress,
    *,
    fields: Collection[str] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Obedience]:
    """A judge for each field of the training pictures that there is a measure of, by field; of `fields` only, where
    they are given: some judges take a minute to train, and a number that nobody asked for needs none."""
    made: dict[str, Obedience | None] = {}
    for field, values in train.fields.items():
        if fields is not None and field not in fields:
            continue
        if field == "class":
            made[field] = _of_class(train, cache, progress, device)
        elif values.dtype.kind in "iuf" and values.ndim == 1:
            made[field] = _of_number(train, field, cache, progress, device)
        elif values.dtype.kind in "iu" and values.ndim == 3:
            made[field] = _of_map(train, field, cache, progress, device)
        elif field == SceneJudge.field:
            made[field] = _of_caption(train)
    return {field: judge for field, judge in made.items() if judge is not None}


def _of_class(train: ImageSet, cache: Path, progress: Progress, device: torch.device | str) -> Obedience | None:
    if extractors.classes_of(train) is None:
        return None
    return ClassAccuracy(extractors.own_extractor(train, cache, progress, device=device), cache)


def _of_number(
    train: ImageSet, field: str, cache: Path, progress: Progress, device: torch.device | str
) -> Obedience | None:
    pixels, numbers = train.pixels, train.fields[field]
    if np.ptp(numbers) == 0:
        return None
    judge = keeping.found_or_made(
        regressor.path_in(cache, pixels, numbers, field=field, seed=0, steps=STEPS),
        lambda path: regressor.load(path, device),
        regressor.save,
        lambda: regressor.train(pixels, numbers, field=field, seed=0, steps=STEPS, device=device),
        progress,
        f"training the judge of {field}s",
    )
    return PositionError(judge, cache) if field == "position" else NumberError(judge, cache)


def _of_map(
    train: ImageSet, field: str, cache: Path, progress: Progress, device: torch.device | str
) -> Obedience | None:
    pixels, maps = train.pixels, np.asarray(train.fields[field][np.arange(train.count)])
    if np.ptp(maps) == 0:
        return None
    regions, steps = max(len(train.regions), int(maps.max()) + 1), SEGMENTER_STEPS
    judge = keeping.found_or_made(
        segmenter.path_in(cache, pixels, maps, regions=regions, seed=0, steps=steps),
        lambda path: segmenter.load(path, device),
        segmenter.save,
        lambda: segmenter.train(pixels, maps, regions=regions, seed=0, steps=steps, device=device),
        progress,
        f"training the judge of {field}s",
    )
    return MapAgreement(judge, field)


def _of_caption(train: ImageSet) -> Obedience | None:
    """The program, where it can read these captions and pictures: all captions are of scenes of shapes."""
    if train.shape[0] != 3:
        return None
    try:
        for caption in set(train.fields[SceneJudge.field].tolist()):
            parse(str(caption))
    except DataError:
        return None
    return SceneJudge()
