"""How judges are kept: what is written is read, another kind or a damaged file is refused, training happens once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from moyai.errors import CheckpointError
from moyai.evaluation import keeping
from moyai.evaluation.keeping import Trained


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, net = tmp_path / "a" / "net.safetensors", nn.Linear(3, 2)
    keeping.write(path, "oracle", keeping.named(one=net, other=nn.Identity()), {"shape": (1, 2), "words": "ü"})
    tensors, told = keeping.read(path, "oracle", lambda tensors, told: (tensors, told))
    assert told == {"shape": [1, 2], "words": "ü"}
    part = keeping.part(tensors, "one")
    assert {name: v.tolist() for name, v in part.items()} == {n: v.tolist() for n, v in net.state_dict().items()}
    assert keeping.part(tensors, "other") == keeping.part(tensors, "on") == {}


def test_what_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    keeping.write(path, "oracle", {"x": torch.zeros(2)}, {"a": 1})
    with pytest.raises(CheckpointError, match="is not a judge of moyai"):
        keeping.read(path, "judge", lambda tensors, told: 0)
    with pytest.raises(CheckpointError, match="is not an oracle of moyai"):
        keeping.read(path, "oracle", lambda tensors, told: tensors["y"])
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:20], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is not an oracle of moyai"):
            keeping.read(path, "oracle", lambda tensors, told: 0)
    with pytest.raises(CheckpointError, match="is not an oracle"):
        keeping.read(tmp_path / "nothing", "oracle", lambda tensors, told: 0)


def test_places_differ_by_all_that_is_named(tmp_path: Path) -> None:
    places = [keeping.place(tmp_path, *of) for of in ((1, "a"), (1, "b"), (2, "a"), ("a", 1))]
    assert len(set(places)) == 4
    assert keeping.place(tmp_path, 1, "a") == places[0]
    values = np.arange(4)
    assert keeping.array_hash(values, "<i8") == keeping.array_hash(values.astype(np.uint8), "<i8")
    assert keeping.array_hash(values, "<i8") != keeping.array_hash(values[::-1], "<i8")


def test_training_happens_once(tmp_path: Path) -> None:
    path, told = tmp_path / "kept", []

    def training() -> Iterator[Trained[str]]:
        yield Trained(1, 2, 0.5)
        yield Trained(2, 2, 0.25)
        yield Trained(2, 2, 0.25, "net")

    def progress(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    def save(net: str, path: Path) -> None:
        path.write_text(net)

    for _ in range(2):
        assert keeping.found_or_made(path, Path.read_text, save, training, progress, "training") == "net"
    assert told == [("training", 1, 2), ("training", 2, 2)]
    path.unlink()
    with pytest.raises(ValueError, match="training gave no network"):
        keeping.found_or_made(path, Path.read_text, save, lambda: iter([Trained(1, 1, 0.0)]), progress, "training")
    assert not path.exists()


def trained() -> Iterator[Trained[str]]:
    yield Trained(1, 1, 0.5)
    yield Trained(1, 1, 0.5, "net")


def load_sound(path: Path) -> str:
    if path.read_text() == "damaged":
        raise CheckpointError(f"{path} is not an oracle of moyai")
    return path.read_text() + " from the disk"


def save_text(net: str, path: Path) -> None:
    path.write_text(net)


def test_a_damaged_network_is_made_again_and_it_is_said(tmp_path: Path) -> None:
    path, told = tmp_path / "kept", []
    path.write_text("damaged")

    def progress(what: str, done: int, total: int) -> None:
        told.append(what)

    for _ in range(2):
        found = keeping.found_or_made(path, load_sound, save_text, trained, progress, "training")
        assert found == "net from the disk"  # which is what everyone else reads
    assert told == [f"training again, as {path} is damaged"]


def test_a_network_that_another_process_kept_meanwhile_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "kept"

    def training() -> Iterator[Trained[str]]:
        yield Trained(1, 1, 0.5)
        path.write_text("theirs")
        yield Trained(1, 1, 0.5, "mine")

    def progress(what: str, done: int, total: int) -> None: ...

    assert keeping.found_or_made(path, load_sound, save_text, training, progress, "x") == "theirs from the disk"
    assert path.read_text() == "theirs"
