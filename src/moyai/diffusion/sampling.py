"""Samplers: stateless walks along a grid, from noise to a picture.

In the coordinates x = x0 + sigma noise, the probability flow of every model is one equation (Karras et al. 2022,
eq. 1 and 3)

    dx / dsigma = (x - D(x, sigma)) / sigma                                                           (1)

A sampler is a generator `(denoise, x, sigmas) -> Step, Step, ...`: no hidden state, the grid is an argument, and
progress, preview and cancelling are the caller's `for`. An Euler step from s to t,

    x' = D + (t / s) (x - D)                                                                          (2)

is DDIM (Song et al. 2021) for models of a table and the Euler step of a rectified flow. It is written so, and not as
x + (t - s) dx/dsigma, because at s = 4096 the latter loses 1e-3 of the picture in float32, this 5e-7. A step may also
go further down than t and come back up with fresh noise,

    up^2 = eta^2 t^2 (s^2 - t^2) / s^2,   down^2 = t^2 - up^2,
    x' = D + (down / s) (x - D) + up noise                                                            (3)

which is DDIM's eta: 0 is deterministic, and 1 is DDPM's ancestral sampling, whose up^2 is the posterior variance
beta~_t of `noise.q_posterior` divided by abar_{t-1}. `ddpm` is that step with the variance a choice,

    x' = D + (t^2 / s^2) (x - D) + sqrt(V) noise,   V small, large or learned (`noise.py` and `denoiser.py`)   (3b)

and no noise in the step to 0. With V small it is (3) at eta 1: down / s = t^2 / s^2, and up^2 = V.

The second-order methods here, which evaluate D twice, are Heun's (Karras et al. 2022, algorithm 1), which in the form
of (2) reads

    x' = x_euler + (s / t - 1) / 2 (D(x_euler, t) - D(x, s)),                                         (4)

DPM-Solver-2's, which takes the whole step along (x - D) / sigma as it is at m = sqrt(s t),

    x' = D_m + (t / s) (x - D_m),   D_m = x - s (x_m - D(x_m, m)) / m,                                (5)

and DPM-Solver++(2S)'s (Lu et al. 2022, arXiv:2211.01095), which takes D at m. `multistep.py` has those that remember.

Equation (4) multiplies the change of D by s / (2 t), which is hundreds in the first step that an even grid of a flow or
of a zero-terminal model takes, and thousands where few steps span all of sigma: the picture is lost. `heun` therefore
leaves out the correction where s / t is above 4, and `dpm2`, which (5) serves no better, is Euler's there. The
published grid of 18 steps has no such step; on a mixture of 20 Gaussians, a cosine table walked evenly in 12 steps,
the error of Heun's falls from 1.0 to 0.07.

`repeated` makes of any of them one that walks each step several times, for filling in; `samplers.py` has their names.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from moyai.diffusion.denoiser import Denoise, scattered
from moyai.diffusion.noise import column, large_variance, small_variance
from moyai.diffusion.parameterization import Parameterization
from moyai.errors import RequestError

Noise = Callable[[int], Tensor]  # the fresh noise of step i, in the shape of x


SPAN = 4.0  # the longest step, s / t, that a second look along (x - D) / sigma helps


class Step(NamedTuple):
    """One step done: its number (from 1), the sigma x is now at, x, and the estimate of x0 the step was made with."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a step
    sigma: float
    x: Tensor
    denoised: Tensor


class Sampler(Protocol):
    """Walks x along sigmas (steps + 1,). `eta` above 0 asks for fresh noise, `noise(i)` gives that of step i."""

    def __call__(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None
    ) -> Iterator[Step]: ...


def start(
    noise: Tensor, parameterization: Parameterization, sigmas: Tensor, *, full: bool = True, x0: Tensor | None = None
) -> Tensor:
    """Where a walk begins.

    A full grid begins at noise / in_(sigma), which is what the network was trained to see as pure noise: of unit
    variance. A grid begun lower (or from a picture x0) begins at x0 + sigma noise; without an x0, at sigma noise.
    """
    if full and x0 is None:
        return noise / column(parameterization(sigmas[:1].double()).in_, noise)
    noisy = float(sigmas[0]) * noise
    return noisy if x0 is None else x0 + noisy


def split(s: float, t: float, eta: float) -> tuple[float, float]:
    """(down, up) of equation (3): where a step from s to t aims, and the fresh noise that brings it back up to t."""
    up = min(t, eta * t * sqrt(max(0.0, s * s - t * t)) / s)
    return sqrt(t * t - up * up), up


def euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Step]:
    """Equation (3): DDIM, DDPM, Euler, Euler ancestral and the Euler step of a flow. Order 1."""
    for index, s, t in intervals(sigmas):
        d = denoise(x, full(x, s))
        down, up = split(s, t, eta)
        x = toward(d, x, down / s, up, index, noise)
        yield Step(index, t, x, d)


def heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Step]:
    """Equation (4), two evaluations a step (one where the step goes to 0 or spans too much). Order 2."""
    refuse_eta("heun", eta)
    for index, s, t in intervals(sigmas):
        d = denoise(x, full(x, s))
        x = toward(d, x, t / s)
        if t > 0 and s / t <= SPAN:
            x = x + 0.5 * (s / t - 1) * (denoise(x, full(x, t)) - d)
        yield Step(index, t, x, d)


def dpm2(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Step]:
    """Equation (5), two evaluations a step (one where the step goes to 0 or spans too much). Order 2."""
    refuse_eta("dpm2", eta)
    for index, s, t in intervals(sigmas):
        d = denoise(x, full(x, s))
        mean = d
        if t > 0 and s / t <= SPAN:
            half = sqrt(s * t)
            there = toward(d, x, half / s)
            mean = x - s * (there - denoise(there, full(x, half))) / half
        x = toward(mean, x, t / s)
        yield Step(index, t, x, d)


def dpmpp_2s(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Step]:
    """DPM-Solver++(2S): D half way in log sigma stands for the whole step; two evaluations. Order 2 at eta 0."""
    for index, s, t in intervals(sigmas):
        d = denoise(x, full(x, s))
        down, up = split(s, t, eta)
        if down > 0:
            half = sqrt(s * down)
            d = denoise(toward(d, x, half / s), full(x, half))
        x = toward(d, x, down / s, up, index, noise)
        yield Step(index, t, x, d)


def ddpm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    variance: Literal["learned", "small", "large"] | None = None,
) -> Iterator[Step]:
    """Equation (3b): ancestral sampling, meant for the table's grid. When no variance is named: the learned one where
    there is one, else small."""
    if eta:
        raise RequestError(f"eta {eta} needs another sampler: ddpm has its own noise; possible: eta 0, or euler")
    for index, s, t in intervals(sigmas):
        d, learned = scattered(denoise, x, full(x, s), full(x, t))
        up: float | Tensor = sqrt(large_variance(s, t) if variance == "large" else small_variance(s, t))
        if variance in ("learned", None) and learned is not None:
            up = learned.sqrt()
        elif variance == "learned":
            raise RequestError("this model has learned no variance; possible: small or large")
        x = toward(d, x, (t / s) ** 2, 0.0 if t == 0 else up, index, noise)
        yield Step(index, t, x, d)


def repeated(sampler: Sampler, times: int, fresh: Noise) -> Sampler:
    """Each step walked `times` times, in between back up with fresh noise (the way back of RePaint, Lugmayr et al.
    2022, arXiv:2201.09865, algorithm 1):

        x_s = x_t + sqrt(s^2 - t^2) noise

    What a denoiser is held to in one place (`guidance.inpainting`) has so many turns to reach the others. The last step
    is walked once; a multistep method, whose history the way back breaks, becomes its own first step. `fresh(k)` gives
    the noise of the k-th way back, and each turn asks the sampler's `noise` for a number of its own.
    """

    def walk(
        denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None
    ) -> Iterator[Step]:
        steps = len(sigmas) - 1
        for index, s, t in intervals(sigmas):
            for turn in range(times if t > 0 else 1):
                number = turn * steps + index
                if turn:
                    x = x + sqrt(s * s - t * t) * fresh(number)
                own = None if noise is None else partial(_numbered, noise, number)
                (step,) = sampler(denoise, x, sigmas[index - 1 : index + 1], eta=eta, noise=own)
                x = step.x
            yield Step(index, t, x, step.denoised)

    return walk


def _numbered(noise: Noise, number: int, _: int) -> Tensor:
    return noise(number)


def refuse_eta(sampler: str, eta: float) -> None:
    """Raises RequestError where fresh noise is asked of a sampler that has no place for it."""
    if eta:
        raise RequestError(f"eta {eta} needs another sampler: {sampler} is deterministic; possible: eta 0, or euler")


def intervals(sigmas: Tensor) -> Iterator[tuple[int, float, float]]:
    """(index, from, to) of every step; plain numbers, so that an accelerator is never waited for."""
    for index, (s, t) in enumerate(pairwise(sigmas.tolist()), 1):
        yield index, s, t


def full(x: Tensor, sigma: float) -> Tensor:
    """sigma for every row of x: (B,)."""
    return torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)


def toward(
    d: Tensor, x: Tensor, ratio: float, up: float | Tensor = 0.0, index: int = 0, noise: Noise | None = None
) -> Tensor:
    """D + ratio (x - D) + up noise; D itself, to the bit, at ratio 0."""
    moved = d + ratio * (x - d)
    if not isinstance(up, Tensor) and up == 0:
        return moved
    if noise is None:
        raise ValueError("a step that adds noise needs noise: a function of the step's number")
    return moved + up * noise(index)
