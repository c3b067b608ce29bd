"""What several models are asked alike: fields and classes that mean the same to all, by name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from moyai import tasks
from moyai.checkpoints import models
from moyai.commands import sharing
from moyai.conditioning.conditioner import Conditioner
from moyai.conditioning.config import ClassCondition, MapCondition, PositionCondition, ScalarCondition
from moyai.conditioning.embeddings import ClassEmbedding, NumberEmbedding
from moyai.conditioning.spatial import RegionMap
from moyai.errors import RequestError
from moyai.model import LatentModel


@pytest.fixture(scope="module")
def trained(finished_run: Path) -> LatentModel:
    return models.load(finished_run / "run")


def told(model: LatentModel, *fields: str, classes: tuple[str, ...] = (), **changes: Any) -> LatentModel:
    """The model as if it were told other things."""
    made: dict[str, nn.Module] = {}
    for name in fields:
        if name == "class":
            made[name] = ClassEmbedding(ClassCondition(), len(classes))
        elif name == "position":
            made[name] = NumberEmbedding(PositionCondition())
        elif name == "age":
            made[name] = NumberEmbedding(ScalarCondition(field="age"), 20, 80)
        else:
            made[name] = RegionMap(MapCondition(), 2, (4, 4))
    facts = model.facts.model_copy(update={"classes": classes, **changes.pop("facts", {})})
    return replace(model, conditioner=Conditioner(made), facts=facts, **changes)


def rows(*several: LatentModel, **given: list[Any]) -> dict[str, list[Any]]:
    return sharing.rows({f"run {i}": model for i, model in enumerate(several)}, given)


def test_classes_are_shared_by_their_names(trained: LatentModel) -> None:
    one = told(trained, "class", classes=("disc", "ring", "square"))
    other = told(trained, "class", classes=("oval", "square", "disc"))
    assert rows(one, other) == {"class": ["disc", "square"]}
    assert rows(one, other, **{"class": ["2", "disc"]}) == {"class": ["square", "disc"]}  # numbers are the first's
    asked = [tasks.request(model, rows=rows(one, other)).asked["class"] for model in (one, other)]
    assert asked == [(0, 2), (2, 1)]
    with pytest.raises(RequestError, match="class 'ring' is not known to run 1; all runs know: disc, square"):
        rows(one, other, **{"class": ["ring"]})
    strange = told(trained, "class", classes=("a", "b"))
    assert rows(one, strange) == {}
    many = told(trained, "class", classes=tuple("abcdefghijklmn"))
    assert rows(many, many) == {"class": list("abcdefghij")}


def test_positions_are_eight_or_the_middle_of_each_class(trained: LatentModel) -> None:
    place, both = told(trained, "position"), told(trained, "class", "position", classes=("a", "b"))
    assert rows(place, both) == {"position": [(i + 0.5) / 8 for i in range(8)]}
    assert rows(both, both) == {"class": ["a", "b"], "position": [0.5, 0.5]}
    assert rows(both, both, position=[0.1, 0.9]) == {"class": ["a", "a", "b", "b"], "position": [0.1, 0.9, 0.1, 0.9]}
    with pytest.raises(RequestError, match="--class was given, which not all runs are told; all are told: position"):
        rows(place, both, **{"class": ["a"]})
    assert rows(place, told(trained)) == {}


def test_what_a_run_was_never_trained_without_is_not_left_untold(trained: LatentModel) -> None:
    def of(dropout: float, *fields: str) -> LatentModel:
        made = told(trained, *fields, classes=("a", "b"))
        for condition in made.conditioner.conditions.values():
            condition.dropout = dropout  # type: ignore[assignment]
        return made

    sometimes, always = of(0.1, "class", "age", "position"), of(0.0, "class", "age")
    assert rows(sometimes, told(trained, "class", classes=("a", "b"))) == {"class": ["a", "b"]}
    with pytest.raises(RequestError, match="run 1 draws nothing without its age, which not all runs are told"):
        rows(told(trained, "class", classes=("a", "b")), always)
    with pytest.raises(RequestError, match="run 1 draws nothing without its age; possible: without --class"):
        rows(sometimes, always, **{"class": ["a"]})
    with pytest.raises(RequestError, match="run 0 draws nothing without its position; possible: --position, or with"):
        rows(of(0.0, "position", "age"), of(0.1, "position", "age"), age=[1.0])


def test_the_combinations_are_those_of_a_request(trained: LatentModel) -> None:
    both = told(trained, "class", "position", classes=("a", "b"))
    mine = tasks.request(both, rows=rows(both, both, position=[0.9, 0.1], **{"class": ["b", "a"]}))
    theirs = tasks.request(both, ["b", "a"], positions=[0.9, 0.1])
    assert mine.asked == theirs.asked


def test_other_fields_come_from_the_examples_of_a_run(trained: LatentModel) -> None:
    maps = np.arange(3 * 64).reshape(3, 8, 8).astype(np.uint8) % 2
    kept: Mapping[str, np.ndarray] = {"class": np.array([0, 1, 2]), "mask": maps}
    names = {"facts": {"regions": ("no", "yes")}}
    one = told(trained, "class", "mask", classes=("a", "b", "c"), examples=kept, **names)
    other = told(trained, "mask", "class", classes=("c", "a"), **names)
    found = rows(other, one)
    assert found["class"] == ["a", "c"]  # "b" is not known to both
    assert (np.stack(found["mask"]) == maps[[0, 2]]).all()
    assert rows(one, other, **{"class": ["a"]}) == {"class": ["a"]}
    elsewhere = told(trained, "mask", facts={"regions": ("no", "maybe")}, examples=kept)
    assert sharing.shared_fields({"one": one, "other": elsewhere}) == []
    with pytest.raises(RequestError, match="no run kept examples of mask"):
        rows(told(trained, "mask", examples={}), told(trained, "mask", examples={}))
