"""The Fréchet distance against SciPy's matrix root and closed forms, its extrapolation and interval in simulation."""

import math
from collections.abc import Iterable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from moyai.errors import DataError, RequestError
from moyai.evaluation.frechet import Statistics, distance, fid, merged
from moyai.evaluation.values import Features, Source, difference


def source(dimensions: int, name: str = "tiny") -> Source:
    return Source(name, "d" * 64, dimensions)


def features(values: Tensor, name: str = "tiny") -> Features:
    return Features(values.float(), source(values.shape[1], name))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scipy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The definition as pytorch-fid and the original compute it: a root of the product that is not symmetric."""
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(root).real)


def test_statistics_streamed_in_parts_are_those_of_the_whole() -> None:
    x = normal(0, 5000, 7) * 3 + 1000  # far from 0, where sums of squares would lose half of their digits
    parts = [Statistics.of(part.float(), source(7)) for part in x.split([1, 4500, 2, 497])]
    whole = merged(parts)
    exact = x.float().double().numpy()
    assert whole.count == 5000
    np.testing.assert_allclose(whole.mean.numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance.numpy(), np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("count", [400, 20])  # more samples than features, and fewer
def test_fid_is_scipys(count: int) -> None:
    x, y = normal(1, count, 32) @ normal(2, 32, 32), normal(3, 300, 32) @ normal(4, 32, 32) + 0.5
    found = fid(features(x), Statistics.of(y.float(), source(32)), replicates=0).value
    expected = scipy_distance(x.float().double().numpy(), y.float().double().numpy())
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert ("not full rank" in found.warning) == (count < 32)
    assert (found.count, found.reference, found.low) == (count, 300, None)


def test_closed_forms() -> None:
    zero, one = torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    assert distance(zero, one, zero + 2, one) == pytest.approx(20)  # a shift by 2 in 5 directions
    assert distance(zero, 4 * one, zero, 9 * one) == pytest.approx(5)  # sum of (2 - 3)^2
    turn = torch.linalg.qr(normal(0, 5, 5))[0]
    spread, other = torch.tensor([1.0, 4, 9, 16, 25]).double(), torch.tensor([4.0, 9, 16, 25, 36]).double()
    commuting = distance(zero, turn @ spread.diag() @ turn.T, zero, turn @ other.diag() @ turn.T)
    assert commuting == pytest.approx(5)
    flat = torch.diag(torch.tensor([1.0, 0, 0, 0, 0]).double())  # a line against another: roots multiply to nothing
    across = torch.diag(torch.tensor([0.0, 1, 0, 0, 0]).double())
    assert distance(zero, flat, zero, across) == pytest.approx(2)


@pytest.mark.parametrize("count", [500, 20])
def test_a_set_against_itself_is_at_zero(count: int) -> None:
    x = features(normal(5, count, 64) * 100)
    size = float(x.values.double().var(0).sum())
    assert fid(x, x, replicates=0).value.value < 1e-7 * size


def test_the_order_of_samples_is_nothing_and_noise_blur_and_lost_classes_are_something() -> None:
    x, y = normal(6, 800, 12), normal(7, 800, 12)
    x[:400, 0] += 4
    y[:400, 0] += 4  # two classes
    reference = features(y)
    plain = fid(features(x), reference, replicates=0).value.value
    assert fid(features(x.flip(0)), reference, replicates=0).value.value == pytest.approx(plain, abs=1e-9)
    for worse in (x + 0.5 * normal(8, 800, 12), 0.7 * x, x[:400], x[:40].repeat(20, 1)):
        assert fid(features(worse), reference, replicates=0).value.value > 2 * plain


def test_the_order_of_samples_is_nothing_to_the_extrapolation() -> None:
    """Samples often lie class by class: blocks in their order would be of one class each, and far from the whole."""
    x, y = normal(6, 800, 4), normal(7, 800, 4)
    x[:400, 0] += 8
    y[:400, 0] += 8
    mixed = x[torch.randperm(800, generator=torch.Generator().manual_seed(0))]
    ordered, permuted = fid(features(x), features(y), replicates=0), fid(features(mixed), features(y), replicates=0)
    assert ordered.value.value == pytest.approx(permuted.value.value, abs=1e-9)
    assert ordered.infinity.value == pytest.approx(permuted.infinity.value, abs=0.1)


def test_bootstrap_replicates_are_the_definition_on_drawn_rows() -> None:
    """The weighted covariance of a replicate is that of the set with its rows written out as often as drawn."""
    from moyai.evaluation.frechet import _counts, _Weighted

    x, y = normal(9, 60, 6) + 3, normal(10, 80, 6)
    weights = _counts(60, seed=3, replicate=1)
    assert weights.sum() == 60
    assert 0.5 < (weights > 0).double().mean() < 0.75
    drawn = x.repeat_interleave(weights.long(), 0)
    found = _Weighted(x, Statistics.of(y, source(6))).distance(weights)
    assert found == pytest.approx(scipy_distance(drawn.numpy(), y.numpy()), rel=1e-9)


def test_a_known_root_is_taken_and_is_the_root() -> None:
    from dataclasses import replace

    x, y = features(normal(9, 60, 6)), Statistics.of(normal(10, 80, 6), source(6))
    torch.testing.assert_close(y.root @ y.root, y.covariance)
    assert fid(x, replace(y, known_root=y.root), replicates=3) == fid(x, y, replicates=3)
    assert fid(x, replace(y, known_root=2 * y.root), replicates=3) != fid(x, y, replicates=3)


def test_the_interval_is_the_seeds_and_covers() -> None:
    x, y = features(normal(11, 300, 8)), features(normal(12, 3000, 8) * 1.2)
    one, two = fid(x, y, seed=1), fid(x, y, seed=1)
    assert one == two
    assert fid(x, y, seed=2) != one
    assert one.value.low < one.value.value < one.value.high
    near = fid(features(normal(13, 100, 8) ** 3), features(normal(14, 3000, 8) ** 3), seed=1)  # of one distribution
    assert near.value.low == 0 < near.value.value < near.value.high
    assert near.infinity.low < 0
    assert one.value.error is not None


def simulate(
    runs: int, count: int, dimensions: int, scale: float = 1.3, shift: float = 0.4
) -> tuple[float, float, float, float]:
    """How often each interval covers what it should, and the mean errors of both values, in standard errors."""
    one, zero = torch.eye(dimensions, dtype=torch.float64), torch.zeros(dimensions, dtype=torch.float64)
    reference = Statistics(10**6, zero, one * (10**6 - 1), source(dimensions))
    truth = dimensions * ((scale - 1) ** 2 + shift**2)
    found = []
    for i in range(runs):
        samples = features(normal(1000 + i, count, dimensions) * scale + shift)
        found.append(fid(samples, reference, seed=i))
    mean = float(np.mean([f.value.value for f in found]))
    covers = np.mean([f.value.low <= mean <= f.value.high for f in found])
    limit = np.mean([f.infinity.low <= truth <= f.infinity.high for f in found])
    spread = float(np.std([f.infinity.value for f in found])) / math.sqrt(runs)
    off = abs(float(np.mean([f.infinity.value for f in found])) - truth) / spread
    return float(covers), float(limit), off, (mean - truth) / spread


def test_intervals_cover_the_truth_and_the_extrapolation_is_unbiased() -> None:
    covers, limit, off, bias = simulate(150, 150, 5)
    # binomial(150, 0.95): 0.88 is more than three standard deviations below
    assert covers >= 0.88
    assert limit >= 0.88
    assert off < 3
    assert bias > 5  # what the extrapolation takes away


@pytest.mark.slow
def test_intervals_cover_the_truth_at_more_features() -> None:
    covers, limit, off, bias = simulate(200, 600, 24)
    assert covers >= 0.90
    assert limit >= 0.90
    assert off < 3
    assert bias > 10


@pytest.mark.slow
@pytest.mark.parametrize("count", [1280, 1920])  # the fewest that have an interval; the fewest with three blocks
def test_intervals_cover_the_truth_at_the_features_of_our_own_extractors(count: int) -> None:
    """Equal variances, whose line bends most, and a small distance, whose interval is narrow."""
    covers, limit, _, bias = simulate(40, count, 128, scale=1, shift=0.1)
    assert covers >= 0.85  # binomial(40, 0.95), three standard deviations below
    assert limit >= 0.85
    assert bias > 10


def test_an_interval_of_the_extrapolation_needs_ten_samples_a_feature() -> None:
    reference = features(normal(1, 500, 8))
    few, enough = (fid(features(normal(0, count, 8)), reference, replicates=5) for count in (79, 80))
    assert (few.infinity.low, few.infinity.high, few.infinity.error) == (None, None, None)
    assert few.infinity.warning.startswith("extrapolated from 79 samples for 8 features")
    assert few.value.warning.startswith("79 samples for 8 features: the value can be mostly bias")
    assert "take 80 or more" in few.value.warning
    assert few.value.low is not None
    assert enough.infinity.low < enough.infinity.value < enough.infinity.high
    assert enough.infinity.warning == enough.value.warning == ""
    against = fid(features(normal(0, 500, 8)), features(normal(1, 79, 8)), replicates=0)
    assert against.value.warning.startswith("79 reference pictures for 8 features: the value can be mostly bias")
    assert "not full rank" in fid(features(normal(0, 8, 8)), reference, replicates=0).value.warning


def test_blocks_of_the_extrapolation_are_not_smaller_than_five_samples_a_feature() -> None:
    """With D = 64 and N = 640, blocks of a fifth would end 0.18 too low; in theory halves end 0.041 too low."""
    zero, one = torch.zeros(64, dtype=torch.float64), torch.eye(64, dtype=torch.float64)
    reference = Statistics(10**6, zero, one * (10**6 - 1), source(64))
    found = [fid(features(normal(i, 640, 64)), reference, replicates=0).infinity.value for i in range(40)]
    error = float(np.std(found, ddof=1)) / math.sqrt(len(found))
    assert error < 0.02
    assert np.mean(found) == pytest.approx(-(64**3) / (16 * 640**2), abs=3 * error)


def test_the_extrapolation_keeps_the_references_own_bias() -> None:
    """(D^2 / 4 + D) / M for equal variances of 1, to first order, however many samples there are."""
    found = [fid(features(normal(i, 4000, 32)), features(normal(100 + i, 640, 32)), replicates=0) for i in range(8)]
    assert np.mean([f.infinity.value for f in found]) == pytest.approx((32**2 / 4 + 32) / 640, rel=0.1)


@pytest.mark.parametrize(
    ("count", "dimensions", "replicates", "blocks"), [(100, 4, 100, range(1, 6)), (60, 257, 20, (1, 2))]
)
def test_the_work_is_bounded(count: int, dimensions: int, replicates: int, blocks: Iterable[int]) -> None:
    """Counted, not timed: one product of matrices and one eigenvalue problem a replicate and a block."""
    from unittest import mock

    x, y = features(normal(0, count, dimensions)), features(normal(1, 100, dimensions))
    with mock.patch("torch.linalg.eigvalsh", wraps=torch.linalg.eigvalsh) as solved:
        fid(x, y)
    assert solved.call_count == replicates + sum(blocks)


def test_bad_input_in_one_line() -> None:
    x = features(normal(0, 10, 4))
    with pytest.raises(RequestError, match=r"tiny .* cannot be compared with features of other"):
        fid(x, features(normal(1, 10, 4), "other"))
    with pytest.raises(DataError, match="at least 2"):
        features(normal(0, 1, 4))
    with pytest.raises(DataError, match="1 of 10 pictures have features that are not finite"):
        features(torch.where(torch.arange(10)[:, None] == 3, torch.nan, normal(0, 10, 4)))
    with pytest.raises(DataError, match=r"\(N, 4\), not \(10, 3\)"):
        Features(torch.zeros(10, 3), source(4))
    with pytest.raises(DataError, match="one picture has no covariance"):
        fid(x, Statistics.of(torch.zeros(1, 4), source(4)))
    few = fid(features(normal(0, 12, 9)), features(normal(1, 8, 9)), replicates=0)
    assert "8 reference pictures for 9 features" in few.value.warning
    assert "no line in 1/N" in few.infinity.warning


def test_values_of_other_counts_metrics_or_extractors_are_not_compared() -> None:
    y = features(normal(1, 90, 4))
    one, two = fid(features(normal(2, 50, 4)), y, replicates=0), fid(features(normal(3, 50, 4)), y, replicates=0)
    assert difference(one.value, two.value) == pytest.approx(one.value.value - two.value.value)
    other = fid(features(normal(2, 60, 4)), y, replicates=0)
    with pytest.raises(RequestError, match="depends on the counts"):
        difference(one.value, other.value)
    assert math.isfinite(difference(one.infinity, other.infinity))  # extrapolated, so counts may differ
    less = fid(features(normal(2, 50, 4)), features(normal(1, 80, 4)), replicates=0)
    with pytest.raises(RequestError, match="against 90 reference pictures cannot be compared with that against 80"):
        difference(one.infinity, less.infinity)  # but not the reference's
    with pytest.raises(RequestError, match="different metrics"):
        difference(one.value, one.infinity)
    stranger = fid(features(normal(2, 50, 4), "b"), features(normal(1, 90, 4), "b"), replicates=0)
    with pytest.raises(RequestError, match="one extractor"):
        difference(one.value, stranger.value)
