"""A causal transformer over codes in reading order (Esser et al. 2021, section 3.2, whose parts have grown older).

Token t holds code t - 1 and predicts code t; token 0 holds a learned vector, to which the condition's vector is added.
Blocks are pre-norm, with queries and keys normalised (Dehghani et al. 2023; Henry et al. 2020) and a SwiGLU (Shazeer
2020). Where there is a context, every block attends to it between the two.

Positions are two-dimensional. "learned": a vector of the row and one of the column of the place a token predicts are
added. "rope" (Su et al. 2021, by axes): half of each head's pairs (a, b) turn with the row, half with the column,

    (a, b) -> (a cos pw - b sin pw, a sin pw + b cos pw),       w = BASE^(-i / pairs), pair i of an axis

the query by the place that its token *predicts*, the key by the place of the code that its token *holds* (the first at
row -1, column -1). So attention sees where a code lies relative to the one to come, "left" and "above" alike at every
column; where a place lies in the map it sees by the first token.

Drawing keeps keys and values, so that a code costs one token's pass, growing only in the attention over what is kept.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.errors import ConfigError
from moyai.nets.attention import CrossAttention, attend
from moyai.nets.codes import NOTHING, Guide
from moyai.nets.config import CodeTransformerConfig
from moyai.nets.layers import zeroed

BASE = 100.0  # of the turns: their wavelengths go from 6 places to some 600


class Turn(NamedTuple):
    """The turns of queries and keys by their places: cosines and sines, (N, d / 2) each."""

    query: tuple[Tensor, Tensor]
    key: tuple[Tensor, Tensor]


class Told(NamedTuple):
    """A block's keys and values of the context, (B, heads, L, d), and which count, (B, L)."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class Cache:
    """The keys and values of a block so far."""

    def __init__(self, places: int) -> None:
        self.places, self.count = places, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def joined(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those kept and these, (B, heads, so far, d), which are kept now."""
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], self.places, keys.shape[3])
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        start, self.count = self.count, self.count + keys.shape[2]
        self.keys[:, :, start : self.count] = keys
        self.values[:, :, start : self.count] = values
        return self.keys[:, :, : self.count], self.values[:, :, : self.count]


class CausalAttention(nn.Module):
    """Attention of tokens to themselves and those before: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)  # rows: all of q, all of k, all of v
        self.norm_q, self.norm_k = nn.RMSNorm(channels // heads, 1e-6), nn.RMSNorm(channels // heads, 1e-6)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, turn: Turn | None, cache: Cache | None) -> Tensor:
        """With a cache, x is the one token after those kept."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (norm(x.to(norm.weight.dtype)) for norm, x in ((self.norm_q, q), (self.norm_k, k)))
        if turn is not None:
            q, k = _turned(q, *turn.query), _turned(k, *turn.key)
        q, k = q.to(v.dtype), k.to(v.dtype)
        attended = _causal(q, k, v) if cache is None else attend(q, *cache.joined(k, v))
        return self.out(attended.transpose(1, 2).flatten(2))


class ContextAttention(CrossAttention):
    """Cross-attention whose keys and values are computed once."""

    def told(self, context: Tensor, mask: Tensor | None) -> Told:
        keys, values = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return Told(keys, values, mask)

    def look(self, x: Tensor, told: Told) -> Tensor:
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        return self.out(attend(q, *told).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A feed-forward layer whose hidden values are gated by the SiLU of a second projection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 8 * channels // 3  # as many weights as a plain layer of four times the channels
        self.proj = nn.Linear(channels, 2 * hidden, bias=False)  # rows: values, then gates
        self.out = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.proj(x).chunk(2, dim=-1)
        return self.out(values * F.silu(gates))


class CausalBlock(nn.Module):
    """x + attention(norm x), x + attention(norm x, context), x + feed-forward(norm x)."""

    def __init__(self, channels: int, heads: int, *, context_width: int | None, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = CausalAttention(channels, heads)
        self.norm2 = None if context_width is None else nn.LayerNorm(channels)
        self.cross = None if context_width is None else ContextAttention(channels, heads, context_width=context_width)
        self.norm3 = nn.LayerNorm(channels)
        self.feed = SwiGLU(channels)
        self.dropout = nn.Dropout(dropout)

    def told(self, cond: Cond) -> Told | None:
        if self.cross is None or cond.context is None:
            return None
        return self.cross.told(cond.context, cond.mask)

    def forward(self, x: Tensor, turn: Turn | None, told: Told | None, cache: Cache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), turn, cache))
        if self.cross is not None and self.norm2 is not None and told is not None:
            x = x + self.dropout(self.cross.look(self.norm2(x), told))
        return x + self.dropout(self.feed(self.norm3(x)))


class CodeTransformer(nn.Module):
    """(B, h, w) codes to logits (B, codes, h, w). A fresh network's logits are zero: all codes alike."""

    def __init__(
        self,
        config: CodeTransformerConfig,
        codes: int,
        shape: tuple[int, int],
        *,
        vector_width: int | None = None,
        context_width: int | None = None,
        concat_channels: int | None = None,
    ) -> None:
        super().__init__()
        width, pairs = config.width, config.width // config.heads // 4
        if width % (4 * config.heads):
            raise ConfigError(
                f"a code transformer of width {width} cannot have {config.heads} heads; possible: a width that "
                f"{4 * config.heads} divides"
            )
        self.codes, self.shape = codes, shape
        self.embedding = nn.Embedding(codes, width)
        self.start = nn.Parameter(torch.randn(width))
        self.told = None if vector_width is None else nn.Linear(vector_width, width, bias=False)
        self.guide = None if concat_channels is None else Guide(concat_channels, width)
        learned = config.positions == "learned"
        self.row = nn.Parameter(0.1 * torch.randn(shape[0], 1, width)) if learned else None
        self.column = nn.Parameter(0.1 * torch.randn(1, shape[1], width)) if learned else None
        self._turns = None if learned else pairs
        self.blocks = nn.ModuleList(
            CausalBlock(width, config.heads, context_width=context_width, dropout=config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.logits = zeroed(nn.Linear(width, codes))

    def forward(self, codes: Tensor, cond: Cond = NOTHING) -> Tensor:
        held = self.embedding(codes).flatten(1, 2)[:, :-1]  # (B, h w - 1, width)
        x = torch.cat((self.first(len(codes), cond), held), dim=1) + self.before(cond)
        turn = self.turn()
        for block in self._blocks():
            x = block(x, turn, block.told(cond))
        logits: Tensor = self.logits(self.norm(x))
        return logits.transpose(1, 2).unflatten(2, self.shape)

    def walk(self, count: int, cond: Cond = NOTHING) -> "TransformerWalk":
        return TransformerWalk(self, count, cond)

    def first(self, count: int, cond: Cond) -> Tensor:
        """What token 0 holds, (B, 1, width)."""
        start = self.start.expand(count, 1, -1)
        return start if self.told is None or cond.vector is None else start + self.told(cond.vector)[:, None]

    def before(self, cond: Cond) -> Tensor:
        """What is known of every place before any code is: (B or 1, h w, width)."""
        known = self.start.new_zeros(1, self.shape[0] * self.shape[1], len(self.start))
        if self.row is not None and self.column is not None:
            known = known + (self.row + self.column).flatten(0, 1)
        if self.guide is not None:
            if cond.concat is None:
                raise ValueError("this network was built for maps beside the codes (concat), and none is given")
            known = known + self.guide(cond.concat).flatten(2).transpose(1, 2)
        return known

    def turn(self) -> Turn | None:
        """The turns of all tokens."""
        if self._turns is None:
            return None
        at = torch.cartesian_prod(*(torch.arange(n, device=self.start.device) for n in self.shape))  # (h w, 2)
        held = torch.cat((at.new_full((1, 2), -1), at[:-1]))
        exponents = torch.arange(self._turns, device=at.device) / self._turns
        angles = [(places[:, :, None] * BASE**-exponents).flatten(1) for places in (at, held)]  # (h w, d / 2)
        query, key = ((a.cos(), a.sin()) for a in angles)
        return Turn(query, key)

    def _blocks(self) -> list[CausalBlock]:
        return [block for block in self.blocks if isinstance(block, CausalBlock)]


class TransformerWalk:
    """Draws maps with a transformer; see `nets.codes.Walk`."""

    def __init__(self, net: CodeTransformer, count: int, cond: Cond) -> None:
        self.net, self.blocks, self.count = net, net._blocks(), count
        self.first, self.before, self.turn = net.first(count, cond), net.before(cond), net.turn()
        self.told = [block.told(cond) for block in self.blocks]
        places = net.shape[0] * net.shape[1]
        self.caches = [Cache(places) for _ in self.blocks]
        self.place = 0

    def __call__(self, code: Tensor | None) -> Tensor:
        here = slice(self.place, self.place + 1)
        x = self.first if code is None else self.net.embedding(code)[:, None]
        x = x + self.before[:, here]
        turn = None
        if self.turn is not None:
            query, key = ((cos[here], sin[here]) for cos, sin in self.turn)
            turn = Turn(query, key)
        for block, told, cache in zip(self.blocks, self.told, self.caches, strict=True):
            x = block(x, turn, told, cache)
        self.place += 1
        logits: Tensor = self.net.logits(self.net.norm(x))
        return logits[:, 0]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each token to itself and those before; (B, heads, N, d) each.

    Written out for few tokens in bfloat16 on a CPU, as in `attention.attend`.
    """
    count = q.shape[-2]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and count <= 256:
        later = torch.ones(count, count, dtype=torch.bool, device=q.device).triu(1)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
