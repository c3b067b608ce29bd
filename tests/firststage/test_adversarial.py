"""The contest: losses and regularisers against closed forms, and the two gradients that must not leak."""

import contextlib
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moyai.firststage.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    factor,
    frozen,
    generator_loss,
    r1,
)
from moyai.firststage.config import AdversarialConfig
from moyai.nets.config import DiscriminatorConfig
from moyai.nets.discriminator import PatchDiscriminator


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def players(norm="group", seed=0):
    """An autoencoder and a conditional discriminator, both small."""
    torch.manual_seed(seed)
    autoencoder = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1))
    config = DiscriminatorConfig(width=8, layers=1, norm=norm)
    return autoencoder, PatchDiscriminator(config, 1, vector_width=3)


def gradients(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def same(one, other):
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- losses --------------------------------------------------------------------------------------------------------


def test_losses_are_the_formulas_by_hand():
    real = torch.tensor([[[[2.0, -1.0]]], [[[0.5, 0.0]]]])
    fake = torch.tensor([[[[-3.0, 1.0]]], [[[0.25, -0.5]]]])
    hinge = [0.5 * ((0 + 2) / 2 + (0 + 2) / 2), 0.5 * ((0.5 + 1) / 2 + (1.25 + 0.5) / 2)]
    torch.testing.assert_close(discriminator_loss(real, fake, "hinge"), torch.tensor(hinge))
    torch.testing.assert_close(generator_loss(fake, "hinge"), torch.tensor([1.0, 0.125]))

    def log(p):  # of a sigmoid
        return math.log(1 / (1 + math.exp(-p)))

    vanilla = [
        -0.5 * ((log(2) + log(-1)) / 2 + (log(3) + log(-1)) / 2),
        -0.5 * ((log(0.5) + log(0)) / 2 + (log(-0.25) + log(0.5)) / 2),
    ]
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla"), torch.tensor(vanilla))
    nonsaturating = [-(log(-3) + log(1)) / 2, -(log(0.25) + log(-0.5)) / 2]
    torch.testing.assert_close(generator_loss(fake, "vanilla"), torch.tensor(nonsaturating))


def test_vanilla_is_cross_entropy_and_at_no_idea_log_2():
    real, fake = draw(5, 1, 3, 4), draw(5, 1, 3, 4, seed=1)
    logits, labels = torch.cat((real, fake)), torch.cat((torch.ones(5, 1, 3, 4), torch.zeros(5, 1, 3, 4)))
    want = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla").mean(), want)
    zero = torch.zeros(2, 1, 2, 2)
    torch.testing.assert_close(discriminator_loss(zero, zero, "vanilla"), torch.full((2,), math.log(2)))
    torch.testing.assert_close(discriminator_loss(zero, zero, "hinge"), torch.ones(2))


def test_the_generator_is_pulled_where_it_is_recognised():
    """The form that does not saturate: a logit of -20 still pulls with full strength."""
    for kind in ("hinge", "vanilla"):
        fake = torch.full((1, 1, 1, 1), -20.0, requires_grad=True)
        generator_loss(fake, kind).sum().backward()
        assert fake.grad.item() == pytest.approx(-1)


@pytest.mark.parametrize("call", [lambda x: discriminator_loss(x, x, "wgan"), lambda x: generator_loss(x, "wgan")])
def test_an_unknown_loss_is_an_error(call):
    with pytest.raises(ValueError, match="'wgan' is not known; possible: hinge, vanilla"):
        call(torch.zeros(1, 1, 1, 1))


# --- how much ------------------------------------------------------------------------------------------------------


def test_adaptive_weight_of_two_known_gradients():
    last = nn.Parameter(draw(2, 3))
    a, b = draw(4, 2, 3, seed=1), draw(4, 2, 3, seed=2)
    weight = adaptive_weight((a * last).sum((1, 2)), (b * last).sum((1, 2)), last)
    assert weight.item() == pytest.approx((a.mean(0).norm() / (b.mean(0).norm() + 1e-4)).item(), rel=1e-5)
    assert weight.shape == ()
    assert not weight.requires_grad
    assert last.grad is None
    none, most = (b * 0 * last).sum((1, 2)), (1e3 * a * last).sum((1, 2))
    assert adaptive_weight(most, none, last).item() == 1e4
    assert adaptive_weight(none, most, last).item() == 0


def test_adaptive_weight_balances_the_pulls_in_a_network_and_leaves_the_graphs():
    autoencoder, discriminator = players()
    images, vector, last = draw(3, 1, 12, 12), draw(3, 3), autoencoder[2].weight

    def losses():
        fake = autoencoder(images)
        with frozen(discriminator):
            logits = discriminator(fake, vector)
        return (fake - images).abs().flatten(1).mean(1), generator_loss(logits, "hinge")

    explicit = []
    for which in (0, 1):
        autoencoder.zero_grad()
        losses()[which].mean().backward()
        explicit.append(last.grad.norm())
    autoencoder.zero_grad()
    reconstruction, adversarial = losses()
    weight = adaptive_weight(reconstruction, adversarial, last)
    torch.testing.assert_close(weight, explicit[0] / (explicit[1] + 1e-4))
    assert weight > 1
    assert all(g is None for g in gradients(autoencoder) + gradients(discriminator))
    (reconstruction + weight * adversarial).mean().backward()  # the graphs are still there
    assert last.grad.norm() > 0


@pytest.mark.parametrize(
    ("start", "warmup", "want"),
    [
        (0.3, 0.1, {0: 0, 299: 0, 300: 0.01, 349: 0.5, 399: 1, 999: 1}),  # shares of 1000 steps
        (0.3, 0.0, {299: 0, 300: 1}),
        (20.0, 0.004, {19: 0, 20: 0.25, 21: 0.5, 22: 0.75, 23: 1, 24: 1}),  # from step 20
        (0.0, 0.0, {0: 1}),
        (1.0, 0.0, {0: 0, 1: 1}),  # 1 is a step
        (0.07, 0.0, {69: 0, 70: 1}),  # 0.07 * 1000 is a little more than 70
        (5000.0, 0.1, {999: 0}),  # never
    ],
)
def test_factor_is_zero_before_the_start_and_then_rises(start, warmup, want):
    config = AdversarialConfig(start=start, warmup=warmup)
    assert {step: factor(config, step, 1000) for step in want} == pytest.approx(want)
    values = [factor(config, step, 1000) for step in range(1000)]
    assert values == sorted(values)
    assert all(0 <= v <= 1 for v in values)


# --- regularisers --------------------------------------------------------------------------------------------------


def test_r1_of_a_linear_discriminator_is_its_closed_form():
    """logits = conv(x, w): the gradient of their sum is, at every pixel, the sum of the weights that reach it."""
    weight, images = draw(1, 2, 4, 4), draw(3, 2, 9, 7, seed=1).requires_grad_()
    weight.requires_grad_()
    gradient = torch.zeros(2, 9, 7)
    for row in range(9 - 3):
        for column in range(7 - 3):
            gradient[:, row : row + 4, column : column + 4] += weight[0].detach()
    got = r1(F.conv2d(images, weight), images)
    torch.testing.assert_close(got, (0.5 * gradient.square().sum()).expand(3))
    scaled = r1(F.conv2d(images, 2 * weight), images)
    torch.testing.assert_close(scaled, 4 * got)
    # homogeneous of degree 2 in w: by Euler, w . d r1 / d w = 2 r1
    (slope,) = torch.autograd.grad(got[0], weight)
    torch.testing.assert_close((slope * weight).sum(), 2 * got[0])


def test_r1_is_differentiable_in_every_parameter():
    torch.manual_seed(0)
    net = PatchDiscriminator(DiscriminatorConfig(width=2, layers=1), 1, vector_width=2).double()
    names = [name for name, _ in net.named_parameters()]
    images, vector = draw(2, 1, 6, 7).double(), draw(2, 2, seed=1).double()

    def penalty(*values):
        x = images.clone().requires_grad_()
        logits = torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x, vector))
        return r1(logits, x)

    values = [(10 * p).detach().requires_grad_() for p in net.parameters()]
    assert penalty(*values).min() > 1e-4
    assert torch.autograd.gradcheck(penalty, values, atol=1e-6, rtol=1e-4)


def test_r1_is_of_each_picture_alone_and_says_what_it_needs():
    _, net = players()
    images, vector = draw(3, 1, 12, 12).requires_grad_(), draw(3, 3)
    together = r1(net(images, vector), images)
    for i in range(3):
        x = images[i : i + 1].detach().requires_grad_()
        torch.testing.assert_close(r1(net(x, vector[i : i + 1]), x), together[i : i + 1])
    together.mean().backward()
    assert all(p.grad.norm() > 0 for name, p in net.named_parameters() if name.endswith("weight"))
    with pytest.raises(ValueError, match="require a gradient"):
        r1(net(images, vector), images.detach())


def test_lecam_is_its_formula_about_the_other_side():
    lecam, real, fake = LeCam(decay=0.9), draw(4, 1, 2, 3) + 1, draw(4, 1, 2, 3, seed=1) - 1
    torch.testing.assert_close(lecam.penalty(real, fake), (real**2 + fake**2).mean((1, 2, 3)))  # both means at 0
    lecam.update(real, fake)
    lecam.update(2 * real, 3 * fake)
    of_real, of_fake = (0.09 + 0.2) * real.mean(), (0.09 + 0.3) * fake.mean()
    torch.testing.assert_close((lecam.real, lecam.fake), (of_real, of_fake))
    want = ((real - of_fake) ** 2 + (fake - of_real) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(lecam.penalty(real, fake), want)


def test_lecam_keeps_its_means_and_its_gradient_through_an_update():
    lecam, logits = LeCam(), draw(2, 1, 2, 2).requires_grad_()
    for _ in range(50):
        lecam.update(torch.full((3, 1, 2, 2), 2.0), torch.full((3, 1, 2, 2), -1.0))
    assert lecam.real.item() == pytest.approx(2 * (1 - 0.99**50), rel=1e-4)
    other = LeCam()
    other.load_state_dict(lecam.state_dict())
    assert (other.real, other.fake) == (lecam.real, lecam.fake)
    want = 2 * (logits.detach() - lecam.fake) / 4
    penalty = lecam.penalty(logits, torch.zeros(2, 1, 2, 2)).sum()
    lecam.update(logits, logits)  # before the backward
    penalty.backward()
    torch.testing.assert_close(logits.grad, want)
    assert not any(buffer.requires_grad for buffer in lecam.buffers())
    assert list(lecam.parameters()) == []


# --- the two leaks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_the_generators_gradient_passes_through_and_leaves_nothing(norm):
    images, vector = draw(3, 1, 12, 12), draw(3, 3)
    results = []
    for freeze in (True, False):
        autoencoder, discriminator = players(norm)
        if freeze:
            with frozen(discriminator):
                logits = discriminator(autoencoder(images), vector)
        else:
            logits = discriminator(autoencoder(images), vector)
        generator_loss(logits, "hinge").mean().backward()
        results.append((gradients(autoencoder), gradients(discriminator)))
    (through, left), (want, leaked) = results
    assert all(g is None for g in left)
    assert any(g is not None and g.norm() > 0 for g in leaked), "without it, the gradient does stay"
    assert same(through, want)
    assert all(g.norm() > 0 for g in through)


def test_the_discriminators_gradient_stays_out_of_the_autoencoder():
    images, vector = draw(3, 1, 12, 12), draw(3, 3)
    for detached in (True, False):
        autoencoder, discriminator = players()
        fake = autoencoder(images)
        logits = discriminator(fake.detach() if detached else fake, vector)
        discriminator_loss(discriminator(images, vector), logits, "hinge").mean().backward()
        assert all(g is None for g in gradients(autoencoder)) == detached
        weights = [p for name, p in discriminator.named_parameters() if name.endswith("weight")]
        assert len(weights) == 6
        assert all(p.grad.norm() > 0 for p in weights)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", ["generator", "discriminator"])
def test_one_backward_of_both_is_two_backwards_apart(precision, first):
    """In one autocast context, in which cast weights are kept: whoever calls the discriminator first, the frozen
    call must not find weights there that lead back to the parameters."""
    images, vector, start = draw(3, 1, 12, 12), draw(3, 3), players()

    def losses(autoencoder, discriminator):
        def generator():
            with frozen(discriminator):
                return generator_loss(discriminator(fake, vector), "vanilla").mean()

        def judge():
            return discriminator_loss(discriminator(images, vector), discriminator(fake.detach(), vector), "vanilla")

        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            fake = autoencoder(images)
            if first == "generator":
                one = generator()
                return one, judge().mean()
            other = judge().mean()
            return generator(), other

    apart = []
    for which in (0, 1):
        autoencoder, discriminator = copy.deepcopy(start)
        losses(autoencoder, discriminator)[which].backward()
        apart.append((gradients(autoencoder), gradients(discriminator)))
    assert all(g is None for g in apart[0][1] + apart[1][0])
    autoencoder, discriminator = copy.deepcopy(start)
    sum(losses(autoencoder, discriminator)).backward()
    assert same(gradients(autoencoder), apart[0][0])
    assert same(gradients(discriminator), apart[1][1])


def test_frozen_gives_back_what_it_found_even_after_an_error():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].bias.requires_grad_(False)
    before = [p.requires_grad for p in module.parameters()]
    with contextlib.suppress(KeyError), frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
        raise KeyError
    assert [p.requires_grad for p in module.parameters()] == before == [True, False, True, True]
