"""Coefficients and targets by algebra, in float64."""

import pytest
import torch
from torch import Tensor

from moyai.diffusion.noise import Table, column
from moyai.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, V
from moyai.errors import ConfigError

TABLE = Table.scaled_linear()
ALL: dict[str, Parameterization] = {
    "eps": Eps(TABLE),
    "x0": X0(TABLE),
    "v": V(TABLE),
    "v-zero-terminal": V(TABLE.zero_terminal()),
    "edm": EDM(0.5),
    "flow": Flow(),
}


def _case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sigma = torch.logspace(-2, 3, 40, dtype=torch.float64)
    x0, noise = (torch.randn(40, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, noise, sigma


@pytest.mark.parametrize("name", ALL)
def test_target_is_the_output_that_makes_the_estimate_exact(name: str) -> None:
    x0, noise, sigma = _case()
    p = ALL[name]
    c = p(sigma)
    x = x0 + column(sigma, x0) * noise
    target = p.target(x0, noise, sigma)
    # Rounding of x is magnified by x / out where the noise drowns x0.
    assert torch.allclose(target, (x0 - column(c.skip, x) * x) / column(c.out, x), atol=1e-11, rtol=1e-11)
    assert torch.allclose(column(c.skip, x) * x + column(c.out, x) * target, x0, atol=1e-11)


def test_targets_are_the_papers() -> None:
    x0, noise, sigma = _case()
    abar = column(1 / (1 + sigma**2), x0)
    assert torch.equal(ALL["eps"].target(x0, noise, sigma), noise)
    assert torch.equal(ALL["x0"].target(x0, noise, sigma), x0)
    assert torch.allclose(ALL["v"].target(x0, noise, sigma), abar.sqrt() * noise - (1 - abar).sqrt() * x0, atol=1e-12)
    assert torch.equal(ALL["flow"].target(x0, noise, sigma), noise - x0)


def test_inputs_are_the_papers() -> None:
    """in x is the variance-preserving x_t, and on the straight line (1 - t) x0 + t noise."""
    x0, noise, sigma = _case()
    x = x0 + column(sigma, x0) * noise
    abar = column(1 / (1 + sigma**2), x0)
    for name in ("eps", "x0", "v"):
        assert torch.allclose(
            column(ALL[name](sigma).in_, x) * x, abar.sqrt() * x0 + (1 - abar).sqrt() * noise, atol=1e-12
        )
    t = column(sigma / (1 + sigma), x0)
    assert torch.allclose(column(ALL["flow"](sigma).in_, x) * x, (1 - t) * x0 + t * noise, atol=1e-12)


def test_edm_has_unit_variance_everywhere() -> None:
    """Karras et al. 2022, appendix B.6: Var of input and of target are 1 for data of standard deviation sigma_data."""
    sigma, d = torch.logspace(-3, 2, 30, dtype=torch.float64), 0.5
    p = EDM(d)
    assert torch.allclose(p(sigma).in_ ** 2 * (d**2 + sigma**2), torch.ones_like(sigma))
    one, zero = torch.ones(30, 1, dtype=torch.float64), torch.zeros(30, 1, dtype=torch.float64)
    of_data, of_noise = p.target(one, zero, sigma)[:, 0], p.target(zero, one, sigma)[:, 0]
    assert torch.allclose((of_data * d) ** 2 + of_noise**2, torch.ones_like(sigma))


def test_times() -> None:
    s = torch.tensor([0.25, 1.0, 3.0], dtype=torch.float64)
    assert torch.allclose(Flow()(s).time, torch.tensor([200.0, 500.0, 750.0], dtype=torch.float64))
    assert torch.allclose(EDM()(s).time, 250 * s.log())
    for name in ("eps", "x0", "v"):
        assert torch.equal(ALL[name](TABLE.sigmas).time, torch.arange(1000, dtype=torch.float64))
    fractional = TABLE.sigma(torch.tensor([3.4, 3.6]))
    assert Eps(TABLE, rounded=True)(fractional).time.tolist() == [3, 4]
    assert torch.allclose(Eps(TABLE)(fractional).time, torch.tensor([3.4, 3.6], dtype=torch.float64))


@pytest.mark.parametrize("name", ALL)
def test_dtype_shape_and_range(name: str) -> None:
    p = ALL[name]
    assert all(value.dtype == torch.float32 and value.shape == (2,) for value in p(torch.tensor([0.1, 4096.0])))
    assert all(value.shape == () for value in p(torch.tensor(1.0)))
    assert all(bool(torch.isfinite(value).all()) for value in p(torch.tensor([0.0, 1e4])))
    assert float(p.sigma_at(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(p.sigma_max, rel=1e-9)
    fractions = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    assert bool((p.sigma_at(fractions).diff() > 0).all())


def test_float32_sigma_gives_the_coefficients_of_float64() -> None:
    sigma = torch.logspace(-4, 3.6, 50)
    for p in ALL.values():
        for ours, exact in zip(p(sigma), p(sigma.double()), strict=True):
            assert torch.allclose(ours.double(), exact, rtol=1e-7, atol=0)


def test_eps_refuses_a_zero_terminal_table() -> None:
    with pytest.raises(ConfigError, match=r"zero-terminal.*possible: v"):
        Eps(TABLE.zero_terminal())
