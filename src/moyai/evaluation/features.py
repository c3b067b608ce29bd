"""From pictures to features: what an extractor is, and the cache that computes each set once.

An extractor turns pictures into vectors in which distances mean something: a small network of our own trained on the
data themselves (`networks`), or the published Inception network (`inception`). Pictures come as stored integers,
(N, C, H, W) uint8 or uint16, because that is what a file holds and what a viewer sees: samples that were never rounded
would be judged on values nobody gets. Resize and quantisation are part of an extractor's name.

Features lie in the cache under (hash of `VERSION` and of the extractor's name and weights, hash of the pictures'
content), so the reference set is computed once, whichever run asks, and a changed picture or weight, or what older code
computed of them, is never taken for the new one. The mean and scatter of a set with the root of its covariance, which
the Fréchet distance needs, lie beside them, and so do the distances from held-out pictures to the training pictures,
which memorisation is judged by.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from moyai.data.images import PixelRows
from moyai.errors import DataError, SaveError
from moyai.evaluation.frechet import Statistics
from moyai.evaluation.values import Features, Source
from moyai.files import save_error, write_atomic

Pixels = np.ndarray | PixelRows  # (N, C, H, W) uint8 or uint16, in memory or on the disk
Progress = Callable[[int, int], None]  # how many are done, of how many
ROWS = 1024
VERSION = 1  # counts up when the same pictures and weights give other features, statistics or distances


class Extractor(Protocol):
    """What features are made by."""

    @property
    def source(self) -> Source:
        """Name (with resize and quantisation), sha256 of the weights, number of features."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, D) float32 of pictures (B, C, H, W) in [-1, 1]. DataError for a size it cannot take."""
        ...

    def probabilities(self, features: Tensor) -> Tensor | None:
        """The probability of each of its classes, (B, K), from features (B, D); None where it knows no classes."""
        ...


def extract(
    extractor: Extractor,
    pixels: Pixels,
    *,
    cache: Path | None = None,
    batch: int = 128,
    progress: Progress | None = None,
) -> Features:
    """The features of a set of pictures, from the folder `cache` where they were computed before."""
    check_pixels(pixels)
    content = content_hash(pixels)
    path = None if cache is None else cache / "features" / _key(extractor.source) / f"{content[:32]}.safetensors"
    values = None if path is None else _read(path, len(pixels), extractor.source.dimensions)
    if values is None:
        values = _computed(extractor, pixels, batch, progress)
        if path is not None:
            _write(path, {"features": values})
    with torch.no_grad():
        parts = [extractor.probabilities(part) for part in values.split(ROWS)]
    known = [part for part in parts if part is not None]
    return Features(values, extractor.source, torch.cat(known) if known else None, content)


def statistics(features: Features, *, cache: Path | None = None) -> Statistics:
    """Count, mean, scatter and the root of the covariance of features, from the folder `cache` where they were computed
    before."""
    path = None
    if cache is not None and features.content:
        path = cache / "features" / _key(features.source) / f"{features.content[:32]}.statistics.safetensors"
        known = _read_statistics(path, features)
        if known is not None:
            return known
    found = Statistics.of(features.values, features.source)
    if path is not None:
        _write(path, {"mean": found.mean, "scatter": found.scatter, "root": found.root})
    return found


def _read_statistics(path: Path, features: Features) -> Statistics | None:
    """Cached statistics; None where there are none."""
    d = features.source.dimensions
    parts = _stored(path, torch.float64, {"mean": (d,), "scatter": (d, d), "root": (d, d)})
    if parts is None:
        return None
    return Statistics(len(features), parts["mean"], parts["scatter"], features.source, parts["root"])


def distances(
    name: str, first: Features, second: Features, count: int, make: Callable[[], Tensor], *, cache: Path | None = None
) -> Tensor:
    """Distances (count,) float64 that follow from what `name` says and from two sets of pictures, in the features of
    one extractor: from the folder `cache` where they were computed before, else by `make`."""
    if cache is None or not (first.content and second.content):
        return make()
    told = hashlib.sha256(f"{name}\n{first.content}\n{second.content}".encode()).hexdigest()
    path = cache / "features" / _key(first.source) / f"{told[:32]}.distances.safetensors"
    known = _stored(path, torch.float64, {"distances": (count,)})
    if known is not None and bool((known["distances"] >= 0).all()):
        return known["distances"]
    found = make()
    _write(path, {"distances": found})
    return found


def _computed(extractor: Extractor, pixels: Pixels, batch: int, progress: Progress | None) -> Tensor:
    values = torch.empty(len(pixels), extractor.source.dimensions)
    with torch.no_grad():
        for start in range(0, len(pixels), batch):
            values[start : start + batch] = extractor(to_images(pixels[start : start + batch])).float().cpu()
            if progress:
                progress(min(start + batch, len(pixels)), len(pixels))
    return values


def _key(source: Source) -> str:
    """The folder of an extractor: the same weights with another resize are another extractor."""
    return hashlib.sha256(f"{VERSION}\n{source.name}\n{source.digest}".encode()).hexdigest()[:32]


def _read(path: Path, count: int, dimensions: int) -> Tensor | None:
    """Cached features; None where there are none."""
    known = _stored(path, torch.float32, {"features": (count, dimensions)})
    return None if known is None else known["features"]


def _stored(path: Path, dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """Finite tensors of these names from a file of the cache; None where there is none, or what lies there is not whole
    or not these, and has to be made again."""
    try:
        told = safetensors.torch.load(path.read_bytes())
        parts = {name: told[name] for name in shapes}
    except (OSError, SafetensorError, KeyError):
        return None
    fits = all(parts[name].shape == shape and parts[name].dtype == dtype for name, shape in shapes.items())
    return parts if fits and all(bool(part.isfinite().all()) for part in parts.values()) else None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    data = safetensors.torch.save(tensors)
    make_folder(path.parent, len(data))
    write_atomic(path, data)


def make_folder(folder: Path, needed: int) -> None:
    """The folder, made where there is none; SaveError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        failed: SaveError = save_error(error, folder, needed)
        raise failed from error


# ---- pictures and hashes


def check_pixels(pixels: Pixels) -> None:
    """DataError unless these are pictures as stored integers, one at least."""
    if pixels.ndim != 4 or pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"pictures are (N, C, H, W) uint8 or uint16, not {tuple(pixels.shape)} {pixels.dtype}")
    if len(pixels) == 0:
        raise DataError("there are no pictures to evaluate")


def to_images(pixels: np.ndarray) -> Tensor:
    """Stored integers as pictures in [-1, 1], float32."""
    top = float(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(np.asarray(pixels).astype(np.float32)).div_(top).mul_(2).sub_(1)


def content_hash(pixels: Pixels) -> str:
    """sha256 of shape, depth and every pixel, in order."""
    digest = hashlib.sha256(repr((tuple(int(n) for n in pixels.shape), str(pixels.dtype))).encode())
    for start in range(0, len(pixels), ROWS):
        digest.update(np.ascontiguousarray(pixels[start : start + ROWS]).data)
    return digest.hexdigest()


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the sorted names, dtypes, shapes and values: what makes two extractors the same one."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, str(values.dtype), tuple(values.shape))).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data if values.numel() else b"")
    return digest.hexdigest()
