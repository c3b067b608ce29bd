"""The variational bound: how many nats a model of a table needs to tell a picture, at most.

A model that draws x_T from N(0, I) and then x_{t-1} from p(x_{t-1} | x_t), step by step, gives every picture x_0 a
probability. Its negative logarithm is at most (Ho et al. 2020, arXiv:2006.11239, eq. 5)

    L = L_T + sum over t of L_t + L_0                                                                 (1)
    L_T = KL(q(x_T | x_0), N(0, I)),   L_t = E KL(q(x_{t-1} | x_t, x_0), p(x_{t-1} | x_t)),   L_0 = E -ln p(x_0 | x_1)

Here the first index of the table is 0: a step leads from s = sigma_t to s' = sigma_{t-1}, and from index 0 to s' = 0.

**L_T.** In the papers' coordinates q(x_T | x_0) = N(sqrt(abar) x_0, 1 - abar), so that for each value

    L_T = (abar (x_0^2 - 1) - ln(1 - abar)) / 2                                                       (2)

**L_t.** A KL divergence does not change when both sides are scaled alike, so it may be taken in x = x0 + sigma noise.
Both sides are Gaussian there (equation (5) of `noise.py`): q has mean x_0 + s'^2/s^2 (x - x_0) and variance v, small; p
the same mean with D for x_0, and variance V, which is small, large or learned. Hence

    L_t = (ln(V/v) + v/V - 1 + (1 - s'^2/s^2)^2 (D - x_0)^2 / V) / 2                                  (3)

which for V = v is (1/s'^2 - 1/s^2) (D - x_0)^2 / 2: the error of the estimate times half the fall of 1/s^2. The error
is taken as D - x_0 = out (F - target), which loses nothing in float32 where s is small.

**L_0.** The last step has mean D. Its variance, small or large, is that of the step before it, as in both papers' code;
the learned one lies between that and beta. For 8-bit pixels p(x_0 | x_1) is the probability of the interval of 1/127.5
around the pixel's value, open at both ends of the range (DDPM eq. 13),

    L_0 = -ln(Phi((x_0 + 1/255 - D) / sqrt V) - Phi((x_0 - 1/255 - D) / sqrt V))                      (4)

and for latents, which have no levels, the density at x_0,

    L_0 = (ln(2 pi V) + (D - x_0)^2 / V) / 2                                                          (5)

**Units.** Everything here is in nats a value: the mean over a picture's values. With (4) L / ln 2 is the bits per
dimension of the literature. With (5) it is a differential entropy: it depends on the first stage, and says nothing of
another's; it may be negative.

**Training** a variance (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 16) minimises

    L_hybrid = L_simple + lambda L_vlb,   L_vlb = T L_t / ln 2 at a uniform t                         (6)

in which L_vlb sees the estimate without its gradient: it teaches the variance, L_simple the estimate. Its unit is the
bit, because lambda = 0.001 was found in it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from moyai.batch import Cond
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import Weight, weighted_error
from moyai.diffusion.noise import Table, column
from moyai.errors import ConfigError

Variance = Literal["learned", "small", "large"]
Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x0, mean, variance), (B, ...) each -> L_0 of each value, nats

HALF = 1 / 255  # half the distance between two levels of a pixel in [-1, 1]


class Term(NamedTuple):
    """One term of equation (1): the index its step starts from (that of L_T is the table's length), and its value."""

    at: int
    nats: Tensor  # (B,), a value
    done: int
    total: int


@torch.no_grad()
def terms(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    noise: Callable[[int], Tensor],
    *,
    decoder: Decoder,
    variance: Variance,
) -> Iterator[Term]:
    """All terms of (1), from L_T to L_0, whose sum is the bound; closing the iterator cancels.

    x0: (B, ...); noise(t): that of index t, in its shape. Raises ConfigError where the denoiser has no table, or has
    not learned the variance that is asked for.
    """
    count = len(denoiser.table)
    yield Term(count, prior_term(denoiser.table, x0), 1, count + 1)
    for done, t in enumerate(reversed(range(count)), 2):
        index = torch.full((len(x0),), t, device=x0.device)
        nats = step_term(denoiser, x0, cond, index, noise(t), decoder=decoder, variance=variance)
        yield Term(t, nats, done, count + 1)


def prior_term(table: Table, x0: Tensor) -> Tensor:
    """L_T, equation (2): (B,)."""
    abar = float(table.abar[-1])
    return 0.5 * (abar * (x0.square().flatten(1).mean(1) - 1) - math.log1p(-abar))


def step_term(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    index: Tensor,
    noise: Tensor,
    *,
    decoder: Decoder,
    variance: Variance,
) -> Tensor:
    """L_t at the indices (B,) of the table, L_0 where it is 0, with one noise each: (B,). x0, noise: (B, ...)."""
    sigma = denoiser.table.sigmas_on(index.device)[index]
    x = x0 + column(sigma, x0) * noise
    predicted, share = denoiser.outputs(x, sigma.to(x0.dtype), cond)
    above = _above(denoiser.table, index, x0, share, variance)
    return _term(denoiser, predicted, above, x0, index, noise, decoder)


def hybrid_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    sigma: Tensor,
    noise: Tensor,
    weight: Weight,
    *,
    decoder: Decoder,
    bound_weight: float,
) -> Tensor:
    """Equation (6), the mean over each sample's values: (B,). sigma: (B,), levels of the table."""
    table = denoiser.table
    x = x0 + column(sigma, x0) * noise
    predicted, share = denoiser.outputs(x, sigma, cond)
    simple = weighted_error(denoiser.parameterization, predicted, x0, sigma, noise, weight)
    index = table.time(sigma, rounded=True).long()
    above = _above(table, index, x0, share, "learned")
    bound = _term(denoiser, predicted.detach(), above, x0, index, noise, decoder)
    return simple + bound_weight * len(table) / math.log(2) * bound


def discretized(x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """L_0 of 8-bit pixels in [-1, 1], equation (4). In float64: it is a difference of two nearly equal numbers."""
    std, off = variance.double().sqrt(), (x0 - mean).double()
    low, high = (off - HALF) / std, (off + HALF) / std
    mirrored = low + high > 0  # Phi is near 0 on its left and near 1 on its right, where a difference loses everything
    left, right = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    log_left, log_right = torch.special.log_ndtr(left), torch.special.log_ndtr(right)
    inside = log_right + torch.log(-torch.expm1(log_left - log_right))
    black, white = torch.special.log_ndtr(high), torch.special.log_ndtr(-low)
    return -torch.where(x0 < HALF - 1, black, torch.where(x0 > 1 - HALF, white, inside)).to(x0.dtype)


def gaussian(x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """L_0 of latents, equation (5)."""
    return 0.5 * ((2 * math.pi * variance).log() + (x0 - mean) ** 2 / variance)


def _above(table: Table, index: Tensor, x0: Tensor, share: Tensor | None, variance: Variance) -> Tensor:
    """ln(V / v) of the steps from these indices, in a shape that goes with x0."""
    small, large = table.log_variances(table.sigmas_on(index.device)[index], table.before(index))
    if variance == "learned":
        if share is None:
            raise ConfigError("this denoiser has learned no variance; possible: small or large")
        return share * column(large - small, x0)
    wide = (large - small) * (index > 0) if variance == "large" else torch.zeros_like(small)
    return column(wide, x0)


def _term(
    denoiser: Denoiser, predicted: Tensor, above: Tensor, x0: Tensor, index: Tensor, noise: Tensor, decoder: Decoder
) -> Tensor:
    """Equation (3), and (4) or (5) at index 0, of what a network said of x0 + sigma noise: (B,)."""
    s, t = denoiser.table.sigmas_on(index.device)[index], denoiser.table.before(index)
    small = denoiser.table.log_variances(s, t)[0]
    out = denoiser.parameterization(s).out
    error = column(out, x0) * (predicted - denoiser.parameterization.target(x0, noise, s))  # D - x0
    scale = column((1 - (t / s) ** 2) ** 2 * (-small).exp(), x0)
    divergence = 0.5 * (above + torch.expm1(-above) + scale * (-above).exp() * error**2)
    first = decoder(x0, x0 + error, (column(small, x0) + above).exp())
    return torch.where(column(index, x0) == 0, first, divergence).flatten(1).mean(1)
