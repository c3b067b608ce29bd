"""What a metric says: a number with its error, what it was measured on, and what it may be compared with.

A distance between feature distributions means something only beside another one in the *same* features, so features
carry their `Source` (the extractor's name and the hash of its weights) and every `Value` keeps it: `difference` and
the metrics themselves refuse what was made by different extractors.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moyai.errors import DataError, RequestError

LEVEL = 0.95  # of every interval
Z = 1.959963984540054  # the normal quantile of (1 + LEVEL) / 2


@dataclass(frozen=True)
class Source:
    """What made the features: the extractor's name (with its resize and quantisation) and its weights' sha256."""

    name: str
    digest: str
    dimensions: int

    def __str__(self) -> str:
        return f"{self.name} ({self.digest[:12]})" if self.digest else self.name


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a set of pictures, (N, D) float32, and the probability of each class, (N, K), where there is one.

    `content` is the hash of the pictures they were made of, where it is known.
    """

    values: Tensor
    source: Source
    probabilities: Tensor | None = None
    content: str = ""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != self.source.dimensions:
            raise DataError(
                f"features of {self.source} are (N, {self.source.dimensions}), not {tuple(self.values.shape)}"
            )
        if len(self.values) < 2:
            raise DataError(f"{len(self.values)} picture(s) have no distribution to compare; at least 2 are needed")
        if not bool(torch.isfinite(self.values).all()):
            bad = int((~torch.isfinite(self.values)).any(1).sum())
            raise DataError(f"{bad} of {len(self.values)} pictures have features that are not finite")
        if self.probabilities is not None and len(self.probabilities) != len(self.values):
            raise DataError(f"{len(self.probabilities)} rows of probabilities for {len(self.values)} rows of features")

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> "Features":
        """The rows numbered in `index` ((n,) int64), or those where it is True ((N,) bool)."""
        chosen = None if self.probabilities is None else self.probabilities[index]
        return Features(self.values[index], self.source, chosen)


@dataclass(frozen=True)
class Value:
    """A measured number.

    `low` to `high` is its 95 % interval and `error` its standard error, each where there is one; what they hold fixed
    is said by the function that measured it. `count` samples were judged against `reference` pictures (0: none).
    `biased`: its expectation depends on these counts, so it may be compared at the same counts only; `by_reference`: on
    the number of reference pictures, not on that of samples. `warning` is one sentence for the reader, empty where
    there is nothing to say.
    """

    metric: str
    value: float
    count: int
    reference: int
    source: Source
    low: float | None = None
    high: float | None = None
    error: float | None = None
    biased: bool = False
    warning: str = ""
    by_reference: bool = False


def student(free: int) -> float:
    """Student's quantile of (1 + LEVEL) / 2 with so many degrees of freedom, 1 or more: exact for 1 and 2, else by the
    expansion of Abramowitz and Stegun 1964, eq. 26.7.5, good to 0.03."""
    if free == 1:
        return math.tan(math.pi * LEVEL / 2)
    if free == 2:
        return LEVEL * math.sqrt(2 / (1 - LEVEL**2))
    terms = ((Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384)
    return Z + sum(term / free**power for power, term in enumerate(terms, 1))


def same_source(first: Source, second: Source) -> None:
    """RequestError where two extractors differ."""
    if first != second:
        raise RequestError(
            f"features of {first} cannot be compared with features of {second}: make both with one extractor"
        )


def difference(first: Value, second: Value) -> float:
    """first - second. RequestError where they are other metrics, other extractors, biased ones at other counts, or ones
    `by_reference` at another number of reference pictures."""
    if first.metric != second.metric:
        raise RequestError(f"{first.metric} cannot be compared with {second.metric}: they are different metrics")
    same_source(first.source, second.source)
    mine, theirs = (first.count, first.reference), (second.count, second.reference)
    if first.biased and mine != theirs:
        raise RequestError(
            f"{first.metric} of {mine[0]} samples against {mine[1]} cannot be compared with that of {theirs[0]} "
            f"against {theirs[1]}: it depends on the counts, so take the same"
        )
    if first.by_reference and first.reference != second.reference:
        raise RequestError(
            f"{first.metric} against {first.reference} reference pictures cannot be compared with that against "
            f"{second.reference}: it depends on their number, so take the same"
        )
    return first.value - second.value


def share(
    metric: str, hits: int, count: int, *, reference: int, source: Source, biased: bool = False, warning: str = ""
) -> Value:
    """A proportion with Wilson's interval (1927), which stays within [0, 1] and holds at 0 and 1 too."""
    p = hits / count
    middle = (p + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(p * (1 - p) / count + Z**2 / (4 * count**2))
    low, high = max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))
    error = math.sqrt(p * (1 - p) / count)
    return Value(metric, p, count, reference, source, low, high, error, biased=biased, warning=warning)
