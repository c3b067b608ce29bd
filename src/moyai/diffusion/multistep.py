"""Multistep samplers: a step is made with what the steps before it found out, at one evaluation each.

A step from s to t of equation (1) of `sampling.py` has two forms that are exact,

    x' = D_mean + (t / s) (x - D_mean),   D_mean = int_0^1 K(u) D(u) du / int_0^1 K(u) du             (1)
    x' = x + (t - s) e_mean,              e = (x - D) / sigma,  e_mean the mean of e over sigma       (2)

with u = ln(s / sigma) / h from 0 to 1, h = ln(s / t) and K(u) = e^{h (u - 1)}. (2) is (1) with D_mean = x - s e_mean. A
method is what it takes for the curve between s and t: a polynomial through the values it remembers, continued.

    method           continues   in            with
    dpmpp_2m         D           ln sigma      half of the change: Lu et al. 2022, arXiv:2211.01095, algorithm 2
    dpmpp_3m         D           ln sigma      a parabola, half of its curvature: as published by k-diffusion; order 2
    dpmpp_3m_exact   D           ln sigma      the parabola; order 3
    unipc            D           ln sigma      the step made again when D at its end is known (Zhao et al. 2023,
                                               arXiv:2302.04867); order k + 1 from k values
    lms              e           sigma         k values: order k (k-diffusion)
    deis             e           ln sigma      k values: order k (Zhang and Chen 2022, arXiv:2204.13902, tAB)
    plms             e           even steps    Adams and Bashforth's numbers; the first step evaluates twice (Liu et al.
                                               2022, arXiv:2202.09778); order 2, since steps are not even
    ipndm            e           even steps    the same, begun by Euler (Zhang and Chen 2022); order 2

Where fresh noise is asked for (`eta`), a step of the first three aims further down (`split` in `sampling.py`), so that
h in K is ln(s / down): at eta 1 these are the published SDE variants. A step to 0 returns D.
"""

from collections.abc import Callable, Iterator, Sequence
from math import log, prod
from typing import NamedTuple

import numpy as np
from torch import Tensor

from moyai.diffusion.denoiser import Denoise
from moyai.diffusion.sampling import SPAN, Noise, Step, full, intervals, refuse_eta, split, toward

NODES, SHARES = np.polynomial.legendre.leggauss(16)
U, DU = (NODES + 1) / 2, SHARES / 2  # where on [0, 1] a step is looked at, and how much of it each place stands for
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

# (sigmas of what is remembered, the last first; where the step ends; where it aims) -> weights that sum to 1
Weights = Callable[[Sequence[float], float, float], Sequence[float]]


def dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Step]:
    """DPM-Solver++(2M): D continued in log sigma from the last two. Order 2 at eta 0; at eta 1 the published SDE."""
    return _continued(denoise, x, sigmas, 2, _halved, eta=eta, noise=noise)


def dpmpp_3m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None, exact: bool = False
) -> Iterator[Step]:
    """DPM-Solver++(3M): D continued in log sigma from the last three. Order 2 at eta 0 as published, 3 if `exact`."""
    return _continued(denoise, x, sigmas, 3, _exact if exact else _half_curved, eta=eta, noise=noise)


def lms(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None, order: int = 4
) -> Iterator[Step]:
    """Linear multistep: e continued in sigma from the last `order`. Deterministic."""
    refuse_eta("lms", eta)
    return _continued(denoise, x, sigmas, order, _in_sigma, of_noise=True)


def deis(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None, order: int = 3
) -> Iterator[Step]:
    """DEIS: e continued in log sigma from the last `order`. Deterministic."""
    refuse_eta("deis", eta)
    return _continued(denoise, x, sigmas, order, _in_log_sigma, of_noise=True)


def ipndm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Step]:
    """iPNDM: Adams and Bashforth's mean of the last four e. Deterministic."""
    refuse_eta("ipndm", eta)
    return _continued(denoise, x, sigmas, 4, _as_if_even, of_noise=True)


def plms(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Step]:
    """PLMS: as iPNDM, begun by a step of two evaluations unless it is as long as Heun's correction harms."""
    refuse_eta("plms", eta)
    return _continued(denoise, x, sigmas, 4, _as_if_even, of_noise=True, twice_at_first=True)


def unipc(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise | None = None, order: int = 2
) -> Iterator[Step]:
    """UniPC: each step is made again once D at its end is known, and the next one from there. Deterministic.

    As published (B2, of D): a line through two values counts half of their change, in the first steps and, where
    `order` is 2, in all that are not yet made again; the last steps to 0 take fewer values, the very last only D.
    """
    refuse_eta("unipc", eta)
    past: list[Known] = []
    made: tuple[Tensor, list[Known]] | None = None  # of the step before: where it began, and what it was made with
    to_zero = float(sigmas[-1]) == 0
    for index, s, t in intervals(sigmas):
        d = denoise(x, full(x, s))
        if made is not None and made[1][0].sigma > s:
            began, known = made
            start = known[0].sigma
            known = [*known, Known(s, d)]
            x = toward(known[0].value + _change(known, _corrected(_sigmas(known), s)), began, s / start)
        past = _remembered(past, Known(s, d), order)
        known = past[: len(sigmas) - index if to_zero else order]
        made = (x, known)
        mean = d + _change(known, _predicted(_sigmas(known), t, t)) if len(known) > 1 and t < s else d
        x = toward(mean, x, t / s)
        yield Step(index, t, x, d)


class Known(NamedTuple):
    """What a step was made with: the estimate of the picture, or e, at a sigma."""

    sigma: float
    value: Tensor


def _continued(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    order: int,
    weights: Weights,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    of_noise: bool = False,
    twice_at_first: bool = False,
) -> Iterator[Step]:
    """Steps by (1), or by (2) where `of_noise`, with the weighted mean of the last `order` values."""
    past: list[Known] = []
    for index, s, t in intervals(sigmas):
        d = mean = denoise(x, full(x, s))
        down, up = split(s, t, eta)
        past = _remembered(past, Known(s, (x - d) / s if of_noise else d), order)
        if 0 < t < s and len(past) > 1:
            change = _change(past, weights(_sigmas(past), t, down))
            mean = d - s * change if of_noise else d + change
        elif t > 0 and twice_at_first and index == 1 and s / t <= SPAN:
            end = toward(d, x, t / s)
            mean = d - 0.5 * s * ((end - denoise(end, full(x, t))) / t - past[0].value)
        x = toward(mean, x, down / s, up, index, noise)
        yield Step(index, t, x, d)


def _remembered(past: list[Known], new: Known, order: int) -> list[Known]:
    """The last `order`, the newest first; of a sigma that stands twice in a grid, the newer."""
    return [new, *(known for known in past if known.sigma > new.sigma)][:order]


def _change(values: Sequence[Known], weights: Sequence[float]) -> Tensor:
    """How the mean with these weights, which sum to 1, differs from the first value."""
    first, *others = values
    change = weights[1] * (others[0].value - first.value)
    for known, weight in zip(others[1:], weights[2:], strict=True):
        change = change + weight * (known.value - first.value)
    return change


def _sigmas(values: Sequence[Known]) -> list[float]:
    return [known.sigma for known in values]


# --- weights: of values at `sigmas`, the newest first, in a step from sigmas[0] to t that aims at `down`


def _exact(sigmas: Sequence[float], t: float, down: float) -> list[float]:
    """A polynomial in log sigma through all of them, integrated as (1) says."""
    return _integrated(_logarithmic(sigmas, t), np.exp(log(sigmas[0] / down) * (U - 1)))


def _halved(sigmas: Sequence[float], t: float, down: float) -> list[float]:
    """A line in log sigma through two, of whose change half is counted."""
    share = -0.5 / _logarithmic(sigmas, t)[1]
    return [1 + share, -share]


def _predicted(sigmas: Sequence[float], t: float, down: float) -> list[float]:
    return _halved(sigmas, t, down) if len(sigmas) == 2 else _exact(sigmas, t, down)


def _corrected(sigmas: Sequence[float], t: float) -> list[float]:
    """As `_exact`, where the last of them is at t itself."""
    return [0.5, 0.5] if len(sigmas) == 2 else _exact(sigmas, t, t)


def _half_curved(sigmas: Sequence[float], t: float, down: float) -> list[float]:
    """As `_exact`, without half of a parabola's curvature."""
    weights = _exact(sigmas, t, down)
    if len(sigmas) < 3:
        return weights
    nodes = _logarithmic(sigmas, t)
    kernel = np.exp(log(sigmas[0] / down) * (U - 1)) * DU
    half = 0.5 * float((kernel * U**2).sum() / kernel.sum())
    return [w - half / prod(a - b for b in nodes if b != a) for w, a in zip(weights, nodes, strict=True)]


def _in_sigma(sigmas: Sequence[float], t: float, down: float) -> list[float]:
    return _integrated([(sigmas[0] - sigma) / (sigmas[0] - t) for sigma in sigmas], np.ones_like(U))


def _in_log_sigma(sigmas: Sequence[float], t: float, down: float) -> list[float]:
    return _integrated(_logarithmic(sigmas, t), np.exp(log(t / sigmas[0]) * U))  # dsigma is sigma dln sigma


def _as_if_even(sigmas: Sequence[float], t: float, down: float) -> Sequence[float]:
    return ADAMS_BASHFORTH[len(sigmas) - 1]


def _logarithmic(sigmas: Sequence[float], t: float) -> list[float]:
    """Where they are on the way from sigmas[0] (0) to t (1) in log sigma: the others are below 0."""
    return [log(sigmas[0] / sigma) / log(sigmas[0] / t) for sigma in sigmas]


def _integrated(nodes: Sequence[float], kernel: np.ndarray) -> list[float]:
    """The mean over [0, 1], weighted by `kernel` at U, of each Lagrange polynomial of the nodes."""
    shares = kernel * DU / (kernel * DU).sum()
    return [float((shares * prod((U - b) / (a - b) for b in nodes if b != a)).sum()) for a in nodes]
