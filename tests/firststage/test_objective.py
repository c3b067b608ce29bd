"""The first stage's loss against its formula, and where its gradient goes."""

from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import tiny
from moyai.build.firststage import build_autoencoder
from moyai.firststage.autoencoder import LatentAutoencoder
from moyai.firststage.config import KLConfig, ObjectiveConfig
from moyai.firststage.objective import Objective
from moyai.firststage.posterior import DiagonalGaussian
from moyai.randomness import Draw
from moyai.recipe import resolve
from moyai.recipe.resolve import DataFacts


def autoencoder() -> LatentAutoencoder:
    """Of factor 2; it takes pictures of any size."""
    facts = DataFacts(channels=1, height=8, width=8, count=10)
    net = {**tiny.NETS["first_stage.net"], "attention": True, "factor": 2}
    recipe = tiny.recipe(Path("x"), {"prior.conditions": {}, "first_stage.net": net})
    return build_autoencoder(resolve.resolve(recipe, facts), facts)


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_loss_is_its_formula(kind: str) -> None:
    x, y = pictures(3, 2, 4, 5), pictures(3, 2, 4, 5).flip(0)
    posterior = DiagonalGaussian(pictures(3, 4, 2, 2))
    terms = Objective(ObjectiveConfig(reconstruction=kind, kl=KLConfig(weight=0.25)))(x, y, posterior)
    loss, parts = terms.fidelity + terms.regularizer, terms.parts
    distance = (x - y).abs() if kind == "l1" else (x - y) ** 2
    kl = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(parts["reconstruction"], distance.sum((1, 2, 3)) / 40)
    torch.testing.assert_close(parts["kl"], kl / 40)
    torch.testing.assert_close(loss, distance.sum((1, 2, 3)) / 40 + 0.25 * kl / 40)
    assert not any(part.requires_grad for part in parts.values())


def test_the_gradient_reaches_every_parameter() -> None:
    model = autoencoder()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # weights that begin at zero would hide what is behind them
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    images = pictures(4, 1, 8, 8)
    posterior = model.encode(images)
    again = model.decode(posterior.sample(Draw(0, 0, 4)), (8, 8))
    terms = Objective(ObjectiveConfig())(images, again, posterior)
    (terms.fidelity + terms.regularizer).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert without == []


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (5, 8)])
def test_sides_that_the_factor_does_not_divide(height: int, width: int) -> None:
    model = autoencoder()
    assert model.factor == 2
    posterior = model.encode(pictures(2, 1, height, width))
    assert posterior.mean.shape == (2, 4, -(-height // 2), -(-width // 2))
    assert model.decode(posterior.mode(), (height, width)).shape == (2, 1, height, width)
    # What is beyond the edge is the edge, continued: the whole picture decides, nothing else.
    padded = torch.nn.functional.pad(pictures(2, 1, height, width), (0, width % 2, 0, height % 2), mode="replicate")
    torch.testing.assert_close(model.encode(padded).mean, posterior.mean)
