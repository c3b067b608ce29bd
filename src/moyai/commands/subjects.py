"""What `moyai evaluate` judges, and against what: runs, recipes, folders of pictures, arrays.

Nothing is resized, cropped or made grey here: that would change what is judged. Pictures that are not as the reference
is are refused, with both said.
"""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moyai.build.data import read_data
from moyai.data import folder, splits
from moyai.data.config import DataConfig, FolderConfig
from moyai.data.decode import UnreadablePicture, inspect, quiet
from moyai.data.images import ImageSet, Progress
from moyai.data.listing import listing
from moyai.errors import DataError, RequestError
from moyai.evaluation.rows import Pictures
from moyai.files import read_json
from moyai.recipe import reading

POSSIBLE = "a recipe, a run's folder, a folder or .zip of pictures"


@dataclass(frozen=True)
class Halves:
    """The two sides of the data that something is judged against."""

    train: ImageSet
    held_out: ImageSet

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


def is_run(path: Path) -> bool:
    return (path / "recipe.json").is_file()


def halves(config: DataConfig, cache: Path, progress: Progress, *, run: Path | None = None) -> Halves:
    """The data of a recipe, split as training splits them; DataError where they are not those `run` was trained on."""
    images = read_data(config, cache, progress)
    if run is not None and images.fingerprint != read_json(run / "data.json")["fingerprint"]:
        raise DataError(
            f"{run} was trained on other data than {config.kind} gives now; possible: --against with the data to "
            "judge it by"
        )
    inside, outside = splits.split(images, config.validation)
    return Halves(images.subset(inside), images.subset(outside))


def against(words: str, cache: Path, progress: Progress) -> Halves:
    """What `--against` names: a recipe by name or file, a run's folder, or pictures."""
    path = Path(words).expanduser()
    if (path.is_dir() and not is_run(path)) or path.suffix.lower() == ".zip":
        height, width = _size(path)
        config = FolderConfig(root=path, resolution=(height, width))
        found = halves(config, cache, progress)
        _check_sizes(found.train, path, (height, width))
        _check_sizes(found.held_out, path, (height, width))
        _check_empty(path, found.classes)
        return found
    try:
        file = reading.find(words)
    except RequestError as error:
        raise RequestError(f"--against {words!r} is nothing to judge by; possible: {POSSIBLE}") from error
    return halves(reading.load(file).data, cache, progress)


def pictures(path: Path, reference: Halves, count: int | None, cache: Path, progress: Progress) -> Pictures:
    """The pictures of a folder, a .zip or an .npz, at most `count` of them, evenly; their classes where the reference
    has the same ones."""
    found = _arrays(path, reference) if path.suffix.lower() == ".npz" else _files(path, reference, cache, progress)
    total = len(found.pixels)
    if count is None or count >= total:
        return found
    if count < 2:
        raise RequestError(f"--n {count} is too few to judge; possible: 2 to {total}")
    return found.rows(np.linspace(0, total - 1, count).astype(np.int64))


def _files(path: Path, reference: Halves, cache: Path, progress: Progress) -> Pictures:
    real = reference.train
    height, width = (int(n) for n in real.pixels.shape[2:])
    alpha = 4 if real.pixels.shape[1] == 4 else None
    config = FolderConfig(root=path, resolution=(height, width), channels=alpha, bad_files="stop")
    images = folder.read_root(config, path, cache, progress)
    _check_sizes(images, path, (height, width))
    _check_empty(path, images.classes)
    targets = {}
    if images.classes and set(images.classes) <= set(reference.classes):
        number = np.array([reference.classes.index(name) for name in images.classes], dtype=np.int64)
        targets["class"] = number[images.fields["class"]]
    return Pictures(np.asarray(images.pixels[np.arange(images.count)]), targets, tuple(images.names))


def _size(root: Path) -> tuple[int, int]:
    """The (height, width) of the first picture that can be read: what all others have to be."""
    with listing(root) as listed, quiet():
        for entry in listed.entries:
            try:
                seen = inspect(entry.read())
            except (UnreadablePicture, OSError, zipfile.BadZipFile):
                continue
            return seen.height, seen.width
    raise DataError(f"{root} holds no pictures (PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF)")


def _check_sizes(images: ImageSet, root: Path, wanted: tuple[int, int]) -> None:
    """DataError for the first picture of another size."""
    if images.sizes is None:
        return
    other = np.flatnonzero((images.sizes != np.array(wanted)).any(1))
    if len(other):
        height, width = images.sizes[other[0]]
        raise DataError(
            f"{root}: {len(other)} picture(s) are not of {wanted[0]} x {wanted[1]} as the reference is, such as "
            f"{images.names[other[0]]} of {height} x {width}: make them alike"
        )


def _check_empty(root: Path, classes: Sequence[str]) -> None:
    """DataError where a folder of classes has one without pictures."""
    if not classes or not root.is_dir():
        return
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))
    if empty := [name for name in folders if name not in classes]:
        raise DataError(f"{root}: class {', '.join(map(repr, empty[:5]))} has no picture; remove the folder or fill it")


def _arrays(path: Path, reference: Halves) -> Pictures:
    """`images` (N, H, W, C) uint8 or uint16 and, where there are any, `labels` (N,): as `moyai sample` writes them."""
    held = _read(path)
    if "images" not in held:
        names = ", ".join(sorted(held)) or "nothing"
        raise DataError(f"{path} has no array `images` but {names}; `moyai sample --out x.npz` writes what is meant")
    images = held["images"]
    if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4:
        raise DataError(
            f"{path}: `images` is {images.dtype} {images.shape}; possible: uint8 or uint16 (N, H, W, C), as stored"
        )
    if len(images) < 2:
        raise DataError(f"{path} holds {len(images)} picture{'' if len(images) == 1 else 's'}; at least 2 are needed")
    targets = {}
    if (labels := held.get("labels")) is not None and reference.classes:
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{path}: `labels` is {labels.dtype} {labels.shape}; possible: whole numbers ({len(images)},)"
            )
        if labels.max() >= len(reference.classes):
            raise DataError(
                f"{path}: `labels` reach to {labels.max()}, and the reference has {len(reference.classes)} classes, "
                f"0 to {len(reference.classes) - 1}"
            )
        if labels.min() >= 0:  # -1 is no class
            targets["class"] = labels.astype(np.int64)
    called = tuple(f"{path.name}[{number}]" for number in range(len(images)))
    return Pictures(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), targets, called)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays `images` and `labels`; where there are no images, the names of what there is instead."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds one bare array; possible: an .npz with `images`")
        with file:
            names = ("images", "labels") if "images" in file else ()
            return {name: file[name] for name in names if name in file} or dict.fromkeys(file.files, np.empty(0))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or ["cut off"])[0]
        raise DataError(f"{path} cannot be read as an .npz of arrays: {reason}") from error
