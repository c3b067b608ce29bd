"""What is asked on the command line beyond classes, positions and captions: numbers by name, pictures from files, and
how strongly each condition guides.

A model may be told two pictures of one: small, to be enlarged, and with a part missing, to be filled in. A name says
which a file is, `low_resolution=small.png masked=photo.png`; without one it follows from what the model is told and
from whether there is a mask.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from moyai.conditioning.conditioner import OTHERS
from moyai.conditioning.spatial import FROM_PICTURES, in_range, masked
from moyai.data.decode import Target, UnreadablePicture, changes, decode, inspect, quiet
from moyai.data.masks import values_of
from moyai.edits import Original
from moyai.errors import RequestError
from moyai.model import LatentModel
from moyai.requests import Request

Made = TypeVar("Made")
COLOUR = re.compile("#[0-9a-f]{6}")  # the name of a region of colour masks


def others(
    model: LatentModel,
    *,
    numbers: Sequence[str] | None = None,
    maps: Sequence[Path] | None = None,
    pictures: Sequence[str] | None = None,
    mask: Path | None = None,
) -> dict[str, list[Any]]:
    """Values by field, as `tasks.request` takes them. RequestError names the word or file that cannot be used.

    numbers: "age=70" or "age=60,70". pictures: files, "photo.png", or with the name of what they are told as,
    "masked=photo.png". mask: white where the latter are to be filled in.
    """
    found: dict[str, list[Any]] = {}
    for word in numbers or ():
        name, equals, value = word.partition("=")
        try:
            found.setdefault(name, []).extend(float(one) for one in value.split(","))
        except ValueError as error:
            raise RequestError(
                f"--number {word} is not of the form field=number, such as age=70 or age=60,70"
            ) from error
        if not equals or name not in model.fields:
            knows = ", ".join(model.fields) or "nothing"
            raise RequestError(f"--number {word}: this model can be told {knows}")
    if maps:
        found["mask"] = [_regions(path, model.facts.regions) for path in maps]
    if mask is not None and not pictures:
        raise RequestError(f"--mask {mask} says what is to be filled in of a --picture, and none is given")
    if pictures:
        found |= _given(model, pictures, mask)
    return found


def originals(
    model: LatentModel, paths: Sequence[Path], mask: Path | None, warn: Callable[[str], None]
) -> list[Original]:
    """The pictures that an edit begins with, each with what the mask says is missing (white). RequestError names the
    file that cannot be used; `warn` is told of what was done to a picture to make it one of the model's."""
    channels, height, width = model.codec.image_shape
    target = Target(height, width, channels, model.facts.bits, model.recipe.data.resize)
    _check_mask(paths, mask)
    missing = None if mask is None else _mask(mask, target)
    found = []
    for path in paths:
        for words in changes(_read(path, "a picture", inspect), target):
            warn(f"{path}: {words}")
        image = _picture(path, target)
        found.append(Original(np.ascontiguousarray(image.transpose(1, 2, 0)), missing, path.stem))
    return found


def doubts(model: LatentModel, request: Request) -> Iterator[str]:
    """What of a request lies where training never was, a sentence each: numbers outside the range of their field."""
    for name, (low, high) in model.facts.ranges.items():
        values = request.asked.get(name, ())
        if beyond := [value for value in values if not low <= np.float32(value) <= high]:  # as fields hold them
            yield f"{name} {beyond[0]:g} is outside of what was trained on, {low:g} to {high:g}"


def guidance(words: Sequence[str] | None) -> float | dict[str, float] | None:
    """What --guidance said, as `tasks.request` takes it: one number, or weights by condition; None where it is silent.

    words: "3" for all that have no weight of their own, "caption=4" for one condition. RequestError for other words,
    and where one stands twice.
    """
    found: dict[str, float] = {}
    for word in words or ():
        name, equals, value = word.rpartition("=")
        if equals and not name:
            raise RequestError(f"--guidance {word} names no condition; possible: 3, or caption=4")
        name = name or OTHERS
        if name in found:
            raise RequestError(f"--guidance {word}: {'one number' if name == OTHERS else name} was given before")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise RequestError(
                f"--guidance {word} is no number, such as 3, or condition=number, such as caption=4"
            ) from error
    return found.get(OTHERS) if found.keys() <= {OTHERS} else found


def _given(model: LatentModel, words: Sequence[str], mask: Path | None) -> dict[str, list[Any]]:
    """The pictures of --picture by field."""
    paths = _by_field(model, words, mask)
    if mask is not None and "masked" not in paths:
        raise RequestError(f"--mask {mask}: none of the pictures is one to fill in; possible: without --mask")
    if mask is None and "masked" in paths:
        raise RequestError(
            "this model fills in what is missing of a picture: --mask says what is (white) and what is not"
        )
    found: dict[str, list[Any]] = {}
    if "low_resolution" in paths:
        channels, height, width = (int(side) for side in model.conditioner.blanks()["low_resolution"].shape[1:])
        target = Target(height, width, channels, model.facts.bits, model.recipe.data.resize)
        found["low_resolution"] = [_picture(path, target) for path in paths["low_resolution"]]
    if mask is not None:
        found["masked"] = _with_holes(model, paths["masked"], mask)
    return found


def _by_field(model: LatentModel, words: Sequence[str], mask: Path | None) -> Mapping[str, list[Path]]:
    """The files of --picture by the field that each is for: as it is named, by a name that a condition goes by."""
    conditions = {name: str(c.field) for name, c in model.conditioner.conditions.items() if c.field in FROM_PICTURES}
    fields = [field for field in FROM_PICTURES if field in model.fields]
    names = conditions | {field.replace("_", "-"): field for field in fields} | {field: field for field in fields}
    if not fields:
        knows = ", ".join(model.fields) or "nothing"
        raise RequestError(f"--picture {words[0]}: this model is not told pictures, but {knows}")
    found: dict[str, list[Path]] = {}
    plain: list[Path] = []
    for word in words:
        name, equals, path = word.partition("=")
        if equals and name in names:
            found.setdefault(names[name], []).append(Path(path))
        elif equals and not Path(word).exists():
            raise RequestError(f"--picture {word}: neither a file nor of the form {_forms(fields)}")
        else:
            plain.append(Path(word))
    if plain:
        left = fields if len(fields) == 1 else [field for field in fields if field not in found]
        if not left:
            raise RequestError(f"--picture {plain[0]} does not say what it is; possible: {_forms(fields)}")
        found.setdefault("masked" if mask is not None and "masked" in left else left[0], []).extend(plain)
    return found


def _forms(fields: Sequence[str]) -> str:
    return " or ".join(f"{field}=FILE" for field in fields)


def _with_holes(model: LatentModel, paths: Sequence[Path], mask: Path) -> list[np.ndarray]:
    """Pictures with what the mask says of them missing, (C + 1, H, W) each."""
    channels, height, width = model.codec.image_shape
    resize = model.recipe.data.resize
    _check_mask(paths, mask)
    missing = torch.from_numpy(_mask(mask, Target(height, width, 1, 8, resize)) > 127).float()[None, None]
    images = [_picture(path, Target(height, width, channels, model.facts.bits, resize)) for path in paths]
    return [masked(in_range(torch.from_numpy(one))[None], missing)[0].numpy() for one in images]


def _check_mask(paths: Sequence[Path], mask: Path | None) -> None:
    for path in paths:
        if mask is not None and _size(path) != _size(mask):
            sizes = " and ".join(f"{one} is {_size(one)[0]} x {_size(one)[1]}" for one in (mask, path))
            raise RequestError(f"the mask must have the size of the picture, but {sizes} (height x width)")


def _picture(path: Path, target: Target) -> np.ndarray:
    """(C, H, W), brought to the size by scaling and cutting as training data are."""
    return _read(path, "a picture", lambda data: decode(data, target)[0])


def _mask(path: Path, target: Target) -> np.ndarray:
    """(H, W) uint8, each pixel the mean of what it covers: what is black there stays black beside an edge."""
    grey = replace(target, channels=1, bits=8)
    return _read(path, "a picture", lambda data: decode(data, grey, Image.Resampling.BOX)[0])[0]


def _read(path: Path, what: str, use: Callable[[bytes], Made]) -> Made:
    """What is made of a file's bytes. RequestError where it cannot be."""
    try:
        with quiet():
            return use(path.read_bytes())
    except (OSError, UnreadablePicture) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{path} cannot be read as {what}: {reason}") from error


def _size(path: Path) -> tuple[int, int]:
    seen = _read(path, "a picture", inspect)
    return seen.height, seen.width


def _regions(path: Path, names: Sequence[str]) -> np.ndarray:
    """A picture of regions, (H, W), as region numbers: by the values the training masks had where these name them."""
    values, coloured, _ = _read(path, "a map of regions", values_of)
    in_colours = bool(names) and all(COLOUR.fullmatch(name) for name in names)
    if coloured and not in_colours:
        if len({tuple(values.ravel() >> shift & 255) for shift in (0, 8, 16)}) > 1:
            raise RequestError(f"{path} has colours; the maps of this model have one number a pixel: grey or a palette")
        values = values & 255  # grey, though in three channels
    if in_colours and not coloured:
        raise RequestError(f"{path} has one number a pixel; the masks of the data have colours: {', '.join(names[:8])}")
    if not in_colours and not (names and all(name.isdecimal() for name in names)):
        return values  # numbers of regions that have other names, or none
    known = np.array([int(name[1:], 16) if in_colours else int(name) for name in names], np.int64)
    if unknown := sorted(set(np.unique(values).tolist()) - set(known.tolist())):
        value = f"#{unknown[0]:06x}" if in_colours else unknown[0]
        raise RequestError(f"{path} has the value {value}; the masks of the data have {', '.join(names[:20])}")
    return np.searchsorted(known, values)  # the values are numbered in ascending order
