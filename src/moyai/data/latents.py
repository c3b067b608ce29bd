"""The latent cache: every training picture encoded once, for as many priors as one likes.

A folder holds, for each variant of the pictures ("plain", and "flipped" where the recipe flips), one array a stored
quantity, (N, c, h, w), memory-mapped; and `cache.json`, written last, with the codec's digest, the data's fingerprint
and the name of every array, so the variants too. A folder without a valid `cache.json` is an unfinished one and is made
anew; a prior is never given latents of another codec, nor mirrored ones where the recipe does not flip.

The arrays are mapped for reading only. They are written as files: a page of a mapped file that finds the disk full ends
the process by SIGBUS, without a line.
"""

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from moyai.batch import Batch
from moyai.data.images import ImageSet, PixelRows, rows_of
from moyai.errors import CheckpointError
from moyai.files import free_bytes, save_error, write_json_atomic

PLAIN, FLIPPED = "plain", "flipped"
STORED = np.dtype("<f4")
CANNOT = (errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that gives no room beforehand


class Encoder(Protocol):
    """What the cache needs of a codec."""

    def store(self, images: Tensor, fields: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class LatentCache:
    """Stored latents: `arrays[variant][quantity]` is (N, c, h, w) float32, rows in the order of the data set.

    fields: what is known of each picture, (N, ...); a batch has those that are numbers.
    """

    arrays: Mapping[str, Mapping[str, np.ndarray]]
    fields: Mapping[str, np.ndarray | PixelRows]
    info: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.arrays[PLAIN].values())))

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    def batch(self, index: np.ndarray, flipped: np.ndarray | None = None) -> Batch:
        """The stored latents of samples `index` (B,), of their mirror images where `flipped` (B,) says so."""
        stored = {name: np.array(array[index]) for name, array in self.arrays[PLAIN].items()}
        if flipped is not None and flipped.any():
            for name, array in self.arrays[FLIPPED].items():
                stored[name][flipped] = array[index[flipped]]
        return Batch(
            torch.from_numpy(index),
            latents={name: torch.from_numpy(rows) for name, rows in stored.items()},
            fields=rows_of(self.fields, index, flipped if FLIPPED in self.arrays else None),
        )

    def stored(self, variant: str, size: int) -> Iterator[dict[str, Tensor]]:
        """All rows of a variant, `size` at a time."""
        for start in range(0, len(self), size):
            yield {k: torch.from_numpy(np.array(a[start : start + size])) for k, a in self.arrays[variant].items()}


def build(
    folder: Path,
    images: ImageSet,
    encoder: Encoder,
    *,
    flips: bool,
    batch: int = 128,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode every picture into `folder`; `seal` makes it valid once the codec's statistics are known.

    flips: the mirror image of every picture too. What an earlier build left goes first. SaveError where the disk has no
    room for all arrays, told after the first batch.
    """
    variants = _variants(flips)
    total, done = images.count * len(variants), 0
    with _NewArrays(folder, images.count, variants) as arrays:
        for variant in variants:
            for start in range(0, images.count, batch):
                index = np.arange(start, min(start + batch, images.count))
                flipped = np.ones(len(index), dtype=bool) if variant == FLIPPED else None
                shown = images.batch(index, flipped).to(device)
                if shown.images is None:
                    raise ValueError("a data set without pictures cannot be encoded")
                arrays.append(variant, encoder.store(shown.images, shown.fields))
                done += len(index)
                if progress:
                    progress(done, total)


def seal(folder: Path, *, codec: str, data: str, count: int) -> None:
    """Write `cache.json`: from now on the folder is a cache of these data by this codec, in the variants it holds."""
    files = {name: (folder / name).stat().st_size for name in _names(folder)}
    write_json_atomic(folder / "cache.json", {"codec": codec, "data": data, "count": count, "files": files})


def read(folder: Path, images: ImageSet, *, codec: str | None, flips: bool | None = None) -> LatentCache:
    """The cache in `folder`, rows matching `images`.

    codec: the digest it must have been made with; None reads one that is not sealed yet.
    flips: whether it must hold the mirror images; None takes what is there.
    Raises CheckpointError where the cache is unfinished, of other data, of another codec or in other variants.
    """
    info: dict[str, Any] = {}
    names = _names(folder)
    if codec is not None:
        info = _info(folder)
        if info["codec"] != codec:
            raise CheckpointError(
                f"{folder} holds latents of codec {info['codec'][:12]}, but this first stage is {codec[:12]}; "
                "encode again with --stage latents"
            )
        if info["data"] != images.fingerprint or info["count"] != images.count:
            raise CheckpointError(f"{folder} holds latents of other data; encode again with --stage latents")
        names = list(info["files"])
    held = _held(names)
    if flips is not None and held != _variants(flips):
        raise CheckpointError(
            f"{folder} holds the variants {', '.join(held) or 'none'} of its pictures, and data.flip asks for "
            f"{', '.join(_variants(flips))}; encode again with --stage latents"
        )
    arrays: dict[str, dict[str, np.ndarray]] = {variant: {} for variant in held}
    for file in sorted(names):
        variant, name = Path(file).stem.split("-", 1)
        arrays[variant][name] = np.load(folder / file, mmap_mode="r", allow_pickle=False)
    if PLAIN not in arrays:
        raise CheckpointError(f"{folder} holds no latents; encode with --stage latents")
    return LatentCache(arrays, images.fields, info)


def sealed(folder: Path, *, codec: str, data: str, flips: bool) -> bool:
    """Whether `folder` is a finished cache of these data by this codec, with their mirror images just where `flips`."""
    try:
        info = _info(folder)
    except CheckpointError:
        return False
    return bool(info["codec"] == codec and info["data"] == data and _held(info["files"]) == _variants(flips))


def _variants(flips: bool) -> tuple[str, ...]:
    return (PLAIN, FLIPPED) if flips else (PLAIN,)


def _names(folder: Path) -> list[str]:
    """The arrays that lie in a folder."""
    return sorted(path.name for path in folder.glob("*-*.npy"))


def _held(names: Iterable[str]) -> tuple[str, ...]:
    """The variants of arrays so named, the plain one first."""
    return tuple(sorted({name.split("-", 1)[0] for name in names}, key=lambda variant: (variant != PLAIN, variant)))


def _info(folder: Path) -> dict[str, Any]:
    path = folder / "cache.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in info["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a finished latent cache ({error})") from error
    if sizes != info["files"]:
        raise CheckpointError(f"{folder} was altered: its arrays have not the sizes they were written with")
    return info


class _NewArrays:
    """The arrays of a new cache, (count, ...) each, filled from the first row on; in a `with`, whose end closes them.

    The room for all of them is taken as soon as their shapes are known: a disk too small says so at once. SaveError
    where it says no; what was written is removed then.
    """

    def __init__(self, folder: Path, count: int, variants: tuple[str, ...]) -> None:
        """What an earlier build left in the folder is removed, its seal first."""
        self.folder, self.count, self.variants = folder, count, variants
        self.files: dict[str, IO[bytes]] = {}
        self.needed = 0
        with self._saving():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cache.json").unlink(missing_ok=True)
            self._remove()

    def __enter__(self) -> "_NewArrays":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            with self._saving():
                for file in self.files.values():
                    file.flush()
                    os.fsync(file.fileno())
        self._close()

    def append(self, variant: str, stored: Mapping[str, Tensor]) -> None:
        """The next rows of a variant, (B, ...) a quantity."""
        with self._saving():
            if not self.files:
                self._begin({name: (self.count, *rows.shape[1:]) for name, rows in stored.items()})
            for name, rows in stored.items():
                self.files[f"{variant}-{name}"].write(np.ascontiguousarray(rows.cpu().numpy(), STORED).data)

    def _begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.needed = len(self.variants) * STORED.itemsize * sum(math.prod(shape) for shape in shapes.values())
        free = free_bytes(self.folder)
        if free is not None and free < self.needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for variant in self.variants:
            for name, shape in shapes.items():
                file = self.files[f"{variant}-{name}"] = _create(self.folder / f"{variant}-{name}.npy", shape)
                _take_room(file, STORED.itemsize * math.prod(shape))

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._close()
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self._remove()
            raise save_error(error, self.folder, self.needed) from error

    def _close(self) -> None:
        for file in self.files.values():
            with contextlib.suppress(OSError):  # rows for which there was no room are tried once more by this
                file.close()

    def _remove(self) -> None:
        for path in self.folder.glob("*.npy"):
            path.unlink()


def _create(path: Path, shape: tuple[int, ...]) -> IO[bytes]:
    """A new .npy, open where its first row goes."""
    file = path.open("wb")
    np.lib.format.write_array_header_1_0(file, {"descr": STORED.str, "fortran_order": False, "shape": shape})
    return file


def _take_room(file: IO[bytes], size: int) -> None:
    """Give a file room for `size` bytes more, where the system can; quotas and other writers count from then on."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, file.tell() + size)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
