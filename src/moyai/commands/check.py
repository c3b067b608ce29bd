"""`moyai check`: a recipe tried without training it.

Everything is built on the meta device first (shapes and sizes, no memory), then a hundred pictures are read, each
stage takes a few steps, and what they cost is stated: parameters, memory, minutes, and how a budget splits.
"""

import time
from collections.abc import Iterator

import torch

from moyai import build
from moyai.data import splits
from moyai.data.locate import cache_folder
from moyai.recipe import resolve
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts
from moyai.training import budget
from moyai.training.loop import peak_gib
from moyai.training.stages import parameter_count

READ = 100
COPIES = 5  # of every trained value: live, average, gradient and AdamW's two


def check(recipe: Recipe, device: torch.device) -> Iterator[str]:
    """Yields what was found, a sentence at a time. Raises the errors that training would raise."""
    begun = time.perf_counter()
    few = resolve.changed(recipe, {"data.limit": min(READ, recipe.data.limit or READ)})
    images = build.read_data(few.data, cache_folder())
    train, _ = splits.split(images, recipe.data.validation)
    channels, height, width = images.shape
    facts = DataFacts(
        channels=channels, height=height, width=width, bits=images.bits, count=len(train), classes=images.classes
    )
    kinds = f"{len(images.classes) or 'no'} classes"
    yield f"data: {channels} x {height} x {width}, {images.bits} bits, {kinds}; read {images.count}"
    for bad in images.bad:
        yield f"unreadable: {bad.name}: {bad.reason}"
    resolved = resolve.resolve(recipe, facts)
    yield from _sizes(resolved, facts)
    costs = budget.measure(resolved, facts, images.subset(train), device)
    for name, stage, seconds in (
        ("first stage", resolved.first_stage.train, costs.first_stage_step),
        ("prior", resolved.prior.train, costs.prior_step),
    ):
        length = f", {stage.steps} steps take {stage.steps * seconds / 60:.1f} minutes" if stage.steps else ""
        yield f"{name}: {stage.batch / seconds:.0f} images/s, {seconds * 1000:.0f} ms a step of {stage.batch}{length}"
    if resolved.budget.minutes is not None and None in (resolved.first_stage.train.steps, resolved.prior.train.steps):
        elapsed = time.perf_counter() - begun
        plan = budget.plan(resolved, costs, pictures=0, flips=resolved.data.flip, elapsed=elapsed, forwards=200)
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in plan.seconds.items())
        yield f"{resolved.budget.minutes:g} minutes would be split: {parts}; about {plan.overrides()}"
    yield f"peak memory so far: {peak_gib():.2f} GiB"


def _sizes(recipe: Recipe, facts: DataFacts) -> Iterator[str]:
    with torch.device("meta"):
        first = build.autoencoder(recipe, facts)
        told = build.conditioner(recipe, facts)
    factor = first.factor
    shape = (first.channels, -(-facts.height // factor), -(-facts.width // factor))
    with torch.device("meta"):
        net = build.net(recipe, told, shape)
    for name, count in (("first stage", parameter_count(first)), ("prior", parameter_count(net, told))):
        yield f"{name}: {count:,} parameters, {count * 4 * COPIES / 2**20:.0f} MiB with average, gradient and optimiser"
    fewer = facts.channels * facts.height * facts.width / torch.Size(shape).numel()
    yield f"latents: {' x '.join(map(str, shape))}, {fewer:.1f} times fewer values"
