"""The parts of the networks against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from moyai.nets.layers import Downsample, ResBlock, Upsample, groups_for, timestep_embedding
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
