"""The memorisation report names copies, clears fresh samples, and keeps groups apart."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from moyai.errors import DataError, RequestError
from moyai.evaluation.memorization import expected_by_chance, in_features, in_pixels, most_by_chance, rank
from moyai.evaluation.rows import Searched, copies
from moyai.evaluation.values import Features, Source


def features(values: torch.Tensor, name: str = "tiny") -> Features:
    return Features(values.float(), Source(name, "d" * 64, values.shape[1]))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(seed: int, count: int, side: int = 6) -> np.ndarray:
    """Smooth random pictures: no two are near each other."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 220, (count, 1, 2, 2)).repeat(side // 2, 2).repeat(side // 2, 3)
    return (coarse + rng.integers(-10, 10, coarse.shape)).astype(np.uint8)


def test_fresh_samples_are_cleared_and_about_one_in_a_hundred_is_close() -> None:
    found = in_features(features(normal(0, 2000, 5)), features(normal(1, 1000, 5)), features(normal(2, 2000, 5)))
    assert 0.002 < found.close.value < 0.025
    assert found.close.warning == ""
    assert len(found.flagged) == round(found.close.value * 2000)


@pytest.mark.parametrize("power", [0.5, 1, 4])  # how steep the distribution is at its lower end
@pytest.mark.parametrize("held_out", [100, 150, 263, 2000])
def test_honest_samples_are_seldom_accused(held_out: int, power: float) -> None:
    rng, samples, redraws = np.random.default_rng(held_out), 500, 1500
    most, close = most_by_chance(samples, held_out), []
    for _ in range(redraws):
        border = np.percentile(rng.random(held_out) ** power, 1)
        close.append(int((rng.random(samples) ** power <= border).sum()))
    assert 0.008 < np.mean(np.array(close) > most) < 0.04  # 0.025, with an error of 0.004
    assert np.mean(close) / samples == pytest.approx(expected_by_chance(held_out), rel=0.12)


@pytest.mark.parametrize(("samples", "held_out"), [(1, 2), (200, 100), (2000, 263), (50_000, 10_000)])
def test_what_chance_explains_is_scipys_beta_binomial(samples: int, held_out: int) -> None:
    for within in (None, 2.0, 0.8 * held_out):
        k = rank(held_out) if within is None else within
        law = scipy.stats.betabinom(samples, k, held_out + 1 - k)
        assert most_by_chance(samples, held_out, within) == law.ppf(0.975)
        assert expected_by_chance(held_out, within) == pytest.approx(law.mean() / samples)


def test_the_rank_of_the_border_is_that_of_the_percentile() -> None:
    training = features(normal(1, 50, 4))
    for held_out in (101, 150):
        found = in_features(training, training, features(normal(2, held_out, 4)))
        below = found.control.sort().values
        k = rank(held_out)
        assert found.within == k
        assert found.border == pytest.approx(np.interp(k, np.arange(1, held_out + 1), below.numpy()))


def test_copies_are_named_in_features() -> None:
    training, samples = normal(1, 1000, 5), normal(0, 200, 5)
    copied = {13: 700, 77: 2, 150: 999}
    for sample, original in copied.items():
        samples[sample] = training[original]
    found = in_features(features(samples), features(training), features(normal(2, 500, 5)))
    assert {m.sample: m.training for m in found.worst[:3]} == copied
    assert [m.distance for m in found.worst[:3]] == [0, 0, 0]
    assert set(copied) <= set(found.flagged.tolist())
    assert len(found.worst) == 10
    assert [m.distance for m in found.worst] == sorted(m.distance for m in found.worst)


def test_copies_with_a_little_noise_are_named_in_pixels_in_grey_levels() -> None:
    training, samples = pictures(0, 300), pictures(1, 60)
    samples[5] = training[222] + np.uint8(3)
    samples[9] = training[17]
    found = in_pixels(samples, training, pictures(2, 200))
    assert [(m.sample, m.training) for m in found.worst[:2]] == [(9, 17), (5, 222)]
    assert found.worst[0].distance == 0
    assert found.worst[1].distance == pytest.approx(3, abs=1e-6)
    assert {5, 9} <= set(found.flagged.tolist())
    assert len(found.flagged) <= 8
    expected = np.sqrt(((samples[0].astype(float) - training.astype(float)) ** 2).mean((1, 2, 3)))
    assert float(found.distances[0]) == pytest.approx(expected.min(), abs=1e-9)
    assert int(found.neighbours[0]) == expected.argmin()


def test_all_copies_are_all_close_and_the_border_is_numpys_percentile() -> None:
    training, held_out = normal(1, 400, 4), normal(2, 300, 4)
    found = in_features(features(training[:50]), features(training), features(held_out))
    assert found.close.value == 1
    control = np.sqrt(((held_out.double()[:, None] - training.double()) ** 2).sum(2).min(1).values.numpy())
    assert found.border == pytest.approx(np.percentile(control, 1), rel=1e-9)


def test_a_copy_is_flagged_where_the_control_holds_copies_too() -> None:
    training, held_out = normal(1, 400, 4), normal(2, 200, 4)
    held_out[:10] = training[:10]
    found = in_features(features(training[50:52]), features(training), features(held_out))
    assert (found.border, found.close.value) == (0, 1)
    assert "are themselves copies" in found.close.warning
    assert found.within == 10  # so 10 of 201 samples are expected to be such copies too


def test_groups_are_kept_apart() -> None:
    """Slices of one patient are near each other; when the patient is on both sides the control must not use that."""
    centres = normal(0, 40, 6) * 5
    training = (centres[:, None] + 0.05 * normal(1, 40, 10, 6)).flatten(0, 1)  # 10 slices of each of 40 patients
    held_out = (centres[:, None] + 0.05 * normal(2, 40, 5, 6)).flatten(0, 1)
    patients, theirs = np.repeat(np.arange(40), 10), np.repeat(np.arange(40), 5)
    samples = training[[3, 4, 15]] + 0.05 * normal(3, 3, 6)  # memorised: two of patient 0, one of patient 1
    arguments = (features(samples), features(training), features(held_out))
    apart = in_features(*arguments, groups=patients, held_out_groups=theirs)
    mixed = in_features(*arguments)
    assert mixed.close.value < 0.5 < apart.close.value
    assert apart.border > 10 * mixed.border
    assert apart.by_group == {0: 2, 1: 1}
    assert mixed.by_group == {}
    assert apart.worst[0].group in (0, 1)


def test_a_control_that_is_kept_is_not_computed_again() -> None:
    sets = features(normal(0, 50, 4)), features(normal(1, 80, 4)), features(normal(2, 120, 4))
    found = in_features(*sets)
    again = in_features(*sets, kept=lambda compute: found.control)
    assert (again.border, again.close) == (found.border, found.close)
    assert in_features(*sets, kept=lambda compute: found.control * 2).border == pytest.approx(2 * found.border)
    shown = pictures(0, 20), pictures(1, 30), pictures(2, 120)
    grey = in_pixels(*shown)
    assert in_pixels(*shown, kept=lambda compute: compute() + 1).border == pytest.approx(grey.border + 1)


def test_a_control_with_groups_and_one_without_are_kept_apart(tmp_path: Path) -> None:
    """Held-out pictures that are a little beside training pictures of their own group."""
    training, samples = pictures(0, 40), pictures(1, 10)
    real = training[:20] + np.uint8(1)
    groups = np.arange(40)

    def made(name: str, pixels: np.ndarray) -> Features:
        values = torch.from_numpy(pixels.reshape(len(pixels), -1)).float()
        return Features(values, Source("tiny", "d" * 64, values.shape[1]), content=name)

    mine, theirs = made("samples", samples), made("real", real)
    searched = Searched(training, made("training", training), tuple(map(str, groups)), groups)
    for folder, order in (("one", (None, groups[:20])), ("other", (groups[:20], None))):
        for held in order:
            kept = copies(mine, samples, searched, theirs, real, held, tmp_path / folder)
            again = copies(mine, samples, searched, theirs, real, held)
            for space in ("features", "pixels"):
                assert torch.equal(kept[space].control, again[space].control)
                assert (float(kept[space].control.max()) < 10) == (held is None)
    assert list(tmp_path.rglob("*.*"))  # they were kept


def test_bad_input_in_one_line() -> None:
    x = features(normal(0, 20, 4))
    with pytest.raises(RequestError, match="one extractor"):
        in_features(x, x, features(normal(0, 20, 4), "other"))
    with pytest.raises(RequestError, match="6 x 6 x 1"):
        in_pixels(pictures(0, 4), pictures(0, 4), pictures(0, 4, 8))
    with pytest.raises(DataError, match="both are needed"):
        in_features(x, x, x, groups=np.zeros(20, int))
    with pytest.raises(DataError, match="3 and 20 groups for 20 training and 20 held-out"):
        in_features(x, x, x, groups=np.zeros(3, int), held_out_groups=np.zeros(20, int))
    with pytest.raises(DataError, match="no training picture of another group"):
        in_features(x, x, x, groups=np.zeros(20, int), held_out_groups=np.zeros(20, int))
    assert "1st percentile of 20 held-out" in in_features(x, x, x).close.warning
