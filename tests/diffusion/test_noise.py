"""Tables, the forward process and its posterior, and the densities, each against what defines it."""

import math

import pytest
import torch
from torch import Tensor

from moyai.diffusion.noise import LogitNormal, LogNormal, Table, TableDensity, UniformT, q_mean_variance, q_posterior
from moyai.errors import ConfigError

TABLES = {
    "linear": Table.linear(),
    "scaled": Table.scaled_linear(),
    "cosine": Table.cosine(),
    "zero-terminal": Table.scaled_linear().zero_terminal(),
    "short": Table.linear(1e-3, 0.2, 7),
}


def test_published_values() -> None:
    """Stable Diffusion's first and last sigma, DDPM's last abar, Nichol and Dhariwal's cosine."""
    assert TABLES["scaled"].sigma_min == pytest.approx(0.029167, abs=1e-6)
    assert TABLES["scaled"].sigma_max == pytest.approx(14.6146, abs=1e-4)
    assert float(TABLES["linear"].abar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)
    for t in (0, 300, 900):
        f = [math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in (t + 1, 0)]
        assert float(TABLES["cosine"].abar[t]) == pytest.approx(f[0] / f[1], rel=1e-12)


def test_betas_of_the_tables_match_diffusers() -> None:
    from diffusers import DDIMScheduler

    for ours, kind, start, end in (
        ("linear", "linear", 1e-4, 0.02),
        ("scaled", "scaled_linear", 0.00085, 0.012),
        ("cosine", "squaredcos_cap_v2", 1e-4, 0.02),
    ):
        theirs = DDIMScheduler(beta_schedule=kind, beta_start=start, beta_end=end).alphas_cumprod.double()
        assert torch.allclose(TABLES[ours].abar, theirs, rtol=2e-4, atol=1e-9)  # theirs is accumulated in float32


def test_zero_terminal_keeps_its_start_and_ends_at_4096() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    table, base = TABLES["zero-terminal"], TABLES["scaled"]
    assert float(table.abar[-1]) == 2.0**-24
    assert table.sigma_max == pytest.approx(4096, abs=1e-3)
    assert float(table.abar[0]) == pytest.approx(float(base.abar[0]), abs=1e-15)
    betas = 1 - base.abar / torch.cat([base.abar.new_ones(1), base.abar[:-1]])
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    assert torch.allclose(table.abar[:-1], theirs[:-1], rtol=1e-9, atol=0)
    assert bool((table.sigmas.diff() > 0).all())
    with pytest.raises(ConfigError, match="2 steps"):
        Table.linear(steps=1).zero_terminal()


@pytest.mark.parametrize("name", TABLES)
def test_time_and_sigma_are_inverse(name: str) -> None:
    table = TABLES[name]
    index = torch.arange(len(table), dtype=torch.float64)
    assert torch.equal(table.time(table.sigmas), index)  # exact at the table's own
    assert torch.equal(table.sigma(index), table.sigmas)
    for one in (0, len(table) // 2, len(table) - 1):  # and one at a time
        assert float(table.time(table.sigmas[one])) == one
    between = torch.rand(500, dtype=torch.float64) * (len(table) - 1)
    assert torch.allclose(table.time(table.sigma(between)), between, atol=1e-8, rtol=0)
    half = table.time((table.sigmas[1:] * table.sigmas[:-1]).sqrt())  # linear in log sigma
    assert torch.allclose(half, index[:-1] + 0.5, atol=1e-8, rtol=0)
    ends = table.time(torch.tensor([0.0, 1e-9, 1e9], dtype=torch.float64))
    assert ends.tolist() == [0, 0, len(table) - 1]
    assert torch.equal(table.time(table.sigma(between), rounded=True), between.round())
    assert torch.equal(table.sigma(torch.tensor([-3.0, 1e6])), table.sigmas[[0, -1]])


def test_table_of_one_step() -> None:
    table = Table.linear(steps=1)
    assert table.time(torch.tensor([0.0, 0.01, 5.0])).tolist() == [0, 0, 0]
    assert float(table.sigma(torch.tensor(0.0))) == table.sigma_min == table.sigma_max


def test_sigma_at_fractions_of_the_tables_own_time() -> None:
    table = TABLES["scaled"]
    fractions = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(table.sigma_at(fractions), table.sigmas, rtol=1e-10)
    assert float(table.sigma_at(torch.tensor(0.0))) == 0
    assert float(table.sigma_at(torch.tensor(0.0005))) == pytest.approx(table.sigma_min / 2)


def test_forward_process_steps_add_up_to_q() -> None:
    """Composing x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) noise, moment by moment, gives q(x_t | x_0)."""
    betas = torch.linspace(1e-3, 0.3, 40, dtype=torch.float64)
    table = Table.from_betas(betas)
    x0 = torch.tensor([[1.7, -0.4]], dtype=torch.float64)
    mean, variance = x0.clone(), torch.tensor(0.0, dtype=torch.float64)
    for t, beta in enumerate(betas):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        q_mean, q_variance = q_mean_variance(x0, table.abar[t : t + 1])
        assert torch.allclose(q_mean, mean, atol=1e-14)
        assert float(q_variance) == pytest.approx(float(variance), abs=1e-14)
        # the same in our coordinates: x / sqrt(abar) = x0 + sigma noise
        assert torch.allclose(mean / table.abar[t].sqrt(), x0, atol=1e-13)
        assert float((variance / table.abar[t]).sqrt()) == pytest.approx(float(table.sigmas[t]), rel=1e-12)


def test_forward_process_sampled_moments() -> None:
    generator = torch.Generator().manual_seed(1)
    x0, abar = torch.full((200_000, 1), 0.8), Table.linear().abar[400]
    x = x0 + float(Table.linear().sigmas[400]) * torch.randn(x0.shape, generator=generator)
    scaled = x * abar.sqrt()
    mean, variance = q_mean_variance(x0[:1].double(), abar)
    assert float(scaled.mean()) == pytest.approx(float(mean), abs=0.01)
    assert float(scaled.var()) == pytest.approx(float(variance), rel=0.02)


@pytest.mark.parametrize("t", [1, 2, 17, 39])
def test_posterior_is_bayes_rule(t: int) -> None:
    """beta~_t and mu~_t against q(x_t | x_{t-1}) q(x_{t-1} | x_0) normalised numerically."""
    betas = torch.linspace(1e-3, 0.3, 40, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    x0, x_t = 0.9, -0.35
    mean, variance = q_posterior(_one(x_t), _one(x0), abar[t], abar[t - 1])
    beta_tilde = (1 - abar[t - 1]) / (1 - abar[t]) * betas[t]
    assert float(variance) == pytest.approx(float(beta_tilde), rel=1e-12)

    grid = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    prior = -((grid - abar[t - 1].sqrt() * x0) ** 2) / (2 * (1 - abar[t - 1]))
    likelihood = -((x_t - (1 - betas[t]).sqrt() * grid) ** 2) / (2 * betas[t])
    density = torch.softmax(prior + likelihood, 0)
    bayes_mean = (density * grid).sum()
    bayes_variance = (density * (grid - bayes_mean) ** 2).sum()
    assert float(mean) == pytest.approx(float(bayes_mean), abs=1e-9)
    assert float(variance) == pytest.approx(float(bayes_variance), rel=1e-6)


def _one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


# --- densities


def _strata(count: int = 10_000) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _furthest(sigma: Tensor, distribution: Tensor) -> float:
    """Kolmogorov and Smirnov's distance of sorted sigmas to their distribution function at them."""
    assert bool((sigma.diff() >= 0).all())
    return float((distribution - _strata(len(sigma))).abs().max())


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_densities_have_their_distribution(shift: float) -> None:
    u = _strata()
    s = LogNormal(0.3, 1.2, shift)(u)
    assert _furthest(s, _normal_cdf(((s / shift).log() - 0.3) / 1.2)) < 1e-6
    s = LogitNormal(-0.2, 0.8, shift)(u)
    t = (s / shift) / (1 + s / shift)
    assert _furthest(s, _normal_cdf((torch.logit(t) + 0.2) / 0.8)) < 1e-6
    s = UniformT(shift)(u)
    t = (s / shift) / (1 + s / shift)
    assert _furthest(s, t) <= shift * 1e-4 + 1e-12  # the clamped ends


def test_shift_is_the_resolution_shift_of_time() -> None:
    """sigma times a is t -> a t / (1 + (a - 1) t) (Esser et al. 2024, eq. 23)."""
    u = _strata(100)
    s = UniformT(3.0)(u)
    assert torch.allclose(s / (1 + s), 3 * u / (1 + 2 * u), atol=1e-12)


def test_table_density_draws_every_index_equally_often() -> None:
    table = TABLES["scaled"]
    s = TableDensity(table)(_strata(5000))
    assert torch.equal(s, table.sigmas.repeat_interleave(5))
    assert torch.equal(TableDensity(table)(torch.tensor([0.0, 1.0])).double(), table.sigmas[[0, -1]].float().double())


@pytest.mark.parametrize("density", [TableDensity(Table.cosine()), LogNormal(0.3, 1.0), UniformT(9.0), LogitNormal()])
def test_densities_are_finite_and_positive_at_the_edges(density: TableDensity | LogNormal) -> None:
    u = torch.tensor([0.0, 1e-30, 0.5, 1 - 2**-24], dtype=torch.float32)
    s = density(u)
    assert s.dtype == torch.float32
    assert bool(torch.isfinite(s).all())
    assert bool((s > 0).all())


def test_t_stays_off_its_ends() -> None:
    for density in (UniformT(), UniformT(50.0), LogitNormal(0, 5.0)):
        s = density(torch.tensor([0.0, 1.0], dtype=torch.float64))
        t = s / (1 + s)
        assert float(t[0]) >= 1e-4 - 1e-12
        assert float(t[1]) <= 1 - 1e-4 + 1e-12


def test_a_table_is_copied_to_a_device_once():
    table, there = Table.cosine(), torch.device("meta")
    assert table.sigmas_on(torch.device("cpu")) is table.sigmas
    placed = table.sigmas_on(there)
    assert (placed.device.type, placed.shape, placed.dtype) == ("meta", table.sigmas.shape, torch.float64)
    index = torch.zeros(3, dtype=torch.int64, device=there)
    for asked in (
        table.time(torch.ones(3, device=there)),
        table.sigma(torch.ones(3, device=there)),
        table.before(index),
    ):
        assert (asked.device.type, asked.dtype) == ("meta", torch.float64)
    assert table.sigmas_on(there) is placed
    steps = torch.arange(len(table))
    assert torch.equal(table.before(steps), torch.cat((torch.zeros(1).double(), table.sigmas[:-1])))
