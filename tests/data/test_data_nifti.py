"""One NIfTI volume to slices: orientation, spacing, values, damaged files."""

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from volume_zoo import head, levels, rotation, saved, stored

from moyai.data import nifti
from moyai.data.config import NiftiConfig
from moyai.data.decode import Target


@pytest.mark.parametrize("tilt", [np.eye(3), rotation((1, 2, -1), 25), rotation((0, 1, 1), -33)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_orientation_shows_the_same_slices(tmp_path: Path, order: tuple[int, ...], tilt: np.ndarray) -> None:
    ras = head()
    for n, signs in enumerate(itertools.product((1, -1), repeat=3)):
        values, affine = stored(ras, order, signs, tilt, (1, 1, 1))
        path = saved(tmp_path / f"{n}.nii", values, affine)
        for axis, (height, width, count) in {"axial": (6, 5, 7), "coronal": (7, 5, 6), "sagittal": (7, 6, 5)}.items():
            config = NiftiConfig.model_validate({"window": (0, 100), "axis": axis})
            grid = nifti.inspect(path, config)
            assert (grid.count, grid.size, grid.shown, grid.placed) == (count, (height, width), (height, width), True)
            got = nifti.decode(path, range(count), grid, config, Target(height, width, 1, 8, "pad"))
            whole = levels(ras, 0, 100)
            for k, row, column in itertools.product(range(count), range(height), range(width)):
                # Where the picture's pixel lies in the head: rows from front or top, columns from left or back.
                x, y, z = {
                    "axial": (column, 5 - row, k),
                    "coronal": (column, k, 6 - row),
                    "sagittal": (k, column, 6 - row),
                }[axis]
                assert abs(int(got[k, 0, row, column]) - whole[x, y, z]) <= 1


def test_a_mark_lands_where_its_millimetres_say(tmp_path: Path) -> None:
    # One bright voxel in each of four oblique, flipped scans; the world, in mm, says left, front and top.
    rng = np.random.default_rng(1)
    for n in range(12):
        order = tuple(rng.permutation(3))
        signs = tuple(rng.choice([1, -1], 3))
        spacing = (1.0, 1.0, 1.0)
        tilt = rotation(tuple(rng.normal(size=3)), float(rng.uniform(-25, 25)))
        values, affine = stored(np.ones((9, 9, 9), np.float32), order, signs, tilt, spacing)
        values, mark = values.copy(), rng.integers(0, 9, 3)
        values[tuple(mark)] = 200
        path = saved(tmp_path / f"{n}.nii.gz", values, affine)
        centre = affine[:3, :3] @ [4, 4, 4] + affine[:3, 3]
        right, front, top = np.rint(tilt.T @ (affine[:3, :3] @ mark + affine[:3, 3] - centre)).astype(int)
        config = NiftiConfig(window=(0, 200))
        got = nifti.decode(path, range(9), nifti.inspect(path, config), config, Target(9, 9, 1, 8, "pad"))
        found = np.argwhere(got == 255)
        np.testing.assert_array_equal(found, [[4 + top, 0, 4 - front, 4 + right]])


def test_pixels_are_square_in_millimetres(tmp_path: Path) -> None:
    # A ball of radius 12 mm in voxels of 1 x 2 x 1.5 mm: each section through its middle is a disc.
    spacing = (1.0, 2.0, 1.5)
    x, y, z = np.meshgrid(
        *(np.arange(n) * s - (n - 1) * s / 2 for n, s in zip((40, 20, 27), spacing, strict=True)), indexing="ij"
    )
    ball = np.where(x**2 + y**2 + z**2 < 12**2, 100, 0).astype(np.float32)
    path = saved(tmp_path / "a.nii", ball, np.diag([*spacing, 1]))
    for axis, shown in {"axial": (40, 40), "coronal": (40, 40), "sagittal": (27, 27)}.items():
        config = NiftiConfig.model_validate({"axis": axis, "window": (0, 100)})
        grid = nifti.inspect(path, config)
        assert max(np.abs(np.subtract(grid.shown, shown))) <= 1
        picture = nifti.decode(path, [grid.count // 2], grid, config, Target(*grid.shown, 1, 8, "stretch"))[0, 0] > 127
        high, wide = picture.any(1).sum(), picture.any(0).sum()
        assert abs(int(high) - int(wide)) <= 2
        assert high > 12


def test_the_scaling_of_the_header_is_applied(tmp_path: Path) -> None:
    ras = head()
    path = saved(tmp_path / "a.nii", ras, dtype=np.int16)  # nibabel writes slope and intercept
    raw = nib.load(path)
    assert raw.dataobj.slope != 1
    config = NiftiConfig(window=(0, 100))
    got = nifti.decode(path, [3], nifti.inspect(path, config), config, Target(6, 5, 1, 16, "pad"))
    assert np.abs(got[0, 0].astype(int) - levels(ras[:, ::-1, 3].T, 0, 100, 16)).max() <= 3


@pytest.mark.parametrize("packed", [False, True])
def test_mutated_volumes_give_slices_or_a_reason(
    tmp_path: Path, packed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    data = saved(tmp_path / "whole.nii", head()).read_bytes()
    path, rng, config = tmp_path / ("a.nii.gz" if packed else "a.nii"), np.random.default_rng(0), NiftiConfig()
    outcomes: list[bool | str] = []
    for _ in range(300):
        changed = bytearray(gzip.compress(data, mtime=0) if packed else data)
        for place in rng.integers(0, len(changed) if packed else 352, 1 + int(rng.integers(4))):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            grid = nifti.inspect(path, config)
            got = nifti.decode(path, [grid.count // 2], grid, config, Target(8, 8, 1, 8, "pad"))
            outcomes.append(got.shape == (1, 1, 8, 8))
        except nifti.UnreadableVolume as error:
            outcomes.append(str(error))
    assert all(outcome is True or (isinstance(outcome, str) and "\n" not in outcome) for outcome in outcomes)
    assert 6 < outcomes.count(True) < 294
    assert capfd.readouterr().err == ""


def test_a_volume_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", head())
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(data)
    with pytest.raises(nifti.UnreadableVolume, match=r"30000 x 30000 x 30000 voxels; possible are 1 to"):
        nifti.inspect(path, NiftiConfig())
