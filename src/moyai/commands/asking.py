"""What is asked on the command line beyond classes, positions and captions: numbers by name, pictures from files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from moyai.conditioning.spatial import in_range, masked
from moyai.data.decode import Target, UnreadablePicture, decode
from moyai.errors import RequestError
from moyai.model import LatentModel


def others(
    model: LatentModel,
    *,
    numbers: Sequence[str] | None = None,
    maps: Sequence[Path] | None = None,
    pictures: Sequence[Path] | None = None,
    mask: Path | None = None,
) -> dict[str, list[Any]]:
    """Values by field, as `tasks.request` takes them. RequestError names the word or file that cannot be used."""
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


def _given(model: LatentModel, paths: Sequence[Path], mask: Path | None) -> dict[str, list[Any]]:
    channels, height, width = model.codec.image_shape
    if "masked" in model.fields and mask is not None:
        missing = torch.from_numpy(_picture(mask, Target(height, width, 1, 8, "stretch")) > 127).float()[None]
        images = [_picture(path, Target(height, width, channels, model.facts.bits, "crop")) for path in paths]
        return {"masked": [masked(in_range(torch.from_numpy(one))[None], missing)[0].numpy() for one in images]}
    if "low_resolution" in model.fields and mask is None:
        small = tuple(model.conditioner.blanks()["low_resolution"].shape[1:])
        target = Target(int(small[1]), int(small[2]), channels, model.facts.bits, "crop")
        return {"low_resolution": [_picture(path, target) for path in paths]}
    if "masked" in model.fields:
        raise RequestError(
            "this model fills in what is missing of a picture: --mask says what is (white) and what is not"
        )
    knows = ", ".join(model.fields) or "nothing"
    raise RequestError(f"--picture {paths[0]}: this model is not told pictures, but {knows}")


def _picture(path: Path, target: Target) -> np.ndarray:
    """(C, H, W), brought to the size by scaling and cutting as training data are."""
    try:
        return decode(path.read_bytes(), target)[0]
    except (OSError, UnreadablePicture) as error:
        raise RequestError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _regions(path: Path, names: Sequence[str]) -> np.ndarray:
    """A picture of regions, (H, W), as region numbers: by the values the training masks had where these name them."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1", "I;16", "I"):
                raise RequestError(
                    f"{path} has colours ({image.mode}); a map has one number a pixel: grey or a palette"
                )
            values = np.array(image)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as a map of regions: {error}") from error
    if not names or not all(name.isdecimal() for name in names):
        return values
    known = np.array([int(name) for name in names])
    if unknown := sorted(set(np.unique(values).tolist()) - set(known.tolist())):
        raise RequestError(f"{path} has the value {unknown[0]}; the masks of the data have {', '.join(names[:20])}")
    return np.searchsorted(known, values)  # the values are numbered in ascending order
