"""The diffusion transformer (Peebles and Xie 2023, "Scalable diffusion models with transformers").

A map is cut into patches, each a token; transformer blocks work on all tokens at one resolution; the last layer makes
a patch of every token. Time and vector reach each block by its norms, which have no weights of their own (adaLN-zero,
section 3.2):

    c = silu(mlp(sinusoids(time)) + linear(vector)),   shift1, scale1, gate1, shift2, scale2, gate2 = linear(c)
    x = x + gate1 attention(norm(x) (1 + scale1) + shift1)
    x = x + cross-attention(norm(x), context)                           where the network has a context
    x = x + gate2 feed(norm(x) (1 + scale2) + shift2)

The layers that make shifts, scales and gates start at zero, and so does the last one of the cross-attention: a block is
the identity at first. The last layer starts at zero: a fresh network's output is exactly zero. Tensors are in the order
of the published weights (shift before scale, positions sin before cos, a patch's channels last), so that they fit by
renaming.

With `convolution`, the feed-forward layer sees its neighbours (Mix-FFN: Xie et al. 2021, "SegFormer"; in a diffusion
transformer: Xie et al. 2024, "SANA"): linear, depthwise 3 x 3 convolution over the map of tokens, GELU, linear. It
starts near the identity. That neighbours belong together attention learns late: scenes of shapes after 16,000 pictures
were loose patches of the right colours without it, and things with it.

With `skips`, the output of each early block joins the input of the late one that mirrors it (U-ViT: Bao et al. 2023,
"All are worth words"), as x + linear([x, early]); that linear layer starts at zero too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.errors import ConfigError
from moyai.nets.attention import CrossAttention, SelfAttention, across
from moyai.nets.backbone import embedded, heads_for, joined, mlp
from moyai.nets.config import DiTConfig
from moyai.nets.layers import timestep_embedding, zeroed
from moyai.nets.modulation import modulated

EPS = 1e-6  # of every norm, as in the published weights
AROUND_STD = 0.1  # initial, of the convolutions among tokens
WAVES = 256  # numbers of sinusoids that time becomes, as there


def positions(rows: int, columns: int, width: int, device: torch.device | None = None) -> Tensor:
    """Fixed embeddings of the places of a map in reading order: (rows columns, width), float32; 4 divides width.

    The first half says the column, the second the row; each is sin, then cos, of width / 4 frequencies.
    """

    def waves(count: int) -> Tensor:
        cos, sin = timestep_embedding(torch.arange(count, device=device), width // 2).chunk(2, dim=1)
        return torch.cat((sin, cos), dim=1)

    right, down = waves(columns), waves(rows)
    return torch.cat((right.repeat(rows, 1), down.repeat_interleave(columns, dim=0)), dim=1)


class MixFeed(nn.Module):
    """A feed-forward layer of the tokens of a map and their neighbours: (B, rows columns, C) -> the same."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.around = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.dropout = nn.Dropout(dropout)

    def reset_around(self) -> None:
        """The convolution near the identity."""
        nn.init.normal_(self.around.weight, std=AROUND_STD)
        with torch.no_grad():
            self.around.weight[:, 0, 1, 1] += 1

    def forward(self, x: Tensor, rows: int) -> Tensor:
        h = self.into(x).transpose(1, 2).unflatten(2, (rows, -1))  # (B, hidden, rows, columns)
        h = F.gelu(self.around(h), approximate="tanh").flatten(2).transpose(1, 2)
        return self.out(self.dropout(h))


class DiTBlock(nn.Module):
    """Tokens (B, N, C) of a map, emb (B, C) activated -> (B, N, C); `joins`: a second (B, N, C) joins the input."""

    def __init__(self, config: DiTConfig, heads: int, *, context_width: int | None, joins: bool) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp)
        self.modulation = nn.Linear(width, 6 * width)  # rows: shift, scale, gate of attention, then of feed
        self.norm1 = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.attention = SelfAttention(width, heads, bias=True, qk_norm=config.qk_norm)
        self.norm_cross = None if context_width is None else nn.LayerNorm(width, EPS)
        self.cross = None
        if context_width is not None:
            self.cross = CrossAttention(width, heads, context_width=context_width, qk_norm=config.qk_norm)
        self.norm2 = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.feed = (
            MixFeed(width, hidden, config.dropout)
            if config.convolution
            else nn.Sequential(
                nn.Linear(width, hidden), nn.GELU("tanh"), nn.Dropout(config.dropout), nn.Linear(hidden, width)
            )
        )
        _xavier(self)
        if isinstance(self.feed, MixFeed):
            self.feed.reset_around()
        zeroed(self.modulation)
        if self.cross is not None:
            zeroed(self.cross.out)
        self.join = zeroed(nn.Linear(2 * width, width)) if joins else None

    def forward(self, x: Tensor, emb: Tensor, cond: Cond, rows: int, early: Tensor | None = None) -> Tensor:
        if self.join is not None and early is not None:
            x = x + self.join(torch.cat((x, early), dim=2))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=2)
        x = x + gate1 * self.attention(modulated(self.norm1(x), scale1, shift1))
        if self.cross is not None and self.norm_cross is not None and cond.context is not None:
            x = x + across(self.norm_cross, self.cross, x, cond.context, cond.mask)
        h = modulated(self.norm2(x), scale2, shift2)
        return x + gate2 * (self.feed(h, rows) if isinstance(self.feed, MixFeed) else self.feed(h))


class DiT(nn.Module):
    """(x (B, C, h, w), time (B,) on 0..1000, cond) -> (B, channels_out, h, w), float32 under autocast.

    h and w are any multiples of the patch's side; ConfigError otherwise. The other arguments are those of `UNet`.
    """

    def __init__(
        self,
        config: DiTConfig,
        *,
        channels_in: int,
        channels_out: int,
        vector_width: int | None = None,
        context_width: int | None = None,
        concat_channels: int | None = None,
    ) -> None:
        super().__init__()
        if config.patch is None:
            raise ConfigError("the patch of the DiT is not known yet; give it, or resolve the recipe")
        if config.width % 4:
            raise ConfigError(f"prior.net.width is {config.width}, which 4 does not divide; positions need that")
        heads = heads_for(config.width, config.heads, config.head_width)
        self.patch, self.channels_out = config.patch, channels_out
        self.channels_in = channels_in + (concat_channels or 0)
        self.patches = nn.Conv2d(self.channels_in, config.width, config.patch, stride=config.patch)
        self.time = mlp(WAVES, config.width)
        self.vector = None if vector_width is None else nn.Linear(vector_width, config.width)
        _small(self.time)
        _xavier(self.patches)
        if self.vector is not None:
            _small(self.vector)
        late = config.depth - config.depth // 2 if config.skips else config.depth  # the first block that joins
        self.early = config.depth - late  # blocks whose output is joined
        self.blocks = nn.ModuleList(
            DiTBlock(config, heads, context_width=context_width, joins=i >= late) for i in range(config.depth)
        )
        self.norm_out = nn.LayerNorm(config.width, EPS, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(config.width, 2 * config.width))  # rows: shift, scale
        self.out = zeroed(nn.Linear(config.width, config.patch**2 * channels_out))  # rows: down, across, channels last

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        h, w = x.shape[-2:]
        if h % self.patch or w % self.patch:
            raise ConfigError(
                f"prior.net.patch is {self.patch}, which does not divide latents of {h} x {w}; "
                "possible: a divisor of both, such as 1"
            )
        dtype = self.patches.weight.dtype
        emb = embedded(time, cond.vector, width=WAVES, dtype=dtype, net=self.time, project=self.vector)
        tokens = self.patches(joined(x, cond.concat, channels=self.channels_in, dtype=dtype)).flatten(2).transpose(1, 2)
        rows, columns = h // self.patch, w // self.patch
        # in the weights' dtype, under autocast too: sums over many blocks are kept in float32
        tokens = tokens + positions(rows, columns, tokens.shape[2], x.device).to(dtype)
        tokens = self._through_blocks(tokens, emb, cond, rows)
        with torch.autocast(tokens.device.type, enabled=False):
            shift, scale = self.modulation(emb)[:, None].chunk(2, dim=2)
            out = self.out(modulated(self.norm_out(tokens.to(dtype)), scale, shift))  # (B, rows columns, patch^2 C)
        # pixel_shuffle counts channels first, then the place in the patch
        out = out.unflatten(2, (-1, self.channels_out)).transpose(2, 3).flatten(2)
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (rows, columns)), self.patch)

    def _through_blocks(self, tokens: Tensor, emb: Tensor, cond: Cond, rows: int) -> Tensor:
        kept: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            joins = i >= len(self.blocks) - self.early
            tokens = block(tokens, emb, cond, rows, kept.pop() if joins else None)
            if i < self.early:
                kept.append(tokens)
        return tokens


def _xavier(module: nn.Module) -> None:
    """Every layer within as the published network starts: Glorot's bounds, and no bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _small(layers: nn.Module) -> None:
    """What reaches every block's norms starts small, as in the published network."""
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.02 if parameter.ndim > 1 else 0.0)
