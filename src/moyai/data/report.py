"""What is known of the data before the first step: facts, and findings a person should look at."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moyai.data import fields
from moyai.data.fields import Fields, first
from moyai.data.images import ImageSet
from moyai.data.splits import CHUNK, pixel_hashes

FEW = 100
IMBALANCE = 20


@dataclass(frozen=True)
class ClassCount:
    name: str
    train: int
    validation: int


@dataclass(frozen=True)
class CaseCount:
    """Samples that belong together (slices of a case), and where in their range they lie."""

    train: int  # cases
    validation: int
    samples: tuple[int, int, int]  # of a case: least, median, most
    slices: tuple[int, int] | None  # least and greatest slice number
    positions: tuple[float, float] | None  # least and greatest, as fractions of the range


@dataclass(frozen=True)
class DataReport:
    """Plain data: `as_json()` can be written as it is."""

    count: int
    train: int
    validation: int
    shape: tuple[int, int, int]  # (C, H, W)
    bits: int
    fingerprint: str
    classes: tuple[ClassCount, ...]
    cases: CaseCount | None  # None where the source forms no groups
    known: Fields
    sizes: dict[str, tuple[int, int]]  # min, median, max of the source pictures' (height, width); {} where not known
    low: int  # of the stored values
    high: int
    mean: tuple[float, ...]  # of each channel, values on [0, 1]
    std: tuple[float, ...]
    files: int
    unreadable: tuple[tuple[str, str], ...]  # name, reason
    duplicates: tuple[tuple[str, ...], ...]  # names of samples with equal pixels
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def report(images: ImageSet, train: np.ndarray, validation: np.ndarray) -> DataReport:
    """Looks at every picture once. ValueError where a group is on both sides, which `splits.split` never does."""
    low, high, mean, std = _values(images)
    classes = _classes(images, train, validation)
    known = fields.look(images, validation)
    hashes = pixel_hashes(images)
    duplicates = _duplicates(images, hashes)
    return DataReport(
        count=images.count,
        train=len(train),
        validation=len(validation),
        shape=images.shape,
        bits=images.bits,
        fingerprint=images.fingerprint,
        classes=classes,
        cases=_cases(images, train, validation),
        known=known,
        sizes=_sizes(images),
        low=low,
        high=high,
        mean=mean,
        std=std,
        files=len(images.files),
        unreadable=tuple((file.name, file.reason) for file in images.bad),
        duplicates=duplicates,
        notes=images.notes,
        warnings=(
            *_warnings(images, classes, duplicates, validation, low == high),
            *_leaks(images, hashes, validation),
            *fields.idle(known),
        ),
    )


def _values(images: ImageSet) -> tuple[int, int, tuple[float, ...], tuple[float, ...]]:
    """Least and greatest value, and mean and standard deviation of each channel on [0, 1].

    From counts of each level, which are exact, however many pictures there are.
    """
    channels, levels = images.shape[0], 2**images.bits
    counts = np.zeros((channels, levels), dtype=np.int64)
    for start in range(0, images.count, CHUNK):
        rows = np.asarray(images.pixels[start : start + CHUNK])
        for channel in range(channels):
            counts[channel] += np.bincount(rows[:, channel].ravel(), minlength=levels)
    used = np.flatnonzero(counts.sum(0))
    scale = np.arange(levels) / (levels - 1)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ scale
    std = np.sqrt((share * (scale[None] - mean[:, None]) ** 2).sum(1))
    return int(used[0]), int(used[-1]), tuple(mean.tolist()), tuple(std.tolist())


def _classes(images: ImageSet, train: np.ndarray, validation: np.ndarray) -> tuple[ClassCount, ...]:
    if "class" not in images.fields:
        return ()
    labels, count = images.fields["class"], len(images.classes)
    inside, outside = (np.bincount(labels[rows], minlength=count) for rows in (train, validation))
    return tuple(ClassCount(name, int(inside[i]), int(outside[i])) for i, name in enumerate(images.classes))


def _cases(images: ImageSet, train: np.ndarray, validation: np.ndarray) -> CaseCount | None:
    if images.groups is None:
        return None
    inside, outside = np.unique(images.groups[train]), np.unique(images.groups[validation])
    if len(np.intersect1d(inside, outside)):
        raise ValueError("a group is on both sides of the split")  # split() never does that
    members = np.unique(images.groups, return_counts=True)[1]
    slices, positions = images.fields.get("slice"), images.fields.get("position")
    return CaseCount(
        train=len(inside),
        validation=len(outside),
        samples=(int(members.min()), int(np.median(members)), int(members.max())),
        slices=None if slices is None else (int(slices.min()), int(slices.max())),
        positions=None if positions is None else (float(positions.min()), float(positions.max())),
    )


def _sizes(images: ImageSet) -> dict[str, tuple[int, int]]:
    if images.sizes is None:
        return {}
    found = {"min": images.sizes.min(0), "median": np.median(images.sizes, axis=0), "max": images.sizes.max(0)}
    return {name: (int(size[0]), int(size[1])) for name, size in found.items()}


def _duplicates(images: ImageSet, hashes: np.ndarray) -> tuple[tuple[str, ...], ...]:
    same = defaultdict(list)
    for name, key in zip(images.names, hashes.tolist(), strict=True):
        same[key].append(name)
    return tuple(tuple(names) for names in same.values() if len(names) > 1)


def _warnings(
    images: ImageSet,
    classes: tuple[ClassCount, ...],
    duplicates: tuple[tuple[str, ...], ...],
    validation: np.ndarray,
    flat: bool,
) -> list[str]:
    found = []
    if images.count < FEW:
        found.append(f"{images.count} pictures are few: below {FEW} a model mostly remembers them")
    if flat:
        found.append("every value of every picture is the same")
    sizes = {c.name: c.train + c.validation for c in classes}
    for number, what in ((0, "no readable picture"), (1, "one picture only")):
        names = [name for name, size in sizes.items() if size == number]
        if names:
            found.append(f"{len(names)} class{'es' if len(names) > 1 else ''} with {what}: {first(names)}")
    present = {name: size for name, size in sizes.items() if size}
    if present and max(present.values()) > IMBALANCE * min(present.values()):
        most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
        found.append(f"class {most} has {present[most]} pictures, class {least} {present[least]}")
    unseen = [c.name for c in classes if c.train == 0 and c.validation]
    if unseen:
        found.append(f"no picture to train on in class {first(unseen)}: all are held out with their duplicates")
    surplus = sum(len(names) - 1 for names in duplicates)
    if surplus:
        found.append(f"{surplus} pictures are exact duplicates of another (first: {' = '.join(duplicates[0][:3])})")
    if images.bad:
        found.append(f"{len(images.bad)} files could not be read (first: {images.bad[0].name}: {images.bad[0].reason})")
    if len(validation) < 10:
        found.append(f"{len(validation)} pictures are held out: what is measured on them says little")
    return found


def _leaks(images: ImageSet, hashes: np.ndarray, validation: np.ndarray) -> list[str]:
    """Held-out pictures that are trained on under another name, which a split of the source's own can have."""
    if images.held_out is None:
        return []
    known = np.isin(hashes[validation], np.delete(hashes, validation))
    if not known.any():
        return []
    first = images.names[validation[np.flatnonzero(known)[0]]]
    return [f"{int(known.sum())} held-out pictures equal one that is trained on (first: {first})"]


def lines(found: DataReport) -> Iterator[str]:
    """The report in a few lines for people; warnings are not among them."""
    channels, height, width = found.shape
    yield (
        f"data: {found.count} pictures, {channels} x {height} x {width}, {found.bits} bits, values {found.low} to "
        f"{found.high}; {found.train} to train on, {found.validation} held out"
    )
    if found.classes:
        counts = ", ".join(f"{c.name} {c.train + c.validation}" for c in found.classes[:12])
        yield f"{len(found.classes)} classes: {counts}{', ...' if len(found.classes) > 12 else ''}"
    if found.cases:
        yield _line_of_cases(found.cases)
    yield from fields.lines(found.known, found.count)
    for name, reason in found.unreadable[:10]:
        yield f"unreadable: {name}: {reason}"
    if len(found.unreadable) > 10:
        yield f"unreadable: {len(found.unreadable) - 10} more, all in data.json"
    if found.duplicates:
        yield f"{len(found.duplicates)} groups of equal pictures, such as {', '.join(found.duplicates[0][:3])}"
    yield from found.notes


def _line_of_cases(cases: CaseCount) -> str:
    least, median, most = cases.samples
    each = f"{least} pictures each" if least == most else f"{least} to {most} pictures each, median {median}"
    line = f"{cases.train + cases.validation} cases: {cases.train} to train on, {cases.validation} held out; {each}"
    if cases.slices and cases.positions:
        line += f"; slices {cases.slices[0]} to {cases.slices[1]}"
        line += f", positions {cases.positions[0]:.2f} to {cases.positions[1]:.2f}"
    return line
