"""Figures of several runs side by side, and which of them may be compared.

A figure says something beside another one only where both were measured alike: a loss under one parameterisation, one
density of noise levels, one weighting and on the latents of one first stage, a FID in the features of one extractor.
Each figure therefore carries its scale, what has to be the same by name, and a line of the table holds the figures of
one scale. A figure that shares its scale with no other run's is left out, and what sets it apart is said.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moyai import log
from moyai.console import duration
from moyai.errors import DataError
from moyai.evaluation.wording import NEAR
from moyai.files import read_json
from moyai.firststage.codec import LatentCodec
from moyai.model import LatentModel
from moyai.recipe.model import Recipe

RESULT = "evaluation.json"
# Settings of a request that change what pictures look like.
DRAWN = ("steps", "sampler", "grid", "guidance", "eta", "temperature", "top_k", "top_p")
# What an evaluation has beside FID and how far conditions are obeyed, and what is too much for one table.
LEFT = frozenset(
    (
        *("fid-infinity", "kid", "precision", "recall", "density", "coverage", "class confidence"),
        *("sliced wasserstein", "ms-ssim of pairs", *NEAR.values()),
    )
)


@dataclass(frozen=True)
class Run:
    """A finished run and what is known of its training: steps of its prior, seconds of each part."""

    label: str
    path: Path
    model: LatentModel
    data: str  # the data's fingerprint
    steps: int
    times: Mapping[str, float]

    @property
    def first_stage(self) -> str:
        """What decides what latents mean; equal in runs that share the first stage."""
        return self.model.codec.digest()


@dataclass(frozen=True)
class Figure:
    """A value, its standard error where there is one, and its scale: what has to be the same in what it is compared
    with, by name."""

    value: float
    scale: Mapping[str, str]
    error: float | None = None

    def text(self) -> str:
        number = f"{self.value:.4g}"
        return number if self.error is None else f"{number} ± {self.error:.2g}"


Missing = str  # why there is no figure; "" where there is nothing to say


@dataclass(frozen=True)
class Line:
    """A line of the table: for each run a value as JSON has it (None where there is none), and as it is shown."""

    name: str
    values: tuple[Any, ...]
    shown: tuple[str, ...]


@dataclass
class Table:
    """Lines, a column a run, and what has to be said of them."""

    labels: tuple[str, ...]
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, values: Sequence[Any], shown: Sequence[str] | None = None) -> None:
        """A line that needs no scale."""
        texts = tuple(map(str, values) if shown is None else shown)
        self.lines.append(Line(name, tuple(values), texts))

    def compare(self, name: str, figures: Sequence[Figure | Missing], *, alone: bool = False) -> None:
        """A line for each scale that two runs share, and a note for each figure that is missing or left out.

        alone: a figure that compares with no other has a line too.
        """
        self.missing(name, [figure if isinstance(figure, str) else "" for figure in figures])
        groups = _groups(figures)
        kept = [rows for rows in groups if len(rows) > 1 or alone]
        apart = _apart([figures[rows[0]] for rows in kept])
        for rows, more in zip(kept, apart, strict=True):
            chosen = [figures[i] if i in rows else "" for i in range(len(figures))]
            values = tuple(f.value if isinstance(f, Figure) and math.isfinite(f.value) else None for f in chosen)
            self.lines.append(
                Line(name + more, values, tuple(f.text() if isinstance(f, Figure) else "-" for f in chosen))
            )
        for rows in groups:
            if rows not in kept:
                self.notes.append(self._left_out(name, figures, rows[0]))

    def missing(self, name: str, reasons: Sequence[Missing]) -> None:
        """Notes on why runs lack something, one for each reason."""
        for reason in dict.fromkeys(filter(None, reasons)):
            labels = [label for label, one in zip(self.labels, reasons, strict=True) if one == reason]
            self.notes.append(f"{name}: none of {', '.join(labels)}: {reason}")

    def _left_out(self, name: str, figures: Sequence[Figure | Missing], index: int) -> str:
        mine, label = figures[index], self.labels[index]
        others = [(i, f) for i, f in enumerate(figures) if isinstance(f, Figure) and i != index]
        if not others or not isinstance(mine, Figure):
            return f"{name}: that of {label} is left out, no other run has one"
        near, other = min(others, key=lambda one: len(_differ(mine.scale, one[1].scale)))
        key = _differ(mine.scale, other.scale)[0]
        here, there = (scale.get(key, "none") for scale in (mine.scale, other.scale))
        return f"{name}: that of {label} is left out: its {key} is {here}, and that of {self.labels[near]} {there}"


def _groups(figures: Sequence[Figure | Missing]) -> list[list[int]]:
    """The numbers of the figures of each scale, in order."""
    found: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, figure in enumerate(figures):
        if isinstance(figure, Figure):
            found.setdefault(tuple(sorted(figure.scale.items())), []).append(i)
    return list(found.values())


def _apart(firsts: Sequence[Figure | Missing]) -> list[str]:
    """What lines of one name are told apart by; "" where there is one line only."""
    scales = [figure.scale for figure in firsts if isinstance(figure, Figure)]
    if len(scales) < 2:
        return [""] * len(scales)
    keys = [key for key in dict.fromkeys(k for s in scales for k in s) if len({s.get(key) for s in scales}) > 1]
    return [" (" + ", ".join(f"{key} {scale[key]}" for key in keys if key in scale) + ")" for scale in scales]


def _differ(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


# ---- what runs have to say


def facts(table: Table, runs: Sequence[Run]) -> None:
    """What a run is and what its training took: lines that stand for every run."""
    recipes = [run.model.recipe for run in runs]
    table.add("recipe", [recipe.name for recipe in recipes])
    table.add("first stage", [stage(run) for run in runs])
    table.add("prior", [prior_kind(recipe) for recipe in recipes])
    table.add("net", [recipe.prior.net.kind for recipe in recipes])
    counts = [parameters(run.model) for run in runs]
    table.add("parameters", counts, [f"{count:,}" for count in counts])
    table.add("training steps", [run.steps for run in runs], [f"{run.steps:,}" for run in runs])
    table.add("batch", [recipe.prior.train.batch for recipe in recipes])
    seconds = [run.times.get("prior") for run in runs]
    table.add("training time", seconds, ["-" if s is None else duration(s) for s in seconds])


def stage(run: Run) -> str:
    recipe = run.model.recipe
    kind = "pixels" if recipe.codec.kind == "pixels" else recipe.first_stage.kind
    return f"{kind} {run.first_stage[:12]}"


def prior_kind(recipe: Recipe) -> str:
    prior = recipe.prior
    return f"{prior.kind} {prior.parameterization.kind}" if prior.kind == "diffusion" else prior.kind


def parameters(model: LatentModel) -> int:
    """Values of the prior and of what it is told by."""
    return sum(p.numel() for module in (model.prior, model.conditioner) for p in module.parameters())


def stages_note(runs: Sequence[Run]) -> str:
    """Whether the runs share their first stage and its decoder, in one sentence; "" where they share both."""
    by_stage: dict[str, list[str]] = {}
    for run in runs:
        by_stage.setdefault(run.first_stage, []).append(run.label)
    if len(by_stage) > 1:
        parts = "; ".join(f"{', '.join(labels)}: {digest[:12]}" for digest, labels in by_stage.items())
        return (
            f"the first stages differ ({parts}), so that pictures differ by more than their priors; "
            "`moyai train --first-stage RUN` trains another prior over that run's"
        )
    if len({_decoder(run) for run in runs}) > 1:
        return "the first stage is the same, but its decoder was trained further in some of the runs"
    return ""


def _decoder(run: Run) -> str:
    """A hash of the decoder's weights."""
    sha, codec = hashlib.sha256(), run.model.codec
    whole = codec.autoencoder.state_dict() if isinstance(codec, LatentCodec) else {}
    for name, tensor in sorted(whole.items()):
        if name.startswith("decoder."):
            sha.update(tensor.cpu().numpy().tobytes())
    return sha.hexdigest()


def ground(run: Run) -> dict[str, str]:
    """What any figure of held-out latents depends on: the first stage, the data, and which of these are held out."""
    share = f"{run.model.recipe.data.validation:g}"
    return {"first stage": run.first_stage[:12], "data": run.data[:12], "held-out share": share}


def loss(run: Run) -> Figure | Missing:
    """The held-out loss at the end of training, with the averaged weights."""
    steps, values = log.series(run.path / "prior" / "log.jsonl", "validation", "loss")
    if not steps or steps[-1] != run.steps:
        return f"its log has no held-out loss of step {run.steps}"
    return Figure(values[-1], objective(run.model.recipe) | ground(run))


def objective(recipe: Recipe) -> dict[str, str]:
    """What a loss is a loss of: of a diffusion prior by its parameterisation, density and weighting."""
    prior = recipe.prior
    told: dict[str, Any] = {"prior.kind": prior.kind}
    if prior.kind == "diffusion":
        weighting = prior.weighting.model_dump(mode="json")
        acts = {"kind", *{"min-snr": ["gamma"], "edm": ["sigma_data"]}.get(prior.weighting.kind, [])}
        told |= _flat("parameterization", prior.parameterization.model_dump(mode="json"))
        told |= _flat("density", {} if prior.density is None else prior.density.model_dump(mode="json"))
        told |= _flat("weighting", {key: value for key, value in weighting.items() if key in acts})
    return {key: str(value) for key, value in told.items()}


def _flat(name: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted names; a table goes by the name of its kind alone."""
    found: dict[str, Any] = {}
    for key, value in sorted(tree.items(), key=lambda item: item[0] != "kind"):
        where = name if key == "kind" else f"{name}.{key}"
        found |= _flat(where, value) if isinstance(value, Mapping) else {where: value}
    return found


@dataclass(frozen=True)
class Evaluation:
    """What `moyai evaluate` found of a run, by metric: figures, what held-out pictures have, what to beware of; and the
    settings its samples were drawn by."""

    figures: Mapping[str, Figure]
    floors: Mapping[str, float]
    warnings: Mapping[str, str]
    drawn: Mapping[str, Any]


def evaluation(run: Run) -> Evaluation | Missing:
    """FID and how far conditions are obeyed, where the run was evaluated with the weights it has."""
    path = run.path / RESULT
    if not path.is_file():
        return "`moyai evaluate RUN` was not run"
    try:
        result = read_json(path)
        found, told = result["rows"]["samples"], result["facts"]
        if told.get("model_hash") != run.model.digest:
            return f"{RESULT} is of other weights; `moyai evaluate RUN` makes it anew"
        figures = {name: _measured(run, value, told) for name, value in found.items() if name not in LEFT}
        floors = {name: float(value["value"]) for name, value in result["rows"]["held out"].items()}
        warnings = {name: str(found[name]["warning"]) for name in figures if found[name]["warning"]}
        return Evaluation(
            figures, floors, warnings, {name: told["request"][name] for name in DRAWN if name in told["request"]}
        )
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        return f"{RESULT} is not what this version of moyai writes; `moyai evaluate RUN` makes it anew"


def _measured(run: Run, value: Mapping[str, Any], told: Mapping[str, Any]) -> Figure:
    against = told.get("against")
    data = (
        f"that of --against {against}"
        if against
        else f"{run.data[:12]} ({run.model.recipe.data.validation:g} held out)"
    )
    scale = {
        "extractor": str(value["source"]),
        "metric": str(value["metric"]),
        "reference": data,
        "count of reference pictures": str(told["reference"]),
        "count of samples": str(value["count"]),
    }
    return Figure(float(value["value"]), scale)
