"""Neighbours and the measures of fidelity and variety against SciPy's distances, and prdc where it is installed."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from moyai.errors import DataError, RequestError
from moyai.evaluation.neighbours import manifold, nearest, own_radii
from moyai.evaluation.pairs import blocks
from moyai.evaluation.values import Features, Source

TINY = 1 << 13  # bytes: forces many blocks


def features(values: Tensor, name: str = "tiny") -> Features:
    return Features(values.float(), Source(name, "d" * 64, values.shape[1]))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory", [TINY, 1 << 28])
def test_neighbours_are_scipys_in_any_blocks(memory: int) -> None:
    x, y = normal(0, 70, 5) + 100, normal(1, 90, 5) + 100
    distances, numbers = nearest(x, y, 4, memory=memory)
    full = cdist(x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(distances.numpy(), np.sort(full, 1)[:, :4], rtol=1e-9)
    np.testing.assert_array_equal(numbers.numpy(), np.argsort(full, 1)[:, :4])


@pytest.mark.parametrize("memory", [TINY, 1 << 28])
def test_in_one_set_none_is_its_own_neighbour_but_a_copy_is(memory: int) -> None:
    x = normal(0, 70, 5)
    x[40] = x[3]
    distances, numbers = nearest(x, x, 2, same=True, memory=memory)
    full = cdist(x.double().numpy(), x.double().numpy())
    np.fill_diagonal(full, np.inf)
    np.testing.assert_allclose(distances.numpy(), np.sort(full, 1)[:, :2], rtol=1e-9)
    assert (numbers[3, 0], numbers[40, 0], distances[3, 0]) == (40, 3, 0)


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-4])
@pytest.mark.parametrize("memory", [TINY, 1 << 28])
def test_points_that_lie_on_one_another_are_told_apart_as_float64_does(spread: float, memory: int) -> None:
    """A model that draws one picture only, beside a far point that keeps the middle from being theirs."""
    x = (1 + spread * normal(0, 150, 5).double()).float()
    x[0] = 50
    distances, numbers = nearest(x, x, 3, same=True, memory=memory)
    full = cdist(x.double().numpy(), x.double().numpy())
    np.fill_diagonal(full, np.inf)
    np.testing.assert_allclose(distances.numpy(), np.sort(full, 1)[:, :3], rtol=1e-6, atol=1e-6)
    taken = np.take_along_axis(full, numbers.numpy(), 1)
    np.testing.assert_allclose(taken, distances.numpy(), rtol=1e-6, atol=1e-6)
    assert all(len(set(row)) == 3 for row in numbers.tolist())


def test_the_order_of_neighbours_is_float64s_where_float32_cannot_tell() -> None:
    points = 1000 + torch.arange(40.0)[:, None] * torch.full((1, 64), 2.0**-13)  # float32 squares differ by less
    points[-1] = -1000
    query = points[:1] - 2.0**-12
    order = nearest(query, points[torch.arange(39, -1, -1)], 5)[1][0]
    assert (39 - order).tolist() == [0, 1, 2, 3, 4]


def test_known_radii_change_nothing() -> None:
    x, y = features(normal(0, 90, 6)), features(normal(1, 80, 6))
    assert manifold(x, y, radii=own_radii(y)) == manifold(x, y)
    np.testing.assert_allclose(own_radii(y, 2)[:, 1], np.sort(cdist(y.values, y.values), 1)[:, 2] ** 2, rtol=1e-5)


def test_the_bound_on_memory_holds() -> None:
    for memory in (1 << 12, 1 << 16):
        met = torch.zeros(300, 200, dtype=torch.int64)
        for block in blocks(normal(0, 300, 3), normal(1, 200, 3), memory):
            assert block.low.numel() * 32 <= memory
            met[block.rows, block.columns] += 1
        assert bool((met == 1).all())


def test_groups_are_kept_apart() -> None:
    x, y = torch.tensor([[0.0], [10.0]]), torch.tensor([[0.1], [3.0], [10.5]])
    mine, theirs = torch.tensor([7, 8]), torch.tensor([7, 9, 8])
    distances, numbers = nearest(x, y, query_groups=mine, point_groups=theirs)
    assert numbers[:, 0].tolist() == [1, 1]
    torch.testing.assert_close(distances[:, 0], torch.tensor([3.0, 7.0]).double())
    alone, none = nearest(x[:1], y[:1], query_groups=mine[:1], point_groups=theirs[:1])
    assert bool(alone.isinf())
    assert int(none) == -1


def by_scipy(fake: np.ndarray, real: np.ndarray, k: int, k_density: int) -> list[float]:
    """The four definitions over whole matrices."""
    own, other, cross = cdist(real, real), cdist(fake, fake), cdist(fake, real)
    radius, wide = np.sort(own, 1)[:, k], np.sort(own, 1)[:, k_density]  # column 0 is the point itself
    theirs = np.sort(other, 1)[:, k]
    inside = cross <= wide
    return [
        (cross <= radius).any(1).mean(),
        (cross <= theirs[:, None]).any(0).mean(),
        inside.sum() / (k_density * len(fake)),
        inside.any(0).mean(),
    ]


@pytest.mark.parametrize("memory", [TINY, 1 << 28])
def test_manifold_is_its_definitions(memory: int) -> None:
    x, y = normal(0, 180, 6) * 1.2, normal(1, 150, 6)
    found = manifold(features(x), features(y), memory=memory)
    values = [found.precision.value, found.recall.value, found.density.value, found.coverage.value]
    assert values == pytest.approx(by_scipy(x.double().numpy(), y.double().numpy(), 3, 5), abs=1e-12)
    assert (found.recall.count, found.recall.reference) == (180, 150)


@pytest.mark.parametrize("memory", [1 << 15, 1 << 28])
@pytest.mark.parametrize("spread", [0.7, 1.3])
def test_errors_are_the_jackknifes_and_densitys_that_of_a_mean(spread: float, memory: int) -> None:
    """Each sample is left out in turn and everything measured again."""
    x, y = normal(0, 40, 6) * spread, features(normal(1, 150, 6))
    x[7] = x[8] + 0.01
    found = manifold(features(x), y, memory=memory)
    without = [manifold(features(torch.cat([x[:i], x[i + 1 :]])), y) for i in range(40)]
    for name in ("recall", "coverage"):
        each = np.array([getattr(one, name).value for one in without])
        expected = np.sqrt(39 / 40 * ((each - each.mean()) ** 2).sum())
        assert expected > 0.01
        assert getattr(found, name).error == pytest.approx(expected, rel=1e-9), name
    radius = np.sort(cdist(y.values, y.values), 1)[:, 5]
    inside = (cdist(x, y.values) <= radius).sum(1) / 5
    assert found.density.error == pytest.approx(inside.std(ddof=1) / np.sqrt(40), rel=1e-9)
    assert (found.density.low, found.density.high) == pytest.approx(
        found.density.value + np.array([-1.96, 1.96]) * found.density.error, abs=1e-4
    )


@pytest.mark.parametrize(("samples", "reference", "dimensions"), [(60, 200, 2), (60, 400, 8), (100, 600, 32)])
def test_intervals_hold_the_mean_of_redrawn_samples(samples: int, reference: int, dimensions: int) -> None:
    real = features(normal(99, reference, dimensions))
    radii = own_radii(real)
    drawn = [manifold(features(normal(i, samples, dimensions)), real, radii=radii) for i in range(60)]
    for name in ("precision", "recall", "density", "coverage"):
        found = [getattr(one, name) for one in drawn]
        values = np.array([one.value for one in found])
        inside = [one.low <= values.mean() <= one.high for one in found]
        assert np.mean(inside) >= 0.88, name
        assert np.mean([one.error for one in found]) < 2.5 * values.std(), name


def test_a_set_of_as_few_samples_as_neighbours_has_an_error() -> None:
    found = manifold(features(normal(0, 4, 3)), features(normal(1, 60, 3)))
    assert found.recall.error is not None
    assert found.recall.low is not None
    assert found.recall.high is not None
    assert 0 <= found.recall.low <= found.recall.value <= found.recall.high <= 1


def test_manifold_is_prdcs() -> None:
    prdc = pytest.importorskip("prdc")
    x, y = normal(0, 300, 8), normal(1, 250, 8) * 1.1
    theirs = prdc.compute_prdc(y.double().numpy(), x.double().numpy(), nearest_k=5)
    found = manifold(features(x), features(y), k=5)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name).value == pytest.approx(theirs[name], abs=1e-9)


def test_a_set_against_itself_and_against_another_place() -> None:
    x = features(torch.cat([normal(0, 100, 4), normal(0, 100, 4)[:30]]))  # with duplicates
    same = manifold(x, x)
    assert (same.precision.value, same.recall.value, same.coverage.value) == (1, 1, 1)
    away = manifold(features(normal(1, 100, 4) + 50), x)
    assert [v.value for v in (away.precision, away.recall, away.density, away.coverage)] == [0, 0, 0, 0]
    assert away.precision.high is not None
    assert away.precision.high > 0.02  # none of 100 is no proof of 0


def test_corruptions_move_each_the_right_way() -> None:
    x, y = normal(2, 600, 6), normal(3, 600, 6)
    x[::2, 0] += 12
    y[::2, 0] += 12  # two classes
    good = manifold(features(x), features(y))
    lost = manifold(features(torch.cat([x[1::2], normal(4, 300, 6)])), features(y))  # one class only
    assert lost.precision.value > good.precision.value - 0.05
    assert lost.recall.value < good.recall.value - 0.3
    assert lost.coverage.value < good.coverage.value - 0.3
    noisy = manifold(features(x + 2 * normal(5, 600, 6)), features(y))
    assert noisy.precision.value < good.precision.value - 0.2
    assert noisy.density.value < good.density.value - 0.2
    copies = manifold(features(x[:10].repeat(60, 1)), features(y))
    assert copies.recall.value < 0.1 < good.recall.value
    assert copies.coverage.value < 0.3 < good.coverage.value


def test_an_outlier_lifts_precision_but_hardly_density() -> None:
    """Naeem et al. 2020, section 2.2: one far real point has a ball that holds everything."""
    real, fake = normal(0, 300, 3), normal(1, 300, 3) + 6
    outlier = torch.cat([real, torch.full((1, 3), 40.0)])
    before, after = manifold(features(fake), features(real)), manifold(features(fake), features(outlier))
    assert before.precision.value < 0.2
    assert after.precision.value > 0.9
    assert after.density.value < before.density.value + 0.25


def test_bad_input_in_one_line() -> None:
    with pytest.raises(DataError, match=r"5 neighbour.* of 3 other"):
        manifold(features(normal(0, 9, 2)), features(normal(1, 4, 2)))
    with pytest.raises(RequestError, match="one extractor"):
        manifold(features(normal(0, 9, 2)), features(normal(1, 9, 2), "other"))
