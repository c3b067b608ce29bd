"""Folders of NIfTI volumes cut into slices: which, of whom, what is left out, and what is in memory."""

import os
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError
from volume_zoo import BAD, SHAPE, head, levels, saved, spoiled

from moyai.data import nifti, volumes
from moyai.data.config import NiftiConfig
from moyai.data.images import ImageSet
from moyai.data.report import lines, report
from moyai.data.splits import split
from moyai.errors import ConfigError, DataError


def filled(root: Path, people: int = 4, shape: tuple[int, ...] = SHAPE) -> Path:
    for i in range(people):
        saved(root / f"sub-{i:02d}_T1w.nii.gz", head(i, shape))
    return root


def read(root: Path, in_memory: int = volumes.IN_MEMORY, **options: object) -> ImageSet:
    config = NiftiConfig.model_validate({"root": root, **options})
    return volumes.read(config, root.parent / "cache", in_memory=in_memory)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("window", [None, (10.0, 60.0)])
def test_levels_follow_the_window_or_the_percentiles(
    tmp_path: Path, bits: int, window: tuple[float, float] | None
) -> None:
    root = tmp_path / "set"
    heads = {}
    for i in range(3):
        ras = head(i) * (1 + i) - 20  # a third of it below zero, which percentiles do not see
        heads[f"s{i}.nii.gz"] = ras
        saved(root / f"s{i}.nii.gz", ras)
    images = read(root, bits=bits, window=window, resolution=(6, 5), slices=(0, 1))
    assert (images.bits, images.shape, images.count) == (bits, (1, 6, 5), 3 * 7)
    for i, name in enumerate(images.names):
        ras = heads[name.split("[")[0]]
        low, high = window or np.percentile(ras[ras > 0].astype(np.float64), (0.5, 99.5))
        expected = levels(ras[:, ::-1, images.fields["slice"][i]].T, low, high, bits)
        assert np.abs(images.pixels[i, 0].astype(int) - expected).max() <= 1
        assert expected.max() > expected.min()


def test_channels_and_resolution_are_those_asked_for_or_follow(tmp_path: Path) -> None:
    root = filled(tmp_path / "set", shape=(40, 70, 9))
    assert read(root).shape == (1, 64, 64)  # pad: the longer side, as a multiple of 32
    assert read(root, resize="crop").shape == (1, 32, 32)
    images = read(root, resolution=16, channels=3)
    assert images.shape == (3, 16, 16)
    np.testing.assert_array_equal(images.pixels[:, 0], images.pixels[:, 2])
    assert (np.asarray(images.pixels)[..., :3] == 0).all()  # the padding, at the left
    assert np.asarray(images.pixels)[..., 8].any()


def test_a_header_without_orientation_is_said(tmp_path: Path) -> None:
    root = filled(tmp_path / "set")
    image = nib.load(root / "sub-00_T1w.nii.gz")
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), root / "sub-09_T1w.nii.gz")
    assert "1 file: orientation not said by the header: left and right may be exchanged" in read(root).notes


def test_voxels_that_are_not_square_are_said(tmp_path: Path) -> None:
    for i in range(2):
        saved(tmp_path / "set" / f"{i}.nii", head(i, (40, 20, 9)), np.diag([1.0, 2.0, 1.5, 1.0]))
    images = read(tmp_path / "set")
    assert "2 files: voxels not square in the slice: stretched to the finer spacing" in images.notes
    assert images.sizes is not None
    assert images.sizes[0].tolist() == [20, 40]


def test_slices_positions_and_people(tmp_path: Path) -> None:
    root = tmp_path / "set"
    saved(root / "sub-01" / "ses-1" / "sub-01_ses-1_T1w.nii.gz", head(0, (5, 6, 21)))
    saved(root / "sub-01" / "ses-2" / "sub-01_ses-2_T1w.nii", head(1, (5, 6, 11)))
    saved(root / "sub-02" / "sub-02_T1w.nii.gz", head(2, (5, 6, 21)))
    (root / "notes.txt").write_text("x")
    (root / ".hidden.nii").write_text("x")
    images = read(root, slices=(0.25, 0.5))
    expected = {"sub-01_ses-1": (range(5, 11), 20), "sub-01_ses-2": (range(3, 6), 10), "sub-02_T1w": (range(5, 11), 20)}
    for start, (numbers, last) in expected.items():
        rows = [i for i, name in enumerate(images.names) if f"/{start}" in name]
        assert images.fields["slice"][rows].tolist() == list(numbers)
        np.testing.assert_array_equal(images.fields["position"][rows], np.array(numbers, np.float32) / np.float32(last))
        assert images.groups is not None
        assert set(images.groups[rows]) == {int(start.startswith("sub-02"))}
    assert images.count == 15
    assert images.notes == ("1 file: not .nii or .nii.gz, or not named as data.files says: left out",)
    train, validation = split(images, 0.1)
    sides = sorted([len(train), len(validation)])
    assert sides == [6, 9]
    found = list(lines(report(images, train, validation)))
    assert any(line.startswith("2 cases: 1 to train on, 1 held out; 6 to 9 pictures each") for line in found)


def test_the_names_wanted_and_the_person_in_them_are_options(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for person in ("Train_001", "Train_002"):
        for kind in ("t1", "seg"):
            saved(root / person / f"{person}_{kind}.nii.gz", head())
    with pytest.raises(
        DataError, match=r"of the 4 volumes that are read, all are of Train by data.subject = '\[\^_\]\*'; at least 2"
    ):
        read(root)
    images = read(root, files="*_t1.nii.gz", subject=r"[^_]*_\d+")
    assert len(images.files) == 2
    assert len(np.unique(images.groups)) == 2  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"2 of 2 volumes cannot be read.*finds no person in its name"):
        read(root, files="*_t1.nii.gz", subject="sub-")
    with pytest.raises(ConfigError, match="no regular expression"):
        read(root, subject="(")
    with pytest.raises(DataError, match="holds no NIfTI volumes"):
        read(root, files="*_t2.nii.gz")


def test_a_limit_keeps_the_whole_range_of_many_people(tmp_path: Path) -> None:
    root = filled(tmp_path / "set", people=20, shape=(4, 4, 21))
    whole, images = read(root), read(root, limit=26)
    assert (whole.count, images.count) == (20 * 13, 26)
    assert np.bincount(images.fields["slice"]).tolist() == [0] * 4 + [2] * 13
    assert len(np.unique(images.groups)) > 10  # type: ignore[arg-type]
    rows = [list(whole.names).index(name) for name in images.names]
    np.testing.assert_array_equal(np.asarray(images.pixels), np.asarray(whole.pixels)[rows])
    assert rows == sorted(rows)
    few = read(root, limit=3)
    assert (few.count, len(few.files)) == (3, 3)
    with pytest.raises(DataError, match=r"of the 1 volumes .* are of sub-\d+ by .* \(data.limit = 2\)"):
        read(root, limit=2)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_volume_is_named_and_skipped_or_stops(tmp_path: Path, name: str) -> None:
    root = filled(tmp_path / "set")
    make, reason = BAD[name]
    before = read(root)
    make(root / name)
    images = read(root, max_bad=0.5)
    np.testing.assert_array_equal(np.asarray(images.pixels), np.asarray(before.pixels))
    assert images.names == before.names
    if not reason:  # a folder is looked into, whatever it is called
        assert images.bad == ()
        return
    assert [file.name for file in images.bad] == [name]
    assert reason.split("|")[0].replace("\\", "") in images.bad[0].reason
    assert "\n" not in images.bad[0].reason
    with pytest.raises(DataError, match=rf"{name}: .*{reason}"):
        read(root, bad_files="stop")
    with pytest.raises(
        DataError, match=rf"1 of 5 volumes cannot be read, more than data.max_bad = 0.05 allows \({name}: "
    ):
        read(root)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = filled(tmp_path / "set")
    saved(root / "closed" / "x.nii", head())
    plain = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", guarded)
    images = read(root, max_bad=0.5)
    assert images.count == 4 * 3
    assert [file.reason for file in images.bad] == ["the folder cannot be read: Permission denied"]
    assert images.bad[0].name == "closed"
    with pytest.raises(DataError, match="closed: the folder cannot be read"):
        read(root, bad_files="stop")


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    root = filled(tmp_path / "set", people=2)
    plain = saved(tmp_path / "x.nii", head(5)).read_bytes()
    Path(os.fsdecode(os.fsencode(root) + b"/sub-\xff.nii")).write_bytes(plain)
    images = read(root)
    assert "sub-\\xff.nii" in [file.name for file in images.files]
    assert len(np.unique(images.groups)) == 3  # type: ignore[arg-type]
    assert images.fingerprint


def test_a_volume_with_a_fourth_axis_of_one_is_a_volume(tmp_path: Path) -> None:
    root = filled(tmp_path / "set")
    saved(root / "sub-00_T1w.nii.gz", head(0)[..., None])
    saved(root / "other" / "x.nii", head(0))
    images = read(root)
    first, again = ([i for i, n in enumerate(images.names) if n.startswith(start)] for start in ("sub-00", "other"))
    np.testing.assert_array_equal(images.pixels[np.array(first)], images.pixels[np.array(again)])


def test_nothing_to_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=r"holds no NIfTI volumes \(.nii, .nii.gz\)"):
        read(tmp_path / "set")
    path = saved(tmp_path / "set" / "a.nii", head())
    with pytest.raises(DataError, match="of the 1 volumes that are read, all are of a by"):
        read(tmp_path / "set")
    with pytest.raises(DataError, match="put a folder of NIfTI volumes"):
        read(path)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match=r"pip install moyai\[medical\]"):
        read(tmp_path / "set")


def test_what_goes_down_is_refused() -> None:
    for key, pair in {"slices": (0.8, 0.2), "window": (5, 5), "percentiles": (99, 1)}.items():
        with pytest.raises(ValidationError, match="the first must be below the second"):
            NiftiConfig.model_validate({key: pair})


def test_one_volume_is_in_memory_at_a_time(tmp_path: Path) -> None:
    root = tmp_path / "set"
    values = np.zeros((64, 64, 64), np.int16)
    values[10:50, 10:50, 10:50] = np.random.default_rng(0).integers(1, 1000, (40, 40, 40))
    for i in range(5):
        saved(root / f"s{i}.nii", values + np.int16(i), dtype=np.int16)
    one = values.size * 4  # bytes, as float32
    read(root, resolution=8)  # whatever is loaded once
    tracemalloc.start()
    images = read(root, resolution=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.count == 5 * 38
    assert one < peak < 4 * one


def test_slices_are_found_again_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = filled(tmp_path / "set")
    saved(root / "bad.nii", spoiled(np.nan))
    plain = read(root, max_bad=0.5)
    first = read(root, max_bad=0.5, in_memory=0)
    monkeypatch.setattr(nifti, "decode", None)  # called, it would fail
    again = read(root, max_bad=0.5, in_memory=0)
    assert isinstance(again.pixels, np.memmap)
    for other in (first, again):
        np.testing.assert_array_equal(np.asarray(plain.pixels), np.asarray(other.pixels))
        assert (other.names, other.bad, other.fingerprint) == (plain.names, plain.bad, plain.fingerprint)
    monkeypatch.undo()
    options: tuple[dict[str, object], ...] = (
        {"axis": "coronal"}, {"slices": (0.1, 0.9)}, {"window": (0, 1)}, {"percentiles": (1, 99)}, {"bits": 16},
        {"resolution": 9}, {"limit": 5}, {"resize": "crop"},
    )  # fmt: skip
    prints = {read(root, max_bad=0.5, **option).fingerprint for option in options} | {plain.fingerprint}
    assert len(prints) == 1 + len(options)


def test_a_volume_that_changes_while_it_is_read_is_bad(tmp_path: Path) -> None:
    root = filled(tmp_path / "set")

    def meddle(what: str, done: int, total: int) -> None:
        if what == "looking at volumes" and done == total:
            saved(root / "sub-02_T1w.nii.gz", head(99))

    images = volumes.read(NiftiConfig(root=root, max_bad=0.5), tmp_path / "cache", meddle)
    assert [(file.name, file.reason) for file in images.bad] == [("sub-02_T1w.nii.gz", "changed while it was read")]
    assert not any("sub-02" in name for name in images.names)
