"""The Gaussian posterior against torch's own distributions."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from moyai.firststage.posterior import LOGVAR_RANGE, DiagonalGaussian
from moyai.randomness import Draw


def parameters(seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(5, 6, 4, 3, generator=torch.Generator().manual_seed(seed)) * scale


def test_kl_is_that_of_the_distributions() -> None:
    posterior = DiagonalGaussian(parameters())
    expected = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(posterior.regularizer(), expected)
    assert DiagonalGaussian(torch.zeros(2, 6, 1, 1)).regularizer().tolist() == [0.0, 0.0]


def test_samples_have_the_stated_mean_and_deviation() -> None:
    posterior = DiagonalGaussian(parameters()[:1].expand(4000, -1, -1, -1))
    values = posterior.sample(Draw(0, 0, 4000))
    error = (values.mean(0) - posterior.mean[0]) / posterior.std[0]
    assert float(error.abs().max()) < 5 / 4000**0.5
    assert float((values.std(0) / posterior.std[0] - 1).abs().max()) < 5 / 8000**0.5
    assert torch.equal(posterior.mode(), posterior.mean)


def test_a_sample_is_its_draw() -> None:
    posterior = DiagonalGaussian(parameters())
    whole = posterior.sample(Draw(3, 1, 5))
    assert torch.equal(whole, DiagonalGaussian(parameters()).sample(Draw(3, 1, 5)))
    part = DiagonalGaussian(parameters()[2:4]).sample(Draw(3, 1, 5).rows(2, 4))
    assert torch.equal(part, whole[2:4])
    assert not torch.equal(whole, posterior.sample(Draw(3, 2, 5)))


@pytest.mark.parametrize("logvar", [-1000.0, 1000.0])
def test_extreme_variances_stay_finite(logvar: float) -> None:
    posterior = DiagonalGaussian(torch.cat([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), logvar)], 1))
    low, high = LOGVAR_RANGE
    assert float(posterior.logvar[0, 0, 0, 0]) == (low if logvar < 0 else high)
    assert bool(torch.isfinite(posterior.sample(Draw(0, 0, 1))).all())
    assert bool(torch.isfinite(posterior.regularizer()).all())


def test_half_precision_parameters_become_float32() -> None:
    assert DiagonalGaussian(parameters().bfloat16()).std.dtype == torch.float32
