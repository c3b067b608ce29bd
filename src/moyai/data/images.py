"""A set of pictures as arrays: what every source yields, and what training reads.

Pixels are kept as the integers they are stored in (uint8, or uint16 where a picture has more than 8 bits), in memory or
memory-mapped, and become float only when a batch is asked for:

    x = v / (2^bits - 1) * 2 - 1        in [-1, 1],        v = round((x + 1) / 2 * (2^bits - 1))

`to_uint` is the exact inverse of `ImageSet.images`: in float32 the rounding error of x stays below half a level even
for 16 bits.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor

from moyai.batch import Batch
from moyai.errors import DataError

Progress = Callable[[str, int, int], None]  # what is done, how many are done, of how many


@dataclass(frozen=True)
class SourceFile:
    """A file the pixels came from: one row of the fingerprint."""

    name: str  # relative to the root, with forward slashes
    size: int
    sha256: str


@dataclass(frozen=True)
class BadFile:
    """A file that gave no picture, and why."""

    name: str
    reason: str


class PixelRows:
    """Some rows of an array, as an array of their own: a subset of a memory map that copies nothing."""

    def __init__(self, stored: np.ndarray, rows: np.ndarray) -> None:
        self.stored, self.rows = stored, rows
        self.shape = (len(rows), *stored.shape[1:])
        self.dtype, self.ndim = stored.dtype, stored.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        return np.asarray(self.stored[self.rows[index]])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.stored[self.rows], dtype=dtype)


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one shape, their classes, and where they came from.

    `decoding` says how files became pixels (resolution, channels, policy): with the files it makes the fingerprint.
    `sizes` are the (height, width) of the source pictures before any resize. `groups` number what must not be parted
    (all slices of a case). `held_out` is a split that the source brings along; it goes before the hashed one.

    `fields` hold what is known of each picture: "class" int64, numbers as float32, captions as an array of str, maps of
    regions as (N, H, W) uint8, whose names are `regions`. A batch has those that are numbers, maps mirrored with their
    pictures.
    """

    pixels: np.ndarray | PixelRows  # (N, C, H, W) uint8 or uint16
    fields: dict[str, np.ndarray]  # each (N, ...), by name
    classes: tuple[str, ...]  # their names
    names: Sequence[str]  # of each sample
    files: tuple[SourceFile, ...]
    bad: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()
    groups: np.ndarray | None = None  # (N,) int64
    sizes: np.ndarray | None = None  # (N, 2) int64
    held_out: np.ndarray | None = None  # (N,) bool
    decoding: str = ""
    regions: tuple[str, ...] = ()  # names of the regions of a "mask"

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels are (N, C, H, W) uint8 or uint16, not {self.pixels.shape} {self.pixels.dtype}")
        own = {"names": self.names, "groups": self.groups, "sizes": self.sizes, "held_out": self.held_out}
        for what, rows in {**own, **self.fields}.items():
            if rows is not None and len(rows) != self.count:
                raise ValueError(f"{len(rows)} {what} for {self.count} pictures")

    def __len__(self) -> int:
        return self.count

    @property
    def count(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return int(channels), int(height), int(width)

    @property
    def bits(self) -> int:
        return int(self.pixels.dtype.itemsize * 8)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over the files (name, size, content) and the way they were decoded."""
        digest = hashlib.sha256(f"{self.decoding}\n".encode("utf-8", "backslashreplace"))
        for file in self.files:
            digest.update(f"{file.name}\0{file.size}\0{file.sha256}\n".encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def images(self, index: np.ndarray) -> Tensor:
        """Pictures by number, (B, C, H, W) float32 in [-1, 1]."""
        values = torch.from_numpy(np.asarray(self.pixels[np.asarray(index, dtype=np.int64)]).astype(np.float32))
        return values.div_(2**self.bits - 1).mul_(2).sub_(1)

    def batch(self, index: np.ndarray, flipped: np.ndarray | None = None) -> Batch:
        """A batch of pictures by number; those with `flipped[i]` ((B,) bool) are mirrored left to right."""
        index = np.asarray(index, dtype=np.int64)
        images = self.images(index)  # (B, C, H, W)
        if flipped is not None:
            images = torch.where(torch.from_numpy(np.asarray(flipped)).view(-1, 1, 1, 1), images.flip(-1), images)
        return Batch(torch.from_numpy(index), images, None, rows_of(self.fields, index, flipped))

    def subset(self, index: np.ndarray) -> "ImageSet":
        """The samples numbered in `index`, in that order. Pixels are shared, never copied."""
        index = np.asarray(index, dtype=np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < self.count:
            raise IndexError(f"samples are numbered 0 to {self.count - 1}, not {index.min()} to {index.max()}")
        if isinstance(self.pixels, PixelRows):
            pixels = PixelRows(self.pixels.stored, self.pixels.rows[index])
        else:
            pixels = PixelRows(self.pixels, index)
        rows = hashlib.sha256(index.astype("<i8").tobytes()).hexdigest()
        return replace(
            self,
            pixels=pixels,
            names=[self.names[i] for i in index],
            fields={name: _kept(values, index) for name, values in self.fields.items()},
            groups=None if self.groups is None else self.groups[index],
            sizes=None if self.sizes is None else self.sizes[index],
            held_out=None if self.held_out is None else self.held_out[index],
            decoding=f"{self.decoding}; rows {rows}",
        )


def _kept(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows of a field; maps, which are as large as pictures, are shared and not copied."""
    if values.ndim < 3:
        return values[index]
    rows = PixelRows(values.stored, values.rows[index]) if isinstance(values, PixelRows) else PixelRows(values, index)
    return cast(np.ndarray, rows)


def captioned(images: ImageSet, templates: Sequence[str]) -> ImageSet:
    """The set with captions made from its classes: "{class}" in a template is the class's name.

    Picture i has template i, beginning again after the last; so they are spread evenly. DataError where there are no
    classes, or captions already.
    """
    if not images.classes or "caption" in images.fields:
        there = "captions of their own" if images.classes else "no classes"
        raise DataError(f"data.class_captions makes captions from classes, and these data have {there}")
    made = [
        templates[i % len(templates)].replace("{class}", images.classes[number])
        for i, number in enumerate(images.fields["class"])
    ]
    fields = {**images.fields, "caption": np.array(made, dtype=np.str_)}
    return replace(images, fields=fields, decoding=f"{images.decoding}; captions {list(templates)}")


def rows_of(
    fields: Mapping[str, np.ndarray | PixelRows], index: np.ndarray, flipped: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Rows of the fields that are numbers, as a batch has them; what has a width, (N, ..., W), is mirrored where
    `flipped` ((B,) bool)."""
    found = {}
    for name, values in fields.items():
        if values.dtype.kind not in "biuf":
            continue
        rows = np.asarray(values[index])
        if flipped is not None and values.ndim in (3, 4):  # by numpy: torch has no flip of 16 bits without sign
            choose = np.asarray(flipped).reshape(-1, *[1] * (rows.ndim - 1))
            rows = np.where(choose, rows[..., ::-1], rows)
        found[name] = torch.from_numpy(rows)
    return found


def to_uint(images: Tensor, bits: int = 8) -> np.ndarray:
    """Pictures as stored integers: (B, C, H, W) in [-1, 1] -> (B, H, W, C) uint8 or uint16, rounded and clipped.

    A value that is not a number becomes black, so that a preview of a failing run can still be looked at.
    """
    if bits not in (8, 16):
        raise ValueError(f"pictures have 8 or 16 bits, not {bits}")
    top = 2**bits - 1
    values = images.detach().to("cpu", torch.float32).nan_to_num(nan=-1.0).add(1).div(2).mul(top).round().clamp(0, top)
    return values.permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8 if bits == 8 else np.uint16)


def chosen(names: Sequence[str], labels: np.ndarray | None, limit: int | None) -> np.ndarray:
    """Which samples a limit keeps, sorted: evenly over the classes, and within a class by the hash of the name.

    By hash and not from the beginning, because neighbours in a sorted folder are often alike (frames of one film).
    """
    if limit is None or limit >= len(names):
        return np.arange(len(names))
    order = np.argsort(_name_order(names))
    if labels is None:
        return np.sort(order[:limit])
    rank = np.empty(len(names), dtype=np.int64)  # the place of a sample within its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    turn = np.lexsort((labels, rank))  # the first of each class, the second of each class, ...
    return np.sort(turn[:limit])


def spread(names: Sequence[str], slices: np.ndarray, limit: int) -> np.ndarray:
    """Which slices a limit keeps, sorted: evenly over the slice numbers, and within a number by the hash of the name.

    Every (N / limit)-th in that order, so that each part of the range has its share, of many cases.
    """
    if limit >= len(names):
        return np.arange(len(names))
    order = np.lexsort((_name_order(names), slices))
    return np.sort(order[(2 * np.arange(limit) + 1) * len(names) // (2 * limit)])


def _name_order(names: Sequence[str]) -> np.ndarray:
    """(N,) the place of each name in the order of the names' hashes."""
    keys = np.array([hashlib.blake2b(n.encode("utf-8", "backslashreplace"), digest_size=8).digest() for n in names])
    place = np.empty(len(names), dtype=np.int64)
    place[np.argsort(keys, kind="stable")] = np.arange(len(names))
    return place


def difference(old: Sequence[SourceFile], new: Sequence[SourceFile]) -> str | None:
    """The first difference between two lists of files in one sentence; None when they are equal."""
    before, after = {f.name: f for f in old}, {f.name: f for f in new}
    removed = [name for name in before if name not in after]
    added = [name for name in after if name not in before]
    here = {after[name].sha256: name for name in sorted(added, reverse=True)}
    there = {before[name].sha256: name for name in sorted(removed, reverse=True)}
    found: list[str] = []
    for name in sorted({*before, *after}):
        if name not in after:
            other = here.get(before[name].sha256)
            found.append(f"{name} was renamed to {other}" if other else f"{name} was removed")
        elif name not in before:
            if after[name].sha256 not in there:
                found.append(f"{name} was added")
        elif before[name].sha256 != after[name].sha256:
            found.append(f"{name} was altered ({before[name].size} bytes before, {after[name].size} now)")
    if not found:
        return None
    more = f" (and {len(found) - 1} more differences)" if len(found) > 1 else ""
    return f"{found[0]}{more}"
