"""Conditions: what is dropped, how often, and what the null knows."""

import math

import pytest
import torch

from moyai.conditioning.conditioner import Conditioner, class_numbers
from moyai.conditioning.config import (
    ClassCondition,
    LowResolutionCondition,
    MapCondition,
    MaskedCondition,
    ScalarCondition,
)
from moyai.conditioning.embeddings import ClassEmbedding, NumberEmbedding
from moyai.conditioning.spatial import LowResolution, Masked, RegionMap
from moyai.errors import RequestError
from moyai.randomness import Draw


def conditioner(route: str = "both", dropout: float = 0.2, classes: int = 4) -> Conditioner:
    torch.manual_seed(0)
    return Conditioner({"class": ClassEmbedding(ClassCondition(route=route, width=6, dropout=dropout), classes)})


LABELS = torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("route", ["vector", "context", "both"])
def test_routes_and_widths(route: str) -> None:
    made = conditioner(route)
    cond = made({"class": LABELS}, 4)
    assert (cond.vector is not None) == (route != "context") == (made.vector_width == 6)
    assert (cond.context is not None) == (route != "vector") == (made.context_width == 6)
    table = made.conditions["class"].embedding.weight
    if cond.vector is not None:
        assert torch.equal(cond.vector, table[:4])
    if cond.context is not None:
        assert torch.equal(cond.context, table[:4, None])


def test_the_null_does_not_know_the_class() -> None:
    made = conditioner()
    null = made.null(4)
    assert null.vector is not None
    assert torch.equal(null.vector, made.conditions["class"].embedding.weight[4:].expand(4, -1))
    for labels in (LABELS, LABELS.flip(0)):
        dropped = made({"class": labels}, 4, {"class": torch.zeros(4, dtype=torch.bool)})
        assert torch.equal(dropped.vector, null.vector)
        assert torch.equal(dropped.context, null.context)
    assert torch.equal(made({}, 4).vector, null.vector)  # a field that is not told


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_conditions_are_dropped_at_their_rate(rate: float) -> None:
    made, count = conditioner(dropout=rate), 20_000
    cond = made.dropped({"class": torch.zeros(count, dtype=torch.int64)}, Draw(0, 0, count))
    null = made.null(1).vector
    gone = int((cond.vector == null).all(1).sum())
    assert abs(gone - rate * count) <= 5 * math.sqrt(count * rate * (1 - rate))  # 1 in 10^6 of a binomial


def test_what_is_dropped_follows_from_the_draw() -> None:
    made = conditioner(dropout=0.5)
    labels = torch.arange(32) % 4
    whole = made.dropped({"class": labels}, Draw(0, 5, 32)).vector
    part = made.dropped({"class": labels[8:20]}, Draw(0, 5, 32).rows(8, 20)).vector
    assert torch.equal(part, whole[8:20])
    assert not torch.equal(whole, made.dropped({"class": labels}, Draw(0, 6, 32)).vector)


def test_several_conditions_stand_side_by_side() -> None:
    torch.manual_seed(0)
    parts = {
        name: ClassEmbedding(ClassCondition(field=name, route=route, width=5, dropout=0.5), 3)
        for name, route in (("a", "both"), ("b", "vector"), ("c", "context"))
    }
    made = Conditioner(parts)
    assert (made.vector_width, made.context_width, made.fields()) == (10, 5, ("a", "b", "c"))
    fields = {name: torch.tensor([i]) for i, name in enumerate(parts)}
    cond = made(fields, 1)
    assert torch.equal(cond.vector[0], torch.cat([parts["a"].embedding.weight[0], parts["b"].embedding.weight[1]]))
    assert torch.equal(cond.context[0, 1], parts["c"].embedding.weight[2])
    many = {name: torch.zeros(4000, dtype=torch.int64) for name in parts}
    dropped = made.dropped(many, Draw(0, 0, 4000)).vector
    a, b = (
        (dropped[:, :5] == parts["a"].embedding.weight[3]).all(1),
        (dropped[:, 5:] == parts["b"].embedding.weight[3]).all(1),
    )
    assert abs(float((a & b).float().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)  # each independently


def test_contexts_of_other_widths_cannot_stand_together() -> None:
    with pytest.raises(ValueError, match="must have one width"):
        Conditioner({str(w): ClassEmbedding(ClassCondition(width=w), 3) for w in (4, 8)})


def test_conditions_may_be_called_what_modules_call_their_own_parts() -> None:
    names = ("type", "values", "half", "to", "train", "items")
    both = Conditioner({name: ClassEmbedding(ClassCondition(), 3) for name in names})
    assert tuple(both.conditions) == names
    other = Conditioner({name: ClassEmbedding(ClassCondition(), 3) for name in names})
    other.load_state_dict(both.state_dict())
    assert all(key.split(".")[1] in names for key in both.state_dict() if key.startswith("conditions."))
    assert both.half().train().to("cpu") is both


def test_nothing_told_is_no_condition() -> None:
    made = Conditioner({})
    assert (len(made.null(3)), made.fields(), made.vector_width, made.context_width) == (0, (), None, None)


NAMES = ("cat", "Dog", "dog", "3", "1", "12")


@pytest.mark.parametrize(
    ("word", "number"),
    [("cat", 0), ("CAT", 0), ("Dog", 1), ("dog", 2), ("3", 3), ("1", 4), ("0", 0), ("5", 5), (1, 1), (3, 3)],
)
def test_names_go_before_numbers_and_integers_are_numbers(word: str | int, number: int) -> None:
    assert class_numbers([word], NAMES) == [number]


@pytest.mark.parametrize("word", ["bird", "6", "-1", "²", "", 6, -1])
def test_unknown_classes_are_refused_with_what_is_possible(word: str | int) -> None:
    with pytest.raises(RequestError, match=rf"class '?{word}'? is unknown; (possible: cat, Dog, dog|did you mean)"):
        class_numbers([word], NAMES)
    with pytest.raises(RequestError, match="this model knows no classes"):
        class_numbers([word], ())


def test_what_training_never_left_out_is_needed() -> None:
    def of(dropout: float) -> ClassEmbedding:
        return ClassEmbedding(ClassCondition(field=f"at {dropout}", dropout=dropout), 2)

    parts = {"sometimes": of(0.1), "always": of(0.0)}
    assert Conditioner(parts).needed() == ("at 0.0",)
    assert Conditioner(parts, together=0.1).needed() == ()
    assert Conditioner({}).needed() == ()


def test_no_condition_asks_a_device_for_values() -> None:
    """Tensors of the device "meta" have no values, so that whatever reads one fails, where it would wait on a GPU."""
    made = Conditioner(
        {
            "class": ClassEmbedding(ClassCondition(width=16), 3),
            "age": NumberEmbedding(ScalarCondition(field="age", width=16, route="both"), 20, 80),
            "map": RegionMap(MapCondition(), 3, (4, 4)),
            "small": LowResolution(LowResolutionCondition(), (3, 16, 16), (4, 4)),
            "holes": Masked(MaskedCondition(), (3, 16, 16), 4),
        }
    )
    fields = {
        "class": torch.zeros(5, dtype=torch.int64),
        "age": torch.zeros(5),
        "mask": torch.zeros(5, 16, 16, dtype=torch.uint8),
        "low_resolution": torch.zeros(5, 3, 4, 4),
        "masked": torch.zeros(5, 4, 16, 16),
    }
    shapes = {name: route.shape for name, route in made(fields, 5).routes().items()}
    assert shapes == {"vector": (5, 32), "context": (5, 2, 16), "concat": (5, 4 + 4 + 64, 4, 4)}
    there = {field: values.to("meta") for field, values in fields.items()}
    keep = {name: torch.ones(5, dtype=torch.bool, device="meta") for name in made.conditions}
    assert {name: route.shape for name, route in made.to("meta")(there, 5, keep).routes().items()} == shapes
