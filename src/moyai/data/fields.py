"""What the data report says of all that is known of the pictures besides their class: captions, numbers, masks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moyai.data.images import ImageSet
from moyai.data.splits import CHUNK

EXCERPT = 80  # characters of a caption that is shown


@dataclass(frozen=True)
class CaptionFacts:
    """What the captions are like. Lengths are in characters."""

    told: int  # captions that are not empty
    distinct: int
    median: int  # length of those that are not empty
    longest: int
    examples: tuple[str, ...]  # cut to EXCERPT characters


@dataclass(frozen=True)
class NumberFacts:
    """The range of a field of numbers."""

    name: str
    low: float
    high: float
    mean: float


@dataclass(frozen=True)
class RegionFacts:
    """A region of the masks: its share of all pixels, and how many pictures have some of it."""

    name: str
    share: float
    train: int
    validation: int


@dataclass(frozen=True)
class Fields:
    """Facts of each kind of field that a set has."""

    captions: CaptionFacts | None
    numbers: tuple[NumberFacts, ...]
    regions: tuple[RegionFacts, ...]


def look(images: ImageSet, validation: np.ndarray) -> Fields:
    """Looks at every value and every mask once; validation: the numbers of the held-out pictures."""
    return Fields(_captions(images), _numbers(images), _regions(images, validation))


def idle(found: Fields) -> list[str]:
    """What is known of the pictures and cannot teach anything."""
    same = [f"{one.name} ({one.low:g})" for one in found.numbers if one.low == one.high]
    unseen = [one.name for one in found.regions if one.train == 0 and one.validation]
    warnings = [f"the same number for every picture: {first(same)}"] if same else []
    if unseen:
        warnings.append(f"no mask to train on has region {first(unseen)}: only held-out pictures have it")
    return warnings


def lines(found: Fields, count: int) -> Iterator[str]:
    """What is known, in a few lines for people; count: pictures in all."""
    if found.captions:
        said = found.captions
        yield (
            f"captions: {said.told} of {count} pictures, {said.distinct} different, median {said.median} and at "
            f"most {said.longest} characters; such as {'; '.join(repr(text) for text in said.examples)}"
        )
    for number in found.numbers:
        yield f"{number.name}: {number.low:g} to {number.high:g}, mean {number.mean:.4g}"
    if found.regions:
        present = [one for one in found.regions if one.train + one.validation]
        shares = ", ".join(f"{one.name} {100 * one.share:.3g} %" for one in present[:12])
        yield f"masks: {len(found.regions)} regions; {shares}{', ...' if len(present) > 12 else ''}"


def _captions(images: ImageSet) -> CaptionFacts | None:
    if "caption" not in images.fields:
        return None
    texts = [str(text) for text in images.fields["caption"] if text]
    distinct = list(dict.fromkeys(texts))
    lengths = [len(text) for text in texts] or [0]
    return CaptionFacts(
        told=len(texts),
        distinct=len(distinct),
        median=int(np.median(lengths)),
        longest=max(lengths),
        examples=tuple(_excerpt(text) for text in distinct[:: max(1, len(distinct) // 3)][:3]),
    )


def _excerpt(text: str, longest: int = EXCERPT) -> str:
    """The beginning of a text on one line, without what a terminal would obey."""
    words = "".join(c if c.isprintable() else " " for c in text[: 4 * longest])
    words = " ".join(words.split())
    return words if len(words) <= longest else f"{words[: longest - 3]}..."


def _numbers(images: ImageSet) -> tuple[NumberFacts, ...]:
    """Of every field of numbers but the class, and but the slices and positions of cases, which are told of there."""
    known = ("class", "slice", "position") if images.groups is not None else ("class",)
    found = []
    for name, values in images.fields.items():
        if name not in known and values.ndim == 1 and values.dtype.kind in "iuf":
            mean = float(values.mean(dtype=np.float64))
            found.append(NumberFacts(name, float(values.min()), float(values.max()), mean))
    return tuple(found)


def _regions(images: ImageSet, validation: np.ndarray) -> tuple[RegionFacts, ...]:
    if "mask" not in images.fields:
        return ()
    maps = images.fields["mask"]
    regions = max(len(images.regions), 1 + max(int(maps[i : i + CHUNK].max()) for i in range(0, len(maps), CHUNK)))
    pixels, pictures = np.zeros(regions, np.int64), np.zeros((2, regions), np.int64)
    outside = np.isin(np.arange(len(maps)), validation)
    for row, held_out in zip(maps, outside, strict=True):
        counts = np.bincount(row.ravel(), minlength=regions)
        pixels += counts
        pictures[int(held_out)] += counts > 0
    names = [images.regions[i] if i < len(images.regions) else str(i) for i in range(regions)]
    return tuple(
        RegionFacts(name, float(share), int(inside), int(held_out))
        for name, share, inside, held_out in zip(names, pixels / pixels.sum(), *pictures, strict=True)
    )


def first(names: list[str]) -> str:
    """The first names and how many more."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
