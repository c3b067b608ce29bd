"""The moving average against its closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from moyai.training import ema


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.27])
def test_gamma_has_the_stated_width(std: float) -> None:
    gamma = ema.gamma_of(std)
    assert (gamma + 2) ** 2 * (gamma + 3) / (gamma + 1) == pytest.approx(std**-2, rel=1e-9)
    # The same from the definition: the profile p(t) ~ t^gamma on [0, 1] has that standard deviation.
    t = (np.arange(200_000) + 0.5) / 200_000
    weight = t**gamma / (t**gamma).sum()
    mean = (weight * t).sum()
    assert np.sqrt((weight * (t - mean) ** 2).sum()) == pytest.approx(std, rel=1e-4)


def test_known_values() -> None:
    assert ema.gamma_of(0.05) == pytest.approx(16.97, abs=0.01)  # Karras et al. 2024, section 3.1
    assert ema.gamma_of(0.1) == pytest.approx(6.94, abs=0.01)
    assert ema.beta_at(1, 6.94) == 0.0
    assert ema.beta_at(10, 6.94) == pytest.approx(0.9**7.94)


def averaged(values: list[float], gamma: float) -> float:
    live = nn.Linear(1, 1).double()
    average = ema.copy_of(live)
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            live.weight.fill_(value)
        ema.update(average, live, ema.beta_at(step, gamma))
    return float(next(average.parameters()))


def test_updates_are_the_weighted_mean() -> None:
    values = list(np.random.default_rng(0).normal(size=30))
    gamma = ema.gamma_of(0.1)
    betas = [ema.beta_at(t, gamma) for t in range(1, 31)]
    weights = [(1 - betas[i]) * np.prod(betas[i + 1 :]) for i in range(30)]
    assert sum(weights) == pytest.approx(1)
    assert averaged(values, gamma) == pytest.approx(np.dot(weights, values))
    # A weight is t^(gamma + 1) - (t - 1)^(gamma + 1) of the whole, whose profile is t^gamma.
    closed = [((i + 1) ** (gamma + 1) - i ** (gamma + 1)) / 30 ** (gamma + 1) for i in range(30)]
    assert weights == pytest.approx(closed)


def test_the_copy_is_a_second_one() -> None:
    live = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    average = ema.copy_of(live)
    assert not average.training
    assert live.training
    assert not any(p.requires_grad for p in average.parameters())
    assert {p.data_ptr() for p in average.parameters()}.isdisjoint(p.data_ptr() for p in live.parameters())
    live[1].running_mean.fill_(3.0)
    ema.update(average, live, 0.9)
    assert average[1].running_mean.tolist() == [3.0, 3.0]  # buffers are copied


def test_a_module_without_parameters_has_an_average() -> None:
    live = nn.Identity()
    ema.update(ema.copy_of(live), live, 0.5)
