"""What is settled before a run's first step: the data and their split, the recipe as they complete it, the steps.

Whatever the user says is never changed. Steps that nobody gave come from the epochs, or from a budget that is measured
once and kept in plan.json: with what it was measured of, so that another network, device or first stage is measured
anew as long as nothing was trained.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from moyai.build.conditions import build_conditioner
from moyai.build.data import facts_of, read_data, with_tokenizers
from moyai.conditioning.conditioner import Encoding
from moyai.console import Reporter
from moyai.data import report as data_report
from moyai.data import splits
from moyai.data.images import ImageSet
from moyai.data.locate import cache_folder
from moyai.errors import ConfigError
from moyai.files import read_json, write_atomic, write_json_atomic
from moyai.model import told_fields
from moyai.recipe import reading, resolve
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts
from moyai.training import adoption, budget
from moyai.training.first_stage import FirstStageTraining
from moyai.training.perception import perception
from moyai.training.prior import CodeTraining, PriorTraining
from moyai.training.record import DEPENDS, Record

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A run that can begin: its recipe with every key filled in, its data, and what is known of them.

    data: what data.json holds; change: how the data differ from those the run was begun with, "" where they do not;
    perceptual: the network the first stage's distance is taken in; plan: what a budget came to, {} where none was.
    """

    recipe: Recipe
    facts: DataFacts
    train: ImageSet
    held_out: ImageSet
    data: dict[str, Any]
    change: str
    perceptual: nn.Module | None
    plan: dict[str, Any]


def prepare(
    recipe: Recipe,
    record: Record,
    reporter: Reporter,
    progress: Progress,
    device: torch.device,
    *,
    adopted: adoption.Adopted | None = None,
    allow_data_change: bool = False,
    started: float,
) -> Prepared:
    """Read the data, complete and check the recipe, fix the steps, and write down both; `started` is when the run's
    minutes began (`time.perf_counter`). A recipe that is refused leaves no trace."""
    with record.timed("data"):
        images = read_data(recipe.data, cache_folder(), progress)
        train_index, held_out_index = splits.split(images, recipe.data.validation)
    train, held_out = images.subset(train_index), images.subset(held_out_index)
    facts = facts_of(images, train)
    if adopted is not None:
        adopted.check(facts)
    recipe = resolve.resolve(recipe, facts)
    facts = with_tokenizers(recipe, facts, train)
    _check_told(recipe, facts, train, record, reporter)
    change = record.data_change(images, allowed=allow_data_change)
    if change:
        reporter.warn(f"the data have changed since this run was begun: {change}")
    found = data_report.report(images, train_index, held_out_index)
    data = {
        "facts": facts.model_dump(mode="json"),
        "report": found.as_json(),
        "fingerprint": images.fingerprint,
        "files": [[f.name, f.size, f.sha256] for f in images.files],
    }
    for line in data_report.lines(found):
        reporter.say(line)
    for warning in found.warnings:
        reporter.warn(warning)
    # The network the first stage's perceptual distance is taken in: read, or trained on these pictures first.
    needed = "first_stage" in resolve.stages(recipe) and not (adopted or record.finished("first_stage"))
    with record.timed("perceptual network"):
        path = record.folder / "first_stage" / "perceptual.safetensors"
        objective = recipe.first_stage.objective
        distance = perception(objective, train, recipe.seed, path, progress) if needed else None
    ready = Prepared(recipe, facts, train, held_out, data, change, distance, {})
    return _with_steps(ready, record, reporter, device, adopted, started)


def _check_told(recipe: Recipe, facts: DataFacts, train: ImageSet, record: Record, reporter: Reporter) -> None:
    """What is told is wrong now, not after the first stage has been trained."""
    conditioner = build_conditioner(recipe, facts)
    if not any(isinstance(condition, Encoding) for condition in conditioner.conditions.values()):
        told_fields(conditioner, train.subset(np.arange(min(1, train.count))))
    if record.finished("prior"):
        return
    for field, count in conditioner.truncated(train.fields).items():
        reporter.warn(f"{count} of {train.count} {field}s have more tokens than fit and lose their end")


# ---- steps


def _with_steps(
    ready: Prepared,
    record: Record,
    reporter: Reporter,
    device: torch.device,
    adopted: adoption.Adopted | None,
    started: float,
) -> Prepared:
    """Fix the number of steps, once, and what follows from it."""
    path, recipe = record.folder / "plan.json", ready.recipe
    kept: dict[str, Any] = read_json(path) if path.is_file() else {}
    plan, trained = kept, resolve.stages(recipe)
    if any(getattr(recipe, stage).train.steps is None for stage in trained):
        of = _measured_of(recipe, device, adopted)
        if not _stands(plan, of, recipe, record, trained):
            plan = {**_measured_plan(ready, record, reporter, device, adopted, started), "of": of}
        recipe = resolve.with_steps(recipe, plan["first_stage"], plan["prior"])
    if plan:
        plan = _as_trained(plan, recipe)
    kind = CodeTraining if recipe.prior.kind == "codes" else PriorTraining
    looks = {"prior": kind.look(ready.held_out.count)}
    first = FirstStageTraining.look(ready.held_out.count)
    trains = {s: resolve.train_intervals(getattr(recipe, s).train, looks.get(s, first)) for s in trained}
    recipe = resolve.changed(recipe, {f"{s}.train": train.model_dump() for s, train in trains.items()})
    for stage in trained:
        record.check_unchanged(stage, recipe)
    if plan != kept:
        write_json_atomic(path, plan)
    for place in (record.folder, *(record.folder / stage for stage in trained)):
        place.mkdir(exist_ok=True)
        write_atomic(place / "recipe.json", reading.to_json(recipe).encode())
    return replace(ready, recipe=recipe, plan=plan)


def _measured_of(recipe: Recipe, device: torch.device, adopted: adoption.Adopted | None) -> str:
    """What a budget's measuring depends on, as a hash."""
    sections = {key: value for key, value in recipe.model_dump(mode="json").items() if key in DEPENDS["prior"]}
    others = [recipe.sampling.model_dump(mode="json"), recipe.report.model_dump(mode="json"), device.type]
    told = json.dumps([sections, *others, torch.get_num_threads(), adopted is not None], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _stands(plan: dict[str, Any], of: str, recipe: Recipe, record: Record, trained: tuple[str, ...]) -> bool:
    """Whether a plan is there that holds. ConfigError where steps were made by it and the minutes are others now."""
    minutes = recipe.budget.minutes
    if not plan or not any(record.begun(stage) and not adoption.is_adopted(record, stage) for stage in trained):
        return bool(plan) and plan.get("of") == of and plan["minutes"] == minutes
    if plan["minutes"] != minutes:
        raise ConfigError(
            f"{record.folder} was planned for {plan['minutes']:g} minutes, not {minutes:g}; "
            f"possible: the old budget, another --out, or steps: {plan['overrides']}"
        )
    return True


def _measured_plan(
    ready: Prepared,
    record: Record,
    reporter: Reporter,
    device: torch.device,
    adopted: adoption.Adopted | None,
    started: float,
) -> dict[str, Any]:
    recipe, minutes = ready.recipe, ready.recipe.budget.minutes or 0.0
    reporter.say(f"measuring how far {minutes:g} minutes go")
    with record.timed("measuring"):
        costs = budget.measure(recipe, ready.facts, ready.train, device, perceptual=ready.perceptual)
    if adopted or record.finished("first_stage"):  # taken over: the minutes are the prior's
        costs = replace(costs, first_stage_step=0.0)
    made = budget.plan(
        recipe,
        costs,
        train=ready.train.count,
        held_out=ready.held_out.count,
        flips=recipe.data.flip,
        elapsed=time.perf_counter() - started,
        forwards=budget.sampler_forwards(recipe, ready.facts),
    )
    reporter.say(f"the budget comes to {made.overrides()}")
    if (needed := sum(made.seconds.values()) / 60) > 1.1 * minutes:
        reporter.warn(
            f"no fewer steps are taken, and these need about {needed:.1f} minutes instead of {minutes:g}; "
            "possible: more minutes, fewer pictures in the report, smaller networks"
        )
    return {
        "minutes": minutes,
        "first_stage": made.first_stage,
        "prior": made.prior,
        "overrides": made.overrides(),
        "seconds": made.seconds,
    }


def _as_trained(plan: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The plan with the steps that are taken, which a user may have given since."""
    steps = {s: getattr(recipe, s).train.steps or 0 for s in ("first_stage", "prior")}
    taken = budget.Plan(steps["first_stage"] if plan["first_stage"] else 0, steps["prior"], plan["seconds"])
    return {**plan, "first_stage": taken.first_stage, "prior": taken.prior, "overrides": taken.overrides()}
