"""Published networks, from a folder as transformers saves them: what is in it, and whether it is whole.

A folder holds `config.json` and safetensors, one file or the parts that an index names. Nothing is fetched, no pickle
is read and no code of the folder is run. A network stays as it was published: frozen, in evaluation mode, in float32.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from moyai.errors import CheckpointError

PIECE = 1 << 24  # bytes hashed at once


def read(made: Any, folder: Path, what: str) -> nn.Module:
    """The network of a class of transformers with the weights in a folder, every one of them from its files.

    what: the network's name for messages. CheckpointError where a file or a tensor is missing or broken.
    """
    weight_files(folder)
    try:
        with silent():
            net, told = made.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read as {what}: {first_line(error)}") from error
    missing = sorted(str(name) for name in told["missing_keys"])
    if missing or told["mismatched_keys"]:
        misshapen = sorted(str(name[0]) for name in told["mismatched_keys"])
        raise CheckpointError(f"{folder} is not a whole {what} model", missing=missing, misshapen=misshapen)
    whole: nn.Module = net
    return whole.float().eval().requires_grad_(False)


@contextmanager
def silent() -> Iterator[None]:
    """transformers draws bars and prints tables while it loads; what matters of them is an error above."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder, one or the parts that an index names. CheckpointError where none is."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(read_object(index)["weight_map"].values()))]
        except (KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} names no files of weights") from error
    pickled = [name for name in ("pytorch_model.bin", "model.bin") if (folder / name).exists()]
    more = f"; {pickled[0]} is a pickle, which moyai does not read" if pickled else ""
    raise CheckpointError(f"{folder} has no model.safetensors{more}")


def sha256(files: Iterable[Path]) -> str:
    """Hex sha256 over the content of the files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. CheckpointError where it is not there or holds none."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}; possible: a folder as published for transformers")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(told, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return told


def first_line(error: Exception) -> str:
    """The first line of another library's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
