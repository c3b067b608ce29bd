"""A budget in minutes: how it is split, that it is written once, and that what it prints repeats the run."""

import html
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import moyai
import tiny
from moyai.build import data as build_data
from moyai.build.firststage import build_autoencoder
from moyai.errors import RequestError
from moyai.model import LatentModel
from moyai.recipe import resolve
from moyai.recipe.resolve import DataFacts
from moyai.requests import Request
from moyai.training import budget
from moyai.training.budget import Costs

COSTS = Costs(first_stage_step=0.1, prior_step=0.2, encode=0.01, sampler_forward=0.5, decode=0.1)


def planned(minutes: float = 10.0, costs: Costs = COSTS, **changes: object) -> budget.Plan:
    none = {
        "first_stage.train": {"batch": 8},
        "prior.train": {"batch": 8},
        "budget": {"minutes": minutes, "first_stage": 0.35},
    }
    recipe = tiny.recipe(Path("x"), {**none, **changes})
    return budget.plan(recipe, costs, train=900, held_out=100, flips=False, elapsed=20.0, forwards=40)


def test_the_split_sums_up() -> None:
    plan = planned()
    # 600 s: 20 spent, 10 to encode, 25 to sample, 24 of margin; the rest covers training and its overhead.
    assert plan.seconds["spent before training"] == 20
    assert plan.seconds["encoding"] == 10
    assert plan.seconds["samples and report"] == 25
    assert plan.seconds["margin"] == 24
    training = plan.seconds["first stage"] + plan.seconds["prior"]
    assert training * (1 + budget.OVERHEAD) == pytest.approx(600 - 79, abs=0.5)
    assert sum(plan.seconds.values()) == pytest.approx(600, abs=0.5)
    assert plan.seconds["first stage"] / training == pytest.approx(0.35, abs=0.001)
    assert (plan.first_stage, plan.prior) == (round(0.35 * 521 / 1.06 / 0.1 - 0.5), int(0.65 * 521 / 1.06 / 0.2))


def test_shares_and_fixed_parts() -> None:
    assert planned(**{"budget.first_stage": 0.7}).first_stage == int(0.7 * 521 / 1.06 / 0.1)
    fixed = planned(**{"first_stage.train": {"batch": 8, "steps": 1000}})
    assert fixed.first_stage == 1000
    assert fixed.prior == int((521 / 1.06 - 100) / 0.2)
    fixed = planned(**{"prior.train": {"batch": 8, "steps": 1000}})
    assert fixed.prior == 1000
    assert fixed.first_stage == int((521 / 1.06 - 200) / 0.1)
    assert planned(minutes=0.1).overrides() == "first_stage.train.steps=20 prior.train.steps=20"


def test_twice_the_minutes_or_half_the_cost_give_more_steps() -> None:
    slow, long = planned(), planned(minutes=20)
    fast = planned(costs=Costs(0.05, 0.1, 0.01, 0.5, 0.1))
    assert fast.first_stage == pytest.approx(2 * slow.first_stage, abs=1)
    assert long.prior > 2 * slow.prior


def test_only_what_the_prior_sees_is_encoded_and_paid_for() -> None:
    recipe = tiny.recipe(Path("x"), {f"{s}.train": {"batch": 8} for s in ("first_stage", "prior")})
    recipe = resolve.changed(recipe, {"budget.minutes": 10.0})

    def split(train: int, held_out: int = 100, **costs: float) -> budget.Plan:
        known = {**COSTS.__dict__, "encode": 0.001, **costs}
        return budget.plan(
            recipe, Costs(**known), train=train, held_out=held_out, flips=False, elapsed=20.0, forwards=40
        )

    all_of_them = split(12_000, prior_step=0.02)
    assert all_of_them.prior * 8 >= 12_000
    assert all_of_them.seconds["encoding"] == pytest.approx(12.1, abs=0.01)
    some, fewest = split(1_000_000, prior_step=0.02), split(1_000_000, prior_step=0.4)
    assert 10_000 < some.prior * 8 < 1_000_000
    assert some.seconds["encoding"] == pytest.approx(0.001 * (8 * some.prior + 100), abs=0.02)
    assert sum(some.seconds.values()) == pytest.approx(600, abs=0.5)
    assert fewest.prior * 8 < 10_000
    assert fewest.seconds["encoding"] == pytest.approx(10.1, abs=0.01)
    assert split(12_000, 10**6, prior_step=0.02).seconds["encoding"] == pytest.approx(12.256, abs=0.01)


def test_measuring_leaves_nothing_behind() -> None:
    from training.test_resume import image_set

    facts = DataFacts(channels=1, height=8, width=8, count=30, classes=tiny.CLASSES, fields=("class",))
    recipe = resolve.resolve(tiny.recipe(Path("x")), facts)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    costs = budget.measure(recipe, facts, image_set(30), torch.device("cpu"), seconds=0.01)
    assert torch.equal(torch.rand(3), expected)
    assert min(costs.__dict__.values()) > 0
    one, two = (build_autoencoder(recipe, facts) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_sampler_is_measured_as_the_recipe_draws(guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.test_resume import image_set

    seen = []
    collect = budget.tasks.collect

    def noting(model: LatentModel, request: Request) -> np.ndarray:
        seen.append(request.guidance)
        return collect(model, request)

    monkeypatch.setattr(budget.tasks, "collect", noting)
    facts = DataFacts(channels=1, height=8, width=8, count=30, classes=tiny.CLASSES, fields=("class",))
    recipe = resolve.resolve(tiny.recipe(Path("x"), {"sampling.guidance": guidance}), facts)
    budget.measure(recipe, facts, image_set(30), torch.device("cpu"), seconds=0.01)
    assert set(seen) == {guidance}


def test_what_takes_no_time_is_measured_in_a_few_calls() -> None:
    """The encoding of pixels is the identity: a second of it would be a hundred thousand calls."""
    calls: list[int] = []
    budget._median_seconds(lambda: calls.append(1), torch.device("cpu"))
    assert len(calls) == budget.CALLS


# A whole run -----------------------------------------------------------------------------------------------------


def test_a_codebook_larger_than_the_latents_of_a_batch_is_measured(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "pictures")
    changes = {"first_stage.kind": "vq", "first_stage.codebook": {"size": 200}, "budget.minutes": 0.3}
    few = {**tiny.QUICK, "steps": None}
    recipe = tiny.recipe(root, {**changes, "first_stage.train": few, "prior.train": few})
    images = build_data.read_data(recipe.data, tmp_path / "cache")
    facts = build_data.facts_of(images, images)
    resolved = resolve.resolve(recipe, facts)
    assert resolved.first_stage.train.batch * 4 * 4 < 200  # latents of a batch; there are 960 of all pictures
    costs = budget.measure(resolved, facts, images, torch.device("cpu"), seconds=0.01)
    assert costs.first_stage_step > 0


def costing(first: float, prior: float) -> Callable[[], None]:
    def arrange() -> None:
        budget.measure = lambda *arguments, **options: Costs(first, prior, 1e-4, 1e-3, 1e-3)  # type: ignore[assignment]

    return arrange


def test_minutes_too_few_for_the_fewest_steps_are_told(tmp_path: Path) -> None:
    open_ended = {f"{name}.train": {**tiny.QUICK, "steps": None} for name in ("first_stage", "prior")}
    recipe = tiny.recipe_file(tmp_path / "tiny.json", tiny.folder(tmp_path / "data"), open_ended)
    words = ["train", recipe, "budget.minutes=0.1", "--out", tmp_path / "run"]
    status, said = tiny.moyai(words, tmp_path / "said", costing(1.0, 2.0))
    assert status == 0, said
    assert re.search(r"no fewer steps are taken, and these need about 1\.[0-9] minutes instead of 0\.1", said)


def test_steps_that_a_user_gives_are_taken_whatever_was_planned(tmp_path: Path) -> None:
    open_ended = {f"{name}.train": {**tiny.QUICK, "steps": None} for name in ("first_stage", "prior")}
    recipe = tiny.recipe_file(tmp_path / "tiny.json", tiny.folder(tmp_path / "data"), open_ended)
    run = tmp_path / "run"
    words = ["train", recipe, "budget.minutes=0.5", "--out", run]
    assert tiny.moyai([*words, "--stage", "first_stage"], tmp_path / "said", costing(0.25, 0.5))[0] == 0
    plan = json.loads((run / "plan.json").read_text())
    status, said = tiny.moyai([*words, "prior.train.steps=7"], tmp_path / "said", never_measured)
    assert status == 0, said
    recipe_of = json.loads((run / "recipe.json").read_text())
    assert recipe_of["prior"]["train"]["steps"] == 7 != plan["prior"]
    assert recipe_of["first_stage"]["train"]["steps"] == plan["first_stage"]
    assert json.loads((run / "plan.json").read_text())["overrides"].endswith(" prior.train.steps=7")
    status, said = tiny.moyai([*words, "prior.train.steps=8", "--quiet"], tmp_path / "said", never_measured)
    assert status == 2  # what is trained cannot have had other steps
    assert "prior was begun with other values" in said


def test_a_plan_of_another_network_is_made_anew_while_nothing_is_trained(tmp_path: Path) -> None:
    open_ended = {f"{name}.train": {**tiny.QUICK, "steps": None} for name in ("first_stage", "prior")}
    recipe = tiny.recipe_file(tmp_path / "tiny.json", tiny.folder(tmp_path / "data"), open_ended)
    words = ["train", recipe, "budget.minutes=0.5", "--out", tmp_path / "run", "--stage"]
    prior_first = [*words, "prior"]  # refused, since there is no first stage yet; the plan is made
    assert tiny.moyai(prior_first, tmp_path / "said", costing(0.25, 0.5))[0] == 2
    before = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert tiny.moyai(prior_first, tmp_path / "said", never_measured)[0] == 2
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == before
    assert tiny.moyai([*prior_first, "prior.net.width=8"], tmp_path / "said", costing(0.125, 0.25))[0] == 2
    after = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert after["prior"] > before["prior"]


def test_overrides_are_laid_over_a_recipe_that_is_one_already(tmp_path: Path) -> None:
    made = tiny.recipe(tiny.folder(tmp_path / "data"))
    run = moyai.train(made, "prior.train.steps=3", out=tmp_path / "run", stage="first_stage")
    assert json.loads((run / "recipe.json").read_text())["prior"]["train"]["steps"] == 3
    with pytest.raises(RequestError, match=r"gpu=True lays a file's \[gpu\] table over it"):
        moyai.train(made, gpu=True, out=tmp_path / "gpu")


def never_measured() -> None:
    def refuse(*arguments: object, **options: object) -> Costs:
        raise AssertionError("the clock is asked again")

    budget.measure = refuse  # type: ignore[assignment]


def test_the_plan_is_written_once_and_its_overrides_repeat_the_run(tmp_path: Path) -> None:
    open_ended = {name: {k: v for k, v in tiny.QUICK.items() if k != "steps"} for name in ("first_stage", "prior")}
    changes = {f"{name}.train": train for name, train in open_ended.items()}
    recipe = tiny.recipe_file(tmp_path / "tiny.json", tiny.folder(tmp_path / "data"), changes)
    words = ["train", recipe, "budget.minutes=0.5"]
    status, said = tiny.moyai([*words, "--out", tmp_path / "a"], tmp_path / "said", costing(0.25, 0.5))
    assert status == 0, said
    assert "no fewer steps are taken" not in said
    assert json.loads((tmp_path / "a" / "times.json").read_text())["measuring"] > 0
    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert f"the budget comes to {plan['overrides']}" in said
    assert 20 <= plan["first_stage"] < 40
    # Again: the plan stands, whatever the clock would say now, and so does all that was made.
    status, said = tiny.moyai([*words, "--out", tmp_path / "a"], tmp_path / "said", never_measured)
    assert status == 0, said
    assert json.loads((tmp_path / "a" / "plan.json").read_text()) == plan
    # By its own folder the report is made again, and says how to repeat the run, steps included.
    (tmp_path / "a" / "samples" / "made-of.json").unlink()
    status, said = tiny.moyai(["train", tmp_path / "a"], tmp_path / "said", never_measured)
    assert status == 0, said
    command = f"moyai train {recipe} budget.minutes=0.5 {plan['overrides']}"
    assert html.escape(command) in (tmp_path / "a" / "report.html").read_text()
    # The overrides, without the budget, are the same run.
    repeat = ["train", recipe, *shlex.split(plan["overrides"]), "--out", tmp_path / "b"]
    status, said = tiny.moyai(repeat, tmp_path / "said", never_measured)
    assert status == 0, said
    assert tiny.differences(tiny.outcome(tmp_path / "a"), tiny.outcome(tmp_path / "b")) == []
    # Another budget for a run that has begun is refused.
    status, said = tiny.moyai(
        ["train", recipe, "budget.minutes=9", "--out", tmp_path / "a", "--quiet"], tmp_path / "said", never_measured
    )
    assert status == 2
    assert "was planned for 0.5 minutes, not 9; possible: the old budget" in tiny.one_line(said)
    assert plan["overrides"] in said
