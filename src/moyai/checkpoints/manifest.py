"""One checkpoint folder and the manifest that vouches for it.

`MANIFEST.json` is written last and names every other file with its size and sha256, so a folder in which a file is
missing, cut short, altered or taken from another step is told from a whole one. The manifest vouches for itself: it
holds the sha256 of the rest of its own text, and its text must be the canonical one to the byte.

    {"format": 1, "name": "step-000123", "info": {"step": 123, ...}, "versions": {...}, "sha256": "...",
     "files": {"model.safetensors": {"key": "model", "kind": "tensors", "size": ..., "sha256": ..., "tensors": 42}}}

Files whose names begin with a dot (those of file managers and network file systems) are neither listed nor minded.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moyai.checkpoints.tensors import open_regular, read_tensors
from moyai.errors import CheckpointError, choices
from moyai.files import PIECE, canonical_json
from moyai.version import __version__

MANIFEST = "MANIFEST.json"
FORMAT = 1
MAX_MANIFEST = 10_000_000
# No separators and no leading dot or dash: a manifest, too, may come from anywhere, and names nothing outside.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
Content = Mapping[str, Tensor] | Mapping[str, Any] | bytes


def manifest_text(name: str, files: Mapping[str, Mapping[str, Any]], info: Mapping[str, Any]) -> tuple[dict, bytes]:
    """The manifest of a folder called `name`, and its text."""
    body = {
        "format": FORMAT,
        "name": name,
        "files": {file: dict(entry) for file, entry in files.items()},
        "info": dict(info),
        "versions": {"moyai": __version__, "torch": str(torch.__version__)},
    }
    body["sha256"] = hashlib.sha256(canonical_json(body, allow_nan=True)).hexdigest()
    return body, canonical_json(body, allow_nan=True)


def load_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of the folder `path`, sound in itself; the files it names are not looked at."""
    place = Path(path) / MANIFEST
    with open_regular(place) as file:
        raw = _whole(file, min(os.fstat(file.fileno()).st_size, MAX_MANIFEST))
    try:
        body = json.loads(raw)
        if not isinstance(body, dict) or canonical_json(body, allow_nan=True) != raw:
            raise ValueError("its text is not the one that was written")
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{place}: torn or altered: {exc}") from exc
    if body.get("format") != FORMAT:
        version = body.get("format")
        raise CheckpointError(f"{place}: format {version!r}; this moyai ({__version__}) reads format {FORMAT}")
    rest = {key: value for key, value in body.items() if key != "sha256"}
    if body.get("sha256") != hashlib.sha256(canonical_json(rest, allow_nan=True)).hexdigest():
        raise CheckpointError(f"{place}: torn or altered: its sha256 differs")
    if not _sound(body):
        raise CheckpointError(f"{place}: not a manifest of format {FORMAT}")
    return body


def _sound(body: dict[str, Any]) -> bool:
    """Whether everything that is used later is of the type it is used as."""
    files = body.get("files")
    return (
        isinstance(body.get("name"), str)
        and isinstance(body.get("info"), dict)
        and isinstance(body.get("versions"), dict)
        and isinstance(files, dict)
        and all(
            SAFE_NAME.fullmatch(file)
            and isinstance(entry, dict)
            and isinstance(entry.get("key"), str)
            and entry.get("kind") in ("tensors", "json", "bytes")
            and type(entry.get("size")) is int
            and isinstance(entry.get("sha256"), str)
            and _SHA256.fullmatch(entry["sha256"])
            for file, entry in files.items()
        )
        and len({entry["key"] for entry in files.values()}) == len(files)
    )


def inspect(path: str | Path) -> dict[str, Any]:
    """The manifest, after checking that exactly the files it names are there, each of its size. No file is read."""
    path = Path(path)
    manifest = load_manifest(path)
    files = manifest["files"]
    try:
        for file, entry in files.items():
            if not (path / file).is_file():
                raise CheckpointError(f"{path / file}: missing")
            size = (path / file).stat().st_size
            if size != entry["size"]:
                raise CheckpointError(f"{path / file}: size is {size} bytes, the manifest says {entry['size']}")
        for found in sorted(path.iterdir()):
            if found.name not in files and found.name != MANIFEST and not found.name.startswith("."):
                raise CheckpointError(f"{found}: not listed in the manifest")
    except OSError as exc:
        raise CheckpointError(f"{path}: cannot be read: {exc.strerror}") from exc
    return manifest


def verify(path: str | Path) -> dict[str, Any]:
    """The manifest, after checking every byte of every file; CheckpointError names the file and the reason."""
    manifest = inspect(path)
    for file, entry in manifest["files"].items():
        with open_regular(Path(path) / file) as opened:
            digest = hashlib.file_digest(opened, "sha256")
        _compare(Path(path) / file, entry, digest.hexdigest())
    return manifest


def read(path: str | Path, which: Sequence[str] | None = None) -> dict[str, Any]:
    """The contents by the keys they were committed under, all or only `which`; each file is hashed as it is read.

    As they were given to `commit`: tensors by name, a JSON object, or bytes.
    """
    path = Path(path)
    by_key = {entry["key"]: (file, entry) for file, entry in inspect(path)["files"].items()}
    for key in which or ():
        if key not in by_key:
            raise CheckpointError(f"{path}: holds no {key!r}; {choices(key, by_key)}")
    return {key: _content(path / by_key[key][0], by_key[key][1]) for key in (by_key if which is None else which)}


def _content(path: Path, entry: Mapping[str, Any]) -> dict[str, Tensor] | dict | bytes:
    digest = hashlib.sha256()
    if entry["kind"] == "tensors":
        tensors = read_tensors(path, observe=digest.update)
        _compare(path, entry, digest.hexdigest())
        return tensors
    with open_regular(path) as file:
        data = _whole(file, entry["size"])
    digest.update(data)
    _compare(path, entry, digest.hexdigest())
    return data if entry["kind"] == "bytes" else _object(data, path)


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:  # RecursionError: brackets within brackets without end
        raise CheckpointError(f"{path}: not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _whole(file: FileIO, size: int) -> bytes:
    """The file, which should have `size` bytes; one more is asked for, so that a longer one is noticed."""
    parts, left = [], size + 1
    while left > 0 and (part := file.read(min(left, PIECE))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _compare(path: Path, entry: Mapping[str, Any], found: str) -> None:
    if found != entry["sha256"]:
        expected = entry["sha256"]
        raise CheckpointError(f"{path}: altered: its sha256 is {found[:12]}..., the manifest says {expected[:12]}...")
