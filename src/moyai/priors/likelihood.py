"""How likely a diffusion prior finds pictures it has never seen: its variational bound, estimated on few levels.

The bound is a sum over all levels of the table (`diffusion.bound`, equation (1)), a forward each. Its terms fall fast:
most of the sum lies in the first few of a thousand levels. So L_T and L_0 are computed for every picture, and the
levels between are cut into strata that are one level wide at the clean end and grow with the level. Of each stratum k,
of n_k levels, every picture takes one level at random,

    L ~ L_T + sum over k of n_k L_(t_k) + L_0                                                         (1)

which is an unbiased estimate of its bound with one forward a stratum. Levels are spread evenly over the pictures, so
that the mean over them is better than its standard error, which counts them as independent, says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from moyai.batch import Cond
from moyai.diffusion.bound import Variance, discretized, prior_term, step_term
from moyai.errors import RequestError
from moyai.priors.diffusion import DiffusionPrior
from moyai.randomness import Draw

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Likelihood:
    """An upper bound on the negative log-likelihood, and how sure it is.

    `nats/value` is of a first stage's latents, and compares with no other first stage's.
    """

    value: float
    error: float  # standard error of the mean over pictures, their noises and levels
    unit: Literal["bits/dim", "nats/value"]
    pictures: int


@torch.no_grad()
def likelihood(
    prior: DiffusionPrior,
    z: Tensor,
    cond: Cond,
    draw: Draw,
    *,
    bits: int = 8,
    strata: int = 16,
    batch: int = 64,
    variance: Variance | None = None,
    progress: Progress | None = None,
) -> Likelihood:
    """The bound of equation (1) on held-out latents z (N, c, h, w), N of 2 or more, given their conditions.

    draw: the randomness of N rows. bits: of a stored value, where z are pixels. variance: the learned one where there
    is one, else "large", when not given. progress(done, total) counts forwards.
    Raises ConfigError for a prior without a table, RequestError for pixels of other than 8 bits.
    """
    pixels = prior.bound.decoder is discretized
    if pixels and bits != 8:
        raise RequestError(f"bits per dimension are of 8-bit pixels, and these have {bits} bits")
    if len(z) < 2:
        raise RequestError(f"{len(z)} picture is too few for a bound with its standard error; possible: 2 and more")
    found = []
    for first in range(0, len(z), batch):
        rows = slice(first, min(first + batch, len(z)))
        here = Cond() if not cond.routes() else cond.rows(rows.start, rows.stop)
        done = (first // batch, -(-len(z) // batch), progress)
        found.append(_bounds(prior, z[rows], here, draw.rows(rows.start, rows.stop), strata, variance, done))
    nats = torch.cat(found).double()
    scale = 1 / math.log(2) if pixels else 1.0
    error = float(nats.std()) / math.sqrt(len(nats))
    return Likelihood(scale * float(nats.mean()), scale * error, "bits/dim" if pixels else "nats/value", len(nats))


def _bounds(
    prior: DiffusionPrior,
    z: Tensor,
    cond: Cond,
    draw: Draw,
    strata: int,
    variance: Variance | None,
    done: tuple[int, int, Progress | None],
) -> Tensor:
    """Equation (1) for one forward's pictures, nats a value: (B,). done: batches before this, of how many."""
    denoiser = prior.denoiser
    chosen: Variance = variance or ("learned" if denoiser.learned_variance else "large")
    edges = cuts(len(denoiser.table), strata)
    total = prior_term(denoiser.table, z)
    for k, (low, high) in enumerate(pairwise(edges)):
        index = low + (draw.stratified(f"level {k}").double() * (high - low)).long()
        noise = draw.normal(f"noise {k}", z.shape[1:])
        term = step_term(denoiser, z, cond, index, noise, decoder=prior.bound.decoder, variance=chosen)
        total = total + (high - low) * term
        if done[2]:
            done[2](done[0] * (len(edges) - 1) + k + 1, done[1] * (len(edges) - 1))
    return total


def cuts(levels: int, strata: int) -> list[int]:
    """Where the strata begin and end: 0, 1, ... levels, the first the last step's alone, the others growing evenly in
    the logarithm; at most strata + 1 of them."""
    marks = {round(levels ** (k / strata)) for k in range(strata + 1)}
    return sorted({0, 1, levels, *(m for m in marks if 1 <= m <= levels)})
