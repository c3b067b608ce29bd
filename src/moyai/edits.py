"""Edits: drawing that begins with a picture, by any diffusion prior.

    changed      the picture's latents are made noisy up to a `strength`, a share of the model's own time, and walked
                 back from there (SDEdit, Meng et al. 2022, arXiv:2108.01073)
    filled in    the same, and where the picture is known the walk is held to it (`diffusion.guidance.inpainting`),
                 each step several times (`diffusion.sampling.repeated`); at strength 1 nothing of what stood in the
                 hole is looked at

A place of the latents is painted if any pixel of it is missing. After decoding, the known pixels are put back as they
were, to the bit: a first stage changes them, a soft mask mixes. A first stage that is told something is told what the
edited picture is asked to be, on the way in too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moyai.errors import RequestError
from moyai.model import LatentModel
from moyai.priors.diffusion import DiffusionPrior
from moyai.provenance import fingerprint

CHANGED, FILLED = 0.6, 1.0  # the strengths where none is asked for
MOST_REPEATS = 1000
REPEATS = 10  # of each step, where something is filled in: with one, the new part hardly knows of the old
LEAST = 1e-4  # of the strengths: far below a grey level


@dataclass(frozen=True, eq=False)
class Original:
    """A picture to begin with, (H, W, C) as the model's data are stored, and what of it is missing, (H, W) uint8: 0 is
    known, 255 is to be painted, between is mixed. None: all of it is to be changed. `name` is for files and rows."""

    image: np.ndarray
    missing: np.ndarray | None = None
    name: str = ""

    def shown(self) -> np.ndarray:
        """The picture with what is missing in mid-grey, (H, W, C)."""
        if self.missing is None:
            return self.image
        grey = np.full_like(self.image, int(np.iinfo(self.image.dtype).max) // 2)
        if grey.shape[2] in (2, 4):
            grey[..., -1] = np.iinfo(grey.dtype).max  # opaque
        return completed(grey[None], [self])[0]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it: shapes and hashes."""
        missing = None if self.missing is None else fingerprint(self.missing)
        return {"image": fingerprint(self.image), "missing": missing}


def settings(
    model: LatentModel, originals: Sequence[Original], strength: float | None, repeats: int | None
) -> dict[str, Any]:
    """The strength and the repeats of an edit, by name. RequestError for what the model cannot begin with."""
    if not isinstance(model.prior, DiffusionPrior):
        raise RequestError("this model's prior is of codes, drawn one after the other; edits need a diffusion prior")
    for one in originals:
        _check(model, one)
    filled = all(one.missing is not None for one in originals)
    if strength is None:
        strength = FILLED if filled else CHANGED
    if isinstance(strength, bool) or not isinstance(strength, int | float | np.integer | np.floating):
        raise RequestError(f"strength is {strength!r}, which is no number")
    if not LEAST <= strength <= 1:
        raise RequestError(f"strength {strength} is out of range; possible: {LEAST:.4f} to 1")
    if repeats is None:
        repeats = REPEATS if filled else 1
    if isinstance(repeats, bool) or not isinstance(repeats, int | np.integer):
        raise RequestError(f"repeats is {repeats!r}, which is no whole number")
    if not 1 <= repeats <= MOST_REPEATS:
        raise RequestError(f"repeats {repeats} is out of range; possible: 1 to {MOST_REPEATS}")
    return {"strength": float(strength), "repeats": int(repeats)}


def _check(model: LatentModel, one: Original) -> None:
    channels, height, width = model.codec.image_shape
    wanted = np.dtype(np.uint16 if model.facts.bits > 8 else np.uint8)
    if one.image.shape != (height, width, channels) or one.image.dtype != wanted:
        raise RequestError(
            f"this model edits pictures ({height}, {width}, {channels}) {wanted}; given {one.image.shape} "
            f"{one.image.dtype}"
        )
    if one.missing is None:
        return
    if one.missing.shape != (height, width) or one.missing.dtype != np.uint8:
        raise RequestError(
            f"the mask must be ({height}, {width}) uint8 as the picture is; given {one.missing.shape} "
            f"{one.missing.dtype}"
        )
    if one.missing.max() < 2:  # of 0 and 1 nothing would be seen
        raise RequestError(
            f"the mask has no value above {one.missing.max()}: there is nothing to fill in; possible: 255 (white) there"
        )


def beginning(
    model: LatentModel, originals: Sequence[Original], told: Mapping[str, Tensor], strength: float
) -> tuple[Tensor, Tensor | None]:
    """The latents (b, c, h, w) of the pictures, the posterior's mode, and where to paint, (b, 1, h, w): 0 or 1; None
    where that is everywhere in each."""
    images = torch.from_numpy(np.stack([one.image for one in originals]).astype(np.float32)).permute(0, 3, 1, 2)
    images = images / float(np.iinfo(originals[0].image.dtype).max) * 2 - 1
    if all(one.missing is None for one in originals):
        return model.encode(images, told), None
    missing = torch.from_numpy(np.stack([_whole(one) for one in originals]) > 0).float()[:, None]  # (b, 1, H, W)
    if strength == 1:
        holes = torch.tensor([one.missing is not None for one in originals])
        images[holes] = surrounded(images[holes], missing[holes])
    known = model.encode(images, told)
    side = -(-images.shape[2] // known.shape[2])  # pixels of a place, the last of which may reach over the edge
    return known, F.max_pool2d(missing, side, ceil_mode=True).to(known.device)


def surrounded(images: Tensor, missing: Tensor) -> Tensor:
    """Pictures (b, C, H, W) whose missing part, (b, 1, H, W) 1 there, is continued from what is around it: means of
    the known pixels over squares of 2, 4, 8, ... pixels, the smallest square that has any. Where nothing is known, 0.

    An encoder sees beyond the edge of a hole, so that what stands there must be nothing of the hole's own.
    """
    weight = 1 - missing
    total, out, found = images * weight, images * weight, weight
    height, width = images.shape[2:]
    for level in range(1, math.ceil(math.log2(max(height, width))) + 1):
        side = 2**level
        sums, counts = (
            F.avg_pool2d(planes, side, ceil_mode=True, count_include_pad=False) for planes in (total, weight)
        )
        mean = sums / counts.clamp_min(1e-12)
        mean, counts = (
            F.interpolate(planes, scale_factor=side, mode="nearest")[:, :, :height, :width] for planes in (mean, counts)
        )
        new = (1 - found) * (counts > 0)
        out, found = out + new * mean, found + new
    return out


def pasted(images: np.ndarray, known: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Pictures (b, H, W, C) with the known ones where `missing`, (b, H, W, 1) from 0 to 1, is 0, to the bit; mixed
    where it is between."""
    mixed = known + missing * (images.astype(np.float64) - known)
    return np.where(missing == 0, known, np.where(missing == 1, images, np.rint(mixed).astype(images.dtype)))


def completed(images: np.ndarray, originals: Sequence[Original]) -> np.ndarray:
    """Decoded pictures (b, H, W, C) with what is known of the originals."""
    missing = np.stack([_whole(one) for one in originals])[..., None] / 255.0
    return pasted(images, np.stack([one.image for one in originals]), missing)


def _whole(one: Original) -> np.ndarray:
    """What is missing, (H, W) uint8; everything where nothing is said."""
    return np.full(one.image.shape[:2], 255, np.uint8) if one.missing is None else one.missing
