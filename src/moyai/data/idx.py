"""IDX files, the format of MNIST and its kin (LeCun, Cortes and Burges, "The MNIST database"), gzipped or not.

    byte 0, 1   zero
    byte 2      type of the values; 8 is uint8, the only one read here
    byte 3      number of dimensions d
    then        d big-endian uint32: the dimensions
    then        the values, the last dimension fastest

Everything the header says is compared with the file before memory is taken. Only the training files are read.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from moyai.data.arrays import from_arrays, source_file
from moyai.data.config import IdxConfig
from moyai.data.download import KNOWN, fetch_set
from moyai.data.images import ImageSet, Progress
from moyai.data.locate import find_root, places
from moyai.errors import DataError

TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
GZIP_RATIO = 1032  # deflate cannot do better
CHUNK = 2**20
FASHION = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
NAMES = {"fashion-mnist": FASHION}


def read(config: IdxConfig, cache: Path, progress: Progress | None = None) -> ImageSet:
    """The training images and labels the configuration names."""
    root = _root(config, cache, progress)
    images_path, labels_path = _find(root, "images", 3), _find(root, "labels", 1)
    if images_path is None or labels_path is None:
        raise DataError(f"{root} lost its IDX files while it was read")
    pixels, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(pixels) != len(labels):
        raise DataError(f"{images_path} holds {len(pixels)} images and {labels_path.name} {len(labels)} labels")
    return from_arrays(
        config,
        pixels[:, None],  # (N, 1, H, W)
        labels,
        classes=_classes(config, labels, labels_path),
        names=[f"train-images[{i}]" for i in range(len(pixels))],
        files=[source_file(images_path), source_file(labels_path)],
        resolution=(int(pixels.shape[1]), int(pixels.shape[2])),
        progress=progress,
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """One IDX file of uint8 with so many dimensions; DataError where it is not whole."""
    with _opened(path) as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES:
            raise DataError(f"{path} is not an IDX file: it begins with {head.hex() or 'nothing'}, not 000008")
        if head[2] != 8 or head[3] != dimensions:
            raise DataError(f"{path} holds {TYPES[head[2]]} in {head[3]} dimensions; needed are uint8 in {dimensions}")
        sizes = file.read(4 * dimensions)
        if len(sizes) < 4 * dimensions:
            raise DataError(f"{path} is cut off within its header")
        shape = struct.unpack(f">{dimensions}I", sizes)
        expected, length = math.prod(shape), path.stat().st_size
        most = length * GZIP_RATIO if isinstance(file, gzip.GzipFile) else length - 4 - 4 * dimensions
        if expected > most or min(shape) == 0:
            raise DataError(f"{path} says it holds {'x'.join(map(str, shape))} values; its {length} bytes cannot")
        values = bytearray()  # grows with what is there, not with what the header says
        while len(values) <= expected and (chunk := file.read(CHUNK)):
            values += chunk
    if len(values) != expected:
        what = "is cut off" if len(values) < expected else "holds more than its header says"
        raise DataError(f"{path} {what}: {len(values)} values, not {'x'.join(map(str, shape))} = {expected}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, unpacked where it is gzipped, whatever its name says."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield unpacked  # type: ignore[misc]
            else:
                yield raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut off: {error}") from error


def _find(root: Path, what: str, dimensions: int) -> Path | None:
    for joint in ("-", "."):
        for end in ("", ".gz"):
            path = root / f"train-{what}{joint}idx{dimensions}-ubyte{end}"
            if path.is_file():
                return path
    return None


def _root(config: IdxConfig, cache: Path, progress: Progress | None) -> Path:
    def holds(root: Path) -> bool:
        return _find(root, "images", 3) is not None and _find(root, "labels", 1) is not None

    needs = "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz (or without .gz)"
    published = KNOWN.get(config.name or "")
    if config.download and published and not any(holds(place) for place in places(config, cache)):
        folder = places(config, cache)[-1]
        fetch_set(published, folder, progress)
    return find_root(config, needs=needs, cache=cache, holds=holds)


def _classes(config: IdxConfig, labels: np.ndarray, path: Path) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    names = config.classes or NAMES.get(config.name or "") or tuple(map(str, range(count)))
    if count > len(names):
        raise DataError(f"{path} has labels up to {count - 1}, but data.classes names {len(names)} classes")
    return names
