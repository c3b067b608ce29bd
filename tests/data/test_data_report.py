"""Facts and findings are those of a set made by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from moyai.data.images import BadFile, ImageSet, SourceFile
from moyai.data.report import lines, report


def made() -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(3, 250, (60, 3, 4, 5), np.uint8)
    pixels[7] = pixels[5]
    pixels[9] = pixels[5]
    labels = np.array([0] * 55 + [1] * 4 + [3])
    return ImageSet(
        pixels,
        names=[f"n{i}" for i in range(60)],
        files=(SourceFile("a", 1, "x"),),
        fields={"class": labels},
        classes=("many", "few", "none", "one"),
        bad=(BadFile("broken.png", "damaged"),),
        notes=("a note",),
        sizes=np.c_[np.arange(60) + 1, np.full(60, 9)],
    )


def test_facts_and_findings() -> None:
    images = made()
    validation = np.array([0, 1, 55])
    train = np.setdiff1d(np.arange(60), validation)
    found = report(images, train, validation)
    assert (found.count, found.train, found.validation, found.shape, found.bits) == (60, 57, 3, (3, 4, 5), 8)
    assert [(c.name, c.train, c.validation) for c in found.classes] == [
        ("many", 53, 2),
        ("few", 3, 1),
        ("none", 0, 0),
        ("one", 1, 0),
    ]
    scaled = images.pixels[np.arange(60)] / 255
    assert found.mean == pytest.approx(scaled.mean((0, 2, 3)))
    assert found.std == pytest.approx(scaled.std((0, 2, 3)))
    assert (found.low, found.high) == (int(np.asarray(images.pixels).min()), int(np.asarray(images.pixels).max()))
    assert found.sizes == {"min": (1, 9), "median": (30, 9), "max": (60, 9)}
    assert found.duplicates == (("n5", "n7", "n9"),)
    assert found.unreadable == (("broken.png", "damaged"),)
    text = "\n".join(found.warnings)
    for part in (
        "60 pictures are few",
        "1 class with no readable picture: none",
        "1 class with one picture only: one",
        "class many has 55 pictures, class one 1",
        "2 pictures are exact duplicates",
        "broken.png: damaged",
        "3 pictures are held out",
    ):
        assert part in text
    assert json.loads(json.dumps(found.as_json()))["classes"][1] == {"name": "few", "train": 3, "validation": 1}


def test_nothing_is_said_where_nothing_is_odd() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (200, 1, 4, 4), np.uint16)
    images = ImageSet(pixels, {}, (), [str(i) for i in range(200)], (SourceFile("a", 1, "x"),))
    found = report(images, np.arange(180), np.arange(180, 200))
    assert found.warnings == ()
    assert found.classes == ()
    assert found.mean == pytest.approx([pixels.mean() / 65535])
    assert found.cases is None


def test_cases_are_counted_by_side_with_their_slices_and_positions() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 4, 4), np.uint8)
    pixels[10] = pixels[3]
    number = np.array([0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 3, 4])
    images = ImageSet(
        pixels,
        names=[f"n{i}" for i in range(12)],
        files=(SourceFile("a", 1, "x"),),
        fields={"slice": number, "position": (number / 8).astype(np.float32)},
        classes=(),
        groups=np.array([7, 7, 7, 7, 7, 7, 3, 3, 3, 3, 5, 5]),
        held_out=np.arange(12) >= 10,
    )
    train, validation = np.arange(10), np.arange(10, 12)
    found = report(images, train, validation)
    said = "3 cases: 2 to train on, 1 held out; 2 to 6 pictures each, median 4; slices 0 to 5, positions 0.00 to 0.62"
    assert said in list(lines(found))
    assert json.loads(json.dumps(found.as_json()))["cases"]["samples"] == [2, 4, 6]
    assert "1 held-out pictures equal one that is trained on (first: n10)" in found.warnings
    hashed = report(replace(images, held_out=None), train, validation)
    assert not any("equal one that is trained on" in warning for warning in hashed.warnings)
    with pytest.raises(ValueError, match="a group is on both sides"):
        report(images, train[:-1], np.arange(9, 12))
