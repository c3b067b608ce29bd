"""`moyai evaluate RUN`: how good the samples and the first stage are, beside what real pictures reach."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moyai import build, tasks
from moyai.checkpoints import models
from moyai.console import Reporter
from moyai.data import splits
from moyai.data.locate import cache_folder
from moyai.errors import DataError
from moyai.evaluation import assessment
from moyai.files import read_json, write_json_atomic


def evaluate(run: Path, reporter: Reporter, *, count: int, seed: int, **settings: Any) -> Iterator[str]:
    """Measure a run, write `evaluation.json` into it, and yield the table's lines."""
    model = models.load(run)
    images = build.read_data(model.recipe.data, cache_folder(), reporter.progress)
    if images.fingerprint != read_json(run / "data.json")["fingerprint"]:
        raise DataError(
            f"{run} was trained on other data than {model.recipe.data.kind} gives now; evaluate it on its own"
        )
    halves = splits.split(images, model.recipe.data.validation)
    train, held_out = (images.subset(index) for index in halves)
    classes = max(1, len(model.classes))
    request = tasks.request(model, n=-(-count // classes), seed=seed, **settings)
    extractor = assessment.own_extractor(train, cache_folder(), reporter.progress)
    found = assessment.assess(
        model, train, held_out, extractor, request, cache=cache_folder(), progress=reporter.progress
    )
    result = found.plain()
    write_json_atomic(run / "evaluation.json", result)
    yield from table(result)
    yield f"`moyai train {run}` puts this into the report"


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The values as lines of text, a column a row of the assessment."""
    (rows, names), facts = assessment.ordered(result), result["facts"]
    yield (
        f"{facts['samples']} samples, {facts['held out']} held-out and {facts['reference']} training pictures; "
        f"features: {facts['extractor']}"
    )
    yield f"{'':20}" + "".join(f"{row:>26}" for row in rows)
    for name in names:
        cells = [assessment.shown(values.get(name)) for values in rows.values()]
        yield f"{name[:19]:20}" + "".join(f"{cell:>26}" for cell in cells)
    for warning in dict.fromkeys(v["warning"] for values in rows.values() for v in values.values() if v["warning"]):
        yield f"note: {warning}"
