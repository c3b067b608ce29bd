"""The parts the convolutional networks are made of.

`ResBlock` (He et al. 2016, in the pre-normalised form of Ho et al. 2020):

    h = conv(silu(norm(x))) + linear(emb),   out = skip(x) + conv(dropout(silu(norm(h))))

where the linear layer may scale and shift the second norm's output instead (Dhariwal and Nichol 2021), and planes of a
condition may scale and shift both, place by place (SPADE, Park et al. 2019).

`SpatialTransformer` (Rombach et al. 2022): the pixels of a map are tokens; each block attends to them, then to a
context, then applies a gated feed-forward layer (GEGLU, Shazeer 2020). Modules whose last layer starts at zero are
the identity at first, so that a fresh network is a known function and gradients are well scaled from step one.

Every module takes maps of any height and width and any memory format, in float32 or under autocast.
"""

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.nets.modulation import Spade, modulated

M = TypeVar("M", bound=nn.Module)


def timestep_embedding(time: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of times on the scale 0..1000, cos first, then sin: (B,) -> (B, width), float32."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=time.device) / half
    angles = time.float()[:, None] * torch.exp(-math.log(max_period) * exponents)  # (B, half)
    return F.pad(torch.cat((angles.cos(), angles.sin()), dim=1), (0, width - 2 * half))


def groups_for(channels: int, at_most: int) -> int:
    """The largest divisor of `channels` that is at most `at_most`."""
    return next(g for g in range(min(channels, at_most), 0, -1) if channels % g == 0)


def zeroed(module: M) -> M:
    """The module with all its parameters at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else needs: in place where no gradient will ask for its input."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """Two convolutions around a residual; `emb` (B, time_width), already activated, shifts what lies between them.

    scale_shift: it scales and shifts the second norm's output instead. planes: channels of the planes that `forward`
    may be given for SPADE. resample: the block also halves the map (sides rounded up), or doubles it, or brings it
    to a given size.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        time_width: int | None = None,
        groups: int = 32,
        dropout: float = 0.0,
        eps: float = 1e-5,
        scale_shift: bool = False,
        planes: int | None = None,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1 = nn.GroupNorm(groups_for(channels_in, groups), channels_in, eps)
        self.spade1 = None if planes is None else Spade(channels_in, planes)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.emb = None if time_width is None else nn.Linear(time_width, channels_out * (2 if scale_shift else 1))
        self.norm2 = nn.GroupNorm(groups_for(channels_out, groups), channels_out, eps)
        self.spade2 = None if planes is None else Spade(channels_out, planes)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(
        self,
        x: Tensor,
        emb: Tensor | None = None,
        planes: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        h = self.norm1(x)
        if self.spade1 is not None and planes is not None:
            h = self.spade1(h, planes)
        h, x = self._resized(silu(h), size), self._resized(x, size)
        h = self.conv1(h)
        told = None if self.emb is None or emb is None else self.emb(emb)[:, :, None, None]
        if told is not None and not self.scale_shift:
            h = h.add_(told)  # in place: no backward asks for a convolution's output
        h = self.norm2(h)
        if self.spade2 is not None and planes is not None:
            h = self.spade2(h, planes)
        if told is not None and self.scale_shift:
            h = modulated(h, *told.chunk(2, dim=1))
        h = self.conv2(self.dropout(silu(h)))
        return h + (x if self.skip is None else self.skip(x))

    def _resized(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        if self.resample is None:
            return x
        if self.resample == "down":
            return F.avg_pool2d(x, 2, ceil_mode=True)
        return F.interpolate(x, size=size or (2 * x.shape[-2], 2 * x.shape[-1]), mode="nearest")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with (B, heads, N, d) and (B, heads, L, d); mask (B, L) bool says which keys count.

    A row none of whose keys count gets zeros. For few tokens in bfloat16 on a CPU the two products are written out,
    the softmax in float32: the fused kernel's backward takes up to ten times as long there.
    """
    counts = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, L)
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


class Downsample(nn.Module):
    """A convolution of stride 2: sides n become ceil(n / 2).

    The centred form pads all sides by one. The other pads only to the right and below, as the published
    autoencoders do, and once more where a side is odd, so that no row is lost.
    """

    def __init__(self, channels: int, *, centred: bool = True) -> None:
        super().__init__()
        self.centred = centred
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if centred else 0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.centred:
            h, w = x.shape[-2:]
            x = F.pad(x, (0, 1 + w % 2, 0, 1 + h % 2))
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to a given size (twice the side when none is given), then a 3x3 convolution.

    For exactly twice the side both are one transposed convolution of size 4 and stride 2, which reads each small
    pixel once where the plain form multiplies four copies of it: 16 products an output pixel group instead of 36.
    Along one axis, with kernel (a, b, c), the even outputs are a x[i-1] + (b + c) x[i] and the odd ones
    (a + b) x[i] + c x[i+1], so that its kernel is (c, b + c, a + b, a).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        h, w = x.shape[-2:]
        if size is None or tuple(size) == (2 * h, 2 * w):
            return F.conv_transpose2d(x, self._folded(), self.conv.bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, size=size, mode="nearest"))

    def _folded(self) -> Tensor:
        weight = self.conv.weight  # (out, in, 3, 3)
        for axis in (2, 3):
            a, b, c = weight.unbind(axis)
            weight = torch.stack((c, b + c, a + b, a), dim=axis)
        return weight.transpose(0, 1)  # (in, out, 4, 4)
