"""A picture beside what an autoencoder makes of it: how near the two are, and both as one looks at them.

What is compared are stored integers, of 8 or 16 bits as the picture has them: the reconstruction is that of the
posterior's mode, clamped and rounded as it is written. PSNR, SSIM and MS-SSIM are those of `similarity`; L1 is the mean
absolute difference of values in [-1, 1], as in training. `judge` takes anything that is an `Autoencoder`.

They are written side by side with their difference: a .png is one sheet with a row a picture, a folder gets a file of
one row for each. The difference is the absolute one (of RGBA the colours', shown opaque) times a power of two, the same
for a whole file and at most 64, that keeps 99.9 % of each picture's values in range; it stands above the column.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from moyai import pictures, similarity
from moyai.batch import Cond
from moyai.data.images import to_uint
from moyai.errors import RequestError
from moyai.firststage.autoencoder import Autoencoder
from moyai.firststage.tiling import decode_tiled, encode_tiled
from moyai.nets.precision import Precision, autocast

MOST = 64  # rows of a sheet
MAX_PIXELS = 60_000_000  # of a sheet's cells, where there is more than one row
MAX_GAIN = 64
NAME = 60  # characters of a picture's name in a file's


@dataclass(frozen=True)
class Values:
    """How near a reconstruction is: PSNR in dB (infinite where equal), SSIM and MS-SSIM up to 1, L1 from 0 to 2."""

    psnr: float
    ssim: float
    ms_ssim: float
    l1: float


def judge(
    autoencoder: Autoencoder,
    pixels: np.ndarray,
    cond: Cond | None = None,
    *,
    tile: int | None = None,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, Values]:
    """What becomes of one picture (C, H, W), uint8 or uint16: another of the same shape and type, and how near it is.

    tile: in pixels, tiles overlapping by a quarter; None for the whole picture at once. precision: the networks'.
    """
    top = np.iinfo(pixels.dtype).max
    images = torch.from_numpy(pixels.astype(np.float32))[None].div_(top).mul_(2).sub_(1).to(device)
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    shared = 0 if tile is None else overlap(tile, autoencoder.factor)
    with torch.no_grad():
        with autocast(precision, device):
            if tile is None:
                z = autoencoder.encode(images, cond).stored()["mean"]
            else:
                z = encode_tiled(autoencoder, images, cond, tile=tile, overlap=shared)
        z = autoencoder.quantize(z.float())
        with autocast(precision, device):
            if tile is None:
                made = autoencoder.decode(z, size, cond)
            else:
                made = decode_tiled(autoencoder, z, size, cond, tile=tile, overlap=shared)
    found = to_uint(made, bits=8 * pixels.dtype.itemsize)[0].transpose(2, 0, 1)
    return found, compared(pixels, found)


def compared(original: np.ndarray, made: np.ndarray) -> Values:
    """How near two pictures (C, H, W) of one shape are, both uint8 or both uint16."""
    top = float(np.iinfo(original.dtype).max)
    x, y = (torch.from_numpy(p.astype(np.float32))[None] for p in (original, made))
    return Values(
        psnr=float(similarity.psnr(x, y, top=top)),
        ssim=float(similarity.ssim(x, y, top=top)),
        ms_ssim=float(similarity.ms_ssim(x, y, top=top)),
        l1=2 * float((x - y).abs().mean()) / top,
    )


def overlap(tile: int, factor: int) -> int:
    """How much tiles share, in pixels: a quarter of their side, a multiple of the factor."""
    return max(1, tile // 4 // factor) * factor


@dataclass(frozen=True)
class Row:
    """A picture and what came back, (H, W, C) uint8 or uint16, and what stands beside them."""

    name: str
    caption: str
    original: np.ndarray
    reconstruction: np.ndarray


class Writer(Protocol):
    def add(self, row: Row) -> None:
        """Takes the next picture."""

    def close(self) -> Iterator[str]:
        """Writes what is left to write, and says what was written."""


def writer(out: Path) -> Writer:
    return Files(out) if out.is_dir() or not out.suffix else Sheet(out)


def check(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse, before anything is computed, an output that could not be written, or that is one of the inputs."""
    if not out.is_dir() and out.suffix.lower() not in ("", ".png"):
        raise RequestError(f"--out {out} is no .png or folder; possible: reconstructions.png, reconstructions/")
    if out.is_file() and any(path.is_file() and path.samefile(out) for path in inputs):
        raise RequestError(f"--out {out} is one of the pictures to reconstruct; possible: another name")
    folder = out if out.is_dir() or not out.suffix else out.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} cannot be made ({error.strerror}); possible: another place") from error


class Files:
    """A file for each picture, numbered in order."""

    def __init__(self, out: Path) -> None:
        self.out, self.count = out, 0

    def add(self, row: Row) -> None:
        self.count += 1
        last = "/".join(Path(row.name).with_suffix("").parts[-2:])  # names with their folder, which may be a class
        name = "".join(c if c.isascii() and c.isalnum() else "-" for c in last)[-NAME:].strip("-")
        pictures.save_png(self.out / f"{self.count:04d}-{name}.png", sheet([row]), None)

    def close(self) -> Iterator[str]:
        yield f"{self.count} picture{'s' * (self.count != 1)} in {self.out}, each beside its reconstruction"


class Sheet:
    """One file, written at the end, for the first pictures: as many as MOST and MAX_PIXELS allow."""

    def __init__(self, out: Path) -> None:
        self.out, self.left_out = out, 0
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        shapes = [r.original.shape for r in (*self.rows, row)]
        cell = max(s[0] for s in shapes) * max(s[1] for s in shapes)
        full = len(self.rows) == MOST or (self.rows and 3 * cell * len(shapes) > MAX_PIXELS)
        if self.left_out or full:
            self.left_out += 1
        else:
            self.rows.append(row)

    def close(self) -> Iterator[str]:
        pictures.save_png(self.out, sheet(self.rows), None)
        more = f"; {self.left_out} more do not fit on a sheet, --out FOLDER has room" if self.left_out else ""
        count = len(self.rows)
        yield f"{count} picture{'s' * (count != 1)} in {self.out}, each beside its reconstruction{more}"


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Original, reconstruction and difference, a row a picture; smaller pictures lie in the middle of white cells."""
    deep = any(row.original.dtype == np.uint16 for row in rows)
    pairs = [(_deepened(row.original, deep), _deepened(row.reconstruction, deep)) for row in rows]
    top = 65535 if deep else 255
    apart = [np.abs(original.astype(np.int32) - made) for original, made in pairs]
    times = gain(apart, top)
    height, width = (max(row.original.shape[axis] for row in rows) for axis in (0, 1))
    cells: list[np.ndarray] = []
    for (original, made), difference in zip(pairs, apart, strict=True):
        shown = np.minimum(difference * times, top).astype(original.dtype)
        if shown.shape[2] == 4:
            shown[..., 3] = top
        cells += [_placed(p, height, width, top) for p in (original, made, shown)]
    return pictures.grid(
        np.stack(cells),
        columns=3,
        row_labels=[row.caption for row in rows],
        column_labels=("original", "reconstruction", f"difference x {times}"),
    )


def gain(differences: Sequence[np.ndarray], top: int) -> int:
    """The power of two that differences are shown times: with it 99.9 % of each picture's values are in range."""
    highest = max(float(np.percentile(d[..., :3], 99.9)) for d in differences)
    times = 1
    while times < MAX_GAIN and 0 < 2 * times * highest <= top:
        times *= 2
    return times


def _deepened(picture: np.ndarray, deep: bool) -> np.ndarray:
    return picture.astype(np.uint16) * 257 if deep and picture.dtype == np.uint8 else picture


def _placed(picture: np.ndarray, height: int, width: int, white: int) -> np.ndarray:
    cell = np.full((height, width, picture.shape[2]), white, picture.dtype)
    y, x = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    cell[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return cell
