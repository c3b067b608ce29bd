"""The denoiser: the same D through any parameterisation, in any dtype."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.denoiser import Denoise, Denoiser, Edited, scattered
from moyai.diffusion.noise import Table, column
from moyai.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, V

TABLE = Table.scaled_linear()
ALL: dict[str, tuple[Parameterization, Callable[[Tensor], Tensor]]] = {  # and sigma of its time
    "eps": (Eps(TABLE), TABLE.sigma),
    "x0": (X0(TABLE), TABLE.sigma),
    "v": (V(TABLE), TABLE.sigma),
    "edm": (EDM(0.7), lambda time: (time / 250).exp()),
    "flow": (Flow(), lambda time: time / (1000 - time)),
}


def wanted(x: Tensor, sigma: Tensor) -> Tensor:
    """Some estimate of x0, not linear in x."""
    s = column(sigma, x)
    return torch.tanh(x / (1 + s)) + 0.2 * torch.cos(s)


class Converted(nn.Module):
    """A network that sees only what networks see, and predicts what `wanted` means in its parameterisation."""

    def __init__(self, parameterization: Parameterization, sigma_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.parameterization, self.sigma_of = parameterization, sigma_of

    def forward(self, scaled: Tensor, time: Tensor, cond: Cond) -> Tensor:
        sigma = self.sigma_of(time)
        c = self.parameterization(sigma)
        x = scaled / column(c.in_, scaled)
        return (wanted(x, sigma) - column(c.skip, x) * x) / column(c.out, x)


@pytest.mark.parametrize("name", ALL)
def test_every_parameterisation_is_the_same_denoiser(name: str) -> None:
    parameterization, sigma_of = ALL[name]
    denoiser = Denoiser(Converted(parameterization, sigma_of), parameterization)
    generator = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-1.4, 1.1, 30, dtype=torch.float64)
    x = column(sigma, torch.ones(30, 2, 2, 2)) * torch.randn(30, 2, 2, 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(denoiser(x, sigma), wanted(x, sigma), atol=1e-10, rtol=0)
    assert torch.allclose(denoiser.given(Cond())(x, sigma), wanted(x, sigma), atol=1e-10, rtol=0)


class Recorder(nn.Module):
    """A linear network that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.x, self.time, self.cond = x, time, cond
        self.said: Tensor = self.linear(x)
        return self.said


def test_one_sigma_for_all_rows_is_a_sigma_a_row() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(Recorder(), Flow())
    x = torch.randn(3, 4)
    one = denoiser(x, torch.tensor(0.7))
    assert denoiser.net.time.shape == (3,)
    assert torch.equal(one, denoiser(x, torch.full((3,), 0.7)))
    assert torch.equal(denoiser.network(x, torch.tensor(0.7)), denoiser.net.said)


def test_the_network_runs_in_its_own_dtype_and_the_state_stays_float32() -> None:
    torch.manual_seed(0)
    net = Recorder().bfloat16()
    denoiser = Denoiser(net, V(TABLE))
    x, sigma = torch.randn(2, 4), torch.tensor([0.5, 14.0])
    cond = Cond(vector=torch.randn(2, 3), mask=torch.ones(2, 5, dtype=torch.bool))
    assert denoiser(x, sigma, cond).dtype == denoiser.network(x, sigma, cond).dtype == torch.float32
    assert net.x.dtype == net.cond.vector.dtype == torch.bfloat16
    assert net.cond.mask.dtype == torch.bool
    assert net.time.dtype == torch.float32  # bfloat16 would round 991 to 992
    assert torch.allclose(net.time, TABLE.time(sigma).float())


def test_autocast() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(Recorder(), V(TABLE))
    x, sigma = torch.randn(2, 4), torch.tensor([0.5, 3.0])
    exact = denoiser(x, sigma).detach()
    assert denoiser.net.said.dtype == torch.float32
    denoiser.autocast = torch.bfloat16
    rough = denoiser(x, sigma).detach()
    assert denoiser.net.said.dtype == torch.bfloat16
    assert denoiser.net.x.dtype == rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().max()) < 0.02


def test_concat_is_not_scaled() -> None:
    denoiser = Denoiser(Recorder(), Flow())
    cond = Cond(concat=torch.full((2, 1), 5.0))
    denoiser(torch.randn(2, 4), torch.tensor(100.0), cond)
    assert torch.equal(denoiser.net.cond.concat, cond.concat)


class Two(nn.Module):
    """A network with a second half that nobody should mistake for the first, and the count of its forwards."""

    forwards = 0

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.forwards += 1
        push = 0.0 if cond.vector is None else cond.vector.reshape(-1, 1, 1, 1)
        return torch.cat([torch.tanh(x + push), torch.cos(5 * x + push)], 1)


class One(nn.Module):
    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return Two()(x, time, cond)[:, :1]


@pytest.mark.parametrize("kind", [Eps, X0, V])
def test_only_the_first_half_of_the_outputs_is_the_picture(kind: type) -> None:
    with_variance = Denoiser(Two(), kind(TABLE), learned_variance=True)
    without = Denoiser(One(), kind(TABLE))
    x, sigma = torch.randn(3, 1, 4, 4), TABLE.sigmas[[3, 400, 999]].float()
    assert torch.equal(with_variance(x, sigma), without(x, sigma))
    assert torch.equal(with_variance.network(x, sigma), without.network(x, sigma))
    assert torch.equal(with_variance.given(Cond())(x, sigma), without.given(Cond())(x, sigma))
    assert without.outputs(x, sigma)[1] is None
    assert without.step(x, sigma, 0.5 * sigma)[1] is None


def test_an_edit_keeps_the_variance_of_the_full_condition_and_costs_no_forward_more() -> None:
    denoiser = Denoiser(Two(), Eps(TABLE), learned_variance=True)
    null, cond = Cond(vector=torch.zeros(3, 1)), Cond(vector=torch.tensor([[1.0], [2.0], [3.0]]))
    x, sigma = torch.randn(3, 1, 4, 4), torch.full((3,), 2.0)

    def both(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
        first, last = denoise(x.repeat(2, 1, 1, 1), sigma.repeat(2)).chunk(2)
        return first + 3 * (last - first)

    guided = Edited(denoiser.given(Cond.cat([null, cond])), both)
    clamped = Edited(guided, lambda run, x, sigma: run(x, sigma).clamp(-0.1, 0.1))
    denoiser.net.forwards = 0
    estimate, variance = clamped.step(x, sigma, 0.5 * sigma)
    assert denoiser.net.forwards == 1
    assert torch.equal(estimate, guided(x, sigma).clamp(-0.1, 0.1))
    assert torch.allclose(variance, denoiser.variance(x, sigma, 0.5 * sigma, cond))
    assert not torch.allclose(variance, denoiser.variance(x, sigma, 0.5 * sigma, null), rtol=1e-2)
    plain = scattered(lambda x, sigma: x, x, sigma, sigma)
    assert plain[0] is x
    assert plain[1] is None
