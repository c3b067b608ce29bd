"""Weightings: one formula each, the same number through every parameterisation."""

import pytest
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import diffusion_loss, weighting
from moyai.diffusion.noise import Table, column
from moyai.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, V
from moyai.errors import ConfigError

TABLE = Table.scaled_linear()
ALL: dict[str, Parameterization] = {
    "eps": Eps(TABLE),
    "x0": X0(TABLE),
    "v": V(TABLE),
    "edm": EDM(0.5),
    "flow": Flow(),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return torch.sin(self.gain * x) + column(time, x) / 1000


def _case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x0, noise = (torch.randn(12, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, noise, torch.logspace(-1.5, 1.1, 12, dtype=torch.float64)


def _loss(name: str, kind: str, **options: float) -> Tensor:
    x0, noise, sigma = _case()
    return diffusion_loss(Denoiser(Net(), ALL[name]), x0, Cond(), sigma, noise, weighting(kind, **options)).detach()


def _mean(error: Tensor) -> Tensor:
    return error.square().flatten(1).mean(1)


@pytest.mark.parametrize("name", ALL)
def test_plain_is_the_papers_mean_squared_error(name: str) -> None:
    x0, noise, sigma = _case()
    output = Denoiser(Net(), ALL[name]).network(x0 + column(sigma, x0) * noise, sigma).detach()
    assert torch.allclose(_loss(name, "plain"), _mean(output - ALL[name].target(x0, noise, sigma)), rtol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_every_weighting_is_on_the_error_of_the_estimate(name: str) -> None:
    x0, noise, sigma = _case()
    estimate = Denoiser(Net(), ALL[name])(x0 + column(sigma, x0) * noise, sigma).detach()
    error = _mean(estimate - x0)
    d = 0.7
    for kind, w in (
        ("x0", torch.ones(12)),
        ("snr", sigma**-2),
        ("min-snr", torch.minimum(sigma**-2, torch.tensor(5.0))),
        ("edm", (sigma**2 + d**2) / (sigma * d) ** 2),
    ):
        assert torch.allclose(_loss(name, kind, gamma=5.0, sigma_data=d), w * error, rtol=1e-9), kind


def test_identities_between_weightings() -> None:
    assert torch.allclose(_loss("eps", "plain"), _loss("eps", "snr"), rtol=1e-14)
    assert torch.allclose(_loss("x0", "plain"), _loss("x0", "x0"), rtol=1e-14)
    assert torch.allclose(_loss("edm", "plain"), _loss("edm", "edm", sigma_data=0.5), rtol=1e-14)
    assert torch.allclose(_loss("v", "plain"), _loss("v", "edm", sigma_data=1.0), rtol=1e-14)  # SNR + 1
    assert torch.allclose(_loss("v", "min-snr", gamma=1e12), _loss("v", "snr"), rtol=1e-14)
    assert torch.allclose(_loss("v", "min-snr", gamma=1e-3), 1e-3 * _loss("v", "x0"), rtol=1e-14)


def test_a_perfect_network_loses_nothing_and_a_wrong_one_learns() -> None:
    x0, noise, sigma = _case()

    class Oracle(nn.Module):
        def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
            return noise - x0

    assert float(diffusion_loss(Denoiser(Oracle(), Flow()), x0, Cond(), sigma, noise, weighting("plain")).max()) == 0
    net = Net()
    diffusion_loss(Denoiser(net, Flow()), x0, Cond(), sigma, noise, weighting("plain")).mean().backward()
    assert net.gain.grad is not None
    assert float(net.gain.grad.abs()) > 1e-3


def test_float32_at_the_ends_of_the_range() -> None:
    sigma = torch.tensor([1e-4, 4096.0])
    x0, noise = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    for p in (V(TABLE.zero_terminal()), Flow(), EDM()):
        for kind in ("plain", "x0", "snr", "min-snr", "edm"):
            loss = diffusion_loss(Denoiser(Net().float(), p), x0, Cond(), sigma, noise, weighting(kind))
            assert loss.dtype == torch.float32
            assert bool(torch.isfinite(loss).all())


def test_unknown_weighting() -> None:
    with pytest.raises(ConfigError, match="min-snrr is unknown; did you mean min-snr"):
        weighting("min-snrr")
