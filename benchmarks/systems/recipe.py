"""moyai's own recipe, `recipes/fashion-mnist.toml`, as `moyai train` runs it with so many minutes of budget.

The budget counts all that the command does, from reading the data to the report: measuring its own speed, both stages,
the latents between them, its previews. The peers' minutes are of training alone. Drawn with the recipe's sampler and
guidance, all classes in equal number.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import moyai
from moyai import cli, tasks
from moyai.nets.precision import autocast_dtype
from systems import Clock, Draw, Rebuild, parameters

RECIPE = Path(__file__).parents[2] / "recipes" / "fashion-mnist.toml"
ABOUT = (
    "moyai train recipes/fashion-mnist.toml: KL first stage, class-conditional prior, its own sampler and guidance, "
    "bfloat16 where the processor has it; "
    "its minutes count everything, from reading the data to the report"
)


def train(pixels: np.ndarray, seconds: float, folder: Path) -> Mapping[str, Any]:
    """The command reads the same files and makes the same split by itself; `pixels` are not used."""
    run = folder / "run"
    clock = Clock(seconds)
    minutes = f"budget.minutes={seconds / 60:g}"
    if cli.main(["train", str(RECIPE), minutes, "--out", str(run), "--device", "cpu", "--quiet"]):
        raise SystemExit(f"moyai train did not finish {run}")
    spent = clock.facts()
    model = moyai.load(run)
    recipe = model.recipe
    first, prior = recipe.first_stage.train, recipe.prior.train
    return {
        "steps": prior.steps,
        "images": (prior.steps or 0) * prior.batch,
        "first stage steps": first.steps,
        "first stage images": (first.steps or 0) * first.batch,
        "parameters": parameters(model.codec, model.conditioner, model.prior),
        "precision": "float32" if autocast_dtype(prior.precision, "cpu") is None else "bfloat16",
        **spent,
    }


def sampler(folder: Path, steps: int, total: int) -> Draw:
    model = moyai.load(folder / "run")
    classes = len(model.classes)
    asked = tasks.request(model, n=-(-total // classes), steps=steps, batch=80)
    pictures = tasks.collect(model, asked)[..., 0]
    labels = asked.labels()
    # One of each class in turn, so that any part of them holds all classes.
    order = np.arange(len(pictures)).reshape(classes, -1).T.ravel()

    def draw(first: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        rows = order[first : first + count]
        return pictures[rows], None if labels is None else labels[rows]

    return draw


def rebuilder(folder: Path) -> Rebuild | None:
    model = moyai.load(folder / "run")

    def rebuild(pixels: np.ndarray) -> np.ndarray:
        return model.decode(model.encode(pixels[..., None]))[..., 0]

    return rebuild
