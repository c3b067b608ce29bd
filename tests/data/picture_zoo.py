"""One of each kind of picture file, written here, with the array it must become or the reason for its refusal."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

H, W = 16, 24
Y, X = np.mgrid[0:H, 0:W]
GREY = (Y * 9 + X * 5).astype(np.uint8)
RGB = np.stack([GREY, 255 - GREY, (X * 10).astype(np.uint8)], -1)  # (H, W, 3)
DEEP = (GREY.astype(np.uint16) * 257 + np.arange(H * W).reshape(H, W) % 5).astype(np.uint16)
TURNS = {  # what shows a picture upright, by EXIF orientation (the standard's table)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True)
class Animal:
    name: str
    data: bytes
    expected: np.ndarray | None = None  # (H, W) or (H, W, C)
    error: int = 0  # of any value, at most
    reason: str = ""  # part of it, where nothing is expected


def saved(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes, interlaced: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_rows(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


def adam7(values: np.ndarray) -> bytes:
    steps = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    return b"".join(png_rows(values[y::dy, x::dx]) for y, x, dy, dx in steps)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def swapping_profile() -> bytes:
    """sRGB with the red and the green primary exchanged: converting to sRGB must exchange the channels."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return (
        profile.replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be"))
        .replace(b"rXYZ", b"????")
        .replace(b"gXYZ", b"rXYZ")
        .replace(b"????", b"gXYZ")
    )


def over_black(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint(rgb * (alpha[..., None] / 255.0)).astype(np.uint8)


def from_cmyk(cmyk: np.ndarray) -> np.ndarray:
    values = cmyk.astype(float)
    return np.rint((255 - values[..., :3]) * (255 - values[..., 3:]) / 255).astype(np.uint8)


def ycck() -> tuple[bytes, np.ndarray]:
    """A CMYK JPEG whose Adobe marker is changed to say YCCK, and what that means by the definition of YCbCr."""
    cmyk = np.stack([255 - GREY, 127 + GREY // 16, 120 + X.astype(np.uint8), Y.astype(np.uint8) * 3], -1)
    data = bytearray(saved(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2
    y, cb, cr = (255.0 - cmyk[..., i] for i in range(3))  # stored inverted
    rgb = np.stack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], -1
    )
    ink = np.concatenate([np.clip(rgb, 0, 255), cmyk[..., 3:]], -1)
    return bytes(data), from_cmyk(ink)


def refused() -> list[Animal]:
    whole_png, whole_jpeg = saved(RGB, "PNG"), saved(RGB, "JPEG", quality=95)
    whole_tiff, whole_webp = saved(RGB, "TIFF"), saved(RGB, "WEBP", lossless=True)
    animals = [
        Animal("empty.png", b"", reason="empty"),
        Animal("text.png", b"hello, I am not a picture", reason="not a picture"),
        Animal("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", reason="SVG"),
        Animal("drawing-xml.svg", b"<?xml version='1.0'?><svg/>", reason="SVG"),
        Animal("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", reason="EPS"),
        Animal("page.pdf", b"%PDF-1.7\n", reason="PDF"),
        Animal("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), reason="HEIC"),
        Animal("float-large.tif", saved(GREY.astype(np.float32), "TIFF"), reason="outside [0, 1]"),
        Animal("float-nan.tif", saved(np.full((4, 4), np.nan, np.float32), "TIFF"), reason="outside [0, 1]"),
        Animal("negative.tif", saved(DEEP.astype(np.int32) - 9, "TIFF"), reason="integers from -9"),
        Animal("huge-int.tif", saved(DEEP.astype(np.int32) * 9, "TIFF"), reason="only 0 to 65535"),
        Animal("header-only.png", whole_png[:33], reason="damaged"),
    ]
    for share in (10, 50, 99):
        for kind, data in (("png", whole_png), ("jpg", whole_jpeg), ("webp", whole_webp), ("tif", whole_tiff)):
            cut = data[: len(data) * share // 100 - (kind == "png" and share == 99) * 25]
            animals.append(Animal(f"cut-{share}.{kind}", cut, reason=""))
    return animals


def depths() -> list[Animal]:
    ramp = (np.arange(32 * 64).reshape(32, 64) * 32).astype(np.uint16)
    wide_rgb = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], -1)
    wide_la = np.stack([DEEP, np.full_like(DEEP, 65535)], -1)
    return [
        Animal("bit.png", saved(Image.fromarray(GREY > 99), "PNG"), np.where(GREY > 99, 255, 0).astype(np.uint8)),
        Animal("16.png", saved(DEEP, "PNG"), DEEP),
        Animal("16-ramp.png", saved(ramp, "PNG"), ramp),
        Animal("16.tif", saved(DEEP, "TIFF"), DEEP),
        Animal("16-big.tif", saved(Image.fromarray(DEEP.astype(">u2")), "TIFF"), DEEP),
        Animal("int32.tif", saved(DEEP.astype(np.int32), "TIFF"), DEEP),
        Animal("float.tif", saved((DEEP / 65535).astype(np.float32), "TIFF"), DEEP, 1),
        Animal("16-turned.tif", saved(DEEP, "TIFF", tiffinfo={0x0112: 6}), TURNS[6](DEEP)),
        Animal("16-rgb.png", png(W, H, 16, 2, png_rows(wide_rgb.astype(">u2"))), (wide_rgb >> 8).astype(np.uint8)),
        Animal("16-la.png", png(W, H, 16, 4, png_rows(wide_la.astype(">u2"))), (DEEP >> 8).astype(np.uint8)),
    ]


def colours() -> list[Animal]:
    alpha = (X * 11 % 256).astype(np.uint8)
    hidden = np.where(Y < 8, 0, 255).astype(np.uint8)  # the upper half is transparent, over strong colours
    palette = Image.fromarray(RGB).quantize(16)
    from_palette = np.asarray(palette.convert("RGB"))
    keyed = np.asarray(palette) == 3
    cmyk = np.stack([GREY, 255 - GREY, GREY // 2, (X * 5).astype(np.uint8)], -1)
    ycck_data, ycck_rgb = ycck()
    tiff_ycbcr = Image.fromarray(RGB).convert("YCbCr")
    key = chunk(b"tRNS", struct.pack(">H", int(GREY[3, 3])))
    swapped = RGB[..., [1, 0, 2]]
    lab = Image.new("LAB", (W, H), (255, 128, 128))  # L* = 100, a* = b* = 0
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        Animal("grey.png", saved(GREY, "PNG"), GREY),
        Animal("grey.jpg", saved(GREY, "JPEG", quality=95), GREY, 12),
        Animal("rgb.png", saved(RGB, "PNG"), RGB),
        Animal("rgb.bmp", saved(RGB, "BMP"), RGB),
        Animal("rgb.tif", saved(RGB, "TIFF"), RGB),
        Animal("rgb-lzw.tif", saved(RGB, "TIFF", compression="tiff_lzw"), RGB),
        Animal("rgb.webp", saved(RGB, "WEBP", lossless=True), RGB),
        Animal("rgb.jpg", saved(RGB, "JPEG", quality=95, subsampling=0), RGB, 24),
        Animal("progressive.jpg", saved(RGB, "JPEG", quality=95, subsampling=0, progressive=True), RGB, 24),
        Animal("rgb.avif", saved(RGB, "AVIF", quality=95, subsampling="4:4:4"), RGB, 24),
        Animal("interlaced.png", png(W, H, 8, 2, adam7(RGB), interlaced=1), RGB),
        Animal(
            "la.png",
            saved(Image.fromarray(np.dstack([GREY, alpha]), "LA"), "PNG"),
            over_black(GREY[..., None], alpha)[..., 0],
            1,
        ),
        Animal("rgba.png", saved(np.dstack([RGB, alpha]), "PNG"), over_black(RGB, alpha), 1),
        Animal("hidden.png", saved(np.dstack([RGB, hidden]), "PNG"), over_black(RGB, hidden)),
        Animal(
            "hidden.webp", saved(np.dstack([RGB, hidden]), "WEBP", lossless=True, exact=True), over_black(RGB, hidden)
        ),
        Animal("palette.png", saved(palette, "PNG"), from_palette),
        Animal("palette.gif", saved(palette, "GIF"), from_palette),
        Animal(
            "palette-key.png",
            saved(palette, "PNG", transparency=3),
            np.where(keyed[..., None], 0, from_palette).astype(np.uint8),
        ),
        Animal(
            "grey-key.png", png(W, H, 8, 0, png_rows(GREY), key), np.where(GREY[3, 3] == GREY, 0, GREY).astype(np.uint8)
        ),
        Animal("cmyk.tif", saved(Image.fromarray(cmyk, "CMYK"), "TIFF"), from_cmyk(cmyk), 1),
        Animal(
            "adobe.jpg", saved(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100, subsampling=0), from_cmyk(cmyk), 6
        ),
        Animal("ycck.jpg", ycck_data, ycck_rgb, 6),
        Animal("ycbcr.tif", saved(tiff_ycbcr, "TIFF"), RGB, 3),
        Animal("lab.tif", saved(lab, "TIFF"), np.full((H, W, 3), 255, np.uint8), 1),
        Animal("profile.png", saved(RGB, "PNG", icc_profile=swapping_profile()), swapped, 2),
        Animal("profile-srgb.png", saved(RGB, "PNG", icc_profile=srgb), RGB),
        Animal("profile-broken.png", saved(RGB, "PNG", icc_profile=b"broken" * 30), RGB),
    ]


def shapes() -> list[Animal]:
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    grey = Image.fromarray(GREY)
    more: dict[str, Any] = {"save_all": True, "append_images": [second, first]}
    long = np.arange(10_000).astype(np.uint8)[:, None]
    turned = [
        Animal(f"exif-{n}.jpg", data, TURNS[n](np.asarray(Image.open(io.BytesIO(data)))))
        for n in TURNS
        for data in [saved(RGB, "JPEG", quality=95, exif=exif(n))]
    ]
    return [
        *turned,
        Animal("exif.png", saved(RGB, "PNG", exif=exif(6)), TURNS[6](RGB)),
        Animal("exif.tif", saved(RGB, "TIFF", tiffinfo={0x0112: 8}), TURNS[8](RGB)),
        Animal("animated.gif", saved(grey, "GIF", **more), np.dstack([GREY] * 3)),  # a palette counts as colour
        Animal("animated.webp", saved(first, "WEBP", lossless=True, **more), RGB),
        Animal("animated.png", saved(first, "PNG", **more), RGB),
        Animal("pages.tif", saved(first, "TIFF", **more), RGB),
        Animal("one.png", saved(GREY[:1, :1].copy(), "PNG"), GREY[:1, :1]),
        Animal("long.png", saved(long, "PNG"), long),
        Animal("misnamed.jpg", saved(GREY, "PNG"), GREY),
        Animal("UPPER.PNG", saved(GREY, "PNG"), GREY),
    ]


def zoo() -> list[Animal]:
    return [*colours(), *depths(), *shapes(), *refused()]
