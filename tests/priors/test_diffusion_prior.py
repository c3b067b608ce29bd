"""The prior's training loss: its formula, its randomness, and that accumulation changes rounding only."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from moyai.batch import Batch, Cond
from moyai.build.conditions import build_conditioner
from moyai.build.prior import build_prior
from moyai.conditioning.conditioner import Conditioner
from moyai.diffusion.bound import discretized, gaussian, step_term
from moyai.diffusion.loss import diffusion_loss
from moyai.diffusion.noise import LogNormal, Table
from moyai.diffusion.parameterization import EDM
from moyai.errors import ConfigError
from moyai.priors.diffusion import DiffusionPrior
from moyai.priors.likelihood import likelihood
from moyai.randomness import Draw
from moyai.recipe import resolve
from moyai.recipe.resolve import DataFacts
from moyai.training.config import TrainConfig
from moyai.training.state import TrainState
from moyai.training.steps import LossOf, train_step

SHAPE = (4, 4, 4)
FACTS = DataFacts(channels=1, height=8, width=8, count=30, classes=tiny.CLASSES, fields=("class",))


def made(kind: str = "v", **changes: object) -> tuple[DiffusionPrior, Conditioner]:
    given = {"prior.parameterization": {"kind": kind}, "prior.train.precision": "float32", **changes}
    recipe = resolve.resolve(tiny.recipe(Path("x"), given), FACTS)
    conditioner = build_conditioner(recipe, FACTS)
    prior = build_prior(recipe, conditioner, SHAPE)
    generator = torch.Generator().manual_seed(1)
    for parameter in prior.parameters():  # weights that begin at zero would hide what is behind them
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return prior, conditioner


def latents(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["v", "eps", "x0", "edm", "flow"])
def test_the_loss_is_the_mean_square_of_the_network_to_its_target(kind: str) -> None:
    prior, conditioner = made(kind)
    z, labels, draw = latents(6), {"class": torch.tensor([0, 1, 2, 0, 1, 2])}, Draw(0, 4, 6)
    cond = conditioner(labels, 6)
    loss = prior.loss(z, cond, draw)
    sigma, noise = prior.density(draw.stratified("time")), draw.normal("noise", SHAPE)
    c = prior.denoiser.parameterization(sigma)
    x = z + sigma.view(-1, 1, 1, 1) * noise
    denoised = prior.denoiser(x, sigma, cond)
    out = (denoised - c.skip.view(-1, 1, 1, 1) * x) / c.out.view(-1, 1, 1, 1)
    s = sigma.view(-1, 1, 1, 1)
    target = {
        "v": (noise - s * z) / (1 + s**2).sqrt(),
        "eps": noise,
        "x0": z,
        "edm": (s * z - noise) / (1 + s**2).sqrt(),
        "flow": noise - z,
    }[kind]
    torch.testing.assert_close(loss, (out - target).square().flatten(1).mean(1), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_the_gradient_reaches_every_parameter(variance: str) -> None:
    prior, conditioner = made(**{"prior.variance": {"kind": variance}})
    z, labels = latents(12), {"class": torch.arange(12) % 3}
    prior.loss(z, conditioner.dropped(labels, Draw(0, 0, 12)), Draw(0, 0, 12)).sum().backward()
    for module in (prior, conditioner):
        without = [n for n, p in module.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
        # Attention to a context of one entry has one possible weight: what only shapes the weight cannot matter.
        assert [n for n in without if "cross.q." not in n and "norm2." not in n.rsplit("blocks", 1)[-1]] == []
    rows = conditioner.conditions["class"].embedding.weight.grad
    assert bool((rows != 0).any(1).all())  # of every class, and of the null


def test_loss_at_a_level_is_the_loss_at_its_sigma() -> None:
    prior, conditioner = made("flow")
    z, cond = latents(5), conditioner.null(5)
    draw = Draw(0, 0, 5)
    sigma = float(prior.density(torch.tensor([0.3])))
    assert sigma == pytest.approx(float(torch.distributions.Normal(0, 1).icdf(torch.tensor(0.3)).exp()), rel=1e-4)
    levels = [prior.loss_at(z, cond, level, draw) for level in (0.3, 0.3, 0.7)]
    assert torch.equal(levels[0], levels[1])
    assert not torch.equal(levels[0], levels[2])
    assert levels[0].shape == (5,)


def gradients(micro: int | None) -> dict[str, Tensor]:
    prior, conditioner = made(**{"prior.conditions": {"class": {"kind": "class", "width": 8, "dropout": 0.4}}})
    config = TrainConfig(steps=10, batch=12, micro_batch=micro, clip=None)
    state = TrainState.new({"prior": prior, "conditioner": conditioner}, config)
    seen: dict[str, Tensor] = {}
    state.optimizers["modules"].register_step_pre_hook(
        lambda *_: seen.update({n: p.grad.clone() for n, p in state.parameters() if p.grad is not None})
    )
    batch = Batch(torch.arange(12), latents=None, fields={"class": torch.arange(12) % 3}, images=latents(12))
    train_step(state, loss_of(prior, conditioner), batch, Draw(0, 0, 12, stage="prior"), 16.0)
    return seen


def loss_of(prior: DiffusionPrior, conditioner: Conditioner) -> LossOf:
    def losses(batch: Batch, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.images is not None
        return prior.loss(batch.images, conditioner.dropped(batch.fields, draw), draw), {}

    return losses


def test_accumulation_changes_rounding_only() -> None:
    whole = gradients(None)
    assert len(whole) > 20
    for micro in (3, 5, 12):  # 4 micro-batches, ones of another size at the end, one
        parts = gradients(micro)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            scale = float(gradient.abs().max()) + 1e-12
            assert float((parts[name] - gradient).abs().max()) <= 1e-5 * max(scale, 1e-2), (name, micro)


def test_an_unconditional_prior_takes_no_condition() -> None:
    prior, conditioner = made(**{"prior.conditions": {}})
    assert prior.loss(latents(2), conditioner.null(2), Draw(0, 0, 2)).shape == (2,)
    assert prior.loss(latents(2), Cond(), Draw(0, 0, 2)).shape == (2,)


TABLES = [{"kind": "linear"}, {"kind": "scaled-linear"}, {"kind": "cosine"}]


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("table", TABLES, ids=lambda t: t["kind"])
def test_every_table_goes_with_every_parameterisation_of_one(kind: str, table: dict[str, str]) -> None:
    given: dict[str, object] = {"kind": kind, "table": table}
    made_of = {"linear": Table.linear(), "scaled-linear": Table.scaled_linear(), "cosine": Table.cosine()}
    wanted = made_of[table["kind"]]
    parameterization = made(**{"prior.parameterization": given})[0].denoiser.parameterization
    assert type(parameterization).__name__.lower() == kind
    assert torch.equal(parameterization.table.abar, wanted.abar)
    if kind != "eps":
        given["zero_terminal"] = True
        zero = made(**{"prior.parameterization": given})[0].denoiser.parameterization
        assert zero.sigma_max == pytest.approx(4096, rel=1e-6)


def test_edm_and_its_density() -> None:
    prior, _ = made(**{"prior.parameterization": {"kind": "edm", "sigma_data": 0.5}})
    assert prior.denoiser.parameterization == EDM(0.5)
    assert prior.density == LogNormal(0.3, 1.0)
    for shift in (1.0, 3.0):
        density = {"kind": "log-normal", "shift": shift}
        prior, _ = made(**{"prior.parameterization": {"kind": "edm"}, "prior.density": density})
        assert float(prior.density(torch.tensor([0.5]))) == pytest.approx(shift * math.exp(0.3), rel=1e-5)


# --- a learned variance

LEARNED = {"prior.variance": {"kind": "learned", "bound_weight": 0.5}}


@pytest.mark.parametrize("pixels", [True, False])
def test_the_loss_of_a_learned_variance_has_the_bound_beside_it(pixels: bool) -> None:
    prior, conditioner = made("eps", **LEARNED, **({"codec.kind": "pixels"} if pixels else {}))
    assert prior.denoiser.learned_variance
    z, draw = (latents(6) * 127.5).round().clamp(-255, 255) / 127.5, Draw(0, 4, 6)
    cond = conditioner.null(6)
    sigma, noise = prior.density(draw.stratified("time")), draw.normal("noise", SHAPE)
    table = prior.denoiser.parameterization.table
    index = table.time(sigma, rounded=True).long()
    assert torch.equal(table.sigmas[index].float(), sigma)  # drawn from the table itself
    term = step_term(
        prior.denoiser, z, cond, index, noise, decoder=discretized if pixels else gaussian, variance="learned"
    )
    simple = diffusion_loss(prior.denoiser, z, cond, sigma, noise, prior.weight)
    torch.testing.assert_close(
        prior.loss(z, cond, draw), simple + 0.5 * 1000 / math.log(2) * term, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(prior.loss_at(z, cond, 0.5, draw), _simple_at(prior, z, cond, 0.5, noise))


def _simple_at(prior: DiffusionPrior, z: Tensor, cond: Cond, level: float, noise: Tensor) -> Tensor:
    sigma = prior.density(torch.full((len(z),), level))
    return diffusion_loss(prior.denoiser, z, cond, sigma, noise, prior.weight).detach()


def test_a_little_training_brings_the_bound_down() -> None:
    """Of narrow data with a still estimate: the variance learns to be small where the estimate is right."""
    prior, _ = made("x0", **{"prior.variance": {"kind": "learned"}, "prior.conditions": {}})
    z, cond = torch.full((8, *SHAPE), 0.3), Cond()
    optimiser = torch.optim.Adam(prior.parameters(), 5e-3)
    before = likelihood(prior, z, cond, Draw(1, 0, 8), strata=3).value
    for step in range(12):
        optimiser.zero_grad()
        prior.loss(z, cond, Draw(0, step, 8)).mean().backward()
        optimiser.step()
    assert likelihood(prior, z, cond, Draw(1, 0, 8), strata=3).value < before - 0.5


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prior.parameterization": {"kind": "flow"}}, 'parameterization "flow" has no table to learn it on'),
        ({"prior.parameterization": {"kind": "edm"}}, "possible: eps, x0 or v, or a fixed one"),
        ({"prior.density": {"kind": "log-normal"}}, "a learned variance is trained on the table's own levels"),
        ({"sampling.sampler": "ddpm", "sampling.eta": 1.0}, '"ddpm" has its own noise; possible: 0, or euler'),
    ],
)
def test_what_does_not_go_with_a_learned_variance(changes: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        tiny.recipe(Path("x"), {**LEARNED, **changes})
