"""CIFAR-10 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

The official binary version is a row of records of 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024 blue
values of a 32 x 32 picture. It is read out of `cifar-10-binary.tar.gz` without unpacking it, or from its five
`data_batch_*.bin`; pictures in class folders, or a .zip of them, serve too. Only the training batches are read.
"""

import hashlib
import tarfile
import zlib
from pathlib import Path

import numpy as np

from moyai.data.arrays import from_arrays, source_file
from moyai.data.config import Cifar10Config
from moyai.data.download import CIFAR10, fetch_set
from moyai.data.folder import read_root
from moyai.data.images import ImageSet, Progress, SourceFile
from moyai.data.locate import find_root, places
from moyai.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD = 1 + 3 * 32 * 32
LARGEST = 2**26  # bytes of a batch; the official ones have 30,730,000
ARCHIVE = "cifar-10-binary.tar.gz"
BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
NEEDS = f"{ARCHIVE}, or {BATCHES[0]} to {BATCHES[-1]}, or a folder train (or train.zip) of class folders"


def read(config: Cifar10Config, cache: Path, progress: Progress | None = None) -> ImageSet:
    """The 50,000 training pictures, from whichever form is found first."""
    looked = places(config, cache)
    if config.download and not any(_form(place) for place in looked):
        fetch_set(CIFAR10, looked[-1], progress)
    root = find_root(config, needs=NEEDS, cache=cache, holds=lambda place: _form(place) is not None)
    form = _form(root)
    if form is None:
        raise DataError(f"{root} lost its files while it was read")
    if form.name == ARCHIVE:
        batches, files = _archive(form), [source_file(form)]
    elif (form / BATCHES[0]).is_file():
        batches, files = _folder(form)
    else:
        return _pictures(config, form, cache, progress)
    records = [_records(batches[name], f"{form.name}: {name}") for name in BATCHES]
    values = np.concatenate(records)  # (N, 3073)
    return from_arrays(
        config,
        values[:, 1:].reshape(-1, 3, 32, 32),
        values[:, 0],
        classes=CLASSES,
        names=[f"{name[:-4]}[{i}]" for name, rows in zip(BATCHES, records, strict=True) for i in range(len(rows))],
        files=files,
        resolution=32,
        progress=progress,
    )


def _form(root: Path) -> Path | None:
    """The archive, the folder of batches, or the folder or .zip of class folders that a place holds."""
    if root.is_file():
        return root if root.name == ARCHIVE or root.suffix == ".zip" else None
    if (root / ARCHIVE).is_file():
        return root / ARCHIVE
    for folder in (root, root / "cifar-10-batches-bin"):
        if (folder / BATCHES[0]).is_file():
            return folder
    for form in (root / "train", root / "train.zip"):
        if form.exists():
            return form
    return root if all((root / name).is_dir() for name in CLASSES) else None


def _archive(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in BATCHES and member.isfile():
                    if member.size > LARGEST:
                        raise DataError(f"{path}: {name} has {member.size} bytes, more than a batch of CIFAR-10")
                    file = archive.extractfile(member)
                    found[name] = file.read() if file else b""
                if len(found) == len(BATCHES):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut off: {error}") from error
    return _complete(found, path)


def _folder(folder: Path) -> tuple[dict[str, bytes], list[SourceFile]]:
    paths = [folder / name for name in BATCHES if (folder / name).is_file()]
    for path in paths:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} has {path.stat().st_size} bytes, more than a batch of CIFAR-10")
    found = _complete({path.name: path.read_bytes() for path in paths}, folder)
    files = [SourceFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in found.items()]
    return found, files


def _complete(found: dict[str, bytes], where: Path) -> dict[str, bytes]:
    missing = [name for name in BATCHES if name not in found]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; all of {BATCHES[0]} to {BATCHES[-1]} are needed")
    return found


def _records(data: bytes, where: str) -> np.ndarray:
    """(N, 3073) uint8."""
    if not data or len(data) % RECORD:
        raise DataError(f"{where} is cut off: {len(data)} bytes are not a number of records of {RECORD}")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise DataError(f"{where} has a label {records[:, 0].max()}; CIFAR-10 has 0 to {len(CLASSES) - 1}")
    return records


def _pictures(config: Cifar10Config, root: Path, cache: Path, progress: Progress | None) -> ImageSet:
    images = read_root(config, root, cache, progress)
    if images.classes != CLASSES:
        raise DataError(
            f"{root} has the classes {', '.join(images.classes[:12]) or 'none'}; CIFAR-10 has {', '.join(CLASSES)} "
            '(for other pictures use data.kind "folder")'
        )
    return images
