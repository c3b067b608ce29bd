"""A folder of pictures of which all is known, with the number of each in its pixels, caption, numbers and mask."""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import picture_zoo as z

from moyai.data import folder
from moyai.data.config import FolderConfig
from moyai.data.images import ImageSet

SIDE = 16


def picture(i: int, height: int = SIDE, width: int = SIDE) -> bytes:
    """A picture whose every value is i."""
    return z.saved(np.full((height, width), i, np.uint8), "PNG")


def mask(i: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Region numbers 0 to 4, of which the upper left corner is i % 5."""
    values = np.full((height, width), (i + 1) % 5, np.uint8)
    values[: height // 2, : width // 2] = i % 5
    return values


def pictures(root: Path, count: int = 20, name: Callable[[int], str] = "{:02d}.png".format) -> list[str]:
    """Pictures 0, 1, 2 ... and their names."""
    names = [name(i) for i in range(count)]
    for i, one in enumerate(names):
        put(root / one, picture(i))
    return names


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def row(i: int, name: str) -> dict[str, Any]:
    return {"file_name": name, "text": f"number {i}", "label": "even" if i % 2 == 0 else "odd", "age": i / 2}


def jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in rows)


def table(rows: Sequence[Mapping[str, Any]], delimiter: str = ",", end: str = "\n") -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def packed(root: Path, prefix: str = "") -> Path:
    archive = root.with_name(f"{root.name}-packed.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(root).as_posix())
    return archive


def read(root: Path, *, in_memory: int = folder.IN_MEMORY, **options: Any) -> ImageSet:
    return folder.read(FolderConfig(root=root, **options), root.parent / "cache", in_memory=in_memory)


def numbers(images: ImageSet) -> np.ndarray:
    """(N,) which picture each row is, by its pixels."""
    return np.asarray(images.pixels[np.arange(images.count)])[:, 0, 0, 0].astype(int)
