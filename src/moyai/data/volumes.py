"""A folder of NIfTI volumes cut into slices; how one volume becomes slices is in `nifti.py`.

The position of slice k of a volume of n is k / (n - 1). Slices of one person are a group, so they fall on one side of
the split; a person is the beginning of the file's name, "sub-01" of "sub-01_ses-2_T1w.nii.gz".

Volumes are looked at twice, as pictures in a folder are: once for hash and header, once for the voxels, one volume in
memory at a time. One that cannot be read leaves no slices and a line in the report, unless the recipe says to stop.
"""

import fnmatch
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moyai.data import nifti
from moyai.data.config import NiftiConfig
from moyai.data.decode import Target
from moyai.data.folder import natural_resolution
from moyai.data.images import BadFile, ImageSet, Progress, SourceFile, spread
from moyai.data.locate import find_root
from moyai.data.nifti import Grid, UnreadableVolume
from moyai.data.store import Decoded, Store
from moyai.errors import ConfigError, DataError

IN_MEMORY = 2**29  # bytes of pixels above which a set is written to the cache
ENDINGS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Looked:
    """A volume whose header was read."""

    path: Path
    file: SourceFile
    subject: str
    grid: Grid
    kept: tuple[int, ...]  # numbers of the slices that are used

    def position(self, number: int) -> float:
        return number / (self.grid.count - 1)


def read(config: NiftiConfig, cache: Path, progress: Progress | None = None, *, in_memory: int = IN_MEMORY) -> ImageSet:
    """The slices of every volume, with "slice" int64 and "position" float32 in [0, 1] of each; groups are the people.

    DataError where nibabel is missing, nothing is found, too many volumes are bad, or all are of one person.
    """
    nifti.library()
    root = find_root(config, needs="a folder of NIfTI volumes (.nii, .nii.gz)", cache=cache, holds=Path.is_dir)
    names, others, bad = _listed(root, config.files)
    if config.bad_files == "stop" and bad:
        raise DataError(f"{root}: {bad[0].name}: {bad[0].reason}")
    total = len(names) + len(bad)
    looked, unread = _look(names, config, root, progress)
    bad += unread
    _check(looked, total, bad, config, root)
    looked = _limited(looked, config.limit)
    target = _target(looked, config)
    options = f"volumes {nifti.VERSION}: {target} {_options(config)}"
    store = Store(cache, options, [one.file for one in looked], in_memory)
    decoded = store.find() or _decode(looked, target, store, config, root, progress)
    failed = {file.name for file in decoded.bad}
    good = [one for one in looked if one.file.name not in failed]
    bad = sorted({*bad, *decoded.bad}, key=lambda file: file.name)
    _check(good, total, bad, config, root)
    rows = [(one, number) for one in good for number in one.kept]
    people = {name: i for i, name in enumerate(sorted({one.subject for one in good}))}
    return ImageSet(
        pixels=decoded.pixels,
        fields={
            "slice": np.array([number for _, number in rows], dtype=np.int64),
            "position": np.array([one.position(number) for one, number in rows], dtype=np.float32),
        },
        classes=(),
        names=[f"{one.file.name}[{number}]" for one, number in rows],
        files=tuple(one.file for one in looked),
        bad=tuple(bad),
        notes=_notes(good, others),
        groups=np.array([people[one.subject] for one, _ in rows], dtype=np.int64),
        sizes=np.array([one.grid.size for one, _ in rows], dtype=np.int64),
        decoding=options,
    )


def _options(config: NiftiConfig) -> str:
    values = f"percentiles {config.percentiles}" if config.window is None else f"window {config.window}"
    return f"{config.axis} slices {config.slices} {values} limit {config.limit}"


def _listed(root: Path, pattern: str) -> tuple[list[str], int, list[BadFile]]:
    """The volumes' names relative to the root, sorted; how many files are left out; folders that cannot be read.

    Links in circles end.
    """
    names: list[str] = []
    others = 0
    errors: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=errors.append):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = [name for name in below if not name.startswith(".") and name != "__MACOSX"]
        for file in (name for name in files if not name.startswith(".")):
            name = (Path(folder) / file).relative_to(root).as_posix()
            if file.lower().endswith(ENDINGS) and fnmatch.fnmatchcase(name, pattern):
                names.append(name)
            else:
                others += 1
    unread = [
        BadFile(_shown(os.path.relpath(error.filename, root)), f"the folder cannot be read: {error.strerror}")
        for error in errors
    ]
    return sorted(names), others, unread


def _shown(name: str) -> str:
    """A name that any terminal and any JSON can hold, where the file system's bytes are not text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _look(
    names: Sequence[str], config: NiftiConfig, root: Path, progress: Progress | None
) -> tuple[list[Looked], list[BadFile]]:
    """The first pass: hash and header of every volume, in order."""
    looked: list[Looked] = []
    bad: list[BadFile] = []
    for done, (path, name) in enumerate(((root / name, _shown(name)) for name in names), 1):
        try:
            looked.append(_examine(path, name, config))
        except UnreadableVolume as error:
            if config.bad_files == "stop":
                raise DataError(f"{root}: {name}: {error}") from error
            bad.append(BadFile(name, str(error)))
        if progress:
            progress("looking at volumes", done, len(names))
    return looked, bad


def _examine(path: Path, name: str, config: NiftiConfig) -> Looked:
    file = _source_file(path, name)
    grid = nifti.inspect(path, config)
    first, last = config.slices
    kept = tuple(number for number in range(grid.count) if first <= number / (grid.count - 1) <= last)
    if not kept:
        raise UnreadableVolume(f"none of its {grid.count} slices lies between {first:g} and {last:g} (data.slices)")
    return Looked(path, file, _subject(name, config), grid, kept)


def _source_file(path: Path, name: str) -> SourceFile:
    try:
        if not path.is_file():
            raise UnreadableVolume("not a regular file" if path.exists() else "a link to nothing")
        with path.open("rb") as file:
            return SourceFile(name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise UnreadableVolume(f"cannot be read: {error.strerror or error}") from error


def _subject(name: str, config: NiftiConfig) -> str:
    """The person a file belongs to, by the beginning of its name."""
    stem = re.sub(r"\.nii(\.gz)?$", "", name.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    try:
        found = re.match(config.subject, stem)
    except re.error as error:
        raise ConfigError(f"data.subject is {config.subject!r}, which is no regular expression: {error}") from error
    if not found or not found[0]:
        raise UnreadableVolume(f"data.subject = {config.subject!r} finds no person in its name")
    return found[0]


def _limited(looked: Sequence[Looked], limit: int | None) -> list[Looked]:
    """The volumes with the slices that a limit keeps, evenly over the range; one of which none is kept is not read."""
    rows = [(i, number) for i, one in enumerate(looked) for number in one.kept]
    if limit is None or limit >= len(rows):
        return list(looked)
    places = np.array([looked[i].position(number) for i, number in rows]).round(2)  # volumes differ in their slices
    kept: dict[int, list[int]] = {}
    for row in spread([f"{looked[i].file.name}[{number}]" for i, number in rows], places, limit):
        kept.setdefault(rows[row][0], []).append(rows[row][1])
    return [replace(looked[i], kept=tuple(numbers)) for i, numbers in kept.items()]


def _target(looked: Sequence[Looked], config: NiftiConfig) -> Target:
    """What every slice becomes; the resolution follows from the side that `resize` fits into it."""
    if config.resolution is None:
        side = max if config.resize == "pad" else min
        height = width = natural_resolution([side(one.grid.shown) for one in looked])
    elif isinstance(config.resolution, int):
        height = width = config.resolution
    else:
        height, width = config.resolution
    return Target(height, width, config.channels or 1, config.bits, config.resize)


def _decode(
    looked: Sequence[Looked], target: Target, store: Store, config: NiftiConfig, root: Path, progress: Progress | None
) -> Decoded:
    """The second pass: the slices of every volume, in order; a volume that fails leaves none."""
    bad: list[BadFile] = []
    shape = (target.channels, target.height, target.width)
    dtype = np.dtype(np.uint8 if target.bits == 8 else np.uint16)
    with store.rows(sum(len(one.kept) for one in looked), shape, dtype) as rows:
        for done, one in enumerate(looked, 1):
            try:
                if _source_file(one.path, one.file.name) != one.file:
                    raise UnreadableVolume("changed while it was read")
                for row in nifti.decode(one.path, one.kept, one.grid, config, target):
                    rows.append(row)
            except UnreadableVolume as error:
                if config.bad_files == "stop":
                    raise DataError(f"{root}: {one.file.name}: {error}") from error
                bad.append(BadFile(one.file.name, str(error)))
            if progress:
                progress("cutting volumes", done, len(looked))
        rows.finish(tuple(bad), 0)
    return store.decoded(rows)


def _check(good: Sequence[Looked], total: int, bad: Sequence[BadFile], config: NiftiConfig, root: Path) -> None:
    """Whether there is enough to train on, of more than one person."""
    if total == 0:
        raise DataError(f"{root} holds no NIfTI volumes (.nii, .nii.gz) with names like data.files = {config.files!r}")
    if len(bad) > config.max_bad * total:
        first = "; ".join(f"{file.name}: {file.reason}" for file in sorted(bad, key=lambda file: file.name)[:3])
        raise DataError(
            f"{root}: {len(bad)} of {total} volumes cannot be read, more than data.max_bad = {config.max_bad:g} "
            f"allows ({first})"
        )
    people = sorted({one.subject for one in good})
    if len(people) < 2:
        limit = f" (data.limit = {config.limit})" if config.limit else ""
        raise DataError(
            f"{root}: of the {len(good)} volumes that are read, all are of {people[0] if people else 'no one'} by "
            f"data.subject = {config.subject!r}{limit}; at least 2 people are needed, one of them held out"
        )


def _notes(looked: Sequence[Looked], others: int) -> tuple[str, ...]:
    """What was done that a person may want to know of, counted."""
    found = Counter[str]()
    for one in looked:
        found["orientation not said by the header: left and right may be exchanged"] += not one.grid.placed
        found["voxels not square in the slice: stretched to the finer spacing"] += one.grid.shown != one.grid.size
    found["not .nii or .nii.gz, or not named as data.files says: left out"] = others
    return tuple(f"{count} file{'s' if count > 1 else ''}: {what}" for what, count in found.items() if count)
