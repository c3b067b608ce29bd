"""How the samples became better while the prior trained: FID, precision and recall of each average that was kept.

Every one draws the same request, so picture i begins from the same noise at every step, and is judged in the same
features against the same reference: what differs is the training alone. Results lie in the run's folder:

    evaluation/snapshots.json    {"facts": {extractor, reference, request},
                                  "steps": [{"step": 400, "digest": "...", "values": {"fid": {...}, ...}}, ...]}

The file is written anew after each step, so that whoever was cut off goes on there. A result counts as known only where
the facts, and the weights by their digest, are those it was made with.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from moyai import tasks
from moyai.evaluation import frechet
from moyai.evaluation.features import Extractor, extract, make_folder, weights_hash
from moyai.evaluation.neighbours import manifold
from moyai.evaluation.rows import Reference
from moyai.evaluation.values import same_source
from moyai.files import canonical_json, read_json, write_json_atomic
from moyai.model import LatentModel

FILE = Path("evaluation") / "snapshots.json"  # in the folder of a run
Progress = Callable[[str, int, int], None]


class Kept(Protocol):
    """An average that was kept: its step, and a hash that changes when the weights do."""

    @property
    def step(self) -> int: ...

    @property
    def digest(self) -> str: ...


K = TypeVar("K", bound=Kept)


def measure(
    run: Path,
    kept: Sequence[K],
    load: Callable[[K], LatentModel],
    extractor: Extractor,
    reference: Reference,
    request: tasks.Request,
    *,
    progress: Progress,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each step and its values as JSON holds them (`fid`, `precision`, `recall`), those that are known at once.

    kept: what to measure, by step; `load` gives the model of one (`checkpoints.averages` has both). Where `request` and
    `reference` are those of the run's evaluation, the values of the last step are those of its table. Results of other
    facts or other weights are dropped from the file. RequestError where the reference is of another extractor;
    DataError for fewer than four samples or six reference pictures.
    """
    same_source(extractor.source, reference.features.source)
    facts = _facts(extractor, reference, request)
    found = _known(run, facts, kept)
    for number, one in enumerate(kept, 1):
        if one.step not in found:
            here = f"step {one.step} ({number} of {len(kept)})"
            values = _values(load(one), extractor, reference, request, here, progress)
            found[one.step] = {"step": one.step, "digest": one.digest, "values": values}
            _write(run, facts, found)
        yield one.step, found[one.step]["values"]


def _values(
    model: LatentModel,
    extractor: Extractor,
    reference: Reference,
    request: tasks.Request,
    here: str,
    progress: Progress,
) -> dict[str, Any]:
    drawn = tasks.collect(model, request, lambda done, total: progress(f"sampling at {here}", done, total))
    planes = np.ascontiguousarray(drawn.transpose(0, 3, 1, 2))
    mine = extract(extractor, planes, progress=lambda done, total: progress(f"features at {here}", done, total))
    near = manifold(mine, reference.neighbourhood, radii=reference.radii)
    found = {"fid": frechet.fid(mine, reference.statistics).value, "precision": near.precision, "recall": near.recall}
    return {name: {**asdict(value), "source": str(value.source)} for name, value in found.items()}


def _facts(extractor: Extractor, reference: Reference, request: tasks.Request) -> dict[str, Any]:
    """What all results in a file have in common, as JSON gives it back."""
    digest = weights_hash({"all": reference.features.values, "neighbourhood": reference.neighbourhood.values})
    facts = {
        "extractor": str(extractor.source),
        "reference": {"count": len(reference.features), "sha256": digest},
        "request": request.plain(),
    }
    return dict(json.loads(canonical_json(facts)))


def _known(run: Path, facts: Mapping[str, Any], kept: Sequence[Kept]) -> dict[int, dict[str, Any]]:
    """The results that still hold, by step; the file is brought to them."""
    if not (run / FILE).is_file():
        return {}
    stored = read_json(run / FILE)
    digests = {one.step: one.digest for one in kept}
    same = stored["facts"] == facts
    found = {e["step"]: e for e in stored["steps"] if same and digests.get(e["step"]) == e["digest"]}
    if len(found) < len(stored["steps"]):
        _write(run, facts, found)
    return found


def _write(run: Path, facts: Mapping[str, Any], found: Mapping[int, Mapping[str, Any]]) -> None:
    result = {"facts": facts, "steps": [found[step] for step in sorted(found)]}
    make_folder((run / FILE).parent, 0)
    write_json_atomic(run / FILE, result)
