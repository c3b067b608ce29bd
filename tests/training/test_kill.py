"""kill -9 at any moment of a whole run: the same command, given again, ends with the same bits."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from checkpoints.forked import die
from moyai.checkpoints import native
from moyai.data import latents
from moyai.training import run as run_module
from moyai.training.loop import Runner

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("kill")
    return tiny.recipe_file(home / "tiny.json", tiny.folder(home / "data"))


@pytest.fixture(scope="module")
def straight(recipe: Path) -> tuple[Outcome, float]:
    """What a run that nothing cuts off comes to, and how many seconds it takes."""
    begin = time.monotonic()
    status, said = tiny.moyai(["train", recipe, "--out", recipe.parent / "straight"], recipe.parent / "said")
    assert status == 0, said
    return tiny.outcome(recipe.parent / "straight"), time.monotonic() - begin


def command(recipe: Path, out: Path, before: Callable[[], None] = lambda: None) -> Callable[[], int]:
    def go() -> int:
        before()
        return tiny.cli.main(["train", str(recipe), "--out", str(out)])

    return go


def check(out: Path, expected: Outcome) -> None:
    found = tiny.outcome(out)
    assert tiny.differences(expected, found) == []
    for stage in ("first_stage", "prior"):
        assert tiny.log_mistakes(found[f"{stage} log"], 12, 2) == []
    left = [p for p in out.rglob(".*") if p.name.startswith((".staging", ".aside", ".trash"))]
    assert left == []


def killed_at_random(recipe: Path, straight: tuple[Outcome, float], kills: int, seed: int, home: Path) -> None:
    expected, seconds = straight
    rng = np.random.default_rng(seed)
    done = runs = 0
    while done < kills:
        out = home / f"run-{runs}"
        runs += 1
        while True:
            pid = tiny.start(command(recipe, out), home / "said")
            moment = rng.uniform(0.05, 0.8) * seconds if done < kills else 600.0
            status = tiny.ended(pid, within=moment)
            if status is not None:
                break
            os.kill(pid, 9)
            status = tiny.wait(pid)
            if status != -9:  # it ended by itself in that moment
                break
            done += 1
        assert status == 0, (home / "said").read_text()
        check(out, expected)


def test_killed_ten_times_at_random(recipe: Path, straight: tuple[Outcome, float], tmp_path: Path) -> None:
    killed_at_random(recipe, straight, 10, 1, tmp_path)


@pytest.mark.slow
def test_killed_fifty_times_at_random(recipe: Path, straight: tuple[Outcome, float], tmp_path: Path) -> None:
    killed_at_random(recipe, straight, 50, 2, tmp_path)


# At chosen points ------------------------------------------------------------------------------------------------

EXPORT = (
    "before model.safetensors",
    "inside model.safetensors",
    "before the manifest",
    "after the fsync of the folder",
    "before the rename",
    "after the rename",
)


def dies_in_export(stage: str, point: str) -> Callable[[], None]:
    """The kill comes at a point of committing the finished model of a stage."""

    def arrange() -> None:
        finish = Runner._finish

        def fatal(self: Runner) -> None:
            if self.stage.name == stage:
                self.fault = lambda here: die() if here == point else None
            finish(self)

        Runner._finish = fatal  # type: ignore[method-assign]

    return arrange


def dies_in_a_snapshot(stage: str) -> Callable[[], None]:
    """The kill comes as the first snapshot of a stage has been written, but has no name yet."""

    def arrange() -> None:
        snapshot = Runner._snapshot

        def fatal(self: Runner) -> None:
            if self.stage.name == stage:
                self.fault = lambda here: die() if here == "before the rename" else None
            snapshot(self)

        Runner._snapshot = fatal  # type: ignore[method-assign]

    return arrange


def dies_calling(module: Any, name: str, count: int, *, after: bool = False) -> Callable[[], None]:
    """The kill comes as a function is called for the `count`-th time, or has returned."""

    def arrange() -> None:
        original = getattr(module, name)
        calls = 0

        def fatal(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count and not after:
                die()
            result = original(*arguments, **options)
            if calls == count:
                die()
            return result

        setattr(module, name, fatal)

    return arrange


def dies_measuring(point: str) -> Callable[[], None]:
    """The kill comes at a point of committing the statistics of the latents."""

    def arrange() -> None:
        commit = native.commit

        def fatal(parent: Path, name: str, *arguments: Any, **options: Any) -> Path:
            if name == "statistics":
                options["fault"] = lambda here: die() if here == point else None
            return commit(parent, name, *arguments, **options)

        native.commit = fatal  # type: ignore[assignment]

    return arrange


@pytest.fixture(scope="module")
def at_the_end(recipe: Path) -> dict[str, Path]:
    """Runs that end before a stage does, to be copied: a kill then costs no whole run."""
    starts = {}
    for stage, before in (
        ("first_stage", dies_in_export("first_stage", "before model.safetensors")),
        ("latents", dies_calling(run_module.latents, "build", 1)),
        ("prior", dies_in_export("prior", "before model.safetensors")),
        ("report", dies_calling(run_module.report, "write", 1)),
    ):
        out = recipe.parent / f"until-{stage}"
        assert tiny.wait(tiny.start(command(recipe, out, before), recipe.parent / "said")) == -9
        starts[stage] = out
    return starts


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


@pytest.mark.parametrize("stage", ["first_stage", "prior"])
def test_killed_while_the_finished_model_is_written(
    stage: str, recipe: Path, straight: tuple[Outcome, float], at_the_end: dict[str, Path], tmp_path: Path
) -> None:
    out = copied(at_the_end[stage], tmp_path / "run")
    for point in EXPORT if stage == "prior" else EXPORT[1::4]:  # in one run: each finds what the last one left
        assert tiny.wait(tiny.start(command(recipe, out, dies_in_export(stage, point)), tmp_path / "said")) == -9, point
        if (out / stage / "model").exists():
            assert point == "after the rename"
            native.verify(out / stage / "model")
            break
    assert tiny.wait(tiny.start(command(recipe, out), tmp_path / "said")) == 0
    check(out, straight[0])


def test_killed_while_a_snapshot_is_written(
    recipe: Path, straight: tuple[Outcome, float], at_the_end: dict[str, Path], tmp_path: Path
) -> None:
    out = copied(at_the_end["latents"], tmp_path / "run")
    assert tiny.wait(tiny.start(command(recipe, out, dies_in_a_snapshot("prior")), tmp_path / "said")) == -9
    assert [path.name[:9] for path in (out / "prior" / "snapshots").iterdir()] == [".staging-"]
    assert tiny.wait(tiny.start(command(recipe, out), tmp_path / "said")) == 0
    check(out, straight[0])


LATENTS = {
    "first variant begun": dies_calling(latents, "_create", 1, after=True),
    "second array begun": dies_calling(latents, "_create", 2, after=True),
    "training set encoded": dies_calling(latents, "build", 1, after=True),
    "before the statistics": dies_measuring("before statistics.safetensors"),
    "statistics staged": dies_measuring("before the rename"),
    "statistics named": dies_measuring("after the rename"),
    "before the seal": dies_calling(latents, "seal", 1),
    "one half sealed": dies_calling(latents, "seal", 1, after=True),
}


def test_killed_while_latents_are_written(
    recipe: Path, straight: tuple[Outcome, float], at_the_end: dict[str, Path], tmp_path: Path
) -> None:
    out = copied(at_the_end["latents"], tmp_path / "run")
    for name, before in LATENTS.items():
        assert tiny.wait(tiny.start(command(recipe, out, before), tmp_path / "said")) == -9, name
        assert not (out / "prior" / "model").exists()
    assert tiny.wait(tiny.start(command(recipe, out), tmp_path / "said")) == 0
    check(out, straight[0])


def test_killed_while_the_report_is_written(
    recipe: Path, straight: tuple[Outcome, float], at_the_end: dict[str, Path], tmp_path: Path
) -> None:
    out = copied(at_the_end["report"], tmp_path / "run")
    for count in (1, 2):
        before = dies_calling(run_module.report.pictures, "save_png", count, after=True)
        assert tiny.wait(tiny.start(command(recipe, out, before), tmp_path / "said")) == -9
        assert not (out / "report.html").exists()
    assert tiny.wait(tiny.start(command(recipe, out), tmp_path / "said")) == 0
    check(out, straight[0])


# Torn checkpoints ------------------------------------------------------------------------------------------------


def tear(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flip":
        path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("model.safetensors", "cut"),
        ("optimizer.safetensors", "flip"),
        ("state.json", "gone"),
        ("MANIFEST.json", "cut"),
    ],
)
def test_a_torn_checkpoint_is_passed_over_and_named(
    file: str, how: str, recipe: Path, straight: tuple[Outcome, float], at_the_end: dict[str, Path], tmp_path: Path
) -> None:
    out = copied(at_the_end["prior"], tmp_path / "run")
    newest = native.newest(out / "prior" / "checkpoints")
    assert newest is not None
    assert newest.step == 10
    tear(newest.path / file, how)
    status, said = tiny.moyai(["train", recipe, "--out", out], tmp_path / "said")
    assert status == 0, said
    warned = next(line for line in said.splitlines() if "skipped a broken checkpoint" in line)
    assert f"step-000010/{file}" in warned
    assert "going on from step 5 of 12" in said
    found = tiny.outcome(out)
    assert tiny.differences(straight[0], found) == []
    assert tiny.log_mistakes(found["prior log"], 12, 2) == []
