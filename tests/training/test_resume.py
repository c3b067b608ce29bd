"""A run that was stopped and went on is the run that was not: every bit of state, and every line of the log.

The checker is `tiny.differences` on what `trained` returns; mutants of the code show that it can see what it should.
"""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from checkpoints.forked import in_child
from moyai import console
from moyai.build.conditions import build_conditioner
from moyai.build.firststage import build_autoencoder, build_codec, build_rival
from moyai.build.prior import build_prior
from moyai.data.images import ImageSet, SourceFile
from moyai.data.latents import FLIPPED, PLAIN, LatentCache
from moyai.model import LatentModel, told_fields
from moyai.recipe import reading, resolve
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts
from moyai.training import ema
from moyai.training.first_stage import FirstStageTraining
from moyai.training.loop import Runner, Stage
from moyai.training.prior import training_of
from moyai.training.schedule import Order
from moyai.training.signals import Interrupted, Signals
from moyai.training.state import TrainState

STEPS, BATCH, COUNT = 60, 6, 30
EPOCH = COUNT // BATCH
STOPS = (1, EPOCH - 1, EPOCH, EPOCH + 1, 7, 59)
CELLS = [(s, p, a) for s in ("first_stage", "prior") for p in ("float32", "bfloat16") for a in (1, 3)]
CELLS += [("gan", "float32", 3), ("gan", "bfloat16", 1), ("vq", "bfloat16", 3), ("vq2", "float32", 1)]
CELLS += [("codes", "float32", 3), ("holes", "float32", 3)]
PRIORS = ("prior", "codes", "holes")
DISCRIMINATOR = {"net": {"width": 8, "layers": 1}, "start": float(EPOCH), "warmup": 0.1}
VQ = {"first_stage.kind": "vq", "first_stage.codebook": {"size": 16}}
MORE: dict[str, dict[str, Any]] = {  # beyond a plain KL autoencoder and a plain U-Net
    "vq2": {
        "first_stage.kind": "vq2",
        "first_stage.codebook": {"size": 8},
        "prior.kind": "codes",
        "prior.net": {"kind": "pixelcnn", "width": 8, "layers": 1},
    },
    "codes": {**VQ, "prior.kind": "codes", "prior.net": {"kind": "pixelcnn", "width": 8, "layers": 2}},
    "holes": {  # what is cut out of a picture and whether it is told are drawn anew each step
        "prior.conditions": {"class": {"kind": "class", "width": 8}, "holes": {"kind": "masked", "dropout": 0.2}},
        "prior.variance": {"kind": "learned"},
        "prior.drop_all": 0.2,
    },
    "gan": {
        "first_stage.objective": {
            "adversarial": {**DISCRIMINATOR, "regularizer": "lecam"},
            "kl": {"weight": 1e-3, "anneal": {"kind": "cyclical"}},
        },
        "first_stage.conditions": {"class": {"kind": "class", "width": 8, "dropout": 0.5}},
    },
    "vq": {
        "first_stage.kind": "vq",
        "first_stage.codebook": {"size": 16, "restart": 0.5},
        "first_stage.objective": {
            "adversarial": {**DISCRIMINATOR, "regularizer": "r1"},
            "perceptual": {"kind": "discriminator"},
        },
    },
}
State = dict[str, Any]
Mutant = Callable[[], None]


def nothing() -> None: ...


def image_set(count: int) -> ImageSet:
    pictures, labels = tiny.shapes(count)
    names = [str(i) for i in range(count)]
    file = SourceFile("shapes", pictures.nbytes, "0" * 64)
    return ImageSet(pictures[:, None], {"class": labels.astype(np.int64)}, tiny.CLASSES, names, (file,))


def make_stage(name: str, precision: str, accumulation: int, dropout: float = 0.0) -> tuple[Stage, Recipe]:
    """A stage as a run makes it. The images are shown mirrored half of the time."""
    images = image_set(COUNT)
    told = {"classes": tiny.CLASSES, "fields": ("class",)}
    facts = DataFacts(channels=1, height=tiny.SIDE, width=tiny.SIDE, count=COUNT, **told)
    train = {
        **tiny.QUICK,
        "steps": STEPS,
        "batch": BATCH,
        "micro_batch": BATCH // accumulation,
        "precision": precision,
        "log_every": 4,
        "save_every": 20,
        "validate_every": 30,
    }
    changes = {
        "data.flip": True,
        "first_stage.train": train,
        "prior.train": train,
        "prior.net": {**tiny.NETS["prior.net"], "dropout": dropout},
        **MORE.get(name, {}),
    }
    recipe = resolve.resolve(reading.parse(tiny.tree(Path("unused"), changes)), facts)
    device = torch.device("cpu")
    autoencoder = build_autoencoder(recipe, facts)
    if name not in PRIORS:
        rival = build_rival(recipe, facts)
        return FirstStageTraining(recipe, autoencoder, images, images, device, rival=rival), recipe
    codec = build_codec(recipe, facts, autoencoder)
    stored = {
        variant: {
            key: value.numpy()
            for key, value in codec.store(images.batch(np.arange(COUNT), np.full(COUNT, flip)).images).items()
        }
        for variant, flip in ((PLAIN, False), (FLIPPED, True))
    }
    cache = LatentCache(stored, images.fields, {})
    conditioner = build_conditioner(recipe, facts)
    prior = build_prior(recipe, conditioner, codec.shape())
    model = LatentModel(codec, conditioner, prior, recipe, facts)
    cache = replace(cache, fields=told_fields(conditioner, images))
    return training_of(model, cache, cache, device), recipe


def trained(cell: tuple[Any, ...], folder: Path, stop: int | None = None, mutant: Mutant = nothing) -> State | None:
    """Start or go on with a stage in a new process; SIGTERM comes within the step that ends at `stop`.

    Returns the state at the end, None where it was stopped.
    """

    def go() -> State | None:
        mutant()
        stage, recipe = make_stage(*cell)
        stage.preview = lambda path: None  # type: ignore[method-assign]
        batch = stage.batch

        def watched(step: int) -> Any:
            if step + 1 == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return batch(step)

        stage.batch = watched  # type: ignore[method-assign]
        with Signals() as signals:
            runner = Runner(
                stage,
                folder,
                seed=recipe.seed,
                device=torch.device("cpu"),
                reporter=console.Silent(),
                signals=signals,
                info={},
            )
            try:
                runner.run()
            except Interrupted as stopped:
                right = (stopped.status, stage.state.step) == (143, stop)
                return None if right else {}
        return {**tiny.digests(stage.state.contents()), "log": tiny.lines(folder / "log.jsonl")}

    code, result = in_child(go)
    assert code == 0
    return result


def stopped_often(cell: tuple[Any, ...], folder: Path, stops: Sequence[int], mutant: Mutant = nothing) -> State:
    for stop in sorted(stops):
        assert trained(cell, folder, stop, mutant) is None
    state = trained(cell, folder, None, mutant)
    assert state is not None
    return state


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_a_run_stopped_six_times_is_the_run_that_was_not(cell: tuple[Any, ...], tmp_path: Path) -> None:
    straight = trained(cell, tmp_path / "straight")
    assert straight is not None
    again = stopped_often(cell, tmp_path / "stopped", STOPS)
    assert tiny.differences(straight, again) == []
    assert tiny.log_mistakes(again["log"], STEPS, 4) == []
    assert [line["step"] for line in again["log"] if "validation" in line] == [30, 60]


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_each_stop_alone(cell: tuple[Any, ...], tmp_path: Path) -> None:
    straight = trained(cell, tmp_path / "straight")
    assert straight is not None
    for stop in STOPS:
        again = stopped_often(cell, tmp_path / f"stopped-{stop}", [stop])
        assert tiny.differences(straight, again) == [], stop


def test_dropout_goes_on_where_it_was(tmp_path: Path) -> None:
    cell = ("prior", "float32", 1, 0.3)
    straight = trained(cell, tmp_path / "straight")
    assert straight is not None
    assert tiny.differences(straight, stopped_often(cell, tmp_path / "stopped", [7])) == []
    without = trained(("prior", "float32", 1, 0.0), tmp_path / "without")
    assert without is not None
    assert "model" in tiny.differences(straight, without)


def optimizer_forgotten() -> None:
    TrainState._restore_optimizer = lambda self, tensors: None  # type: ignore[method-assign]


def average_forgotten() -> None:
    restore = TrainState.restore

    def without(self: TrainState, contents: Any) -> None:
        restore(self, contents)
        for name, module in self.modules.items():
            self.averages[name] = ema.copy_of(module)

    TrainState.restore = without  # type: ignore[method-assign]


def order_begins_anew() -> None:
    call = Order.__call__

    def replayed(self: Order, step: int) -> np.ndarray:
        first = self.__dict__.setdefault("first", step)
        return call(self, step - first)

    Order.__call__ = replayed  # type: ignore[method-assign]


def window_forgotten() -> None:
    restore = TrainState.restore

    def without(self: TrainState, contents: Any) -> None:
        restore(self, contents)
        self.window = {}

    TrainState.restore = without  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> State:
    state = trained(CELLS[0], tmp_path_factory.mktemp("straight"))
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("mutant", "seen"),
    [
        (optimizer_forgotten, {"optimizer", "model", "ema", "log"}),
        (average_forgotten, {"ema", "log"}),
        (order_begins_anew, {"optimizer", "model", "ema", "log"}),
        (window_forgotten, {"log"}),
    ],
)
def test_the_checker_sees_what_is_not_restored(mutant: Mutant, seen: set[str], straight: State, tmp_path: Path) -> None:
    assert set(tiny.differences(straight, stopped_often(CELLS[0], tmp_path / "mutant", [42], mutant))) >= seen
