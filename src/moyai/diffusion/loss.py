"""The loss: a weighted squared error of the estimate of x0, written where it is best conditioned.

A weighting w is a function of sigma on the error of the estimate. By equation (1) of `parameterization.py`
D - x0 = out (F - target), so

    w(sigma) |D - x0|^2 = w(sigma) out(sigma)^2 |F - target|^2                                        (1)

and the right side, in which the network's output and target are of order one at every sigma, is what is computed.
With s = sigma and d = sigma_data the weightings are

    plain    1 / out^2             the papers' mean squared error of eps, v or the velocity; EDM's lambda
    x0       1                     the error of the picture
    snr      1 / s^2               the error of the noise, whatever the network predicts
    min-snr  min(1 / s^2, gamma)   Hang et al. 2023, arXiv:2303.09556
    edm      (s^2 + d^2)/(s d)^2   Karras et al. 2022, for any parameterisation

one formula each for all parameterisations. (The fourth thing called "schedule".)
"""

from collections.abc import Callable

from torch import Tensor

from moyai.batch import Cond
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.noise import column
from moyai.diffusion.parameterization import Parameterization
from moyai.errors import ConfigError, choices

Weight = Callable[[Tensor, Tensor], Tensor]  # (sigma (B,), out (B,)) -> w (B,), both float64


def weighting(kind: str, *, gamma: float = 5.0, sigma_data: float = 1.0) -> Weight:
    """The weighting of a name; gamma is min-snr's, sigma_data edm's."""
    d = sigma_data
    weights: dict[str, Weight] = {
        "plain": lambda sigma, out: 1 / out**2,
        "x0": lambda sigma, out: sigma.new_ones(sigma.shape),
        "snr": lambda sigma, out: 1 / sigma**2,
        "min-snr": lambda sigma, out: (1 / sigma**2).clamp(max=gamma),
        "edm": lambda sigma, out: (sigma**2 + d**2) / (sigma * d) ** 2,
    }
    if kind not in weights:
        raise ConfigError(f"weighting {kind} is unknown; {choices(kind, weights)}")
    return weights[kind]


def diffusion_loss(denoiser: Denoiser, x0: Tensor, cond: Cond, sigma: Tensor, noise: Tensor, weight: Weight) -> Tensor:
    """The loss of each sample, the mean over its elements: (B,). x0, noise: (B, ...); sigma: (B,)."""
    x = x0 + column(sigma, x0) * noise
    return weighted_error(denoiser.parameterization, denoiser.network(x, sigma, cond), x0, sigma, noise, weight)


def weighted_error(
    parameterization: Parameterization, output: Tensor, x0: Tensor, sigma: Tensor, noise: Tensor, weight: Weight
) -> Tensor:
    """Equation (1) of what a network said, the mean over its elements: (B,)."""
    error = (output - parameterization.target(x0, noise, sigma)).square().flatten(1).mean(1)  # (B,)
    s = sigma.double()
    out = parameterization(s).out
    return (weight(s, out) * out**2).to(error.dtype) * error
