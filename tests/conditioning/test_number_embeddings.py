"""Conditions that are one number: which values they take, and what of them reaches the vector."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moyai.conditioning.config import ClassCondition, PositionCondition, ScalarCondition
from moyai.conditioning.embeddings import ClassEmbedding, NumberEmbedding
from moyai.errors import ConfigError, DataError
from moyai.nets.layers import timestep_embedding
from moyai.recipe import reading

NUMBERS = [30.5, 70.0, 20.0]


def number(low: float = 20.0, high: float = 120.0, scale: float = 31.0) -> NumberEmbedding:
    torch.manual_seed(0)
    return NumberEmbedding(ScalarCondition(field="age", width=16, scale=scale), low, high)


def vector(made: NumberEmbedding, values: Any, keep: bool = True) -> Tensor:
    prepared = torch.from_numpy(made.prepare(np.array(values)))
    found = made(prepared, torch.full((len(prepared),), keep)).vector
    assert found is not None
    return found


def test_a_number_is_its_share_of_the_range_in_sinusoids() -> None:
    made = number()
    share = torch.tensor([0.105, 0.5, 0.0])
    wanted = made.layers(timestep_embedding(share * 31, 16, max_period=100.0))
    assert torch.allclose(vector(made, NUMBERS), wanted, atol=1e-6)


def test_the_null_does_not_know_the_number() -> None:
    made = number()
    made.null.data.normal_()
    for values in (NUMBERS, [3e38, -3e38, 0.0]):
        assert torch.equal(vector(made, values, keep=False), made.null.expand(3, -1))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-3e38, 3e38),  # a range that float32 does not hold
        (1.7e9, 1.7e9 + 4096),  # seconds since 1970: near each other, far from 0
    ],
)
def test_ranges_are_wide_or_far_from_zero(low: float, high: float) -> None:
    values = np.linspace(low, high, 9)
    wanted = vector(number(0.0, 1.0), np.linspace(0, 1, 9))
    assert torch.allclose(vector(number(low, high), values), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 1e39], r"age has the value 1e\+39; possible: numbers that float32 holds"),
        ([1.0, np.nan], "age has the value nan"),
        (["a"], "age is to be one number a picture, and is text; possible: another field"),
        (np.array(["a", None], dtype=object), "is text"),
        (np.zeros((2, 4, 4), np.uint8), r"and is of shape \(4, 4\)"),
    ],
)
def test_what_is_no_number_is_one_line(values: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        number().prepare(np.array(values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 3], "class has the value 3; possible: class numbers, 0 to 2"),
        ([0, -1], "class has the value -1"),
        ([70.5], "class has the value 70.5"),
        (["cat"], "class is to be one number a picture, and is text"),
        (np.zeros((2, 4, 4), np.uint8), "of shape"),
    ],
)
def test_what_is_no_class_is_one_line(values: Any, said: str) -> None:
    made = ClassEmbedding(ClassCondition(width=4), 3)
    assert made.prepare(np.array([2, 0])).dtype == made.prepare(np.array([2.0, 0.0])).dtype == np.int64
    with pytest.raises(DataError, match=said):
        made.prepare(np.array(values))


def test_a_position_is_taken_as_it_is() -> None:
    torch.manual_seed(0)
    made = NumberEmbedding(PositionCondition(width=16, scale=1.0))
    whole = vector(made, np.arange(4))  # a slice's number
    assert torch.equal(whole, vector(made, np.arange(4.0)))
    assert torch.equal(whole, made.layers(timestep_embedding(torch.arange(4), 16, max_period=100.0)))


def told(conditions: dict[str, Any]) -> dict[str, Any]:
    tree = {"name": "x", "data": {"kind": "digits"}, "prior": {"conditions": conditions}}
    return dict(reading.parse(tree).prior.conditions or {})


@pytest.mark.parametrize("name", ["a.b", "", "a b", "a\nb", "*"])
def test_a_name_that_weights_cannot_go_by_is_refused_with_the_recipe(name: str) -> None:
    with pytest.raises(ConfigError, match="may hold letters, digits, dashes and underscores") as caught:
        told({name: {"kind": "class"}})
    assert "\n" not in str(caught.value)
    assert list(told({"étage-2_b": {"kind": "class"}})) == ["étage-2_b"]


def test_a_guidance_weight_is_one_that_a_request_may_have() -> None:
    assert told({"class": {"kind": "class", "guidance": 1000}})["class"].guidance == 1000
    with pytest.raises(ConfigError, match=r"guidance is 1001; it must be .*<= 1000"):
        told({"class": {"kind": "class", "guidance": 1001}})
