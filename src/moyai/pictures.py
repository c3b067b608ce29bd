"""Pictures as people look at them: grids, PNG files that carry the recipe that made them, GIFs with one palette.

Arrays are uint8 or uint16, (H, W, C) with C = 1 (grey), 3 (RGB) or 4 (RGBA); 16-bit grey stays 16-bit to the file.
Every file is whole or not there (`files`).
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, features

from moyai import files, provenance
from moyai.errors import RequestError

Picture = np.ndarray | Image.Image
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_USER_COMMENT = (0x8769, 0x9286)  # the EXIF directory and the tag in it


# ---- grids


def grid(
    images: np.ndarray,  # (N, H, W, C) uint8 or uint16
    *,
    columns: int | None = None,
    gap: int = 2,
    scale: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    background: int = 255,
) -> Image.Image:
    """The images row by row, `gap` pixels apart, each pixel drawn as `scale` x `scale` (None: cells of about 64 px).

    `columns` follows from the labels, or is near square. `background` is the grey (0 to 255) of gaps and margins.
    16-bit grey gives a 16-bit grid; 16-bit colour, which Pillow cannot hold, is brought to 8 bits.
    """
    if images.ndim != 4 or len(images) == 0 or images.shape[3] not in (1, 3, 4):
        raise RequestError(f"a grid takes images (N, H, W, C) with N > 0 and C 1, 3 or 4, not shape {images.shape}")
    if gap < 0 or (scale is not None and scale < 1) or (columns is not None and columns < 1):
        raise RequestError(f"a grid needs columns and scale from 1 and gap from 0, not {columns}, {scale} and {gap}")
    images = _depth(images)
    count, height, width, channels = images.shape
    scale = scale or max(1, round(64 / max(height, width)))
    columns = columns or _columns(count, row_labels, column_labels)
    rows = math.ceil(count / columns)
    for labels, places, what in ((row_labels, rows, "rows"), (column_labels, columns, "columns")):
        if labels is not None and len(labels) != places:
            raise RequestError(f"{len(labels)} labels for {places} {what} of a grid of {count} images")

    height, width = height * scale, width * scale
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap)  # of the cells, without margins
    paper, top, left = _paper(shape, (height + gap, width + gap), gap, row_labels, column_labels, background)
    full = np.iinfo(images.dtype).max
    canvas = np.repeat((paper.astype(np.uint32) * full // 255).astype(images.dtype)[..., None], channels, axis=2)
    if channels == 4:
        canvas[..., 3] = full
    for i, image in enumerate(images):
        y, x = top + i // columns * (height + gap), left + i % columns * (width + gap)
        canvas[y : y + height, x : x + width] = image.repeat(scale, axis=0).repeat(scale, axis=1)
    return to_image(canvas)


def to_image(picture: Picture) -> Image.Image:
    """An array (H, W) or (H, W, C), uint8 or uint16, as a Pillow image; an image passes through."""
    if isinstance(picture, Image.Image):
        return picture
    array = picture[..., None] if picture.ndim == 2 else picture
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise RequestError(f"a picture has shape (H, W) or (H, W, C) with C 1, 3 or 4, not {picture.shape}")
    array = _depth(array)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _depth(array: np.ndarray) -> np.ndarray:
    """uint8, or uint16 where that is grey."""
    if array.dtype not in (np.uint8, np.uint16):
        raise RequestError(f"pictures are uint8 or uint16, not {array.dtype}")
    if array.dtype == np.uint16 and array.shape[-1] != 1:
        return _eight_bits(array)
    return array


def _eight_bits(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257


def _columns(count: int, row_labels: Sequence[str] | None, column_labels: Sequence[str] | None) -> int:
    if column_labels:
        return len(column_labels)
    if row_labels:
        return math.ceil(count / len(row_labels))
    square = math.ceil(math.sqrt(count))
    return next((c for c in range(square, 2 * square) if count % c == 0), square)  # full rows where near square


def _paper(
    shape: tuple[int, int],
    pitch: tuple[int, int],
    gap: int,
    row_labels: Sequence[str] | None,
    column_labels: Sequence[str] | None,
    background: int,
) -> tuple[np.ndarray, int, int]:
    """The sheet the cells are laid on, labels drawn: (H, W) uint8, and where the cells begin."""
    font, line = _font(min(18, max(12, pitch[1] // 8)))
    space = 6  # between a label and its cells, and around a sheet that has labels
    beside = [_lines(text, font, 16 * line, max(1, (pitch[0] - gap) // line)) for text in row_labels or ()]
    above = [_lines(text, font, pitch[1] - gap, 3) for text in column_labels or ()]
    margin = space if beside or above else 0
    left = margin + max((math.ceil(font.getlength(text)) + space for block in beside for text in block), default=0)
    top = margin + max((len(block) * line + space for block in above), default=0)
    paper = Image.new("L", (left + shape[1] + margin, top + shape[0] + margin), background)
    draw, ink = ImageDraw.Draw(paper), 40 if background > 127 else 215
    for row, block in enumerate(beside):
        y = top + row * pitch[0] + (pitch[0] - gap - len(block) * line) / 2
        for i, text in enumerate(block):
            draw.text((left - space - font.getlength(text), y + i * line), text, fill=ink, font=font)
    for column, block in enumerate(above):
        middle, y = left + column * pitch[1] + (pitch[1] - gap) / 2, top - space - len(block) * line
        for i, text in enumerate(block):
            draw.text((middle - font.getlength(text) / 2, y + i * line), text, fill=ink, font=font)
    return np.asarray(paper), top, left


def _font(size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, int]:
    """Pillow's built-in font and its line height; a small fixed one where Pillow was built without FreeType."""
    if features.check("freetype2"):
        return ImageFont.load_default(size), round(1.25 * size)
    return ImageFont.load_default(), 12


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float, most: int) -> list[str]:
    """The text broken between words into at most `most` lines of `width` pixels; what is too long ends in dots."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        text = text.encode("latin-1", "replace").decode("latin-1")  # all the fixed font has
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_shortened(line, font, width) for line in lines]


def _shortened(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."


# ---- files


def save_png(path: str | os.PathLike[str], image: Picture, recipe: Mapping[str, Any] | None) -> None:
    """Writes a PNG with the recipe that made it (`provenance`); nothing is said of the picture where it is None."""
    write_bytes(path, png_bytes(image, recipe))


def png_bytes(image: Picture, recipe: Mapping[str, Any] | None = None) -> bytes:
    picture = to_image(image)
    if picture.mode not in _PNG_MODES:
        raise RequestError(f"a PNG cannot hold a picture of mode {picture.mode}; possible: {', '.join(_PNG_MODES)}")
    told = PngImagePlugin.PngInfo()
    if recipe is not None:
        told.add_text(provenance.KEY, provenance.to_json(recipe))
        if line := provenance.parameters(recipe, picture.size):
            told.add_text("parameters", line.encode("utf-8", "replace").decode())  # a lone surrogate is no text
        told.add_itxt("XML:com.adobe.xmp", provenance.xmp(recipe))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=told)
    return buffer.getvalue()


def save_gif(
    path: str | os.PathLike[str],
    frames: Sequence[Picture],
    *,
    milliseconds: int = 80,
    hold_last: int = 1500,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Writes an endless GIF whose last frame stays for `hold_last` ms, the recipe in its comment."""
    write_bytes(path, gif_bytes(frames, milliseconds=milliseconds, hold_last=hold_last, recipe=recipe))


def gif_bytes(
    frames: Sequence[Picture],
    *,
    milliseconds: int = 80,
    hold_last: int = 1500,
    recipe: Mapping[str, Any] | None = None,
) -> bytes:
    if not frames:
        raise RequestError("a GIF needs at least one frame")
    pictures = [_flat(frame) for frame in frames]
    if len({picture.size for picture in pictures}) > 1:
        raise RequestError(f"the frames of a GIF have one size, not {sorted({p.size for p in pictures})}")
    (first, *rest), palette = _one_palette(pictures)
    said = b"" if recipe is None else f"{provenance.KEY} {provenance.to_json(recipe)}".encode("ascii")
    buffer = io.BytesIO()
    first.save(
        buffer,
        "GIF",
        save_all=True,
        append_images=rest,
        duration=[milliseconds] * len(rest) + [hold_last],
        loop=0,
        palette=palette,  # or Pillow would write each frame's own beside it
        optimize=False,
        comment=said,
    )
    return buffer.getvalue()


def _flat(frame: Picture) -> Image.Image:
    """A frame as 8-bit L or RGB; what is transparent becomes white."""
    picture = to_image(frame)
    if picture.mode == "I;16":
        picture = to_image(_eight_bits(np.asarray(picture)))
    if "A" in picture.mode or "transparency" in picture.info:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode == "1" else "RGB")


def _one_palette(pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], bytes]:
    """The frames as indices into one palette (RGBRGB...), exact for grey frames and for up to 256 colours in all."""
    if all(picture.mode == "L" for picture in pictures):
        codes = np.stack([np.asarray(picture) for picture in pictures])  # (N, H, W)
        used = np.flatnonzero(np.bincount(codes.ravel(), minlength=256))
        palette = np.repeat(used[:, None], 3, axis=1)
    else:
        values = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])  # (N, H, W, 3)
        tall = values.reshape(-1, *values.shape[2:])  # the frames one below the other
        some = tall[:: max(1, tall.shape[0] * tall.shape[1] // 65536)]  # rows enough to choose colours by
        if len(np.unique(_codes(some))) > 256 or len(np.unique(_codes(values))) > 256:
            chosen = Image.fromarray(some).quantize(256, kmeans=1)
            frames = [p.convert("RGB").quantize(palette=chosen, dither=Image.Dither.NONE) for p in pictures]
            return frames, bytes(chosen.getpalette() or [])
        codes = _codes(values)
        used = np.unique(codes)
        palette = np.stack([used >> 16, used >> 8 & 255, used & 255], axis=1)
    rgb = palette.astype(np.uint8).tobytes()
    frames = [Image.fromarray(np.searchsorted(used, frame).astype(np.uint8)) for frame in codes]
    for frame in frames:
        frame.putpalette(rgb)
    return frames, rgb


def _codes(values: np.ndarray) -> np.ndarray:
    """A colour as one number: (..., 3) uint8 -> (...) uint32."""
    red, green, blue = (values[..., i].astype(np.uint32) for i in range(3))
    return red << 16 | green << 8 | blue


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe a picture carries: ours (PNG, GIF), else what the field's `parameters` tell (PNG, JPEG, WebP)."""
    if not Path(path).is_file():
        raise RequestError(f"no such picture: {path}")
    try:
        with Image.open(path, formats=("PNG", "GIF", "JPEG", "WEBP")) as image:  # reads the header, not the pixels
            recipe = _carried(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(
            f"{path}: no recipe can be read from this file ({error}); possible: PNG, GIF, JPEG, WebP"
        ) from error
    if not recipe:
        raise RequestError(f"{path} carries no recipe: it was not made by moyai, or its metadata were removed")
    return recipe


def _carried(image: Image.Image) -> dict[str, Any]:
    said = image.info
    if provenance.KEY in said:
        return provenance.from_json(said[provenance.KEY])
    comment = said.get("comment", b"")
    comment = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else comment
    if comment.startswith(f"{provenance.KEY} "):
        return provenance.from_json(comment.removeprefix(f"{provenance.KEY} "))
    if "parameters" in said:
        return provenance.from_parameters(said["parameters"])
    directory, tag = _USER_COMMENT
    raw = image.getexif().get_ifd(directory).get(tag)
    return provenance.from_user_comment(raw) if isinstance(raw, bytes) else {}


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file whole or not at all, its folder made where there is none."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.save_error(error, path, len(data)) from error
    files.write_atomic(path, data)
