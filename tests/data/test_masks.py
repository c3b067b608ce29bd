"""Masks: their numbers are those of the file, they lie where their picture's pixels lie, and bad ones are named."""

import hashlib
from pathlib import Path
from typing import Any

import annotated as a
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moyai.data import masks
from moyai.data.decode import Target, decode
from moyai.data.listing import Entry
from moyai.errors import DataError

PALETTE = [0, 0, 0, 250, 0, 0, 0, 250, 0, 7, 7, 7, 250, 250, 250]


def masked(
    root: Path, values: list[np.ndarray | Image.Image], name: str = "{:02d}_mask.png", kind: str = "PNG"
) -> Path:
    a.pictures(root, len(values))
    for i, one in enumerate(values):
        a.put(root / name.format(i), a.z.saved(one, kind))
    return root


def of(mode: str, i: int) -> np.ndarray | Image.Image:
    """The mask of picture i, regions 0 to 4, as a file of some kind would hold it."""
    numbers = a.mask(i)
    if mode == "palette":
        image = Image.fromarray(numbers, "P")
        image.putpalette(PALETTE)
        return image
    if mode == "1 bit":
        return Image.fromarray((numbers > 1).astype(np.uint8) * 255).convert("1")
    if mode == "grey as RGB":
        return np.repeat(numbers[..., None], 3, 2)
    if mode == "RGB":
        return np.array(PALETTE, np.uint8).reshape(5, 3)[numbers]
    if mode == "RGBA":
        return np.dstack([np.array(PALETTE, np.uint8).reshape(5, 3)[numbers], np.full_like(numbers, 255)])
    if mode == "16 bits":
        return numbers.astype(np.uint16)
    return numbers * 60 if mode == "spread" else numbers


@pytest.mark.parametrize("mode", ["grey", "palette", "1 bit", "grey as RGB", "RGB", "RGBA", "16 bits", "spread"])
def test_region_numbers_are_those_of_the_file(tmp_path: Path, mode: str) -> None:
    images = a.read(masked(tmp_path / "set", [of(mode, i) for i in range(8)]))
    expected = np.stack([a.mask(i) for i in a.numbers(images)])
    names: tuple[str, ...] = ("0", "1", "2", "3", "4")
    if mode == "1 bit":
        expected, names = (expected > 1).astype(np.uint8), ("0", "1")
    if mode in ("RGB", "RGBA"):
        names = ("#000000", "#00fa00", "#070707", "#fa0000", "#fafafa")
        expected = np.array([0, 3, 1, 2, 4], np.uint8)[expected]  # the place of each colour among them all
    if mode == "spread":
        names = ("0", "60", "120", "180", "240")
    np.testing.assert_array_equal(images.fields["mask"], expected)
    assert images.fields["mask"].dtype == np.uint8
    assert images.regions == names
    renumbered = [note for note in images.notes if note.startswith("values of masks become region numbers 0 to 4")]
    assert len(renumbered) == (mode in ("RGB", "RGBA", "spread"))


def test_numbers_stay_where_some_are_missing_unless_they_are_large(tmp_path: Path) -> None:
    low = masked(tmp_path / "low", [a.mask(i) * 7 for i in range(8)])
    assert a.read(low).regions == tuple(str(i) for i in range(29))
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert a.read(masked(tmp_path / "all", [every] * 4)).regions == tuple(str(i) for i in range(256))


def test_values_of_the_whole_set_are_numbered_together(tmp_path: Path) -> None:
    values = [np.full((16, 16), v, np.uint8) for v in (0, 100, 200, 255)]
    images = a.read(masked(tmp_path / "set", values))
    assert images.regions == ("0", "100", "200", "255")
    assert images.fields["mask"][:, 0, 0].tolist() == [0, 1, 2, 3]


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(12, 60), st.integers(12, 60)),
    to=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    resize=st.sampled_from(["crop", "pad", "stretch"]),
    cut=st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7)),
)
def test_a_mask_lies_where_its_picture_lies(
    size: tuple[int, int], to: tuple[int, int], resize: Any, cut: tuple[float, float]
) -> None:
    """Of a picture that is its own mask, the two agree but for a pixel at the edges, whatever is done to both."""
    (height, width), target = size, Target(*to, 1, 8, resize)
    inside = np.zeros((height, width), np.uint8)
    inside[int(cut[0] * height) :, int(cut[1] * width) :] = 1
    entry = Entry("m.png", 0, lambda: a.z.saved(inside, "PNG"))
    told = masks.read(["p"], np.array([size]), {"p": entry}, target, Path("nowhere"), in_memory=2**30)
    shown, _ = decode(a.z.saved(inside * 255, "PNG"), target)
    apart = (shown[0] > 127) != (told.maps[0] == 1)
    assert set(np.unique(told.maps)) <= {0, 1}  # nothing between
    around = np.lib.stride_tricks.sliding_window_view(np.pad(told.maps[0], 1, mode="edge"), (3, 3))
    edge = around.min((2, 3)) != around.max((2, 3))  # beside a pixel of the other region
    assert not apart[~edge].any()


@pytest.mark.parametrize("factor", [1, 3, 5])
def test_nearest_takes_the_middle_of_what_a_pixel_covers(factor: int) -> None:
    values = np.random.default_rng(0).integers(0, 5, (10 * factor, 8 * factor), np.uint8)
    entry = Entry("m.png", 0, lambda: a.z.saved(values, "PNG"))
    told = masks.read(
        ["p"], np.array([values.shape]), {"p": entry}, Target(10, 8, 1, 8, "crop"), Path("x"), in_memory=2**30
    )
    np.testing.assert_array_equal(told.maps[0], values[factor // 2 :: factor, factor // 2 :: factor])


def test_padding_is_region_zero_also_where_no_mask_has_a_zero(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(4):
        a.put(root / f"{i}.png", a.picture(i, 16, 32))
        a.put(root / f"{i}_mask.png", a.z.saved(np.full((16, 32), 200, np.uint8), "PNG"))
    images = a.read(root, resize="pad", resolution=32)
    assert images.regions == ("0", "200")
    assert np.unique(images.fields["mask"][:, :8]).tolist() == [0]
    assert np.unique(images.fields["mask"][:, 8:24]).tolist() == [1]
    assert a.read(root, resize="crop", resolution=16).regions == ("200",)


@pytest.mark.parametrize("name", ["{:02d}_mask.png", "{:02d}.mask.png", "{:02d}_mask.gif", "{:02d}_mask.BMP"])
def test_masks_beside_pictures(tmp_path: Path, name: str) -> None:
    root = masked(tmp_path / "set", [a.mask(i) for i in range(6)], name, Path(name).suffix[1:].upper())
    a.put(root / "unmasked_mask.png", a.picture(50))  # no mask: there is no picture "unmasked"
    images = a.read(root, max_bad=0.2)
    np.testing.assert_array_equal(images.fields["mask"], [a.mask(i) for i in a.numbers(images)])
    assert [file.name for file in images.bad] == ["unmasked_mask.png"]


@pytest.mark.parametrize(
    ("picture", "mask"),
    [("{}.png", "masks/{}.png"), ("a/{}.png", "masks/a/{}.png"), ("images/{}.png", "masks/{}_mask.gif")],
)
def test_a_folder_of_masks(tmp_path: Path, picture: str, mask: str) -> None:
    root = tmp_path / "set"
    a.pictures(root, 6, picture.format)
    for i in range(6):
        a.put(root / mask.format(i), a.z.saved(a.mask(i), Path(mask).suffix[1:].upper()))
    a.put(root / "masks" / "stray.png", a.picture(0))
    for place in (root, a.packed(root)):
        images = a.read(place, masks="masks")
        np.testing.assert_array_equal(images.fields["mask"], [a.mask(i) for i in a.numbers(images)])
        assert images.classes == (() if picture == "{}.png" else (picture.split("/")[0],))
        assert "1 masks of no picture: left out (masks/stray.png)" in images.notes
    if "/" in picture:
        unsaid = a.read(root)
        assert "masks" in unsaid.classes
        assert any('data.masks="masks" would make them masks' in note for note in unsaid.notes)
    with pytest.raises(DataError, match=r"no pictures in a folder 'mask', as data.masks says: did you mean masks"):
        a.read(root, masks="mask")


def test_masks_that_a_table_names(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = a.pictures(root, 6, "x/{}.png".format)
    for i in range(3):
        a.put(root / "y" / f"m{i}.png", a.z.saved(a.mask(i), "PNG"))
    rows = [{"file_name": n, "mask_file_name": f"y\\m{i % 3}.png"} for i, n in enumerate(names)]
    a.put(root / "metadata.csv", a.table(rows))
    images = a.read(root)
    np.testing.assert_array_equal(images.fields["mask"], [a.mask(i % 3) for i in a.numbers(images)])
    assert [file.name for file in images.files[-3:]] == ["y/m0.png", "y/m1.png", "y/m2.png"]  # shared, and once
    a.put(root / "metadata.csv", a.table([*rows[:5], {**rows[5], "mask_file_name": "y/none.png"}]))
    (bad,) = a.read(root, max_bad=0.2).bad
    assert (bad.name, bad.reason) == ("x/5.png", "its mask y/none.png is not there")
    a.put(root / "metadata.csv", a.table([*rows[:5], {**rows[5], "mask_file_name": "../m.png"}]))
    with pytest.raises(DataError, match=r"line 7: mask_file_name '../m.png' leads outside"):
        a.read(root)


# What can be wrong -------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    rows = a.z.zlib.compress(bytes(1 + 12_000) * 100)  # says 12000 x 12000, and would be 144 million pixels
    head = a.z.struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + a.z.chunk(b"IHDR", head) + a.z.chunk(b"IDAT", rows) + a.z.chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (a.z.saved(a.mask(0, 20, 24), "PNG"), "its mask 03_mask.png: it is 20 x 24, and the picture 16 x 16"),
        (a.z.saved(a.mask(0), "PNG")[:60], "its mask 03_mask.png: damaged"),
        (b"", "its mask 03_mask.png: the file is empty"),
        (b"hello", "its mask 03_mask.png: not a picture"),
        (bomb(), "its mask 03_mask.png: 12000 x 12000 is too large"),
        (a.z.saved(a.mask(0), "JPEG"), "its mask 03_mask.png: JPEG alters values, and with them region numbers"),
        (a.z.saved(np.zeros((16, 16, 4), np.uint8), "PNG"), "its mask 03_mask.png: it is transparent in places"),
        (a.z.saved(np.zeros((16, 16), np.float32), "TIFF"), "its mask 03_mask.png: its pixels are F"),
        (None, 'it has no mask, as 00.png has 00_mask.png (data.masks="none" uses none)'),
    ],
)
def test_a_mask_that_cannot_be_used_leaves_its_picture_out_and_is_named(
    tmp_path: Path, data: bytes | None, said: str
) -> None:
    root = masked(tmp_path / "set", [a.mask(i) for i in range(12)])
    (root / "03_mask.png").unlink()
    if data is not None:
        a.put(root / "03_mask.png", data)
    for i in range(12):
        a.put(root / f"{i:02d}.txt", f"number {i}")
    for place in (root, a.packed(root)):
        images = a.read(place, max_bad=0.1)
        (bad,) = images.bad
        assert bad.name == "03.png"
        assert bad.reason.startswith(said)
        which = [i for i in range(12) if i != 3]
        assert a.numbers(images).tolist() == which
        assert images.fields["caption"].tolist() == [f"number {i}" for i in which]
        np.testing.assert_array_equal(images.fields["mask"], [a.mask(i) for i in which])
        assert images.sizes is not None
        assert len(images.sizes) == len(images.names) == 11
    with pytest.raises(DataError) as caught:
        a.read(root, bad_files="stop")
    assert f"03.png: {said}" in str(caught.value)
    with pytest.raises(DataError) as caught:
        a.read(root, max_bad=0.01)
    assert said in str(caught.value)
    assert a.read(root, masks="none", max_bad=0.2).count in (23, 24)


def test_masks_that_are_no_regions_together(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    many = masked(tmp_path / "many", [noise] * 3)
    a.put(many / "01_mask.png", a.z.saved(255 - noise, "PNG"))
    with pytest.raises(DataError, match=r"more than 256 different values \(up to 01_mask.png, which has 256\)"):
        a.read(many)
    palettes = [of("palette", 0), of("palette", 1)]
    assert isinstance(palettes[1], Image.Image)
    palettes[1].putpalette([*PALETTE[:3], 9, 9, 9, *PALETTE[6:]])
    with pytest.raises(DataError, match=r"1 is #fa0000 in 00_mask.png and #090909 in 01_mask.png; save them with one"):
        a.read(masked(tmp_path / "palettes", palettes))
    both = masked(tmp_path / "both", [of("RGB", 0), of("grey", 1), of("grey", 2)])
    with pytest.raises(DataError, match=r"numbers or colours, not both: 01_mask.png has numbers, 00_mask.png colours"):
        a.read(both)
    twice = masked(tmp_path / "twice", [a.mask(i) for i in range(4)])
    a.put(twice / "02.mask.png", a.z.saved(a.mask(0), "PNG"))
    with pytest.raises(DataError, match=r"02.mask.png and 02_mask.png are masks of one picture, 02.png"):
        a.read(twice)
    a.pictures(tmp_path / "folder", 4)
    for name in ("0.png", "0.gif"):
        a.put(tmp_path / "folder" / "m" / f"0{name}", a.z.saved(a.mask(0), name[2:].upper()))
    with pytest.raises(DataError, match=r"m/00.gif and m/00.png are masks of the same picture"):
        a.read(tmp_path / "folder", masks="m")


def test_a_mask_that_changes_between_the_passes_is_bad(tmp_path: Path) -> None:
    root = masked(tmp_path / "set", [a.mask(i) for i in range(30)])

    def meddle(what: str, done: int, total: int) -> None:
        if what == "looking at masks" and done == total:
            (root / "04_mask.png").write_bytes(a.z.saved(a.mask(1), "PNG"))

    images = a.folder.read(a.FolderConfig(root=root), tmp_path / "cache", meddle)
    assert [(file.name, file.reason) for file in images.bad] == [
        ("04.png", "its mask 04_mask.png: changed while it was read")
    ]
    np.testing.assert_array_equal(images.fields["mask"], [a.mask(i) for i in range(30) if i != 4])


# What is kept ------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hash of every mask that is decoded, in order."""
    seen: list[str] = []
    real = masks.values_of

    def counting(data: bytes) -> Any:
        seen.append(hashlib.sha256(data).hexdigest())
        return real(data)

    monkeypatch.setattr(masks, "values_of", counting)
    return seen


def same(one: Any, other: Any) -> bool:
    return np.array_equal(one.fields["mask"], other.fields["mask"]) and (one.regions, one.notes, one.files) == (
        other.regions,
        other.notes,
        other.files,
    )


@pytest.mark.parametrize("mode", ["grey", "palette", "RGB", "spread", "grey as RGB"])
def test_masks_of_a_large_set_are_decoded_once(tmp_path: Path, mode: str, decoded: list[str]) -> None:
    root = masked(tmp_path / "set", [of(mode, i) for i in range(10)])
    small = a.read(root)
    assert not (tmp_path / "cache").exists()
    first = a.read(root, in_memory=0)
    decoded.clear()
    again = a.read(root, in_memory=0)
    assert decoded == []
    assert isinstance(again.fields["mask"], np.memmap)
    assert same(first, small)
    assert same(again, small)
    assert sorted(path.suffix for path in (tmp_path / "cache" / "masks").iterdir()) == [".json"]
    # a smaller resolution needs other maps, but the values are known: each is decoded once
    assert a.read(root, in_memory=0, resolution=8).fields["mask"].shape == (10, 8, 8)
    assert len(decoded) == 10


def test_masks_are_kept_where_their_pictures_are(tmp_path: Path, decoded: list[str]) -> None:
    """Also where the maps alone, of one byte a pixel and not three, would have stayed in memory."""
    root = tmp_path / "set"
    for i in range(6):
        a.put(root / f"{i}.png", a.z.saved(np.full((16, 16, 3), (i, i, 9), np.uint8), "PNG"))
        a.put(root / f"{i}_mask.png", a.z.saved(a.mask(i), "PNG"))
    for in_memory, expected in ((6 * 16 * 16 * 3, 12), (6 * 16 * 16 * 2, 0)):
        for _ in range(2):
            decoded.clear()
            images = a.read(root, in_memory=in_memory)
        assert isinstance(images.pixels, np.memmap) == (expected == 0)
        assert len(decoded) == expected  # small, they are decoded at every start, as pictures are


def test_a_mask_that_changes_is_seen(tmp_path: Path, decoded: list[str]) -> None:
    """Of the same name and number of bytes: only the bytes themselves say so."""
    root = masked(tmp_path / "set", [a.mask(i) for i in range(10)], "{:02d}_mask.bmp", "BMP")
    first = a.read(root, in_memory=0)
    path, changed = root / "04_mask.bmp", a.mask(4).copy()
    changed[3, 3] = 7
    size = path.stat().st_size
    path.write_bytes(a.z.saved(changed, "BMP"))
    assert path.stat().st_size == size
    decoded.clear()
    second = a.read(root, in_memory=0)
    expected = np.array(first.fields["mask"])
    expected[4] = changed
    np.testing.assert_array_equal(second.fields["mask"], expected)
    assert (first.regions[-1], second.regions[-1]) == ("4", "7")
    assert second.fingerprint != first.fingerprint
    mine = hashlib.sha256(path.read_bytes()).hexdigest()
    assert decoded[0] == mine  # the first pass decodes that one alone, the second all, into other maps
    assert len(decoded) == 1 + 10
    decoded.clear()
    assert same(a.read(root, in_memory=0), second)
    assert decoded == []


@pytest.mark.parametrize("damage", ["cut", "empty", "another object", "other fields", "maps cut", "maps gone"])
def test_a_damaged_cache_of_masks_is_made_anew(tmp_path: Path, decoded: list[str], damage: str) -> None:
    root = masked(tmp_path / "set", [of("spread", i) for i in range(8)])
    good = a.read(root, in_memory=0)
    expected = np.array(good.fields["mask"])
    (facts,) = (tmp_path / "cache" / "masks").iterdir()
    maps = next(path for path in (tmp_path / "cache" / "pictures").glob("*.npy") if np.load(path).ndim == 3)
    if damage.startswith("maps"):
        maps.write_bytes(maps.read_bytes()[:-10]) if damage == "maps cut" else maps.unlink()
    else:
        text = facts.read_text()
        spoilt = {"cut": text[:-10], "empty": "", "another object": "[1, 2]", "other fields": '{"a": [1]}'}
        facts.write_text(spoilt[damage])
    decoded.clear()
    again = a.read(root, in_memory=0)
    np.testing.assert_array_equal(again.fields["mask"], expected)
    assert again.regions == good.regions
    assert len(decoded) == 8
    decoded.clear()
    a.read(root, in_memory=0)
    assert decoded == []


def test_what_cannot_be_used_is_tried_again(tmp_path: Path) -> None:
    """A bad mask is bad at every start, and its repair is seen; masks that are no regions leave nothing behind."""
    root = masked(tmp_path / "set", [a.mask(i) for i in range(12)])
    a.put(root / "03_mask.png", a.z.saved(a.mask(3), "PNG")[:60])
    for _ in range(2):
        (bad,) = a.read(root, in_memory=0, max_bad=0.1).bad
        assert bad.reason.startswith("its mask 03_mask.png: damaged")
    a.put(root / "03_mask.png", a.z.saved(a.mask(3), "PNG"))
    np.testing.assert_array_equal(a.read(root, in_memory=0).fields["mask"], [a.mask(i) for i in range(12)])
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    many = masked(tmp_path / "other" / "many", [noise, 255 - noise])
    for _ in range(2):
        with pytest.raises(DataError, match="more than 256 different values"):
            a.read(many, in_memory=0)
    assert not (tmp_path / "other" / "cache" / "masks").exists()
