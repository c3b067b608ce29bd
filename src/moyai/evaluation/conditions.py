"""What a picture was asked to be, as a picture: for conditions that are maps or pictures themselves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from moyai.conditioning.spatial import in_range
from moyai.data.images import to_uint

COLOURS = np.array(  # of regions; the first is the background (Wong 2011, "Points of view: color blindness")
    (
        *((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115)),
        *((240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
    ),
    dtype=np.uint8,
)
MISSING = 128  # the grey of what is missing


def shown(asked: Mapping[str, Any], row: int, shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 of what row `row` of a request was asked, one for each field that can be shown.

    asked: a request's, by field; shape: (C, H, W) of the model's pictures.
    """
    made = {"mask": _map, "low_resolution": _small, "masked": _masked}
    return [draw(np.asarray(asked[name][row]), shape) for name, draw in made.items() if name in asked]


def coloured(picture: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3), 8 or 16 bits, to (H, W, 3) uint8."""
    eight = picture if picture.dtype == np.uint8 else (picture // 257).astype(np.uint8)
    return np.repeat(eight, 3, axis=-1) if eight.shape[-1] == 1 else eight[..., :3]


def _map(regions: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return np.asarray(COLOURS[regions.astype(np.int64) % len(COLOURS)])


def _small(picture: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    small = in_range(torch.from_numpy(picture))[None]
    return coloured(to_uint(F.interpolate(small, size=shape[1:], mode="nearest"))[0])


def _masked(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    picture = coloured(to_uint(torch.from_numpy(values[None, :-1]))[0])
    return np.where(values[-1][..., None] > 0, np.uint8(MISSING), picture)
