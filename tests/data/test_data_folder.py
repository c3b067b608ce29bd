"""Folders and .zip files of pictures: what is read, left out, refused, and kept in the cache."""

import hashlib
import json
import os
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import picture_zoo as z
import pytest

from moyai.data import folder as f
from moyai.data.config import FolderConfig
from moyai.data.images import ImageSet, difference
from moyai.errors import DataError


def noise(seed: int, shape: tuple[int, ...] = (32, 32)) -> bytes:
    return z.saved(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), "PNG")


def filled(root: Path, count: int = 30, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for i in range(count):
        place = root / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02d}.png").write_bytes(noise(i))
    return root


def read(root: Path, **options: object) -> ImageSet:
    in_memory = options.pop("in_memory", f.IN_MEMORY)
    assert isinstance(in_memory, int)
    return f.read(FolderConfig(root=root, **options), root.parent / "cache", in_memory=in_memory)  # type: ignore[arg-type]


def packed(root: Path, archive: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(root).as_posix())
    return archive


def test_sub_folders_are_classes_and_nested_ones_belong_to_them(tmp_path: Path) -> None:
    root = filled(tmp_path / "pets")
    (root / "dog" / "small" / "smaller").mkdir(parents=True)
    (root / "dog" / "small" / "smaller" / "x.PNG").write_bytes(noise(99))
    (root / "notes.txt").write_text("not a picture")
    (root / ".hidden.png").write_bytes(b"")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "y.png").write_bytes(b"")
    (root / "empty").mkdir()
    images = read(root)
    assert images.classes == ("cat", "dog")
    assert images.names[-1] == "dog/small/smaller/x.PNG"
    assert np.bincount(images.fields["class"]).tolist() == [15, 16]
    assert (images.shape, images.bits, images.bad) == ((1, 32, 32), 8, ())
    assert images.notes == ("1 file: not a picture by its name: left out",)
    expected = hashlib.sha256((root / images.names[4]).read_bytes()).hexdigest()
    assert (images.files[4].name, images.files[4].sha256) == (images.names[4], expected)
    assert not (tmp_path / "cache").exists()


def test_pictures_beside_class_folders_are_listed(tmp_path: Path) -> None:
    root = filled(tmp_path / "pets")
    (root / "stray.png").write_bytes(noise(50))
    with pytest.raises(DataError, match=r"class folders \(cat, dog\) and pictures beside them \(stray.png\)"):
        read(root)
    images = read(root, classes="none")
    assert (images.count, images.classes, images.fields) == (31, (), {})


def test_pictures_at_the_top_have_no_classes(tmp_path: Path) -> None:
    root = tmp_path / "flat"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.png").write_bytes(noise(i, (40 + i, 50)))
    images = read(root)
    assert (images.classes, images.shape) == ((), (1, 32, 32))
    assert images.sizes is not None
    assert images.sizes.tolist() == [[40, 50], [41, 50], [42, 50], [43, 50]]


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_a_zip_in_place_equals_the_folder(tmp_path: Path, prefix: str) -> None:
    root = filled(tmp_path / "pets")
    (root / "cat" / "broken.png").write_bytes(noise(3)[:60])
    archive = packed(root, tmp_path / "other.zip", prefix)
    before = sorted(path.name for path in tmp_path.iterdir())
    one, two = read(root), read(archive)
    np.testing.assert_array_equal(np.asarray(one.pixels), np.asarray(two.pixels))
    assert (one.names, one.files, one.bad, one.classes) == (two.names, two.files, two.bad, two.classes)
    assert one.fingerprint == two.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # nothing was unpacked


def test_the_whole_zoo_in_one_folder(tmp_path: Path) -> None:
    animals = z.zoo()
    for animal in animals:
        (tmp_path / "zoo" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "zoo" / "x" / animal.name).write_bytes(animal.data)
    images = read(tmp_path / "zoo", max_bad=0.5)
    assert {file.name for file in images.bad} == {f"x/{a.name}" for a in animals if a.expected is None}
    assert images.count == sum(animal.expected is not None for animal in animals)
    assert (images.shape[0], images.bits, images.pixels.dtype) == (3, 16, np.uint16)
    at = list(images.names).index("x/grey.png")
    from moyai.data.decode import Target, decode

    alone, _ = decode(z.saved(z.GREY, "PNG"), Target(*images.shape[1:], 3, 16, "crop"))
    np.testing.assert_array_equal(images.pixels[at], alone)
    notes = "\n".join(images.notes)
    for part in (
        "2 files: 16-bit colour",
        "4 files: several pictures",
        "7 files: transparent",
        "1 file: colour profile",
    ):
        assert part in notes, notes


def test_what_is_no_file_is_named_and_nothing_hangs(tmp_path: Path) -> None:
    root = filled(tmp_path / "pets")
    (root / "cat" / "folder.png").mkdir()
    os.mkfifo(root / "cat" / "fifo.png")
    (root / "cat" / "nothing.png").symlink_to(tmp_path / "missing.png")
    (root / "cat" / "good.png").symlink_to(root / "dog" / "01.png")
    (root / "dog" / "circle").symlink_to(root, target_is_directory=True)
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(root / "dog")  # the path of a socket must be short
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        images = read(root, max_bad=0.5)
    assert {file.name: file.reason for file in images.bad} == {
        "cat/folder.png": "a folder, not a picture",
        "cat/fifo.png": "not a regular file",
        "cat/nothing.png": "a link to nothing",
        "dog/socket.png": "not a regular file",
    }
    assert images.count == 31


def test_one_bad_file_among_good_ones(tmp_path: Path) -> None:
    root = filled(tmp_path / "pets")
    (root / "dog" / "07.png").write_bytes(noise(7)[:200])
    (root / "cat" / "99.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 31 files cannot be read.*max_bad = 0.05.*cat/99.png: the file is empty"):
        read(root)
    images = read(root, max_bad=0.1)
    assert [file.name for file in images.bad] == ["cat/99.png", "dog/07.png"]
    assert images.count == 29
    assert "dog/07.png" not in images.names
    assert len(images.files) == 31  # a file that is mended later is another data set
    with pytest.raises(DataError, match=r"cat/99.png: the file is empty"):
        read(root, bad_files="stop")
    (root / "cat" / "99.png").unlink()
    with pytest.raises(DataError, match=r"dog/07.png: damaged"):
        read(root, bad_files="stop")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no data found: put a folder"),
        (lambda root: root.mkdir(), "holds no pictures"),
        (lambda root: filled(root, 1), "holds 1 readable picture; at least 2"),
        (lambda root: root.write_bytes(b"hello"), "neither a folder nor a .zip"),
        (lambda root: root.write_bytes(b"PK\5\6" + bytes(18)), "holds no pictures"),
    ],
)
def test_nothing_to_read(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "pets")  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        read(tmp_path / "pets")
    assert message in str(caught.value)
    assert "pets" in str(caught.value)


def test_a_large_set_is_kept_in_the_cache_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = filled(tmp_path / "pets")
    (root / "dog" / "07.png").write_bytes(noise(7)[:200])
    small = read(root, max_bad=0.1)
    large = read(root, max_bad=0.1, in_memory=0)
    assert isinstance(large.pixels, np.memmap)
    np.testing.assert_array_equal(np.asarray(large.pixels), np.asarray(small.pixels))
    kept = sorted((tmp_path / "cache" / "pictures").iterdir())
    assert [path.suffix for path in kept] == [".json", ".npy"]

    def never(*_: object) -> None:
        raise AssertionError("decoded although it is in the cache")

    with monkeypatch.context() as patch:
        patch.setattr(f, "decode", never)
        again = read(root, max_bad=0.1, in_memory=0)
        assert (again.names, again.bad, again.notes) == (large.names, large.bad, large.notes)
        np.testing.assert_array_equal(np.asarray(again.pixels), np.asarray(small.pixels))
        (root / "dog" / "09.png").write_bytes(noise(1000))
        with pytest.raises(AssertionError, match="although"):
            read(root, max_bad=0.1, in_memory=0)
    assert sorted((tmp_path / "cache" / "pictures").iterdir()) == kept  # the failed one left nothing
    kept[1].write_bytes(kept[1].read_bytes()[:-5])  # torn: made again
    (root / "dog" / "09.png").write_bytes(noise(9))
    np.testing.assert_array_equal(np.asarray(read(root, max_bad=0.1, in_memory=0).pixels), np.asarray(small.pixels))


@pytest.mark.parametrize(
    ("sides", "resolution"),
    [([28, 28], 28), ([32, 33], 32), ([63], 32), ([100, 200, 90], 96), ([4000], 256), ([5], 5)],
)
def test_the_resolution_follows_from_the_shorter_sides(sides: list[int], resolution: int) -> None:
    assert f.natural_resolution(sides) == resolution


def test_channels_follow_from_the_data_unless_given(tmp_path: Path) -> None:
    root = filled(tmp_path / "pets")
    assert read(root, channels=3).shape[0] == 3
    (root / "cat" / "colour.png").write_bytes(z.saved(z.RGB, "PNG"))
    assert read(root).shape[0] == 3
    grey = read(root, channels=1, resolution=(16, 24))
    assert grey.shape == (1, 16, 24)
    assert "1 file: colour: turned to grey" in grey.notes
    assert any("scaled up" in note for note in read(root, resolution=64).notes)


def test_a_limit_reads_only_those_it_keeps(tmp_path: Path) -> None:
    root = filled(tmp_path / "pets")
    images = read(root, limit=6)
    assert np.bincount(images.fields["class"]).tolist() == [3, 3]
    assert [file.name for file in images.files] == list(images.names)


def test_a_changed_folder_says_the_first_difference(tmp_path: Path) -> None:
    root = filled(tmp_path / "pets")
    before = read(root)
    (root / "cat" / "04.png").rename(root / "cat" / "new.png")
    assert difference(before.files, read(root).files) == "cat/04.png was renamed to cat/new.png"
    assert read(root).fingerprint != before.fingerprint


def hostile(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(zipfile.ZipInfo(name), noise(0))
    return path


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/../../b.png", "C:/a.png"])
def test_a_zip_with_names_that_lead_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is refused: it holds a file named"):
        read(hostile(tmp_path / "x.zip", ["cat/1.png", name]))


def test_a_zip_that_is_a_trick_is_refused(tmp_path: Path) -> None:
    archive = hostile(tmp_path / "x.zip", ["cat/1.png", "cat/2.png", "dog/3.png"])
    whole = archive.read_bytes()
    central = whole.index(b"PK\1\2")
    encrypted = bytearray(whole)
    encrypted[central + 8] |= 1
    archive.write_bytes(encrypted)
    with pytest.raises(DataError, match="is encrypted"):
        read(archive)
    bomb = bytearray(whole)
    bomb[central + 24 : central + 28] = struct.pack("<I", 2**31)
    archive.write_bytes(bomb)
    with pytest.raises(DataError, match="say they hold 214748"):
        read(archive)
    overlapping = bytearray(whole)
    overlapping[central + 20 : central + 24] = struct.pack("<I", 2**20)
    archive.write_bytes(overlapping)
    with pytest.raises(DataError, match="is refused"):
        read(archive)
    archive.write_bytes(whole[:-40])
    with pytest.raises(DataError, match=r"neither a folder nor a \.zip"):
        read(archive)


def test_a_damaged_member_of_a_zip_is_a_bad_file(tmp_path: Path) -> None:
    root = filled(tmp_path / "pets")
    archive = tmp_path / "y.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*.png")):
            file.write(path, path.relative_to(root).as_posix())
    data = bytearray(archive.read_bytes())
    data[data.index(noise(4)) + 50] ^= 1
    archive.write_bytes(data)
    images = read(archive)
    assert [file.name for file in images.bad] == ["cat/04.png"]
    assert "CRC" in images.bad[0].reason


def test_names_that_are_not_text_or_are_long(tmp_path: Path) -> None:
    root = filled(tmp_path / "a folder é漢🎨")
    (root / "cat" / ("n" * 240 + ".png")).write_bytes(noise(70))
    strange = os.fsencode(root / "cat") + b"/\xff\xfe.png"
    Path(os.fsdecode(strange)).write_bytes(noise(71))
    images = read(root)
    assert images.count == 32
    assert "cat/\\xff\\xfe.png" in images.names
    json.dumps(list(images.names)).encode("ascii")
    assert len(images.fingerprint) == 64


def test_a_file_that_changes_between_the_passes_is_bad(tmp_path: Path) -> None:
    root = filled(tmp_path / "pets")

    def meddle(what: str, done: int, total: int) -> None:
        if what == "looking at pictures" and done == total:
            (root / "cat" / "00.png").write_bytes(noise(500))
            (root / "cat" / "02.png").unlink()

    images = f.read(FolderConfig(root=root, max_bad=0.1), tmp_path / "cache", meddle)
    assert [(file.name, file.reason) for file in images.bad] == [
        ("cat/00.png", "changed while it was read"),
        ("cat/02.png", "cannot be read: No such file or directory"),
    ]
    assert images.count == 28


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    config = FolderConfig(root=filled(tmp_path / "pets"))
    f.read(config, tmp_path / "cache", lambda what, done, total: seen.append((what, done, total)))
    assert [s for s in seen if s[1] == s[2]] == [("looking at pictures", 30, 30), ("decoding pictures", 30, 30)]
    assert [s[1] for s in seen] == [*range(1, 31)] * 2
