"""Brain slices in the OASIS layout: case, position and side follow from folders and names alone."""

import csv
import shutil
import zipfile
from pathlib import Path

import numpy as np
import picture_zoo as z
import pytest
from PIL import Image
from pydantic import ValidationError

from moyai.data import brain
from moyai.data.config import OasisConfig
from moyai.data.images import ImageSet
from moyai.data.listing import listing
from moyai.data.report import lines, report
from moyai.data.splits import split
from moyai.errors import DataError

PREFIX = "keras_png_slices_"


def slice_of(case: int, number: int) -> np.ndarray:
    return np.random.default_rng([case, number]).integers(0, 256, (8, 8), np.uint8)


def put(root: Path, part: str, case: int, number: int, *, mask: bool = False, data: bytes | None = None) -> Path:
    folder = root / f"{PREFIX}{'seg_' if mask else ''}{part}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'seg' if mask else 'case'}_{case:03d}_slice_{number}.nii.png"
    path.write_bytes(z.saved(slice_of(case, number), "PNG") if data is None else data)
    return path


def filled(root: Path) -> Path:
    """Cases 1 to 6 in train (slices 0 to 11), 7 and 8 in validate (2 to 9), 9 in test, whose files are no pictures."""
    for case in range(1, 7):
        for number in range(12):
            put(root, "train", case, number)
    for case in (7, 8):
        for number in range(2, 10):
            put(root, "validate", case, number)
    put(root, "test", 9, 20, data=b"not read")
    return root


def read(root: Path, **options: object) -> ImageSet:
    return brain.read(OasisConfig.model_validate({"root": root, **options}), root.parent / "cache")


def cases(images: ImageSet) -> tuple[set[int], set[int]]:
    """Of the training side and of the side held out."""
    assert images.groups is not None
    train, validation = split(images, 0.1)
    return set(images.groups[train].tolist()), set(images.groups[validation].tolist())


def test_case_and_position_are_those_of_the_name_and_values_those_of_the_file(tmp_path: Path) -> None:
    images = read(filled(tmp_path / "brain"), bad_files="stop")
    assert (images.count, images.shape, images.bits, images.classes) == (6 * 12 + 2 * 8, (1, 8, 8), 8, ())
    assert images.groups is not None
    for i, name in enumerate(images.names):
        part, case, number = name.split("/")[0], int(name.split("case_")[1][:3]), int(name.split("slice_")[1][:-8])
        assert images.groups[i] == case
        assert images.fields["slice"][i] == number
        # The last slice of the whole layout is 20, although it lies in a folder that is not used.
        assert images.fields["position"][i] == np.float32(number / 20)
        assert images.held_out is not None
        assert images.held_out[i] == (part == f"{PREFIX}validate")
        np.testing.assert_array_equal(images.pixels[i, 0], slice_of(case, number))
    assert images.fields["position"].dtype == np.float32
    assert images.fields["slice"].dtype == np.int64
    assert not any("test" in file.name for file in images.files)


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("case_001_slice_0.nii.png", 0.0),
        ("x/case_001_slice_8.nii.png", 0.25),
        ("a.zip/y/case_9_slice_32.png", 1.0),
        ("case_001_slice_33.nii.png", None),  # beyond the layout's last
        ("seg_001_slice_8.nii.png", None),
        ("case_001.png", None),
    ],
)
def test_a_name_alone_says_the_position(name: str, position: float | None) -> None:
    assert brain.position_in(name, 32) == position


def test_what_is_held_out_is_whole_cases_of_the_folder_asked_for(tmp_path: Path) -> None:
    root = filled(tmp_path / "brain")
    assert cases(read(root)) == ({1, 2, 3, 4, 5, 6}, {7, 8})
    inside, outside = cases(read(root, held_out="tuning"))
    assert inside | outside == {1, 2, 3, 4, 5, 6}
    assert len(outside) == 2
    put(root, "test", 9, 20)
    assert cases(read(root, held_out="test")) == ({1, 2, 3, 4, 5, 6}, {9})
    # The third for tuning is the same whatever lies in the other folders.
    shutil.rmtree(root / f"{PREFIX}validate")
    shutil.rmtree(root / f"{PREFIX}test")
    assert cases(read(root, held_out="tuning")) == (inside, outside)


def test_a_zip_in_place_equals_the_folder(tmp_path: Path) -> None:
    root = filled(tmp_path / "brain")
    put(root, "train", 1, 3, mask=True)
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*.png")):
            file.write(path, f"keras_png_slices_data/{path.relative_to(root).as_posix()}")
    one, two = read(root), read(archive)
    assert (one.names, one.fingerprint, one.notes) == (two.names, two.fingerprint, two.notes)
    np.testing.assert_array_equal(np.asarray(one.pixels), np.asarray(two.pixels))
    inside = tmp_path / "outer" / "keras_png_slices_data"  # and as the .zip unpacks
    inside.parent.mkdir()
    shutil.copytree(root, inside)
    np.testing.assert_array_equal(np.asarray(read(inside.parent).pixels), np.asarray(one.pixels))


def test_resolution_is_that_of_the_files_or_the_one_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "brain"
    values = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    for part, case in (("train", 1), ("train", 2), ("validate", 3)):
        put(root, part, case, 5, data=z.saved(np.roll(values, case), "PNG"))
    assert read(root).shape == (1, 256, 256)
    small = read(root, resolution=128)
    half = Image.fromarray(np.roll(values, 1)).resize((128, 128), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(small.pixels[0, 0], np.asarray(half))


def test_a_limit_keeps_slices_of_the_whole_range_on_both_sides(tmp_path: Path) -> None:
    root = tmp_path / "brain"
    for case in range(1, 41):
        for number in range(10):
            put(root, "train" if case <= 30 else "validate", case, number)
    whole, images = read(root), read(root, limit=40)
    train, validation = split(images, 0.1)
    assert (len(train), len(validation)) == (30, 10)
    for side in (train, validation):
        assert set(np.bincount(images.fields["slice"][side], minlength=10)) == {len(side) // 10}
    assert len(np.unique(images.groups)) > 15  # type: ignore[arg-type]
    place = {name: i for i, name in enumerate(whole.names)}
    rows = [place[name] for name in images.names]
    np.testing.assert_array_equal(images.fields["position"], whole.fields["position"][rows])
    assert rows == sorted(rows)
    for limit in (2, 3):
        few = split(read(root, limit=limit), 0.1)
        assert (len(few[0]), len(few[1])) == (limit - 1, 1)


@pytest.mark.parametrize("held_out", ["validate", "test", "tuning"])
@pytest.mark.parametrize("parts", [("train", "validate"), ("train", "test"), ("validate", "test")])
def test_a_case_in_two_folders_is_refused_whichever_are_used(
    tmp_path: Path, parts: tuple[str, str], held_out: str
) -> None:
    root = filled(tmp_path / "brain")
    put(root, parts[0], 77, 0)
    put(root, parts[1], 77, 1)
    with pytest.raises(DataError, match=rf"case 077 in {PREFIX}{parts[0]} and {PREFIX}{parts[1]}$"):
        read(root, held_out=held_out)


@pytest.mark.parametrize(
    "name", ["case_001.nii.png", "slice_3.nii.png", "case_001_slice_.nii.png", "x_case_1_slice_2.png"]
)
def test_names_without_case_or_position_are_named_with_what_is_expected(tmp_path: Path, name: str) -> None:
    root = filled(tmp_path / "brain")
    (root / f"{PREFIX}validate" / name).write_bytes(z.saved(slice_of(0, 0), "PNG"))
    with pytest.raises(
        DataError, match=f"1 files have no case and position.*{name}; expected: case_XXX_slice_N.nii.png"
    ):
        read(root)


def test_one_slice_twice_is_refused(tmp_path: Path) -> None:
    root = filled(tmp_path / "brain")
    (root / f"{PREFIX}train" / "case_1_slice_04.png").write_bytes(z.saved(slice_of(1, 4), "PNG"))
    with pytest.raises(DataError, match=r"case_001_slice_4.nii.png and .*case_1_slice_04.png are the same slice"):
        read(root)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    root = filled(tmp_path / "brain")
    shutil.rmtree(root / f"{PREFIX}validate")
    expected = (
        f"no slices in {PREFIX}validate, which data.held_out = validate needs; it has {PREFIX}train, {PREFIX}test"
    )
    with pytest.raises(DataError, match=expected):
        read(root)
    with pytest.raises(DataError, match="holds no slices: expected are keras_png_slices_train/case_XXX"):
        read(root / f"{PREFIX}train")
    with pytest.raises(DataError, match="no data found: put folders keras_png_slices_train and"):
        read(tmp_path / "nowhere")


def test_masks_are_compared_with_the_slices_and_said(tmp_path: Path) -> None:
    root = filled(tmp_path / "brain")
    assert read(root).notes == ()
    for number in range(2, 9):
        put(root, "validate", 7, number, mask=True)
    put(root, "validate", 7, 19, mask=True)
    put(root, "validate", 55, 3, mask=True)
    (root / f"{PREFIX}seg_validate" / "mask_3.png").write_bytes(b"")
    (root / "sheet.png").write_bytes(b"")
    images = read(root)
    assert images.count == 6 * 12 + 2 * 8
    seg = f"{PREFIX}seg_validate/"
    assert images.notes == (
        f"1 file: in none of the folders {PREFIX}train|validate|test: left out",
        "9 files: segmentation masks: counted, not read",
        "2 files: masks without a slice of their case and number: "
        f"{seg}seg_007_slice_19.nii.png, {seg}seg_055_slice_3.nii.png",
        # Slice 9 of case 7 and all eight of case 8; in train nobody has masks, so none is missing there.
        "9 files: slices without a mask, though others of their folder have one: "
        + ", ".join(
            f"{PREFIX}validate/case_{case:03d}_slice_{n}.nii.png"
            for case, n in ((7, 9), (8, 2), (8, 3), (8, 4), (8, 5))
        )
        + " and 4 more",
        f"1 file: in the mask folders not named seg_XXX_slice_N.nii.png: {seg}mask_3.png",
    )
    assert set(images.notes) <= set(lines(report(images, *split(images, 0.1))))


def test_bad_files_leave_the_rows_of_the_others_right(tmp_path: Path) -> None:
    root = filled(tmp_path / "brain")
    put(root, "train", 2, 5, data=z.saved(slice_of(2, 5), "PNG")[:50])
    put(root, "validate", 7, 2).unlink()
    (root / f"{PREFIX}validate" / "case_007_slice_2.nii.png").symlink_to("nothing")
    images = read(root)
    assert [file.name.rsplit("/", 1)[1] for file in images.bad] == [
        "case_002_slice_5.nii.png",
        "case_007_slice_2.nii.png",
    ]
    assert images.groups is not None
    assert images.count == 6 * 12 + 2 * 8 - 2
    for i, (case, number) in enumerate(zip(images.groups, images.fields["slice"], strict=True)):
        np.testing.assert_array_equal(images.pixels[i, 0], slice_of(int(case), int(number)))
    with pytest.raises(DataError, match=r"case_00[27]_slice_[25]"):
        read(root, bad_files="stop")
    with pytest.raises(DataError, match=r"2 of 88 files cannot be read, more than data.max_bad = 0.02"):
        read(root, max_bad=0.02)


def test_a_share_of_a_hashed_split_is_refused() -> None:
    with pytest.raises(ValidationError, match="whole cases are held out"):
        OasisConfig(validation=0.2)
    assert OasisConfig.model_validate(OasisConfig().model_dump()) == OasisConfig()


def test_the_real_slices_are_those_of_their_index(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = real_data / "brain"
    if not root.is_dir():
        pytest.skip("there is no folder brain in MOYAI_DATA")
    monkeypatch.setenv("MOYAI_DATA", str(real_data))
    with (root / "index.csv").open(encoding="utf-8") as file:
        rows = {
            f"{PREFIX}{row['split']}/case_{int(row['case']):03d}_slice_{row['slice']}.nii.png": row
            for row in csv.DictReader(file)
            if row["split"] != "test"
        }
    with listing(root) as listed:
        found = {one.entry.name: one for one in brain._layout(listed, root).slices}
    assert set(found) == set(rows)
    for name, one in found.items():
        row = rows[name]
        assert (one.part, one.case, one.number) == (row["split"], int(row["case"]), int(row["slice"]))
    images = brain.read(OasisConfig(resolution=128, limit=300), tmp_path)
    assert (images.count, images.shape, images.bits, images.bad) == (300, (1, 128, 128), 8, ())
    assert images.held_out is not None
    assert [rows[name]["split"] == "validate" for name in images.names] == images.held_out.tolist()
    np.testing.assert_allclose(images.fields["position"], [int(rows[n]["slice"]) / 31 for n in images.names], rtol=1e-6)
    said = report(images, *split(images, 0.1))
    assert said.cases is not None
    assert (said.validation, said.cases.positions) == (33, (0.0, 1.0))
    assert 8 < said.cases.validation <= 13
    assert not any("equal one that is trained on" in warning for warning in said.warnings)
