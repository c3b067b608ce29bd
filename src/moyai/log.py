"""The log of a stage: one JSON object a line, in the order of the steps, without gap or double.

`{"step": 40, "train": {...}, "time": {...}}` every `log_every` steps, `{"step": 100, "validation": {...}}`,
`{"step": 7, "event": "..."}`. Everything but `time` is a function of (recipe, seed, step). A resumed run cuts the log
back to its checkpoint's step first, so that what is done again is written once.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from moyai.errors import DataError
from moyai.files import save_error, write_atomic

Line = dict[str, Any]


class Mirror(Protocol):
    """Something else that wants every line."""

    def write(self, line: Line) -> None: ...
    def close(self) -> None: ...


class Log:
    """Appends lines to a file; each is with the operating system before the call returns. SaveError where the disk
    says no."""

    def __init__(self, path: Path, *, step: int) -> None:
        """step: the checkpoint's step; later lines of an earlier attempt are cut off. DataError as `read`."""
        self.path = path
        kept = [line for line in read(path) if line["step"] <= step]
        write_atomic(path, "".join(_text(line) for line in kept).encode())
        self._waiting = 0  # bytes that were not forced to the disk yet
        with self._saving():
            self._file = path.open("ab", buffering=0)  # what the disk refused is not tried again when closing
        self.also: Mirror | None = None

    def write(self, line: Line) -> None:
        left = memoryview(_text(line).encode())
        self._waiting += len(left)
        with self._saving():
            while left:  # the system may take less than it was given
                left = left[self._file.write(left) :]
            if self.also is not None:
                self.also.write(line)

    def close(self) -> None:
        """Also brings the lines to the disk, before a checkpoint that they belong to is committed."""
        with self._saving():
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()
                if self.also is not None:
                    self.also.close()

    def sync(self) -> None:
        with self._saving():
            os.fsync(self._file.fileno())
        self._waiting = 0

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """What the system says against it, as SaveError."""
        try:
            yield
        except OSError as error:
            raise save_error(error, self.path, self._waiting) from error


def read(path: Path) -> Iterator[Line]:
    """The lines of a log; a last line cut off by a kill is left out. DataError names any other that is none."""
    if not path.is_file():
        return
    try:
        texts = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            line = None
        if not _is_line(line):
            raise DataError(f"{path}: line {number} is none of a log; it was altered; possible: to remove that line")
        yield line


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    return all(isinstance(line.get(kind, {}), dict) for kind in ("train", "validation"))


def series(path: Path, kind: str, name: str) -> tuple[list[int], list[float]]:
    """The steps and values of one quantity: series(path, "train", "loss")."""
    lines = [line for line in read(path) if name in line.get(kind, {})]
    return [line["step"] for line in lines], [line[kind][name] for line in lines]


def names(path: Path, kind: str) -> list[str]:
    """The quantities a log has of a kind."""
    return list(dict.fromkeys(name for line in read(path) for name in line.get(kind, {})))


def _text(line: Line) -> str:
    return json.dumps(line, allow_nan=True) + "\n"
