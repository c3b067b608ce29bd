"""`moyai check`: a recipe tried without training it.

Everything is built on the meta device first (shapes and sizes, no memory), then a hundred pictures are read, each
stage takes a few steps, and what they cost is stated: parameters, memory, minutes, and how a budget splits.
"""

import time
from collections.abc import Iterator

import torch
from torch import nn

from moyai.build.conditions import build_conditioner
from moyai.build.data import facts_of, read_data, with_tokenizers
from moyai.build.firststage import build_autoencoder, build_codec, build_rival
from moyai.build.prior import build_net
from moyai.data import splits
from moyai.data.locate import cache_folder
from moyai.recipe import resolve
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts
from moyai.training import budget
from moyai.training.loop import peak_gib
from moyai.training.perception import perception
from moyai.training.state import parameter_count

READ = 100
COPIES = 5  # of every trained value: live, average, gradient and AdamW's two


def check(recipe: Recipe, device: torch.device) -> Iterator[str]:
    """Yields what was found, a sentence at a time. Raises the errors that training would raise."""
    begun = time.perf_counter()
    few = resolve.changed(recipe, {"data.limit": min(READ, recipe.data.limit or READ)})
    images = read_data(few.data, cache_folder())
    train, _ = splits.split(images, recipe.data.validation)
    facts = facts_of(images, images.subset(train))
    channels, height, width = images.shape
    kinds = f"{len(images.classes) or 'no'} classes"
    if images.groups is not None:
        kinds += f", {len(set(images.groups.tolist()))} cases"
    yield f"data: {channels} x {height} x {width}, {images.bits} bits, {kinds}; read {images.count}"
    for bad in images.bad:
        yield f"unreadable: {bad.name}: {bad.reason}"
    resolved = resolve.resolve(recipe, facts)
    facts = with_tokenizers(resolved, facts, images.subset(train))
    yield from _sizes(resolved, facts)
    distance = perception(resolved.first_stage.objective, images)
    costs = budget.measure(resolved, facts, images.subset(train), device, perceptual=distance)
    stages = resolve.stages(resolved)
    for name, stage, seconds in (
        ("first_stage", resolved.first_stage.train, costs.first_stage_step),
        ("prior", resolved.prior.train, costs.prior_step),
    ):
        if name not in stages:
            continue
        length = f", {stage.steps} steps take {stage.steps * seconds / 60:.1f} minutes" if stage.steps else ""
        shown = name.replace("_", " ")
        yield f"{shown}: {stage.batch / seconds:.0f} images/s, {seconds * 1000:.0f} ms a step of {stage.batch}{length}"
    open_ended = any(getattr(resolved, stage).train.steps is None for stage in stages)
    if resolved.budget.minutes is not None and open_ended:
        elapsed = time.perf_counter() - begun
        plan = budget.plan(
            resolved,
            costs,
            train=0,  # how many there are is not known: a hundred were read
            held_out=0,
            flips=resolved.data.flip,
            elapsed=elapsed,
            forwards=budget.sampler_forwards(resolved, facts),
        )
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in plan.seconds.items())
        yield f"{resolved.budget.minutes:g} minutes would be split: {parts}; about {plan.overrides()}"
    yield f"peak memory so far: {peak_gib():.2f} GiB"


def _sizes(recipe: Recipe, facts: DataFacts) -> Iterator[str]:
    with torch.device("meta"):
        told = build_conditioner(recipe, facts)
        trained = build_autoencoder(recipe, facts) if "first_stage" in resolve.stages(recipe) else None
        rival = build_rival(recipe, facts) if trained is not None else None
        shape = build_codec(recipe, facts, trained, "meta").shape()
        net = build_net(recipe, told, shape)
    modules: dict[str, list[nn.Module | None]] = {
        "first stage": [trained],
        "discriminator": [rival],
        "prior": [net, told],
    }
    for name, members in modules.items():
        count = parameter_count(*(module for module in members if module is not None))
        if not count:
            continue
        yield f"{name}: {count:,} parameters, {count * 4 * COPIES / 2**20:.0f} MiB with average, gradient and optimiser"
    fewer = facts.channels * facts.height * facts.width / torch.Size(shape).numel()
    yield f"latents: {' x '.join(map(str, shape))}, {fewer:.1f} times fewer values"
