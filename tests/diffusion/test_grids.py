"""Grids: every count from 1 to 1000, and the ends they promise."""

import pytest
import torch

from moyai.diffusion.grids import GRIDS, karras, table_spacing, uniform_log, uniform_time
from moyai.diffusion.noise import Table
from moyai.diffusion.parameterization import EDM, Eps, Flow, Parameterization, V
from moyai.errors import RequestError

MODELS: dict[str, Parameterization] = {
    "eps": Eps(Table.scaled_linear()),
    "v-zero-terminal": V(Table.cosine().zero_terminal()),
    "v-cosine": V(Table.cosine()),
    "v-short": V(Table.linear(1e-3, 0.2, 50)),
    "edm": EDM(),
    "flow": Flow(),
}
PAIRS = [(g, m) for g in GRIDS for m in MODELS if g != "table" or m not in ("edm", "flow")]


@pytest.mark.parametrize(("grid", "model"), PAIRS)
def test_every_count(grid: str, model: str) -> None:
    p = MODELS[model]
    for steps in range(1, 1001):
        sigmas = GRIDS[grid](p, steps, 1.0)
        assert sigmas.shape == (steps + 1,)
        assert sigmas.dtype == torch.float32
        assert bool(torch.isfinite(sigmas).all())
        assert bool((sigmas.diff() < 0).all()), (grid, model, steps)
        assert float(sigmas[-1]) == 0
        assert float(sigmas[0]) <= p.sigma_max * (1 + 1e-6)
        if grid != "table":  # "leading" spacing stops short of the table's end, as published
            assert float(sigmas[0]) == pytest.approx(p.sigma_max, rel=1e-6)


@pytest.mark.parametrize("grid", ["karras", "uniform-log", "uniform-time"])
@pytest.mark.parametrize("model", MODELS)
def test_strength_is_a_fraction_of_the_models_own_time(grid: str, model: str) -> None:
    p = MODELS[model]
    for strength in (0.0001, 0.01, 0.3, 0.75):
        first = float(p.sigma_at(torch.tensor(strength, dtype=torch.float64)))
        for steps in (1, 2, 10, 57):
            sigmas = GRIDS[grid](p, steps, strength)
            assert sigmas.shape == (steps + 1,)
            assert float(sigmas[0]) == pytest.approx(first, rel=1e-6)
            assert bool((sigmas.diff() < 0).all())


def test_published_grids() -> None:
    """Karras et al. 2022, eq. 5, term by term; an even flow; even logarithms."""
    steps, high, low, rho = 18, 80.0, 0.002, 7.0
    sigmas = karras(high, low, steps)
    for i in range(steps):
        expected = (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        assert float(sigmas[i]) == pytest.approx(expected, rel=1e-6)
    log = uniform_log(10.0, 0.1, 5)[:-1].log().diff()
    assert torch.allclose(log, log[0].expand(4), rtol=1e-5)
    s = uniform_time(Flow(), 4)
    assert torch.allclose(s / (1 + s), torch.tensor([4096 / 4097, 0.75, 0.5, 0.25, 0.0]), atol=1e-6)


def test_uniform_time_of_a_table_is_trailing() -> None:
    table = Table.scaled_linear()
    for steps in (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 1000):
        even = uniform_time(V(table), steps)
        assert torch.allclose(even, table_spacing(table, steps, "trailing"), rtol=1e-6)


def test_table_spacing_is_the_literatures() -> None:
    """Against diffusers' own indices wherever it gives them, and the original DDIM's where it does not crash."""
    from diffusers import DDIMScheduler

    table = Table.scaled_linear()
    for steps in (1, 4, 7, 10, 20, 30, 50, 100, 200, 500):
        for spacing, offset in (("leading", 0), ("leading", 1), ("trailing", 0)):
            scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
            scheduler.set_timesteps(steps)
            ours = table_spacing(table, steps, spacing, offset=offset)[:-1]
            assert torch.equal(ours, table.sigmas[scheduler.timesteps].float())
    original = torch.arange(0, 1000, 1000 // 50) + 1
    ours = table_spacing(table, 50, end="first")
    assert torch.equal(ours[:-1], table.sigmas[original.flip(0)].float())
    assert float(ours[-1]) == pytest.approx(0.029167, abs=1e-6)


@pytest.mark.parametrize("steps", [3, 9, 27, 36, 37, 101, 111, 251, 333, 501, 1000])
def test_counts_at_which_the_original_stops(steps: int) -> None:
    table = Table.scaled_linear()
    sigmas = table_spacing(table, steps)
    assert sigmas.shape == (steps + 1,)
    assert float(sigmas[0]) <= table.sigma_max + 1e-5
    assert bool((sigmas.diff() < 0).all())


def test_what_cannot_be_walked_is_refused() -> None:
    with pytest.raises(RequestError, match=r"steps 0 .*possible: 1"):
        karras(10, 0.1, 0)
    with pytest.raises(RequestError, match=r"strength 1\.5 .*possible"):
        uniform_time(Flow(), 3, 1.5)
    with pytest.raises(RequestError, match=r"strength 0\.0"):
        GRIDS["karras"](Flow(), 3, 0.0)
    with pytest.raises(RequestError, match="Flow; possible: karras"):
        GRIDS["table"](Flow(), 3, 1.0)
    with pytest.raises(RequestError, match=r"strength 0\.5"):
        GRIDS["table"](MODELS["eps"], 3, 0.5)
