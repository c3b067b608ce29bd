"""The variational bound: against the papers' own terms, against the entropy of Gaussian data, and its gradients."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion import bound
from moyai.diffusion.bound import discretized, gaussian, hybrid_loss, prior_term, step_term, terms
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import diffusion_loss, weighting
from moyai.diffusion.noise import Table, column
from moyai.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, V
from moyai.errors import ConfigError

NO = Cond()
TABLES = {
    "linear": Table.linear(1e-3, 0.3, 12),
    "cosine": Table.cosine(steps=9),
    "zero-terminal": Table.cosine(steps=7).zero_terminal(),
}


class Random(nn.Module):
    """A network of random weights, of 2C outputs where the variance is learned."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(outputs, 3, 1, 1, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return torch.tanh(nn.functional.conv2d(x, self.weight) + column(time, x) / 10)


def denoiser(kind: type, table: Table, learned: bool = True) -> Denoiser:
    return Denoiser(Random(6 if learned else 3), kind(table), learned_variance=learned)


def pixels(count: int, seed: int = 0) -> Tensor:
    levels = torch.randint(0, 256, (count, 3, 2, 2), generator=torch.Generator().manual_seed(seed))
    levels[:, 0, 0, 0], levels[:, 1, 0, 0] = 0, 255  # the open ends are there
    return levels.double() / 127.5 - 1


def noise(like: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


# --- the papers' terms, in their own coordinates and from their own quantities


class Paper:
    """Gaussian diffusion as Nichol and Dhariwal write it: betas, cumulative products, posterior means and variances."""

    def __init__(self, betas: np.ndarray) -> None:
        self.betas = betas
        self.bar = np.cumprod(1 - betas)
        self.bar_prev = np.append(1.0, self.bar[:-1])
        self.posterior_variance = betas * (1 - self.bar_prev) / (1 - self.bar)
        self.clipped = np.append(self.posterior_variance[1], self.posterior_variance[1:])
        self.coef1 = betas * np.sqrt(self.bar_prev) / (1 - self.bar)
        self.coef2 = (1 - self.bar_prev) * np.sqrt(1 - betas) / (1 - self.bar)

    def x0(self, kind: type, output: np.ndarray, x_t: np.ndarray, t: int) -> np.ndarray:
        a, s = math.sqrt(self.bar[t]), math.sqrt(1 - self.bar[t])
        return {Eps: (x_t - s * output) / a, X0: output, V: a * x_t - s * output}[kind]

    def variance(self, kind: str, v: np.ndarray, t: int) -> np.ndarray:
        if kind == "learned":
            share = (v + 1) / 2
            return np.exp(share * np.log(self.betas[t]) + (1 - share) * np.log(self.clipped[t]))
        fixed = {"small": self.clipped, "large": np.append(self.posterior_variance[1], self.betas[1:])}[kind]
        return np.full_like(v, fixed[t])

    def term(self, x0: np.ndarray, x_t: np.ndarray, estimate: np.ndarray, var: np.ndarray, t: int) -> np.ndarray:
        """L_t in nats a value; at t = 0 the discretised likelihood by scipy's normal distribution."""
        from scipy.special import logsumexp
        from scipy.stats import norm

        mean = self.coef1[t] * estimate + self.coef2[t] * x_t
        if t == 0:
            upper = np.where(x0 > 0.999, np.inf, (x0 + 1 / 255 - mean) / np.sqrt(var))
            lower = np.where(x0 < -0.999, -np.inf, (x0 - 1 / 255 - mean) / np.sqrt(var))
            mirrored = lower + upper > 0
            left, right = np.where(mirrored, -upper, lower), np.where(mirrored, -lower, upper)
            both = np.stack([norm.logcdf(right), norm.logcdf(left)])
            return -logsumexp(both, axis=0, b=np.array([1.0, -1.0]).reshape(2, 1, 1, 1, 1)).mean((1, 2, 3))
        true_mean, true_var = self.coef1[t] * x0 + self.coef2[t] * x_t, self.posterior_variance[t]
        kl = 0.5 * (-1 + np.log(var) - math.log(true_var) + true_var / var + (true_mean - mean) ** 2 / var)
        return kl.mean((1, 2, 3))


@pytest.mark.parametrize("variance", ["learned", "small", "large"])
@pytest.mark.parametrize("kind", [Eps, X0, V])
@pytest.mark.parametrize("table", ["linear", "cosine"])
def test_every_term_is_the_papers(table: str, kind: type, variance: bound.Variance) -> None:
    made = TABLES[table]
    betas = {"linear": np.linspace(1e-3, 0.3, 12), "cosine": _cosine_betas(9)}[table]
    paper = Paper(betas)
    assert np.allclose(paper.bar, made.abar.numpy(), rtol=1e-12)
    model = denoiser(kind, made)
    x0 = pixels(4)
    fresh = {t: noise(x0, t) for t in range(len(made))}
    seen = list(terms(model, x0, NO, lambda t: fresh[t], decoder=discretized, variance=variance))
    assert [term.at for term in seen] == list(range(len(made), -1, -1))
    assert [(term.done, term.total) for term in seen] == [(i + 1, len(made) + 1) for i in range(len(made) + 1)]

    bar = paper.bar[-1]
    mean, var = math.sqrt(bar) * x0.numpy(), 1 - bar
    last = (0.5 * (-1 - math.log(var) + var + mean**2)).mean((1, 2, 3))
    assert np.allclose(seen[0].nats.numpy(), last, rtol=1e-9)
    for term in seen[1:]:
        t = term.at
        x_t = math.sqrt(paper.bar[t]) * x0 + math.sqrt(1 - paper.bar[t]) * fresh[t]
        output = model.net(x_t, torch.full((4,), float(t), dtype=torch.float64), NO).detach().numpy()
        estimate = paper.x0(kind, output[:, :3], x_t.numpy(), t)
        wanted = paper.term(x0.numpy(), x_t.numpy(), estimate, paper.variance(variance, output[:, 3:], t), t)
        assert bool(np.isfinite(wanted).all())
        assert np.abs(term.nats.numpy() - wanted).max() <= 1e-6 * max(1.0, np.abs(wanted).max()), t


def _cosine_betas(steps: int) -> np.ndarray:
    bar = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    return np.array([min(1 - after / before, 0.999) for before, after in pairwise(bar)])


def test_the_learned_variance_is_the_papers_in_their_coordinates() -> None:
    """V abar_{t-1} is exp of the interpolated logarithms of beta_t and beta~_t, and lies between them where v does."""
    paper, made = Paper(np.linspace(1e-3, 0.3, 12)), TABLES["linear"]
    model, x0 = denoiser(Eps, made), pixels(1)
    for t in range(1, 12):
        sigma, before = made.sigmas[t : t + 1], made.sigmas[t - 1 : t]
        x = x0 + sigma * noise(x0)
        v = model.net(x / (1 + sigma**2).sqrt(), torch.tensor([float(t)], dtype=torch.float64), NO)[:, 3:].detach()
        ours = (model.variance(x, sigma, before) * paper.bar[t - 1]).detach().numpy()
        assert np.allclose(ours, paper.variance("learned", v.numpy(), t), rtol=1e-11)
        assert bool(((ours >= paper.posterior_variance[t]) & (ours <= paper.betas[t])).all())
    estimate, variance = model.step(x, sigma, before)
    assert torch.equal(estimate, model(x, sigma))  # one forward, the same estimate
    assert torch.equal(variance, model.given(NO).step(x, sigma, before)[1])


def test_small_is_the_weighted_error_of_the_estimate() -> None:
    """Equation (3) at V = v: half the fall of 1/s^2 times (D - x0)^2 (Kingma et al. 2021, eq. 13)."""
    for made in TABLES.values():
        model, x0 = denoiser(V, made, learned=False), pixels(len(made) - 1)
        index = torch.arange(1, len(made))
        s, t = made.sigmas[1:], made.sigmas[:-1]
        e = noise(x0)
        nats = step_term(model, x0, NO, index, e, decoder=gaussian, variance="small")
        error = (model(x0 + column(s, x0) * e, s) - x0).square().flatten(1).mean(1)
        assert torch.allclose(nats, 0.5 * (1 / t**2 - 1 / s**2) * error, rtol=1e-9)


def test_float32_gives_the_terms_of_float64() -> None:
    made = Table.linear()
    model, x0 = denoiser(Eps, made), pixels(8).float()
    index = torch.tensor([0, 1, 2, 10, 100, 500, 900, 999])
    exact = step_term(model, x0.double(), NO, index, noise(x0).double(), decoder=discretized, variance="learned")
    rough = step_term(model.float(), x0, NO, index, noise(x0), decoder=discretized, variance="learned")
    assert rough.dtype == torch.float32
    assert torch.allclose(rough.double(), exact, rtol=2e-4)


# --- L_0


@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 5.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.1234, 0.98, 2.0])
def test_the_probabilities_of_the_256_levels_add_up_to_one(mean: float, std: float) -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    nats = discretized(levels, torch.full_like(levels, mean), torch.full_like(levels, std**2))
    assert bool(torch.isfinite(nats).all())  # however far away: a logarithm is kept where the probability underflows
    assert float(torch.logsumexp(-nats, 0)) == pytest.approx(0.0, abs=1e-12)
    assert bool(torch.isfinite(discretized(levels.float(), torch.tensor(mean), torch.tensor(std**2))).all())


def test_a_narrow_interval_is_the_density() -> None:
    levels = torch.arange(1, 255, dtype=torch.float64) / 127.5 - 1
    mean, variance = torch.full_like(levels, 0.2), torch.full_like(levels, 4.0)
    assert torch.allclose(discretized(levels, mean, variance), gaussian(levels, mean, variance) - math.log(2 / 255),
                          atol=1e-6)  # fmt: skip
    normal = torch.distributions.Normal(mean, 2.0)
    assert torch.allclose(gaussian(levels, mean, variance), -normal.log_prob(levels), rtol=1e-12)


def test_l0_has_finite_gradients_everywhere() -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-50.0, 0.0, 50.0):
        variance = torch.full_like(levels, 1e-6, requires_grad=True)
        discretized(levels, torch.full_like(levels, mean), variance).sum().backward()
        assert variance.grad is not None
        assert bool(torch.isfinite(variance.grad).all())


# --- Gaussian data


class Exact(nn.Module):
    """The true noise of N(0, std^2), and a learned variance that is everywhere `share` of the way to large."""

    def __init__(self, table: Table, std: float, share: float | None) -> None:
        super().__init__()
        self.table, self.std, self.share = table, std, share

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        s = column(self.table.sigma(time), x)
        eps = x * (1 + s**2).sqrt() * s / (self.std**2 + s**2)
        return eps if self.share is None else torch.cat([eps, torch.full_like(eps, 2 * self.share - 1)], 1)


def exact_bound(table: Table, std: float, variance: bound.Variance) -> float:
    """The bound's expectation over data and noise: every term is a quadratic form, so four points give it exactly."""
    share = 1.0 if variance == "learned" else None
    model = Denoiser(Exact(table, std, share), Eps(table), learned_variance=share is not None)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    x0, e = std * signs[:, :1], signs[:, 1:]
    return sum(float(t.nats.mean()) for t in terms(model, x0, NO, lambda t: e, decoder=gaussian, variance=variance))


def entropy(std: float) -> float:
    return 0.5 * math.log(2 * math.pi * math.e * std**2)


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_for_data_of_variance_one_large_is_the_truth(steps: int) -> None:
    """p(x_{t-1} | x_t) is Gaussian with variance beta_t then: the bound is the entropy, however few the steps."""
    for table in (Table.linear(0.02, 0.5, steps), Table.cosine(steps=steps)):
        assert exact_bound(table, 1.0, "learned") == pytest.approx(entropy(1.0), abs=1e-9)


@pytest.mark.parametrize("std", [0.3, 2.0])
def test_the_bound_is_above_the_entropy_and_comes_down_to_it(std: float) -> None:
    gaps = {}
    for steps in (25, 75, 225):
        table = Table.linear(0.1 / steps, 20 / steps, steps)
        gaps[steps] = {v: exact_bound(table, std, v) - entropy(std) for v in ("small", "large", "learned")}
        assert min(gaps[steps].values()) > 0
    for coarse, fine in ((25, 75), (75, 225)):
        assert gaps[fine]["learned"] < 0.6 * gaps[coarse]["learned"]
    assert gaps[225]["learned"] < 0.05
    assert gaps[225]["learned"] < gaps[225]["small"]


# --- training a variance


def _case(kind: type) -> tuple[Denoiser, Tensor, Tensor, Tensor]:
    made = TABLES["linear"]
    x0 = pixels(12)
    return denoiser(kind, made), x0, made.sigmas, noise(x0)


def _hybrid(model: Denoiser, x0: Tensor, sigma: Tensor, e: Tensor, bound_weight: float = 0.001) -> Tensor:
    plain = weighting("plain")
    return hybrid_loss(model, x0, NO, sigma, e, plain, decoder=discretized, bound_weight=bound_weight)


@pytest.mark.parametrize("kind", [Eps, X0, V])
def test_the_bound_teaches_the_variance_and_the_simple_loss_the_estimate(kind: type) -> None:
    model, x0, sigma, e = _case(kind)
    weight = model.net.weight
    simple = diffusion_loss(model, x0, NO, sigma, e, weighting("plain"))
    (of_simple,) = torch.autograd.grad(simple.sum(), weight)
    (of_hybrid,) = torch.autograd.grad(_hybrid(model, x0, sigma, e).sum(), weight)
    assert torch.equal(of_hybrid[:3], of_simple[:3])  # the bound adds nothing to the outputs of the estimate
    assert bool((of_simple[3:] == 0).all())
    assert bool((of_hybrid[3:] != 0).all())
    index = torch.arange(12)
    free = step_term(model, x0, NO, index, e, decoder=discretized, variance="learned")
    (of_bound,) = torch.autograd.grad(free.sum(), weight)
    assert bool((of_bound[:3] != 0).all())  # it would, if it were let
    assert torch.allclose(of_hybrid[3:], 0.001 * 12 / math.log(2) * of_bound[3:], rtol=1e-9)


def test_the_hybrid_loss_is_the_papers_sum() -> None:
    """L_simple + lambda L_vlb, the latter T times a term in bits a value."""
    model, x0, sigma, e = _case(Eps)
    simple = diffusion_loss(model, x0, NO, sigma, e, weighting("plain"))
    vlb = 12 / math.log(2) * step_term(model, x0, NO, torch.arange(12), e, decoder=discretized, variance="learned")
    for bound_weight in (0.001, 1.0):
        ours = _hybrid(model, x0, sigma.float(), e, bound_weight)  # levels as a density gives them
        assert torch.allclose(ours, simple + bound_weight * vlb, rtol=1e-5)


# --- what is refused


@pytest.mark.parametrize("kind", [EDM(), Flow()])
def test_without_a_table_there_is_no_bound(kind: Parameterization) -> None:
    with pytest.raises(ConfigError, match=r"learned variance needs a table, and (EDM|Flow) has none"):
        Denoiser(Random(6), kind, learned_variance=True)
    x0 = pixels(1)
    with pytest.raises(ConfigError, match=r"(EDM|Flow) has no table; possible: eps, x0 or v"):
        next(terms(Denoiser(Random(3), kind), x0, NO, lambda t: x0, decoder=gaussian, variance="small"))


def test_a_variance_that_was_not_learned() -> None:
    model, x0 = denoiser(Eps, TABLES["linear"], learned=False), pixels(1)
    with pytest.raises(ConfigError, match="has learned no variance; possible: small or large"):
        step_term(model, x0, NO, torch.tensor([3]), x0, decoder=gaussian, variance="learned")
    with pytest.raises(ConfigError, match="has learned no variance; possible: small or large"):
        model.variance(x0, torch.tensor([1.0]), torch.tensor([0.5]))


def test_l_t_vanishes_where_nothing_of_the_picture_is_left() -> None:
    assert float(prior_term(TABLES["zero-terminal"], pixels(3)).abs().max()) < 1e-7
    assert float(prior_term(TABLES["linear"], pixels(3)).min()) > 1e-4
