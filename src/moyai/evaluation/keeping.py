"""Networks that judge are trained once: how one is written, read, found again, and made where there is none.

A file is one safetensors file with the weights under `part.name` and, in its metadata, a JSON object under the kind of
network. Its name is the hash of all that the network follows from, so whoever asks for the same gets the same.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from moyai.errors import CheckpointError
from moyai.evaluation.features import make_folder
from moyai.files import write_atomic
from moyai.nets.trunk import Trunk

Network = TypeVar("Network")
Shape = tuple[int, int, int]  # channels, height, width of the pictures a network was trained on
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trained(Generic[Network]):
    """A step of training: its number, of how many, its loss; what was trained with the last one."""

    step: int
    steps: int
    loss: float
    made: Network | None = None


def named(**parts: nn.Module) -> dict[str, Tensor]:
    """All weights of some modules, by `part.name`."""
    return {f"{part}.{name}": v for part, module in parts.items() for name, v in module.state_dict().items()}


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one of the modules that `named` was given."""
    return {key.removeprefix(f"{name}."): v for key, v in tensors.items() if key.startswith(f"{name}.")}


def write(path: Path, kind: str, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    """Weights, and what has to be known beside them as JSON has it, in one file: whole or not at all."""
    whole = {name: values.cpu().contiguous() for name, values in tensors.items()}
    data = safetensors.torch.save(whole, {kind: json.dumps(told)})
    make_folder(path.parent, len(data))
    write_atomic(path, data)


def read(path: Path, kind: str, make: Callable[[dict[str, Tensor], dict[str, Any]], Network]) -> Network:
    """What `make` builds of what `write` was given; CheckpointError for any other file."""
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return make(tensors, json.loads(head["__metadata__"][kind]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        article = "an" if kind[0] in "aeiou" else "a"
        raise CheckpointError(f"{path} is not {article} {kind} of moyai: {error}") from error


def read_trunk(
    path: Path, kind: str, make: Callable[[Trunk, nn.Linear | None, Shape, Mapping[str, Any]], Network]
) -> Network:
    """What `make` builds of the "trunk" that a file holds, the linear layer "head" that reads its features where
    there is one, the shape (C, H, W) of its pictures, and all that is told. CheckpointError for any other file."""

    def whole(tensors: dict[str, Tensor], told: dict[str, Any]) -> Network:
        channels, height, width = (int(n) for n in told["shape"])
        stem = tensors["trunk.stages.0.weight"]  # (width, channels, 3, 3)
        trunk, head = Trunk(stem.shape[1], len(stem)), None
        trunk.load_state_dict(part(tensors, "trunk"))
        if "head.weight" in tensors:
            weight = tensors["head.weight"]
            head = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype)
            head.load_state_dict(part(tensors, "head"))
        return make(trunk, head, (channels, height, width), told)

    return read(path, kind, whole)


def place(cache: Path, *follows_from: object) -> Path:
    """Where the network that follows from these is kept: the name is their hash."""
    key = hashlib.sha256(" ".join(str(thing) for thing in follows_from).encode()).hexdigest()
    return cache / "extractors" / f"{key[:32]}.safetensors"


def array_hash(values: np.ndarray, dtype: str) -> str:
    """sha256 of an array's values, as a dtype that is the same on every machine."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype=dtype).data).hexdigest()


def found_or_made(
    path: Path,
    load: Callable[[Path], Network],
    save: Callable[[Network, Path], None],
    training: Callable[[], Iterator[Trained[Network]]],
    progress: Progress,
    what: str,
) -> Network:
    """The network kept at `path`, or else the one that `training` ends with, which is then kept there.

    A damaged file is made again, and `progress` is told so. Another process may have kept its own meanwhile: its
    network is taken then, so that all judge by the one on the disk.
    """
    kept = _whole(path, load)
    if kept is not None:
        return kept
    told = f"{what} again, as {path} is damaged" if path.is_file() else what
    for state in training():
        if state.made is not None:
            kept = _whole(path, load)
            if kept is not None:
                return kept
            save(state.made, path)
            return load(path)
        progress(told, state.step, state.steps)
    raise ValueError(f"{what} gave no network")


def _whole(path: Path, load: Callable[[Path], Network]) -> Network | None:
    """The network kept at `path`; None where there is none, or what lies there is damaged."""
    if not path.is_file():
        return None
    try:
        return load(path)
    except CheckpointError:
        return None
