"""The log of a stage: one JSON object a line, in the order of the steps, without gap or double.

`{"step": 40, "train": {...}, "time": {...}}` every `log_every` steps, `{"step": 100, "validation": {...}}`,
`{"step": 7, "event": "..."}`. Everything but `time` is a function of (recipe, seed, step). A resumed run cuts the log
back to its checkpoint's step first, so that what is done again is written once.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from moyai.files import write_atomic

Line = dict[str, Any]


class Mirror(Protocol):
    """Something else that wants every line."""

    def write(self, line: Line) -> None: ...
    def close(self) -> None: ...


class Log:
    """Appends lines to a file; each is with the operating system before the call returns."""

    def __init__(self, path: Path, *, step: int) -> None:
        """step: the checkpoint's step; later lines of an earlier attempt are cut off."""
        self.path = path
        kept = [line for line in read(path) if line["step"] <= step]
        write_atomic(path, "".join(_text(line) for line in kept).encode())
        self._file = path.open("ab")
        self.also: Mirror | None = None

    def write(self, line: Line) -> None:
        self._file.write(_text(line).encode())
        self._file.flush()
        if self.also is not None:
            self.also.write(line)

    def close(self) -> None:
        """Also brings the lines to the disk, before a checkpoint that they belong to is committed."""
        self.sync()
        self._file.close()
        if self.also is not None:
            self.also.close()

    def sync(self) -> None:
        os.fsync(self._file.fileno())


def read(path: Path) -> Iterator[Line]:
    """The lines of a log; a last line cut off by a kill is left out."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
        yield json.loads(text)


def series(path: Path, kind: str, name: str) -> tuple[list[int], list[float]]:
    """The steps and values of one quantity: series(path, "train", "loss")."""
    lines = [line for line in read(path) if name in line.get(kind, {})]
    return [line["step"] for line in lines], [line[kind][name] for line in lines]


def names(path: Path, kind: str) -> list[str]:
    """The quantities a log has of a kind."""
    return list(dict.fromkeys(name for line in read(path) for name in line.get(kind, {})))


def _text(line: Line) -> str:
    return json.dumps(line, allow_nan=True) + "\n"
