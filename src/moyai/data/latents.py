"""The latent cache: every training picture encoded once, for as many priors as one likes.

A folder holds, for each variant of the pictures ("plain", and "flipped" where the recipe flips), one array a stored
quantity, (N, c, h, w), memory-mapped; and `cache.json`, written last, with the codec's digest and the data's
fingerprint. A folder without a valid `cache.json` is an unfinished one and is made anew; a prior is never given
latents of another codec.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from moyai.batch import Batch
from moyai.data.images import ImageSet, PixelRows, rows_of
from moyai.errors import CheckpointError
from moyai.files import write_json_atomic

PLAIN, FLIPPED = "plain", "flipped"


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
    """Encode every picture into `folder`; `seal` makes it valid once the codec's statistics are known."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cache.json").unlink(missing_ok=True)
    variants = (PLAIN, FLIPPED) if flips else (PLAIN,)
    total, done = images.count * len(variants), 0
    for variant in variants:
        out: dict[str, np.ndarray] = {}
        for start in range(0, images.count, batch):
            index = np.arange(start, min(start + batch, images.count))
            flipped = np.ones(len(index), dtype=bool) if variant == FLIPPED else None
            shown = images.batch(index, flipped).to(device)
            if shown.images is None:
                raise ValueError("a data set without pictures cannot be encoded")
            for name, rows in encoder.store(shown.images, shown.fields).items():
                if name not in out:
                    out[name] = _create(folder / f"{variant}-{name}.npy", (images.count, *rows.shape[1:]))
                out[name][start : start + len(index)] = rows.cpu().numpy()
            done += len(index)
            if progress:
                progress(done, total)
        for array in out.values():
            if isinstance(array, np.memmap):
                array.flush()


def seal(folder: Path, *, codec: str, data: str, count: int) -> None:
    """Write `cache.json`: from now on the folder is a cache of these data by this codec."""
    files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.npy"))}
    write_json_atomic(folder / "cache.json", {"codec": codec, "data": data, "count": count, "files": files})


def read(folder: Path, images: ImageSet, *, codec: str | None) -> LatentCache:
    """The cache in `folder`, rows matching `images`.

    codec: the digest it must have been made with; None reads one that is not sealed yet.
    Raises CheckpointError where the cache is unfinished, of other data or of another codec.
    """
    info: dict[str, Any] = {}
    if codec is not None:
        info = _info(folder)
        if info["codec"] != codec:
            raise CheckpointError(
                f"{folder} holds latents of codec {info['codec'][:12]}, but this first stage is {codec[:12]}; "
                "encode again with --stage latents"
            )
        if info["data"] != images.fingerprint or info["count"] != images.count:
            raise CheckpointError(f"{folder} holds latents of other data; encode again with --stage latents")
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for path in sorted(folder.glob("*-*.npy"), key=lambda p: not p.name.startswith(PLAIN)):
        variant, name = path.stem.split("-", 1)
        arrays.setdefault(variant, {})[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    if PLAIN not in arrays:
        raise CheckpointError(f"{folder} holds no latents; encode with --stage latents")
    return LatentCache(arrays, images.fields, info)


def sealed(folder: Path, *, codec: str, data: str) -> bool:
    """Whether `folder` is a finished cache of these data by this codec."""
    try:
        info = _info(folder)
    except CheckpointError:
        return False
    return bool(info["codec"] == codec and info["data"] == data)


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


def _create(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
