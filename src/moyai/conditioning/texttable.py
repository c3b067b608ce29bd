"""Captions' embeddings by row: each different caption is encoded once, and kept.

Many at once, as of a data set, go to a file, `texts/<hash>.npy` in the cache, named by the hash of the captions and of
all else that they follow from; it is read as a memory map, so that a set may be larger than memory. Few, as of a
request, stay in memory. `<hash>.json` is written last: without it the .npy is not used.

On an accelerator a table that is not too large lies there whole: a training step that had to ask the host for its
captions would wait for all that is queued before it.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from moyai.files import Bytes, save_error, sweep_temporaries, write_json_atomic, write_pieces_atomic

Progress = Callable[[int, int], None]  # (captions encoded, captions to encode)
FEW = 64  # captions that are quicker encoded than kept
PLACED = 2**31  # bytes of a table that is copied to an accelerator
AT_ONCE = 1024  # rows of them
STALE = 24 * 3600.0  # seconds after which a temporary file is a leftover of a killed process


@dataclass(frozen=True)
class Encoded:
    """Embeddings of captions."""

    embeddings: np.ndarray  # (N, L, width) float16
    counts: np.ndarray  # (N,) int64, how many of the L entries are the caption's


class Encodes(Protocol):
    """What the table asks of an encoder."""

    @property
    def key(self) -> str:
        """What else than the captions the embeddings follow from."""

    @property
    def shape(self) -> tuple[int, int]:
        """(L, width)."""

    def __call__(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """The captions in pieces, in order."""

    def release(self) -> None:
        """It is not needed for now."""


class TextTable:
    """Rows of embeddings, in parts in the order they were asked for. A copy of a module shares it."""

    def __init__(self, encoder: Encodes, cache: Path | None) -> None:
        self.encoder, self.cache = encoder, cache
        self._rows: dict[str, int] = {}
        self._parts: list[Encoded] = []
        self._ends: list[int] = []  # of each part, in rows
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __deepcopy__(self, memo: object) -> "TextTable":
        return self

    def rows_of(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """The row of each caption, (N,) int64; those that are new are encoded, which `progress` counts."""
        new = sorted({text for text in texts if text not in self._rows})
        if new:
            self._add(new, progress)
        return np.array([self._rows[text] for text in texts], dtype=np.int64)

    def get(self, rows: np.ndarray) -> Encoded:
        """Rows (B,) of the table."""
        embeddings = np.empty((len(rows), *self.encoder.shape), np.float16)
        counts = np.empty(len(rows), np.int64)
        parts = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(parts):
            part, here = self._parts[number], parts == number
            at = rows[here] - (self._ends[number] - len(part.counts))
            embeddings[here], counts[here] = part.embeddings[at], part.counts[at]
        return Encoded(embeddings, counts)

    def placed(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """All rows as tensors there, (N, L, width) float16 and (N,) int64; None where they take too much room.

        They are copied when they are first asked for, and again when there are more of them.
        """
        rows = self._ends[-1] if self._ends else 0
        size = 2 * rows * int(np.prod(self.encoder.shape))
        if size > PLACED:
            self._placed.clear()
            return None
        if device not in self._placed or len(self._placed[device][1]) < rows:
            self._placed.pop(device, None)  # before there are two
            embeddings = torch.empty(rows, *self.encoder.shape, dtype=torch.float16, device=device)
            counts = torch.empty(rows, dtype=torch.int64, device=device)
            for start in range(0, rows, AT_ONCE):
                found = self.get(np.arange(start, min(start + AT_ONCE, rows)))
                embeddings[start : start + AT_ONCE] = torch.from_numpy(found.embeddings).to(device)
                counts[start : start + AT_ONCE] = torch.from_numpy(found.counts).to(device)
            self._placed[device] = embeddings, counts
        return self._placed[device]

    def _add(self, new: list[str], progress: Progress | None) -> None:
        if self.cache is None or len(new) <= FEW:
            part = _joined(list(self._encoded(new, progress)))
        else:  # with the empty caption, the null, so that what a run needs is in one file
            new = sorted({"", *new})
            part = self._kept(self.cache, new, progress)
        first = self._ends[-1] if self._ends else 0
        for row, text in enumerate(new, first):
            self._rows.setdefault(text, row)
        self._parts.append(part)
        self._ends.append(first + len(new))

    def _encoded(self, texts: list[str], progress: Progress | None) -> Iterator[Encoded]:
        """The captions in pieces, in order, counted."""
        done = 0
        for piece in self.encoder(texts):
            done += len(piece.counts)
            if progress:
                progress(done, len(texts))
            yield piece

    def _kept(self, cache: Path, texts: list[str], progress: Progress | None) -> Encoded:
        """The captions from the file of an earlier run, or encoded into it."""
        path = cache / "texts" / f"{_hash(self.encoder.key, texts)}.npy"
        shape = (len(texts), *self.encoder.shape)
        found = _read(path, shape)
        if found is None:
            self._write(path, shape, texts, progress)
            self.encoder.release()
            found = _read(path, shape)
        if found is None:
            raise save_error(OSError("it was altered while it was written"), path, 0)
        return found

    def _write(self, path: Path, shape: tuple[int, ...], texts: list[str], progress: Progress | None) -> None:
        counts: list[int] = []

        def pieces() -> Iterator[Bytes]:
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "<f2", "fortran_order": False, "shape": shape})
            yield head.getvalue()
            for piece in self._encoded(texts, progress):
                counts.extend(int(count) for count in piece.counts)
                yield piece.embeddings.astype("<f2").tobytes()

        needed = int(np.prod(shape)) * 2
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(path.parent, older_than=STALE)
        except OSError as error:
            raise save_error(error, path, needed) from error
        write_pieces_atomic(path, pieces(), needed)
        write_json_atomic(path.with_suffix(".json"), {"counts": counts})


def _read(path: Path, shape: tuple[int, ...]) -> Encoded | None:
    """What an earlier run left, where it is whole."""
    facts = path.with_suffix(".json")
    if not (facts.is_file() and path.is_file()):
        return None
    try:
        counts = np.array(json.loads(facts.read_text(encoding="utf-8"))["counts"], dtype=np.int64)
        embeddings = np.load(path, mmap_mode="r", allow_pickle=False)  # ValueError where it is too short
    except (ValueError, KeyError, TypeError):
        return None  # damaged: it is made again, and replaced
    whole = embeddings.shape == shape and embeddings.dtype == np.float16 and counts.shape == shape[:1]
    return Encoded(embeddings, counts) if whole else None


def _joined(pieces: Sequence[Encoded]) -> Encoded:
    return Encoded(
        np.concatenate([piece.embeddings for piece in pieces]), np.concatenate([piece.counts for piece in pieces])
    )


def _hash(key: str, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(key.encode())
    for text in texts:
        written = text.encode()
        digest.update(f"\n{len(written)}\n".encode() + written)
    return digest.hexdigest()
