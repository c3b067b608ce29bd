"""Guidance and edits: whatever changes a denoiser returns a denoiser.

Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) walks past the conditional estimate, away from the
unconditional one:

    D = D(null) + scale (D(cond) - D(null))                                                           (1)

Estimates of x0 and network outputs differ by a factor and a shift that depend on (x, sigma) only, and the weights in
(1) add up to one: guiding D is guiding eps, v or the velocity. Several conditions nest (Brooks et al. 2023, eq. 3):

    D = D(c_0) + w_1 (D(c_1) - D(c_0)) + w_2 (D(c_2) - D(c_1)) + ...                                  (2)

where c_0 is nothing, c_1 the first condition, c_2 the first two, and so on. All run as one forward of a larger batch;
an estimate whose weight is zero is not computed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moyai.batch import Cond
from moyai.diffusion.denoiser import Denoise, Denoiser, Edited, scattered
from moyai.diffusion.noise import column


def guided(denoiser: Denoiser, cond: Cond, null: Cond, scale: float, *, rescale: float = 0.0) -> Denoise:
    """Equation (1) in one forward of 2B. Scale 1 runs the condition only, scale 0 the null only.

    `rescale` (phi of Lin et al. 2024, eq. 15 and 16) gives the guided network output back the standard deviation of
    the conditional one, in part (0 not at all, 1 fully): large scales otherwise burn out the picture.
    """
    if rescale == 0 or scale in (0, 1):
        return nested(denoiser, [null, cond], [scale])

    def edit(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
        unconditional, conditional = _each(denoise, x, sigma, 2)
        mixed = unconditional + scale * (conditional - unconditional)
        c = denoiser.parameterization(sigma)
        skip, out = column(c.skip, x) * x, column(c.out, x)
        output, wanted = (mixed - skip) / out, (conditional - skip) / out  # the networks' own words again
        over = tuple(range(1, x.ndim))
        ratio = wanted.std(dim=over, keepdim=True) / output.std(dim=over, keepdim=True)
        return skip + out * output * (rescale * ratio + 1 - rescale)

    return Edited(denoiser.given(Cond.cat([null, cond])), edit)


def nested(denoiser: Denoiser, conds: Sequence[Cond], scales: Sequence[float]) -> Denoise:
    """Equation (2): conds c_0 (none) to c_k (all), scales w_1 to w_k."""
    if len(conds) != len(scales) + 1:
        raise ValueError(f"{len(conds)} conditions need {len(conds) - 1} scales, not {len(scales)}")
    # (2) collected by estimate: c_i has weight w_i - w_{i+1}, with w_0 = 1 and w_{k+1} = 0.
    w = [1.0, *scales, 0.0]
    used = [(cond, w[i] - w[i + 1]) for i, cond in enumerate(conds) if w[i] != w[i + 1]]
    if len(used) == 1:
        return denoiser.given(used[0][0])

    def edit(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
        first, *rest = _each(denoise, x, sigma, len(used))
        # The weights add up to one, so this is their sum; differences keep what the estimates share free of rounding.
        return first + sum(weight * (other - first) for other, (_, weight) in zip(rest, used[1:], strict=True))

    return Edited(denoiser.given(Cond.cat([cond for cond, _ in used])), edit)


def autoguided(main: Denoise, guide: Denoise, scale: float) -> Denoise:
    """Guidance by a lesser version of the model itself (Karras et al. 2024, arXiv:2406.02507); scale 1 is `main`."""
    if scale == 1:
        return main

    def edit(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
        lesser = guide(x, sigma)
        return lesser + scale * (denoise(x, sigma) - lesser)

    return Edited(main, edit)


def interval(inside: Denoise, outside: Denoise, sigma_low: float, sigma_high: float) -> Denoise:
    """`inside` where sigma_low < sigma <= sigma_high, else `outside` (Kynkaanniemi et al. 2024, arXiv:2404.07724).

    All rows of a call must be at one sigma, as they are in every sampler.
    """
    return _Interval(inside, outside, sigma_low, sigma_high)


def clamped(denoise: Denoise, low: float, high: float) -> Denoise:
    """Estimates kept in [low, high]: for models of pixels."""
    return Edited(denoise, lambda run, x, sigma: run(x, sigma).clamp(low, high))


def inpainting(denoise: Denoise, known: Tensor, mask: Tensor, noise: Tensor) -> Denoise:
    """The denoiser for filling in: outside the mask the picture is known.

    mask: 1 where to paint, 0 where `known` (x0 there) is kept exactly, between for a soft edge; it broadcasts to
    `known` (B, ...). The known part of x is put at x0 + sigma noise before the network sees it, and that of the
    estimate at x0; a sampler's last step returns the estimate, so it ends at the known values to the bit.
    """

    def edit(run: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
        x = torch.lerp(known + column(sigma, known) * noise, x, mask)
        return torch.lerp(known, run(x, sigma), mask)

    return Edited(denoise, edit)


class _Interval:
    """One of two denoisers, by the noise level."""

    def __init__(self, inside: Denoise, outside: Denoise, low: float, high: float) -> None:
        self.inside, self.outside, self.low, self.high = inside, outside, low, high

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._at(sigma)(x, sigma)

    def step(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor | None]:
        return scattered(self._at(sigma), x, sigma, sigma_next)

    def _at(self, sigma: Tensor) -> Denoise:
        return self.inside if self.low < float(sigma.reshape(-1)[0]) <= self.high else self.outside


def _each(denoise: Denoise, x: Tensor, sigma: Tensor, count: int) -> tuple[Tensor, ...]:
    """The estimates of a denoiser that several conditions are bound to, one after the other, in one forward."""
    many = x.repeat(count, *[1] * (x.ndim - 1))  # (count B, ...)
    return denoise(many, sigma.expand(x.shape[0]).repeat(count)).chunk(count)
