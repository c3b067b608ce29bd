"""Multistep samplers: their orders, published schedulers with the same network and levels, formulas as printed."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion.test_sampling import MEAN, Dummy, flow, gaussian, last, mixture
from moyai.batch import Cond
from moyai.diffusion.config import METHODS, NOISY, SamplingConfig
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.grids import karras, table_spacing
from moyai.diffusion.multistep import deis, dpmpp_3m, lms, unipc
from moyai.diffusion.noise import Table
from moyai.diffusion.parameterization import Eps
from moyai.diffusion.samplers import SAMPLERS
from moyai.diffusion.sampling import SPAN, Sampler, start
from moyai.errors import RequestError

ORDERS: dict[str, tuple[Sampler, int]] = {
    "dpmpp_2m": (SAMPLERS["dpmpp_2m"], 2),
    "dpmpp_3m": (dpmpp_3m, 2),
    "dpmpp_3m_exact": (partial(dpmpp_3m, exact=True), 3),
    "plms": (SAMPLERS["plms"], 2),
    "ipndm": (SAMPLERS["ipndm"], 2),
    **{f"lms of {k}": (partial(lms, order=k), k) for k in (1, 2, 3, 4)},
    **{f"deis of {k}": (partial(deis, order=k), k) for k in (1, 2, 3, 4)},
    **{f"unipc of {k}": (partial(unipc, order=k), k + 1) for k in (1, 2, 3)},
}


@pytest.mark.parametrize("grid", ["karras", "uniform-log"])
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name: str, grid: str) -> None:
    """On a Gaussian, whose flow is known. The first steps, which have little to remember, are h^3 long and each is
    twice the one before, so that what they leave is of no account. Between these levels no method's first error is
    nearly zero by chance, as it is at the ends of some others."""
    sampler, order = ORDERS[name]
    high, low = 5.0, 0.2
    x = MEAN + high * torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(5, 1)
    errors = []
    for steps in (150, 300):
        lengths = [steps**-3.0]
        while lengths[-1] < 0.5 / steps:
            lengths.append(2 * lengths[-1])
        rest = torch.linspace(sum(lengths), 1, steps + 1, dtype=torch.float64)
        ramp = torch.cat([torch.tensor([0, *lengths[:-1]], dtype=torch.float64).cumsum(0), rest])
        sigmas = high * (low / high) ** ramp
        if grid == "karras":
            sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        *_, end = sampler(gaussian, x, sigmas)
        errors.append(float((end.x - flow(x, high, low)).abs().max()))
    assert torch.tensor(errors[0] / errors[1]).log2().item() == pytest.approx(order, abs=0.2)


def test_every_name_is_a_sampler_a_choice_and_known() -> None:
    choices = SamplingConfig.model_json_schema()["properties"]["sampler"]["enum"]
    assert choices == list(SAMPLERS) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_known_of_each_is_true(name: str) -> None:
    """The evaluations of its longest steps, and whether fresh noise changes where it goes."""
    calls = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma[0]))
        return gaussian(x, sigma)

    x, sigmas = 8 * torch.ones(1, 1), karras(8.0, 0.5, 10)
    walk = SAMPLERS[name](counted, x, sigmas, noise=lambda i: torch.ones(1, 1))
    counts, before = [], 0
    for _ in walk:
        counts.append(len(calls) - before)
        before = len(calls)
    assert counts[1:-1] == [METHODS[name].evaluations] * 8
    assert counts[-1] == 1
    if name in NOISY:
        noisy = last(name, gaussian, x, sigmas, eta=1.0, noise=lambda i: torch.ones(1, 1))
        assert not torch.equal(noisy, last(name, gaussian, x, sigmas))
    else:
        with pytest.raises(RequestError, match=r"eta 0\.5 .*possible: eta 0"):
            next(iter(SAMPLERS[name](gaussian, x, sigmas, eta=0.5, noise=lambda i: x)))


@pytest.mark.parametrize("name", METHODS)
def test_a_level_that_stands_twice_in_a_grid_changes_nothing(name: str) -> None:
    """A step of no length is one: nothing is divided by it, and no value is remembered twice."""
    x, once = 8 * torch.ones(1, 1, dtype=torch.float64), karras(8.0, 0.5, 8).double()
    twice = torch.cat([once[:4], once[3:]])
    ends = [last(name, gaussian, x, sigmas, noise=lambda i: torch.zeros(1, 1)) for sigmas in (once, twice)]
    again = name.startswith("unipc")  # which looks a second time from where the step made again has led
    assert torch.allclose(ends[0], ends[1], rtol=1e-3 if again else 1e-9)


# --- as printed


def test_dpmpp_3m_is_the_published_one() -> None:
    """k-diffusion's `sample_dpmpp_3m_sde`, term by term, at eta 0 and 1."""
    sigmas = karras(14.0, 0.05, 12).double()
    generator = torch.Generator().manual_seed(0)
    x = 14 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    fresh = torch.randn(13, 4, 3, generator=generator, dtype=torch.float64)
    for eta in (0.0, 1.0):
        y, estimates, lengths = x, [], []
        for i in range(12):
            s, t = sigmas[i], sigmas[i + 1]
            d = mixture(y, s)
            if t == 0:
                y = d
                break
            h = torch.log(s / t)
            g = h * (eta + 1)
            y = torch.exp(-g) * y - torch.expm1(-g) * d
            phi_2 = torch.expm1(-g) / g + 1
            if len(lengths) > 1:
                r0, r1 = lengths[-1] / h, lengths[-2] / h
                first, second = (d - estimates[-1]) / r0, (estimates[-1] - estimates[-2]) / r1
                d1 = first + (first - second) * r0 / (r0 + r1)
                y = y + phi_2 * d1 - (phi_2 / g - 0.5) * (first - second) / (r0 + r1)
            elif lengths:
                y = y + phi_2 * (d - estimates[-1]) / (lengths[-1] / h)
            y = y + fresh[i + 1] * t * torch.sqrt(-torch.expm1(-2 * h * eta))
            estimates.append(d)
            lengths.append(h)
        ours = last("dpmpp_3m", mixture, x, sigmas, eta=eta, noise=lambda i: fresh[i])
        assert torch.allclose(ours, y, atol=1e-10), eta


# --- published schedulers, with the same network, start and levels


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_matches_diffusers(order: int) -> None:
    from diffusers import UniPCMultistepScheduler

    ours, theirs = _beside(
        partial(unipc, order=order), UniPCMultistepScheduler, solver_order=order, final_sigmas_type="zero"
    )
    assert torch.allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_matches_diffusers(order: int) -> None:
    """But for the last step, which theirs makes to the table's first sigma."""
    from diffusers import DEISMultistepScheduler

    options = {"solver_order": order, "lower_order_final": False}
    ours, theirs = _beside(partial(deis, order=order), DEISMultistepScheduler, short=1, **options)
    assert torch.allclose(ours, theirs, atol=2e-3)


def test_dpmpp_3m_matches_diffusers() -> None:
    from diffusers import DPMSolverMultistepScheduler

    options = {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "zero", "solver_type": "heun"}
    ours, theirs = _beside(dpmpp_3m, DPMSolverMultistepScheduler, short=1, **options)
    assert torch.allclose(ours, theirs, atol=2e-3)


def test_lms_matches_diffusers() -> None:
    """Theirs walks x = x0 + sigma noise itself, on its own levels, which are handed to ours."""
    from diffusers import LMSDiscreteScheduler

    scheduler = LMSDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(12)
    x = 14 * torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = scheduler.sigmas.double()
    *_, ours, _ = lms(mixture, x, sigmas)
    for i, t in enumerate(scheduler.timesteps[:-1]):
        eps = (x - mixture(x, sigmas[i].expand(2))) / sigmas[i]
        x = scheduler.step(eps, t, x).prev_sample
    assert torch.allclose(ours.x, x, atol=1e-4)


def test_plms_matches_diffusers() -> None:
    from diffusers import PNDMScheduler

    table = Table.scaled_linear()
    scheduler = PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = table.abar, table.abar[0]
    scheduler.set_timesteps(25)
    times = [int(t) for i, t in enumerate(scheduler.timesteps) if i != 1]  # the second look at the first step's end
    sigmas = torch.cat([table.sigmas[times], table.sigmas[:1]])
    assert torch.equal(sigmas.float(), table_spacing(table, 25, end="first"))
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = Denoiser(Dummy(), Eps(table)).given(Cond())
    *_, ours = SAMPLERS["plms"](denoise, start(x, Eps(table), sigmas), sigmas)
    for t in scheduler.timesteps:
        x = scheduler.step(Dummy()(x, t.double().expand(2), Cond()), t, x).prev_sample
    assert torch.allclose(ours.x / (1 + ours.sigma**2) ** 0.5, x, atol=1e-9)


def test_dpm2_is_the_published_one() -> None:
    """k-diffusion's `sample_dpm_2`, term by term; this grid has no step that spans too much."""
    sigmas = karras(14.0, 0.05, 18).double()
    assert float((sigmas[:-2] / sigmas[1:-1]).max()) < SPAN
    x = 14 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x
    for s, t in pairwise(sigmas):
        slope = (y - mixture(y, s)) / s
        if t > 0:
            middle = s.log().lerp(t.log(), 0.5).exp()
            half = y + slope * (middle - s)
            slope = (half - mixture(half, middle)) / middle
        y = y + slope * (t - s)
    assert torch.allclose(last("dpm2", mixture, x, sigmas), y, atol=1e-11)


def _beside(sampler: Sampler, kind: type, *, short: int = 0, **options: object) -> tuple[Tensor, Tensor]:
    """The ends of both walks, `short` steps early, over a table, in x / sqrt(1 + sigma^2). Its table is float32."""
    table = Table.scaled_linear()
    scheduler = kind(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing", **options
    )  # fmt: skip
    scheduler.set_timesteps(20)
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = table_spacing(table, 20, "trailing").double()
    denoise = Denoiser(Dummy(), Eps(table)).given(Cond())
    end = list(sampler(denoise, start(x, Eps(table), sigmas), sigmas))[-1 - short]
    for t in scheduler.timesteps[: 20 - short]:
        x = scheduler.step(Dummy()(x, t.double().expand(2), Cond()), t, x).prev_sample
    return end.x / (1 + end.sigma**2) ** 0.5, x.double()
