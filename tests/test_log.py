"""The log of a stage: lines cut back and cut off, lines that are none, and a disk that takes no more."""

import json
import os
from pathlib import Path

import pytest

from moyai import log
from moyai.errors import DataError, SaveError

LINES = [{"step": step, "train": {"loss": 1 / step}} for step in (2, 4, 6)]


def written(path: Path) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return path


def test_lines_are_cut_back_to_the_checkpoint_and_go_on(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl")
    with path.open("a") as file:
        file.write('{"step": 8, "tra')  # cut off by a kill
    assert list(log.read(path)) == LINES
    assert list(log.read(tmp_path / "none")) == []
    again = log.Log(path, step=4)
    again.write({"step": 6, "event": "\u00e9"})
    assert list(log.read(path)) == [*LINES[:2], {"step": 6, "event": "\u00e9"}]  # before it is closed
    again.close()
    assert log.series(path, "train", "loss") == ([2, 4], [0.5, 0.25])
    assert log.names(path, "train") == ["loss"]


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"",
        b"[]",
        b"3",
        b"{}",
        b'{"step": "2"}',
        b'{"step": 2, "train": 3}',
        b'{"step": 2, "validation": null}',
        b'{"step": 2, "event": "\xff"}',
        b"\0" * 8,
        b"[" * 100_000,
    ],
)
def test_a_line_that_is_none_is_named(bad: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl")
    first, second, third, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, second, bad, third, b""]))
    before = path.read_bytes()
    for reading in (
        lambda: list(log.read(path)),
        lambda: log.series(path, "train", "loss"),
        lambda: log.names(path, "train"),
        lambda: log.Log(path, step=4),
    ):
        with pytest.raises(DataError, match=r"log\.jsonl: line 3 is none of a log"):
            reading()
    assert path.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl")
    closed = []

    class Mirror:
        def write(self, line: log.Line) -> None: ...
        def close(self) -> None:
            closed.append(True)

    full = log.Log(path, step=6)
    full.also = Mirror()
    full.write({"step": 8})
    handle = os.open("/dev/full", os.O_WRONLY)
    os.dup2(handle, full._file.fileno())
    os.close(handle)
    with pytest.raises(SaveError, match=r"cannot save .*log\.jsonl: No space left on device; needed: \d\d bytes"):
        full.write({"step": 10})
    for bring in (full.sync, full.close):  # this device cannot be synchronised either
        with pytest.raises(SaveError, match=r"cannot save .*log\.jsonl"):
            bring()
    assert full._file.closed
    assert closed == [True]
    assert list(log.read(path)) == [*LINES, {"step": 8}]
