"""A number read from pictures: learned where it is there, repeatable, cached; and what obedience makes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moyai.data.images import ImageSet, SourceFile
from moyai.errors import CheckpointError, DataError
from moyai.evaluation import fitting, obedience, regressor
from moyai.evaluation.networks import Trunk
from moyai.evaluation.obedience import NumberError, PositionError


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def slices(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Discs whose radius is their position, on noise: (N, 1, 16, 16) uint8 and (N,) from 0 to 1."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0, 1, count)
    y, x = np.mgrid[:16, :16] - 7.5
    inside = np.hypot(y, x)[None] < 2 + 5 * positions[:, None, None]
    return (40 + 160 * inside + rng.integers(0, 40, (count, 16, 16))).astype(np.uint8)[:, None], positions


def trained(steps: int = 120, seed: int = 0) -> regressor.Regressor:
    pixels, positions = slices(300)
    *_, last = regressor.train(pixels, positions, field="position", seed=seed, steps=steps, batch=32)
    assert last.made is not None
    return last.made


@pytest.fixture(scope="module")
def judge() -> regressor.Regressor:
    return trained()


def images(**fields: np.ndarray) -> ImageSet:
    pixels, _ = slices(60)
    return ImageSet(pixels, fields, (), [str(i) for i in range(60)], (SourceFile("x", 1, "0" * 64),))


def test_the_error_is_the_mean_difference_in_slices(judge: regressor.Regressor, tmp_path: Path) -> None:
    pixels, positions = slices(80, seed=1)
    measure = PositionError(judge, tmp_path)
    read = judge.read(judge(torch.from_numpy(pixels).float() / 127.5 - 1))
    (found,) = measure.measure(pixels, positions)
    each = np.abs(read - positions) * 31
    assert found.value == pytest.approx(each.mean(), abs=1e-4)
    assert found.error == pytest.approx(each.std(ddof=1) / np.sqrt(80), abs=1e-4)
    assert found.metric == "position error (slices of 31)"
    assert (found.count, found.reference, found.source) == (80, 0, judge.source)


def test_it_reads_what_is_there_and_disobedience_shows(judge: regressor.Regressor, tmp_path: Path) -> None:
    pixels, positions = slices(80, seed=1)
    measure = PositionError(judge, tmp_path)
    right = measure.measure(pixels, positions)[0].value
    guess = 31 * np.abs(positions - np.median(positions)).mean()  # the best that can be said without looking
    assert right < guess / 3
    assert measure.measure(pixels, 1 - positions)[0].value > 2 * right
    shifted = np.clip(positions + 0.3, 0, 1)
    assert measure.measure(pixels, shifted)[0].value > 2 * right


def test_the_same_call_gives_the_same_network_and_files_keep_it(judge: regressor.Regressor, tmp_path: Path) -> None:
    one, two, other = (trained(3, seed) for seed in (0, 0, 1))
    assert one.source == two.source != other.source
    path = tmp_path / "judge.safetensors"
    regressor.save(judge, path)
    again = regressor.load(path)
    pixels = torch.from_numpy(slices(5)[0]).float() / 127.5 - 1
    assert again.source == judge.source
    np.testing.assert_array_equal(again.read(again(pixels)), judge.read(judge(pixels)))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is not a regressor of moyai"):
        regressor.load(path)


def test_large_pictures_are_seen_small_and_the_name_says_so() -> None:
    x = torch.randn(2, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    mean = x.reshape(2, 3, 64, 2, 48, 2).mean((3, 5))
    squares = torch.stack([mean[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 2).flatten(1, 2)
    torch.testing.assert_close(fitting.seen(x), squares)
    assert fitting.seen(x[:, :, :32, :28]).equal(x[:, :, :32, :28])
    assert fitting.seen(x[:, :, :33, :28]).shape == (2, 12, 17, 14)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 128, 96), np.uint8)
    *_, end = regressor.train(pixels, np.arange(8.0), field="age", seed=0, steps=1, batch=4)
    assert end.made is not None
    assert end.made.source.name == "own regressor of age, 128 x 96 x 1, averaged over 2 x 2, of stored integers"
    assert end.made.trunk.channels == 4


def test_units_do_not_matter() -> None:
    """Numbers on another scale give the same network, read back on that scale."""
    pixels, positions = slices(100)
    *_, plain = regressor.train(pixels, positions, field="x", seed=0, steps=5)
    *_, scaled = regressor.train(pixels, 1000 * positions - 300, field="x", seed=0, steps=5)
    assert plain.made is not None
    assert scaled.made is not None
    shown = torch.from_numpy(pixels[:9]).float() / 127.5 - 1
    found, wanted = scaled.made.read(scaled.made(shown)), plain.made.read(plain.made(shown))
    np.testing.assert_allclose(found, 1000 * wanted - 300, rtol=0, atol=0.05)


def test_judges_are_made_for_the_fields_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obedience, "STEPS", 3)
    _, positions = slices(60)
    assert obedience.judges(images(), tmp_path, silent) == {}
    assert obedience.judges(images(position=np.full(60, 0.5)), tmp_path, silent) == {}  # nothing to obey
    data = images(position=positions, slice=np.arange(60))
    assert list(obedience.judges(data, tmp_path, silent)) == ["position", "slice"]
    made = obedience.judges(data, tmp_path, silent, fields=("position", "class"))
    assert list(made) == ["position"]  # what nobody asks for has no judge
    again = obedience.judges(data, tmp_path, lambda *progress: pytest.fail("trained again"))["position"]
    pixels = np.asarray(data.pixels)
    assert again.measure(pixels, positions) == made["position"].measure(pixels, positions)


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_any_field_of_numbers_has_a_judge_in_its_own_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[np.generic]
) -> None:
    """Ages from 20 to 90, whole or not, are read to a few years."""
    monkeypatch.setattr(obedience, "STEPS", 120)
    pixels, positions = slices(300)
    names = [str(i) for i in range(300)]
    data = ImageSet(pixels, {"age": (20 + 70 * positions).astype(kind)}, (), names, ())
    made = obedience.judges(data, tmp_path, silent)
    assert isinstance(made["age"], NumberError)
    shown, held_out = slices(80, seed=1)
    ages = 20 + 70 * held_out
    (found,) = made["age"].measure(shown, ages)
    assert found.metric == "age error"
    guess = np.abs(ages - np.median(ages)).mean()
    assert 0 < found.value < guess / 3
    (off,) = made["age"].measure(shown, ages + 1000)
    assert off.value == pytest.approx(1000, abs=guess)
    with pytest.raises(DataError, match="1 values of age asked for are not finite"):
        made["age"].measure(shown, np.where(np.arange(80) == 3, np.nan, ages))
    with pytest.raises(DataError, match="80 pictures need as many values of age"):
        made["age"].measure(shown, ages[1:])


def test_bad_input_in_one_line(judge: regressor.Regressor, tmp_path: Path) -> None:
    pixels, positions = slices(10)
    measure = PositionError(judge, tmp_path)
    with pytest.raises(DataError, match=r"10 pictures need as many values of position, not \(9,\)"):
        measure.measure(pixels, positions[:9])
    with pytest.raises(DataError, match="positions are fractions, 0 to 1, not"):
        measure.measure(pixels, positions * 31)
    with pytest.raises(DataError, match="does not take pictures"):
        measure.measure(pixels[:, :, :8], positions)
    for wrong, message in (
        (positions[:9], r"need as many values of position"),
        (np.full(10, 2.0), "position is 2 in all pictures"),
        (np.full(10, np.nan), "10 of 10 values of position are not finite"),
    ):
        with pytest.raises(DataError, match=message):
            next(regressor.train(pixels, wrong, field="position", seed=0))
    assert isinstance(judge.trunk, Trunk)
