"""The denoiser: one currency for every network, D(x, sigma) = skip x + out F(in x, time).

Samplers, guidance and edits know functions `(x, sigma) -> estimate of x0` and nothing of tables or predictions; the
conversion happens here, once (`parameterization.py` has the numbers). The state x is float32; the network runs in the
dtype of its own weights, or under autocast where `autocast` names a dtype.

A network may also say how widely a step from sigma to sigma_next scatters (Nichol and Dhariwal 2021, arXiv:2102.09672,
eq. 15). It has 2C outputs then. The first C are what everything above is about; the others, v, are a share of the way
between the logarithms of the two variances (5) and (6) of `noise.py`:

    log V = u log large + (1 - u) log small,   u = (v + 1) / 2                                        (1)
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.noise import Table, column
from moyai.diffusion.parameterization import Coefficients, Parameterization, Tabled
from moyai.errors import ConfigError

NOTHING = Cond()
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x (B, ...), sigma (B,)) -> estimate of x0 (B, ...)


@runtime_checkable
class Scattering(Protocol):
    """A `Denoise` that knows, perhaps, how widely a step scatters."""

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor: ...

    def step(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor | None]:
        """The estimate, and the variance of the step to sigma_next (B, ...), None where it was not learned."""
        ...


class Denoiser(nn.Module):
    """A network `(x, time, cond) -> tensor` and what its output means."""

    def __init__(self, net: nn.Module, parameterization: Parameterization, *, learned_variance: bool = False) -> None:
        super().__init__()
        if learned_variance and not isinstance(parameterization, Tabled):
            raise ConfigError(
                f"a learned variance needs a table, and {type(parameterization).__name__} has none; "
                "possible: eps, x0 or v, or a fixed variance"
            )
        self.net = net
        self.parameterization = parameterization
        self.learned_variance = learned_variance
        self.autocast: torch.dtype | None = None

    @property
    def table(self) -> Table:
        """The table it was trained on. Raises ConfigError where there is none."""
        if not isinstance(self.parameterization, Tabled):
            raise ConfigError(f"{type(self.parameterization).__name__} has no table; possible: eps, x0 or v")
        return self.parameterization.table

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> Tensor:
        """The estimate of x0. x: (B, ...); sigma: (B,) or ()."""
        c = self.parameterization(sigma.expand(x.shape[0]))  # (B,) each
        return column(c.skip, x) * x + column(c.out, x) * self._run(x, c, cond)[0]

    def network(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> Tensor:
        """What the network itself says of the picture, F(in x, time), in the dtype of x."""
        return self.outputs(x, sigma, cond)[0]

    def outputs(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> tuple[Tensor, Tensor | None]:
        """All that the network says: F, and u of (1) where the variance is learned; both (B, ...)."""
        return self._run(x, self.parameterization(sigma.expand(x.shape[0])), cond)

    def step(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Cond = NOTHING) -> tuple[Tensor, Tensor | None]:
        """The estimate and, where it is learned, the variance of the step to sigma_next, in one forward."""
        c = self.parameterization(sigma.expand(x.shape[0]))
        predicted, share = self._run(x, c, cond)
        estimate = column(c.skip, x) * x + column(c.out, x) * predicted
        if share is None:
            return estimate, None
        small, large = (column(v, x) for v in self.table.log_variances(sigma, sigma_next))
        return estimate, (small + share * (large - small)).exp()

    def variance(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Cond = NOTHING) -> Tensor:
        """Equation (1), of a step in the coordinates x = x0 + sigma noise: (B, ...). Needs a learned one."""
        found = self.step(x, sigma, sigma_next, cond)[1]
        if found is None:
            raise ConfigError("this denoiser has learned no variance; possible: small or large")
        return found

    def _run(self, x: Tensor, c: Coefficients, cond: Cond) -> tuple[Tensor, Tensor | None]:
        weight = next(self.net.parameters(), None)
        dtype = x.dtype if weight is None else weight.dtype
        if dtype != x.dtype:
            cond = cond.to(dtype)
        # Time keeps the precision of x: bfloat16 holds no whole number above 256.
        time = c.time.to(x.dtype)
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output: Tensor = self.net((column(c.in_, x) * x).to(dtype), time, cond)
        output = output.to(x.dtype)
        if not self.learned_variance:
            return output, None
        predicted, v = output.chunk(2, dim=1)
        return predicted, (v + 1) / 2

    def given(self, cond: Cond) -> "Given":
        """The denoiser with its condition bound."""
        return Given(self, cond)


class Given:
    """A denoiser with its condition bound."""

    def __init__(self, denoiser: Denoiser, cond: Cond) -> None:
        self.denoiser, self.cond = denoiser, cond

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        estimate: Tensor = self.denoiser(x, sigma, self.cond)
        return estimate

    def step(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.denoiser.step(x, sigma, sigma_next, self.cond)


Edit = Callable[[Denoise, Tensor, Tensor], Tensor]  # (denoise, x, sigma) -> a changed estimate, denoise called once


class Edited:
    """A denoiser made of another by an edit of its estimates. The variance of a step stays the other's: of the last
    rows, those of the full condition, where the edit asks it for more rows than it was given."""

    def __init__(self, denoise: Denoise, edit: Edit) -> None:
        self.denoise, self.edit = denoise, edit

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.edit(self.denoise, x, sigma)

    def step(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor | None]:
        found: list[Tensor | None] = []

        def stepping(many: Tensor, its: Tensor) -> Tensor:
            estimate, variance = scattered(self.denoise, many, its, sigma_next.repeat(len(many) // len(x)))
            found.append(None if variance is None else variance[-len(x) :])
            return estimate

        return self.edit(stepping, x, sigma), found[0]


def scattered(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor | None]:
    """The estimate of any denoiser and, where it has learned one, the variance of the step to sigma_next (B,)."""
    if isinstance(denoise, Scattering):
        return denoise.step(x, sigma, sigma_next)
    return denoise(x, sigma), None
