"""Where decoded pixels are kept: small sets in memory, large ones as one .npy in the cache, found again by its key.

The key is the hash of the source files and of the options they were decoded with. The pixels are written row by row;
since files that fail leave no row, their number is known at the end, and the header of the .npy (whose length does not
depend on it) is written again. `<key>.json` is written last and says what else is known: without it the .npy is not
used.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from moyai.data.images import BadFile, SourceFile
from moyai.data.locate import written_beside
from moyai.errors import SaveError
from moyai.files import write_json_atomic


@dataclass(frozen=True)
class Decoded:
    """The pixels of a set, the files that failed on the way, and how many colour profiles could not be read."""

    pixels: np.ndarray  # (N, C, H, W)
    bad: tuple[BadFile, ...]
    profiles: int


class Rows:
    """Rows gathered one by one, in memory or in a file."""

    def __init__(self, count: int, shape: tuple[int, ...], dtype: np.dtype, file: IO[bytes] | None) -> None:
        self.count, self.shape, self.dtype, self.file = 0, shape, dtype, file
        self.pixels = np.empty((count if file is None else 0, *shape), dtype)
        self.done: Decoded | None = None
        self._header(count)

    def append(self, row: np.ndarray) -> None:
        if self.file is None:
            self.pixels[self.count] = row
        else:
            self.file.write(np.ascontiguousarray(row, dtype=self.dtype).data)
        self.count += 1

    def finish(self, bad: tuple[BadFile, ...], profiles: int) -> None:
        """All rows are there; without this call nothing is kept."""
        self._header(self.count)
        self.done = Decoded(self.pixels[: self.count], bad, profiles)

    def _header(self, count: int) -> None:
        if self.file is not None:
            self.file.seek(0)
            # numpy leaves room for the first number to grow, so that the header keeps its length.
            descr, shape = np.lib.format.dtype_to_descr(self.dtype), (count, *self.shape)
            head = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self.file, head)


class Store:
    """The place of one decoded set."""

    def __init__(self, cache: Path, options: str, files: Sequence[SourceFile], in_memory: int) -> None:
        digest = hashlib.sha256(options.encode())
        for file in files:
            digest.update(f"{file.name}\0{file.size}\0{file.sha256}\n".encode())
        self.path = cache / "pictures" / f"{digest.hexdigest()}.npy"
        self.in_memory = in_memory

    def find(self) -> Decoded | None:
        """What an earlier run left, where it is whole."""
        facts = self.path.with_suffix(".json")
        if not (facts.is_file() and self.path.is_file()):
            return None
        try:
            known = json.loads(facts.read_text())
            pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)  # ValueError where it is too short
            return Decoded(pixels, tuple(BadFile(**file) for file in known["bad"]), known["profiles"])
        except (ValueError, KeyError, TypeError):
            return None  # damaged: it is made again, and replaced

    def decoded(self, rows: Rows) -> Decoded:
        """What the rows became once their block has ended."""
        found = rows.done if rows.file is None else self.find()
        if found is None:
            raise SaveError(f"{self.path} was written but is not there as written: was the cache cleared meanwhile?")
        return found

    @contextmanager
    def rows(self, count: int, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[Rows]:
        """Rows to be filled; what they hold in a file is committed when the block ends well."""
        needed = count * math.prod(shape) * dtype.itemsize
        if needed <= self.in_memory:
            yield Rows(count, shape, dtype, None)
            return
        facts = self.path.with_suffix(".json")
        with written_beside(self.path, needed) as temporary:
            with temporary.open("wb") as file:
                rows = Rows(count, shape, dtype, file)
                yield rows
            if rows.done is None:
                raise ValueError("rows were not finished")
            facts.unlink(missing_ok=True)
        known = {"profiles": rows.done.profiles, "bad": [vars(file) for file in rows.done.bad]}
        write_json_atomic(facts, known)
