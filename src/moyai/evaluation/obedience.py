"""Does the picture obey its condition? One measure for each field that a picture can be asked to have.

    class      share of pictures that a classifier of the training pictures takes for the class asked for
    position   mean absolute difference between the position asked for and the one a regressor reads, in slices

Each judge is a network of our own, trained on the real training pictures (`networks`, `regressor`) and cached;
whichever extractor the distances are measured in, obedience is measured by these. No judge is perfect, so every value
stands beside that of held-out real pictures, asked for what they are: samples cannot be expected to do better.

A new condition enters here: a class with `field` and `measure`, and its maker in `MAKERS` under the field's name.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from moyai.data.images import ImageSet
from moyai.errors import DataError
from moyai.evaluation import extractors, metrics, networks, regressor
from moyai.evaluation.features import extract
from moyai.evaluation.values import Value, Z

Progress = Callable[[str, int, int], None]
STEPS = 800  # of training a judge
SLICES = 31  # of the range that positions are fractions of: the unit of the error


class Obedience(Protocol):
    """What measures one condition."""

    @property
    def field(self) -> str:
        """The field of the data, and of a request, that it judges."""
        ...

    def measure(self, pixels: np.ndarray, asked: np.ndarray) -> Value:
        """Pictures (N, C, H, W) uint8 or uint16, and what each was asked to be, (N,)."""
        ...


class ClassAccuracy:
    """The share of pictures taken for their class, asked as class numbers (N,) int64."""

    field = "class"

    def __init__(self, classifier: networks.OwnExtractor, cache: Path) -> None:
        self.classifier, self.cache = classifier, cache

    def measure(self, pixels: np.ndarray, asked: np.ndarray) -> Value:
        features = extract(self.classifier, pixels, cache=self.cache)
        return metrics.class_accuracy(features, torch.from_numpy(np.asarray(asked, dtype=np.int64)))


class PositionError:
    """The mean of |asked - read| x 31, with its standard error; positions (N,) are fractions of the range, 0 to 1."""

    field = "position"

    def __init__(self, judge: regressor.Regressor, cache: Path) -> None:
        self.judge, self.cache = judge, cache

    def measure(self, pixels: np.ndarray, asked: np.ndarray) -> Value:
        asked = np.asarray(asked, dtype=np.float64)
        if asked.shape != (len(pixels),):
            raise DataError(f"{len(pixels)} pictures need as many positions, not {asked.shape}")
        if not ((asked >= 0) & (asked <= 1)).all():
            raise DataError(f"positions are fractions, 0 to 1, not {asked.min():g} to {asked.max():g}")
        features = extract(self.judge, pixels, cache=self.cache)
        each = np.abs(self.judge.read(features.values) - asked) * SLICES
        value, error = float(each.mean()), float(each.std(ddof=1)) / len(each) ** 0.5
        name = f"position error (slices of {SLICES})"
        return Value(
            name, value, len(each), 0, self.judge.source, max(0.0, value - Z * error), value + Z * error, error
        )


def judges(
    train: ImageSet, cache: Path, progress: Progress, *, device: torch.device | str = "cpu"
) -> dict[str, Obedience]:
    """A judge for each field of the training pictures that there is a measure of, by field."""
    made = {field: make(train, cache, progress, device) for field, make in MAKERS.items() if field in train.fields}
    return {field: judge for field, judge in made.items() if judge is not None}


def _of_class(train: ImageSet, cache: Path, progress: Progress, device: torch.device | str) -> Obedience | None:
    if extractors.classes_of(train) is None:
        return None
    return ClassAccuracy(extractors.own_extractor(train, cache, progress, device=device), cache)


def _of_position(train: ImageSet, cache: Path, progress: Progress, device: torch.device | str) -> Obedience | None:
    pixels, numbers = np.asarray(train.pixels[np.arange(train.count)]), train.fields["position"]
    if np.ptp(numbers) == 0:
        return None
    path = regressor.path_in(cache, pixels, numbers, field="position", seed=0, steps=STEPS)
    if path.is_file():
        return PositionError(regressor.load(path, device), cache)
    for state in regressor.train(pixels, numbers, field="position", seed=0, steps=STEPS, device=device):
        if state.regressor is not None:
            regressor.save(state.regressor, path)
            return PositionError(state.regressor, cache)
        progress("training the judge of positions", state.step, state.steps)
    raise ValueError("training gave no regressor")


Maker = Callable[[ImageSet, Path, Progress, torch.device | str], Obedience | None]
MAKERS: Mapping[str, Maker] = {"class": _of_class, "position": _of_position}
