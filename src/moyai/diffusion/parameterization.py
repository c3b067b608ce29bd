"""What a network predicts: four numbers of sigma turn any prediction into an estimate of x0.

With x = x0 + sigma noise and a network F, every published parameterisation is one denoiser (Karras et al. 2022,
"EDM", eq. 7),

    D(x, sigma) = skip(sigma) x + out(sigma) F(in(sigma) x, time(sigma))                              (1)

and what F is trained to be equal to is (1) solved for F at D = x0:

    target = (x0 - skip x) / out                                                                      (2)

|       | skip            | out                 | in                | time             | target                        |
|-------|-----------------|---------------------|-------------------|------------------|-------------------------------|
| Eps   | 1               | -s                  | 1/sqrt(1+s^2)     | table index of s | noise                         |
| X0    | 0               | 1                   | 1/sqrt(1+s^2)     | table index of s | x0                            |
| V     | 1/(1+s^2)       | -s/sqrt(1+s^2)      | 1/sqrt(1+s^2)     | table index of s | (noise - s x0)/sqrt(1+s^2)    |
| EDM   | d^2/(s^2+d^2)   | s d/sqrt(s^2+d^2)   | 1/sqrt(s^2+d^2)   | 250 ln s         | (s x0/d - d noise)/sqrt(..)   |
| Flow  | 1/(1+s)         | -s/(1+s)            | 1/(1+s)           | 1000 s/(1+s)     | noise - x0                    |

Eps: Ho et al. 2020. V: Salimans and Ho 2022. Flow: the straight line x_t = (1 - t) x0 + t noise (Liu et al. 2022),
which is x / (1 + s) at t = s / (1 + s). Targets are written in closed form: (2) divides by out, which is 0 at s = 0.
Numbers are computed in float64 and returned in the dtype of sigma.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from moyai.diffusion.noise import Table, column
from moyai.errors import ConfigError

SIGMA_TOP = 4096.0  # where a process that ends in pure noise is begun: float32 keeps 1e-6 of x0 there


class Coefficients(NamedTuple):
    """The four numbers of equation (1), each in the shape of sigma."""

    skip: Tensor
    out: Tensor
    in_: Tensor
    time: Tensor


class Parameterization(Protocol):
    """What a network predicts, and the range of sigma it is trained on."""

    @property
    def sigma_min(self) -> float: ...

    @property
    def sigma_max(self) -> float: ...

    def __call__(self, sigma: Tensor) -> Coefficients: ...

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What the network should have said: (B, ...)."""
        ...

    def sigma_at(self, fraction: Tensor) -> Tensor:
        """sigma (float64) at a fraction of the model's own time: 0 is the clean end, 1 is sigma_max."""
        ...


@dataclass(frozen=True)
class Eps:
    """The network predicts the noise."""

    table: Table
    rounded: bool = False  # the network is given whole indices only

    def __post_init__(self) -> None:
        if self.table.zero_terminal_snr:
            raise ConfigError(
                "eps with a zero-terminal table cannot be sampled: at pure noise the noise tells nothing of x0; "
                "possible: v with this table, or eps with zero_terminal = false"
            )

    @property
    def sigma_min(self) -> float:
        return self.table.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.table.sigma_max

    def __call__(self, sigma: Tensor) -> Coefficients:
        s = sigma.double()
        return _as(sigma, torch.ones_like(s), -s, _unit(s), self.table.time(s, rounded=self.rounded))

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def sigma_at(self, fraction: Tensor) -> Tensor:
        return self.table.sigma_at(fraction)


@dataclass(frozen=True)
class X0:
    """The network predicts the clean picture."""

    table: Table
    rounded: bool = False

    @property
    def sigma_min(self) -> float:
        return self.table.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.table.sigma_max

    def __call__(self, sigma: Tensor) -> Coefficients:
        s = sigma.double()
        time = self.table.time(s, rounded=self.rounded)
        return _as(sigma, torch.zeros_like(s), torch.ones_like(s), _unit(s), time)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return x0

    def sigma_at(self, fraction: Tensor) -> Tensor:
        return self.table.sigma_at(fraction)


@dataclass(frozen=True)
class V:
    """The network predicts v = sqrt(abar) noise - sqrt(1 - abar) x0."""

    table: Table
    rounded: bool = False

    @property
    def sigma_min(self) -> float:
        return self.table.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.table.sigma_max

    def __call__(self, sigma: Tensor) -> Coefficients:
        s = sigma.double()
        time = self.table.time(s, rounded=self.rounded)
        return _as(sigma, 1 / (1 + s**2), -s * _unit(s), _unit(s), time)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.double()
        return column(_unit(s), x0) * noise - column(s * _unit(s), x0) * x0

    def sigma_at(self, fraction: Tensor) -> Tensor:
        return self.table.sigma_at(fraction)


Tabled = Eps | X0 | V  # trained on the levels of a table


@dataclass(frozen=True)
class EDM:
    """Input, output and target of unit variance at every sigma, for data of standard deviation sigma_data."""

    sigma_data: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __call__(self, sigma: Tensor) -> Coefficients:
        s, d = sigma.double(), self.sigma_data
        total = (s**2 + d**2).sqrt()
        # ln 0 is not finite; a sigma of 0 is never asked for by a sampler but may be by a user.
        return _as(sigma, (d / total) ** 2, s * d / total, 1 / total, 250 * s.clamp(min=1e-12).log())

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        s, d = sigma.double(), self.sigma_data
        total = (s**2 + d**2).sqrt()
        return column(s / (d * total), x0) * x0 - column(d / total, x0) * noise

    def sigma_at(self, fraction: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.exp(low + (high - low) * fraction.double())


@dataclass(frozen=True)
class Flow:
    """The network predicts the velocity noise - x0 of the straight line from picture to noise."""

    sigma_min: float = 0.002  # where grids that are not even in t make their last step to 0
    sigma_max: float = SIGMA_TOP

    def __call__(self, sigma: Tensor) -> Coefficients:
        s = sigma.double()
        t = s / (1 + s)
        return _as(sigma, 1 / (1 + s), -t, 1 / (1 + s), 1000 * t)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0

    def sigma_at(self, fraction: Tensor) -> Tensor:
        t = fraction.double().clamp(0, self.sigma_max / (1 + self.sigma_max))
        return t / (1 - t)


def _unit(s: Tensor) -> Tensor:
    """What brings x0 + s noise to variance one, where x0 has it: 1 / sqrt(1 + s^2) = sqrt(abar)."""
    return 1 / (1 + s**2).sqrt()


def _as(sigma: Tensor, *values: Tensor) -> Coefficients:
    return Coefficients(*(value.to(sigma.dtype) for value in values))
