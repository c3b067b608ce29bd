"""Checkpoints that exist whole or not at all: committing, finding, keeping and clearing away.

The protocol, in the order that lets nothing be lost:

1. everything is written into `.staging-<name>-<uuid>` beside its final place, each file forced to the disk;
2. `MANIFEST.json` (see manifest.py) is written last, and the folder forced to the disk;
3. the folder is renamed to its final name, in one go, and the parent folder forced to the disk;
4. only then may an older one be deleted: renamed to `.trash-<uuid>` first, so that half of it never looks like one.

A checkpoint replaced by another of its name is first renamed to `.aside-<name>-<uuid>`; readers find it there until the
new one has its name. A kill at any point leaves the old state or the new, and what it leaves over is removed by `sweep`
at the next start. Nothing is ever deleted that was not committed here: folders with another name than their manifest
says (copies by hand), with files nobody listed, or without a sound manifest are left alone.
"""

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from moyai.checkpoints.manifest import MANIFEST, SAFE_NAME, Content, inspect, manifest_text, read, verify
from moyai.checkpoints.tensors import check_finite, encode, tensors_digest
from moyai.errors import CheckpointError, SaveError
from moyai.files import Bytes, canonical_json, free_bytes, save_error, sync_folder, write_pieces

__all__ = [
    "Checkpoint", "commit", "inspect", "listed", "newest", "prune", "read", "step_name", "sweep", "tensors_digest",
    "verify",
]  # fmt: skip

Fault = Callable[[str], None]
_STEP = re.compile(r"step-(\d{6,})")
_LEFTOVER = re.compile(r"\.(staging|trash)(-.+)?-[0-9a-f]{32}")
_ASIDE = re.compile(r"\.aside-(.+)-[0-9a-f]{32}")
ROOM = 1 << 16  # bytes for the manifest and the folders themselves


@dataclass(frozen=True)
class Checkpoint:
    """A committed folder and what its manifest says."""

    path: Path
    step: int
    manifest: dict[str, Any]


@dataclass(frozen=True)
class _File:
    """One file to be written: its bytes come piece by piece, and only once."""

    name: str
    key: str
    kind: str
    size: int
    pieces: Iterator[Bytes]
    tensors: int | None = None


def no_fault(point: str) -> None:
    """Tests put a kill in its place: it is called with the name of every point at which a commit may end."""


def step_name(step: int) -> str:
    """The folder name of a step: `step-000123`."""
    return f"step-{step:06d}"


# Committing ------------------------------------------------------------------------------------------------------


def commit(
    parent: str | Path,
    name: str,
    contents: Mapping[str, Content],
    info: Mapping[str, Any],
    *,
    finite: Collection[str] = (),
    fault: Fault = no_fault,
) -> Path:
    """Write the folder `parent/name` whole, or leave everything as it was.

    `contents`: tensors by name become `<key>.safetensors`, JSON objects `<key>.json`, and bytes a file called `key`.
    `info`: what the manifest says beside the files (the step, the seed, ...). `finite`: keys of tensors that must
    hold no NaN and no infinity. SaveError where the disk says no; the checkpoints that exist are not touched by it.
    """
    home = Path(parent) / name
    if not SAFE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a checkpoint's name; possible: letters, digits, dot, dash, underscore")
    info = dict(info)
    if (match := _STEP.fullmatch(name)) and info.setdefault("step", int(match[1])) != int(match[1]):
        raise ValueError(f"checkpoint {name} cannot hold step {info['step']}")
    for key in finite:
        check_finite(contents[key], f"{home} was not written: {key}")  # type: ignore[arg-type]
    files = _files(contents)
    needed = sum(file.size for file in files) + ROOM
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        free = free_bytes(home.parent)
        if free is not None and free < needed:
            raise SaveError(f"cannot save {home}: no space left; needed: {needed:,} bytes, free: {free:,} bytes")
        with _staging(home) as staging:
            _write(staging, name, files, info, fault)
            _move_in(staging, home, fault)
    except OSError as exc:
        raise save_error(exc, home, needed) from exc
    return home


def _files(contents: Mapping[str, Content]) -> list[_File]:
    files = []
    for key, content in contents.items():
        if isinstance(content, bytes):
            files.append(_File(key, key, "bytes", len(content), iter([content])))
        elif content and all(isinstance(value, Tensor) for value in content.values()):
            size, pieces = encode(content)
            files.append(_File(_suffixed(key, ".safetensors"), key, "tensors", size, pieces, len(content)))
        elif any(isinstance(value, Tensor) for value in content.values()):
            raise TypeError(f"{key!r} mixes tensors and other values")
        else:
            text = canonical_json(dict(content), allow_nan=True)  # a loss may be infinite, and is read back by us
            files.append(_File(_suffixed(key, ".json"), key, "json", len(text), iter([text])))
    names = [file.name.casefold() for file in files]
    bad = [file.name for file in files if not SAFE_NAME.fullmatch(file.name) or names.count(file.name.casefold()) > 1]
    if bad or MANIFEST.casefold() in names:
        raise ValueError(f"these cannot be files of one checkpoint: {', '.join(bad) or MANIFEST}")
    return files


def _suffixed(key: str, suffix: str) -> str:
    return key if key.endswith(suffix) else key + suffix


@contextlib.contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """A folder to write in, which is gone when anything goes wrong."""
    staging = home.parent / f".staging-{home.name}-{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # the first error is the one to tell; `sweep` does the rest
        raise


def _write(staging: Path, name: str, files: list[_File], info: Mapping[str, Any], fault: Fault) -> None:
    entries = {}
    for file in files:
        digest = hashlib.sha256()

        def seen(file: _File = file, update: Callable[[Bytes], None] = digest.update) -> Iterator[Bytes]:
            for piece in file.pieces:
                update(piece)
                yield piece
                fault(f"inside {file.name}")

        fault(f"before {file.name}")
        write_pieces(staging / file.name, seen())
        fault(f"after {file.name}")
        entry = {"key": file.key, "kind": file.kind, "size": file.size, "sha256": digest.hexdigest()}
        entries[file.name] = entry if file.tensors is None else entry | {"tensors": file.tensors}
    fault("before the manifest")
    write_pieces(staging / MANIFEST, [manifest_text(name, entries, info)[1]])
    fault("after the manifest")
    sync_folder(staging)
    fault("after the fsync of the folder")


def _move_in(staging: Path, home: Path, fault: Fault) -> None:
    """Give the finished folder its name; what had the name before is put aside and deleted last."""
    aside = None
    if os.path.lexists(home):
        # What is not provably ours keeps existing, under a name that can be seen.
        ours = _ours(home, home.name) is not None
        pattern = f".aside-{home.name}-{{}}" if ours else f"{home.name}.replaced-{{}}"
        aside = home.parent / pattern.format(uuid.uuid4().hex)
        fault("before putting the old one aside")
        os.rename(home, aside)
    try:
        fault("before the rename")
        os.rename(staging, home)
    except BaseException:
        if aside is not None:
            os.rename(aside, home)
        raise
    fault("after the rename")
    sync_folder(home.parent)
    fault("after the fsync of the parent")
    if aside is not None and _ASIDE.fullmatch(aside.name):
        _delete(aside, fault)


# Finding ---------------------------------------------------------------------------------------------------------


def listed(parent: str | Path) -> list[Checkpoint]:
    """The checkpoints of steps whose manifest is sound and whose files have their sizes, by step."""
    found = []
    for step, path, name in _candidates(Path(parent)):
        manifest = _ours(path, name)
        if manifest is not None:
            found.append(Checkpoint(path, step, manifest))
    return found


def newest(
    parent: str | Path, *, strict: bool = False, on_skip: Callable[[str], None] | None = None
) -> Checkpoint | None:
    """The newest checkpoint of a step of which every byte is as it was written; None where there is none.

    A broken one is skipped, with a sentence to `on_skip` that names the file and the reason; `strict` raises instead.
    """
    for step, path, name in reversed(_candidates(Path(parent))):
        try:
            manifest = verify(path)
            _named(path, name, manifest)
            return Checkpoint(path, step, manifest)
        except CheckpointError as exc:
            if strict:
                raise
            if on_skip is not None:
                on_skip(f"skipped a broken checkpoint: {exc}")
    return None


def _candidates(parent: Path) -> list[tuple[int, Path, str]]:
    """(step, folder, the name it should have) of all folders that look like a step's, by step.

    One that was put aside counts where nothing has its name: the commit that was to replace it was killed.
    """
    found = []
    try:
        paths = list(parent.iterdir()) if parent.is_dir() else []
    except OSError as exc:
        raise CheckpointError(f"{parent}: cannot be read: {exc.strerror}") from exc
    for path in paths:
        aside = _ASIDE.fullmatch(path.name)
        name = aside[1] if aside else path.name
        match = _STEP.fullmatch(name)
        if match and path.is_dir() and not (aside and os.path.lexists(parent / name)):
            found.append((int(match[1]), path, name))
    return sorted(found)


def _named(path: Path, name: str, manifest: Mapping[str, Any]) -> None:
    match = _STEP.fullmatch(name)
    if manifest["name"] != name or (match and manifest["info"].get("step") != int(match[1])):
        raise CheckpointError(f"{path}: is a copy of {manifest['name']!r} under another name")


def _ours(path: Path, name: str) -> dict[str, Any] | None:
    """The manifest, where the folder is one that `commit` made under this name and nobody changed since."""
    if path.is_symlink() or not path.is_dir():
        return None
    try:
        manifest = inspect(path)
        _named(path, name, manifest)
    except CheckpointError:
        return None
    return manifest


# Clearing away ---------------------------------------------------------------------------------------------------


def prune(parent: str | Path, keep: int, protect: Collection[int] = (), *, fault: Fault = no_fault) -> None:
    """Delete the oldest checkpoints of steps, so that the `keep` newest remain, and those of the steps in `protect`.

    Whoever goes on from an older step than the newest protects the step it has just written.
    """
    if keep < 1:
        raise ValueError(f"prune must keep at least one checkpoint, not {keep}")
    free = [checkpoint for checkpoint in listed(parent) if checkpoint.step not in protect]
    for checkpoint in free[:-keep]:
        if _STEP.fullmatch(checkpoint.path.name):  # one that was put aside is left to `sweep`
            try:
                _delete(checkpoint.path, fault)
            except OSError as exc:
                raise SaveError(f"cannot delete the old checkpoint {checkpoint.path}: {exc.strerror}") from exc


def _delete(path: Path, fault: Fault) -> None:
    trash = path.parent / f".trash-{uuid.uuid4().hex}"
    fault("before the delete")
    os.rename(path, trash)
    fault("inside the delete")
    sync_folder(path.parent)
    for file in sorted(trash.iterdir()):
        if not file.is_dir():
            file.unlink()
        fault("inside the delete")
    shutil.rmtree(trash)
    fault("after the delete")


def sweep(parent: str | Path) -> None:
    """Remove what killed commits and deletions left, and give back its name to what a killed replacement put aside.

    For the start of a run that holds the folder's lock: a commit under way in another process would be swept too.
    """
    parent = Path(parent)
    if not parent.is_dir():
        return
    try:
        for path in sorted(parent.iterdir()):
            if path.is_symlink() or not path.is_dir():
                continue
            aside = _ASIDE.fullmatch(path.name)
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)
            elif aside and not os.path.lexists(parent / aside[1]):
                os.rename(path, parent / aside[1])
            elif aside and _ours(parent / aside[1], aside[1]) is not None:
                shutil.rmtree(path)
        sync_folder(parent)
    except OSError as exc:
        raise SaveError(f"cannot clear away leftovers in {parent}: {exc.strerror}") from exc
