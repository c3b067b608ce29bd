"""Volumes of known orientation, and one of each kind that gives no slices, written here."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (5, 6, 7)  # left to right, back to front, bottom to top


def head(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, shape).astype(np.float32)


def saved(path: Path, ras: np.ndarray, affine: np.ndarray | None = None, dtype: type = np.float32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(ras, np.eye(4) if affine is None else affine)
    image.set_data_dtype(dtype)
    nib.save(image, path)
    return path


def stored(
    ras: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...], tilt: np.ndarray, spacing: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """A volume given in RAS as a scanner may store it: file axis a runs along RAS axis order[a], backwards where -1.

    The affine says so, with everything tilted by a rotation. Returns the array of the file and the affine.
    """
    values = ras.transpose(order)
    affine = np.eye(4)
    for a, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[:3, a] = sign * spacing[axis] * tilt[:, axis]
        if sign < 0:
            values = np.flip(values, a)
    affine[:3, 3] = (11, -7, 3)
    return values, affine


def rotation(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def levels(ras: np.ndarray, low: float, high: float, bits: int = 8) -> np.ndarray:
    share = np.clip((ras.astype(np.float64) - low) / (high - low), 0, 1)
    return np.rint(share * (2**bits - 1)).astype(int)


def spoiled(index: float) -> np.ndarray:
    values = head()
    values[2, 3, 0] = index  # in a slice that is not used
    return values


def no_affine(path: Path) -> None:
    saved(path, head())
    data = bytearray(path.read_bytes())
    data[280 : 280 + 16] = bytes(16)  # srow_x of the header: the first row of the affine
    path.write_bytes(data)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nan.nii": (lambda p: saved(p, spoiled(np.nan)), r"1 of 210 values are not finite"),
    "infinity.nii": (lambda p: saved(p, spoiled(np.inf)), r"1 of 210 values are not finite"),
    "series.nii": (lambda p: saved(p, head(0, (5, 6, 7, 3))), r"5 x 6 x 7 x 3 has 4 axes, a series: save the volume"),
    "flat.nii": (lambda p: saved(p, head(0, (5, 6))), r"5 x 6 has 2 axes; a volume has 3"),
    "one.nii": (lambda p: saved(p, head(0, (5, 6, 1))), "1 axial slice, which has no position"),
    "two.nii": (lambda p: saved(p, head(0, (5, 6, 2))), "none of its 2 slices lies between 0.2 and 0.8"),
    "words.nii": (lambda p: p.write_text("this is no volume"), "damaged, or not a NIfTI volume"),
    "empty.nii.gz": (lambda p: p.write_bytes(b""), "damaged, or not a NIfTI volume"),
    "cut.nii.gz": (lambda p: p.write_bytes(saved(p, head(0, (30, 30, 30))).read_bytes()[:9000]), "damaged"),
    "short.nii": (lambda p: p.write_bytes(saved(p, head()).read_bytes()[:500]), "damaged"),
    "garbled.nii.gz": (lambda p: p.write_bytes(gzip.compress(bytes(400))), "damaged, or not a NIfTI volume"),
    "mask.nii": (lambda p: saved(p, (head() > 50).astype(np.float32)), "are both 1; possible: data.window"),
    "black.nii": (lambda p: saved(p, np.zeros(SHAPE, np.float32)), "no value above 0"),
    "folder.nii": (lambda p: p.mkdir(), ""),
    "link.nii": (lambda p: p.symlink_to("nothing"), "a link to nothing"),
    "singular.nii": (no_affine, "its affine is no orientation"),
    "complex.nii": (lambda p: saved(p, head().astype(np.complex64), dtype=np.complex64), "voxels of type complex64"),
}
