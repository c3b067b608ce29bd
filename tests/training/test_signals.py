"""Signals: the step is finished and saved, the exit status tells which, a second one leaves at once."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from moyai import cli
from moyai.checkpoints import native
from moyai.data import latents
from moyai.training import preparing
from moyai.training import run as run_module
from moyai.training.first_stage import FirstStageTraining
from moyai.training.prior import PriorTraining
from moyai.training.signals import Signals


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("signals")
    return tiny.recipe_file(home / "tiny.json", tiny.folder(home / "data"), {"prior.train.preview_every": 4})


@pytest.fixture(scope="module")
def straight(recipe: Path) -> dict[str, Any]:
    status, said = tiny.moyai(["train", recipe, "--out", recipe.parent / "straight"], recipe.parent / "said")
    assert status == 0, said
    return tiny.outcome(recipe.parent / "straight")


def signalled(owner: Any, name: str, count: int, *numbers: int, pause: float = 0.0) -> Callable[[], None]:
    """The process gets signals, one after the other, as a function is called for the `count`-th time."""

    def arrange() -> None:
        original = getattr(owner, name)
        calls = 0

        def replaced(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                for number in numbers:
                    os.kill(os.getpid(), number)
                time.sleep(pause)
            return original(*arguments, **options)

        setattr(owner, name, replaced)

    return arrange


MOMENTS: dict[str, tuple[Any, str, int, int, str]] = {
    # where, how often it was called before, the signal, what must be there afterwards
    "first step": (FirstStageTraining, "batch", 1, signal.SIGTERM, "first_stage/checkpoints/step-000001"),
    "middle": (FirstStageTraining, "losses", 7, signal.SIGINT, "first_stage/checkpoints/step-000007"),
    "validation": (FirstStageTraining, "validate", 1, signal.SIGTERM, "first_stage/checkpoints/step-000006"),
    "a save": (native, "prune", 1, signal.SIGTERM, "first_stage/checkpoints/step-000005"),
    "last step": (FirstStageTraining, "batch", 12, signal.SIGTERM, "first_stage/model"),
    "reading": (preparing, "read_data", 1, signal.SIGINT, ".lock"),
    "encoding": (latents, "build", 1, signal.SIGTERM, "first_stage/model"),
    "preview": (PriorTraining, "preview", 1, signal.SIGTERM, "prior/checkpoints/step-000004"),
    "second stage": (PriorTraining, "batch", 9, signal.SIGINT, "prior/checkpoints/step-000009"),
    "report": (run_module.report, "write", 1, signal.SIGTERM, "prior/model"),
}


def test_one_run_stopped_at_every_moment(recipe: Path, straight: dict[str, Any], tmp_path: Path) -> None:
    stopped = 0
    for name, (owner, function, count, number, left) in MOMENTS.items():
        out = tmp_path / name.replace(" ", "-")
        status, said = tiny.moyai(
            ["train", recipe, "--out", out], tmp_path / "said", signalled(owner, function, count, number)
        )
        assert status == 128 + number, (name, said)
        last = said.splitlines()[-1]
        assert last.startswith(f"moyai: stopped by {signal.Signals(number).name}; "), (name, said)
        assert "Traceback" not in said
        assert (out / left).exists(), name
        newest = native.newest(out / left.split("/")[0] / "checkpoints", strict=True)
        assert "/step-" not in left or (newest is not None and newest.path == out / left), name
        stopped += 1
        if name in ("validation", "last step", "encoding", "preview", "report"):
            status, said = tiny.moyai(["train", recipe, "--out", out, "--quiet"], tmp_path / "said")
            assert status == 0, (name, said)
            assert tiny.differences(straight, tiny.outcome(out)) == [], name
    assert stopped == len(MOMENTS)


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_leaves_at_once(first: int, second: int, recipe: Path, tmp_path: Path) -> None:
    """The preview would last a minute; whoever is still there then did not leave."""
    before = signalled(PriorTraining, "preview", 1, first, second, pause=60.0)
    pid = tiny.start(arranged(before, recipe, tmp_path / "run"), tmp_path / "said")
    assert tiny.ended(pid, within=50.0) == 128 + second
    assert not (tmp_path / "run" / "prior" / "model").exists()
    status, said = tiny.moyai(["train", recipe, "--out", tmp_path / "run", "--stage", "prior"], tmp_path / "said")
    assert status == 0, said


def arranged(before: Callable[[], None], recipe: Path, out: Path) -> Callable[[], int]:
    def go() -> int:
        before()
        return cli.main(["train", str(recipe), "--out", str(out)])

    return go


def test_sigusr1_saves_and_goes_on(recipe: Path, straight: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = signalled(FirstStageTraining, "batch", 3, signal.SIGUSR1)
    status, said = tiny.moyai(["train", recipe, "--out", out], tmp_path / "said", before)
    assert status == 0, said
    assert "saved first stage at step 3" in said
    assert [c.step for c in native.listed(out / "first_stage" / "checkpoints")] == [3, 5, 10]
    assert tiny.differences(straight, tiny.outcome(out)) == []


def test_handlers_are_given_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (signals.stopping, signals.saving) == (signal.SIGTERM, True)
    assert {number: signal.getsignal(number) for number in before} == before
