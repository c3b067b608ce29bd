"""From raw arrays (IDX files, CIFAR batches, digits) to an ImageSet: limit, resize, channels.

These sources hold pixels already, all of one shape, so nothing is decoded and nothing can be unreadable.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from moyai.data.config import DataConfig
from moyai.data.decode import Target, fit, to_channels
from moyai.data.images import ImageSet, Progress, SourceFile, chosen
from moyai.errors import DataError

VERSION = 1  # counts up when the same array gives other pixels


def source_file(path: Path) -> SourceFile:
    """The fingerprint row of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return SourceFile(path.name, path.stat().st_size, digest)


def from_arrays(
    config: DataConfig,
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    classes: Sequence[str],
    names: Sequence[str],
    files: Sequence[SourceFile],
    resolution: int | tuple[int, int],
    progress: Progress | None = None,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> ImageSet:
    """The set of (N, C, H, W) uint8 pixels and (N,) labels, as the configuration wants it.

    `resolution` is what holds where the configuration gives none.
    """
    if len(pixels) < 2:
        raise DataError(f"{files[0].name} holds {len(pixels)} pictures; at least 2 are needed")
    wanted = resolution if config.resolution is None else config.resolution
    height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
    target = Target(height, width, config.channels or pixels.shape[1], 8, config.resize)
    kept = chosen(names, labels, config.limit)
    count, source = len(pixels), pixels.shape[2:]
    if len(kept) < count:
        pixels, labels, names = pixels[kept], labels[kept], [names[i] for i in kept]
    return ImageSet(
        pixels=to_channels(_resized(pixels, target, resample, progress), target.channels),
        names=names,
        files=tuple(sorted(files, key=lambda file: file.name)),
        fields={"class": labels.astype(np.int64)},
        classes=tuple(classes),
        sizes=np.broadcast_to(np.array(source, dtype=np.int64), (len(pixels), 2)),
        decoding=f"arrays {VERSION}: {target} {resample.name} limit {config.limit if len(kept) < count else None}",
    )


def _resized(pixels: np.ndarray, target: Target, resample: Image.Resampling, progress: Progress | None) -> np.ndarray:
    if pixels.shape[2:] == (target.height, target.width):
        return pixels
    grey = pixels.shape[1] == 1
    resized = np.empty((*pixels.shape[:2], target.height, target.width), np.uint8)
    for i, picture in enumerate(pixels):
        image = Image.fromarray(picture[0] if grey else np.ascontiguousarray(picture.transpose(1, 2, 0)))
        values = np.asarray(fit(image, target, resample))
        resized[i] = values[None] if grey else values.transpose(2, 0, 1)
        if progress and (i + 1) % 1000 == 0:
            progress("resizing pictures", i + 1, len(pixels))
    return resized
