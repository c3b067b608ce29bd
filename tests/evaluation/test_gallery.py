"""The sheets show the pictures they say: read back cell by cell, in the order of an independent search."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moyai.errors import DataError, RequestError
from moyai.evaluation import gallery, memorization
from moyai.evaluation.values import Features, Source

SOURCE = Source("tiny", "d" * 64, 4)


def flat(greys: list[int], side: int = 8, channels: int = 1) -> np.ndarray:
    """Pictures of one grey each, by which a cell is recognised: (N, H, W, C) uint8."""
    return np.broadcast_to(np.array(greys, np.uint8)[:, None, None, None], (len(greys), side, side, channels)).copy()


def planes(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def cells(sheet: Image.Image, rows: int, columns: int, side: int = 80, gap: int = 2) -> np.ndarray:
    """The grey at the middle of each cell, (rows, columns); the cells end six pixels from the right and the bottom."""
    pixels = np.asarray(sheet.convert("L"))
    bottom, right = pixels.shape[0] - 6, pixels.shape[1] - 6
    ys = [bottom - (rows - 1 - i) * (side + gap) - side // 2 for i in range(rows)]
    xs = [right - (columns - 1 - j) * (side + gap) - side // 2 for j in range(columns)]
    return pixels[np.ix_(ys, xs)].astype(int)


def features(values: list[float]) -> Features:
    return Features(torch.tensor(values, dtype=torch.float32)[:, None] * torch.ones(1, 4), SOURCE)


def test_the_nearest_ten_stand_above_their_training_pictures_nearest_first() -> None:
    rng = np.random.default_rng(0)
    training, samples, held_out = rng.permutation(200)[:40], rng.permutation(250)[:25], rng.permutation(200)[:30]
    found = memorization.in_pixels(planes(flat(samples)), planes(flat(training)), planes(flat(held_out)))
    sheet = gallery.worst(found, flat(samples), planes(flat(training)))
    shown = cells(sheet, 2, 10)
    distance = np.abs(samples[:, None].astype(int) - training[None].astype(int))
    assert np.abs(shown[0] - shown[1]).tolist() == np.sort(distance.min(1))[:10].tolist()
    assert len(set(shown[0].tolist()) & set(samples.tolist())) == 10
    assert set(shown[1].tolist()) <= set(training.tolist())


def test_the_label_holds_the_distance_and_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, list[str]] = {}

    def grid(images: np.ndarray, **settings: list[str]) -> Image.Image:
        said.update(settings)
        return Image.new("L", (1, 1))

    monkeypatch.setattr(gallery.pictures, "grid", grid)
    samples, training = flat([10, 200, 90]), flat([10, 93, 150])
    found = memorization.in_pixels(planes(samples), planes(training), planes(flat([100, 97, 160])))
    gallery.worst(found, samples, planes(training))
    border = f"border {found.border:.3g}"
    assert said["column_labels"] == [f"distance {d}, {border}" for d in ("0", "3", "50")]
    assert list(said["row_labels"]) == ["sample", "training picture"]
    gallery.neighbours(features([1.0, 3000.0]), features([0.5, 1.25, 9.0]), samples[:2], planes(training))
    assert said["column_labels"] == ["distance 0.5", "distance 5,982"]  # over four equal features a step is double
    assert list(said["row_labels"]) == ["sample", "nearest", "second", "third"]


def test_neighbours_are_the_five_nearest_of_samples_spread_over_the_request() -> None:
    rng = np.random.default_rng(1)
    greys, places = rng.permutation(200)[:30], rng.standard_normal(30)
    mine, at = rng.permutation(200)[:20], rng.standard_normal(20)
    sheet = gallery.neighbours(features(at.tolist()), features(places.tolist()), flat(mine), planes(flat(greys)))
    shown = cells(sheet, 6, 8)
    chosen = [int(i * 19 / 7) for i in range(8)]  # both ends, and evenly between
    assert shown[0].tolist() == mine[chosen].tolist()
    for column, sample in enumerate(chosen):
        nearest = np.argsort(np.abs(places - at[sample]))[:5]
        assert shown[1:, column].tolist() == greys[nearest].tolist()


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (8, 3), (96, 1), (168, 3), (250, 1)])
def test_pictures_of_any_size_fit_the_page_and_keep_their_greys(side: int, channels: int) -> None:
    samples, training = flat([50, 60, 80], side, channels), planes(flat([51, 62, 77], side, channels))
    found = memorization.in_pixels(planes(samples), training, planes(flat([90, 100], side, channels)))
    sheet = gallery.worst(found, samples, training)
    assert sheet.width < 3 * gallery.LARGEST + 200
    cell = {8: 80, 96: 96, 168: 168, 250: 168}[side]
    assert cells(sheet, 2, 3, cell).tolist() == [[50, 60, 80], [51, 62, 77]]


def test_large_pictures_are_averaged_and_keep_sixteen_bits() -> None:
    image = np.zeros((1, 400, 200, 1), np.uint16)
    image[:, ::2] = 60000  # stripes of one pixel: their mean is 30000
    small = gallery._smaller(image, 200)
    assert small.shape == (1, 200, 100, 1)
    assert small.dtype == np.uint16
    assert (small == 30000).all()


def test_all_sheets_are_written_into_the_run(tmp_path: Path) -> None:
    samples, training = flat([10, 200, 90]), flat([10, 93, 150])
    found = memorization.in_pixels(planes(samples), planes(training), planes(flat([100, 97])))
    both = {"features": found, "pixels": found}
    paths = gallery.write(
        tmp_path, both, samples, planes(training), features([1.0, 2.0, 3.0]), features([1.0, 2.0, 3.0])
    )
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "evaluation/worst.png",
        "evaluation/worst-in-pixels.png",
        "evaluation/neighbours.png",
    ]
    for path in paths[:2]:
        with Image.open(path) as written:
            assert cells(written, 2, 3).tolist() == [[10, 90, 200], [10, 93, 150]]


def test_pictures_that_were_not_measured_are_refused() -> None:
    samples, training = flat([10, 200, 90]), planes(flat([10, 93, 150]))
    found = memorization.in_pixels(planes(samples), training, planes(flat([100, 97])))
    with pytest.raises(DataError, match="2 samples and 3 training pictures are not what was measured: 3 samples"):
        gallery.worst(found, samples[:2], training)
    with pytest.raises(RequestError, match="cannot be compared"):
        gallery.worst(found, samples, planes(flat([1, 2, 3], side=9)))
    with pytest.raises(DataError, match="and 2 training pictures"):
        gallery.neighbours(features([1.0, 2.0, 3.0]), features([1.0, 2.0]), samples, training)
    other = Features(torch.zeros(3, 4), Source("another", "e" * 64, 4))
    with pytest.raises(RequestError, match="make both with one extractor"):
        gallery.neighbours(features([1.0, 2.0, 3.0]), other, samples, training)
