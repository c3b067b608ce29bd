"""Samplers against closed forms: a Gaussian's exact flow, linear recursions of moments, and published schedulers."""

from collections.abc import Callable
from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.config import NOISY
from moyai.diffusion.denoiser import Denoise, Denoiser
from moyai.diffusion.grids import GRIDS, karras, table_spacing, uniform_log, uniform_time
from moyai.diffusion.guidance import inpainting
from moyai.diffusion.noise import Table, column, q_posterior
from moyai.diffusion.parameterization import X0, Eps, Flow, Parameterization, V
from moyai.diffusion.samplers import SAMPLERS
from moyai.diffusion.sampling import SPAN, Step, ddpm, euler, heun, repeated, split, start
from moyai.errors import RequestError

MEAN, STD = 0.3, 0.6
ANCESTRAL = [name for name in SAMPLERS if name.startswith("ddpm")]
DETERMINISTIC = [name for name in SAMPLERS if name not in ANCESTRAL]  # at eta 0
STOCHASTIC = NOISY  # at eta above 0


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] for x0 ~ N(MEAN, STD^2)."""
    s2 = column(sigma, x) ** 2
    return (STD**2 * x + s2 * MEAN) / (STD**2 + s2)


def flow(x: Tensor, s: float, t: float) -> Tensor:
    """The probability flow of that Gaussian from s to t, exactly."""
    return MEAN + (x - MEAN) * sqrt((STD**2 + t**2) / (STD**2 + s**2))


def last(sampler: str, denoise: Denoise, x: Tensor, sigmas: Tensor, **options: object) -> Tensor:
    *_, step = SAMPLERS[sampler](denoise, x, sigmas, **options)  # type: ignore[arg-type]
    return step.x


# --- deterministic


@pytest.mark.parametrize("grid", ["karras", "uniform-log"])
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpm2", 2), ("dpmpp_2s", 2)])
def test_order_of_convergence(sampler: str, order: int, grid: str) -> None:
    high, low = 12.0, 0.1
    x = MEAN + high * torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(5, 1)
    errors = []
    for steps in (160, 320, 640):
        ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)  # float64, unlike the library's grids
        sigmas = high * (low / high) ** ramp
        if grid == "karras":
            sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        errors.append(float((last(sampler, gaussian, x, sigmas) - flow(x, high, low)).abs().max()))
    for coarse, fine in pairwise(errors):
        assert torch.tensor(coarse / fine).log2().item() == pytest.approx(order, abs=0.1)


COUNTS = [*range(1, 13), 27, 36, 37, 50, 101, 111, 250, 333, 501, 999, 1000]
MODELS: dict[str, Parameterization] = {
    "eps": Eps(Table.scaled_linear()),
    "v": V(Table.cosine()),
    "flow": Flow(),
}


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize(("grid", "model"), [(g, m) for g in GRIDS for m in MODELS if (g, m) != ("table", "flow")])
def test_every_sampler_on_every_grid(sampler: str, grid: str, model: str) -> None:
    """Any count ends at 0, nowhere further from the picture than the data reach, or twice as far where a parabola is
    continued over few long steps; many steps end at the solution."""
    p = MODELS[model]
    noise = torch.tensor([[-1.5], [0.0], [0.7], [2.0]])
    for steps in COUNTS:
        sigmas = GRIDS[grid](p, steps, 1.0)
        x = start(noise, p, sigmas)
        walk = list(SAMPLERS[sampler](gaussian, x, sigmas))
        assert [step.index for step in walk] == list(range(1, steps + 1))
        assert [step.sigma for step in walk] == sigmas[1:].tolist()
        end = walk[-1].x
        exact = flow(x.double(), float(sigmas[0]), 0.0)
        reach = 2.5 if steps <= 12 and sampler in ("dpmpp_3m", "dpmpp_3m_exact", "unipc", "unipc_3") else 1.4
        assert bool(((end - MEAN).abs() <= reach * (exact - MEAN).abs() + 1e-5).all()), steps
        if steps >= 333:
            assert torch.allclose(end.double(), exact, atol=0.03), steps


def test_the_last_step_returns_the_estimate_to_the_bit() -> None:
    sigmas = karras(10.0, 0.1, 4)
    for sampler in SAMPLERS.values():
        *_, step = sampler(gaussian, torch.randn(3, 2), sigmas, noise=lambda i: torch.randn(3, 2))
        assert torch.equal(step.x, step.denoised)


def test_denoised_is_the_estimate_of_the_step_and_nothing_is_kept() -> None:
    sigmas = uniform_log(8.0, 0.1, 5)
    x = 8 * torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    first = list(euler(gaussian, x, sigmas))
    assert torch.equal(first[0].denoised, gaussian(x, sigmas[:1]))
    assert torch.equal(first[2].denoised, gaussian(first[1].x, sigmas[2:3]))
    second = list(euler(gaussian, x, sigmas))
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))


def test_heun_is_algorithm_1() -> None:
    """Karras et al. 2022, algorithm 1, as printed; the published grid of 18 steps has no step it leaves out."""
    sigmas = karras(80.0, 0.002, 18).double()
    assert float((sigmas[:-2] / sigmas[1:-1]).max()) < SPAN
    x = 80 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    printed = x
    for s, t in pairwise(sigmas):
        d = (printed - gaussian(printed, s)) / s
        following = printed + (t - s) * d
        if t > 0:
            following = printed + (t - s) * (d / 2 + (following - gaussian(following, t)) / t / 2)
        printed = following
    assert torch.allclose(last("heun", gaussian, x, sigmas), printed, atol=1e-12)


def test_dpmpp_2m_is_the_published_one() -> None:
    """Lu et al. 2022, algorithm 2, in lambda = -log sigma, and the SDE variant at eta 1, term by term."""
    sigmas = karras(14.0, 0.05, 12).double()
    generator = torch.Generator().manual_seed(0)
    x = 14 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    fresh = torch.randn(13, 4, 3, generator=generator, dtype=torch.float64)
    for eta in (0.0, 1.0):
        y, before, h_before = x, None, 0.0
        for i in range(12):
            s, t = sigmas[i], sigmas[i + 1]
            d = gaussian(y, s)
            if t == 0:
                y = d
                break
            h = float(torch.log(s / t))
            decay = torch.exp(torch.tensor(-h - eta * h, dtype=torch.float64))
            y = t / s * torch.exp(torch.tensor(-eta * h, dtype=torch.float64)) * y + (1 - decay) * d
            if before is not None:
                y = y + 0.5 * (1 - decay) * (h / h_before) * (d - before)
            y = y + fresh[i + 1] * t * (1 - torch.exp(torch.tensor(-2 * eta * h, dtype=torch.float64))).sqrt()
            before, h_before = d, h
        ours = last("dpmpp_2m", gaussian, x, sigmas, eta=eta, noise=lambda i: fresh[i])
        assert torch.allclose(ours, y, atol=1e-12), eta


def test_dpmpp_2s_is_the_published_one() -> None:
    """DPM-Solver++(2S) with r = 1/2 in lambda = -log sigma, and its ancestral variant, term by term."""
    sigmas = karras(14.0, 0.05, 12).double()
    generator = torch.Generator().manual_seed(0)
    x = 14 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    fresh = torch.randn(13, 4, 3, generator=generator, dtype=torch.float64)
    for eta in (0.0, 1.0):
        y = x
        for i in range(12):
            s, t = sigmas[i], sigmas[i + 1]
            up = eta * t * ((s**2 - t**2) / s**2).sqrt()
            down = (t**2 - up**2).sqrt()
            d = mixture(y, s)
            if t > 0:
                h = torch.log(s) - torch.log(down)
                half = torch.exp(torch.log(s) - h / 2)
                d = mixture(half / s * y - torch.expm1(-h / 2) * d, half)
                y = down / s * y - torch.expm1(-h) * d + up * fresh[i + 1]
            else:
                y = d
        ours = last("dpmpp_2s", mixture, x, sigmas, eta=eta, noise=lambda i: fresh[i])
        assert torch.allclose(ours, y, atol=1e-11), eta


def mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] for a mixture of four narrow Gaussians on the line."""
    centres = torch.tensor([-1.5, -0.4, 0.5, 1.4], dtype=x.dtype)
    total = column(sigma, x) ** 2 + 0.05**2
    share = torch.softmax(-((x[..., None] - centres) ** 2) / (2 * total[..., None]), -1)  # (..., 4)
    return (0.05**2 * x + column(sigma, x) ** 2 * (share * centres).sum(-1)) / total


@pytest.mark.parametrize("model", ["v", "flow"])
def test_no_sampler_is_lost_by_the_long_first_step_of_an_even_grid(model: str) -> None:
    """Few even steps from pure noise: every sampler ends nearer to the data than their spread; Heun beats Euler."""
    p = MODELS[model]
    noise = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
    fine = uniform_log(p.sigma_max, 0.002, 1000).double()
    exact = last("euler", mixture, start(noise, p, fine), fine)
    error = {}
    for name in DETERMINISTIC:
        sigmas = uniform_time(p, 12).double()
        error[name] = float((last(name, mixture, start(noise, p, sigmas), sigmas) - exact).square().mean().sqrt())
        assert error[name] < 0.5, name
    assert error["heun"] < error["euler"]


def test_a_start_at_4096_keeps_float32() -> None:
    """The walk in float32 against float64; the textbook form of the step loses a thousand times more."""

    def textbook(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
        for s, t in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            x = x + (t - s) * (x - denoise(x, torch.full((len(x),), s, dtype=x.dtype))) / s
        return x

    noise = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    for p in (Flow(), V(Table.scaled_linear().zero_terminal())):
        sigmas = uniform_time(p, 25)
        assert float(sigmas[0]) == pytest.approx(4096, abs=1e-3)
        x = start(noise, p, sigmas)
        exact = last("euler", gaussian, x.double(), sigmas.double())
        assert float((last("euler", gaussian, x, sigmas) - exact).abs().max()) < 1e-6
        assert float((textbook(gaussian, x, sigmas) - exact).abs().max()) > 1e-5


# --- stochastic


@pytest.mark.parametrize("sampler", STOCHASTIC)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_point_data_is_exact_at_every_sigma(sampler: str, eta: float) -> None:
    """Data at one point: x - x0 is N(0, sigma^2) after every step, whatever their number.

    The sampler is linear, so its response to one unit of each noise gives the variance without sampling.
    """
    for steps in (1, 3, 20):
        sigmas = karras(12.0, 0.1, steps).double()
        for step in _responses(sampler, lambda x, s: torch.zeros_like(x), sigmas, eta, begin=12.0):
            assert float(step.x.square().sum()) == pytest.approx(step.sigma**2, rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_gaussian_moments_follow_the_closed_recursion(eta: float) -> None:
    """Euler on a Gaussian is x' - m = k (x - m) + up noise; the variance of a walk is that recursion's."""
    sigmas = karras(12.0, 0.1, 15).double()
    variance = sigmas[0] ** 2 + STD**2
    steps = list(
        _responses("euler", lambda x, s: gaussian(x + MEAN, s) - MEAN, sigmas, eta, begin=float(variance) ** 0.5)
    )
    for (s, t), step in zip(zip(sigmas.tolist(), sigmas[1:].tolist(), strict=False), steps, strict=True):
        shrink = STD**2 / (STD**2 + s**2)
        up2 = eta**2 * t**2 * (s**2 - t**2) / s**2
        variance = (shrink + (t**2 - up2) ** 0.5 / s * (1 - shrink)) ** 2 * variance + up2
        assert float(step.x.square().sum()) == pytest.approx(float(variance), rel=1e-12)
    mean = last(
        "euler",
        gaussian,
        torch.full((1, 1), MEAN, dtype=torch.float64),
        sigmas,
        eta=eta,
        noise=_zeros(torch.zeros(1, 1)),
    )
    assert float(mean) == pytest.approx(MEAN, abs=1e-14)


@pytest.mark.parametrize("sampler", STOCHASTIC)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_many_steps_give_the_datas_variance(sampler: str, eta: float) -> None:
    def centred(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian(x + MEAN, sigma) - MEAN

    off = []
    for steps in (100, 400):
        sigmas = torch.cat([uniform_log(12.0, 0.005, steps)[:-1].double(), torch.zeros(1, dtype=torch.float64)])
        *_, step = _responses(sampler, centred, sigmas, eta, begin=sqrt(12.0**2 + STD**2))
        off.append(abs(float(step.x.square().sum()) / STD**2 - 1))
    assert off[1] < 0.03
    assert off[1] < max(off[0] / 2, 1e-4)  # the grid's own ends are 1e-4 off


def _responses(sampler: str, denoise: Denoise, sigmas: Tensor, eta: float, *, begin: float) -> "list[Step]":
    """A walk of steps + 1 rows: row 0 starts at `begin` and has no noise, row i starts at 0 and has 1 in step i."""
    rows = len(sigmas)
    x = torch.zeros(rows, 1, dtype=torch.float64)
    x[0] = begin

    def impulse(index: int) -> Tensor:
        one = torch.zeros_like(x)
        one[index] = 1
        return one

    return list(SAMPLERS[sampler](denoise, x, sigmas, eta=eta, noise=impulse))


def test_ascent_is_split_in_two_legs() -> None:
    assert split(5.0, 2.0, 0.0) == (2.0, 0.0)
    for eta in (0.3, 1.0):
        down, up = split(5.0, 2.0, eta)
        assert down**2 + up**2 == pytest.approx(4.0, rel=1e-14)
    assert split(5.0, 2.0, 1.0)[0] == pytest.approx(2.0 * 2.0 / 5.0, rel=1e-14)  # t^2 / s
    assert split(5.0, 0.0, 1.0) == (0.0, 0.0)


def test_eta_one_is_the_posterior() -> None:
    """A step at eta 1 draws from q(x_{t-1} | x_t, x_0 = D), equation (4) of noise.py, mean and variance."""
    table = Table.linear()
    for t, prev in ((999, 998), (500, 499), (400, 350), (1, 0)):
        s, s_prev = table.sigmas[t], table.sigmas[prev]
        x = torch.randn(6, 2, dtype=torch.float64) * s
        step = next(euler(gaussian, x, torch.stack([s, s_prev]), eta=1.0, noise=_zeros(x)))
        mean, variance = q_posterior(x * table.abar[t].sqrt(), gaussian(x, s[None]), table.abar[t], table.abar[prev])
        assert torch.allclose(step.x * table.abar[prev].sqrt(), mean, atol=1e-12)
        up = split(float(s), float(s_prev), 1.0)[1]
        assert up**2 * float(table.abar[prev]) == pytest.approx(float(variance), rel=1e-9)


# --- ddpm


@pytest.mark.parametrize(("grid", "model"), [(g, m) for g in GRIDS for m in MODELS if (g, m) != ("table", "flow")])
def test_ddpm_is_euler_at_eta_one(grid: str, model: str) -> None:
    """With the posterior's variance, on every grid and at many counts of steps; the last step is the estimate."""
    p = MODELS[model]
    generator = torch.Generator().manual_seed(0)
    for steps in (1, 2, 12, 101):
        sigmas = GRIDS[grid](p, steps, 1.0).double()
        x = start(torch.randn(3, 2, generator=generator, dtype=torch.float64), p, sigmas)
        fresh = torch.randn(steps + 1, 3, 2, generator=generator, dtype=torch.float64)
        theirs = euler(mixture, x, sigmas, eta=1.0, noise=lambda i, fresh=fresh: fresh[i])
        ours = ddpm(mixture, x, sigmas, noise=lambda i, fresh=fresh: fresh[i])
        small = SAMPLERS["ddpm_small"](mixture, x, sigmas, noise=lambda i, fresh=fresh: fresh[i])
        for a, b, c in zip(theirs, ours, small, strict=True):
            assert a.index == b.index
            assert a.sigma == b.sigma
            assert torch.allclose(a.x, b.x, rtol=1e-11, atol=1e-11)
            assert torch.equal(b.x, c.x)  # where none was learned, ddpm is this one
        assert torch.equal(b.x, b.denoised)


class Spread(nn.Module):
    """The true noise of the centred Gaussian, and a variance `share` of the way from small to large."""

    def __init__(self, table: Table, std: float, share: float) -> None:
        super().__init__()
        self.table, self.std, self.share = table, std, share

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        s = column(self.table.sigma(time), x)
        eps = x * (1 + s**2).sqrt() * s / (self.std**2 + s**2)
        return torch.cat([eps, torch.full_like(eps, 2 * self.share - 1)], 1)


@pytest.mark.parametrize(("variance", "share"), [("small", 0.0), ("large", 1.0), ("learned", 0.3)])
def test_ddpm_follows_the_closed_recursion(variance: str, share: float) -> None:
    """Each step is x' = k x + sqrt(V) n with numbers of the step alone; so is the variance of a walk, and its mean."""
    table = Table.linear(1e-3, 0.2, 30)
    sigmas = torch.cat([table.sigmas.flip(0), torch.zeros(1, dtype=torch.float64)])
    denoise = Denoiser(Spread(table, STD, share), Eps(table), learned_variance=True).given(Cond())
    ours = total = float(sigmas[0]) ** 2 + STD**2
    steps = list(_responses("ddpm", denoise, sigmas, 0.0, begin=sqrt(ours)))
    if variance != "learned":  # by its own name: the same variance, without the network's word
        named = _responses(f"ddpm_{variance}", denoise, sigmas, 0.0, begin=sqrt(ours))
        assert all(torch.allclose(a.x, b.x, rtol=1e-10) for a, b in zip(steps, named, strict=True))
    mean = 1.0
    start_at_one = list(ddpm(denoise, torch.ones(1, 1, dtype=torch.float64), sigmas, noise=_zeros(torch.zeros(1, 1))))
    for (s, t), step, one in zip(pairwise(sigmas.tolist()), steps, start_at_one, strict=True):
        shrink = STD**2 / (STD**2 + s**2)
        k = shrink + (t / s) ** 2 * (1 - shrink)
        bar, bar_prev = 1 / (1 + s**2), 1 / (1 + t**2)
        beta = 1 - bar / bar_prev
        small, large = (1 - bar_prev) / (1 - bar) * beta / bar_prev, beta / bar_prev
        total = k**2 * total + (small ** (1 - share) * large**share if t else 0.0)
        mean *= k
        assert float(step.x.square().sum()) == pytest.approx(total, rel=1e-9)
        assert float(one.x) == pytest.approx(mean, rel=1e-9)


def test_large_is_exact_for_data_of_variance_one_and_small_for_a_point() -> None:
    """Ho et al. 2020, section 3.2: each marginal is exact with the variance that is right for the data."""
    sigmas = torch.cat([torch.logspace(1.5, -2, 6, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    s = float(sigmas[0])
    for step in _responses("ddpm_large", lambda x, s: x / (1 + column(s, x) ** 2), sigmas, 0.0, begin=sqrt(1 + s * s)):
        if step.sigma:
            assert float(step.x.square().sum()) == pytest.approx(1 + step.sigma**2, rel=1e-12)
    for step in _responses("ddpm_small", lambda x, s: torch.zeros_like(x), sigmas, 0.0, begin=s):
        assert float(step.x.square().sum()) == pytest.approx(step.sigma**2, rel=1e-12)


class Dummy2(nn.Module):
    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return torch.cat([Dummy()(x, time, cond), torch.sin(3 * x)], 1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("steps", [100, 20])
def test_ddpm_matches_diffusers(monkeypatch: pytest.MonkeyPatch, variance: str, kind: str, steps: int) -> None:
    from diffusers.schedulers import scheduling_ddpm

    table = Table.linear(1e-3, 0.2, 100)
    scheduler = scheduling_ddpm.DDPMScheduler(
        100, variance_type=variance, prediction_type=kind, clip_sample=False, timestep_spacing="leading"
    )
    scheduler.alphas_cumprod, scheduler.one = table.abar, torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(steps)
    sigmas = torch.cat([table.sigmas[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    fresh = torch.randn(steps + 1, 2, 3, 8, generator=generator, dtype=torch.float64)

    parameterization = {"epsilon": Eps, "v_prediction": V, "sample": X0}[kind](table)
    learned = variance == "learned_range"
    net = Dummy2() if learned else Dummy()
    denoise = Denoiser(net, parameterization, learned_variance=learned).given(Cond())
    sampler = SAMPLERS["ddpm" if learned else variance.replace("fixed", "ddpm")]
    ours = sampler(denoise, start(x, parameterization, sigmas), sigmas, noise=lambda i: fresh[i])
    for t, step in zip(scheduler.timesteps, ours, strict=True):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, at=step.index, **__: fresh[at])
        x = scheduler.step(net(x, t.double().expand(2), Cond()), t, x).prev_sample
        assert torch.allclose(step.x / sqrt(1 + step.sigma**2), x, atol=1e-9, rtol=1e-9), int(t)


def test_what_ddpm_refuses() -> None:
    x, sigmas = torch.ones(1, 1), karras(2.0, 0.1, 3)
    with pytest.raises(RequestError, match=r"eta 0\.5 .*ddpm has its own noise; possible: eta 0, or euler"):
        next(ddpm(gaussian, x, sigmas, eta=0.5))
    with pytest.raises(RequestError, match="learned no variance; possible: small or large"):
        next(ddpm(gaussian, x, sigmas, noise=_zeros(x), variance="learned"))
    with pytest.raises(ValueError, match="needs noise"):
        next(ddpm(gaussian, x, sigmas))


def _zeros(x: Tensor) -> Callable[[int], Tensor]:
    return lambda index: torch.zeros_like(x)


def correlated(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of pairs (N, 2), normal with variance 1 and correlation 0.9."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=x.dtype)
    return x @ torch.linalg.solve(covariance + float(sigma[0]) ** 2 * torch.eye(2, dtype=x.dtype), covariance)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_walking_each_step_many_times_fills_in_what_belongs_there(sampler: str) -> None:
    """Of a pair the first is known to be 2: the second is normal with mean 1.8 and variance 0.19."""
    generator = torch.Generator().manual_seed(0)

    def normal(*_: int) -> Tensor:
        return torch.randn(4000, 2, generator=generator, dtype=torch.float64)

    noise, sigmas = normal(), karras(80.0, 0.02, 30)
    known, mask = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(4000, 2), torch.tensor([[0.0, 1.0]]).double()
    held, found = inpainting(correlated, known, mask, noise), {}
    for times in (1, 30):
        *_, end = repeated(SAMPLERS[sampler], times, normal)(held, 80 * noise, sigmas)
        assert torch.equal(end.denoised[:, 0], known[:, 0])
        found[times] = (float(end.denoised[:, 1].mean()), float(end.denoised[:, 1].var()))
    assert found[30][0] == pytest.approx(1.8, abs=0.06)
    assert found[30][1] == pytest.approx(0.19, abs=0.06)
    assert abs(found[1][0] - 1.8) > 0.3  # walked once, the second half hardly hears of the first


def test_walking_each_step_once_is_the_sampler_itself() -> None:
    sigmas, x = karras(10.0, 0.1, 5), torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for sampler in ("euler", "heun", "dpmpp_2s"):
        walked, once = (
            list(walk(gaussian, x, sigmas)) for walk in (SAMPLERS[sampler], repeated(SAMPLERS[sampler], 1, _zeros(x)))
        )
        assert [step.index for step in once] == [1, 2, 3, 4, 5]
        assert all(torch.equal(a.x, b.x) and a.sigma == b.sigma for a, b in zip(walked, once, strict=True))


def test_each_turn_has_noise_of_its_own() -> None:
    asked: dict[str, list[int]] = {"back": [], "step": []}

    def noise(what: str) -> Callable[[int], Tensor]:
        def drawn(number: int) -> Tensor:
            asked[what].append(number)
            return torch.zeros(1)

        return drawn

    walk = repeated(SAMPLERS["euler"], 3, noise("back"))
    list(walk(gaussian, torch.ones(1), karras(10.0, 0.1, 4), eta=1.0, noise=noise("step")))
    assert len(set(asked["back"])) == len(asked["back"]) == 2 * 3  # the last step is walked once
    assert len(set(asked["step"])) == len(asked["step"]) == 3 * 3


def test_eta_is_refused_where_it_means_nothing() -> None:
    x, sigmas = torch.ones(1, 1), karras(2.0, 0.1, 3)
    with pytest.raises(RequestError, match=r"eta 0\.5 .*possible: eta 0"):
        next(heun(gaussian, x, sigmas, eta=0.5))
    with pytest.raises(ValueError, match="needs noise"):
        next(euler(gaussian, x, sigmas, eta=0.5))


# --- the start


def test_start() -> None:
    noise = torch.randn(4, 3)
    for p in MODELS.values():
        sigmas = uniform_time(p, 10)
        seen = start(noise, p, sigmas) * p(sigmas[:1]).in_
        assert torch.allclose(seen, noise, rtol=1e-6)  # every network first sees unit noise
    sigmas = uniform_time(Flow(), 10, 0.4)
    assert torch.equal(start(noise, Flow(), sigmas, full=False), float(sigmas[0]) * noise)
    x0 = torch.randn(4, 3)
    assert torch.equal(start(noise, Flow(), sigmas, full=False, x0=x0), x0 + float(sigmas[0]) * noise)


# --- published schedulers, with the same network, start, levels and noise


class Dummy(nn.Module):
    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return torch.tanh(0.9 * x.roll(1, -1) - 0.3 * x) + 0.2 * torch.cos(column(time, x) / 100)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("steps", "last_is_one"), [(50, True), (20, False), (1000, True)])
def test_euler_is_ddim(kind: str, eta: float, steps: int, last_is_one: bool) -> None:
    from diffusers import DDIMScheduler

    table = Table.scaled_linear()
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=last_is_one)
    scheduler.alphas_cumprod = table.abar
    scheduler.final_alpha_cumprod = table.abar.new_ones(()) if last_is_one else table.abar[0]
    scheduler.set_timesteps(steps)

    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    fresh = torch.randn(steps + 1, 2, 3, 8, generator=generator, dtype=torch.float64)
    end = [0.0] if last_is_one else [table.sigma_min]
    sigmas = torch.cat([table.sigmas[scheduler.timesteps], torch.tensor(end, dtype=torch.float64)])
    levels = table_spacing(table, steps, offset=0, end="zero" if last_is_one else "first")
    assert torch.equal(levels, sigmas.float())
    parameterization = {"epsilon": Eps, "v_prediction": V, "sample": X0}[kind](table)
    denoise = Denoiser(Dummy(), parameterization).given(Cond())
    ours = euler(denoise, start(x, parameterization, sigmas), sigmas, eta=eta, noise=lambda i: fresh[i])
    for t, step in zip(scheduler.timesteps, ours, strict=True):
        output = Dummy()(x, t.double().expand(2), Cond())
        result = scheduler.step(output, t, x, eta=eta, variance_noise=fresh[step.index])
        x = result.prev_sample
        assert torch.allclose(step.denoised, result.pred_original_sample, atol=1e-11, rtol=1e-12)
        assert torch.allclose(step.x / sqrt(1 + step.sigma**2), x, atol=1e-12, rtol=1e-12)


def test_euler_is_a_rectified_flows() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    sigmas = uniform_time(Flow(), 30).double()
    denoise = Denoiser(Dummy(), Flow()).given(Cond())
    ours = euler(denoise, start(z, Flow(), sigmas), sigmas)
    times = (sigmas / (1 + sigmas)).tolist()
    for t, following, step in zip(times[:-1], times[1:], ours, strict=True):
        z = z + (following - t) * Dummy()(z, torch.full((2,), 1000 * t, dtype=torch.float64), Cond())
        assert torch.allclose(step.x / (1 + step.sigma), z, atol=1e-14, rtol=1e-14)


def test_dpmpp_2m_matches_diffusers() -> None:
    """The multistep solver of diffusers on the same levels (its own table is float32, hence the tolerance)."""
    from diffusers import DPMSolverMultistepScheduler

    table = Table.scaled_linear()
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, lower_order_final=True,
        final_sigmas_type="zero", timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(20)
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = table_spacing(table, 20, "trailing").double()
    denoise = Denoiser(Dummy(), Eps(table)).given(Cond())
    *_, ours = SAMPLERS["dpmpp_2m"](denoise, start(x, Eps(table), sigmas), sigmas)
    for t in scheduler.timesteps:
        x = scheduler.step(Dummy()(x, t.double().expand(2), Cond()), t, x).prev_sample
    assert torch.allclose(ours.x, x.double(), atol=1e-3)
