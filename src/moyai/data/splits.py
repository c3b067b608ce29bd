"""Which samples are kept from training.

A sample's side follows from its pixels alone: h = hash(pixels) as a fraction of 2^64, validation where h < share. So
the split depends neither on the training seed nor on names or the order of files, adding pictures never moves one that
was there, a larger share contains a smaller one, and exact duplicates fall on one side. Samples of one group (a case,
a film) are tied together, and to the duplicates of each, by union-find; all of them take one hash, of the least among
them: the least itself would be below the share for nearly every group of many.

The share is therefore met on average only. Then the few classes that have nothing on one side are mended: what is
nearest to the border goes over, as long as it leaves no other class bare.

A source that brings its own split (`ImageSet.held_out`) is obeyed to the letter: no hash, no share, no mending. Only a
group on both sides is refused; equal pictures on both are a warning of the data report.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from moyai.data.images import ImageSet
from moyai.errors import DataError

CHUNK = 4096


def pixel_hashes(images: ImageSet) -> np.ndarray:
    """(N,) uint64: equal for equal pictures."""
    hashes = np.empty(images.count, dtype=np.uint64)
    for start in range(0, images.count, CHUNK):
        rows = np.ascontiguousarray(images.pixels[start : start + CHUNK])
        for i, row in enumerate(rows, start):
            hashes[i] = _hash(row.data)
    return hashes


def _hash(data: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def split(images: ImageSet, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation): sorted sample numbers, both with at least one.

    DataError where the pictures cannot be parted: all tied to each other, or all on one side of the source's own split.
    """
    if not 0 < share < 1:
        raise DataError(f"the share of validation is between 0 and 1, not {share}")
    if images.held_out is not None:
        return _brought(images, images.held_out)
    hashes = pixel_hashes(images)
    tied = _components(hashes, images.groups)  # (N,) the number of each sample's component
    count = int(tied.max()) + 1 if len(tied) else 0
    if count < 2:
        why = "all of one group or duplicates of it" if images.groups is not None else "all the same"
        raise DataError(f"{images.count} pictures that are {why} cannot be split in training and validation")
    least = np.full(count, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(least, tied, hashes)
    if images.groups is not None:
        least = np.array([_hash(value.tobytes()) for value in least.astype("<u8")], dtype=np.uint64)
    outside = least < np.uint64(share * 2**64)  # (components,) which go to validation
    _mend(outside, least, [np.unique(tied)])
    if "class" in images.fields:
        labels = images.fields["class"]
        _mend(outside, least, [np.unique(tied[labels == label]) for label in np.unique(labels)])
    chosen = outside[tied]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _brought(images: ImageSet, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The split that came with the pictures, refused where a side is empty or a group is on both."""
    train, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if not len(train) or not len(validation):
        raise DataError(f"{len(train)} pictures to train on and {len(validation)} held out; each needs at least 1")
    if images.groups is not None:
        parted = np.intersect1d(images.groups[train], images.groups[validation])
        if len(parted):
            members = np.flatnonzero(images.groups == parted[0])
            inside, outside = (images.names[members[held_out[members] == side][0]] for side in (False, True))
            raise DataError(
                f"{len(parted)} groups are on both sides of the split; the first: {inside} is trained on, {outside} "
                "of the same group is held out"
            )
    return train, validation


def _components(hashes: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Samples tied by equal pixels or by an equal group, numbered 0, 1, 2 ..."""
    same = np.unique(hashes, return_inverse=True)[1]
    if groups is None:
        return same
    belongs = np.unique(groups, return_inverse=True)[1]
    parent = np.arange(int(same.max()) + 1 + int(belongs.max()) + 1)  # one node for each picture, one for each group

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]  # halves the path, so that later calls are short
            node = int(parent[node])
        return node

    offset = int(same.max()) + 1
    for picture, group in zip(same, belongs + offset, strict=True):
        parent[root(int(picture))] = root(int(group))
    roots = np.array([root(int(picture)) for picture in same])
    return np.unique(roots, return_inverse=True)[1]


def _mend(outside: np.ndarray, least: np.ndarray, classes: Sequence[np.ndarray]) -> None:
    """Gives each class of two components or more something on both sides, where that bares no other class.

    `classes` are the components each class has samples in.
    """
    homes: dict[int, list[np.ndarray]] = defaultdict(list)  # the classes of each component
    for members in classes:
        for component in members.tolist():
            homes[component].append(members)
    for members in classes:
        if len(members) < 2:
            continue
        for side in (True, False):
            if (outside[members] == side).any():
                continue
            nearest = members[np.argsort(least[members], kind="stable")]  # validation takes from the low end
            for component in nearest if side else nearest[::-1]:
                outside[component] = side
                if not any(len(home) > 1 and (outside[home] == side).all() for home in homes[int(component)]):
                    break
                outside[component] = not side
