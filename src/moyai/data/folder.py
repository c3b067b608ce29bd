"""A folder of pictures, or a .zip of one read in place, with what is known of each (annotations.py).

The pictures are looked at twice: once for their hash and header (which decide the set's resolution, channels and bits
where the recipe does not), once to decode them. A set that is small is kept in memory; a large one is written to the
cache, found again by the hash of its files and options, and memory-mapped.

A picture that cannot be read is a line in the report and not an exception, unless the recipe says to stop or too many
are bad.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moyai.data import annotations, captions, masks
from moyai.data.config import Cifar10Config, FolderConfig
from moyai.data.decode import Seen, Target, UnreadablePicture, decode, inspect, quiet
from moyai.data.images import BadFile, ImageSet, Progress, SourceFile, chosen
from moyai.data.listing import REFUSED, Entry, Listing, contents, in_order, listing
from moyai.data.locate import find_root
from moyai.data.store import Decoded, Store
from moyai.errors import DataError

IN_MEMORY = 2**29  # bytes of pixels above which a set is written to the cache
DECODER = 1  # counts up when decode.py gives other pixels for the same file
Pictures = FolderConfig | Cifar10Config


@dataclass(frozen=True)
class Looked:
    """A picture file whose header was read."""

    entry: Entry
    file: SourceFile
    seen: Seen


def read(
    config: FolderConfig, cache: Path, progress: Progress | None = None, *, in_memory: int = IN_MEMORY
) -> ImageSet:
    """The pictures the configuration names, with what lies there of each: class, caption, numbers, mask."""
    root = find_root(config, needs="a folder (or a .zip) of pictures, with sub-folders as classes", cache=cache)
    with listing(root) as listed, quiet():
        known = annotations.look(listed, config, root)
        classes, labels = known.classes, known.labels
        if labels is None and config.classes == "folders":
            classes, labels = _folders(known.pictures, root)
        kept = _limited(known.pictures, labels, config.limit)
        said = captions.read(kept.entries, known.captions)
        kept = annotations.without(kept, said.unfit)
        images = read_listed(kept, config, root, cache, progress, in_memory=in_memory)
        images = annotations.told(_classed(images, classes, labels), known, said)
        if known.masks is None:
            return images
        return _masked(images, known.masks, config, root, cache, progress, in_memory)


def read_root(config: Pictures, root: Path, cache: Path, progress: Progress | None = None) -> ImageSet:
    """The pictures below a folder or in a .zip, classes by sub-folder; first decoded or found in the cache."""
    with listing(root) as listed, quiet():
        classes, labels = _folders(listed, root)
        images = read_listed(_limited(listed, labels, config.limit), config, root, cache, progress)
        return _classed(images, classes, labels)


def read_listed(
    listed: Listing,
    config: Pictures,
    root: Path,
    cache: Path,
    progress: Progress | None = None,
    *,
    in_memory: int = IN_MEMORY,
) -> ImageSet:
    """The pictures of an open listing, in its order, without classes. Of `config` only the decoding counts."""
    if config.bad_files == "stop" and listed.bad:
        raise DataError(f"{root}: {listed.bad[0].name}: {listed.bad[0].reason}")
    looked, bad, files = _look(listed, config, root, progress)
    bad.extend(listed.bad)
    total = len(listed.entries) + len(listed.bad)
    _check(len(looked), total, bad, config, root)
    target = _target([item.seen for item in looked], config)
    options = f"pictures {DECODER}: {target}"
    store = Store(cache, options, files, in_memory)
    decoded = store.find() or _decode(looked, target, store, config, root, progress)
    failed = {file.name for file in decoded.bad}
    good = [item for item in looked if item.file.name not in failed]
    bad = sorted({*bad, *decoded.bad}, key=lambda file: file.name)
    _check(len(good), total, bad, config, root)
    return ImageSet(
        pixels=decoded.pixels,
        names=[item.file.name for item in good],
        files=tuple(files),
        fields={},
        classes=(),
        bad=tuple(bad),
        notes=_notes([item.seen for item in good], target, listed.others, decoded.profiles),
        sizes=np.array([(item.seen.height, item.seen.width) for item in good], dtype=np.int64),
        decoding=options,
    )


def _folders(listed: Listing, root: Path) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """The sub-folders that hold pictures, and the one of each picture; none where all pictures lie at the top."""
    names = [entry.name for entry in listed.entries]
    above = [name for name in names if "/" not in name]
    folders = tuple(sorted({name.split("/")[0] for name in names if "/" in name}))
    if above and folders:
        more = f" and {len(above) - 5} more" if len(above) > 5 else ""
        raise DataError(
            f"{root} has class folders ({', '.join(folders[:5])}) and pictures beside them ({', '.join(above[:5])}"
            f'{more}): move these into a folder, or set data.classes to "none"'
        )
    return folders, {name: name.split("/")[0] for name in names} if folders else None


def _classed(images: ImageSet, classes: tuple[str, ...], labels: Mapping[str, str] | None) -> ImageSet:
    """The set with the class of each picture, where there are classes."""
    if labels is None:
        return images
    number = {name: i for i, name in enumerate(classes)}
    fields = {"class": np.array([number[labels[name]] for name in images.names], dtype=np.int64)}
    return replace(images, fields=fields, classes=classes)


def _masked(
    images: ImageSet,
    given: Mapping[str, Entry],
    config: FolderConfig,
    root: Path,
    cache: Path,
    progress: Progress | None,
    in_memory: int,
) -> ImageSet:
    """The set with the mask of each picture; one whose mask cannot be used is left out."""
    _, height, width = images.shape
    if images.sizes is None:
        raise ValueError("masks are compared with the sizes of their pictures")
    target = Target(height, width, 1, 8, config.resize)
    if isinstance(images.pixels, np.memmap):  # what is kept of the pictures is kept of their masks
        in_memory = 0
    found = masks.read(images.names, images.sizes, given, target, cache, progress, in_memory=in_memory)
    if config.bad_files == "stop" and found.bad:
        raise DataError(f"{root}: {found.bad[0].name}: {found.bad[0].reason}")
    bad = sorted((*images.bad, *found.bad), key=lambda file: file.name)
    _check(len(found.kept), images.count + len(images.bad), bad, config, root)
    if len(found.kept) < images.count:
        images = images.subset(found.kept)
    return replace(
        images,
        fields={**images.fields, "mask": found.maps},
        files=(*images.files, *found.files),
        bad=tuple(bad),
        notes=(*images.notes, *found.notes),
        regions=found.regions.names,
    )


def _limited(listed: Listing, labels: Mapping[str, str] | None, limit: int | None) -> Listing:
    """The listing with at most `limit` pictures; where it cuts, what is no file at all is left out too."""
    if limit is None or limit >= len(listed.entries):
        return listed
    names = [entry.name for entry in listed.entries]
    number = {} if labels is None else {name: i for i, name in enumerate(sorted(set(labels.values())))}
    kept = chosen(names, None if labels is None else np.array([number[labels[name]] for name in names]), limit)
    return Listing(tuple(listed.entries[i] for i in kept), (), listed.others)


def _look(
    listed: Listing, config: Pictures, root: Path, progress: Progress | None
) -> tuple[list[Looked], list[BadFile], list[SourceFile]]:
    """The first pass: hash and header of every file, in order."""
    looked: list[Looked] = []
    bad: list[BadFile] = []
    files: list[SourceFile] = []
    for done, (entry, (sha256, seen)) in enumerate(in_order(_examine, listed.entries), 1):
        if sha256:
            files.append(SourceFile(entry.name, entry.size, sha256))
        if isinstance(seen, Seen):
            looked.append(Looked(entry, files[-1], seen))
        elif config.bad_files == "stop":
            raise DataError(f"{root}: {entry.name}: {seen}")
        else:
            bad.append(BadFile(entry.name, seen))
        if progress:
            progress("looking at pictures", done, len(listed.entries))
    return looked, bad, files


def _examine(entry: Entry) -> tuple[str, Seen | str]:
    """The hash ("" where the bytes cannot be had) and the header, or why there is none."""
    try:
        data = contents(entry)
    except UnreadablePicture as error:
        return "", str(error)
    try:
        return hashlib.sha256(data).hexdigest(), inspect(data)
    except UnreadablePicture as error:
        suffix = os.path.splitext(entry.name)[1].lower()
        unsaid = suffix in REFUSED and "convert" not in str(error)
        hint = f" ({suffix} is not read: convert it to PNG)" if unsaid else ""
        return hashlib.sha256(data).hexdigest(), f"{error}{hint}"


def _target(seen: Sequence[Seen], config: Pictures) -> Target:
    """What every picture becomes; what the recipe leaves open follows from the headers."""
    if config.resolution is None:
        height = width = natural_resolution([min(one.height, one.width) for one in seen])
    elif isinstance(config.resolution, int):
        height = width = config.resolution
    else:
        height, width = config.resolution
    channels = config.channels or (3 if any(one.colour for one in seen) else 1)
    return Target(height, width, channels, 16 if any(one.deep for one in seen) else 8, config.resize)


def natural_resolution(sides: Sequence[int]) -> int:
    """The median of the shorter sides as a multiple of 32 (itself where it is smaller), at most 256."""
    median = int(np.median(np.asarray(sides)))
    return min(256, median // 32 * 32) if median >= 32 else median


def _decode(
    looked: Sequence[Looked], target: Target, store: Store, config: Pictures, root: Path, progress: Progress | None
) -> Decoded:
    """The second pass: every picture's pixels, in order; those that fail leave no row."""

    def picture(item: Looked) -> tuple[np.ndarray, bool] | str:
        try:
            data = contents(item.entry)
            if hashlib.sha256(data).hexdigest() != item.file.sha256:
                return "changed while it was read"
            return decode(data, target)
        except UnreadablePicture as error:
            return str(error)

    bad: list[BadFile] = []
    profiles = 0
    bits = np.uint8 if target.bits == 8 else np.uint16
    with store.rows(len(looked), (target.channels, target.height, target.width), np.dtype(bits)) as rows:
        for done, (item, result) in enumerate(in_order(picture, looked), 1):
            if not isinstance(result, str):
                rows.append(result[0])
                profiles += result[1]
            elif config.bad_files == "stop":
                raise DataError(f"{root}: {item.file.name}: {result}")
            else:
                bad.append(BadFile(item.file.name, result))
            if progress:
                progress("decoding pictures", done, len(looked))
        rows.finish(tuple(bad), profiles)
    return store.decoded(rows)


def _check(good: int, total: int, bad: Sequence[BadFile], config: Pictures, root: Path) -> None:
    """Whether there is enough to train on."""
    first = "; ".join(f"{file.name}: {file.reason}" for file in sorted(bad, key=lambda file: file.name)[:3])
    if total == 0:
        raise DataError(f"{root} holds no pictures (PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF)")
    if len(bad) > config.max_bad * total:
        raise DataError(
            f"{root}: {len(bad)} of {total} files cannot be read, more than data.max_bad = {config.max_bad:g} "
            f"allows ({first})"
        )
    if good < 2:
        raise DataError(f"{root} holds {good} readable picture{'' if good == 1 else 's'}; at least 2 are needed")


def _notes(seen: Sequence[Seen], target: Target, others: int, profiles: int) -> tuple[str, ...]:
    """What was done that a person may want to know of, counted."""
    found = Counter[str]()
    for one in seen:
        found["16-bit colour: 8 bits are kept"] += one.narrowed
        found["several pictures in the file: the first is used"] += one.several
        found["transparent: laid over black"] += one.transparent and target.channels != 4
        found["colour: turned to grey"] += one.colour and target.channels == 1
        found["8 bits in a 16-bit set: multiplied by 257"] += target.bits == 16 and not one.deep
        scale = max if target.resize == "crop" else min
        found["smaller than the resolution: scaled up"] += (
            scale(target.height / one.height, target.width / one.width) > 1
        )
    found["colour profile that cannot be read: taken as sRGB"] = profiles
    found["not a picture by its name: left out"] = others
    return tuple(f"{count} file{'s' if count > 1 else ''}: {what}" for what, count in found.items() if count)
