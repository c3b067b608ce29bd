"""Attention: of tokens to themselves and to a context, and the blocks around it.

`attend`: softmax(q k^T / sqrt(d)) v, in several heads (Vaswani et al. 2017).

`SpatialTransformer` (Rombach et al. 2022): the pixels of a map are tokens; each block attends to them, then to a
context, then applies a gated feed-forward layer (GEGLU, Shazeer 2020). The convolutional networks' modules end in a
layer that starts at zero (nets/layers.py), so that they are the identity at first.

Every module takes maps of any height and width and any memory format, in float32 or under autocast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.nets.layers import groups_for, zeroed


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with (B, heads, N, d) and (B, heads, L, d); mask (B, L) bool says which keys count.

    A row none of whose keys count gets zeros. For few tokens in bfloat16 on a CPU the two products are written out,
    the softmax in float32: the fused kernel's backward takes up to ten times as long there.
    """
    counts = None
    if mask is not None:  # of a row of none the backward may be nan in some kernels: all count, and it is zeroed
        counts = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]  # (B, 1, 1, L)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] * k.shape[-2] <= 256**2:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, heads, N, L)
        if counts is not None:  # not -inf: a row of it alone would be nan in the backward
            scores = scores.masked_fill(~counts, torch.finfo(scores.dtype).min)
        attended = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    else:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=counts)
    if mask is not None:
        attended = attended.masked_fill(~mask.any(1)[:, None, None, None], 0)
    return attended


class _HeadNorms(nn.Module):
    """Queries and keys (B, heads, N, d) at unit mean square, times a learned factor for each of the d channels.

    It bounds what the softmax sees, which keeps long trainings in bfloat16 stable (Dehghani et al. 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        dtype = self.q.weight.dtype  # float32 under autocast: means of squares want it
        return self.q(q.to(dtype)).to(q.dtype), self.k(k.to(dtype)).to(k.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to themselves: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, heads: int, *, bias: bool = False, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norms = _HeadNorms(channels // heads) if qk_norm else None
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)  # rows: all of q, all of k, all of v
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, d), a view
        q, k, v = qkv.unbind(0)
        if self.norms is not None:
            q, k = self.norms(q, k)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens (B, N, C) to a context (B, L, D), of which `mask` (B, L) says what counts."""

    def __init__(self, channels: int, heads: int, *, context_width: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norms = _HeadNorms(channels // heads) if qk_norm else None
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(context_width, 2 * channels, bias=False)  # rows: all of k, all of v
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.norms is not None:
            q, k = self.norms(q, k)
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def of_one(self, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """The same for a context of one entry, (B, 1, C) for every token at once: softmax over one key is 1, so
        that the answer is that entry's value whatever the tokens are."""
        v = F.linear(context, self.kv.weight.chunk(2)[1])
        if mask is not None:
            v = v.masked_fill(~mask[:, :, None], 0)
        return self.out(v)


def across(norm: nn.LayerNorm, attention: CrossAttention, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """attention(norm(x), context), by the shorter way where the context has one entry.

    That way leaves out what only shapes the attention's weights. Its gradient is zero, and is made so here rather
    than absent: every parameter of a network has a gradient after a backward.
    """
    if context.shape[1] != 1:
        return attention(norm(x), context, mask)
    attended = attention.of_one(context, mask)
    if not torch.is_grad_enabled():
        return attended
    unused = [attention.q.weight, *norm.parameters()]
    unused += [] if attention.norms is None else attention.norms.parameters()
    return attended + 0 * sum(p.flatten()[0] for p in unused)


class GEGLU(nn.Module):
    """A feed-forward layer whose hidden values are gated by a GELU of a second projection."""

    def __init__(self, channels: int, *, expansion: int = 4) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * expansion * channels)  # rows: values, then gates
        self.out = nn.Linear(expansion * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.proj(x).chunk(2, dim=-1)
        return self.out(values * F.gelu(gates))


class TransformerBlock(nn.Module):
    """x + attention(norm x), x + attention(norm x, context), x + feed-forward(norm x)."""

    def __init__(self, channels: int, heads: int, *, context_width: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads)
        self.norm2 = None if context_width is None else nn.LayerNorm(channels)
        self.cross = None if context_width is None else CrossAttention(channels, heads, context_width=context_width)
        self.norm3 = nn.LayerNorm(channels)
        self.feed = GEGLU(channels)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x))
        if self.cross is not None and self.norm2 is not None and context is not None:
            x = x + across(self.norm2, self.cross, x, context, mask)
        return x + self.feed(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a map, (B, C, h, w) -> (B, C, h, w), around a residual.

    convolutions: the projections before and after the blocks are 1x1 convolutions, as in the first published models,
    rather than linear layers: the same function, and weights of another shape.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        depth: int = 1,
        context_width: int | None = None,
        groups: int = 32,
        convolutions: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups_for(channels, groups), channels, eps=1e-6)
        self.proj_in = _projection(channels, convolutions)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_width=context_width) for _ in range(depth)
        )
        self.proj_out = zeroed(_projection(channels, convolutions))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        tokens = _projected(self.proj_in, self.norm(x).flatten(2).transpose(1, 2))  # (B, hw, C)
        for block in self.blocks:
            tokens = block(tokens, context, mask)
        return x + _projected(self.proj_out, tokens).transpose(1, 2).reshape_as(x)


def _projection(channels: int, convolution: bool) -> nn.Linear | nn.Conv2d:
    return nn.Conv2d(channels, channels, 1) if convolution else nn.Linear(channels, channels)


def _projected(layer: nn.Module, tokens: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):  # of 1x1: a linear layer of every pixel
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)
    projected: Tensor = layer(tokens)
    return projected


class AttentionBlock(nn.Module):
    """Attention of a map's pixels to each other, with a residual (the autoencoder's, and DDPM's)."""

    def __init__(self, channels: int, *, heads: int = 1, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups_for(channels, groups), channels, eps)
        self.attention = SelfAttention(channels, heads, bias=True)
        zeroed(self.attention.out)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, hw, C)
        return x + self.attention(tokens).transpose(1, 2).reshape_as(x)
