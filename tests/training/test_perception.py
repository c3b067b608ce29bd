"""The run's own perceptual network: trained once, kept, found again, never read into memory as a whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from moyai.data.images import ImageSet, PixelRows, SourceFile
from moyai.errors import CheckpointError, DataError
from moyai.evaluation import networks
from moyai.firststage.config import ObjectiveConfig
from moyai.training.perception import perception

OWN = ObjectiveConfig.model_validate({"perceptual": {"kind": "own", "steps": 3}})


def pictures(count: int = 12, side: int = 8, kind: type = np.uint8, classes: int = 0) -> ImageSet:
    shown, _ = tiny.shapes(count, side)
    pixels = shown[:, None].astype(kind) * (257 if kind is np.uint16 else 1)
    fields = {"class": np.arange(count, dtype=np.int64) % classes} if classes else {}
    names = tuple(str(i) for i in range(classes))
    return ImageSet(pixels, fields, names, [str(i) for i in range(count)], (SourceFile("a", 1, "0" * 64),))


def distance(judge: torch.nn.Module | None, side: int = 8) -> torch.Tensor:
    assert judge is not None
    x, y = (torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (0, 1))
    found: torch.Tensor = judge(x, y)
    return found


@pytest.mark.parametrize("classes", [0, 1, 3])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_it_is_trained_once_and_found_again(
    classes: int, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "first_stage" / "perceptual.safetensors", list[int]()
    images = pictures(kind=kind, classes=classes)
    first = perception(OWN, images, 0, path, lambda what, done, total: told.append(done))
    assert told[-1] == 3
    assert sorted(p.name for p in path.parent.iterdir()) == ["perceptual.safetensors"]
    assert first is not None
    assert not any(p.requires_grad for p in first.parameters())
    other = perception(OWN, images, 1, tmp_path / "other.safetensors")
    assert not distance(other).equal(distance(first))  # the seed is the run's
    same = perception(OWN, images, 0, tmp_path / "same.safetensors")
    assert distance(same).equal(distance(first))

    def again(*args: Any, **words: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(networks, "perceptual_trunk", again)
    assert distance(perception(OWN, images, 0, path)).equal(distance(first))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError):
        perception(OWN, images, 0, path)


def test_it_is_not_the_judge_of_the_same_seed(tmp_path: Path) -> None:
    """Whoever was optimised against is no judge."""
    images = pictures(classes=3)
    perception(OWN, images, 0, tmp_path / "own.safetensors")
    mine = networks.load(tmp_path / "own.safetensors")
    judges = list(networks.train_classifier(np.asarray(images.pixels), images.fields["class"], seed=0, steps=3))
    made = judges[-1].made
    assert made is not None
    assert not torch.equal(next(mine.trunk.parameters()), next(made.trunk.parameters()))


def test_a_stop_in_its_training_leaves_nothing_behind(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    path = tmp_path / "perceptual.safetensors"
    with pytest.raises(Stopped):
        perception(OWN, pictures(), 0, path, stop)
    assert list(tmp_path.iterdir()) == []
    straight = perception(OWN, pictures(), 0, tmp_path / "straight.safetensors")
    assert distance(perception(OWN, pictures(), 0, path)).equal(distance(straight))


def test_large_pictures_are_never_in_memory_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    rows = PixelRows.__getitem__

    def counted(self: PixelRows, index: Any) -> np.ndarray:
        found = rows(self, index)
        asked.append(found.nbytes)
        return found

    images = pictures(count=16, side=80)
    subset = images.subset(np.arange(16))
    monkeypatch.setattr(PixelRows, "__getitem__", counted)
    monkeypatch.setattr(PixelRows, "__array__", lambda *args, **words: pytest.fail("all at once"))
    made = perception(OWN, subset, 0, tmp_path / "a.safetensors")
    assert max(asked) == 80 * 80
    plain = perception(OWN, images, 0, tmp_path / "b.safetensors")
    assert distance(made, 80).equal(distance(plain, 80))


def test_too_few_pictures_are_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 training pictures are too few for a perceptual network .* takes 4") as said:
        perception(OWN, pictures(count=3), 0, tmp_path / "first_stage" / "a.safetensors")
    assert "\n" not in str(said.value)
    assert list(tmp_path.iterdir()) == []
    assert perception(OWN, pictures(count=4), 0, tmp_path / "a.safetensors") is not None


@pytest.mark.parametrize("told", [None, {"kind": "discriminator"}])
def test_without_a_network_of_its_own_there_is_none(told: dict[str, Any] | None, tmp_path: Path) -> None:
    assert perception(ObjectiveConfig.model_validate({"perceptual": told}), pictures(), 0, tmp_path / "a") is None
    assert list(tmp_path.iterdir()) == []
