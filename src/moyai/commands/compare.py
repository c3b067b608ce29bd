"""`moyai compare`: the priors of several runs in one table and one picture.

Runs that share their first stage (`moyai train --first-stage RUN`) differ by their priors alone; of others that is
said. A line of the table holds what may be compared (`evaluation.comparing`). In the picture each run has a row and
each column one seed and one condition: row for row the pictures that `moyai sample` draws of a run at these seeds,
with the settings of its own recipe unless the command says others.
"""

import functools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moyai import pictures, tasks
from moyai.checkpoints import models, native
from moyai.commands import outputs, sharing, subjects
from moyai.console import Reporter
from moyai.data.images import ImageSet
from moyai.data.locate import cache_folder
from moyai.errors import ConfigError, DataError, RequestError
from moyai.evaluation import comparing, heldout
from moyai.evaluation.comparing import Evaluation, Figure, Missing, Run, Table
from moyai.files import read_json, write_json_atomic
from moyai.model import LatentModel
from moyai.version import __version__

SHOWN = 8  # columns of the picture at least, where the command does not say how many
MOST = 64  # columns at most
ROUNDS = 3  # batches that are timed


@dataclass(frozen=True)
class Options:
    """What the command line says beside the runs; None where it is silent."""

    out: Path = Path("comparison.png")
    classes: Sequence[str] | None = None
    positions: Sequence[float] | None = None
    captions: Sequence[str] | None = None
    n: int | None = None
    seed: int = 0
    steps: int | None = None
    sampler: str | None = None
    guidance: float | Mapping[str, float] | None = None
    json: Path | None = None
    device: torch.device | str = "cpu"


def compare(paths: Sequence[Path], reporter: Reporter, options: Options) -> Iterator[str]:
    """Draw, measure and write what is compared, and yield the table's lines."""
    _check(paths, options)
    runs = _read(paths, reporter, options)
    requests = _requests(runs, options)
    table = Table(tuple(run.label for run in runs))
    comparing.facts(table, runs)
    if note := comparing.stages_note(runs):
        table.notes.append(note)
    table.compare("held-out loss", [comparing.loss(run) for run in runs])
    _rates(table, runs, reporter)
    _evaluations(table, runs, requests)
    drawn = [_drawn(run, request, reporter) for run, request in zip(runs, requests, strict=True)]
    table.add("drawn by", [settings(run.model, request) for run, request in zip(runs, requests, strict=True)])
    _times(table, runs, requests, reporter)
    columns = _columns(runs[0].model, requests[0])
    _save(options.out, runs, requests, drawn, columns)
    yield from shown(table)
    yield f"{len(columns)} pictures of each run in {options.out}, a row a run"
    if options.json is not None:
        write_json_atomic(options.json, plain(table, runs, requests, columns))
        yield f"written to {options.json}"


# ---- the runs


def _check(paths: Sequence[Path], options: Options) -> None:
    """Refuse, before anything is computed, what cannot be done."""
    if len(paths) < 2:
        raise RequestError(f"{len(paths)} run is nothing to compare; possible: moyai compare RUN RUN ...")
    places = [path.resolve() for path in paths]
    if twice := [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]:
        raise RequestError(f"{twice[0]} is named twice; possible: runs that differ")
    if options.out.suffix.lower() != ".png":
        raise RequestError(f"--out {options.out} is no .png; possible: comparison.png")
    first: tuple[int, ...] = ()
    for path in paths:
        facts = models.described(path)[1]
        if not (path / "prior" / "model").is_dir():
            newest = native.newest(path / "prior" / "checkpoints")
            far = f"is at step {newest.step}" if newest else "is not begun"
            raise RequestError(f"{path}: training of the prior {far}; `moyai train {path}` finishes it")
        size = (facts.channels, facts.height, facts.width, facts.bits)
        first = first or size
        if size != first:
            raise RequestError(
                f"{paths[0]} makes pictures of {_size(first)}, and {path} of {_size(size)}; possible: runs whose "
                "pictures are alike"
            )
    outputs.check(options.out, None)
    if options.json is not None:
        outputs.check_json(options.json, "comparison.json")


def _size(size: tuple[int, ...]) -> str:
    channels, height, width, bits = size
    return f"{height} x {width} with {channels} channel(s) of {bits} bits"


def _read(paths: Sequence[Path], reporter: Reporter, options: Options) -> list[Run]:
    names = [path.resolve().name for path in paths]
    found = []
    for path, name in zip(paths, names, strict=True):
        times = path / "times.json"
        found.append(
            Run(
                name if names.count(name) == 1 else str(path),
                path,
                models.load(path, device=options.device, warn=reporter.warn),
                str(read_json(path / "data.json")["fingerprint"]),
                int(native.inspect(path / "prior" / "model")["info"]["step"]),
                read_json(times) if times.is_file() else {},
            )
        )
    return found


def _requests(runs: Sequence[Run], options: Options) -> list[tasks.Request]:
    """The same rows and seeds for every run, drawn as its own recipe says."""
    labelled = {run.label: run.model for run in runs}
    given = {"class": options.classes, "position": options.positions, "caption": options.captions}
    rows = sharing.rows(labelled, {name: list(values) for name, values in given.items() if values})
    each = max([1, *map(len, rows.values())])
    n = max(1, -(-SHOWN // each)) if options.n is None else options.n
    if each * n > MOST:
        raise RequestError(
            f"{each} conditions x {n} are {each * n} pictures in a row; possible: up to {MOST}, with fewer conditions "
            "or --n"
        )
    everyones: dict[str, Any] = {"n": n, "seed": options.seed, "guidance": options.guidance}
    walks = [run.model.recipe.prior.kind == "diffusion" for run in runs]  # others have no steps, and are not told any
    steps: dict[str, Any] = {"steps": options.steps, "sampler": options.sampler}
    told = [everyones | (steps if walk or not any(walks) else {}) for walk in walks]
    return [_request(run, rows, said) for run, said in zip(runs, told, strict=True)]


def _request(run: Run, rows: dict[str, list[Any]], said: dict[str, Any]) -> tasks.Request:
    """Errors of weights by condition say which run has none of that name."""
    try:
        return tasks.request(run.model, rows=rows, **said)
    except RequestError as error:
        raise RequestError(f"{run.label}: {error}") from error


# ---- what is measured


def _rates(table: Table, runs: Sequence[Run], reporter: Reporter) -> None:
    """How likely held-out pictures are, a line for each unit."""
    data: dict[str, ImageSet] = {}
    found: dict[str, list[Figure | Missing]] = {}
    reasons = [""] * len(runs)
    for i, run in enumerate(runs):
        progress = functools.partial(reporter.progress, f"held-out pictures of {run.label}")
        try:
            rate = heldout.rate(run.model, _held_out(run, data, reporter), progress)
        except (ConfigError, DataError, RequestError) as error:
            reasons[i] = str(error)
            continue
        line = found.setdefault(f"held-out {rate.unit}", [""] * len(runs))
        line[i] = Figure(rate.value, comparing.ground(run) | {"pictures": str(rate.pictures)}, rate.error)
    table.missing("held-out likelihood", reasons)
    for name, figures in found.items():
        table.compare(name, figures, alone=True)


def _held_out(run: Run, known: dict[str, ImageSet], reporter: Reporter) -> ImageSet:
    """The pictures that a run did not see, read once where runs have the same data."""
    config = run.model.recipe.data
    key = config.model_dump_json()
    if key not in known:
        known[key] = subjects.halves(config, cache_folder(), reporter.progress, run=run.path).held_out
    return known[key]


def _evaluations(table: Table, runs: Sequence[Run], requests: Sequence[tasks.Request]) -> None:
    """What `moyai evaluate` found of the runs, where that compares."""
    found = [comparing.evaluation(run) for run in runs]
    there = [one for one in found if isinstance(one, Evaluation)]
    table.missing("evaluation", [one if isinstance(one, str) else "" for one in found])
    for name in dict.fromkeys(name for one in there for name in one.figures):
        before = len(table.lines)
        table.compare(name, [one.figures.get(name, "") if isinstance(one, Evaluation) else "" for one in found])
        if len(table.lines) > before:
            floors = [f"{one.floors[name]:.4g}" for one in there if name in one.floors]
            said = [f"held-out real pictures have {', '.join(dict.fromkeys(floors))}"] if floors else []
            said += [one.warnings[name] for one in there if name in one.warnings]
            table.notes += [f"{name}: {text}" for text in dict.fromkeys(said)]
    for run, request, one in zip(runs, requests, found, strict=True):
        other = [] if isinstance(one, str) else [k for k, v in one.drawn.items() if v != getattr(request, k)]
        if other and not isinstance(one, str):
            told = ", ".join(f"{key} {_said(one.drawn[key])} (here {_said(getattr(request, key))})" for key in other)
            table.notes.append(f"evaluation: the samples of {run.label} were drawn with {told}")


def settings(model: LatentModel, r: tasks.Request) -> str:
    """How a run's pictures are drawn, in a few words."""
    if model.recipe.prior.kind == "codes":
        words = [f"temperature {r.temperature:g}"]
        words += [f"top k {r.top_k}"] * (r.top_k is not None) + [f"top p {r.top_p:g}"] * (r.top_p < 1)
    else:
        words = [f"{r.sampler} {r.steps}", *([f"eta {r.eta:g}"] if r.eta else [])]
    return ", ".join([*words, *([f"guidance {_said(r.guidance)}"] if model.fields else [])])


def _said(value: Any) -> str:
    """A setting in words; weights by condition as --guidance takes them."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={weight:g}" for name, weight in sorted(value.items()))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _drawn(run: Run, request: tasks.Request, reporter: Reporter) -> np.ndarray:
    """(n, H, W, C)."""
    tasks.encode(run.model, request, functools.partial(reporter.progress, f"encoding captions of {run.label}"))
    return tasks.collect(run.model, request, functools.partial(reporter.progress, f"sampling {run.label}"))


def _times(table: Table, runs: Sequence[Run], requests: Sequence[tasks.Request], reporter: Reporter) -> None:
    """Seconds a picture: the median of a few batches of one size, the runs in turn, after one of each for warmth."""
    batch = min(request.batch for request in requests)
    one = [_one_batch(request, batch) for request in requests]
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(ROUNDS + 1):
        for i, run in enumerate(runs):
            begun = time.perf_counter()
            tasks.collect(run.model, one[i])
            if turn:
                seconds[i].append(time.perf_counter() - begun)
            reporter.progress("timing", turn * len(runs) + i + 1, (ROUNDS + 1) * len(runs))
    each = [statistics.median(found) / batch for found in seconds]
    table.add(f"seconds a picture (batch {batch})", each, [f"{value:.3g}" for value in each])


def _one_batch(r: tasks.Request, batch: int) -> tasks.Request:
    """What one forward of `batch` pictures has room for."""
    asked = {name: values[:batch] for name, values in r.asked.items()}
    one = replace(r, asked=asked, batch=batch, n=1)
    return replace(one, n=max(1, batch // one.rows))


# ---- what is written


def _columns(model: LatentModel, r: tasks.Request) -> list[str]:
    names = tasks.row_names(model, r) or ("",)
    return [f"{names[i // r.n]} seed {r.seed + i}".strip() for i in range(r.count)]


def _save(
    out: Path,
    runs: Sequence[Run],
    requests: Sequence[tasks.Request],
    drawn: Sequence[np.ndarray],
    columns: Sequence[str],
) -> None:
    sheet = pictures.grid(
        np.concatenate(drawn),
        column_labels=columns,
        row_labels=[f"{run.label} {run.model.recipe.prior.net.kind}" for run in runs],
    )
    made = {run.label: tasks.picture_recipe(run.model, request) for run, request in zip(runs, requests, strict=True)}
    pictures.save_png(out, sheet, {"moyai": __version__, "compared": made})


def shown(table: Table) -> Iterator[str]:
    """The table as lines of text, a column a run, and the notes."""
    label = max(len(line.name) for line in table.lines)
    columns = [("", *table.labels), *((line.name, *line.shown) for line in table.lines)]
    widths = [max(len(row[i]) for row in columns) + 2 for i in range(1, len(table.labels) + 1)]
    for name, *texts in columns:
        yield f"{name:{label}}" + "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
    yield from (f"note: {note}" for note in table.notes)


def plain(
    table: Table, runs: Sequence[Run], requests: Sequence[tasks.Request], columns: Sequence[str]
) -> dict[str, Any]:
    """All of it for a file."""
    return {
        "runs": [
            {
                "label": run.label,
                "path": str(run.path),
                "first_stage": run.first_stage,
                "model_hash": run.model.digest,
                "request": request.plain(),
            }
            for run, request in zip(runs, requests, strict=True)
        ],
        "lines": [{"name": line.name, "values": list(line.values), "shown": list(line.shown)} for line in table.lines],
        "notes": list(table.notes),
        "columns": list(columns),
    }
