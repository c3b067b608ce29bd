"""Pictures: what is drawn, what is written, and what can be read back."""

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from moyai import provenance
from moyai.errors import RequestError, SaveError
from moyai.pictures import gif_bytes, grid, png_bytes, read_recipe, save_gif, save_png, write_bytes

RECIPE = {
    "prompt": 'a seven, thin: "slanted"\nsecond line é漢🎨',
    "negative_prompt": "blur",
    "steps": 20,
    "sampler": "ddim",
    "guidance": 4.5,
    "seed": 2**63 - 1,
    "model": "digits: small, v2",
    "model_hash": "9f3c2a",
    "sigmas": [14.614641, 0.1, 0.0],
    "nested": {"a": None, "b": [True, "x"]},
}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---- grids


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_image_lies_in_its_cell(channels):
    images = rng().integers(0, 256, (6, 5, 4, channels), dtype=np.uint8)
    sheet = np.asarray(grid(images, columns=3, gap=2, scale=3)).reshape(2 * 15 + 2, 3 * 12 + 2 * 2, channels)
    for i in range(6):
        y, x = i // 3 * 17, i % 3 * 14
        for dy in range(3):
            for dx in range(3):
                assert np.array_equal(sheet[y + dy : y + 15 : 3, x + dx : x + 12 : 3], images[i])
    assert (sheet[15:17] == 255).all()  # the gap
    assert (sheet[:, 12:14] == 255).all()


def test_sixteen_bit_grey_stays_exact_and_colour_is_rounded():
    images = rng().integers(0, 65536, (2, 3, 3, 1), dtype=np.uint16)
    sheet = grid(images, columns=2, gap=1, scale=1)
    assert sheet.mode == "I;16"
    assert np.array_equal(np.asarray(sheet)[:, :3], images[0, ..., 0])
    assert (np.asarray(sheet)[:, 3] == 65535).all()
    ramp = np.repeat(np.arange(256, dtype=np.uint16).reshape(1, 16, 16, 1) * 257, 3, axis=3)
    assert np.array_equal(np.asarray(grid(ramp, scale=1))[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 3), (7, 3), (10, 5), (12, 4), (64, 8), (100, 10)])
def test_columns_are_near_square(count, columns):
    sheet = grid(np.zeros((count, 64, 64, 1), np.uint8), gap=0)
    assert sheet.width // 64 == columns
    assert sheet.height // 64 == -(-count // columns)


@pytest.mark.parametrize(("side", "cell"), [(8, 64), (28, 56), (32, 64), (64, 64), (256, 256)])
def test_small_pictures_are_enlarged(side, cell):
    assert grid(np.zeros((1, side, side, 1), np.uint8)).size == (cell, cell)


def test_labels_are_drawn_outside_the_cells():
    images = rng().integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    bare = np.asarray(grid(images, columns=2))
    sheet = np.asarray(
        grid(images, row_labels=["cat", "a very long label of many words " * 9], column_labels=["A", ""])
    )
    top, left = sheet.shape[0] - bare.shape[0] - 6, sheet.shape[1] - bare.shape[1] - 6  # less the margin
    assert np.array_equal(sheet[top:-6, left:-6], bare)
    assert (sheet[:top, left : left + 64] < 128).any()  # "A" above the first column
    assert (sheet[:top, left + 66 :] == 255).all()  # and nothing above the second
    assert (sheet[top : top + 64, :left] < 128).any()
    assert left < 300  # the long label is broken and shortened, not as wide as it likes


def test_dark_background_has_light_labels():
    sheet = np.asarray(grid(np.zeros((1, 64, 64, 1), np.uint8), row_labels=["x"], background=0))
    assert sheet.max() > 200


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        (np.zeros((0, 4, 4, 1), np.uint8), {}, "N > 0"),
        (np.zeros((4, 4, 1), np.uint8), {}, "(4, 4, 1)"),
        (np.zeros((1, 4, 4, 2), np.uint8), {}, "C 1, 3 or 4"),
        (np.zeros((1, 4, 4, 1), np.float32), {}, "float32"),
        (np.zeros((4, 4, 4, 1), np.uint8), {"columns": 2, "row_labels": ["a"]}, "1 labels for 2 rows"),
        (np.zeros((1, 4, 4, 1), np.uint8), {"columns": 0}, "columns"),
    ],
)
def test_what_is_no_grid_is_refused(images, options, said):
    with pytest.raises(RequestError) as caught:
        grid(images, **options)
    assert said in str(caught.value)


# ---- PNG


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_png_keeps_pixels_and_recipe(tmp_path, shape):
    image = rng().integers(0, 256, shape, dtype=np.uint8)
    save_png(tmp_path / "a.png", image, RECIPE)
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(np.asarray(opened).reshape(shape), image)
    assert read_recipe(tmp_path / "a.png") == RECIPE


def test_sixteen_bit_png_keeps_every_level(tmp_path):
    image = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    save_png(tmp_path / "a.png", image, None)
    assert struct.unpack(">BB", (tmp_path / "a.png").read_bytes()[24:26]) == (16, 0)  # IHDR: 16 bits, grey
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(np.asarray(opened), image)


def test_png_tells_the_field_and_the_law(tmp_path):
    save_png(tmp_path / "a.png", np.zeros((6, 9), np.uint8), RECIPE)
    with Image.open(tmp_path / "a.png") as opened:
        lines = opened.info["parameters"].split("\n")
        assert "trainedAlgorithmicMedia" in opened.info["XML:com.adobe.xmp"]
    assert lines[2] == "Negative prompt: blur"
    assert lines[3].startswith("Steps: 20, Sampler: ddim, CFG scale: 4.5, Seed: 9223372036854775807, Size: 9x6, ")
    assert 'Model hash: 9f3c2a, Model: "digits: small, v2"' in lines[3]


def test_without_a_recipe_nothing_is_said(tmp_path):
    save_png(tmp_path / "a.png", np.zeros((6, 9), np.uint8), None)
    data = (tmp_path / "a.png").read_bytes()
    assert b"tEXt" not in data
    assert b"iTXt" not in data
    with pytest.raises(RequestError, match="carries no recipe"):
        read_recipe(tmp_path / "a.png")


def test_numbers_of_numpy_and_paths_by_name():
    told = provenance.from_json(
        provenance.to_json({"a": np.float32(0.5), "b": np.int64(3), "c": Path("/home/me/x.png")})
    )
    assert told == {"a": 0.5, "b": 3, "c": "x.png"}


values = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=20).map(str.strip)


@given(sampler=values, model=values, seed=st.integers(0, 2**63 - 1), guidance=st.floats(0, 100))
def test_the_fields_line_reads_back(sampler, model, seed, guidance):
    recipe = {"steps": 5, "sampler": sampler or "x", "model": model or "x", "seed": seed, "guidance": guidance}
    read = provenance.from_parameters(provenance.parameters(recipe, (3, 4)))
    assert {k: str(v) for k, v in read.items() if k in recipe} == {k: str(v) for k, v in recipe.items()}
    assert read["size"] == "3x4"


def test_a_line_of_another_program_is_understood():
    text = (
        'old map (detailed:1.2)\nof gold\nNegative prompt: ugly,\nblurry\nSteps: 28, Sampler: DPM++ 2M, CFG scale: 7, \
Seed: 1, Size: 512x768, Model: sd15, Lora hashes: "a: 1, b: 2", Version: v1.10'
    )
    read = provenance.from_parameters(text)
    assert read["prompt"] == "old map (detailed:1.2)\nof gold"
    assert read["negative_prompt"] == "ugly,\nblurry"
    assert (read["steps"], read["guidance"], read["seed"], read["size"]) == (28, 7, 1, "512x768")
    assert read["Lora hashes"] == "a: 1, b: 2"
    assert provenance.from_parameters("just words, not: a recipe") == {}


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_user_comment_of_jpeg_and_webp(tmp_path, name):
    image, exif = Image.new("RGB", (8, 8)), Image.Exif()
    text = provenance.parameters(RECIPE, (8, 8))
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    image.save(tmp_path / name, exif=exif)
    read = read_recipe(tmp_path / name)
    assert read["prompt"] == RECIPE["prompt"]
    assert read["model"] == RECIPE["model"]


def test_files_without_a_recipe_are_refused_in_one_line(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "b.txt").write_text("text")
    os.mkfifo(tmp_path / "fifo.png")
    whole = png_bytes(np.zeros((4, 4), np.uint8), {"steps": 1})
    (tmp_path / "cut.png").write_bytes(whole[:45])
    for name in ("a.png", "b.txt", "missing.png", "fifo.png", ".", "cut.png"):
        with pytest.raises(RequestError) as caught:
            read_recipe(tmp_path / name)
        assert "\n" not in str(caught.value)


# ---- GIF


def local_palettes(data: bytes) -> list[bool]:
    """For every frame of a GIF, whether it has a palette of its own: the blocks walked as the standard says."""
    at = 13 + (3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    found = []
    while data[at] != 0x3B:
        if data[at] == 0x2C:
            packed = data[at + 9]
            found.append(bool(packed & 0x80))
            at += 10 + (3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0) + 1
        else:
            at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    return found


def decoded(path: Path) -> list[np.ndarray]:
    with Image.open(path) as opened:
        frames = []
        for i in range(opened.n_frames):
            opened.seek(i)
            frames.append(np.asarray(opened.convert("RGB")))
        return frames


def test_grey_gif_is_exact_with_one_palette(tmp_path):
    frames = rng().integers(0, 256, (5, 16, 20, 1), dtype=np.uint8)
    save_gif(tmp_path / "a.gif", list(frames), milliseconds=40, hold_last=900, recipe=RECIPE)
    for read, frame in zip(decoded(tmp_path / "a.gif"), frames, strict=True):
        assert np.array_equal(read, np.repeat(frame, 3, axis=2))
    assert local_palettes((tmp_path / "a.gif").read_bytes()) == [False] * 5
    assert read_recipe(tmp_path / "a.gif") == RECIPE
    with Image.open(tmp_path / "a.gif") as opened:
        assert opened.info["loop"] == 0
        assert opened.info["duration"] == 40
        opened.seek(4)
        assert opened.info["duration"] == 900


def test_few_colours_are_exact_and_many_are_near(tmp_path):
    few = rng().integers(0, 6, (3, 12, 12, 3), dtype=np.uint8) * 50
    save_gif(tmp_path / "few.gif", list(few))
    assert np.array_equal(np.stack(decoded(tmp_path / "few.gif")), few)
    y, x = np.mgrid[:48, :48]
    many = [np.stack([x * 5, y * 5, np.full_like(x, 60 * i)], axis=2).astype(np.uint8) for i in range(4)]
    save_gif(tmp_path / "many.gif", many)
    worst = np.abs(np.stack(decoded(tmp_path / "many.gif")).astype(int) - np.stack(many)).mean()
    assert worst < 10
    assert local_palettes((tmp_path / "many.gif").read_bytes()) == [False] * 4


def test_transparent_frames_become_white():
    frame = np.zeros((4, 4, 4), np.uint8)
    with Image.open(io.BytesIO(gif_bytes([frame]))) as opened:
        assert (np.asarray(opened.convert("RGB")) == 255).all()


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(RequestError, match="one size"):
        gif_bytes([np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)])
    with pytest.raises(RequestError, match="at least one"):
        gif_bytes([])


# ---- writing


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a.bin", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match="No space left on device; needed: 3 bytes"):
        write_bytes(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_awkward_places(tmp_path):
    for name in ("with space.png", "é漢🎨.png", "x" * 251 + ".png", "-leading.png", "new/folder/a.png"):
        save_png(tmp_path / name, np.zeros((2, 2), np.uint8), None)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~_umask()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name in ("file/a.png", "folder"):
        with pytest.raises(SaveError) as caught:
            save_png(tmp_path / name, np.zeros((2, 2), np.uint8), None)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(".moyai-tmp-*"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_pictures_need_no_torch():
    code = "import sys, moyai.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
