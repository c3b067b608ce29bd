"""Attention and the blocks around it against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from moyai.nets.attention import (
    GEGLU,
    AttentionBlock,
    CrossAttention,
    SelfAttention,
    SpatialTransformer,
    TransformerBlock,
    across,
    attend,
)
from nets.test_layers import draw, redraw


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


def normalised(t, weight):
    return t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("length", [1, 3])
def test_attention_with_normalised_queries_and_keys_is_its_definition(length):
    x, context = draw((2, 6, 8)), draw((2, length, 5), 1)
    layer = redraw(SelfAttention(8, 2, qk_norm=True))
    q, k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in layer.qkv(x).chunk(3, dim=2))
    q, k = normalised(q, layer.norms.q.weight), normalised(k, layer.norms.k.weight)
    want = layer.out(attend_by_hand(q, k, v, torch.ones(2, 6)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), want)
    cross, norm = redraw(CrossAttention(8, 2, context_width=5, qk_norm=True)), redraw(torch.nn.LayerNorm(8))
    k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in cross.kv(context).chunk(2, dim=2))
    q = cross.q(norm(x)).unflatten(2, (2, 4)).transpose(1, 2)
    q, k = normalised(q, cross.norms.q.weight), normalised(k, cross.norms.k.weight)
    want = cross.out(attend_by_hand(q, k, v, torch.ones(2, length)).transpose(1, 2).flatten(2))
    got = across(norm, cross, x, context, None)
    torch.testing.assert_close(got.expand_as(want), want)
    got.sum().backward()
    assert all(p.grad is not None for p in (*cross.parameters(), *norm.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_spatial_transformer_with_convolutions_is_the_one_with_linear_layers():
    linear = redraw(SpatialTransformer(8, heads=2, depth=2, context_width=5, groups=4))
    conv = SpatialTransformer(8, heads=2, depth=2, context_width=5, groups=4, convolutions=True)
    assert all((p == 0).all() for p in conv.proj_out.parameters())
    shapes = {name: tensor.shape for name, tensor in conv.state_dict().items()}
    assert shapes["proj_in.weight"] == (8, 8, 1, 1)
    conv.load_state_dict({name: tensor.view(shapes[name]) for name, tensor in linear.state_dict().items()})
    x, context = draw((2, 8, 3, 5)), draw((2, 3, 5), 1)
    torch.testing.assert_close(conv(x, context), linear(x, context))


@torch.no_grad()
def test_attention_block_of_several_heads():
    block = redraw(AttentionBlock(8, heads=2, groups=4))
    x = draw((2, 8, 3, 5))
    want = x + block.attention(block.norm(x).flatten(2).transpose(1, 2)).transpose(1, 2).reshape_as(x)
    torch.testing.assert_close(block(x), want)
    assert block.attention.heads == 2
    assert torch.equal(AttentionBlock(8, heads=2, groups=4)(x), x)


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
