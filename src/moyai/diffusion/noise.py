"""The noise axis: what a noise level is, where a model was trained on it, and how training draws from it.

Everything in this package speaks of sigma, the standard deviation of the noise in variance-exploding coordinates:

    x = x0 + sigma * noise,   noise ~ N(0, I)                                                        (1)

The forward process of the papers (Ho et al. 2020, "DDPM", arXiv:2006.11239) is the same thing, scaled so that its
variance stays one. With a table of betas, alpha_t = 1 - beta_t and abar_t = alpha_1 ... alpha_t,

    q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)                                               (2)
    x_t / sqrt(abar_t) = x_0 + sigma_t noise,   sigma_t = sqrt((1 - abar_t) / abar_t)                (3)

and its posterior, which a sampler imitates step by step, is Gaussian again (DDPM eq. 6 and 7):

    q(x_{t-1} | x_t, x_0) = N(mu~_t, beta~_t I),   beta~_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t
    mu~_t = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0 + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t   (4)

In the coordinates of (1), where a step goes from s = sigma_t to s' = sigma_{t-1}, (4) is

    q(x' | x, x_0) = N(x_0 + s'^2 / s^2 (x - x_0), s'^2 (s^2 - s'^2) / s^2 I)                         (5)

A model draws x' around the same mean with its estimate in the place of x_0. How widely is a choice between the variance
in (5), "small", which is right for data at one point, and beta_t divided by abar_{t-1},

    (s^2 - s'^2) (1 + s'^2) / (1 + s^2)                                                               (6)

"large", which is right for data of variance one (DDPM section 3.2), or learned between the two.

Four different things are called "schedule". Two are here: the **table** a model was trained on, and the **density**
its training draws sigma from. The grid that sampling walks is in `grids.py`, the weighting in `loss.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from moyai.errors import ConfigError

ZERO_TERMINAL = 2.0**-24  # abar at the end of a zero-terminal table: sigma 4096, past which float32 loses x0

Density = Callable[[Tensor], Tensor]  # (B,) uniform on [0, 1) -> sigma (B,)


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value a row, (B,) or (), in the shape, dtype and place that multiplies `like` (B, ...) row by row."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    """The noise levels a model was trained on: abar_t for t = 0 .. T-1, float64 on the CPU, and what follows from it.

    Time is the index into the table. Between indices it is linear in log sigma, so a network can be asked at any
    sigma; at the table's own sigmas it is exactly the index, and outside them it is clamped.
    """

    abar: Tensor  # (T,) float64, falling
    zero_terminal_snr: bool = False
    _placed: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    @staticmethod
    def from_betas(betas: Tensor) -> "Table":
        return Table(torch.cumprod(1 - betas.double(), dim=0))

    @staticmethod
    def linear(start: float = 1e-4, end: float = 0.02, steps: int = 1000) -> "Table":
        """betas even from start to end (Ho et al. 2020)."""
        return Table.from_betas(torch.linspace(start, end, steps, dtype=torch.float64))

    @staticmethod
    def scaled_linear(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> "Table":
        """sqrt(beta) even from sqrt(start) to sqrt(end) (Rombach et al. 2022)."""
        return Table.from_betas(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)

    @staticmethod
    def cosine(offset: float = 0.008, steps: int = 1000) -> "Table":
        """abar(t) = cos^2((t/T + s)/(1 + s) pi/2), betas at most 0.999 (Nichol and Dhariwal 2021)."""
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2  # (T + 1,)
        return Table.from_betas((1 - abar[1:] / abar[:-1]).clamp(max=0.999))

    def zero_terminal(self) -> "Table":
        """The table stretched until its end is pure noise (Lin et al. 2024, arXiv:2305.08891, algorithm 1).

        sqrt(abar) is moved and scaled so that its first value stays and its last is 0; abar_T is then put at 2^-24,
        because at sigma = infinity equation (1) has no meaning.
        """
        if len(self) < 2:
            raise ConfigError("a zero-terminal table needs 2 steps or more, not 1")
        root = self.abar.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        abar = root**2
        abar[-1] = ZERO_TERMINAL
        return Table(abar, zero_terminal_snr=True)

    def __len__(self) -> int:
        return int(self.abar.shape[0])

    @cached_property
    def sigmas(self) -> Tensor:
        """(T,) float64, rising: equation (3)."""
        return ((1 - self.abar) / self.abar).sqrt()

    def sigmas_on(self, device: torch.device) -> Tensor:
        """The same on a device, copied there once: a copy in each step would wait for all that is queued there."""
        if device == self.sigmas.device:
            return self.sigmas
        if device not in self._placed:
            self._placed[device] = self.sigmas.to(device)
        return self._placed[device]

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def time(self, sigma: Tensor, *, rounded: bool = False) -> Tensor:
        """The index of sigma, fractional between the table's own; `rounded` to the nearest one, for parity."""
        s, table = sigma.double(), self.sigmas_on(sigma.device)
        if len(self) == 1:
            return torch.zeros_like(s)
        upper = torch.searchsorted(table, s.contiguous()).clamp(1, len(self) - 1)
        low, high = table[upper - 1], table[upper]
        # One quotient of two logarithms over the same shape: exactly 1 where sigma is a sigma of the table.
        fraction = (torch.log(s.clamp(min=self.sigma_min) / low) / torch.log(high / low)).clamp(0, 1)
        time = upper - 1 + fraction
        return time.round() if rounded else time

    def sigma(self, time: Tensor) -> Tensor:
        """The inverse of `time`, exact at integers, clamped at both ends; float64."""
        t, table = time.double().clamp(0, len(self) - 1), self.sigmas_on(time.device)
        lower = t.floor().long()
        low, high = table[lower], table[(lower + 1).clamp(max=len(self) - 1)]
        return low * (high / low) ** (t - lower)

    def sigma_at(self, fraction: Tensor) -> Tensor:
        """sigma at a fraction of the way from no noise (0) to the last index (1); index k is at (k + 1) / T.

        Below the first index sigma falls evenly to 0, so that grids finer than the table exist.
        """
        position = fraction.double() * len(self)
        return self.sigma(position - 1) * position.clamp(0, 1)

    def before(self, index: Tensor) -> Tensor:
        """The sigma a step from each index leads to: that of the index before, 0 from the first. float64."""
        return torch.where(index > 0, self.sigmas_on(index.device)[(index - 1).clamp(min=0)], 0.0)

    def log_variances(self, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithms of small and large, (5) and (6), of steps from sigma to sigma_next (B,); float64.

        The last step, to 0, has no small one. It gets that of the step before it, in the papers' coordinates, as in
        both papers' code.
        """
        s, t = sigma.double(), sigma_next.double()
        return torch.where(t > 0, small_variance(s, t), self._least).log(), large_variance(s, t).log()

    @cached_property
    def _least(self) -> float:
        if len(self) == 1:
            return float(1 - self.abar[0])
        first, second = self.sigmas[:2].tolist()
        return small_variance(second, first) * float(self.abar[0])


Number = TypeVar("Number", float, Tensor)


def small_variance(s: Number, t: Number) -> Number:
    """Equation (5): of a step from s to t in the coordinates of (1), right for data at one point."""
    return t * t * (s * s - t * t) / (s * s)


def large_variance(s: Number, t: Number) -> Number:
    """Equation (6): the same, right for data of variance one."""
    return (s * s - t * t) * (1 + t * t) / (1 + s * s)


def q_mean_variance(x0: Tensor, abar_t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_t | x_0), equation (2). abar_t: (B,) or (); the variance has its shape."""
    return column(abar_t.sqrt(), x0) * x0, 1 - abar_t


def q_posterior(x_t: Tensor, x0: Tensor, abar_t: Tensor, abar_prev: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_{t-1} | x_t, x_0), equation (4), in the papers' scaled coordinates."""
    alpha = abar_t / abar_prev
    beta = 1 - alpha
    mean = (
        column(abar_prev.sqrt() * beta / (1 - abar_t), x0) * x0
        + column(alpha.sqrt() * (1 - abar_prev) / (1 - abar_t), x_t) * x_t
    )
    return mean, (1 - abar_prev) / (1 - abar_t) * beta


# --- densities --------------------------------------------------------------------------------------------------------
# Each maps uniform values to sigma by the inverse of its distribution function, so that uniforms spread evenly over the
# global batch (`Draw.stratified`) give sigmas spread evenly over the density.

T_EDGE = 1e-4  # t = sigma / (1 + sigma) stays this far from 0 and 1
U_EDGE = 1e-7  # the normal quantiles of 0 and 1 are infinite


@dataclass(frozen=True)
class TableDensity:
    """The sigma of a uniform index into the table."""

    table: Table

    def __call__(self, u: Tensor) -> Tensor:
        index = (u.double() * len(self.table)).long().clamp(max=len(self.table) - 1)
        return self.table.sigmas_on(u.device)[index].to(u.dtype)


@dataclass(frozen=True)
class LogNormal:
    """ln sigma ~ N(mean, std^2), times shift (Karras et al. 2022, "EDM")."""

    mean: float
    std: float
    shift: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return _log_normal(u, self.mean, self.std, self.shift).to(u.dtype)


@dataclass(frozen=True)
class UniformT:
    """t uniform, sigma = t / (1 - t), times shift."""

    shift: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        t = u.double().clamp(T_EDGE, 1 - T_EDGE)
        return _inside(self.shift * t / (1 - t)).to(u.dtype)


@dataclass(frozen=True)
class LogitNormal:
    """logit t ~ N(mean, std^2), sigma = t / (1 - t), times shift (Esser et al. 2024, arXiv:2403.03206).

    logit t = ln sigma, so this is the log-normal density by its other name, with t kept off its ends.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return _inside(_log_normal(u, self.mean, self.std, self.shift)).to(u.dtype)


def _log_normal(u: Tensor, mean: float, std: float, shift: float) -> Tensor:
    normal = torch.special.ndtri(u.double().clamp(U_EDGE, 1 - U_EDGE))
    return shift * torch.exp(mean + std * normal)


def _inside(sigma: Tensor) -> Tensor:
    """sigma with t = sigma / (1 + sigma) in [T_EDGE, 1 - T_EDGE]."""
    return sigma.clamp(T_EDGE / (1 - T_EDGE), (1 - T_EDGE) / T_EDGE)
