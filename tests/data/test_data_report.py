"""Facts and findings are those of a set made by hand."""

import json

import numpy as np
import pytest

from moyai.data.images import BadFile, ImageSet, SourceFile
from moyai.data.report import report


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
