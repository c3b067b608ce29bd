"""Grids against the paper's listing and closed forms; how one is laid over the first latents and undone."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from moyai.errors import ConfigError
from moyai.firststage.config import FSQConfig
from moyai.firststage.grid import FSQ


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def listing(h: np.ndarray, levels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Values and codes of rows h (N, C) by the listing of Mentzer et al. 2024, appendix A.1, in float64."""
    sizes = np.asarray(levels)
    half = (sizes - 1) * (1 - 1e-3) / 2
    offset = np.where(sizes % 2 == 1, 0.0, 0.5)
    shift = np.tan(offset / half)
    values = np.round(np.tanh(h + shift) * half - offset) / (sizes // 2)
    basis = np.concatenate(([1], np.cumprod(sizes[:-1])))
    return values, ((values * (sizes // 2) + sizes // 2) * basis).sum(-1)


LEVELS = [(8, 5, 5, 5), (7, 6), (2, 3), (2, 2, 2), (256, 255), (4,)]


@pytest.mark.parametrize("levels", LEVELS)
def test_a_grid_is_that_of_the_paper(levels: tuple[int, ...]) -> None:
    made = FSQ(FSQConfig(levels=levels))
    h = normal(6, len(levels), 20, 20) * 3
    posterior = made(h)
    values, codes = listing(rows(h).double().numpy(), list(levels))
    assert np.array_equal(rows(posterior.values).numpy(), values.astype(np.float32))
    assert np.array_equal(posterior.codes.flatten().numpy(), codes.astype(np.int64))
    assert posterior.regularizer().tolist() == [0.0] * 6
    sweep = torch.atanh(torch.linspace(-1, 1, 4001)[1:-1])
    wide = made((sweep * 1.5).reshape(1, 1, 1, -1).expand(-1, len(levels), -1, -1))
    assert [len(wide.values[:, i].unique()) for i in range(len(levels))] == list(levels)
    assert float(wide.values.abs().max()) == 1
    assert float((wide.z - wide.values).abs().max()) <= 0.5 / min(n // 2 for n in levels) + 1e-6


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_points_of_a_grid_are_one_to_one(levels: tuple[int, ...]) -> None:
    made = FSQ(FSQConfig(levels=levels))
    assert made.size == math.prod(levels)
    codes = torch.arange(made.size).reshape(1, 1, -1)
    points = made.lookup(codes)
    assert points.shape == (1, len(levels), 1, made.size)
    assert len(rows(points).unique(dim=0)) == made.size
    assert torch.equal(made.codes_of(points), codes)
    assert torch.equal(made.quantize(points), points)


def test_a_grid_rounds_and_clips_and_does_not_bound_again() -> None:
    made = FSQ(FSQConfig(levels=(8, 5)))
    z = torch.tensor([[3.0, 3.0], [-3.0, -3.0], [0.74, 0.76], [0.0, 0.0]]).T.reshape(1, 2, 1, 4)
    assert made.quantize(z)[0, :, 0].T.tolist() == [[0.75, 1.0], [-1.0, -1.0], [0.75, 1.0], [0.0, 0.0]]
    bounded = made(made.quantize(z)).values
    assert not torch.equal(bounded, made.quantize(z))  # as the bound applied twice would


def test_the_gradient_through_a_grid_is_that_of_its_bound() -> None:
    made = FSQ(FSQConfig(levels=(8, 5, 2)))
    h = normal(2, 3, 4, 4).requires_grad_()
    (passed,) = torch.autograd.grad(made(h).values.sum(), h)
    half = (torch.tensor([8.0, 5.0, 2.0]) - 1) * 0.999 / 2
    shift = torch.tan(torch.tensor([0.5, 0.0, 0.5]) / half)
    slope = (1 - torch.tanh(h.detach() + shift[:, None, None]).square()) * (half / torch.tensor([4, 2, 1]))[
        :, None, None
    ]
    torch.testing.assert_close(passed, slope)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_grid_is_undone_up_to_its_rounding(levels: tuple[int, ...]) -> None:
    made, fine = FSQ(FSQConfig(levels=levels)), FSQ(FSQConfig(levels=(255,) * len(levels)))
    for grid in (made, fine):
        grid.centre.fill_(0.3)
        grid.spread.fill_(0.2)
        points = grid(0.3 + 0.2 * normal(6, len(levels), 20, 20)).values
        torch.testing.assert_close(grid(grid.restored(points)).values, points)  # each level stands for itself
    h = 0.3 + 0.2 * normal(6, len(levels), 20, 20).clamp(-2, 2)
    torch.testing.assert_close(fine.restored(fine(h).values), h, atol=0.012, rtol=0)


def test_a_grid_is_laid_over_the_first_latents_so_that_every_level_is_used() -> None:
    """Fine detail a hundred times weaker than the rest, and a channel that never changes."""
    h = (
        normal(16, 3, 20, 20) * torch.tensor([1.0, 0.01, 0.0])[:, None, None]
        + torch.tensor([0.2, -0.1, 0.5])[:, None, None]
    )
    made = FSQ(FSQConfig(levels=(8, 8, 8)))
    assert [len(made(h).values[:, i].unique()) for i in range(3)] != [8, 8, 1]
    made.initialise(made(h).z)
    middle = rows(h).median(0).values
    torch.testing.assert_close(made.centre.flatten(), middle, atol=1e-6, rtol=1e-5)
    kept = made.restored(made(middle[None, :, None, None]).values).flatten()  # what most of a flat picture is
    torch.testing.assert_close(kept, middle, atol=2e-3, rtol=0)
    inside = (h - made.centre).abs() / made.spread < math.atanh(0.95)
    assert inside.float().mean((0, 2, 3)).tolist() == pytest.approx([0.999, 0.999, 1], abs=2e-4)
    assert float(made.spread[2]) == 1
    values = made(h).values
    assert [len(values[:, i].unique()) for i in range(3)] == [8, 8, 1]
    error = (made.restored(values) - h).std((0, 2, 3)) / h.std((0, 2, 3)).clamp_min(1e-6)
    assert float(error[:2].max()) < 0.25  # a uniform grid over three standard deviations either way: 0.22


def test_gradients_pass_a_grid_and_its_way_back_as_if_there_were_none() -> None:
    made = FSQ(FSQConfig(levels=(255, 255)))
    h = normal(2, 2, 4, 4).clamp(-1.5, 1.5).requires_grad_()
    (passed,) = torch.autograd.grad(made.restored(made(h).values).sum(), h)
    torch.testing.assert_close(passed, torch.ones_like(h), atol=0.04, rtol=0)


def test_a_grid_has_no_weights_and_not_too_many_points() -> None:
    assert list(FSQ(FSQConfig()).parameters()) == []
    assert FSQ(FSQConfig(levels=(256,) * 7 + (127,))).size == 127 * 256**7
    with pytest.raises(ConfigError, match=r"2\^63"):
        FSQ(FSQConfig(levels=(256,) * 7 + (128,)))
