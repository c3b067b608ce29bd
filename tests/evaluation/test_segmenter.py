"""Maps read from pictures: learned where they are there, low for another's map, repeatable, cached; mIoU by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moyai.data.images import ImageSet, SourceFile
from moyai.errors import CheckpointError, DataError
from moyai.evaluation import obedience, segmenter
from moyai.evaluation.obedience import MapAgreement


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def pairs(count: int, seed: int = 0, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A disc (1) and a bar (2) of other brightness on noise: (N, 1, side, side) uint8, and their maps."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    cy, cx = rng.uniform(0.3 * side, 0.7 * side, (2, count, 1, 1))
    maps = (np.hypot(y - cy, x - cx) < side / 5).astype(np.uint8)
    left = rng.integers(0, side - 3, (count, 1, 1))
    maps[(x >= left) & (x < left + 3) & (maps == 0)] = 2
    levels = np.array([60, 150, 220])[maps] + rng.normal(0, 12, maps.shape)
    return np.clip(levels, 0, 255).astype(np.uint8)[:, None], maps


def trained(steps: int = 100, seed: int = 0) -> segmenter.Segmenter:
    *_, last = segmenter.train(*pairs(200), regions=3, seed=seed, steps=steps, batch=8)
    assert last.made is not None
    return last.made


@pytest.fixture(scope="module")
def judge() -> segmenter.Segmenter:
    return trained()


def images(count: int = 40) -> ImageSet:
    pixels, maps = pairs(count)
    names = [str(i) for i in range(count)]
    file = SourceFile("x", 1, "0" * 64)
    return ImageSet(pixels, {"mask": maps}, (), names, (file,), regions=("background", "disc", "bar"))


def test_held_out_maps_are_read_and_those_of_others_are_not(judge: segmenter.Segmenter) -> None:
    pixels, maps = pairs(100, seed=1)
    measure = MapAgreement(judge, "mask")
    (right,) = measure.measure(pixels, maps)
    assert right.value > 0.9
    assert right.metric == "mask mIoU"
    assert (right.count, right.reference, right.source) == (100, 0, judge.source)
    (wrong,) = measure.measure(pixels, np.roll(maps, 1, 0))
    assert wrong.value < 0.5
    assert right.low is not None
    assert wrong.high is not None
    assert wrong.high < right.low <= right.value <= (right.high or 0) <= 1
    moved = np.roll(maps, 3, 2)
    assert measure.measure(pixels, moved)[0].value < right.value - 0.2


def test_miou_by_hand() -> None:
    """Two pictures of four pixels: region 0 has 3 of 6 in common, region 1 has 2 of 5, region 2 is in neither."""
    read = np.array([[[0, 0], [1, 1]], [[0, 1], [0, 0]]])
    asked = np.array([[[0, 1], [1, 1]], [[0, 0], [1, 0]]])
    common, together = segmenter.overlaps(read, asked, 3)
    assert common.tolist() == [[1, 2, 0], [2, 0, 0]]
    assert together.tolist() == [[2, 3, 0], [4, 2, 0]]
    assert segmenter.mean_iou(common, together) == pytest.approx((3 / 6 + 2 / 5) / 2)
    same, all_of = segmenter.overlaps(asked, asked, 3)
    assert segmenter.mean_iou(same, all_of) == 1


def test_the_same_call_gives_the_same_network_and_files_keep_it(judge: segmenter.Segmenter, tmp_path: Path) -> None:
    one, two, other = (trained(2, seed) for seed in (0, 0, 1))
    assert one.source == two.source != other.source
    path = tmp_path / "judge.safetensors"
    segmenter.save(judge, path)
    again = segmenter.load(path)
    assert again.source == judge.source
    pixels = pairs(5)[0]
    np.testing.assert_array_equal(again.read(pixels), judge.read(pixels))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is not a segmenter of moyai"):
        segmenter.load(path)


def test_a_network_is_found_by_all_it_follows_from(tmp_path: Path) -> None:
    pixels, maps = pairs(5)
    plain = segmenter.path_in(tmp_path, pixels, maps, regions=3, seed=1, steps=2)
    assert plain == segmenter.path_in(tmp_path, pixels.copy(), maps.astype(np.int64), regions=3, seed=1, steps=2)
    others = {
        segmenter.path_in(tmp_path, pixels + np.uint8(1), maps, regions=3, seed=1, steps=2),
        segmenter.path_in(tmp_path, pixels, maps[::-1], regions=3, seed=1, steps=2),
        segmenter.path_in(tmp_path, pixels, maps, regions=4, seed=1, steps=2),
        segmenter.path_in(tmp_path, pixels, maps, regions=3, seed=2, steps=2),
        segmenter.path_in(tmp_path, pixels, maps, regions=3, seed=1, steps=3),
    }
    assert len(others | {plain}) == 6


@pytest.mark.parametrize(("size", "square"), [((16, 16), 1), ((33, 20), 2), ((70, 90), 4), ((200, 5), 4)])
def test_every_size_is_read_as_large_as_it_is(size: tuple[int, int], square: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 3, *size)).astype(np.uint8)
    maps = rng.integers(0, 4, (3, *size)).astype(np.uint8)
    *_, last = segmenter.train(pixels, maps, regions=5, seed=0, steps=1)
    assert last.made is not None
    assert last.made.net.square == square
    assert last.made.read(pixels).shape == (3, *size)


def test_a_region_weighs_by_how_rare_it_is() -> None:
    maps = np.zeros((1, 10, 10), np.uint8)
    maps[0, 0, :4] = 1  # 4 of 100 against 96
    weights = segmenter._weights(maps, 3)
    assert weights[1] / weights[0] == pytest.approx((96 / 4) ** 0.5, rel=1e-5)
    assert 0.96 * weights[0] + 0.04 * weights[1] == pytest.approx(1, rel=1e-5)
    assert torch.isfinite(weights).all()  # of a region that is nowhere, too


def test_what_cannot_be_told_is_read_as_the_more_probable() -> None:
    """Maps that have nothing to do with the pictures, a region in 30 of 100 pixels: it weighs more in training, and yet
    it is not read."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 1, 8, 8)).astype(np.uint8)
    maps = (rng.random((200, 8, 8)) < 0.3).astype(np.uint8)
    *_, last = segmenter.train(pixels, maps, regions=2, seed=0, steps=40, batch=32)
    assert last.made is not None
    assert (last.made.read(pixels) == 1).mean() < 0.1


def test_the_judge_is_made_for_maps_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obedience, "SEGMENTER_STEPS", 2)
    data = images()
    said: list[str] = []
    (judge,) = obedience.judges(data, tmp_path, lambda what, done, total: said.append(what)).values()
    assert said == ["training the judge of masks"] * 2
    assert isinstance(judge, MapAgreement)
    assert judge.judge.regions == 3
    again = obedience.judges(data, tmp_path, lambda *progress: pytest.fail("trained again"))["mask"]
    pixels, maps = pairs(20, seed=2)
    assert again.measure(pixels, maps) == judge.measure(pixels, maps)
    empty = ImageSet(data.pixels, {"mask": np.zeros((40, 16, 16), np.uint8)}, (), data.names, data.files)
    assert obedience.judges(empty, tmp_path, silent) == {}


def test_bad_input_in_one_line(judge: segmenter.Segmenter) -> None:
    pixels, maps = pairs(4)
    measure = MapAgreement(judge, "mask")
    for wrong, message in (
        (maps[:3], r"4 pictures of 16 x 16 need maps as large, not \(3, 16, 16\)"),
        (maps[:, :8], r"need maps as large, not \(4, 8, 16\)"),
        (maps + np.uint8(1), "region numbers, 0 to 2, not uint8 up to 3"),
        (maps.astype(np.float32), "region numbers, 0 to 2, not float32"),
    ):
        with pytest.raises(DataError, match=message):
            measure.measure(pixels, wrong)
        with pytest.raises(DataError, match=message):
            next(segmenter.train(pixels, wrong, regions=3, seed=0))
    with pytest.raises(DataError, match="does not take pictures"):
        measure.measure(pixels[:, :, :8], maps[:, :8])
