"""The words of --extractor: read before anything is computed, each mistake one line; our own is trained once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from moyai.data.images import ImageSet, SourceFile
from moyai.errors import DataError, RequestError
from moyai.evaluation import embeddings, extractors, inception, networks
from moyai.evaluation.extractors import Choice


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def images(labels: np.ndarray | None, classes: tuple[str, ...] = tiny.CLASSES) -> ImageSet:
    pixels, _ = tiny.shapes(40)
    fields = {} if labels is None else {"class": labels.astype(np.int64)}
    names = [str(i) for i in range(40)]
    return ImageSet(pixels[:, None], fields, classes, names, (SourceFile("x", 1, "0" * 64),))


def test_what_can_be_said_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights: 1.safetensors"  # a colon in a name is no other word
    file.write_bytes(b"")
    assert extractors.read("own") == Choice("own")
    assert extractors.read(f"inception:{file}") == Choice("inception", file)
    assert extractors.read(f"inception-tf:{file}") == Choice("inception-tf", file)
    assert extractors.read(f"dinov2:{tmp_path}") == Choice("dinov2", tmp_path)
    assert extractors.read(f"clip:{tmp_path}") == Choice("clip", tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("incepton:x", "is unknown; possible: own, inception:FILE.safetensors"),
        ("", "inception:FILE.safetensors, inception-tf:FILE.safetensors, dinov2:FOLDER, clip:FOLDER"),
        ("resnet", "is unknown"),
        ("own:x", "own has no file"),
        ("inception", "does not say where the weights lie; possible: inception:FILE.safetensors"),
        ("dinov2:", "does not say where the weights lie; possible: dinov2:FOLDER"),
        ("inception:/nowhere/x.safetensors", "there is no file /nowhere/x.safetensors"),
        ("clip:/nowhere", "there is no folder /nowhere"),
    ],
)
def test_what_cannot_is_one_line(words: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        extractors.read(words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_each_kind_is_made_by_its_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(inception, "load", lambda path, resize, device: asked.append((resize, path, device)))
    monkeypatch.setattr(embeddings, "load", lambda kind, path, device: asked.append((kind, path, device)))
    for kind in ("inception", "inception-tf", "dinov2", "clip"):
        extractors.make(Choice(kind, tmp_path), images(None), tmp_path, silent)  # type: ignore[arg-type]
    made = ("pytorch-fid", "torch-fidelity", "dinov2", "clip")
    assert asked == [(kind, tmp_path, "cpu") for kind in made]


def test_our_own_is_trained_once_and_found_again(tmp_path: Path) -> None:
    told: list[int] = []
    data = images(np.arange(40) % 3)
    first = extractors.own_extractor(data, tmp_path, lambda what, done, total: told.append(done), steps=4)
    assert told == [1, 2, 3, 4]
    again = extractors.own_extractor(data, tmp_path, lambda *progress: pytest.fail("trained again"), steps=4)
    assert again.source == first.source
    pictures = torch.zeros(1, 1, 8, 8)
    assert again(pictures).equal(first(pictures))
    assert again.probabilities(again(pictures)) is not None


@pytest.mark.parametrize("labels", [np.arange(40) % 3, None])
def test_pictures_are_left_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: np.ndarray | None
) -> None:
    """More of them than memory holds lie in a memory map: a judge is trained on rows of it."""
    data = images(labels).subset(np.arange(30))
    given: list[Any] = []
    for name in ("train_classifier", "train_self_supervised"):
        usual = getattr(networks, name)
        monkeypatch.setattr(networks, name, lambda *a, usual=usual, **k: (given.append(a[0]), usual(*a, **k))[1])
    extractors.own_extractor(data, tmp_path, silent, steps=2)
    assert len(given) == 1
    assert given[0] is data.pixels


def test_one_class_is_no_class_and_an_empty_one_is_named(tmp_path: Path) -> None:
    alone = extractors.own_extractor(images(np.zeros(40), ("disc",)), tmp_path, silent, steps=2)
    unlabelled = extractors.own_extractor(images(None, ()), tmp_path, silent, steps=2)
    assert alone.source == unlabelled.source
    assert alone.source.name.startswith("own self-supervised")
    with pytest.raises(DataError, match="no training picture is of class 'ring'"):
        extractors.own_extractor(images(np.arange(40) % 2 * 2), tmp_path, silent, steps=2)
