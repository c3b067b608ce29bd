"""Minutes into steps.

A budget covers everything from the data report to the report. What reading, encoding, sampling and the report need is
set aside first; the rate of each stage is measured in steps that are thrown away, on models that are thrown away; the
counts that result are written into the run before step 1 and printed as the overrides that repeat it. From then on the
run is a function of (recipe, seed, step), and the clock is not asked again.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moyai import tasks
from moyai.build.conditions import build_conditioner
from moyai.build.firststage import build_autoencoder, build_codec, build_rival
from moyai.build.prior import build_prior
from moyai.data.images import ImageSet
from moyai.data.latents import PLAIN, LatentCache
from moyai.diffusion.config import METHODS
from moyai.model import LatentModel, example_rows, told_fields
from moyai.priors.codes import CodePrior
from moyai.randomness import Draw
from moyai.recipe import resolve
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts
from moyai.training import ema
from moyai.training.encoding import wanted
from moyai.training.first_stage import FirstStageTraining
from moyai.training.loop import Stage
from moyai.training.prior import PREVIEW_STEPS, VALIDATION, training_of
from moyai.training.steps import train_step

OVERHEAD = 0.06  # of training: validation, previews, checkpoints
MARGIN = 0.04  # of the whole budget, for what the clock of a shared machine does
LEAST_STEPS = 20
CALLS = 200  # that a rate is measured in, at the most


@dataclass(frozen=True)
class Costs:
    """Seconds, at the recipe's sizes: a step of either stage (0 for a first stage that there is not), one picture
    encoded, a forward of the sampler."""

    first_stage_step: float
    prior_step: float
    encode: float
    sampler_forward: float
    decode: float


@dataclass(frozen=True)
class Plan:
    """What a budget comes to."""

    first_stage: int
    prior: int
    seconds: dict[str, float]

    def overrides(self) -> str:
        first = f"first_stage.train.steps={self.first_stage} " if self.first_stage else ""
        return f"{first}prior.train.steps={self.prior}"


def measure(
    recipe: Recipe,
    facts: DataFacts,
    train: ImageSet,
    device: torch.device,
    *,
    perceptual: nn.Module | None = None,
    seconds: float = 4.0,
) -> Costs:
    """Time every part on throw-away models, about `seconds` for each stage. perceptual: the first stage's distance."""
    small = train.subset(np.arange(min(train.count, recipe.first_stage.train.batch)))
    sized = _with_some_steps(recipe)
    has_first = "first_stage" in resolve.stages(sized)
    # All of the pictures: a codebook starts from more than a batch, and may be larger than the latents of one.
    first_step = _first_stage_seconds(sized, facts, train, device, perceptual, seconds) if has_first else 0.0
    codec = build_codec(sized, facts, build_autoencoder(sized, facts) if has_first else None, device)
    images = small.images(np.arange(min(64, small.count))).to(device)
    encode = _median_seconds(lambda: codec.store(images), device) / len(images)
    conditioner = build_conditioner(sized, facts)
    prior = build_prior(sized, conditioner, codec.shape(), device)
    cache = _latents(codec, small, told_fields(conditioner, small), device)
    model = LatentModel(codec, conditioner, prior, sized, facts)
    model.examples = model.told(small, example_rows(small.count))
    stage = training_of(model, cache, cache, device)
    prior_step = _step_seconds(stage, device, seconds)
    forward, decode = _sampling_seconds(stage.model(), device)
    return Costs(first_step, prior_step, encode, forward, decode)


def _first_stage_seconds(
    recipe: Recipe,
    facts: DataFacts,
    images: ImageSet,
    device: torch.device,
    perceptual: nn.Module | None,
    seconds: float,
) -> float:
    """Seconds of a step, averaged over the run: steps with a discriminator cost more than those before it begins."""
    objective = recipe.first_stage.objective
    shares = [(0, 1.0)]  # a step of the run, and the share of the run that is like it
    if objective.adversarial is not None:
        start = objective.adversarial.start if objective.adversarial.start < 1 else 0.0
        shares = [(0, start), ((recipe.first_stage.train.steps or 1) - 1, 1.0 - start)]
    total = 0.0
    for step, share in shares:
        if share > 0:
            model, rival = build_autoencoder(recipe, facts), build_rival(recipe, facts)
            stage = FirstStageTraining(recipe, model, images, images, device, perceptual=perceptual, rival=rival)
            total += share * _step_seconds(stage, device, seconds / len(shares), at=step)
    return total


def plan(
    recipe: Recipe, costs: Costs, *, train: int, held_out: int, flips: bool, elapsed: float, forwards: int
) -> Plan:
    """Split `budget.minutes`. train, held_out: pictures; forwards: of the sampler (`sampler_forwards`).

    Only pictures that the prior will see are encoded, and what is not encoded leaves time for steps, which see more.
    """
    batch = recipe.prior.train.batch
    few, many = wanted(0, batch, train, flips=flips), train  # the more are paid for, the fewer the prior has steps for
    while many - few > 1:
        middle = (few + many) // 2
        steps = _split(recipe, costs, middle, held_out, flips, elapsed, forwards).prior
        seen = wanted(steps, batch, train, flips=flips)
        few, many = (middle, many) if seen > middle else (few, middle)
    return _split(recipe, costs, many, held_out, flips, elapsed, forwards)


def _split(recipe: Recipe, costs: Costs, train: int, held_out: int, flips: bool, elapsed: float, forwards: int) -> Plan:
    """The plan where `train` pictures are encoded."""
    minutes = recipe.budget.minutes or 0.0
    pictures = train * (2 if flips else 1) + min(held_out, VALIDATION)
    aside = {
        "spent before training": elapsed,
        "encoding": pictures * costs.encode,
        "samples and report": forwards * costs.sampler_forward + 5.0,
        "margin": MARGIN * minutes * 60,
    }
    left = max(0.0, minutes * 60 - sum(aside.values())) / (1 + OVERHEAD)
    fixed_first, fixed_prior = recipe.first_stage.train.steps, recipe.prior.train.steps
    if "first_stage" not in resolve.stages(recipe):
        fixed_first = 0
    if fixed_first is not None:
        first, rest = fixed_first, left - fixed_first * costs.first_stage_step
    elif fixed_prior is not None:
        first = int(max(0.0, left - fixed_prior * costs.prior_step) / costs.first_stage_step)
        rest = fixed_prior * costs.prior_step
    else:
        share = left * recipe.budget.first_stage
        first, rest = int(share / costs.first_stage_step), left - share
    prior = fixed_prior if fixed_prior is not None else int(max(0.0, rest) / costs.prior_step)
    first, prior = 0 if fixed_first == 0 else max(LEAST_STEPS, first), max(LEAST_STEPS, prior)
    seconds = {**aside, "first stage": first * costs.first_stage_step, "prior": prior * costs.prior_step}
    seconds["validation, previews, checkpoints"] = OVERHEAD * (seconds["first stage"] + seconds["prior"])
    return Plan(first, prior, {name: round(value, 2) for name, value in seconds.items()})


def sampler_forwards(recipe: Recipe, facts: DataFacts) -> int:
    """The forwards of the sampler that a run's report and its last preview take, over batches of pictures. Other
    previews are as many as OVERHEAD pays for (`resolve.train_intervals`)."""
    sampling, pictures = recipe.sampling, recipe.report
    count = pictures.per_class * len(facts.classes) if facts.classes else pictures.samples
    evaluations, preview = sampling.steps * METHODS[sampling.sampler].evaluations, PREVIEW_STEPS
    if recipe.prior.kind == "codes":  # a forward is a code
        factor = recipe.first_stage.net.factor or 1
        evaluations = preview = -(-facts.height // factor) * -(-facts.width // factor)
    return -(-count // sampling.batch) * evaluations + 40 + preview


def _with_some_steps(recipe: Recipe) -> Recipe:
    data: dict[str, Any] = recipe.model_dump()
    for section in ("first_stage", "prior"):
        data[section]["train"]["steps"] = data[section]["train"]["steps"] or 1000
    return Recipe.model_validate(data)


def _step_seconds(stage: Stage, device: torch.device, seconds: float, *, at: int = 0) -> float:
    """Of steps that are like step `at` of the run."""
    gamma = ema.gamma_of(stage.state.config.ema.std)

    def step() -> None:
        batch = stage.batch(stage.state.step).to(device)
        draw = Draw(0, at, len(batch), stage=stage.name, device=device)
        train_step(stage.state, stage.losses, batch, draw, gamma, stage.applied)

    return _median_seconds(step, device, seconds=seconds)


def _median_seconds(f: Callable[[], object], device: torch.device, *, seconds: float = 1.0) -> float:
    """The median time of a call after two that warm up: at least two more, about `seconds` in all, and no more than
    CALLS, of which a second of something that takes no time (the encoding of pixels) would hold a hundred thousand."""
    times: list[float] = []
    while len(times) < 4 or (sum(times) < seconds and len(times) < CALLS):
        begin = time.perf_counter()
        f()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def _latents(codec: Any, images: ImageSet, told: Mapping[str, np.ndarray], device: torch.device) -> LatentCache:
    stored = codec.store(images.images(np.arange(images.count)).to(device))
    return LatentCache({PLAIN: {name: t.cpu().numpy() for name, t in stored.items()}}, told, {})


def _sampling_seconds(model: LatentModel, device: torch.device) -> tuple[float, float]:
    """Seconds of one forward at the recipe's batch, guided where the recipe's samples are, and of decoding it."""
    settings: dict[str, Any] = {} if isinstance(model.prior, CodePrior) else {"steps": 2, "sampler": "euler"}
    request = tasks.request(model, n=1, **settings)
    forward = _median_seconds(lambda: tasks.collect(model, request), device) / request.steps
    z = torch.zeros(request.batch, *model.codec.shape(), device=device)
    return forward, _median_seconds(lambda: model.decode(z), device)
