"""The denoiser: one currency for every network, D(x, sigma) = skip x + out F(in x, time).

Samplers, guidance and edits know functions `(x, sigma) -> estimate of x0` and nothing of tables or predictions; the
conversion happens here, once (`parameterization.py` has the numbers). The state x is float32; the network runs in the
dtype of its own weights, or under autocast where `autocast` names a dtype.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.noise import column
from moyai.diffusion.parameterization import Coefficients, Parameterization

NOTHING = Cond()
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x (B, ...), sigma (B,)) -> estimate of x0 (B, ...)


class Denoiser(nn.Module):
    """A network `(x, time, cond) -> tensor` and what its output means."""

    def __init__(self, net: nn.Module, parameterization: Parameterization) -> None:
        super().__init__()
        self.net = net
        self.parameterization = parameterization
        self.autocast: torch.dtype | None = None

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> Tensor:
        """The estimate of x0. x: (B, ...); sigma: (B,) or ()."""
        c = self.parameterization(sigma.expand(x.shape[0]))  # (B,) each
        return column(c.skip, x) * x + column(c.out, x) * self._run(x, c, cond)

    def network(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> Tensor:
        """What the network itself says, F(in x, time), in the dtype of x."""
        return self._run(x, self.parameterization(sigma.expand(x.shape[0])), cond)

    def _run(self, x: Tensor, c: Coefficients, cond: Cond) -> Tensor:
        weight = next(self.net.parameters(), None)
        dtype = x.dtype if weight is None else weight.dtype
        if dtype != x.dtype:
            cond = cond.to(dtype)
        # Time keeps the precision of x: bfloat16 holds no whole number above 256.
        time = c.time.to(x.dtype)
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output: Tensor = self.net((column(c.in_, x) * x).to(dtype), time, cond)
        return output.to(x.dtype)

    def given(self, cond: Cond) -> Denoise:
        """The denoiser with its condition bound."""

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            estimate: Tensor = self(x, sigma, cond)
            return estimate

        return denoise
