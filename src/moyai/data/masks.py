"""Masks: pictures of region numbers, one for each picture of the set, in files of their own.

A mask lies beside its picture (cat.mask.png or cat_mask.png of cat.jpg), in a folder of the same names (masks/cat.png,
masks/a/cat.png of a/cat.jpg, or masks/cat_mask.png), or is named by the column mask_file_name of a table.

Its values are region numbers where they are small or none is missing between them (1 bit, 8 bits, 16 bits, a palette's
indices, or colours that are all grey; of a GIF its colours, because programs order its palette anew). Other values, as
0 and 255, or colours, become numbers in ascending order; `Regions.names` keep what each was. More than 256 different
values in a set are no regions: an edge was smoothed.

A mask is as large as its picture, and is brought to the resolution as its picture is, with the nearest neighbour, so
that no number arises that was not there. Padding is region 0.

The files are gone through twice: for the values each has, which together say what the regions are, and for the maps.
Of a set that is too large for memory both are kept in the cache: the maps as pixels are (`store.py`), and what the
first pass saw in `masks/<hash of names and sizes>.json`, where each file's values stand under the hash of its bytes.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from moyai.data.decode import FORMATS, Target, UnreadablePicture, fit, inspect
from moyai.data.images import BadFile, Progress, SourceFile
from moyai.data.listing import Entry, contents, in_order, stem
from moyai.data.locate import written_beside
from moyai.data.store import Decoded, Store
from moyai.errors import DataError

MASKS = 1  # counts up when the same mask gives other region numbers
MOST = 256  # regions; their numbers are kept in 8 bits
PLAIN = 32  # numbers below this stay as they are, also where some are missing
TAILS = (".mask", "_mask")
LOSSY = ("JPEG", "WEBP", "AVIF")


@dataclass(frozen=True)
class Regions:
    """The values that masks hold, ascending, and the names of the region numbers."""

    values: np.ndarray  # (R,) int64
    names: tuple[str, ...]
    colour: bool
    renumbered: bool


class Seen(NamedTuple):
    """What one mask's bytes say, before its values are numbered."""

    shape: tuple[int, ...]  # (H, W)
    values: np.ndarray  # (V,) int64, its different values, ascending
    colour: bool
    palette: tuple[int, ...]  # the colour of each value; empty where it has no palette

    @property
    def grey(self) -> bool:
        """Whether its values are numbers, or colours that are all grey, which are meant as numbers."""
        return not self.colour or bool((self.values == (self.values & 255) * 65793).all())


class Measured(NamedTuple):
    """A mask that can be used."""

    file: SourceFile
    seen: Seen


class Told(NamedTuple):
    """The masks of a set: those that are whole, in order, and what is wrong with the others."""

    kept: np.ndarray  # (K,) which pictures have one
    maps: np.ndarray  # (K, H, W) uint8 region numbers
    regions: Regions
    files: tuple[SourceFile, ...]
    bad: tuple[BadFile, ...]  # by the picture's name
    notes: tuple[str, ...]


def beside(names: Iterable[str]) -> dict[str, str]:
    """Picture by mask, of those whose name says that they are the mask of another in the same folder."""
    names = list(names)
    stems = {stem(name): name for name in reversed(names)}
    found = {}
    for name in names:
        for tail in TAILS:
            if stem(name).endswith(tail) and stem(name).removesuffix(tail) in stems:
                found[name] = stems[stem(name).removesuffix(tail)]
    return {mask: picture for mask, picture in found.items() if picture not in found}


def inside(folder: str, masks: Sequence[str], pictures: Sequence[str]) -> dict[str, str]:
    """Mask by picture, of a folder that has the pictures' names, with or without their own first folder."""
    stems: dict[str, str] = {}
    for mask in masks:
        own = stem(mask).removeprefix(f"{folder}/")
        for known in {own, *(own.removesuffix(tail) for tail in TAILS)}:
            if known in stems:
                raise DataError(f"{stems[known]} and {mask} are masks of the same picture: move one away")
            stems[known] = mask
    found = {}
    for picture in pictures:
        for known in (stem(picture), stem(picture).partition("/")[2]):
            if known in stems:
                found[picture] = stems[known]
                break
    return found


def read(
    pictures: Sequence[str],
    sizes: np.ndarray,
    masks: Mapping[str, Entry],
    target: Target,
    cache: Path,
    progress: Progress | None = None,
    *,
    in_memory: int,
) -> Told:
    """The masks of `pictures`, whose (height, width) are `sizes` (N, 2); one that cannot be used leaves no row.

    in_memory: bytes of maps above which they are written to the cache, and found there.

    Raises DataError where the masks together are no regions: too many values, or numbers in one and colours in another.
    """
    entries = [masks[picture] for picture in pictures]
    path = _path(cache, entries) if len(pictures) * target.height * target.width > in_memory else None
    known = {} if path is None else _known(path)
    whole, wrong = _looked(entries, sizes, known, progress)
    bad = [BadFile(pictures[row], f"its mask {entries[row].name}: {why}") for row, why in wrong]
    measured = [one for _, one in whole]
    regions = _regions(measured, pads=target.resize == "pad" and _pads(sizes, target))
    if path is not None and not {one.file.sha256 for one in measured} <= known.keys():
        _keep(path, measured)
    files = tuple(dict.fromkeys(one.file for one in measured))
    jobs = [(pictures[row], entries[row], one.file.sha256) for row, one in whole]
    options = f"masks {MASKS}: {target} values {regions.values.tolist()}"
    store = Store(cache, options, [one.file for one in measured], in_memory)
    decoded = store.find() or _decode(jobs, regions, target, store, progress)
    failed = {file.name for file in decoded.bad}
    kept = np.array([row for row, _ in whole if pictures[row] not in failed], dtype=np.int64)
    return Told(kept, decoded.pixels, regions, files, (*bad, *decoded.bad), _notes(regions))


def _looked(
    entries: Sequence[Entry], sizes: np.ndarray, known: Mapping[str, Seen], progress: Progress | None
) -> tuple[list[tuple[int, Measured]], list[tuple[int, str]]]:
    """The first pass: the masks that can be used, and what is wrong with the others, by row."""
    whole: list[tuple[int, Measured]] = []
    wrong: list[tuple[int, str]] = []
    for row, found in in_order(lambda row: _look(entries[row], known), range(len(entries))):
        size = tuple(sizes[row].tolist())
        if isinstance(found, str):
            wrong.append((row, found))
        elif found.seen.shape != size:
            height, width = found.seen.shape
            wrong.append((row, f"it is {height} x {width}, and the picture {size[0]} x {size[1]}"))
        else:
            whole.append((row, found))
        if progress:
            progress("looking at masks", row + 1, len(entries))
    return whole, wrong


def _look(entry: Entry, known: Mapping[str, Seen]) -> Measured | str:
    """What a mask says, decoded only where its bytes are not known; or why it says nothing."""
    try:
        data = contents(entry)
        file = SourceFile(entry.name, entry.size, hashlib.sha256(data).hexdigest())
        if file.sha256 in known:
            return Measured(file, known[file.sha256])
        values, colour, palette = values_of(data)
    except UnreadablePicture as error:
        return str(error)
    present = _present(values)
    colours = tuple(palette[value] for value in present.tolist()) if palette else ()
    return Measured(file, Seen(values.shape, present, colour, colours))


def _present(values: np.ndarray) -> np.ndarray:
    """The different values, ascending, int64. Small ones are counted: sorting takes longer than decoding."""
    if values.min() >= 0 and values.max() < 2**16:
        return np.flatnonzero(np.bincount(values.ravel())).astype(np.int64)
    return np.unique(values).astype(np.int64)


def _path(cache: Path, entries: Sequence[Entry]) -> Path:
    """Where the first pass of these files is kept. Bytes are not in its name: it says of which bytes it knows what."""
    digest = hashlib.sha256(f"masks {MASKS}\n".encode())
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size}\n".encode())
    return cache / "masks" / f"{digest.hexdigest()}.json"


def _known(path: Path) -> dict[str, Seen]:
    """What an earlier first pass saw; nothing where there was none or its file is damaged."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {sha256: _seen(*one) for sha256, one in told.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return {}


def _seen(shape: list[int], values: list[int], colour: bool, palette: list[int]) -> Seen:
    return Seen(tuple(shape), np.array(values, np.int64), colour, tuple(palette))


def _keep(path: Path, measured: Sequence[Measured]) -> None:
    """Write what a first pass saw of the masks that can be used."""
    plain = {file.sha256: (one.shape, one.values.tolist(), one.colour, one.palette) for file, one in measured}
    text = json.dumps(plain)
    with written_beside(path, len(text)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _decode(
    jobs: Sequence[tuple[str, Entry, str]], regions: Regions, target: Target, store: Store, progress: Progress | None
) -> Decoded:
    """The second pass: region numbers at the resolution."""

    def numbers(job: tuple[str, Entry, str]) -> np.ndarray | str:
        _, entry, sha256 = job
        try:
            data = contents(entry)
            if hashlib.sha256(data).hexdigest() != sha256:
                return "changed while it was read"
            values, colour, _ = values_of(data)
        except UnreadablePicture as error:
            return str(error)
        if colour and not regions.colour:
            values = values & 255
        indices = np.searchsorted(regions.values, values).astype(np.uint8)
        return np.asarray(fit(Image.fromarray(indices), target, Image.Resampling.NEAREST))

    bad: list[BadFile] = []
    with store.rows(len(jobs), (target.height, target.width), np.dtype(np.uint8)) as rows:
        for done, ((picture, entry, _), result) in enumerate(in_order(numbers, jobs), 1):
            if isinstance(result, str):
                bad.append(BadFile(picture, f"its mask {entry.name}: {result}"))
            else:
                rows.append(result)
            if progress:
                progress("decoding masks", done, len(jobs))
        rows.finish(tuple(bad), 0)
    return store.decoded(rows)


def values_of(data: bytes) -> tuple[np.ndarray, bool, list[int]]:
    """(H, W) integers, whether they are colours (65536 red + 256 green + blue), and the colours of a palette.

    UnreadablePicture where a file is no mask.
    """
    if inspect(data).several:
        raise UnreadablePicture("several pictures in one file, and a mask is one")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        kind = image.format or ""
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # a damaged file; see decode.py
        raise UnreadablePicture(f"damaged: {str(error) or type(error).__name__}") from error
    if kind in LOSSY:
        raise UnreadablePicture(f"{kind} alters values, and with them region numbers: save it as PNG")
    if image.mode in ("LA", "RGBA"):
        if np.asarray(image)[..., -1].min() < 255:
            raise UnreadablePicture("it is transparent in places, which is no region: save it without")
        image = image.convert(image.mode[:-1])
    if image.mode == "RGB" or kind == "GIF":
        return _packed(np.asarray(image.convert("RGB"))), True, []
    if image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
        palette = np.zeros((MOST, 3), np.int64)
        given = np.array(image.getpalette("RGB") or [], np.int64).reshape(-1, 3)
        palette[: len(given)] = given
        return np.asarray(image).astype(np.int64), False, _packed(palette).tolist() if len(given) else []
    raise UnreadablePicture(f"its pixels are {image.mode}; a mask is grey, a palette or RGB")


def _packed(colours: np.ndarray) -> np.ndarray:
    """(..., 3) colours as (...) int64."""
    return np.asarray(colours.astype(np.int64) @ np.array([65536, 256, 1]))


def _same_palette(measured: Sequence[Measured]) -> None:
    """DataError where one number has two colours, so that it cannot mean one region."""
    seen: dict[int, tuple[int, str]] = {}
    for one in measured:
        for value, colour in zip(one.seen.values.tolist(), one.seen.palette, strict=False):
            known, name = seen.setdefault(value, (colour, one.file.name))
            if known != colour:
                raise DataError(
                    f"masks have different palettes: {value} is #{known:06x} in {name} and #{colour:06x} in "
                    f"{one.file.name}; save them with one palette, as grey numbers or as RGB"
                )


def _regions(measured: Sequence[Measured], pads: bool) -> Regions:
    """The numbering of all values there are."""
    _same_palette(measured)
    grey = all(one.seen.grey for one in measured)
    if not grey and (plain := next((one for one in measured if not one.seen.colour), None)):
        colour = next(one for one in measured if not one.seen.grey)
        raise DataError(
            f"masks are numbers or colours, not both: {plain.file.name} has numbers, {colour.file.name} colours"
        )
    values = np.zeros(int(pads), dtype=np.int64)  # what is added around a mask is 0
    for file, one in measured:
        values = np.union1d(values, one.values & 255 if grey and one.colour else one.values)
        if len(values) > MOST:
            raise DataError(
                f"masks have more than {MOST} different values (up to {file.name}, which has {len(one.values)}): "
                'these are no region numbers; save them without smoothing, or set data.masks to "none"'
            )
    top = int(values[-1]) if len(values) else 0
    if grey and (top < PLAIN or len(values) == top + 1):
        return Regions(np.arange(top + 1), tuple(str(number) for number in range(top + 1)), not grey, False)
    names = tuple(str(value) if grey else f"#{value:06x}" for value in values.tolist())
    return Regions(values, names, not grey, True)


def _notes(regions: Regions) -> tuple[str, ...]:
    if not regions.renumbered:
        return ()
    names = ", ".join(regions.names[:8]) + (", ..." if len(regions.names) > 8 else "")
    return (f"values of masks become region numbers 0 to {len(regions.names) - 1} in ascending order: {names}",)


def _pads(sizes: np.ndarray, target: Target) -> bool:
    """Whether a picture has another shape than the target, so that something is added around it."""
    return bool((sizes[:, 0] * target.width != sizes[:, 1] * target.height).any())
