"""What lies in a folder or a .zip: the picture files by name, and texts that may tell of them, measured but not read.

Nothing here opens what is not a regular file: a FIFO would wait for ever, a device might never end. A .zip is read in
place and never unpacked; its members are measured by its directory first. Names are relative, with forward slashes, in
the order of their code points, so that a folder and a .zip of it list the same.
"""

import os
import stat
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

from moyai.data.decode import MAX_BYTES, UnreadablePicture
from moyai.data.images import BadFile
from moyai.errors import DataError

PICTURES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif")
)
REFUSED = frozenset(  # pictures to a person, and so named in the report rather than passed over
    (".eps", ".ps", ".svg", ".pdf", ".heic", ".heif", ".jp2", ".psd", ".ico", ".tga", ".ppm", ".pgm", ".exr", ".hdr",
     ".cr2", ".nef", ".dng")
)  # fmt: skip
TEXTS = frozenset((".txt", ".caption", ".csv", ".tsv", ".jsonl"))  # captions and tables
NAMED = PICTURES | REFUSED | TEXTS
MAX_RATIO = 200  # a .zip that says it holds more than this many times its size ...
MAX_UNPACKED = 2**30  # ... and more than this many bytes is a bomb
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Entry:
    """A file: its name, its size, and how to get its bytes."""

    name: str
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Listing:
    """The picture files of a folder, those that cannot be read, and how many files are not pictures.

    texts: files that are captions or tables by their name; they are counted among the others.
    """

    entries: tuple[Entry, ...]
    bad: tuple[BadFile, ...]
    others: int
    texts: tuple[Entry, ...] = ()


def contents(entry: Entry) -> bytes:
    """The bytes of a file; UnreadablePicture says why they cannot be had."""
    try:
        return entry.read()
    except Exception as error:
        # The operating system, zip's checksum and its decompressors each have errors of their own.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadablePicture(f"cannot be read: {reason}") from error


@contextmanager
def listing(root: Path) -> Iterator[Listing]:
    """The pictures in a folder or a .zip; entries can be read while the block runs."""
    if root.is_dir():
        yield _sorted(_folder(root))
    elif root.is_file() and zipfile.is_zipfile(root):
        try:
            with zipfile.ZipFile(root) as archive:
                yield _sorted(_archive(archive, root))
        except zipfile.BadZipFile as error:
            raise DataError(f"{root} is not a whole .zip: {error}") from error
    elif root.exists():
        raise DataError(f"{root} is neither a folder nor a .zip of pictures")
    else:
        raise DataError(f"{root} does not exist: give a folder or a .zip of pictures")


def in_order(function: Callable[[A], B], items: Sequence[A]) -> Iterator[tuple[A, B]]:
    """function(item) for each item in order, by several threads, with few results waiting.

    Many items are handed out by the handful: for small files a hand-over costs as much as the work.
    """
    workers = min(8, os.cpu_count() or 1)
    handful = min(32, 1 + len(items) // 256)
    rest = iter([items[start : start + handful] for start in range(0, len(items), handful)])
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Sequence[A], Future[list[B]]]] = deque()
        try:
            while True:
                for some in islice(rest, 2 * workers - len(waiting)):
                    waiting.append((some, pool.submit(lambda some=some: [function(item) for item in some])))  # type: ignore[misc]
                if not waiting:
                    return
                some, future = waiting.popleft()
                yield from zip(some, future.result(), strict=True)
        finally:
            for _, future in waiting:
                future.cancel()


def unreadable(file: BadFile) -> Entry:
    """A file that cannot be read, for where that matters only once it is asked for."""
    return Entry(file.name, 0, partial(_fail, file.reason))


def _fail(reason: str) -> bytes:
    raise OSError(reason)


def _sorted(found: Iterable[Entry | BadFile | None]) -> Listing:
    items = list(found)
    named = sorted((item for item in items if item is not None), key=lambda item: item.name)
    pictures = [item for item in named if suffix(item.name) not in TEXTS]
    texts = [item for item in named if suffix(item.name) in TEXTS]
    return Listing(
        tuple(item for item in pictures if isinstance(item, Entry)),
        tuple(item for item in pictures if isinstance(item, BadFile)),
        len(items) - len(pictures),
        tuple(unreadable(item) if isinstance(item, BadFile) else item for item in texts),
    )


def suffix(name: str) -> str:
    """The end of a file's name in lower case, such as ".png"."""
    return PurePosixPath(name).suffix.lower()


def stem(name: str) -> str:
    """A file's name with its folders and without its end: what a picture, its caption and its mask share."""
    return str(PurePosixPath(name).with_suffix(""))


def some(names: Sequence[str]) -> str:
    """The first names and how many more, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shown(name: str) -> str:
    """A name that any terminal and any JSON can hold, where the file system's bytes are not text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _folder(root: Path) -> Iterator[Entry | BadFile | None]:
    """Every file below a folder that is not hidden; None for one that is neither picture nor text."""
    seen: set[tuple[int, int]] = set()  # folders by device and inode: links may lead in circles
    waiting = [(root, "")]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as found:
                items = sorted(found, key=lambda item: item.name)
        except OSError as error:
            yield BadFile(_shown(prefix) or ".", f"the folder cannot be read: {error.strerror}")
            continue
        for item in items:
            if item.name.startswith(".") or item.name == "__MACOSX":
                continue
            if item.is_dir() and suffix(item.name) not in PICTURES | REFUSED:
                waiting.append((Path(item.path), f"{prefix}{item.name}/"))
            else:
                yield _file(Path(item.path), _shown(prefix + item.name)) if suffix(item.name) in NAMED else None


def _file(path: Path, name: str) -> Entry | BadFile:
    """A file as an entry, or why it is none."""
    try:
        status = path.stat()
    except OSError as error:
        broken = path.is_symlink()
        return BadFile(name, "a link to nothing" if broken else f"cannot be read: {error.strerror}")
    if stat.S_ISDIR(status.st_mode):
        return BadFile(name, "a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):
        return BadFile(name, "not a regular file")
    if status.st_size > MAX_BYTES:
        return BadFile(name, f"{status.st_size / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20}")
    return Entry(name, status.st_size, lambda: _read_regular(path))


def _read_regular(path: Path) -> bytes:
    """The bytes of a file that was regular when listed; it may have become something else since."""
    # Opening a FIFO without O_NONBLOCK waits until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "no longer a regular file")
        return file.read(MAX_BYTES + 1)


def _archive(archive: zipfile.ZipFile, root: Path) -> Iterator[Entry | BadFile | None]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    _measure(members, root)
    kept = [m for m in members if not any(p.startswith(".") or p == "__MACOSX" for p in m.filename.split("/"))]
    prefix = _wrapping([m.filename for m in kept if suffix(m.filename) in PICTURES | REFUSED])
    for member in kept:
        name = _shown(member.filename[len(prefix) :] if member.filename.startswith(prefix) else member.filename)
        if suffix(name) not in NAMED:
            yield None
        elif stat.S_ISLNK(member.external_attr >> 16):
            yield BadFile(name, "a link, not a picture")
        elif member.file_size > MAX_BYTES:
            yield BadFile(name, f"{member.file_size / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20}")
        else:
            yield Entry(name, member.file_size, lambda member=member: archive.read(member))  # type: ignore[misc]


def _measure(members: list[zipfile.ZipInfo], root: Path) -> None:
    """Refuses an archive that is a trick: names that lead outside, twice the same, encrypted, a bomb."""
    size = root.stat().st_size
    unpacked = sum(member.file_size for member in members)
    if sum(member.compress_size for member in members) > size or unpacked > max(MAX_UNPACKED, MAX_RATIO * size):
        raise DataError(f"{root} is refused: {size} bytes that say they hold {unpacked}")
    names = set()
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in member.orig_filename:
            raise DataError(f"{root} is refused: it holds a file named {_shown(member.filename)!r}")
        if member.filename in names:
            raise DataError(f"{root} is refused: it holds {_shown(member.filename)!r} twice")
        names.add(member.filename)
        if member.flag_bits & 1:
            raise DataError(f"{root} is encrypted ({_shown(member.filename)!r}): make a .zip without a password")


def _wrapping(names: list[str]) -> str:
    """The folder a .zip of a folder has around everything: 'pets/' of pets/cat/1.png and pets/dog/2.png.

    A folder with pictures directly in it is a class and no wrapping.
    """
    prefix = ""
    while names:
        heads = {name[len(prefix) :].split("/")[0] for name in names}
        inside = [name[len(prefix) :].split("/") for name in names]
        if len(heads) > 1 or any(len(parts) < 3 for parts in inside):
            return prefix
        prefix += f"{heads.pop()}/"
    return prefix
