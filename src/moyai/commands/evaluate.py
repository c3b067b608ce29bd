"""`moyai evaluate`: how good pictures are, and of a run its first stage too, beside what real pictures reach.

Judged are a run, whose samples are drawn for it, a folder or .zip of pictures, or the arrays of an .npz. Of a run whose
prior has not begun the first stage is judged alone. What they are judged against is the run's own data, or what
`--against` names: its training half is the reference, its held-out half the floor.
"""

import functools
import hashlib
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moyai import tasks
from moyai.checkpoints import averages, models
from moyai.commands import outputs, subjects
from moyai.commands.subjects import POSSIBLE as AGAINST
from moyai.commands.subjects import Halves
from moyai.conditioning.spatial import FROM_PICTURES
from moyai.console import Reporter
from moyai.data.images import ImageSet
from moyai.data.locate import cache_folder
from moyai.errors import ConfigError, DataError, RequestError
from moyai.evaluation import assessment, extractors, gallery, heldout, obedience, snapshots, wording
from moyai.evaluation.assessment import Assessment
from moyai.evaluation.extractors import Choice
from moyai.evaluation.features import Extractor
from moyai.evaluation.obedience import Obedience
from moyai.files import write_json_atomic
from moyai.firststage.codec import Codec
from moyai.model import LatentModel
from moyai.recipe.model import Recipe

COUNT, SEED, BATCH = 2000, 1_000_000, 80  # samples drawn of a run, the seed of the first, how many a forward
LABEL = 34  # the table's first column is no wider


Steps = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Options:
    """What the command line says beside what is judged and how samples are drawn; None is the default."""

    against: str | None = None
    extractor: str = "own"
    count: int | None = None
    seed: int | None = None
    json: Path | None = None
    device: torch.device | str = "cpu"
    snapshots: bool = False
    out: Path | None = None


def evaluate(path: Path, reporter: Reporter, options: Options, settings: Mapping[str, Any]) -> Iterator[str]:
    """Measure what lies at `path`, write the result, and yield the table's lines."""
    chosen = extractors.read(options.extractor)
    _check(path, options, settings)
    if subjects.is_run(path) and models.has_only_a_first_stage(path):
        result = _first_stage(path, chosen, reporter, options, settings)
        _write(result, options, None)
        yield from table(result)
        if options.json is not None:
            yield f"written to {options.json}"
        yield "there is no prior yet: the first stage was judged alone"
        return
    steps: Steps = iter(())
    if subjects.is_run(path):
        found, steps = _run(path, chosen, reporter, options, settings)
    else:
        found = _pictures(path, chosen, reporter, options)
    result = found.plain()
    home = path if subjects.is_run(path) else options.out
    if home is not None:  # before anything is said: whoever is told something can rely on its being there
        training = found.reference.searched
        sheets = gallery.write(home, found.copies, found.samples, training.pixels, found.features, training.features)
        result["facts"]["sheets"] = {sheet.name: hashlib.sha256(sheet.read_bytes()).hexdigest() for sheet in sheets}
    _write(result, options, home)
    yield from table(result)
    yield from _copies(result)
    yield from (f"written to {place}" for place in (options.json, options.out) if place is not None)
    if subjects.is_run(path):
        for step, values in steps:
            told = (f"{name} {wording.shown(value)}" for name, value in values.items())
            yield f"step {step:,}: {', '.join(told)}"
        yield f"`moyai train {path}` puts this into the report"


def _write(result: dict[str, Any], options: Options, home: Path | None) -> None:
    """The result into the folder of what was judged, and where `--json` asks for it."""
    if options.against is not None:
        result["facts"]["against"] = options.against
    for path in (None if home is None else home / "evaluation.json", options.json):
        if path is not None:
            write_json_atomic(path, result)


def _copies(result: Mapping[str, Any]) -> Iterator[str]:
    """The files that are nearer to a training picture than the border, nearest first."""
    for space, found in result["copies"].items():
        close = [m for m in found["worst"] if m["distance"] <= found["border"] and isinstance(m["sample"], str)]
        for match in close:
            yield f"near in {space}: {match['sample']} to {match['training']} ({match['distance']:.3g})"
        if close and (more := found["close"] - len(close)) > 0:
            yield f"near in {space}: {more} more"


def _check(path: Path, options: Options, settings: Mapping[str, Any]) -> None:
    """Refuse, before anything is computed, what cannot be done."""
    if not path.exists():
        raise RequestError(f"{path} does not exist; possible: a run's folder, a folder or .zip of pictures, an .npz")
    if not path.is_dir() and path.suffix.lower() not in (".npz", ".zip"):
        raise RequestError(f"{path} cannot be judged; possible: a run's folder, a folder or .zip of pictures, an .npz")
    if not subjects.is_run(path):
        if options.against is None:
            raise RequestError(f"{path} is no run, so --against has to name what it is judged against: {AGAINST}")
        if wrong := _for_samples(options, settings):
            raise RequestError(f"--{wrong[0]} is for the samples of a run; {path} holds its pictures already")
        if options.out is not None and options.out.exists() and not options.out.is_dir():
            raise RequestError(f"--out {options.out} is a file; possible: a folder, or a new name")
    elif options.out is not None:
        raise RequestError(f"--out is for pictures that lie by themselves; {path} is a run, and keeps its own sheets")
    if subjects.is_run(path) and options.count is not None and options.count < 4:
        raise RequestError(f"--n {options.count} is too few to judge; possible: 4 or more")
    if options.json is not None:
        if options.json.resolve() == path.resolve():
            raise RequestError(f"--json {options.json} is what is judged; possible: another name")
        outputs.check_json(options.json, "evaluation.json")


def _for_samples(options: Options, settings: Mapping[str, Any]) -> list[str]:
    """What was said that only has a meaning where samples are drawn."""
    given = {"seed": options.seed, "snapshots": options.snapshots or None, **settings}
    return [name for name, value in given.items() if value is not None]


def _run(
    path: Path, chosen: Choice, reporter: Reporter, options: Options, settings: Mapping[str, Any]
) -> tuple[Assessment, Steps]:
    """The run's assessment, and that of each average it kept, which is measured as it is asked for."""
    model = models.load(path, device=options.device, warn=reporter.warn)
    cache, progress = cache_folder(), reporter.progress
    data = _data(path, model.recipe, model.codec, reporter, options)
    wanted_count = COUNT if options.count is None else options.count
    seed = SEED if options.seed is None else options.seed
    request = _request(model, data, wanted_count, seed=seed, batch=BATCH, **settings)
    extractor, judges = _judges(chosen, data, model.fields, options, reporter)
    tasks.encode(model, request, functools.partial(progress, "encoding captions"))
    found = assessment.assess(
        model,
        data.train,
        data.held_out,
        extractor,
        request,
        judges=judges,
        targets=_targets(request, model.classes, data.classes),
        cache=cache,
        progress=progress,
    )
    if options.against is None:
        found = replace(found, facts={**found.facts, **_likelihood(model, data, reporter)})
    at = functools.partial(averages.at, model)
    kept = averages.kept(path) if options.snapshots else []
    return found, snapshots.measure(path, kept, at, extractor, found.reference, request, progress=progress)


def _data(path: Path, recipe: Recipe, codec: Codec, reporter: Reporter, options: Options) -> Halves:
    """What a run is judged against. DataError where its pictures are of another shape."""
    cache, progress = cache_folder(), reporter.progress
    if options.against is None:
        data = subjects.halves(recipe.data, cache, progress, run=path)
    else:
        data = subjects.against(options.against, cache, progress)
    made, wanted = tuple(codec.image_shape), tuple(data.train.pixels.shape[1:])
    if made != wanted:
        channels, height, width = wanted
        raise DataError(
            f"{path} makes pictures of {made[1]} x {made[2]} with {made[0]} channel(s), and the reference is "
            f"{height} x {width} with {channels}: judge it by data of its own kind"
        )
    return data


def _first_stage(
    path: Path, chosen: Choice, reporter: Reporter, options: Options, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The first stage of a run that has no prior yet, as JSON holds it."""
    if wrong := _for_samples(options, settings):
        raise RequestError(
            f"--{wrong[0]} is for samples, and {path} has no prior yet; possible: without it, the first "
            "stage is judged alone"
        )
    recipe, facts = models.described(path)
    codec = models.untuned_codec(path, recipe, facts, options.device)
    data = _data(path, recipe, codec, reporter, options)
    extractor, judges = _judges(chosen, data, ("class",), options, reporter)
    return assessment.assess_first_stage(
        codec,
        data.train,
        data.held_out,
        extractor,
        COUNT if options.count is None else options.count,
        judges=judges,
        cache=cache_folder(),
        progress=reporter.progress,
    )


def _likelihood(model: LatentModel, data: Halves, reporter: Reporter) -> dict[str, Any]:
    """What held-out pictures and, beside them, as many training pictures cost the prior, by the fact's name; nothing
    where its likelihood is not defined."""

    def cost(images: ImageSet, whose: str) -> dict[str, Any]:
        counted = functools.partial(reporter.progress, f"likelihood of {whose} pictures")
        return asdict(heldout.rate(model, images, counted, min(heldout.PICTURES, data.held_out.count)))

    try:
        held_out = cost(data.held_out, "held-out")
        return {"likelihood": held_out, "likelihood of training pictures": cost(data.train, "training")}
    except (ConfigError, RequestError):  # no table, or pixels of other than 8 bits
        return {}


def _pictures(path: Path, chosen: Choice, reporter: Reporter, options: Options) -> Assessment:
    cache, progress = cache_folder(), reporter.progress
    data = subjects.against(options.against or "", cache, progress)
    samples = subjects.pictures(path, data, options.count, cache, progress)
    assessment.check_alike(samples.pixels, np.asarray(data.train.pixels[:1]))
    extractor, judges = _judges(chosen, data, ("class",), options, reporter)
    return assessment.assess_pictures(
        samples, data.train, data.held_out, extractor, judges=judges, cache=cache, progress=progress
    )


def _judges(
    chosen: Choice, data: Halves, fields: Collection[str], options: Options, reporter: Reporter
) -> tuple[Extractor, dict[str, Obedience]]:
    cache, progress = cache_folder(), reporter.progress
    extractor = extractors.make(chosen, data.train, cache, progress, device=options.device)
    return extractor, obedience.judges(data.train, cache, progress, fields=fields, device=options.device)


def _request(model: LatentModel, data: Halves, count: int, **settings: Any) -> tasks.Request:
    """`count` pictures of the classes and positions that training pictures have; of other conditions about as many, as
    held-out pictures have them. Samples and data are compared as a whole, so what is rare there stays rare."""
    if set(model.fields) <= {"class", "position"}:
        if asked := _as_the_data(model, data.train, count):
            return tasks.request(model, rows=asked, n=1, **settings)
        every = tasks.request(model, n=1, **settings).rows
        return tasks.request(model, n=-(-count // every), **settings)
    held_out = data.held_out
    rows = np.linspace(0, held_out.count - 1, min(count, held_out.count)).astype(np.int64)
    if missing := sorted(set(model.fields) - set(held_out.fields) - set(FROM_PICTURES)):
        raise DataError(f"the model is told the {missing[0]} of a picture, which is not known of these data")
    told: dict[str, Any] = model.told(held_out, rows)
    return tasks.request(model, rows=told, n=-(-count // len(rows)), **settings)


def _as_the_data(model: LatentModel, train: ImageSet, count: int) -> dict[str, list[Any]] | None:
    """Classes, in the model's numbers, and positions of `count` pictures spread over the training pictures in their
    order; None where the model is told nothing, or other things than are known of these data."""
    if not model.fields or not set(model.fields) <= set(train.fields):
        return None
    known = {name: train.fields[name] for name in ("position", "class") if name in model.fields}
    if "class" in known:
        if not set(train.classes) <= set(model.classes):
            return None
        known["class"] = np.array([model.classes.index(name) for name in train.classes])[known["class"]]
    order = np.lexsort(tuple(known.values()))  # by class, then by position
    chosen = order[((np.arange(count) + 0.5) / count * len(order)).astype(np.int64)]
    return {name: values[chosen].tolist() for name, values in known.items()}


def _targets(request: tasks.Request, made: Sequence[str], judged: Sequence[str]) -> dict[str, np.ndarray]:
    """What each picture of a request is asked to be, classes in the numbers of the data it is judged against."""
    asked = request.fields()
    if "class" in asked:
        labels = asked.pop("class")
        if set(made) <= set(judged):
            asked["class"] = np.array([judged.index(name) for name in made], dtype=np.int64)[labels]
    return asked


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The values as lines of text, a column a row of the assessment."""
    (rows, names), facts = wording.ordered(result), result["facts"]
    samples = f"{facts['samples']} samples, " if "samples" in facts else ""
    yield (
        f"{samples}{facts['held out']} held-out and {facts['reference']} training pictures; "
        f"features: {facts['extractor']}"
    )
    if able := facts.get("extractor is able to"):
        yield f"it can {able}"
    if told := wording.cost(facts):
        yield told
    label = min(LABEL, max(len(name) for name in names) + 1)
    cells = {row: ["", *(wording.shown(values.get(name)) for name in names)] for row, values in rows.items()}
    widths = {row: max(len(row), *map(len, column)) + 2 for row, column in cells.items()}
    for number, name in enumerate(("", *names)):
        lines = textwrap.wrap(name, label - 1) or [""]
        texts = [row if not number else column[number] for row, column in cells.items()]
        yield f"{lines[0]:{label}}" + "".join(f"{t:>{w}}" for t, w in zip(texts, widths.values(), strict=True))
        yield from (f"  {line}" for line in lines[1:])
    for told in (wording.neighbourhood(facts), wording.grouped(facts)):
        if told:
            yield told
    if told := wording.with_what(rows):
        yield told
    about: dict[str, dict[str, None]] = {}
    for values in rows.values():
        for name, value in values.items():
            if value["warning"]:
                about.setdefault(value["warning"], {})[name.split(" than the control")[0]] = None
    yield from (f"note: {', '.join(about[warning])}: {warning}" for warning in about)
