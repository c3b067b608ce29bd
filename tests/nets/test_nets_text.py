"""The text transformer: order is seen, padding is not, and every weight has a part."""

import pytest
import torch
from torch import Tensor

from moyai.nets.text import TextEncoder


def encoder(length: int = 8, width: int = 12, depth: int = 2, heads: int = 3) -> TextEncoder:
    """With all weights drawn anew, so that every one of them matters."""
    torch.manual_seed(0)
    made = TextEncoder(20, length, width=width, depth=depth, heads=heads)
    with torch.no_grad():
        for values in made.parameters():
            values.normal_(1 if values.ndim == 1 else 0, 0.3)
    return made


TOKENS = torch.tensor([[1, 5, 6, 7, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0], [1, 9, 8, 7, 6, 5, 4, 2]])
MASK = TOKENS != 0


def test_shape_and_padding() -> None:
    out = encoder()(TOKENS, MASK).detach()
    assert out.shape == (3, 8, 12)
    assert torch.equal(out[~MASK], torch.zeros_like(out[~MASK]))
    assert float(out[MASK].std()) > 0.1


def test_it_is_a_transformer_written_out() -> None:
    """One block, one caption without padding, by the formulas alone."""
    net = encoder(depth=1)
    block = net.blocks[0]

    def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    tokens = TOKENS[2, :5]
    x = net.tokens.weight[tokens] + net.places[:5]
    padded = torch.cat((torch.zeros(2, 12), x, torch.zeros(2, 12)))  # two neighbours to each side
    around = sum(padded[i : i + 5] * block.around.weight[:, 0, i] for i in range(5))
    x = x + around + block.around.bias
    h = norm(x, block.norm1)
    k, v = (h @ block.attention.kv.weight.T).chunk(2, -1)
    q = h @ block.attention.q.weight.T
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = (q[:, part] @ k[:, part].T / 2).exp()  # sqrt(4)
        heads.append(weights / weights.sum(1, keepdim=True) @ v[:, part])
    x = x + torch.cat(heads, 1) @ block.attention.out.weight.T + block.attention.out.bias
    values, gates = (norm(x, block.norm2) @ block.feed.proj.weight.T + block.feed.proj.bias).chunk(2, -1)
    gated = values * gates * 0.5 * (1 + torch.erf(gates / 2**0.5))
    x = x + gated @ block.feed.out.weight.T + block.feed.out.bias
    torch.testing.assert_close(net(tokens[None], torch.ones(1, 5, dtype=torch.bool))[0], norm(x, net.norm))


def test_what_stands_in_the_padding_does_not_matter() -> None:
    net = encoder()
    other = torch.where(MASK, TOKENS, torch.tensor(13))
    assert torch.equal(net(TOKENS, MASK), net(other, MASK))
    short = net(TOKENS[:2, :5], MASK[:2, :5])  # nor how much of it there is
    torch.testing.assert_close(net(TOKENS, MASK)[:2, :5], short)


def test_no_gradient_reaches_the_padding() -> None:
    net = encoder()
    net(TOKENS[:2], MASK[:2]).square().sum().backward()
    assert net.tokens.weight.grad is not None
    assert net.places.grad is not None
    assert torch.equal(net.tokens.weight.grad[0], torch.zeros(12))  # the padding's token
    assert torch.equal(net.places.grad[5:], torch.zeros(3, 12))  # places that only padding has
    assert all(float(net.tokens.weight.grad[token].abs().sum()) > 0 for token in (1, 2, 5, 6, 7))


def test_every_weight_has_a_gradient() -> None:
    net = encoder()
    net(TOKENS, MASK).square().sum().backward()
    assert all(values.grad is not None and float(values.grad.abs().max()) > 0 for values in net.parameters())


@pytest.mark.parametrize("depth", [1, 3])
def test_order_is_seen_from_both_sides(depth: int) -> None:
    """Two words change places: every token's output is another, those before them too (attention is not causal)."""
    net = encoder(depth=depth)
    swapped = TOKENS[:1].clone()
    swapped[0, [1, 3]] = swapped[0, [3, 1]]
    change = (net(TOKENS[:1], MASK[:1]) - net(swapped, MASK[:1])).abs().amax(-1)[0].detach()
    assert float(change[:5].min()) > 1e-3
    with torch.no_grad():  # without places and neighbours a transformer sees a set of words
        net.places.zero_()
        for block in net.blocks:
            block.around.weight[:, :, [0, 1, 3, 4]] = 0
    unplaced = net(TOKENS[:1], MASK[:1]), net(swapped, MASK[:1])
    torch.testing.assert_close(unplaced[0][0, [1, 3]], unplaced[1][0, [3, 1]])
    torch.testing.assert_close(unplaced[0][0, 0], unplaced[1][0, 0])


def test_bfloat16_is_near() -> None:
    net = encoder()
    with torch.autocast("cpu", torch.bfloat16):
        low = net(TOKENS, MASK)
    torch.testing.assert_close(low.float(), net(TOKENS, MASK), atol=0.1, rtol=0.1)
    assert torch.equal(low[~MASK], torch.zeros_like(low[~MASK]))
