"""Masks: pictures of region numbers, one for each picture of the set, in files of their own.

A mask lies beside its picture (cat.mask.png or cat_mask.png of cat.jpg), in a folder of the same names (masks/cat.png,
masks/a/cat.png of a/cat.jpg, or masks/cat_mask.png), or is named by the column mask_file_name of a table.

Its values are region numbers where they are small or none is missing between them (1 bit, 8 bits, 16 bits, a palette's
indices, or colours that are all grey; of a GIF its colours, because programs order its palette anew). Other values, as
0 and 255, or colours, become numbers in ascending order; `Regions.names` keep what each was. More than 256 different
values in a set are no regions: an edge was smoothed.

A mask is as large as its picture, and is brought to the resolution as its picture is, with the nearest neighbour, so
that no number arises that was not there. Padding is region 0.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from moyai.data.decode import FORMATS, Target, UnreadablePicture, fit, inspect
from moyai.data.images import BadFile, Progress, SourceFile
from moyai.data.listing import Entry, contents, in_order, stem
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


class Measured(NamedTuple):
    """What one mask is, before its values are numbered."""

    file: SourceFile
    values: np.ndarray  # (V,) int64, its different values, ascending
    colour: bool
    palette: tuple[int, ...]  # the colour of each value; empty where it has no palette

    @property
    def grey(self) -> bool:
        """Whether its values are numbers, or colours that are all grey, which are meant as numbers."""
        return not self.colour or bool((self.values == (self.values & 255) * 65793).all())


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

    Raises DataError where the masks together are no regions: too many values, or numbers in one and colours in another.
    """
    bad: list[BadFile] = []
    whole: list[tuple[int, Measured]] = []
    look = partial(_look, masks, sizes, pictures)
    for row, found in in_order(look, range(len(pictures))):
        if isinstance(found, Measured):
            whole.append((row, found))
        else:
            bad.append(BadFile(pictures[row], f"its mask {masks[pictures[row]].name}: {found}"))
        if progress:
            progress("looking at masks", row + 1, len(pictures))
    measured = [one for _, one in whole]
    regions = _regions(measured, pads=target.resize == "pad" and _pads(sizes, target))
    files = tuple(dict.fromkeys(one.file for one in measured))
    jobs = [(pictures[row], masks[pictures[row]], one.file.sha256) for row, one in whole]
    options = f"masks {MASKS}: {target} values {regions.values.tolist()}"
    store = Store(cache, options, [one.file for one in measured], in_memory)
    decoded = store.find() or _decode(jobs, regions, target, store, progress)
    failed = {file.name for file in decoded.bad}
    kept = np.array([row for row, _ in whole if pictures[row] not in failed], dtype=np.int64)
    return Told(kept, decoded.pixels, regions, files, (*bad, *decoded.bad), _notes(regions))


def _look(masks: Mapping[str, Entry], sizes: np.ndarray, pictures: Sequence[str], row: int) -> Measured | str:
    """The first pass: hash, size and values of a picture's mask, or why it cannot be used."""
    entry, size = masks[pictures[row]], tuple(sizes[row].tolist())
    try:
        data = contents(entry)
        values, colour, palette = _values(data)
    except UnreadablePicture as error:
        return str(error)
    if values.shape != size:
        return f"it is {values.shape[0]} x {values.shape[1]}, and the picture {size[0]} x {size[1]}"
    file = SourceFile(entry.name, entry.size, hashlib.sha256(data).hexdigest())
    present = np.unique(values).astype(np.int64)
    return Measured(file, present, colour, tuple(palette[value] for value in present.tolist()) if palette else ())


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
            values, colour, _ = _values(data)
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


def _values(data: bytes) -> tuple[np.ndarray, bool, list[int]]:
    """(H, W) integers, whether they are colours (65536 red + 256 green + blue), and the colours of a palette."""
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
        for value, colour in zip(one.values.tolist(), one.palette, strict=False):
            known, name = seen.setdefault(value, (colour, one.file.name))
            if known != colour:
                raise DataError(
                    f"masks have different palettes: {value} is #{known:06x} in {name} and #{colour:06x} in "
                    f"{one.file.name}; save them with one palette, as grey numbers or as RGB"
                )


def _regions(measured: Sequence[Measured], pads: bool) -> Regions:
    """The numbering of all values there are."""
    _same_palette(measured)
    grey = all(one.grey for one in measured)
    if not grey and (plain := next((one for one in measured if not one.colour), None)):
        colour = next(one for one in measured if not one.grey)
        raise DataError(
            f"masks are numbers or colours, not both: {plain.file.name} has numbers, {colour.file.name} colours"
        )
    values = np.zeros(int(pads), dtype=np.int64)  # what is added around a mask is 0
    for one in measured:
        values = np.union1d(values, one.values & 255 if grey and one.colour else one.values)
        if len(values) > MOST:
            raise DataError(
                f"masks have more than {MOST} different values (up to {one.file.name}, which has {len(one.values)}): "
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
