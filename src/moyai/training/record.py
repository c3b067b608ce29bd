"""What a run's folder remembers: what was begun and finished, with which recipe and data, and how long it took.

Everything here is read and written through the folder, so that a run that was cut off anywhere is found as it is.
"""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moyai.checkpoints import native
from moyai.data.images import ImageSet, SourceFile, difference
from moyai.errors import ConfigError, DataError, RequestError
from moyai.files import read_json, write_atomic, write_json_atomic
from moyai.recipe import reading
from moyai.recipe.model import Recipe

# What each stage's result depends on, and the keys under these that do not matter to it.
DEPENDS = {
    "first_stage": ("seed", "data", "first_stage"),
    "prior": ("seed", "data", "first_stage", "codec", "prior"),
    "decoder": ("seed", "data", "first_stage", "decoder"),
}
FREE_KEYS = (
    "root",
    "name",
    "download",
    "bad_files",
    "max_bad",
    "log_every",
    "validate_every",
    "save_every",
    "preview_every",
    "keep",
    "patience",
    "epochs",
    "tensorboard",
)


class Record:
    """A run's folder and its memory."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder where it is not there; RequestError where that cannot be."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"{folder} cannot be made ({error.strerror}); possible: another --out") from error

    def begun(self, stage: str) -> bool:
        return any((self.folder / stage / "checkpoints").glob("step-*")) or (self.folder / stage / "model").is_dir()

    def finished(self, stage: str) -> bool:
        if not (self.folder / stage / "model").is_dir():
            return False
        native.verify(self.folder / stage / "model")
        return True

    def needs(self, *parts: str) -> None:
        for part in parts:
            found = self.folder / part
            if not ((found / "model").is_dir() or (found / "MANIFEST.json").is_file() or self.begun(part)):
                raise RequestError(f"{self.folder} has no {part} yet; `moyai train` without --stage makes it")

    def check_unchanged(self, stage: str, recipe: Recipe) -> None:
        """A stage goes on only as it was begun."""
        path = self.folder / stage / "recipe.json"
        if path.is_file() and self.begun(stage):
            before = reading.load(path)
            differ = [
                row
                for row in reading.difference(before, recipe, DEPENDS[stage])
                if row[0].rsplit(".", 1)[-1] not in FREE_KEYS
            ]
            if differ:
                table = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, old, new in differ)
                raise ConfigError(
                    f"{self.folder}: {stage} was begun with other values; possible: the old ones, or another --out\n"
                    f"{table}"
                )

    def data_change(self, images: ImageSet, *, allowed: bool) -> str:
        """How the data differ from those the run was begun with, "" where they do not; refused unless allowed."""
        path = self.folder / "data.json"
        if not path.is_file():
            return ""
        saved = read_json(path)
        if not isinstance(saved, dict) or not {"fingerprint", "files"} <= saved.keys():
            raise DataError(f"{path} does not hold the data the run was begun with; it was altered")
        if saved["fingerprint"] == images.fingerprint:
            return ""
        first = difference([SourceFile(*row) for row in saved["files"]], images.files) or "it is decoded differently"
        if not allowed:
            raise DataError(
                f"{self.folder} was begun with other data: {first}; possible: the data as they were, another --out, "
                "or --allow-data-change"
            )
        return first

    def keep_data(self, data: dict[str, Any], change: str) -> None:
        """Once nothing stands against going on with these data, they are the run's."""
        history = self.folder / "data-changes.txt"
        if change:
            before = history.read_bytes() if history.is_file() else b""
            write_atomic(history, before + f"{change}\n".encode("utf-8", "backslashreplace"))
        write_json_atomic(self.folder / "data.json", data)

    def keep_command(self, command: str) -> None:
        path, text = self.folder / "command.txt", f"{command}\n".encode("utf-8", "surrogateescape")
        if not path.is_file() or path.read_bytes() != text:
            write_atomic(path, text)

    def command(self) -> list[str]:
        """The words that the run was begun by, as far as it knows them."""
        path = self.folder / "command.txt"
        return shlex.split(path.read_bytes().decode("utf-8", "surrogateescape")) if path.is_file() else []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds within to the run's record, also where they end early."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            times = self.times()
            times[name] = times.get(name, 0.0) + time.perf_counter() - begin
            write_json_atomic(self.folder / "times.json", times)

    def times(self) -> dict[str, float]:
        path = self.folder / "times.json"
        found = read_json(path) if path.is_file() else {}
        if not isinstance(found, dict):
            raise DataError(f"{path} holds no table of times; it was altered; possible: to remove it")
        return found
