"""Files that exist whole or not at all, and one clear line when the disk says no.

A file is written under a temporary name beside its place, forced to the disk (fsync) and only then given its name
with `os.replace`, which the file system does in one go. Whoever reads the name sees the old contents or the new ones,
never a part, also after a kill at any moment; the fsync makes that hold for a power cut too.
"""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moyai.errors import DataError, SaveError

if TYPE_CHECKING:
    import numpy as np

PIECE = 1 << 24  # bytes handed to the system at once
_TEMPORARY = re.compile(r"\.moyai-tmp-[0-9a-f]{32}")
Bytes = bytes | memoryview


def save_error(exc: OSError, path: str | Path, needed: int) -> SaveError:
    """What to raise when writing `needed` bytes at `path` failed: the reason, the bytes needed and those free."""
    reason = os.strerror(exc.errno) if exc.errno is not None else str(exc)
    free = free_bytes(path)
    room = "unknown" if free is None else f"{free:,} bytes ({_size(free)})"
    return SaveError(f"cannot save {path}: {reason}; needed: {needed:,} bytes ({_size(needed)}), free: {room}")


def free_bytes(path: str | Path) -> int | None:
    """The bytes free where `path` lies or would lie; None where the system does not say."""
    place = Path(path).absolute()
    for folder in (place, *place.parents):
        with contextlib.suppress(OSError):  # not there yet, or not ours to look at: ask the folder above
            return shutil.disk_usage(folder).free
    return None


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"


def sync_folder(path: str | Path) -> None:
    """Force the names in a folder to the disk: without it a rename may be undone by a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def write_pieces(path: str | Path, pieces: Iterable[Bytes]) -> None:
    """A new file at `path` with the pieces one after the other, forced to the disk. OSError as it comes; not atomic."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            done = 0
            while done < len(view):  # the system may take less than it was given
                done += os.write(handle, view[done : done + PIECE])
        os.fsync(handle)
    finally:
        os.close(handle)


def write_pieces_atomic(path: str | Path, pieces: Iterable[Bytes], needed: int) -> None:
    """The pieces, `needed` bytes in all, at `path`: whole or not at all. SaveError where the disk says no."""
    path = Path(path)
    temporary = path.parent / f".moyai-tmp-{uuid.uuid4().hex}"
    try:
        write_pieces(temporary, pieces)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as exc:
        with contextlib.suppress(OSError):  # the first error is the one to tell; `sweep_temporaries` does the rest
            temporary.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise save_error(exc, path, needed) from exc
        raise


def write_atomic(path: str | Path, data: bytes) -> None:
    """`data` at `path`, whole or not at all. SaveError where the disk says no."""
    write_pieces_atomic(path, [data], len(data))


def write_arrays_atomic(path: str | Path, arrays: "Mapping[str, np.ndarray]") -> None:
    """Arrays by name as a compressed .npz. Text of any length goes in as plain text, nothing is pickled."""
    import numpy as np

    plain = {name: rows.astype(np.str_) if rows.dtype.kind == "O" else rows for name, rows in arrays.items()}
    data = io.BytesIO()
    np.savez_compressed(data, **plain)  # type: ignore[arg-type]
    write_atomic(path, data.getvalue())


def canonical_json(obj: Any, *, allow_nan: bool = False) -> bytes:
    """One object, one text: sorted keys, indent 1, UTF-8, a newline at the end. NaN is refused unless allowed."""
    text = json.dumps(obj, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=allow_nan)
    return f"{text}\n".encode()


def write_json_atomic(path: str | Path, obj: Any) -> None:
    """`obj` as canonical JSON at `path`, whole or not at all. SaveError where the disk says no."""
    write_atomic(path, canonical_json(obj))


def sweep_temporaries(folder: str | Path, *, older_than: float = 3600.0) -> None:
    """Remove the temporaries that killed writers left in `folder`: ours by name, and older than so many seconds."""
    before = time.time() - older_than
    for entry in Path(folder).iterdir():
        if _TEMPORARY.fullmatch(entry.name) and entry.is_file() and entry.lstat().st_mtime < before:
            entry.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """The object of a JSON file of ours. DataError naming the file where it is not to be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; it was altered or cut off") from error
