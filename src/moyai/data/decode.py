"""One picture file to one array, and what is done with each kind of file.

| file | becomes |
|---|---|
| palette | RGB, or RGBA where it has transparency |
| 1 bit | grey, 0 and 255 |
| transparency, in a set without alpha | laid over black (said in a note) |
| CMYK, Adobe-inverted CMYK, YCCK | RGB, by its profile where it has one |
| grey of 16 bits (PNG, TIFF), 32-bit integers within 0 .. 65535 | 16-bit grey, without its profile and key colour |
| floating-point TIFF, all values in [0, 1] | 16-bit grey; otherwise refused |
| colour of 16 bits | 8 bits: Pillow drops the lower byte (said in a note) |
| EXIF orientation | applied |
| several pictures in one file (GIF, APNG, WebP, TIFF) | the first (said in a note) |
| a colour profile that is not sRGB | converted to sRGB; an unreadable profile is ignored (said in a note) |
| EPS, PDF, SVG, HEIC, anything else | refused with a reason |

A set with any 16-bit picture is kept in uint16, its 8-bit pictures times 257. Everything is measured before it is
decoded: more than 40 million pixels, or a side of more than 20,000, is refused from the header alone (a 12000 x 12000
PNG of 18 KB needs 700 MB decoded). Pillow is told which formats it may try, because some of the others start programs.

Resizing is by Pillow's antialiased LANCZOS over the part of the source that is kept, so a 1 x 10000 picture never
becomes a large one on the way; 16-bit grey is resized in float, so that no levels are lost.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from moyai.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
MAX_PIXELS = 40_000_000
MAX_SIDE = 20_000
MAX_BYTES = 2**28
ORIENTATION = 0x0112
KINDS = {1: "grey", 3: "RGB", 4: "RGBA"}
GAP = 3.0  # a picture may first be reduced by boxes to this many times the target, which the eye cannot tell

Resize = Literal["crop", "pad", "stretch"]

SIGNATURES = (
    (b"%!PS", "EPS and PostScript are programs, not pictures"),
    (b"\xc5\xd0\xd3\xc6", "EPS and PostScript are programs, not pictures"),
    (b"%PDF", "PDF is a document, not a picture"),
    (b"<svg", "SVG is a drawing, not pixels"),
    (b"<?xml", "SVG is a drawing, not pixels"),
)


class UnreadablePicture(DataError):
    """A file that gives no picture; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Seen:
    """What the header of a picture says, before anything is decoded."""

    height: int  # as shown, the orientation applied
    width: int
    colour: bool
    transparent: bool
    deep: bool  # more than 8 bits, and kept
    narrowed: bool  # more than 8 bits, of which 8 are kept
    several: bool  # more than one picture in the file


@dataclass(frozen=True)
class Target:
    """What every picture of a set becomes."""

    height: int
    width: int
    channels: int
    bits: int
    resize: Resize


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings: what they say of a file (odd EXIF, large sizes) is decided here.

    The filter is the process's, so this goes around a whole pass, in the thread that starts the workers.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\..*)?")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def inspect(data: bytes) -> Seen:
    """The header of a picture; UnreadablePicture where it is none, or too large."""
    with _refusing(data):
        image = _open(data)
        tiles = getattr(image, "tile", [])
        raw = str(tiles[0][3]) if tiles else ""  # how the bytes are laid out in the file
        height, width = image.height, image.width
        # Pillow turns TIFF by itself, and would decode a PNG to look for EXIF behind the pixels.
        told = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        if told and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8):
            height, width = width, height
        deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        seen = Seen(
            height=height,
            width=width,
            colour=not (deep or image.mode in ("1", "L", "LA", "La") or raw.startswith("LA")),
            transparent=image.has_transparency_data and not deep,
            deep=deep,
            narrowed=";16" in raw and not deep,
            several=bool(getattr(image, "is_animated", False)),
        )
        if image.mode in ("I", "F"):
            _levels(image)  # these two are refused by their values; rare enough to be decoded twice
        return seen


def changes(seen: Seen, to: Target) -> list[str]:
    """What is done to a picture that a person may want to know of, a few words each."""
    channels = to.channels
    told = {
        f"brought from another size by {to.resize!r}": (seen.height, seen.width) != (to.height, to.width),
        "colour: turned to grey": seen.colour and channels == 1,
        f"grey: repeated in {KINDS[channels]}": not seen.colour and channels > 1,
        "without transparency: made opaque": not seen.transparent and channels == 4,
        "transparent: laid over black": seen.transparent and channels != 4,
        "more than 8 bits: 8 are kept": seen.deep and to.bits == 8,
        "16-bit colour: 8 bits are kept": seen.narrowed,
        "several pictures in the file: the first is used": seen.several,
    }
    return [words for words, happened in told.items() if happened]


def decode(
    data: bytes, target: Target, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> tuple[np.ndarray, bool]:
    """A picture as (C, H, W) uint8 or uint16, and whether it had a colour profile that could not be read."""
    with _refusing(data):
        image = _open(data)
        image.draft(None, _draft_size(image, target))  # JPEG alone can decode at an eighth of its size; no-op elsewhere
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _deep(image, target, resample), False
        plain, unread = _plain(image)
        if plain.mode == "RGBA" and target.channels != 4:
            plain = Image.alpha_composite(Image.new("RGBA", plain.size, (0, 0, 0, 255)), plain).convert("RGB")
        fitted = fit(plain, target, resample).convert({1: "L", 3: "RGB", 4: "RGBA"}[target.channels])
        pixels = np.asarray(fitted).reshape(target.height, target.width, target.channels)
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (C, H, W)
        return (pixels if target.bits == 8 else pixels.astype(np.uint16) * 257), unread


def fit(image: Image.Image, target: Target, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """A picture brought to the target's height and width by its policy; untouched where it has them."""
    (width, height), (to_width, to_height) = image.size, (target.width, target.height)
    if (width, height) == (to_width, to_height):
        return image
    whole = (0.0, 0.0, float(width), float(height))
    gap = None if resample == Image.Resampling.BOX else GAP  # means of means are not those of what a pixel covers
    if target.resize == "stretch":
        return image.resize((to_width, to_height), resample, box=whole, reducing_gap=gap)
    if target.resize == "crop":
        scale = max(to_width / width, to_height / height)
        kept_width, kept_height = min(width, to_width / scale), min(height, to_height / scale)
        # Whole pixels from the edge: where nothing is scaled, nothing is interpolated.
        left, top = int(width - kept_width) // 2, int(height - kept_height) // 2
        box = (left, top, left + kept_width, top + kept_height)
        return image.resize((to_width, to_height), resample, box=box, reducing_gap=gap)
    scale = min(to_width / width, to_height / height)
    size = (max(1, min(to_width, round(width * scale))), max(1, min(to_height, round(height * scale))))
    inner = image.resize(size, resample, box=whole, reducing_gap=gap)
    canvas = Image.new(image.mode, (to_width, to_height))  # black; fully transparent in RGBA
    canvas.paste(inner, ((to_width - size[0]) // 2, (to_height - size[1]) // 2))
    return canvas


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(N, C, H, W) pixels with another number of channels: grey repeated, luma of colour, alpha opaque."""
    count, given, height, width = pixels.shape
    if given == channels:
        return pixels
    if given == 3 and channels == 1:
        luma = pixels.astype(np.uint32) * np.array([19595, 38470, 7471], np.uint32)[None, :, None, None]  # Rec. 601
        return ((luma.sum(1, keepdims=True, dtype=np.uint32) + 0x8000) >> 16).astype(pixels.dtype)
    colour = np.repeat(pixels, 3, axis=1) if given == 1 else pixels
    if channels == 3:
        return colour
    alpha = np.full((count, 1, height, width), np.iinfo(pixels.dtype).max, pixels.dtype)
    return np.concatenate([colour, alpha], axis=1)


def _open(data: bytes) -> Image.Image:
    """The header only. Both limits are checked here, before anything is decoded."""
    if not data:
        raise UnreadablePicture("the file is empty")
    if len(data) > MAX_BYTES:
        raise UnreadablePicture(f"{len(data) / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20}")
    Image.init()  # fills Pillow's table of formats, once
    image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UnreadablePicture(
            f"{width} x {height} is too large: at most {MAX_PIXELS // 10**6} million pixels and {MAX_SIDE} a side"
        )
    return image


@contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Whatever Pillow says of a file becomes UnreadablePicture."""
    try:
        yield
    except UnreadablePicture:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadablePicture(_unidentified(data)) from error
    except Image.DecompressionBombError as error:
        raise UnreadablePicture(f"too large: at most {MAX_PIXELS // 10**6} million pixels") from error
    except MemoryError as error:
        raise UnreadablePicture("decoding it needs more memory than there is") from error
    except Exception as error:
        # Decoders meet damaged bytes with OSError, SyntaxError, ValueError, IndexError, ZeroDivisionError and more;
        # a list of them would be wrong for the next version. Nothing of ours is called in here but arithmetic.
        raise UnreadablePicture(f"damaged: {str(error) or type(error).__name__}") from error


def _unidentified(data: bytes) -> str:
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, what in SIGNATURES:
        if head.startswith(signature):
            return f"{what}: convert it to PNG"
    if data[4:8] == b"ftyp":
        return f"HEIC or a film ({data[8:12].decode('ascii', 'replace')}), which is not read: convert it to PNG"
    return f"not a picture moyai reads ({', '.join(FORMATS)}), or its header is damaged"


def _draft_size(image: Image.Image, target: Target) -> tuple[int, int]:
    """The smallest size, before any turning, from which the target can still be made well."""
    width, height = image.size
    side = max(target.width / width, target.height / height, target.width / height, target.height / width)
    return max(1, int(min(1.0, side * GAP) * width)), max(1, int(min(1.0, side * GAP) * height))


def _plain(image: Image.Image) -> tuple[Image.Image, bool]:
    """L, RGB or RGBA in sRGB, and whether a colour profile could not be read."""
    unread = False
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode in ("1", "L"):
        return image.convert("L"), False
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "CMYK"):
        try:
            return _to_srgb(image, profile), False
        except (ImageCms.PyCMSError, OSError, ValueError, ImportError):
            unread = True  # the picture itself is whole: its colours are taken as sRGB, and the caller counts it
    return (image if image.mode in ("RGB", "RGBA") else image.convert("RGB")), unread


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != ("CMYK" if image.mode == "CMYK" else "RGB"):
        if image.mode == "CMYK":
            return image.convert("RGB")
        return image  # a grey profile on a picture that was turned to colour: there is nothing to convert
    if "sRGB" in (source.profile.profile_description or "") and image.mode != "CMYK":
        return image
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    opaque = image.convert("RGB") if alpha else image
    converted = ImageCms.profileToProfile(opaque, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if converted is None:
        raise ImageCms.PyCMSError("no picture came back")
    if alpha:
        converted.putalpha(alpha)
    return converted


def _levels(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits as (H, W) uint16."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise UnreadablePicture("floating-point values outside [0, 1]: scale them, or save 16-bit integers")
        return np.rint(values.astype(np.float64) * 65535).astype(np.uint16)
    if image.mode == "I" and not 0 <= values.min() <= values.max() <= 65535:
        raise UnreadablePicture(f"integers from {values.min()} to {values.max()}: only 0 to 65535 are read")
    return values.astype(np.uint16)


def _deep(image: Image.Image, target: Target, resample: Image.Resampling) -> np.ndarray:
    """(C, H, W) uint16. Resized in float: Pillow's conversions of 16-bit grey clip at 255."""
    levels = _levels(image)
    if image.size != (target.width, target.height):
        fitted = fit(Image.fromarray(levels.astype(np.float32)), target, resample)
        levels = np.rint(np.clip(np.asarray(fitted), 0, 65535)).astype(np.uint16)
    pixels = to_channels(levels[None, None], target.channels)[0]
    # A set that was measured as 8-bit holds no 16-bit picture, unless the file changed in between.
    return pixels if target.bits == 16 else (pixels >> 8).astype(np.uint8)
