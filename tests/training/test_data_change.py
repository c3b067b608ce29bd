"""A run goes on only with the data and the recipe that it was begun with; what differs is told."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from moyai.checkpoints import native
from moyai.training.prior import PriorTraining
from training.test_signals import signalled


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, tiny.json, and run/, a run that was stopped in step 7 of the prior."""
    home = tmp_path_factory.mktemp("change")
    recipe = tiny.recipe_file(home / "tiny.json", tiny.folder(home / "data"))
    before = signalled(PriorTraining, "batch", 7, signal.SIGTERM)
    status, said = tiny.moyai(["train", recipe, "--out", home / "run"], home / "said", before)
    assert status == 143, said
    return home


def another(begun: Path, home: Path) -> Path:
    shutil.copytree(begun / "run", home / "run")
    shutil.copytree(begun / "data", home / "data")
    return tiny.recipe_file(home / "tiny.json", home / "data")


def added(data: Path) -> str:
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(data / "disc" / "zz.png")
    return "disc/zz.png was added"


def removed(data: Path) -> str:
    (data / "disc" / "000.png").unlink()
    return "disc/000.png was removed"


def altered(data: Path) -> str:
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(data / "ring" / "001.png")
    return "ring/001.png was altered"


def renamed(data: Path) -> str:
    (data / "square" / "002.png").rename(data / "square" / "two.png")
    return "square/002.png was renamed to square/two.png"


@pytest.mark.parametrize("change", [added, removed, altered, renamed])
def test_other_data_are_refused_and_the_first_difference_named(
    change: Callable[[Path], str], begun: Path, tmp_path: Path
) -> None:
    recipe = another(begun, tmp_path)
    expected = change(tmp_path / "data")
    before = (tmp_path / "run" / "data.json").read_bytes()
    for _ in range(2):  # being refused does not make it right
        status, said = tiny.moyai(["train", recipe, "--out", tmp_path / "run", "--quiet"], tmp_path / "said")
        assert status == 2
        line = tiny.one_line(said)
        assert expected in line
        assert "--allow-data-change" in line
        assert (tmp_path / "run" / "data.json").read_bytes() == before
    assert not (tmp_path / "run" / "data-changes.txt").exists()


def test_allowed_changes_are_recorded_and_keep_the_prior(begun: Path, tmp_path: Path) -> None:
    """The latents are encoded again, in the coordinates of the prior that has begun."""
    recipe = another(begun, tmp_path)
    run = tmp_path / "run"
    statistics = (run / "latents" / "statistics" / "statistics.safetensors").read_bytes()
    expected = removed(tmp_path / "data")
    words = ["train", recipe, "--out", run]
    status, said = tiny.moyai([*words, "--allow-data-change"], tmp_path / "said")
    assert status == 0, said
    assert f"the data have changed since this run was begun: {expected}" in said
    assert "prior: going on from step 7 of 12" in said
    assert (run / "data-changes.txt").read_text() == f"{expected}\n"
    assert (run / "latents" / "statistics" / "statistics.safetensors").read_bytes() == statistics
    assert tiny.moyai(words, tmp_path / "said")[0] == 0  # these are the run's data from now on
    # And once more, now that the run is finished: nothing is trained again, and the report can still be made.
    expected = added(tmp_path / "data")
    status, said = tiny.moyai([*words, "--allow-data-change", "sampling.steps=3"], tmp_path / "said")
    assert status == 0, said
    assert (run / "data-changes.txt").read_text().splitlines()[1] == expected
    native.verify(run / "prior" / "model")


REFUSED = {
    "prior.net.width=24": "prior.net.width: 16 -> 24",
    "prior.train.learning_rate=0.1": "prior.train.learning_rate: 0.001 -> 0.1",
    "prior.train.batch=4": "prior.train.batch: 8 -> 4",
    "seed=5": "seed: 0 -> 5",
    "prior.parameterization.kind=flow": "prior.parameterization.kind: 'v' -> 'flow'",
    "first_stage.objective.kl.weight=0.5": "first_stage.objective.kl.weight: 1e-06 -> 0.5",
    "data.validation=0.3": "data.validation: 0.1 -> 0.3",
    "prior.train.steps=13": "prior.train.steps: 12 -> 13",
}


@pytest.mark.parametrize("override", REFUSED)
def test_another_recipe_is_refused_with_both_values(override: str, begun: Path, tmp_path: Path) -> None:
    run = begun / "run"
    before = {path: path.read_bytes() for path in run.rglob("*.json") if path.name != "times.json"}
    status, said = tiny.moyai(["train", begun / "tiny.json", override, "--out", run, "--quiet"], tmp_path / "said")
    assert status == 2, said
    first, *table = [line for line in said.splitlines() if not line.startswith("warning: ")]
    assert first.startswith("moyai: ")
    assert "was begun with other values; possible: the old ones, or another --out" in first
    assert f"  {REFUSED[override]}" in table
    assert all(" -> " in row for row in table)
    assert {path: path.read_bytes() for path in before} == before


def test_free_keys_may_change(begun: Path, tmp_path: Path) -> None:
    recipe = another(begun, tmp_path)
    words = ["prior.train.log_every=3", "prior.train.keep=5", "prior.train.save_every=4", "sampling.guidance=1.5"]
    (tmp_path / "data").rename(tmp_path / "moved")
    words.append(f'data.root="{tmp_path / "moved"}"')
    status, said = tiny.moyai(["train", recipe, *words, "--out", tmp_path / "run"], tmp_path / "said")
    assert status == 0, said
    assert "prior: going on from step 7 of 12" in said


def test_a_prior_never_goes_on_with_another_codec(begun: Path, tmp_path: Path) -> None:
    recipe = another(begun, tmp_path)
    run = tmp_path / "run"
    statistics = native.read(run / "latents" / "statistics")["statistics"]
    statistics["mean"] += 0.5
    native.commit(run / "latents", "statistics", {"statistics": statistics}, {})
    status, said = tiny.moyai(["train", recipe, "--out", run, "--quiet"], tmp_path / "said")
    # The statistics are measured again from the latents, and are what they were.
    assert status == 0, said
    assert not np.allclose(native.read(run / "latents" / "statistics")["statistics"]["mean"], statistics["mean"])

    recipe = another(begun, tmp_path / "two")
    run = tmp_path / "two" / "run"
    shutil.rmtree(run / "first_stage" / "model")  # the first stage of a run that did not finish it
    status, said = tiny.moyai(["train", recipe, "--out", run, "--stage", "latents"], tmp_path / "said")
    assert status == 0, said
    status, said = tiny.moyai(["train", recipe, "--out", run, "--stage", "prior", "--quiet"], tmp_path / "said")
    assert status == 2
    assert "was trained on latents of codec" in tiny.one_line(said)
