"""One NIfTI volume (.nii, .nii.gz) to slices.

A volume is turned to RAS by exchanging and reversing axes (nibabel's closest canonical orientation), so that its first
axis runs from left to right, the second from back (posterior) to front (anterior), the third from bottom (inferior) to
top (superior). An oblique volume keeps its own grid: nothing is resampled between slices. Slices are shown as

| axis | slice k counts from | rows run | columns run |
|---|---|---|---|
| axial | bottom | front to back | left to right |
| coronal | back | top to bottom | left to right |
| sagittal | left | top to bottom | back to front |

so the person's left is on the picture's left (the neurological convention). Where the two spacings of a slice differ,
the coarser direction is stretched, so that a pixel is square in millimetres; then it is brought to the resolution.

    level = round(clip((v - low) / (high - low), 0, 1) * (2^bits - 1))

(low, high) is the window, or percentiles of the volume's positive values, taken over the whole volume: neighbouring
slices keep their relation. A value that is not finite makes the volume unreadable, wherever it lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from moyai.data.config import NiftiConfig
from moyai.data.decode import MAX_SIDE, Target, fit, to_channels
from moyai.errors import DataError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

VERSION = 1  # counts up when the same volume gives other pixels
MAX_VOXELS = 2**29  # 2 GiB as float32
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # in RAS
SAME = 0.01  # spacings that differ by less than this share are equal


class UnreadableVolume(DataError):
    """A file that gives no slices; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Grid:
    """What the header says of the slices along one axis, after the turn to RAS."""

    count: int  # of slices
    size: tuple[int, int]  # (height, width) of one, in voxels
    spacing: tuple[float, float]  # of its rows and columns, mm
    placed: bool  # whether the header says where left and right are

    @property
    def shown(self) -> tuple[int, int]:
        """(height, width) of a slice whose pixels are square."""
        (height, width), (row, column) = self.size, self.spacing
        finer = min(row, column)
        if max(row, column) <= finer * (1 + SAME):
            return self.size
        return round(height * row / finer), round(width * column / finer)


def library() -> None:
    """DataError where nibabel is not installed."""
    try:
        import nibabel  # noqa: F401  (an extra of moyai: imported where it is used)
    except ImportError as error:
        raise DataError(
            "NIfTI volumes are read with nibabel, which is not there: pip install moyai[medical]"
        ) from error


def inspect(path: Path, config: NiftiConfig) -> Grid:
    """What the header says; UnreadableVolume where there can be no slices."""
    image = _opened(path)
    shape, spacing = _ras_grid(image)
    axis = AXES[config.axis]
    # A picture's rows run along the higher of the two other axes, its columns along the lower (see `picture`).
    column, row = (i for i in range(3) if i != axis)
    placed = bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0)
    grid = Grid(shape[axis], (shape[row], shape[column]), (spacing[row], spacing[column]), placed)
    if grid.count < 2:
        raise UnreadableVolume(f"1 {config.axis} slice, which has no position in a range; possible: another data.axis")
    if max(grid.shown) > MAX_SIDE:
        raise UnreadableVolume(f"a slice of {grid.size} with spacings of {grid.spacing} mm is too long: {grid.shown}")
    return grid


def decode(path: Path, numbers: Sequence[int], grid: Grid, config: NiftiConfig, target: Target) -> np.ndarray:
    """Slices by number, (n, C, H, W) uint8 or uint16. The whole volume is in memory, as float32."""
    try:
        volume = voxels(_opened(path))
    except UnreadableVolume:
        raise
    except Exception as error:
        # A cut or damaged archive ends in one of many errors of nibabel, zlib and the operating system.
        raise UnreadableVolume(f"damaged: {_line(error)}") from error
    wrong = volume.size - int(np.isfinite(volume).sum())
    if wrong:
        raise UnreadableVolume(f"{wrong:,} of {volume.size:,} values are not finite (NaN or infinity)")
    low, high = window(volume, config)
    top = 2**target.bits - 1
    levels = np.empty((len(numbers), 1, target.height, target.width), np.uint8 if target.bits == 8 else np.uint16)
    for row, number in zip(levels, numbers, strict=True):
        # Clipped before it is resized: one very bright voxel must not ring.
        share = np.clip((picture(volume, config.axis, number) - low) / np.float32(high - low), 0, 1)
        fitted = fit(_square(Image.fromarray(np.ascontiguousarray(share)), grid), target)
        row[0] = np.rint(np.clip(np.asarray(fitted), 0, 1) * top)
    return to_channels(levels, target.channels)


def voxels(image: "Nifti1Image") -> np.ndarray:
    """The volume in RAS, (left to right, back to front, bottom to top) float32, its header's scaling applied."""
    import nibabel as nib

    values = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    return np.asarray(nib.apply_orientation(values.reshape(values.shape[:3]), _orientation(image)))


def picture(volume: np.ndarray, axis: str, number: int) -> np.ndarray:
    """A slice as it is shown, (H, W), of a volume in RAS: front or top first, left (or back) at the left."""
    return np.take(volume, number, axis=AXES[axis]).T[::-1]


def window(volume: np.ndarray, config: NiftiConfig) -> tuple[float, float]:
    """The values that become black and white."""
    if config.window is not None:
        return config.window
    positive = volume[volume > 0]
    if not len(positive):
        raise UnreadableVolume("no value above 0 to take percentiles of; possible: data.window")
    low, high = (float(v) for v in np.percentile(positive, config.percentiles, overwrite_input=True))
    if not low < high:
        between = " and ".join(f"{p:g}" for p in config.percentiles)
        raise UnreadableVolume(f"percentiles {between} of its positive values are both {low:g}; possible: data.window")
    return low, high


def _square(image: Image.Image, grid: Grid) -> Image.Image:
    height, width = grid.shown
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def _opened(path: Path) -> "Nifti1Image":
    """The header; voxels are read later."""
    import nibabel as nib
    from nibabel.imageglobals import LoggingOutputSuppressor

    try:
        with LoggingOutputSuppressor():  # nibabel prints what it mends in a header
            image = nib.load(path)
    except Exception as error:
        # As in `decode`, and nibabel's own for a header that makes no sense.
        raise UnreadableVolume(f"damaged, or not a NIfTI volume: {_line(error)}") from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one; a file named .nii may be neither
        raise UnreadableVolume(f"not a NIfTI volume ({type(image).__name__})")
    return image


def _ras_grid(image: "Nifti1Image") -> tuple[list[int], list[float]]:
    """Shape and spacing (mm) along the three RAS axes."""
    shape = [int(n) for n in image.shape]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()  # (x, y, z, 1) is a volume
    shown = " x ".join(map(str, shape))
    if len(shape) != 3:
        series = ", a series: save the volume of it that is wanted as a file" if len(shape) > 3 else ""
        raise UnreadableVolume(f"{shown} has {len(shape)} axes{series}; a volume has 3")
    if min(shape) < 1 or np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise UnreadableVolume(f"{shown} voxels; possible are 1 to {MAX_VOXELS // 10**6} million")
    if image.get_data_dtype().kind not in "iuf":
        raise UnreadableVolume(
            f"voxels of type {image.get_data_dtype()}; possible: integers and floating-point numbers"
        )
    spacing = [float(step) for step in image.header.get_zooms()[:3]]
    if not np.isfinite(spacing).all() or min(spacing) <= 0:
        raise UnreadableVolume(f"voxels of {' x '.join(f'{step:g}' for step in spacing)} mm")
    places = np.argsort(_orientation(image)[:, 0])  # RAS axis i is axis places[i] of the file
    return [shape[i] for i in places], [spacing[i] for i in places]


def _orientation(image: "Nifti1Image") -> np.ndarray:
    """(3, 2): for each axis of the file the RAS axis nearest to it, and 1, or -1 where it runs the other way."""
    import nibabel as nib

    affine = image.affine
    turned = np.full((3, 2), np.nan)
    if affine is not None and np.isfinite(affine).all():
        turned = np.asarray(nib.io_orientation(affine))
    if not np.isfinite(turned).all():
        raise UnreadableVolume("its affine is no orientation, so left, front and top are unknown")
    return turned


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
