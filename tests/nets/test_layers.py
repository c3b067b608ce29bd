"""The parts of the networks against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from moyai.nets.layers import (
    GEGLU,
    AttentionBlock,
    CrossAttention,
    Downsample,
    ResBlock,
    SelfAttention,
    SpatialTransformer,
    TransformerBlock,
    Upsample,
    across,
    attend,
    groups_for,
    timestep_embedding,
)
from moyai.nets.modulation import Spade


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


@pytest.mark.parametrize("told", [(True, True), (True, False), (False, True), (False, False)])
def test_res_block_that_scales_and_shifts_is_its_equation(told):
    block = redraw(ResBlock(8, 12, time_width=6, groups=4, scale_shift=True, planes=3))
    x = draw((2, 8, 5, 4))
    emb, planes = draw((2, 6), 1) if told[0] else None, draw((2, 3, 5, 4), 2) if told[1] else None

    def normed(norm, spade, h):
        h = norm(h)
        if planes is None:
            return h
        scale, shift = spade.out(F.silu(spade.hidden(planes))).split(h.shape[1], 1)
        return h * (1 + scale) + shift

    h = normed(block.norm2, block.spade2, block.conv1(F.silu(normed(block.norm1, block.spade1, x))))
    if emb is not None:
        values = block.emb(emb)[:, :, None, None]
        h = h * (1 + values[:, :12]) + values[:, 12:]
    want = block.skip(x) + block.conv2(F.silu(h))
    torch.testing.assert_close(block(x, emb, planes), want)
    with torch.no_grad():
        torch.testing.assert_close(block(x, emb, planes), want)


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1)])
@torch.no_grad()
def test_res_block_that_resamples_does_so_between_norm_and_convolution(size):
    x = draw((2, 8, *size))
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    block = redraw(ResBlock(8, 8, groups=4, resample="down"))
    ones = F.avg_pool2d(F.pad(torch.ones(1, 1, *size), (0, size[1] % 2, 0, size[0] % 2)), 2)

    def halved(h):  # the mean of those of four places that there are
        return F.avg_pool2d(F.pad(h, (0, size[1] % 2, 0, size[0] % 2)), 2) / ones

    h = block.conv1(halved(F.silu(block.norm1(x))))
    want = halved(x) + block.conv2(F.silu(block.norm2(h)))
    assert want.shape[-2:] == half
    torch.testing.assert_close(block(x), want)
    block = redraw(ResBlock(8, 8, groups=4, resample="up"))
    small = draw((2, 8, *half), 1)
    for given, to in ((None, (2 * half[0], 2 * half[1])), (size, size)):
        rows, columns = ((torch.arange(n) * m // n) for n, m in zip(to, half, strict=True))

        def doubled(h, rows=rows, columns=columns):
            return h[:, :, rows][:, :, :, columns]

        h = block.conv1(doubled(F.silu(block.norm1(small))))
        want = doubled(small) + block.conv2(F.silu(block.norm2(h)))
        torch.testing.assert_close(block(small, size=given), want)


@torch.no_grad()
def test_spade_averages_its_planes_to_the_maps_size():
    spade = redraw(Spade(8, 3))
    x, planes = draw((2, 8, 3, 4)), draw((2, 3, 6, 8), 1)
    assert torch.equal(Spade(8, 3)(x, planes), x)
    torch.testing.assert_close(spade(x, planes), spade(x, F.avg_pool2d(planes, 2)))
    torch.testing.assert_close(spade(x, planes[:, :, ::6, ::8]), spade(x, planes[:, :, :1, :1].expand(-1, -1, 3, 4)))


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
