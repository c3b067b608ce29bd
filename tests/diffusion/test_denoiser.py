"""The denoiser: the same D through any parameterisation, in any dtype."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.denoiser import Denoiser
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
