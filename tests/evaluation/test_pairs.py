"""Distances by bounds against SciPy's in float64: no pair is lost, and none is put on the wrong side of a limit."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from moyai.evaluation.pairs import blocks

TINY, LARGE = 1 << 13, 1 << 28  # bytes: many blocks, one block


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sets(kind: str) -> tuple[Tensor, Tensor]:
    """60 and 80 vectors, (., 12), that are easy or hard for float32."""
    x, y = normal(0, 60, 12), normal(1, 80, 12)
    if kind == "far from 0":
        return x + 3000, y + 3000
    if kind == "one very far":
        y[7] = 1e6
    if kind == "close together":
        return 1 + 1e-5 * x, torch.cat([y[:1], 1 + 1e-5 * y[1:]])
    if kind == "copies":
        y[20:50] = x[:30]
    if kind == "pictures":
        return (x * 60 + 128).clamp(0, 255).byte(), (y * 60 + 128).clamp(0, 255).byte()
    return x, y


KINDS = ("plain", "far from 0", "one very far", "close together", "copies", "pictures")


@pytest.mark.parametrize("memory", [TINY, LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bounds_hold(kind: str, memory: int) -> None:
    x, y = sets(kind)
    true = cdist(x.double().numpy(), y.double().numpy(), "sqeuclidean")
    for block in blocks(x, y, memory):
        least = block.low.double() + block.base[:, None]
        most = least + block.row_slack[:, None] + block.column_slack
        here = torch.from_numpy(true[block.rows, block.columns])
        assert bool((least <= here).all())
        assert bool((here <= most).all())
        norms = (block.row_slack[:, None] + block.column_slack) / (2 * 28 * 2.0**-23)
        assert bool(((block.in_float64() - here).abs() <= 2e-12 * norms).all())


@pytest.mark.parametrize("memory", [TINY, LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_within_a_limit_are_those_of_float64(kind: str, memory: int) -> None:
    """Limits that are distances themselves, so that pairs lie on the border, which is inside."""
    x, y = sets(kind)
    true = ((x.double()[:, None] - y.double()) ** 2).sum(2)
    by_row, by_column = true.sort(1).values[:, 4].contiguous(), true.sort(0).values[3].contiguous()
    found = torch.zeros(2, *true.shape, dtype=torch.bool)
    pairs = 0
    for block in blocks(x, y, memory):
        i, j = block.at_most(by_row)
        assert len(i) == block.count_at_most(by_row)
        found[0, i, j] = block.measured(i, j, by_row[i]) <= by_row[i]
        torch.testing.assert_close(block.exact(i, j), true[i, j], rtol=1e-12, atol=0)
        pairs += len(i)
        i, j = block.at_most_by_column(by_column)
        two = by_column[j], by_column[j] / 2
        squared = block.measured(i, j, *two)
        found[1, i, j] = squared <= two[0]
        assert ((squared <= two[1]) == (true[i, j] <= two[1])).all()
    rows = true <= by_row[:, None]
    assert found[0].equal(rows)
    assert found[1].equal(true <= by_column)
    if kind in ("plain", "pictures"):
        assert pairs < 1.1 * rows.sum()  # hardly any for nothing


def test_pairs_that_do_not_count_are_never_near() -> None:
    x = normal(0, 20, 3)
    (block,) = blocks(x, x, LARGE)
    block.low.fill_diagonal_(torch.inf)
    i, j = block.at_most(torch.full((20,), torch.inf).double())
    assert len(i) == 20 * 19
    assert bool((i != j).all())
    same = torch.arange(20)
    assert bool(block.exact(same, same).isinf().all())
    assert bool(block.in_float64().diagonal().isinf().all())


def test_sixteen_bits_are_measured_exactly() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 65536, (n, 40)).astype(np.uint16) for n in (30, 50))
    true = cdist(x.astype(float), y.astype(float), "sqeuclidean")
    (block,) = blocks(torch.from_numpy(x), torch.from_numpy(y), LARGE)
    i, j = (torch.from_numpy(a.reshape(-1)) for a in np.indices(true.shape))
    np.testing.assert_array_equal(block.exact(i, j).numpy(), true.reshape(-1))
