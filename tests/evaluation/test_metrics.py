"""KID, class confidence and accuracy, diversity and sliced Wasserstein against definitions written another way."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from moyai import similarity
from moyai.data.images import PixelRows
from moyai.errors import DataError, RequestError
from moyai.evaluation import metrics
from moyai.evaluation.values import Features, Source, difference, share, student
from moyai.randomness import generator


def features(values: Tensor, name: str = "tiny", probabilities: Tensor | None = None) -> Features:
    return Features(values.float(), Source(name, "d" * 64, values.shape[1]), probabilities)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- KID


def slow_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The definition pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    own = np.mean([k(a, b) for a, b in itertools.permutations(x, 2)])
    other = np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
    return float(own + other - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_mmd_is_its_definition() -> None:
    x, y = normal(0, 17, 5), normal(1, 23, 5) + 0.3
    assert metrics.mmd2(x, y) == pytest.approx(slow_mmd2(x.numpy(), y.numpy()), abs=1e-10)


def test_kid_is_the_mean_over_disjoint_blocks_and_its_error_theirs() -> None:
    x, y = features(normal(2, 60, 5)), features(normal(3, 80, 5) * 1.3)
    found = metrics.kid(x, y, seed=4)
    parts = [metrics._blocks(s.values, 10, 4, name) for s, name in ((x, "samples"), (y, "reference"))]
    assert sorted(len(part) for part in parts[1]) == [8] * 10
    assert torch.cat(parts[0]).sort(0).values.equal(x.values.sort(0).values)  # every sample once
    each = [slow_mmd2(a.double().numpy(), b.double().numpy()) for a, b in zip(*parts, strict=True)]
    assert found.value == pytest.approx(np.mean(each), abs=1e-9)
    assert found.error == pytest.approx(scipy.stats.sem(each), abs=1e-9)
    # Ten blocks tell their own spread badly, so the interval is Student's.
    expected = scipy.stats.t.interval(0.95, 9, np.mean(each), scipy.stats.sem(each))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-3)


def test_kid_takes_every_sample_where_there_are_more_than_ten_blocks_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []
    mmd2 = metrics.mmd2
    monkeypatch.setattr(metrics, "KID_ROWS", 20)
    monkeypatch.setattr(metrics, "mmd2", lambda x, y: (taken.append(x), mmd2(x, y))[1])
    x = features(normal(2, 490, 3))
    metrics.kid(x, features(normal(3, 300, 3)))
    assert max(len(part) for part in taken) <= 20
    assert torch.cat(taken).float().sort(0).values.equal(x.values.sort(0).values)


def test_kid_is_unbiased_and_its_error_is_true() -> None:
    """Of one distribution the mean is 0 although each value is not, and the errors are the spread of the values."""
    values = [metrics.kid(features(normal(i, 60, 4)), features(normal(500 + i, 60, 4))) for i in range(200)]
    found = np.array([v.value for v in values])
    assert abs(found.mean()) < 3.5 * found.std() / math.sqrt(len(found))
    assert np.mean([v.error for v in values]) == pytest.approx(found.std(), rel=0.25)
    assert min(found) < 0


def test_kid_of_gaussians_has_its_closed_form() -> None:
    """In one dimension E k(a, b) of N(m, s^2) and N(n, t^2) is a polynomial of their moments."""

    def expected(m: float, s: float, n: float, t: float) -> float:
        p1, p2, p3 = m, m**2 + s**2, m**3 + 3 * m * s**2
        q1, q2, q3 = n, n**2 + t**2, n**3 + 3 * n * t**2
        return p3 * q3 + 3 * p2 * q2 + 3 * p1 * q1 + 1

    truth = expected(0, 1, 0, 1) + expected(0.5, 1.2, 0.5, 1.2) - 2 * expected(0, 1, 0.5, 1.2)
    found = metrics.kid(features(normal(0, 20000, 1)), features(normal(1, 20000, 1) * 1.2 + 0.5))
    assert found.error is not None
    assert abs(found.value - truth) < 4 * found.error
    assert found.value > 10 * found.error


def test_kid_of_two_pictures_has_no_error_but_a_warning() -> None:
    found = metrics.kid(features(normal(0, 2, 3)), features(normal(1, 3, 3)))
    assert found.error is None
    assert "blocks of 2" in found.warning
    with pytest.raises(RequestError, match="one extractor"):
        metrics.kid(features(normal(0, 9, 3)), features(normal(1, 9, 3), "other"))


# ---- classes


def sure(labels: Tensor, classes: int) -> Features:
    return features(normal(0, len(labels), 2), probabilities=torch.eye(classes)[labels])


def test_class_confidence_has_its_limits_and_its_definition() -> None:
    labels = torch.arange(40) % 4
    assert metrics.class_confidence(sure(labels, 4)).value == pytest.approx(4)
    assert metrics.class_confidence(sure(labels * 0, 4)).value == pytest.approx(1)  # one class only
    unsure = features(normal(0, 40, 2), probabilities=torch.full((40, 4), 0.25))
    assert metrics.class_confidence(unsure).value == pytest.approx(1)
    p = torch.softmax(2 * normal(1, 300, 4), 1)
    found = metrics.class_confidence(features(normal(0, 300, 2), probabilities=p))
    each = [scipy.stats.entropy(row, p.mean(0).numpy()) for row in p.numpy()]  # SciPy's KL divergence
    assert found.value == pytest.approx(math.exp(np.mean(each)), rel=1e-6)
    assert difference(found, found) == 0


def test_the_error_of_class_confidence_is_the_spread_over_sets() -> None:
    found = [
        metrics.class_confidence(
            features(normal(0, 400, 2), probabilities=torch.softmax(2 * normal(10 + i, 400, 4), 1))
        )
        for i in range(200)
    ]
    spread = float(np.std([v.value for v in found]))
    assert np.mean([v.error for v in found]) == pytest.approx(spread, rel=0.2)


def test_class_accuracy_by_class_and_in_all() -> None:
    asked = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    taken = torch.tensor([0, 0, 0, 1, 1, 0, 2, 2])
    found = metrics.class_accuracy(sure(taken, 4), asked)
    assert found.value == pytest.approx(6 / 8)
    assert found.warning == "no sample of class 3 was judged"
    by_class = metrics.accuracy_by_class(sure(taken, 4), asked)
    assert {label: v.value for label, v in by_class.items()} == {0: 0.75, 1: 0.5, 2: 1.0}
    with pytest.raises(DataError, match="classes 0 to 2 are not among the extractor's, which are 0 to 1"):
        metrics.class_accuracy(sure(taken.clamp_max(1), 2), asked)
    with pytest.raises(DataError, match="8 samples need as many classes"):
        metrics.class_accuracy(sure(taken, 4), asked[:3])
    with pytest.raises(RequestError, match="knows no classes"):
        metrics.class_accuracy(features(normal(0, 8, 2)), asked)


def test_a_share_has_wilsons_interval() -> None:
    for hits, count in ((0, 20), (7, 20), (20, 20)):
        found = share("s", hits, count, reference=0, source=Source("x", "", 1))
        expected = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_students_quantile_is_scipys() -> None:
    found = [student(free) for free in range(1, 60)]
    assert found == pytest.approx(scipy.stats.t.ppf(0.975, np.arange(1, 60)), abs=0.03)
    assert found[:2] == pytest.approx(scipy.stats.t.ppf(0.975, [1, 2]), rel=1e-9)


# ---- pixels


def pictures(seed: int, count: int, side: int = 16, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side)).astype(np.uint8)


def test_diversity_is_the_mean_of_ms_ssim_of_pairs_of_a_class() -> None:
    pixels, labels = pictures(0, 9), np.array([0, 1, 2, 0, 1, 0, 1, 0, 1])
    found = metrics.ms_ssim_diversity(pixels, labels, pairs=4000, batch=512)
    floats = torch.from_numpy(pixels).float()
    pairs = [(i, j) for i, j in itertools.combinations(range(9), 2) if labels[i] == labels[j]]
    every = similarity.ms_ssim(floats[[i for i, _ in pairs]], floats[[j for _, j in pairs]], top=255)
    assert len(every) == 12
    assert found.value == pytest.approx(float(every.mean()), abs=4 * found.error)
    first, second = metrics._pairs(9, labels, 500, 1)
    assert (labels[first] == labels[second]).all()
    assert (first != second).all()
    assert {frozenset(p) for p in zip(first.tolist(), second.tolist(), strict=True)} == {frozenset(p) for p in pairs}


def test_pairs_are_of_each_class_as_often_as_its_pictures_are() -> None:
    first, second = metrics._pairs(100, np.arange(100) // 90, 4000, 1)  # 90 and 10 pictures
    assert np.mean(first >= 90) == pytest.approx(0.1, abs=0.02)
    assert ((first >= 90) == (second >= 90)).all()


def test_equal_pictures_have_no_diversity_and_copies_have_less() -> None:
    same = np.repeat(pictures(1, 1), 6, axis=0)
    assert metrics.ms_ssim_diversity(same, pairs=50).value == pytest.approx(1, abs=1e-6)
    some = metrics.ms_ssim_diversity(np.repeat(pictures(1, 6), 4, axis=0), pairs=300)
    other = metrics.ms_ssim_diversity(pictures(1, 24), pairs=300)
    assert some.value > other.high
    assert "1 scale, window 11" in some.metric
    with pytest.raises(DataError, match="no two of one class"):
        metrics.ms_ssim_diversity(pictures(0, 3), np.arange(3))


def test_the_error_of_diversity_is_the_spread_over_sets_of_pictures() -> None:
    """Each picture is in many pairs: a dark one makes all of its pairs unlike, so pairs are no independent numbers."""
    rng, labels = np.random.default_rng(3), np.arange(40) % 2
    found = []
    for seed in range(60):
        contrast = rng.choice([0.1, 1.0], (40, 1, 1, 1)) * np.where(labels, 1, 0.5)[:, None, None, None]
        pixels = 128 + contrast * (np.indices((8, 8)).sum(0) % 2 * 200 - 100) + rng.normal(0, 5, (40, 1, 8, 8))
        found.append(metrics.ms_ssim_diversity(pixels.clip(0, 255).astype(np.uint8), labels, pairs=400, seed=seed))
    spread = float(np.std([f.value for f in found], ddof=1))
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.25)


def test_the_error_of_pairs_is_its_formula() -> None:
    first, second = np.array([0, 1, 2, 1, 4]), np.array([1, 2, 0, 0, 3])  # the pair of 0 and 1 was drawn twice
    each, labels = np.array([0.1, 0.5, 0.3, 0.1, 0.9]), np.array([0, 0, 0, 1, 1])
    rest = each - np.array([0.25] * 4 + [0.9])
    cross = sum(rest[p] * rest[q] for p in range(5) for q in range(5) if {first[p], second[p]} & {first[q], second[q]})
    of_classes = 4 * (0.25 - 0.38) ** 2 + (0.9 - 0.38) ** 2
    expected = math.sqrt(max(cross, float(rest @ rest)) + of_classes) / 5
    assert metrics.error_of_pairs(each, first, second, labels) == pytest.approx(expected, rel=1e-12)


def test_large_pictures_are_compared_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pictures(0, 30, 8, 3), pictures(1, 40, 8, 3) // 2
    taken: list[int] = []

    class Watched(PixelRows):
        def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
            found = super().__getitem__(index)
            taken.append(len(found))
            return found

    stored = Watched(y, np.arange(40))
    whole = metrics.sliced_wasserstein(x, stored, directions=20), metrics.ms_ssim_diversity(x, pairs=50)
    assert max(taken) == 40
    taken.clear()
    monkeypatch.setattr(metrics, "NUMBERS", 4 * 192 + 1)
    few = metrics.sliced_wasserstein(x, stored, directions=20), metrics.ms_ssim_diversity(x, pairs=50)
    assert max(taken) == 4
    assert [f.value for f in few] == pytest.approx([w.value for w in whole], rel=1e-6)


def test_sliced_wasserstein_is_scipys_along_each_direction() -> None:
    """Equal counts: the squared distance is the mean square of the sorted differences; other counts: by resampling."""
    x, y = pictures(0, 12, 4), pictures(1, 18, 4) // 2
    found = metrics.sliced_wasserstein(x, y, directions=40, seed=5, at_once=100)  # in several portions
    both = [np.repeat(s.reshape(len(s), -1).astype(float), r, axis=0) for s, r in ((x, 3), (y, 2))]  # 36 each
    squares = []
    for i in range(40):
        unit = generator(5, "directions", i).standard_normal(16)
        unit /= np.linalg.norm(unit)
        squares.append(np.mean((np.sort(both[0] @ unit) - np.sort(both[1] @ unit)) ** 2))
    assert found.value == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-9)


def test_sliced_wasserstein_of_a_shift_is_the_shift_in_grey_levels() -> None:
    x = pictures(0, 50, 8) // 2
    found = metrics.sliced_wasserstein(x, x + 3, directions=4000)
    assert found.value == pytest.approx(3, abs=4 * found.error)
    deep = metrics.sliced_wasserstein(x.astype(np.uint16) * 257, (x + 3).astype(np.uint16) * 257, directions=4000)
    assert deep.value == pytest.approx(found.value, rel=1e-9)  # the same pictures in 16 bits
    assert metrics.sliced_wasserstein(x, x[::-1]).value == pytest.approx(0, abs=1e-9)


def test_sliced_wasserstein_grows_with_noise_blur_and_lost_classes() -> None:
    rng = np.random.default_rng(0)
    x, y = (np.where(np.arange(400)[:, None, None, None] % 2, 200, 50) + rng.integers(-20, 20, (400, 1, 6, 6))
            for _ in range(2))  # fmt: skip
    floor = metrics.sliced_wasserstein(x.astype(np.uint8), y.astype(np.uint8)).value
    noisy = (x + rng.integers(-40, 40, x.shape)).clip(0, 255)
    flat = x.mean((2, 3), keepdims=True).repeat(6, 2).repeat(6, 3)
    for worse in (noisy, flat, x[1::2]):
        assert metrics.sliced_wasserstein(worse.astype(np.uint8), y.astype(np.uint8)).value > 1.5 * floor


def test_pictures_of_other_sizes_and_single_ones_are_refused() -> None:
    with pytest.raises(RequestError, match=r"pixels 16 x 16 x 1, 8 bit cannot be compared .* pixels 16 x 16 x 3"):
        metrics.sliced_wasserstein(pictures(0, 4), pictures(0, 4, channels=3))
    with pytest.raises(DataError, match="at least 2"):
        metrics.sliced_wasserstein(pictures(0, 1), pictures(0, 4))
    with pytest.raises(DataError, match="uint8 or uint16"):
        metrics.ms_ssim_diversity(pictures(0, 4).astype(np.float32))
