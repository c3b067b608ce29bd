"""The parts of the networks against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from moyai.nets.layers import (
    GEGLU,
    CrossAttention,
    Downsample,
    ResBlock,
    SelfAttention,
    SpatialTransformer,
    TransformerBlock,
    Upsample,
    attend,
    groups_for,
    timestep_embedding,
)


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def redraw(module, seed=0):
    """All parameters from a normal distribution, the zero-initialised ones included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        with torch.no_grad():
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan))
    return module


def test_timestep_embedding_is_cos_then_sin_of_geometric_frequencies():
    time = torch.tensor([0.0, 1.0, 999.0, 0.5])
    got = timestep_embedding(time, 6)
    for row, t in zip(got, time.tolist(), strict=True):
        frequencies = [10_000 ** (-i / 3) for i in range(3)]
        want = [math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies]
        torch.testing.assert_close(row, torch.tensor(want), atol=2e-5, rtol=0)
    assert got.dtype == torch.float32


def test_timestep_embedding_of_odd_width_has_a_zero_last():
    assert timestep_embedding(torch.tensor([3.0]), 7).shape == (1, 7)
    assert timestep_embedding(torch.tensor([3.0]), 7)[0, -1] == 0


@pytest.mark.parametrize(
    ("channels", "at_most", "want"), [(64, 32, 32), (48, 32, 24), (7, 32, 7), (13, 8, 1), (6, 4, 3)]
)
def test_groups_for_is_the_largest_divisor(channels, at_most, want):
    assert groups_for(channels, at_most) == want


def test_fresh_res_block_is_its_skip():
    x = draw((2, 8, 5, 4))
    assert torch.equal(ResBlock(8, 8, time_width=6, groups=4)(x, draw((2, 6))), x)
    block = ResBlock(8, 12, groups=4)
    assert torch.equal(block(x), block.skip(x))


def test_res_block_is_its_equation_with_and_without_gradient():
    block = redraw(ResBlock(8, 12, time_width=6, groups=4))
    x, emb = draw((2, 8, 5, 4)), draw((2, 6), 1)
    h = block.conv1(F.silu(block.norm1(x))) + block.emb(emb)[:, :, None, None]
    want = block.skip(x) + block.conv2(F.silu(block.norm2(h)))
    torch.testing.assert_close(block(x, emb), want)
    with torch.no_grad():  # the path that works in place
        kept = x.clone()
        torch.testing.assert_close(block(x, emb), want)
        assert torch.equal(x, kept)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (4, 3)])
@pytest.mark.parametrize("centred", [True, False])
def test_downsample_halves_upwards(size, centred):
    h, w = size
    assert Downsample(3, centred=centred)(draw((1, 3, h, w))).shape[-2:] == ((h + 1) // 2, (w + 1) // 2)


@pytest.mark.parametrize("size", [None, (8, 6), (7, 6), (7, 5)])
def test_upsample_is_nearest_then_convolution(size):
    up = Upsample(5).double()
    x = draw((2, 5, 4, 3)).double().requires_grad_()
    want = up.conv(F.interpolate(x, size=size or (8, 6), mode="nearest"))
    got = up(x, size)
    torch.testing.assert_close(got, want)
    weights = draw(got.shape, 3).double()
    inputs = (x, up.conv.weight, up.conv.bias)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), inputs),
        torch.autograd.grad((want * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def attend_by_hand(q, k, v, mask):
    scores = torch.einsum("bhnd,bhld->bhnl", q, k) / math.sqrt(q.shape[-1])
    weights = scores.exp() * mask[:, None, None, :]
    return torch.einsum("bhnl,bhld->bhnd", weights / weights.sum(-1, keepdim=True).clamp(min=1e-30), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_is_softmax_and_masked_rows_are_zero(dtype):
    q, k, v = draw((3, 2, 6, 4)), draw((3, 2, 5, 4), 1), draw((3, 2, 5, 4), 2)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    q, k, v = (t.to(dtype).requires_grad_() for t in (q, k, v))
    got = attend(q, k, v, mask)
    want = attend_by_hand(q.float(), k.float(), v.float(), mask)
    torch.testing.assert_close(got.float(), want, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)
    assert (got[2] == 0).all()
    for gradient in torch.autograd.grad(got.float().square().sum(), (q, k, v)):
        assert gradient.isfinite().all()
        assert (gradient[2] == 0).all()


def test_attention_layers_are_their_definitions():
    x, context = draw((2, 6, 8)), draw((2, 3, 5), 1)
    layer = redraw(SelfAttention(8, 2, bias=True))
    q, k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in layer.qkv(x).chunk(3, dim=2))
    want = layer.out(attend_by_hand(q, k, v, torch.ones(2, 6)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), want)
    cross = redraw(CrossAttention(8, 2, context_width=5))
    k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in cross.kv(context).chunk(2, dim=2))
    q = cross.q(x).unflatten(2, (2, 4)).transpose(1, 2)
    want = cross.out(attend_by_hand(q, k, v, torch.ones(2, 3)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(cross(x, context), want)


@pytest.mark.parametrize("masked", [False, True])
def test_context_of_one_entry_takes_the_shortcut_to_the_same_answer(masked):
    block = redraw(TransformerBlock(8, 2, context_width=5))
    x, context = draw((2, 6, 8)), draw((2, 1, 5), 1)
    mask = torch.tensor([[True], [False]]) if masked else None
    h = x + block.attention(block.norm1(x))
    h = h + block.cross(block.norm2(h), context, mask)
    want = h + block.feed(block.norm3(h))
    got = block(x, context, mask)
    torch.testing.assert_close(got, want)
    got.sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    assert (block.cross.q.weight.grad == 0).all()


def test_geglu_gates_the_first_half_by_the_second():
    layer = redraw(GEGLU(4))
    x = draw((2, 3, 4))
    hidden = F.linear(x, layer.proj.weight[:16], layer.proj.bias[:16])
    gate = F.linear(x, layer.proj.weight[16:], layer.proj.bias[16:])
    torch.testing.assert_close(layer(x), layer.out(hidden * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))))


def test_fresh_spatial_transformer_is_the_identity():
    x = draw((2, 8, 3, 5))
    assert torch.equal(SpatialTransformer(8, heads=2, context_width=4, groups=4)(x, draw((2, 3, 4))), x)
