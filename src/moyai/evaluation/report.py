"""The report of a run: one self-contained page. Pictures first, then curves, then the facts.

What is drawn for it (samples of every class, reconstructions, the way from noise to samples) is also left as files in
`samples/`, each with the recipe that made it.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moyai import log, pictures, tasks
from moyai.data.images import ImageSet, to_uint
from moyai.evaluation import conditions, curves, page, section, stagesection
from moyai.firststage.codec import LatentCodec
from moyai.model import LatentModel, example_rows
from moyai.recipe.model import Recipe
from moyai.version import __version__

COLUMNS = 10
PROCESS = 8  # pictures in the GIF


@dataclass(frozen=True)
class Material:
    """What a report is made from."""

    run: Path
    model: LatentModel
    train: ImageSet
    held_out: ImageSet
    data: dict[str, Any]  # the data report, as saved
    plan: dict[str, Any]
    times: dict[str, float]  # seconds by stage
    command: str


def write(material: Material, progress: Callable[[int, int], None] | None = None) -> Path:
    """Draw the pictures and write `report.html` in the run's folder; returns its path."""
    folder = material.run / "samples"
    folder.mkdir(exist_ok=True)
    samples, request = _samples(material, progress)
    sections = [
        page.Section("Samples", _sample_blocks(material, samples, request, folder)),
        page.Section("First stage", stagesection.blocks(material.run, material.model, material.held_out, folder)),
        page.Section("From noise to samples", _process_blocks(material, folder)),
        page.Section("Evaluation", section.blocks(material.run, material.model.digest)),
        page.Section("Training", _curve_blocks(material)),
        page.Section("Data", _data_blocks(material.data)),
        page.Section("Recipe", _recipe_blocks(material)),
    ]
    recipe = material.model.recipe
    path = material.run / "report.html"
    kept = [one for one in sections if one.blocks]
    page.write(path, page.page(recipe.name, recipe.description or "A latent diffusion model", kept))
    return path


def _samples(material: Material, progress: Callable[[int, int], None] | None) -> tuple[np.ndarray, tasks.Request]:
    report = material.model.recipe.report
    n = report.per_class if material.model.fields else report.samples
    request = tasks.request(material.model, n=n)
    return tasks.collect(material.model, request, progress), request


def _sample_blocks(material: Material, samples: np.ndarray, request: tasks.Request, folder: Path) -> list[Any]:
    model = material.model
    recipe = tasks.picture_recipe(model, request)
    names = tasks.row_names(model, request)
    sheet = pictures.grid(samples, columns=request.n if names else COLUMNS, row_labels=names)
    pictures.save_png(folder / "samples.png", sheet, recipe)
    originals = _originals(material, request)
    pictures.save_png(folder / "originals.png", originals, None)
    guidance = f", guidance {request.guidance:g}" if names else ""
    walk = f"{request.steps} codes" if request.sampler == "codes" else f"{request.sampler}, {request.steps} steps"
    how = f"{walk}{guidance}, {_seeds(request)}"
    return [
        page.Gallery(
            (
                _picture(originals, "Original: pictures that were trained on", "pictures of the training data", None),
                _picture(sheet, f"Generated: {how}", "pictures drawn by the model", recipe),
            ),
            "Originals beside generated pictures; none was chosen by hand.",
        )
    ]


def _seeds(request: tasks.Request) -> str:
    return f"seeds {request.seed} to {request.seed + request.count - 1}"


def _originals(material: Material, request: tasks.Request) -> Any:
    """Real pictures in rows as the samples: the first that are what each row was asked to be."""
    names = tasks.row_names(material.model, request)
    if not set(request.asked) <= {"class", "position"}:
        return _examples(material, request)
    return pictures.grid(_alike(material, request), columns=request.n if names else COLUMNS, row_labels=names)


def _examples(material: Material, request: tasks.Request) -> Any:
    """The held-out pictures that the rows were asked to be, beside what can be shown of what was asked."""
    held_out, shape = material.held_out, material.model.codec.image_shape
    real = to_uint(held_out.images(example_rows(held_out.count)), bits=held_out.bits)
    rows = [
        [conditions.coloured(picture), *conditions.shown(request.asked, row, shape)] for row, picture in enumerate(real)
    ]
    names = tasks.row_names(material.model, request)
    return pictures.grid(np.stack([one for row in rows for one in row]), columns=len(rows[0]), row_labels=names)


def _alike(material: Material, request: tasks.Request) -> np.ndarray:
    """As many real pictures in the same arrangement, the first that are what each row was asked to be."""
    train, asked = material.train, request.fields()
    if not asked:
        index = np.arange(min(request.count, train.count))
    else:
        rows = []
        for row in range(0, request.count, request.n):
            far = np.zeros(train.count)
            for name, values in asked.items():  # another class is farther than any position
                distance = np.abs(train.fields[name] - values[row])
                far += 1e6 * (distance > 0) if name == "class" else distance
            rows.append(np.resize(far.argsort(kind="stable")[: request.n], request.n))
        index = np.concatenate(rows)
    return to_uint(train.images(index), bits=train.bits)


def _process_blocks(material: Material, folder: Path) -> list[Any]:
    model = material.model
    if not model.recipe.report.gif:
        return []
    n = 1 if model.fields else PROCESS
    request = tasks.overview(model, n=n, batch=PROCESS, steps=40, sampler="euler", grid="uniform-time")
    noisy, predicted = tasks.process(model, request)
    labels = ("noisy", "predicted")
    frames = [
        pictures.grid(np.concatenate(pair), columns=len(pair[0]), row_labels=labels)
        for pair in zip(noisy, predicted, strict=True)
    ]
    recipe = tasks.picture_recipe(model, request)
    pictures.save_gif(folder / "process.gif", frames, recipe=recipe)
    data = pictures.gif_bytes(frames, recipe=recipe)
    caption = (
        "The state of the sampler, decoded, above its estimate of the picture at that moment: "
        f"{request.sampler}, {request.steps} steps, {_seeds(request)}."
    )
    return [page.Picture(data, "image/gif", caption, "animation of the diffusion process")]


def _curve_blocks(material: Material) -> list[Any]:
    blocks: list[Any] = []
    for stage, title in (("first_stage", "First stage"), ("decoder", "Decoder"), ("prior", "Prior")):
        path = material.run / stage / "log.jsonl"
        series = []
        # Of a first stage the held-out pictures' distance is told, not the loss: beside it, the same of training steps.
        whole = "loss" in log.names(path, "validation")
        told = (("train", "training", "loss" if whole else "reconstruction"),)
        for kind, label, name in (*told, ("validation", "held out", "loss" if whole else "l1")):
            steps, values = log.series(path, kind, name)
            if steps:
                series.append(curves.Series(label, steps, values))
        if series:
            of_codes = stage == "prior" and material.model.recipe.prior.kind == "codes"
            unit = "bits per code" if of_codes else "loss" if whole else _distance(material.model.recipe, stage)
            svg = curves.chart(series, title=f"{title}: {unit}", x_label="step", y_label=unit, log_y=not of_codes)
            blocks.append(page.Chart(svg, f"{title}: the {unit} of training steps and of held-out data."))
    if material.times:
        shown = {name: str(timedelta(seconds=round(seconds))) for name, seconds in material.times.items()}
        total = str(timedelta(seconds=round(sum(material.times.values()))))
        blocks.append(page.Facts({**shown, "in all, but for this report": total}))
    return blocks


def _distance(recipe: Recipe, stage: str) -> str:
    """What a first stage's curves show."""
    decoder = stage == "decoder" and recipe.decoder is not None
    objective = recipe.decoder.objective if decoder and recipe.decoder else recipe.first_stage.objective
    if objective.reconstruction == "l1":
        return "absolute error, values from -1 to 1"
    return "error, values from -1 to 1 (training: squared, held out: absolute)"


def _data_blocks(data: dict[str, Any]) -> list[Any]:
    report = data["report"]
    plain = {key: value for key, value in report.items() if isinstance(value, str | int | float | bool)}
    blocks: list[Any] = [page.Facts({key.replace("_", " "): str(value) for key, value in plain.items()})]
    if report["classes"]:
        rows = tuple((c["name"], str(c["train"]), str(c["validation"])) for c in report["classes"])
        blocks.append(page.Table(("class", "to train on", "held out"), rows, "Pictures of each class."))
    blocks += [page.Warning(text) for text in report.get("warnings", [])]
    return blocks


def _recipe_blocks(material: Material) -> list[Any]:
    model = material.model
    versions = {
        "moyai": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "prior": f"{_count(model.prior):,} parameters",
    }
    if isinstance(model.codec, LatentCodec):
        versions["first stage"] = f"{_count(model.codec):,} parameters"
    repeat = " ".join([material.command, *([material.plan["overrides"]] if material.plan else [])])
    blocks: list[Any] = [page.Code(repeat, "The command that repeats this run"), page.Facts(versions)]
    if material.plan.get("seconds"):
        rows = tuple((name, f"{value:.1f}") for name, value in material.plan["seconds"].items())
        blocks.append(page.Table(("part", "seconds planned"), rows, "How the budget was split."))
    recipe = json.dumps(model.recipe.model_dump(mode="json"), indent=2)
    return [*blocks, page.Code(recipe, "The resolved recipe")]


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _picture(image: Any, caption: str, alt: str, recipe: dict[str, Any] | None = None) -> page.Picture:
    return page.Picture(pictures.png_bytes(image, recipe), "image/png", caption, alt)
