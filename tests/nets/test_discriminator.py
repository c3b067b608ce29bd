"""The discriminator of patches against its definition, its receptive field, and a game that needs its condition."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moyai.errors import ConfigError
from moyai.firststage.adversarial import discriminator_loss
from moyai.nets.config import DiscriminatorConfig
from moyai.nets.discriminator import PatchDiscriminator

NORMS = ["group", "batch", "none"]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(channels=1, vector_width=None, seed=0, **config):
    torch.manual_seed(seed)
    return PatchDiscriminator(DiscriminatorConfig(**{"width": 8, **config}), channels, vector_width)


def reference(channels, width, layers, norm):
    """pix2pix' NLayerDiscriminator, from its description."""
    norms = {
        "batch": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
        "group": lambda c: nn.GroupNorm(c // 8, c),
        "none": lambda c: nn.Identity(),
    }
    widths = [width, *(width * min(2**i, 8) for i in range(1, layers + 1))]
    strides = [2] * layers + [1]
    modules = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for before, after, stride in zip(widths, widths[1:], strides[1:], strict=False):
        conv = nn.Conv2d(before, after, 4, stride, 1, bias=norm != "batch")
        modules += [conv, norms[norm](after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, 1, 1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("channels", "width", "layers"), [(3, 16, 3), (1, 8, 1), (4, 8, 5)])
def test_it_is_the_classic_network(norm, channels, width, layers):
    ours, theirs = build(channels, width=width, layers=layers, norm=norm), reference(channels, width, layers, norm)
    for parameter in ours.parameters():  # strong weights, and biases that are not zero
        parameter.data += 0.1 * draw(*parameter.shape, seed=parameter.numel())
    names = list(theirs.state_dict())
    assert [v.shape for v in ours.state_dict().values()] == [v.shape for v in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)))
    images = draw(2, channels, 104, 97)
    for training in (True, False):
        got, want = ours.train(training)(images), theirs.train(training)(images)
        spread = want.std().item()
        assert spread > 1e-3
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * spread)


def test_its_size_is_the_published_one():
    """2.769 million, as pix2pix' training log has it, for the 6 channels of a pair of pictures."""
    net = build(6, width=64, layers=3, norm="batch")
    assert sum(p.numel() for p in net.parameters()) == 2_768_705


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_the_receptive_field_measured_by_gradients(layers, field):
    """Every pixel of a square, and none outside it, moves an inner logit; the next logit's square is a stride on."""
    side, at = 3 * field, 3 * field // 2**layers // 2
    net = build(norm="none", width=4, layers=layers, vector_width=3).double()
    images, corners = draw(1, 1, side, side).double().requires_grad_(), []
    for row, column in ((at, at), (at + 1, at)):
        (gradient,) = torch.autograd.grad(net(images, draw(1, 3).double())[0, 0, row, column], images)
        rows, columns = (gradient[0, 0] != 0).any(1).nonzero()[:, 0], (gradient[0, 0] != 0).any(0).nonzero()[:, 0]
        assert len(rows) == len(columns) == field
        assert (gradient != 0).sum() == field**2
        assert 0 < rows[0] < rows[-1] < side - 1, "the square lies within the picture"
        corners.append((rows[0].item(), columns[0].item()))
    assert (corners[1][0] - corners[0][0], corners[1][1] - corners[0][1]) == (2**layers, 0)


@pytest.mark.parametrize("layers", range(1, 7))
def test_the_smallest_side_is_the_smallest(layers):
    net, smallest = build(width=1, layers=layers), 3 * 2**layers
    assert net(draw(2, 1, smallest, smallest + 5)).shape[:3] == (2, 1, 1)
    with pytest.raises(ConfigError, match=rf"smallest side is {smallest} ") as error:
        net(draw(2, 1, smallest + 5, smallest - 1))
    assert "\n" not in str(error.value)
    net.smallest = 0
    with pytest.raises(RuntimeError):  # and truly nothing smaller works
        net(draw(2, 1, smallest - 1, smallest))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("channels", "size", "want"), [(1, (28, 28), (1, 1)), (3, (32, 32), (2, 2)), (4, (48, 101), (4, 10))]
)
def test_any_channels_and_sizes(norm, channels, size, want):
    net = build(channels, norm=norm)
    images = draw(2, channels, *size).requires_grad_()
    logits = net(images)
    assert logits.shape == (2, 1, *want)
    assert torch.autograd.grad(logits.sum(), images)[0].abs().sum((1, 2, 3)).min() > 0


def test_features_are_what_the_logits_are_made_of():
    net = build(3, vector_width=4, layers=2)
    images, vector = draw(2, 3, 32, 24), draw(2, 4, seed=1)
    maps = net.features(images, vector)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 12), (2, 16, 8, 6), (2, 32, 7, 5)]
    assert torch.equal(net.conv_out(maps[-1]), net(images, vector))
    first = net.layers[0]
    shifted = first.conv(images) + (F.silu(vector) @ first.emb.weight.T)[:, :, None, None]
    torch.testing.assert_close(maps[0], torch.where(shifted > 0, shifted, 0.2 * shifted))


def test_under_autocast_the_last_convolution_is_float32():
    net = build(3, vector_width=4)
    images, vector = draw(2, 3, 32, 32), draw(2, 4, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, last = net(images, vector), net.features(images, vector)[-1]
    assert logits.dtype == torch.float32
    assert torch.equal(logits, F.conv2d(last.float(), net.conv_out.weight, net.conv_out.bias, padding=1))
    exact = net(images, vector)
    assert (logits - exact).abs().max() < 0.05 * exact.std()


@pytest.mark.parametrize("norm", NORMS)
def test_it_starts_as_pix2pix_does(norm):
    net = build(3, vector_width=64, norm=norm, width=32)
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == 5 + 4
    for weight in weights:
        error = 4 * 0.02 / weight.numel() ** 0.5
        assert abs(weight.mean().item()) < error
        assert abs(weight.std().item() - 0.02) < error
    assert all(p.abs().max() == 0 for name, p in net.named_parameters() if name.endswith("bias"))
    gains = torch.cat([m.weight for m in net.modules() if isinstance(m, nn.GroupNorm | nn.BatchNorm2d)] or [draw(0)])
    assert len(gains) == (0 if norm == "none" else 64 + 128 + 256)
    assert norm == "none" or (0.015 < gains.std() < 0.025 and abs(gains.mean() - 1) < 0.005)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("width", [2, 8])
def test_no_parameter_is_idle(norm, width):
    """A bias that the normalisation subtracts again would have a gradient of zero, and so would a shift."""
    net = build(norm=norm, width=width, vector_width=3, layers=2).double()
    logits = net(draw(4, 1, 20, 20).double(), draw(4, 3, seed=1).double())
    (logits * draw(*logits.shape, seed=2)).sum().backward()
    norms = {name: p.grad.norm().item() for name, p in net.named_parameters()}
    assert min(norms.values()) > 1e-6 * max(norms.values()), norms
    assert ("layers.1.conv.bias" in norms) == (norm != "batch")


# --- the condition -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_the_vector_matters_from_the_start_in_every_layer(norm):
    images, one, other = draw(4, 1, 32, 32), draw(4, 16, seed=1), draw(4, 16, seed=2)
    net = build(norm=norm, vector_width=16)
    spread = net(images, one).std()
    assert (net(images, one) - net(images, other)).abs().mean() > 0.05 * spread
    for kept in range(len(net.layers)):  # alone, too: no normalisation takes it away again
        net = build(norm=norm, vector_width=16)
        for i, layer in enumerate(net.layers):
            if i != kept:
                nn.init.zeros_(layer.emb.weight)
        assert (net(images, one) - net(images, other)).abs().mean() > 0.005 * spread, kept


def test_each_picture_is_judged_by_its_own_vector():
    net, images, vectors = build(vector_width=4), draw(3, 1, 32, 32), draw(3, 4, seed=1)
    together = net(images, vectors)
    for i in range(3):
        torch.testing.assert_close(net(images[i : i + 1], vectors[i : i + 1]), together[i : i + 1])
    vectors[1] = 0
    changed = (net(images, vectors) != together).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


def test_a_condition_that_is_missing_or_not_expected_is_an_error():
    with pytest.raises(ValueError, match=r"give it a vector \(B, 4\)"):
        build(vector_width=4)(draw(2, 1, 32, 32))
    with pytest.raises(ValueError, match="takes no condition"):
        build()(draw(2, 1, 32, 32), draw(2, 4))


def stripes(generator, count, side=12):
    """Noisy stripes, lying or standing, and which: (count, 1, side, side), (count,)."""
    kind = torch.randint(0, 2, (count,), generator=generator)
    wave = torch.tensor([0.7, -0.7]).repeat(side // 2)
    patterns = torch.stack((wave[:, None].expand(side, side), wave[None].expand(side, side)))
    return patterns[kind][:, None] + 0.3 * torch.randn((count, 1, side, side), generator=generator), kind


def judged(net, generator, count, told):
    """Logits of real (the stripes that the condition names) and fake (the other ones); each picture alone is as
    often real as fake."""
    vectors, logits = 2.0 * torch.eye(2) - 1, []
    for real in (True, False):
        images, kind = stripes(generator, count)
        logits.append(net(images, vectors[kind if real else 1 - kind] if told else None))
    return logits


def accuracy(told, norm, seed):
    net = build(norm=norm, layers=1, width=16, vector_width=2 if told else None, seed=seed)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.9))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(40):
        optimizer.zero_grad()
        discriminator_loss(*judged(net, generator, 32, told), "hinge").mean().backward()
        optimizer.step()
    with torch.no_grad():
        real, fake = (logits.mean((1, 2, 3)) for logits in judged(net, generator, 500, told))
    return ((real > 0).float().mean() + (fake < 0).float().mean()).item() / 2


@pytest.mark.parametrize("norm", NORMS)
def test_it_learns_what_only_the_condition_tells(norm):
    """Real is a picture that matches its condition. Nothing in the picture says so."""
    with_it = [accuracy(True, norm, seed) for seed in (0, 1)]
    without = [accuracy(False, norm, seed) for seed in (0, 1)]
    assert min(with_it) > 0.9, with_it
    assert all(abs(a - 0.5) < 0.07 for a in without), without
