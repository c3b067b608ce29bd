"""The gated PixelCNN over codes (van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016).

Two stacks of convolutions share the work. The vertical one sees all rows above a place, the horizontal one the codes
to its left and, at each layer, the vertical one: together every code before it, without the blind spot of one masked
stack. With * a convolution, c the condition's vector and s(x) = (first half of x's channels, second half):

    gate(x) = tanh(x_1) sigmoid(x_2)                                                        (their equations 2 and 4)
    a = W_v * v + V_v c              v <- v + gate(a)            W_v: rows i - r .. i, columns j - r .. j + r
    b = W_h * h + U a + V_h c        h <- h + R gate(b)          W_h: columns j - r .. j
                                     out <- out + S gate(b)      r = (kernel - 1) / 2

The stacks begin with the codes' embeddings, for v one row lower and for h one column further right than they lie; so no
kernel needs a mask, and all layers are alike. L layers see rows i - 1 - L r .. i - 1 in columns j - L r .. j + L r,
and of their own row columns j - 1 - L r .. j - 1. Beyond the paper, the vertical stack has a residual too, and what is
known of every place beforehand is added at the beginning: a learned vector of the place, and maps told by `concat`.

Drawing keeps, in each layer, the last rows of v and the last columns of h. A row of v is computed when its row begins,
and h place by place, so that the cost of a code does not depend on how many there are before it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.nets.codes import NOTHING, Guide
from moyai.nets.config import PixelCNNConfig
from moyai.nets.layers import zeroed


class GatedLayer(nn.Module):
    """One layer of both stacks."""

    def __init__(self, width: int, kernel: int, *, vector_width: int | None, dropout: float) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.vertical = nn.Conv2d(width, 2 * width, (self.reach + 1, kernel))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, self.reach + 1))
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.told = None if vector_width is None else nn.Linear(vector_width, 4 * width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Conv2d(width, 2 * width, 1)  # first what is added to h, then to the output

    def forward(self, v: Tensor, h: Tensor, told: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """v, h: (B, width, h, w). Returns v, h and what is added to the output."""
        r = self.reach
        above = _plus(self.vertical(F.pad(v, (r, r, r, 0))), told[0])
        beside = _plus(self.horizontal(F.pad(h, (r, 0, 0, 0))) + self.across(above), told[1])
        residual, skip = self.out(self.dropout(gate(beside))).chunk(2, dim=1)
        return v + gate(above), h + residual, skip

    def given(self, vector: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What the condition adds to the two stacks, (B, 2 width, 1, 1) each."""
        if self.told is None or vector is None:
            return None, None
        first, second = self.told(vector)[:, :, None, None].chunk(2, dim=1)
        return first, second


class PixelCNN(nn.Module):
    """(B, h, w) codes to logits (B, codes, h, w). A fresh network's logits are zero: all codes alike."""

    def __init__(
        self,
        config: PixelCNNConfig,
        codes: int,
        shape: tuple[int, int],
        *,
        vector_width: int | None = None,
        concat_channels: int | None = None,
    ) -> None:
        super().__init__()
        width = config.width
        self.codes, self.shape, self.width = codes, shape, width
        self.embedding = nn.Embedding(codes, width)
        self.places = nn.Parameter(torch.zeros(width, *shape)) if config.places else None
        self.guide = None if concat_channels is None else Guide(concat_channels, width)
        self.layers = nn.ModuleList(
            GatedLayer(width, config.kernel, vector_width=vector_width, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.mix = nn.Conv2d(width, width, 1)
        self.logits = zeroed(nn.Conv2d(width, codes, 1))

    def forward(self, codes: Tensor, cond: Cond = NOTHING) -> Tensor:
        known = self.embedding(codes).movedim(-1, 1)  # (B, width, h, w)
        before = self.before(len(codes), cond)
        v = F.pad(known, (0, 0, 1, 0))[:, :, :-1] + before
        h = F.pad(known, (1, 0, 0, 0))[..., :-1] + before
        out = torch.zeros_like(h)
        for layer in self._layers():
            v, h, skip = layer(v, h, layer.given(cond.vector))
            out = out + skip
        return self.read(out)

    def walk(self, count: int, cond: Cond = NOTHING) -> "PixelCNNWalk":
        return PixelCNNWalk(self, count, cond)

    def before(self, count: int, cond: Cond) -> Tensor:
        """What is known of every place before any code is: (B or 1, width, h, w)."""
        known = self.embedding.weight.new_zeros(1, self.width, *self.shape)
        if self.places is not None:
            known = known + self.places
        if self.guide is not None:
            if cond.concat is None:
                raise ValueError("this network was built for maps beside the codes (concat), and none is given")
            known = known + self.guide(cond.concat)
        return known

    def read(self, out: Tensor) -> Tensor:
        """The output of the layers to logits."""
        logits: Tensor = self.logits(F.relu(self.mix(F.relu(out))))
        return logits

    def _layers(self) -> list[GatedLayer]:
        return [layer for layer in self.layers if isinstance(layer, GatedLayer)]


class PixelCNNWalk:
    """Draws maps with a PixelCNN; see `nets.codes.Walk`."""

    def __init__(self, net: PixelCNN, count: int, cond: Cond) -> None:
        self.net, self.layers = net, net._layers()
        self.before = net.before(count, cond).expand(count, -1, -1, -1)
        self.told = [layer.given(cond.vector) for layer in self.layers]
        width, columns = net.width, net.shape[1]
        empty = self.before.new_zeros
        # Of each layer: the last rows of its v, padded; the last columns of its h; what v gives this row's places.
        self.rows = [empty(count, width, layer.reach + 1, columns + 2 * layer.reach) for layer in self.layers]
        self.columns = [empty(count, width, layer.reach + 1) for layer in self.layers]
        self.beside = [empty(count, 2 * width, columns) for _ in self.layers]
        self.known = empty(count, width, columns)  # the embeddings of this row's codes
        self.place = 0

    def __call__(self, code: Tensor | None) -> Tensor:
        i, j = divmod(self.place, self.net.shape[1])
        h = self.before[:, :, i, j]
        if code is not None:
            last = self.net.embedding(code)  # (B, width)
            self.known[:, :, j - 1] = last
            h = h + last if j else h
        if j == 0:
            self._begin_row(i)
        out = torch.zeros_like(h)
        for k, layer in enumerate(self.layers):
            self.columns[k] = torch.cat((self.columns[k][..., 1:], h[..., None]), dim=-1)
            seen = _product(layer.horizontal, self.columns[k].flatten(1)) + self.beside[k][..., j]
            residual, skip = _product(layer.out, gate(seen)).chunk(2, dim=1)
            h, out = h + residual, out + skip
        self.place += 1
        net = self.net
        return _product(net.logits, F.relu(_product(net.mix, F.relu(out))))

    def _begin_row(self, i: int) -> None:
        """The vertical stack's next row, from the codes of the row above."""
        v = self.known + self.before[:, :, i]  # (B, width, w)
        self.known = torch.zeros_like(self.known)
        for k, (layer, (above_told, beside_told)) in enumerate(zip(self.layers, self.told, strict=True)):
            r = layer.reach
            self.rows[k] = torch.cat((self.rows[k][:, :, 1:], F.pad(v, (r, r))[:, :, None]), dim=2)
            above = _plus(layer.vertical(self.rows[k]), above_told)  # (B, 2 width, 1, w)
            self.beside[k] = _plus(layer.across(above), beside_told)[:, :, 0]
            v = v + gate(above)[:, :, 0]
            self.columns[k] = torch.zeros_like(self.columns[k])


def gate(x: Tensor) -> Tensor:
    """tanh of the first half of the channels (dimension 1) times the sigmoid of the second."""
    first, second = x.chunk(2, dim=1)
    return first.tanh() * second.sigmoid()


def _plus(x: Tensor, more: Tensor | None) -> Tensor:
    return x if more is None else x + more


def _product(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution at one place: x (B, channels x kernel) -> (B, channels out)."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)
