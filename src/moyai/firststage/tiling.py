"""Large pictures in tiles: what a network keeps in memory is bounded by a tile, whatever the size of the picture.

Tiles of one size lie evenly over the picture, their corners on multiples of the autoencoder's factor, each
overlapping the next by `overlap` or more. Seam i between tiles i - 1 and i has its middle c_i in the middle of their
overlap, and along one axis

    rise_i(p) = clip((p + 1/2 - c_i) / (overlap / 2) + 1/2, 0, 1)      rise_0 = 1,  rise_n = 0             (1)
    weight_i  = rise_i - rise_(i+1)                                                                        (2)

so that the weights are linear ramps, and sum to 1 wherever tiles lie, because (2) telescopes. In two dimensions a
weight is the product of two. Ramps are rounded to multiples of 1/1024, so that in float32 the sum is 1 exactly.

A ramp takes the middle half of an overlap: a quarter of it at a tile's edge counts for nothing. A network none of whose
outputs sees farther than that quarter therefore gives what it gives for the whole picture, to rounding.

Ours sees the whole picture in GroupNorm, whose means and variances are then a tile's, and in attention, so its result
differs: by less the larger the tiles are and the more alike the parts of the picture, and by more than the
reconstruction's own error in a network that has hardly been trained. A picture that fits into one tile is encoded and
decoded as without tiles, to the bit.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moyai.batch import Cond
from moyai.errors import RequestError
from moyai.firststage.autoencoder import Autoencoder

GRAIN = 1024  # ramps are multiples of 1 / GRAIN: products of two, and sums of those, are exact in float32


@torch.no_grad()
def encode_tiled(
    autoencoder: Autoencoder, images: Tensor, cond: Cond | None = None, *, tile: int, overlap: int
) -> Tensor:
    """The mean latents of pictures (B, C, H, W) in [-1, 1]: (B, c, ceil(H / factor), ceil(W / factor)), float32.

    tile, overlap: in pixels, multiples of the factor, 0 < overlap < tile (RequestError otherwise). Without gradients.
    """
    factor = autoencoder.factor
    check_tiles(tile, overlap, factor)
    below, right = -images.shape[-2] % factor, -images.shape[-1] % factor
    images = F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images

    def encode(part: Tensor) -> Tensor:
        return autoencoder.encode(part, cond).stored()["mean"]

    return _tiled(encode, images, tile // factor, overlap // factor, given=factor, made=1)


@torch.no_grad()
def decode_tiled(
    autoencoder: Autoencoder,
    latents: Tensor,
    size: tuple[int, int] | None = None,
    cond: Cond | None = None,
    *,
    tile: int,
    overlap: int,
) -> Tensor:
    """Latents (B, c, h, w) as `autoencoder.decode` takes them to pictures (B, C, factor h, factor w), float32.

    size: (height, width) that the pictures are cut to; not clamped. tile, overlap: as in `encode_tiled`, in pixels.
    """
    factor = autoencoder.factor
    check_tiles(tile, overlap, factor)

    def decode(part: Tensor) -> Tensor:
        return autoencoder.decode(part, None, cond)

    images = _tiled(decode, latents, tile // factor, overlap // factor, given=1, made=factor)
    return images if size is None else images[..., : size[0], : size[1]]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover `length` places, each sharing `overlap` or more with the next; all in cells."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [i * (length - tile) // (count - 1) for i in range(count)]


def weights(begins: Sequence[int], tile: int, overlap: int, length: int) -> Tensor:
    """(2) for tiles that begin at `begins`: (tiles, length) float32, every column with a sum of exactly 1."""
    places = torch.arange(length, dtype=torch.float64) + 0.5
    rises = torch.ones(len(begins) + 1, length, dtype=torch.float64)
    for i in range(1, len(begins)):
        middle = (begins[i] + begins[i - 1] + tile) / 2
        ramp = ((places - middle) / (overlap / 2) + 0.5).clamp(0, 1)
        rises[i] = (ramp * GRAIN).round() / GRAIN
    rises[-1] = 0
    return (rises[:-1] - rises[1:]).float()


def check_tiles(tile: int, overlap: int, factor: int) -> None:
    """RequestError where the two, in pixels, do not fit the factor or each other."""
    for name, value in (("a tile", tile), ("an overlap", overlap)):
        if value < factor or value % factor:
            near = max(1, round(value / factor)) * factor
            raise RequestError(f"{name} of {value} does not fit the factor {factor}; possible: a multiple, as {near}")
    if tile == factor:
        raise RequestError(f"tiles of {tile} are one cell, and cannot overlap; possible: {2 * factor} or more")
    if overlap >= tile:
        raise RequestError(f"tiles of {tile} cannot overlap by {overlap}; possible: {factor} to {tile - factor}")


def _tiled(network: Callable[[Tensor], Tensor], x: Tensor, side: int, shared: int, *, given: int, made: int) -> Tensor:
    """The network over tiles of x (B, C, H, W), blended; a cell is `given` places of x and `made` of the result."""
    height, width = x.shape[-2] // given, x.shape[-1] // given
    result: Tensor | None = None
    for top, rows in _line(height, side, shared, made):
        for left, columns in _line(width, side, shared, made):
            down, across = min(side, height), min(side, width)
            out = network(x[..., top * given : (top + down) * given, left * given : (left + across) * given]).float()
            if result is None:
                result = out.new_zeros(*out.shape[:-2], height * made, width * made)
            weight = (rows[:, None] * columns[None, :]).to(out.device)
            place = result[..., top * made : (top + down) * made, left * made : (left + across) * made]
            place += out * weight
    if result is None:
        raise ValueError(f"a picture of shape {tuple(x.shape)} has no tiles")
    return result


def _line(length: int, side: int, shared: int, made: int) -> Iterator[tuple[int, Tensor]]:
    """Along one axis: where each tile begins, in cells, and the weights of its own places."""
    begins = starts(length, side, shared)
    table = weights([b * made for b in begins], side * made, shared * made, length * made)
    for begin, row in zip(begins, table, strict=True):
        yield begin, row[begin * made : (begin + min(side, length)) * made]
