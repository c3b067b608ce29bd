"""Each step is what its own model draws, the last is the run's; what is known is not measured again."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moyai import tasks
from moyai.checkpoints import averages, models
from moyai.errors import RequestError
from moyai.evaluation import frechet, snapshots
from moyai.evaluation.features import extract
from moyai.evaluation.neighbours import manifold
from moyai.evaluation.rows import Reference, Searched
from moyai.evaluation.values import Source


class Pooled:
    """An extractor that needs no training: the means of 2 x 2 places."""

    source = Source("means of 2 x 2", "a" * 64, 16)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)

    def probabilities(self, features: torch.Tensor) -> None:
        return None


def against(pixels: np.ndarray, source: Source = Pooled.source) -> Reference:
    found = dataclasses.replace(extract(Pooled(), pixels), source=source)
    statistics = frechet.Statistics.of(found.values, source)
    return Reference(pixels, found, found.rows(torch.arange(30)), statistics, Searched(pixels, found, (), None))


Measure = Callable[..., Iterator[tuple[int, dict[str, Any]]]]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run / "run", tmp_path / "run"))


@pytest.fixture
def reference() -> Reference:
    return against(np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), dtype=np.uint8))


@pytest.fixture
def measure(run: Path, reference: Reference) -> Measure:
    """`snapshots.measure` of the run, everything but what a test changes filled in; `loaded` lists the steps drawn."""
    model = models.load(run)

    def go(loaded: list[int], n: int = 4, **changes: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        def load(average: averages.Average) -> Any:
            loaded.append(average.step)
            return averages.at(model, average)

        settings: dict[str, Any] = {"extractor": Pooled(), "reference": reference, "kept": averages.kept(run)}
        settings |= {"request": tasks.request(model, n=n), "load": load, "progress": lambda *told: None, **changes}
        return snapshots.measure(run, **settings)

    return go


def test_each_step_is_judged_by_what_it_draws_and_the_last_is_the_run_s(
    run: Path, measure: Measure, reference: Reference
) -> None:
    found = dict(measure([]))
    assert list(found) == [average.step for average in averages.kept(run)]
    assert len({values["fid"]["value"] for values in found.values()}) == len(found)
    model = models.load(run)
    drawn = tasks.collect(model, tasks.request(model, n=4))
    mine = extract(Pooled(), np.ascontiguousarray(drawn.transpose(0, 3, 1, 2)))
    near = manifold(mine, reference.neighbourhood)
    expected = {"fid": frechet.fid(mine, reference.features).value, "precision": near.precision, "recall": near.recall}
    for name, value in expected.items():
        told = {field: getattr(value, field) for field in ("metric", "value", "low", "high", "error", "count")}
        assert told.items() <= found[12][name].items()
        assert found[12][name]["source"] == str(Pooled.source)
    stored = json.loads((run / snapshots.FILE).read_text())
    assert {entry["step"]: entry["values"] for entry in stored["steps"]} == found
    assert stored["facts"]["request"]["n"] == 4


def test_what_was_cut_off_goes_on_and_what_is_known_is_not_drawn(run: Path, measure: Measure) -> None:
    steps = [average.step for average in averages.kept(run)]
    first: list[int] = []
    begun = measure(first)
    for _ in range(2):
        next(begun)
    begun.close()
    assert first == steps[:2]
    assert [entry["step"] for entry in json.loads((run / snapshots.FILE).read_text())["steps"]] == steps[:2]
    second: list[int] = []
    found = dict(measure(second))
    assert second == steps[2:]
    again: list[int] = []
    assert dict(measure(again)) == found
    assert again == []


def test_other_facts_or_other_weights_are_measured_anew(run: Path, measure: Measure, reference: Reference) -> None:
    steps = [average.step for average in averages.kept(run)]
    list(measure([]))
    loaded: list[int] = []
    kept = averages.kept(run)
    kept[1] = dataclasses.replace(kept[1], digest="0" * 64)
    list(measure(loaded, kept=kept))
    assert loaded == [steps[1]]
    for changes in ({"n": 5}, {"reference": against(255 - reference.pixels)}):
        loaded = []
        list(measure(loaded, kept=kept[:1], **changes))
        assert loaded == steps[:1]
        stored = json.loads((run / snapshots.FILE).read_text())["steps"]
        assert [entry["step"] for entry in stored] == steps[:1]  # the others were of other facts


def test_a_step_that_is_gone_leaves_the_file(run: Path, measure: Measure) -> None:
    list(measure([]))
    kept, loaded = averages.kept(run), list[int]()
    list(measure(loaded, kept=kept[2:]))
    assert loaded == []
    stored = json.loads((run / snapshots.FILE).read_text())["steps"]
    assert [entry["step"] for entry in stored] == [average.step for average in kept[2:]]


def test_progress_names_the_step_and_another_extractor_is_refused(measure: Measure, reference: Reference) -> None:
    said: list[str] = []
    next(measure([], progress=lambda what, done, total: said.append(what)))
    assert said[0] == "sampling at step 1 (1 of 4)"
    assert said[-1].startswith("features at step 1")
    other = against(reference.pixels, Source("another", "b" * 64, 16))
    with pytest.raises(RequestError, match="make both with one extractor"):
        next(measure([], reference=other))


def test_a_request_for_maps_is_known_by_their_hashes(reference: Reference) -> None:
    facts = [
        snapshots._facts(Pooled(), reference, tasks.Request(n=1, asked={"mask": (np.full((8, 8), k, np.uint8),)}))
        for k in (1, 1, 2)
    ]
    told = [json.dumps(one) for one in facts]
    assert told[0] == told[1] != told[2]
