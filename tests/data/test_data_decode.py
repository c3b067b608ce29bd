"""Each kind of file becomes the array it means or is refused with a reason; nothing is decoded unmeasured."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import picture_zoo as z
import pytest
from PIL import Image

from moyai.data import decode as d

ZOO = z.zoo()


def as_it_is(data: bytes) -> tuple[np.ndarray, d.Seen]:
    """Decoded in its own size, channels and bits: (H, W) or (H, W, C)."""
    seen = d.inspect(data)
    target = d.Target(seen.height, seen.width, 3 if seen.colour else 1, 16 if seen.deep else 8, "crop")
    pixels, _ = d.decode(data, target)
    assert pixels.shape == (target.channels, target.height, target.width)
    return (pixels.transpose(1, 2, 0) if seen.colour else pixels[0]), seen


def test_the_zoo_is_large() -> None:
    assert len({animal.name for animal in ZOO}) == len(ZOO) >= 60


@pytest.mark.parametrize("animal", [a for a in ZOO if a.expected is not None], ids=lambda a: a.name)
def test_a_readable_file_becomes_what_it_means(animal: z.Animal) -> None:
    assert animal.expected is not None
    with d.quiet():
        pixels, _ = as_it_is(animal.data)
    assert pixels.dtype == animal.expected.dtype
    assert pixels.shape == animal.expected.shape
    assert np.abs(pixels.astype(int) - animal.expected.astype(int)).max() <= animal.error


@pytest.mark.parametrize("animal", [a for a in ZOO if a.expected is None], ids=lambda a: a.name)
def test_an_unreadable_file_is_refused_with_its_reason(animal: z.Animal) -> None:
    with d.quiet(), pytest.raises(d.UnreadablePicture) as caught:
        as_it_is(animal.data)
    assert animal.reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_header_says_is_counted() -> None:
    by_name = {animal.name: d.inspect(animal.data) for animal in ZOO if animal.expected is not None}
    assert {n for n, seen in by_name.items() if seen.several} == {
        "animated.gif", "animated.webp", "animated.png", "pages.tif",
    }  # fmt: skip
    assert {n for n, seen in by_name.items() if seen.narrowed} == {"16-rgb.png", "16-la.png"}
    assert not by_name["16-la.png"].colour
    assert {n for n, seen in by_name.items() if seen.transparent} == {
        "la.png", "rgba.png", "hidden.png", "hidden.webp", "palette-key.png", "grey-key.png", "16-la.png",
    }  # fmt: skip


def test_a_broken_profile_is_said() -> None:
    animals = {animal.name: animal.data for animal in ZOO}
    target = d.Target(z.H, z.W, 3, 8, "crop")
    assert d.decode(animals["profile-broken.png"], target)[1]
    assert not d.decode(animals["profile.png"], target)[1]


def test_alpha_is_kept_when_asked_for() -> None:
    rgba = np.dstack([z.RGB, z.GREY])
    pixels, _ = d.decode(z.saved(rgba, "PNG"), d.Target(z.H, z.W, 4, 8, "crop"))
    np.testing.assert_array_equal(pixels, rgba.transpose(2, 0, 1))
    opaque, _ = d.decode(z.saved(z.GREY, "PNG"), d.Target(z.H, z.W, 4, 8, "crop"))
    np.testing.assert_array_equal(opaque, np.stack([z.GREY] * 3 + [np.full_like(z.GREY, 255)]))


def test_a_resized_ramp_of_16_bits_keeps_its_levels() -> None:
    ramp = np.linspace(0, 65535, 512 * 512).reshape(512, 512).astype(np.uint16)
    pixels, _ = d.decode(z.saved(ramp, "PNG"), d.Target(256, 256, 1, 16, "crop"))
    assert len(np.unique(pixels)) >= 1000
    means = ramp.astype(float).reshape(256, 2, 256, 2).mean((1, 3))
    assert np.abs(pixels[0, 2:-2] - means[2:-2]).max() < 400  # the rows at the edge see fewer neighbours


def test_an_8_bit_picture_in_a_16_bit_set_is_scaled_exactly() -> None:
    pixels, _ = d.decode(z.saved(z.GREY, "PNG"), d.Target(z.H, z.W, 1, 16, "crop"))
    np.testing.assert_array_equal(pixels[0], z.GREY.astype(np.uint16) * 257)


def test_crop_keeps_the_middle_and_interpolates_nothing_it_need_not() -> None:
    pixels, _ = d.decode(z.saved(z.RGB, "PNG"), d.Target(16, 16, 3, 8, "crop"))
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), z.RGB[:, 4:20])
    odd = np.arange(33 * 32, dtype=np.uint16).astype(np.uint8).reshape(33, 32)
    pixels, _ = d.decode(z.saved(odd, "PNG"), d.Target(32, 32, 1, 8, "crop"))
    np.testing.assert_array_equal(pixels[0], odd[:32])


def test_pad_adds_black_and_stretch_keeps_everything() -> None:
    white = np.full((10, 20), 255, np.uint8)
    padded, _ = d.decode(z.saved(white, "PNG"), d.Target(20, 20, 1, 8, "pad"))
    assert (padded[0, 5:15] == 255).all()
    assert (padded[0, :5] == 0).all()
    assert (padded[0, 15:] == 0).all()
    halves = np.repeat([[0, 255]], 10, axis=1).repeat(10, axis=0).astype(np.uint8)  # (10, 20)
    stretched, _ = d.decode(z.saved(halves, "PNG"), d.Target(40, 40, 1, 8, "stretch"))
    assert (stretched[0, :, :14] == 0).all()
    assert (stretched[0, :, 26:] == 255).all()


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 10_000), (10_000, 1), (1, 1), (3, 2)])
def test_any_shape_is_brought_to_the_resolution(resize: d.Resize, shape: tuple[int, int]) -> None:
    for dtype in (np.uint8, np.uint16):
        data = z.saved(np.full(shape, 200, dtype), "PNG")
        pixels, _ = d.decode(data, d.Target(32, 48, 3, 8 * np.dtype(dtype).itemsize, resize))
        assert pixels.shape == (3, 32, 48)
        assert pixels.max() == 200


def test_a_large_jpeg_drafted_is_near_the_full_decode() -> None:
    big = np.asarray(Image.fromarray(z.RGB).resize((1200, 800), Image.Resampling.BICUBIC))
    data = z.saved(big, "JPEG", quality=95, exif=z.exif(6))
    pixels, _ = d.decode(data, d.Target(48, 32, 3, 8, "crop"))
    exact = np.asarray(Image.fromarray(z.TURNS[6](big)).resize((32, 48), Image.Resampling.LANCZOS))
    assert np.abs(pixels.transpose(1, 2, 0).astype(int) - exact).max() <= 6


def test_to_channels() -> None:
    grey = z.GREY[None, None]
    for bits, factor in ((np.uint8, 1), (np.uint16, 257)):
        values = grey.astype(bits) * bits(factor)
        colour = d.to_channels(values, 3)
        assert colour.shape == (1, 3, z.H, z.W)
        np.testing.assert_array_equal(d.to_channels(colour, 1), values)  # the luma of grey is itself
        assert (d.to_channels(colour, 4)[:, 3] == np.iinfo(bits).max).all()


def bombs() -> dict[str, bytes]:
    def black(width: int, height: int, rows: int | None = None) -> bytes:
        packed = zlib.compressobj(9)
        row = b"\0" * (1 + (width + 7) // 8)
        body = b"".join(packed.compress(row) for _ in range(rows or height)) + packed.flush()
        head = z.chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + z.chunk(b"IDAT", body) + z.chunk(b"IEND", b"")

    small = z.saved(z.GREY, "PNG")
    tiff = bytearray(z.saved(z.GREY, "TIFF"))
    entry = tiff.index(struct.pack("<HH", 279, 4))  # StripByteCounts
    tiff[entry + 8 : entry + 12] = struct.pack("<I", 2**32 - 1)
    wide_tiff = bytearray(z.saved(z.GREY, "TIFF"))
    entry = wide_tiff.index(struct.pack("<HH", 256, 4))  # ImageWidth
    wide_tiff[entry + 8 : entry + 12] = struct.pack("<I", 60_000)
    frame = z.saved(Image.fromarray(z.GREY), "GIF")
    start = frame.index(b",", 13 + 768)
    text = [small[:33] + z.chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * n)) + small[33:] for n in (2**21, 70 * 2**20)]
    return {
        "12000": black(12_000, 12_000),
        "15000": black(15_000, 15_000),
        "60000": black(60_000, 60_000, rows=1),
        "30000x1": black(30_000, 1),
        "wide.tif": bytes(wide_tiff),
        "strip.tif": bytes(tiff),
        "text-2.png": text[0],
        "text-70.png": text[1],
        "frames.gif": frame[:start] + frame[start:-1] * 10_000 + b";",
    }


def run(code: str, *arguments: str) -> str:
    """The output of a child that may be killed without harm; its last line."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


CHILD = """
import json, resource, sys, time
from pathlib import Path
from moyai.data import decode as d

def look(data):
    try:
        seen = d.inspect(data)
        pixels, _ = d.decode(data, d.Target(32, 32, 3, 16 if seen.deep else 8, "crop"))
        return "read"
    except d.UnreadablePicture as error:
        return str(error)
"""


def test_bombs_are_refused_from_their_header(tmp_path: Path) -> None:
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    code = """
folder, small = Path(sys.argv[1]), bytes.fromhex(sys.argv[2])
with d.quiet():
    look(small)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = {p.name: look(p.read_bytes()) for p in sorted(folder.iterdir())}
print(json.dumps([said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""
    said, growth = json.loads(run(CHILD + code, str(tmp_path), z.saved(z.GREY, "PNG").hex()))
    for name in ("12000", "15000", "60000", "30000x1", "wide.tif"):
        assert "too large" in said[name], said
    assert said["text-70.png"].startswith("damaged")
    assert said["frames.gif"] == "read"
    scale = 1 if sys.platform == "darwin" else 1024
    assert growth * scale < 100 * 2**20, said


def mutated(animals: list[z.Animal], count: int) -> list[bytes]:
    """Flips, cuts and splices of the zoo, the same ones every time."""
    rng = np.random.default_rng(0)
    small = [animal.data for animal in animals if 0 < len(animal.data) < 20_000]
    found = []
    for i in range(count):
        data = bytearray(small[int(rng.integers(len(small)))])
        if i % 3 == 0:
            for _ in range(int(rng.integers(1, 9))):
                data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        elif i % 3 == 1:
            start, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
            del data[start : start + length]
        else:
            other = small[int(rng.integers(len(small)))]
            at, start = int(rng.integers(len(data))), int(rng.integers(len(other)))
            data[at : at + 64] = other[start : start + int(rng.integers(1, 256))]
        found.append(bytes(data))
    return found


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_give_a_picture_or_a_reason(tmp_path: Path, count: int) -> None:
    for i, data in enumerate(mutated(ZOO, count)):
        (tmp_path / f"{i:05d}").write_bytes(data)
    code = """
import signal
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
with d.quiet():
    said = []
    for path in sorted(Path(sys.argv[1]).iterdir()):
        signal.alarm(5)  # kills the child: a file that hangs fails the test
        said.append(look(path.read_bytes()))
    signal.alarm(0)
print(json.dumps(said))
"""
    said = json.loads(run(CHILD + code, str(tmp_path)))
    assert len(said) == count
    assert 0 < said.count("read") < count  # some mutations are harmless, some are not
