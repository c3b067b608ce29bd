"""One safetensors file, written and read with care.

The format (https://github.com/huggingface/safetensors): eight bytes n, little-endian; n bytes of JSON that give each
tensor's dtype, shape and place [start, end) in the payload, and optionally `__metadata__`, strings by strings; then
the payload, row-major and without gaps. We write and read it ourselves for four reasons:

* a file is *measured before it is loaded*: a header of 62 MB with a million empty tensors, or one that names a tensor
  twice, is accepted by the reference implementation;
* tensors are read one at a time into memory of our own. A mapped file that somebody truncates later ends the process
  with SIGBUS, no exception;
* the bytes can be hashed on the way, in the one pass that reads or writes them;
* it is written whole or not at all (`moyai.files`), and a full disk gives one clear line.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moyai.errors import CheckpointError
from moyai.files import PIECE, Bytes, write_pieces_atomic

MAX_HEADER = 10_000_000  # bytes; published Stable Diffusion headers are 0.1 to 0.4 MB
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 32
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
Observe = Callable[[Bytes], object]  # sees every byte that is read, in order: a hash's update


class Entry(NamedTuple):
    """What the header says of one tensor; start and end are bytes of the payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


# Writing ---------------------------------------------------------------------------------------------------------


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> tuple[int, Iterator[Bytes]]:
    """The length of the file that holds the tensors, and its bytes, one tensor at a time."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in names or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"tensor {name!r} ({tensor.dtype}, {tensor.layout}, {tensor.device}) cannot be saved")
    # Widest dtype first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    head: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name in order:
        tensor = tensors[name]
        end = place + tensor.numel() * tensor.itemsize
        head[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER or len(order) > MAX_TENSORS or "__metadata__" in tensors:
        raise ValueError(f"{len(order)} tensors with a header of {len(text)} bytes do not fit one safetensors file")

    def pieces() -> Iterator[Bytes]:
        yield len(text).to_bytes(8, "little") + text
        for name in order:
            yield tensor_bytes(tensors[name])

    return 8 + len(text) + place, pieces()


def tensor_bytes(tensor: Tensor) -> Bytes:
    """The values in row-major order, whatever the tensor's device and memory layout."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """The tensors as a safetensors file at `path`, whole or not at all, one tensor at a time."""
    size, pieces = encode(tensors, metadata)
    write_pieces_atomic(path, pieces, size)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over sorted (name, dtype, shape, bytes): what "identical" means."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """CheckpointError naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            finite = torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor)  # float8 has no isfinite
            if not bool(finite.all()):
                bad = int((~finite).sum())
                raise CheckpointError(f"{source}: tensor {_shown(name)}: {bad} of {tensor.numel()} values not finite")


# Reading ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_regular(path: str | Path) -> Iterator[FileIO]:
    """A regular file, unbuffered. Anything else, and any error of the system, is a CheckpointError."""
    try:
        # Non-blocking, because opening a named pipe would wait for ever for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise CheckpointError(f"{path}: not a regular file")
            yield file
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: missing") from exc
    except OSError as exc:
        raise CheckpointError(f"{path}: cannot be read: {exc.strerror}") from exc


def header(path: str | Path) -> dict[str, Any]:
    """{"tensors": {name: {"dtype": "F32", "shape": [...]}}, "metadata": {...}}, checked; no payload is read."""
    with open_regular(path) as file:
        entries, metadata = _read_header(file, path, None)
    return {"tensors": {e.name: {"dtype": e.dtype, "shape": list(e.shape)} for e in entries}, "metadata": metadata}


def iterate_tensors(path: str | Path, *, observe: Observe | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one at a time, in the order of the file; `observe` sees every byte of it."""
    with open_regular(path) as file:
        entries, _ = _read_header(file, path, observe)
        for entry in entries:
            tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
            if tensor.numel():
                raw = tensor.reshape(-1).view(torch.uint8)
                _fill(file, raw.numpy().data, path, observe)
                if tensor.dtype == torch.bool and int(raw.max()) > 1:  # such a bool is neither true nor false
                    raise CheckpointError(f"{path}: tensor {_shown(entry.name)} is BOOL and has values above 1")
            yield entry.name, tensor


def read_tensors(
    path: str | Path, *, device: torch.device | str = "cpu", observe: Observe | None = None
) -> dict[str, Tensor]:
    """All tensors of a file, in memory of our own. CheckpointError on anything that is not as it should be."""
    return {name: tensor.to(device) for name, tensor in iterate_tensors(path, observe=observe)}


def _fill(file: FileIO, view: memoryview, path: str | Path, observe: Observe | None) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + PIECE])
        if not count:
            raise CheckpointError(f"{path}: cut short while it was being read")
        if observe is not None:
            observe(view[done : done + count])
        done += count


def _read_header(file: FileIO, path: str | Path, observe: Observe | None) -> tuple[list[Entry], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file")
    start = bytearray(8)
    _fill(file, memoryview(start), path, observe)
    length = int.from_bytes(start, "little")
    if length > size - 8:
        raise CheckpointError(f"{path}: a header of {length} bytes does not fit in a file of {size}: cut short?")
    if length > MAX_HEADER:
        raise CheckpointError(f"{path}: a header of {length} bytes; possible: at most {MAX_HEADER}")
    raw = bytearray(length)
    _fill(file, memoryview(raw), path, observe)
    try:
        return _parse(bytes(raw), size - 8 - length)
    except (ValueError, RecursionError) as exc:  # RecursionError: brackets within brackets without end
        raise CheckpointError(f"{path}: not a sound safetensors header: {exc}") from exc


def _parse(raw: bytes, payload: int) -> tuple[list[Entry], dict[str, str]]:
    """The entries in the order of the payload, and the metadata. ValueError says what is wrong."""
    if raw[:1] != b"{":
        raise ValueError("it does not begin with {")
    _measure(raw)
    head = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_twice, parse_constant=_no_constant)
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not strings by strings")
    entries = sorted((_entry(name, value) for name, value in head.items()), key=lambda e: (e.start, e.end))
    place = 0
    for entry in entries:
        if entry.start != place:
            raise ValueError(f"tensor {_shown(entry.name)} starts at byte {entry.start}, expected {place}")
        place = entry.end
    if place != payload:
        raise ValueError(f"the tensors take {place} bytes and the file has {payload}")
    return entries, metadata


def _measure(raw: bytes) -> None:
    """Refuse a header whose objects would fill the memory, before they are made.

    Without its strings, a header of N tensors has at most N + 2 braces and 2 N brackets.
    """
    left = {b"{": MAX_TENSORS + 2, b"[": 2 * MAX_TENSORS, b",": 16 * MAX_TENSORS}
    for match in re.finditer(rb'[{\[,]|"[^"\\]*+(?:\\.[^"\\]*+)*+"', raw, flags=re.DOTALL):
        sign = raw[match.start() : match.start() + 1]
        if sign != b'"':
            left[sign] -= 1
            if left[sign] < 0:
                raise ValueError(f"more entries than {MAX_TENSORS} tensors can have")


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in pairs:
        if name in names:
            raise ValueError(f"{_shown(name)} is there twice")
        f"{name}{value if isinstance(value, str) else ''}".encode()  # half a surrogate pair: a ValueError
        names[name] = value
    return names


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _entry(name: str, value: Any) -> Entry:
    what = f"tensor {_shown(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what} has not just dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{what} has dtype {str(dtype)[:20]!r}; possible: {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) >= 2**62:
        raise ValueError(f"{what} has no possible shape")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{what} has no possible data_offsets")
    need = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != need:
        raise ValueError(f"{what} needs {need} bytes and has {offsets[1] - offsets[0]}")
    return Entry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    """A list of whole numbers from 0 (a bool is an int in Python, and none here)."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**62 for n in value)


def _shown(name: str) -> str:
    """A name from a file nobody vouches for, fit for one line of a message."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
