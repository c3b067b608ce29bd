"""The prior over codes: what a discrete first stage makes of a picture, drawn code by code.

A picture is a list of maps of codes, from coarse to fine: one where the first stage has one codebook or grid, two for a
VQ-VAE-2 (Razavi et al. 2019). Each map has a network of its own (`nets.codes`), which is told the coarser maps:

    p(codes) = prod_levels p(map | coarser maps, cond)          loss = -log2 p(codes) / number of codes

in bits per code: log2 of the number of codes where nothing is known, and never below the entropy of the data.

Guidance (Ho and Salimans 2022) mixes log-probabilities as `diffusion.guidance` mixes estimates (its equations 1 and 2),
and normalises again. Then temperature T raises the probabilities to the power 1 / T, `top_k` keeps the k likeliest
codes and `top_p` the fewest likeliest whose probabilities sum to p or more (Holtzman et al. 2020), in this order. A
code is drawn by one uniform number u: the first at which the cumulated probability exceeds u.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.errors import RequestError
from moyai.nets.codes import CodeNet
from moyai.randomness import Draw, generator

HOTTEST, STRONGEST = 100.0, 1000.0  # the largest temperature and guidance weight


class CodeLevel(nn.Module):
    """One map of a picture's codes: its network, and `width` channels for each of the coarser maps told to it.

    net: an `nets.codes.CodeNet`, whose concat has the channels of the condition's, and then those. coarser: how many
    codes each coarser map has.
    """

    def __init__(self, net: nn.Module, coarser: Sequence[int] = (), width: int = 0) -> None:
        super().__init__()
        self.net = net
        self.coarser = nn.ModuleList(nn.Embedding(codes, width) for codes in coarser)

    @property
    def codes(self) -> int:
        return cast(CodeNet, self.net).codes

    @property
    def shape(self) -> tuple[int, int]:
        return cast(CodeNet, self.net).shape

    def given(self, coarser: Sequence[Tensor], cond: Cond) -> Cond:
        """The condition, with the coarser maps, (B, h, w) each, beside its own; all brought to the size of this one."""
        maps = [] if cond.concat is None else [cond.concat]
        maps += [e(codes).movedim(-1, 1) for e, codes in zip(self.coarser, coarser, strict=True)]
        sized = [m if tuple(m.shape[2:]) == self.shape else F.adaptive_avg_pool2d(m, self.shape) for m in maps]
        return Cond(cond.vector, cond.context, cond.mask, torch.cat(sized, dim=1) if sized else None)


class CodePrior(nn.Module):
    """A network for each map of a picture's codes, coarse to fine. `autocast`: the dtype of training's forward."""

    def __init__(self, levels: Sequence[CodeLevel]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.autocast: torch.dtype | None = None

    def loss(self, codes: Sequence[Tensor], cond: Cond, draw: Draw) -> Tensor:
        """Bits per code, (B,). codes: a map (B, h, w) int64 for each level; nothing is drawn."""
        return torch.stack(self.bits(codes, cond)).sum(0) / self.places()

    def bits(self, codes: Sequence[Tensor], cond: Cond) -> list[Tensor]:
        """-log2 of the probability of each map, given the coarser ones: (B,) for each level."""
        out = []
        for k, (level, here) in enumerate(zip(self.all_levels(), codes, strict=True)):
            with torch.autocast(here.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                logits = level.net(here, level.given(codes[:k], cond))
            nats = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), here, reduction="none")
            out.append(nats.flatten(1).sum(1) / math.log(2))
        return out

    def shapes(self) -> list[tuple[int, int]]:
        """(h, w) of each map."""
        return [level.shape for level in self.all_levels()]

    def places(self) -> int:
        """How many codes a picture has."""
        return sum(h * w for h, w in self.shapes())

    def all_levels(self) -> list[CodeLevel]:
        return [level for level in self.levels if isinstance(level, CodeLevel)]


class Drawing(NamedTuple):
    """One code drawn of every picture."""

    drawn: int  # 1 .. total
    total: int
    codes: tuple[Tensor, ...]  # (B, h, w) int64 for each level; 0 where nothing is drawn yet


def uniforms(seeds: Sequence[int], shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """What codes are drawn by: for each map one number in [0, 1) a place, a row for each seed. (B, h, w) float64."""
    maps = []
    for level, shape in enumerate(shapes):
        rows = [generator(seed, f"codes {level}").random(shape) for seed in seeds]
        maps.append(torch.from_numpy(np.stack(rows)))
    return maps


def generate(
    prior: CodePrior,
    conds: Sequence[Cond],
    scales: Sequence[float] = (),
    *,
    noise: Sequence[Tensor],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> Iterator[Drawing]:
    """Draws pictures code by code, one for each row of `noise` (of `uniforms`), in float32. Closing it cancels.

    conds: c_0 (nothing told) to c_k, and scales w_1 to w_k, as for `diffusion.guidance.nested`: [null, cond] and [w],
    or [cond] alone. A weight of 1 is the condition alone, of 0 the null; an estimate of no weight is not computed.
    temperature: 0 takes the likeliest code. Raises RequestError for settings out of range, before anything is drawn.
    """
    _check(temperature, top_k, top_p, scales)
    if len(conds) != len(scales) + 1:
        raise ValueError(f"{len(conds)} conditions need {len(conds) - 1} scales, not {len(scales)}")
    w = [1.0, *scales, 0.0]
    used = [(cond, w[i] - w[i + 1]) for i, cond in enumerate(conds) if w[i] != w[i + 1]]
    return _draw(prior, used, list(noise), Cut(temperature, top_k, top_p))


class Cut(NamedTuple):
    """What is made of a code's probabilities before one is drawn."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, codes) to probabilities in float64; of codes that are equally likely, the lower number goes first."""
        logits = logits.double()
        if self.temperature == 0:
            return F.one_hot(logits.argmax(1), logits.shape[1]).double()
        p = ((logits - logits.amax(1, keepdim=True)) / self.temperature).softmax(1)
        if self.top_k is None and self.top_p == 1:
            return p
        ranked, order = p.sort(dim=1, descending=True, stable=True)
        if self.top_k is not None:
            ranked[:, self.top_k :] = 0
        if self.top_p < 1:
            ranked = ranked / ranked.sum(1, keepdim=True)
            likelier = F.pad(ranked.cumsum(1)[:, :-1], (1, 0))  # the sum of those before
            ranked = ranked.masked_fill(likelier >= self.top_p, 0)
        p = torch.zeros_like(p).scatter_(1, order, ranked)
        return p / p.sum(1, keepdim=True)


@torch.no_grad()
def _draw(prior: CodePrior, used: Sequence[tuple[Cond, float]], noise: Sequence[Tensor], cut: Cut) -> Iterator[Drawing]:
    device, count, drawn = next(prior.parameters()).device, len(noise[0]), 0
    maps = [torch.zeros(count, *shape, dtype=torch.int64, device=device) for shape in prior.shapes()]
    for k, level in enumerate(prior.all_levels()):
        told = Cond.cat([level.given(maps[:k], cond) for cond, _ in used])
        walk = cast(CodeNet, level.net).walk(len(used) * count, told)
        flat, u = maps[k].flatten(1), noise[k].to(device).flatten(1)
        code: Tensor | None = None
        for place in range(flat.shape[1]):
            logits = _mixed(walk(None if code is None else code.repeat(len(used))), [weight for _, weight in used])
            cumulated = cut.probabilities(logits).cumsum(1)
            # u < 1, so that u times the sum stays below the sum in float64, and what is counted is a code's number.
            code = (cumulated <= u[:, place, None] * cumulated[:, -1:]).sum(1)
            flat[:, place] = code
            drawn += 1
            yield Drawing(drawn, prior.places(), tuple(m.clone() for m in maps))


def _mixed(logits: Tensor, weights: Sequence[float]) -> Tensor:
    """Log-probabilities of several estimates, (estimates B, codes), mixed with weights that add up to one."""
    if len(weights) == 1:
        return logits
    first, *rest = logits.log_softmax(1).chunk(len(weights))
    return first + sum(weight * (other - first) for other, weight in zip(rest, weights[1:], strict=True))


def _check(temperature: float, top_k: int | None, top_p: float, scales: Sequence[float]) -> None:
    if not 0 <= temperature <= HOTTEST:
        raise RequestError(f"temperature {temperature} is out of range; possible: 0 to {HOTTEST:g}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise RequestError(f"top_k {top_k} is out of range; possible: a whole number from 1 on, or none")
    if not 0 < top_p <= 1:
        raise RequestError(f"top_p {top_p} is out of range; possible: above 0, up to 1")
    for scale in scales:
        if not 0 <= scale <= STRONGEST:
            raise RequestError(f"guidance {scale} is out of range; possible: 0 to {STRONGEST:g}")
