"""A step that is not finite is not applied: weights, averages and optimiser stay as they were, and it is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from moyai import cli
from moyai.batch import Batch
from moyai.firststage.codec import LatentCodec
from moyai.firststage.posterior import DiagonalGaussian
from moyai.randomness import Draw
from moyai.training import steps
from moyai.training.config import TrainConfig
from moyai.training.first_stage import FirstStageTraining
from moyai.training.loop import Runner
from moyai.training.state import TrainState
from moyai.training.steps import NonFiniteError, train_step

NAN, INF = float("nan"), float("inf")


def state_of(seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    return TrainState.new({"net": torch.nn.Linear(3, 2)}, TrainConfig(steps=10, batch=6, micro_batch=3))


def squares(state: TrainState) -> steps.LossOf:
    def loss_of(batch: Batch, draw: Draw) -> steps.Losses:
        assert batch.images is not None
        return state.modules["net"](batch.images).square().sum(1), {}

    return loss_of


def batch_of(value: float = 1.0) -> Batch:
    images = torch.arange(18.0).reshape(6, 3) / 18
    images[4, 1] *= value
    return Batch(torch.arange(100, 106), images)


def poisoned_gradient(state: TrainState) -> None:
    weight = state.modules["net"].weight
    weight.register_hook(lambda g: g + torch.tensor([[0.0, INF, 0.0], [0.0, 0.0, 0.0]]))


def parts(state: TrainState) -> dict[str, str]:
    found = tiny.digests(state.contents())
    del found["state"]
    return found


POISONS: dict[str, tuple[Callable[[TrainState], Any], float, str]] = {
    "an input": (lambda state: None, NAN, "the loss of samples [104] is not finite"),
    "a loss": (lambda state: None, INF, "the loss of samples [104] is not finite"),
    "a gradient": (
        poisoned_gradient,
        1.0,
        "the gradient of net.weight on samples [100, 101, 102, 103, 104, 105] is not finite",
    ),
}


def applied(poison: str) -> list[str]:
    """The parts of a state that a poisoned step changed; the checker of this file."""
    arrange, value, message = POISONS[poison]
    state = state_of()
    train_step(state, squares(state), batch_of(), Draw(0, 0, 6), 16.0)
    before = parts(state)
    arrange(state)
    said = ""
    try:
        train_step(state, squares(state), batch_of(value), Draw(0, 1, 6), 16.0)
    except NonFiniteError as error:
        said = str(error)
    assert said in ("", f"step 1: {message}; the step is not applied")
    assert (state.step, state.updates, state.skipped, state.in_a_row) in ((2, 1, 1, 1), (2, 2, 0, 0))
    return tiny.differences(before, parts(state))


@pytest.mark.parametrize("poison", POISONS)
def test_nothing_of_a_poisoned_step_is_applied(poison: str) -> None:
    assert applied(poison) == []


@pytest.mark.parametrize("poison", POISONS)
def test_the_checker_sees_a_step_that_is_applied(poison: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_refuse", lambda state, why: None)
    assert applied(poison) == ["ema", "model", "optimizer"]


def test_a_good_step_ends_the_row() -> None:
    state = state_of()
    for value in (NAN, NAN, 1.0, NAN):
        try:
            train_step(state, squares(state), batch_of(value), Draw(0, state.step, 6), 16.0)
        except NonFiniteError:
            continue
    assert (state.step, state.updates, state.skipped, state.in_a_row) == (4, 1, 3, 1)


# A whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("nonfinite")
    return tiny.recipe_file(home / "tiny.json", tiny.folder(home / "data"))


def at_steps(wanted: set[int], poison: str) -> Callable[[], None]:
    """Poison what the code sees within the chosen steps of a stage."""

    def arrange() -> None:
        one_step, now = Runner._one_step, {"step": -1, "stage": ""}

        def watched(self: Runner) -> None:
            now.update(step=self.stage.state.step, stage=self.stage.name)
            one_step(self)

        Runner._one_step = watched  # type: ignore[method-assign]

        def spoiled(values: Tensor, stage: str) -> Tensor:
            hit = now["stage"] == stage and now["step"] in wanted
            return values.clone().index_fill_(0, torch.tensor([1]), NAN) if hit else values

        if poison == "input":
            batch = FirstStageTraining.batch

            def bad(self: FirstStageTraining, step: int) -> Batch:
                made = batch(self, step)
                assert made.images is not None
                return Batch(made.index, spoiled(made.images, "first_stage"), None, made.fields)

            FirstStageTraining.batch = bad  # type: ignore[method-assign]
        elif poison == "posterior":
            sample = DiagonalGaussian.sample
            DiagonalGaussian.sample = lambda self, draw: spoiled(sample(self, draw), "first_stage")  # type: ignore[method-assign]
        else:
            of = LatentCodec.latents
            LatentCodec.latents = lambda self, stored, draw: spoiled(of(self, stored, draw), "prior")  # type: ignore[method-assign]

    return arrange


def everything_finite(run: Path) -> list[str]:
    files = [*run.glob("*/checkpoints/*/*.safetensors"), *run.glob("*/model/*.safetensors")]
    assert files
    return [f"{file}: {n}" for file in files for n, t in load_file(file).items() if not bool(torch.isfinite(t).all())]


@pytest.mark.parametrize(
    ("poison", "stage", "wanted"),
    [("input", "first_stage", {0, 7}), ("posterior", "first_stage", {4, 5, 6}), ("latent", "prior", {3, 9, 10, 11})],
)
def test_a_run_goes_on_without_the_poisoned_steps(
    poison: str, stage: str, wanted: set[int], recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    status, said = tiny.moyai(["train", recipe, "--out", out], tmp_path / "said", at_steps(wanted, poison))
    assert status == 0, said
    events = [line for line in tiny.lines(out / stage / "log.jsonl") if "event" in line]
    assert [line["step"] for line in events] == sorted(step + 1 for step in wanted)
    for line in events:
        assert "the loss of samples [" in line["event"]
        assert f"warning: {line['event']}" in said
    manifest = tiny.native.verify(out / stage / "model")
    assert manifest["info"]["skipped"] == len(wanted)
    assert everything_finite(out) == []


def test_after_five_in_a_row_it_stops(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, said = tiny.moyai(["train", recipe, "--out", out], tmp_path / "said", at_steps(set(range(6, 100)), "input"))
    assert status == 4
    last = said.splitlines()[-1]
    assert last.startswith("moyai: first stage: 5 non-finite steps in a row, the last: step 10: the loss of samples [")
    assert "the last good checkpoint is step 10" in last
    assert "Traceback" not in said
    assert everything_finite(out) == []
    assert cli.main(["inspect", str(out)]) == 0


def test_patience_of_one_stops_at_once(recipe: Path, tmp_path: Path) -> None:
    words = ["train", recipe, "first_stage.train.nonfinite.patience=1", "--out", tmp_path / "run"]
    status, said = tiny.moyai(words, tmp_path / "said", at_steps({2}, "posterior"))
    assert status == 4
    assert "1 non-finite steps in a row, the last: step 2" in said
    assert "no checkpoint was written yet" in said


def test_samples_named_are_those_of_the_batch() -> None:
    index = np.array([7, 3, 11, 2, 5, 13])
    state = state_of()
    batch = Batch(torch.from_numpy(index), batch_of(NAN).images)
    with pytest.raises(NonFiniteError, match=r"samples \[5\]"):
        train_step(state, squares(state), batch, Draw(0, 0, 6), 16.0)
