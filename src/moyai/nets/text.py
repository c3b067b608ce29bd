"""A small text transformer, trained from scratch with what it serves: tokens to one vector each.

    x = E[token] + P[place]                      learned, as in Radford et al. 2021, section 2.4
    x = x + around(x)                                                in each block: each channel by its neighbours'
    x = x + attention(norm x);  x = x + feed-forward(norm x)         pre-normalised
    context = norm x

`around` is a depthwise convolution over the tokens, as So et al. 2021 ("Primer") and Allen-Zhu 2025 ("Physics of
language models: part 4.1") put between a transformer's layers. What a word belongs to mostly stands beside it, and
attention learns only late to look there: of scenes of shapes, a swap of two colour words mattered to the loss after 200
steps with it, and not before 800 without.

Tokens start at unit scale and the last layer of attention and feed-forward at zero: a fresh encoder says of each token
which one it is, where and among which it stands, and no more. With tokens at CLIP's 0.02 random branches drown them,
and a short training is spent on undoing that.

Unlike CLIP's, attention is not causal: every token sees the whole caption, since nothing is generated. Padding is
neither attended to nor told: its entries of the context are zero and no gradient reaches it.
"""

import torch
from torch import Tensor, nn

from moyai.nets.attention import GEGLU, CrossAttention
from moyai.nets.layers import zeroed

TOKEN_STD, PLACE_STD, AROUND_STD = 1.0, 0.5, 0.2  # initial values
NEIGHBOURS = 5  # tokens that a convolution sees: two to each side, as in "a large red circle"


class TextBlock(nn.Module):
    """x + around(x), x + attention(norm x), x + feed-forward(norm x), among the tokens that count."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.around = nn.Conv1d(width, width, NEIGHBOURS, padding=NEIGHBOURS // 2, groups=width)
        nn.init.normal_(self.around.weight, std=AROUND_STD)
        nn.init.zeros_(self.around.bias)  # type: ignore[arg-type]
        self.norm1 = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, context_width=width)  # of the tokens to themselves, masked
        self.norm2 = nn.LayerNorm(width)
        self.feed = GEGLU(width)
        zeroed(self.attention.out)
        zeroed(self.feed.out)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        counted = x.masked_fill(~mask[:, :, None], 0)
        x = x + self.around(counted.transpose(1, 2)).transpose(1, 2)
        h = self.norm1(x)
        x = x + self.attention(h, h, mask)
        return x + self.feed(self.norm2(x))


class TextEncoder(nn.Module):
    """Captions of at most `length` tokens, numbered below `vocabulary`, to a context of width `width`."""

    def __init__(self, vocabulary: int, length: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.tokens.weight, std=TOKEN_STD)
        nn.init.normal_(self.places, std=PLACE_STD)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens: (B, L) int; mask: (B, L) bool, False at padding -> (B, L, width), zero at padding."""
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]  # (B, L, width)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).masked_fill(~mask[:, :, None], 0)
