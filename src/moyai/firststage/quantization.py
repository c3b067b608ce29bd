"""Discrete bottlenecks: latents that become one of finitely many values, here a codebook's vectors, in `grid` a grid's
points.

**Codebook** (van den Oord et al., "Neural discrete representation learning", 2017). A latent vector z becomes the
nearest of K vectors e_1 .. e_K; the decoder's gradient passes straight through, d values / d z = 1. With sg the stop
of gradients and beta the commitment, the objective gets (their equation 3)

    beta |z - sg(e)|^2      and, where the codebook learns by gradient,      |sg(z) - e|^2

as a mean over a picture's latents. Or the codebook follows running means (their appendix A.1), with n_i the latents
of a batch that chose vector i and s_i their sum:

    N_i <- d N_i + (1 - d) n_i        m_i <- d m_i + (1 - d) s_i        e_i <- m_i / N'_i
    N'_i = (N_i + eps) / (sum_j N_j + K eps) * sum_j N_j                                  (Laplace smoothing)

It starts from k-means on the first batch, spread out as k-means++ has it (Arthur and Vassilvitskii 2007). A vector
chosen less than a share of the even rate, N_i < restart * mean_j N_j, is dead; it is put on a latent of the batch, with
N_i at the even rate so that it has time to be found. With cosine codes (Yu et al., "Vector-quantized image modeling
with improved VQGAN", 2022, section 3.2) latents and vectors have length 1.

A prior sees z; `quantize` takes any z to its value and a value to itself.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.errors import DataError
from moyai.firststage.config import CodebookConfig
from moyai.randomness import Draw, generator

SMOOTHING = 1e-5  # eps of the Laplace smoothing, in latents
ROUNDS = 10  # of k-means
START_LATENTS = 2**15  # k-means looks at no more latents than this, or one for each vector
SCORES = 2**20  # distances held at a time, few enough for a processor's cache; 64 times as many on an accelerator


@dataclass(frozen=True)
class Quantized:
    """The posterior of a discrete bottleneck: all its weight is on one code."""

    z: Tensor  # (B, C, h, w) float32, before quantisation
    values: Tensor  # (B, C, h, w), quantised; their gradient is passed to z as it is
    codes: Tensor  # (B, h, w) int64
    penalty: Tensor  # (B,)

    def sample(self, draw: Draw) -> Tensor:
        """The quantised latents; there is no noise in them."""
        return self.values

    def mode(self) -> Tensor:
        return self.values

    def regularizer(self) -> Tensor:
        """The commitment (and codebook) term, weighted, a mean over a picture's latents: (B,). Zeros for a grid."""
        return self.penalty

    def stored(self) -> dict[str, Tensor]:
        return {"mean": self.z.detach().contiguous()}


class VectorQuantizer(nn.Module):
    """A codebook of `config.size` vectors of `channels` numbers.

    The codebook is a parameter that asks for a gradient only where it learns by one. `usage` holds the running counts
    N, `sums` the running sums m (running means only), `initialised` whether `initialise` was called.
    """

    codebook: nn.Parameter
    usage: Tensor
    sums: Tensor | None
    initialised: Tensor

    def __init__(self, config: CodebookConfig, channels: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        self.channels = self.moments = channels
        vectors = self._scaled(torch.empty(config.size, channels).uniform_(-1 / config.size, 1 / config.size))
        self.codebook = nn.Parameter(vectors, requires_grad=config.update == "gradient")
        self.moved = torch.empty(0, dtype=torch.int64)  # the vectors that the last step restarted
        self.register_buffer("usage", torch.ones(config.size))
        self.register_buffer("sums", vectors.clone() if config.update == "ema" else None)
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, h: Tensor) -> Quantized:
        """h: (B, channels, h, w), the encoder's output."""
        z = self._scaled(h.float())
        codes = self.codes_of(z)
        chosen = self.lookup(codes)
        penalty = self.config.commitment * (z - chosen.detach()).square().flatten(1).mean(1)
        if self.config.update == "gradient":
            penalty = penalty + (z.detach() - chosen).square().flatten(1).mean(1)
        return Quantized(z, straight_through(z, chosen), codes, penalty)

    def restored(self, values: Tensor) -> Tensor:
        return values

    def quantize(self, z: Tensor) -> Tensor:
        """(B, channels, h, w), of any length where codes are cosine, to the nearest vectors."""
        return self.lookup(self.codes_of(z))

    def codes_of(self, z: Tensor) -> Tensor:
        """(B, channels, h, w) to the number of the nearest vector, (B, h, w) int64; of equally near ones the lowest."""
        z = z.detach().float()
        codes = nearest(rows(self._scaled(z)), self._scaled(self.codebook.detach()))
        return codes.unflatten(0, (z.shape[0], *z.shape[2:]))

    def lookup(self, codes: Tensor) -> Tensor:
        """(B, h, w) to the vectors of those numbers, (B, channels, h, w)."""
        return F.embedding(codes, self._scaled(self.codebook)).movedim(-1, 1).contiguous()

    @torch.no_grad()
    def initialise(self, z: Tensor, draw: Draw, key: str = "first_stage.codebook.size") -> None:
        """Puts the vectors on the centres of latents (B, channels, h, w), unless they start at random.

        DataError, which names the recipe's `key`, where there are fewer latents than vectors. Where fewer of them
        differ than there are vectors, the surplus vectors repeat others; they are never chosen, and restart.
        """
        if self.config.start == "uniform":
            self.initialised.fill_(True)
            return
        latents = rows(self._scaled(z.float()))
        if len(latents) < self.size:
            raise DataError(
                f"a codebook of {self.size} vectors cannot start from {len(latents)} latents "
                f"({z.shape[0]} pictures of {z.shape[2]} x {z.shape[3]}); possible: {key}={len(latents)} or less, "
                'more pictures, or a codebook.start of "uniform"'
            )
        rng = _generator(draw, "codebook start")
        most = max(START_LATENTS, self.size)
        if len(latents) > most:
            latents = latents[_picked(rng, len(latents), most, latents.device)]
        centres = _first_centres(latents, self.size, rng)
        for _ in range(ROUNDS):
            counts, sums = _totals(latents, nearest(latents, centres), self.size)
            means = self._scaled((sums / counts.clamp_min(1)[:, None]).float())
            centres = torch.where(counts[:, None] > 0, means, centres)
        self.codebook.copy_(centres)
        self.usage.copy_(counts.clamp_min(1))
        if self.sums is not None:
            self.sums.copy_(self.usage[:, None] * centres)
        self.initialised.fill_(True)

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor, draw: Draw) -> int:
        """After an optimiser step: counts, running means and restarts from a whole batch, however it was divided.

        z (B, channels, h, w) and codes (B, h, w) are those of the batch's `Quantized`. Returns the vectors restarted.
        """
        latents, decay = rows(self._scaled(z.float())), self.config.decay
        counts, sums = _totals(latents, codes.flatten(), self.size)
        self.usage.mul_(decay).add_(counts.float(), alpha=1 - decay)
        if self.sums is not None:
            self.sums.mul_(decay).add_(sums.float(), alpha=1 - decay)
            total = self.usage.sum()
            smoothed = (self.usage + SMOOTHING) / (total + self.size * SMOOTHING) * total
            self.codebook.copy_(self._scaled(self.sums / smoothed[:, None]))
        return self._restart(latents, draw)

    def _restart(self, latents: Tensor, draw: Draw) -> int:
        even = self.usage.mean()
        dead = (self.usage < self.config.restart * even).nonzero().flatten()
        self.moved = dead
        if not len(dead):
            return 0
        rng = _generator(draw, "codebook restart")
        # Many latents of a plain background are one and the same; vectors put on it together would stay unused.
        some = latents[_picked(rng, len(latents), min(len(latents), 16 * len(dead)), latents.device)].unique(dim=0)
        dead = dead[self.usage[dead].argsort(stable=True)][: len(some)]  # the least used first
        places = some[_picked(rng, len(some), len(dead), some.device)]
        self.codebook[dead], self.moved = places, dead
        self.usage[dead] = even
        if self.sums is not None:
            self.sums[dead] = even * places
        return len(dead)

    def _scaled(self, vectors: Tensor) -> Tensor:
        """Vectors along dimension 1, of length 1 where codes are cosine."""
        return F.normalize(vectors, dim=1) if self.config.cosine else vectors


def nearest(z: Tensor, vectors: Tensor) -> Tensor:
    """The number of the nearest of `vectors` (K, C) to each row of z (N, C): (N,) int64, of equal ones the lowest.

    Found by one matrix product, |z - e|^2 - |z|^2 = |e|^2 - 2 z.e, in float32 whatever the autocast. Rows in which
    rounding may have decided are compared again by their differences, which lose nothing.
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        rows = max(1, SCORES * (1 if z.device.type == "cpu" else 64) // len(vectors))
        return torch.cat([_nearest(part, vectors) for part in z.split(rows)])


def _nearest(z: Tensor, vectors: Tensor) -> Tensor:
    centre = vectors.mean(0)  # distances do not depend on it, rounding does
    near, targets = z - centre, vectors - centre
    scores = torch.addmm(targets.square().sum(1), near, targets.T, alpha=-2.0)
    least, codes = scores.min(1)
    reach = (near.norm(dim=1) + targets.norm(dim=1).max()).square()
    error = (z.shape[1] + 4) * torch.finfo(torch.float32).eps * reach  # bounds the error of a difference of two scores
    second = scores.scatter_(1, codes[:, None], math.inf).amin(1)
    doubt = (second <= least + error).nonzero().flatten()
    if len(doubt):
        distances = torch.cdist(z[doubt], vectors, compute_mode="donot_use_mm_for_euclid_dist")
        codes[doubt] = distances.argmin(1)
    return codes


def perplexity(counts: Tensor) -> float:
    """exp(entropy) of how often each code was chosen, (K,): from 1 (one code) to K (all alike); 0 where none was."""
    total = float(counts.double().sum())
    return float(torch.special.entr(counts.double() / total).sum().exp()) if total > 0 else 0.0


def used(counts: Tensor) -> float:
    """The share of codes chosen at all, in [0, 1], from how often each was, (K,)."""
    return float((counts > 0).double().mean())


def straight_through(z: Tensor, values: Tensor) -> Tensor:
    """Exactly `values`, with the gradient of z."""
    return values.detach() + (z - z.detach())


def rows(z: Tensor) -> Tensor:
    """(B, C, h, w) to (B h w, C), contiguous."""
    return z.detach().movedim(1, -1).reshape(-1, z.shape[1])


def _totals(latents: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many latents chose each code, (size,), and their sums, (size, C), in float64: no order of adding shows."""
    sums = latents.new_zeros(size, latents.shape[1], dtype=torch.float64)
    return torch.bincount(codes, minlength=size), sums.index_add_(0, codes, latents.double())


def _generator(draw: Draw, purpose: str) -> np.random.Generator:
    """The draw's randomness for a choice among the latents of the whole batch: the same for all its rows."""
    return generator(draw.seed, f"{draw.stage}/{purpose}", draw.step)


def _picked(rng: np.random.Generator, total: int, count: int, device: torch.device) -> Tensor:
    """`count` different numbers below `total`."""
    return torch.from_numpy(rng.permutation(total)[:count]).to(device)


def _first_centres(latents: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """`size` of the latents (N, C), each drawn with probability in proportion to its squared distance to those before.

    A large codebook draws 1/64 of its vectors at a time. The smallest of E / weight, with E exponential, are a draw
    without replacement in proportion to the weights.
    """
    centres = latents[_picked(rng, len(latents), 1, latents.device)]
    distance = (latents - centres).square().sum(1)
    while len(centres) < size:
        count = min(size - len(centres), max(1, size // 64))
        race = torch.from_numpy(rng.standard_exponential(len(latents))).to(latents.device) / distance
        new = latents[race.topk(count, largest=False).indices]
        distance = torch.minimum(distance, (latents - new[nearest(latents, new)]).square().sum(1))
        centres = torch.cat([centres, new])
    return centres
