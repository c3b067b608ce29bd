"""Requests: what is asked becomes rows, what is not given follows from the model, nonsense is refused."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from moyai.diffusion.config import SamplingConfig
from moyai.errors import RequestError
from moyai.model import LatentModel
from moyai.redrawing import like, picture_recipe
from moyai.requests import Request, request, row_names

FIELDS = ("class", "position", "caption", "age", "mask")


def model(*fields: str, examples: dict[str, Any] | None = None, needed: tuple[str, ...] = ()) -> LatentModel:
    """What a request needs of a model; needed: what training never left out."""
    made = SimpleNamespace(
        recipe=SimpleNamespace(sampling=SamplingConfig(), name="m", prior=None),
        prior=None,
        fields=fields,
        classes=("cat", "dog") if "class" in fields else (),
        facts=SimpleNamespace(regions=("sky", "sea", "land"), classes=("cat", "dog")),
        codec=SimpleNamespace(image_shape=(1, 4, 6), needed=lambda: ()),
        examples=examples or {},
        conditioner=SimpleNamespace(needed=lambda: needed),
        digest="0",
    )
    return cast(LatentModel, made)


def test_what_is_asked_is_combined_each_with_each() -> None:
    r = request(model(*FIELDS), ["dog", "cat"], captions=["a", "b"], others={"age": [70, 80.5]}, n=3)
    assert r.asked == {
        "class": (1, 1, 1, 1, 0, 0, 0, 0),
        "caption": ("a", "a", "b", "b", "a", "a", "b", "b"),
        "age": (70.0, 80.5) * 4,
    }
    assert (r.rows, r.count) == (8, 24)
    fields = r.fields()
    assert fields["class"].tolist() == [1] * 12 + [0] * 12
    assert fields["age"].dtype == np.float32
    assert fields["caption"].tolist()[:7] == ["a"] * 6 + ["b"]
    assert row_names(model(*FIELDS), r)[3] == "dog b age 80.5"  # type: ignore[index]


def test_rows_are_taken_as_they_are() -> None:
    rows = {"caption": ["x", "y"], "mask": [np.zeros((4, 6), np.uint8), np.full((4, 6), 2, np.uint8)]}
    r = request(model(*FIELDS), rows=rows, n=2)
    assert (r.rows, r.count) == (2, 4)
    assert r.fields()["mask"].shape == (4, 4, 6)
    assert r.fields()["mask"][:, 0, 0].tolist() == [0, 0, 2, 2]
    with pytest.raises(RequestError, match="a value for each field"):
        request(model(*FIELDS), rows={"caption": ["x"], "age": [1, 2]})


def test_where_nothing_is_asked_it_is_all_there_is_or_the_examples() -> None:
    assert request(model("class"), n=2).asked == {"class": (0, 1)}
    assert request(model("class", "position"), n=1).rows == 16
    assert request(model()).asked == {}
    examples = {"caption": np.array(["p", "q", "r"]), "class": np.array([1, 0, 1])}
    assert request(model("class", "caption", examples=examples)).asked == {
        "caption": ("p", "q", "r"),
        "class": (1, 0, 1),
    }
    # what is asked by itself leaves the rest untold
    assert request(model("class", "caption", examples=examples), captions=["z"]).asked == {"caption": ("z",)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"captions": [3]}, "caption 3 is no text"),
        ({"others": {"age": [float("nan")]}}, "age nan is no finite number"),
        ({"others": {"age": ["old"]}}, "age 'old' is no finite number"),
        (
            {"others": {"weight": [1.0]}},
            "weight 1.0 was asked for, but this model knows no weights; it can be told: class",
        ),
        ({"positions": [1.5]}, "position 1.5 is out of range"),
        ({"others": {"age": [-(10**400)]}}, "is no finite number"),
        ({"others": {"age": [1e39]}}, r"age 1e\+39 is no finite number"),
        ({"others": {"mask": [np.zeros((4, 5), np.uint8)]}}, "the map is 4 x 5; this model takes 4 x 6"),
        ({"others": {"mask": [np.full((4, 6), 3, np.uint8)]}}, "the map has region 3; this model knows 0 to 2"),
        ({"others": {"mask": [np.zeros((4, 6), np.float32)]}}, "the map has region"),
    ],
)
def test_what_cannot_be_asked_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request(model(*FIELDS), **given)


def test_what_training_never_left_out_is_not_left_out() -> None:
    """Its null was never learned: what is drawn by it is nothing in particular."""
    needs_a_picture = model("low_resolution", "caption", needed=("low_resolution",))
    for given in ({}, {"captions": ["a"]}, {"rows": {"caption": ["a"]}}):
        with pytest.raises(RequestError, match="needs a picture to begin with, and low_resolution was not given"):
            request(needs_a_picture, **given)
    small = [np.zeros((1, 2, 3), np.uint8)]
    assert set(request(needs_a_picture, others={"low_resolution": small}).asked) == {"low_resolution"}
    assert request(model("low_resolution", "caption"), captions=["a"]).asked == {"caption": ("a",)}
    aged = model("class", "age", needed=("class", "age"))
    with pytest.raises(RequestError, match=r"no age was given, and training never left it out \(dropout 0\)"):
        request(aged, ["cat"])
    with pytest.raises(RequestError, match="no class was given"):
        request(aged, others={"age": [3]})
    assert request(aged, ["cat"], others={"age": [3]}).rows == 1
    assert request(model("class", "position", needed=("class", "position"))).rows == 16  # all there is


def test_a_picture_says_what_it_was_asked_and_arrays_by_their_hash() -> None:
    one, other = np.zeros((4, 6), np.uint8), np.ones((4, 6), np.uint8)
    made = model(*FIELDS)
    r = request(made, rows={"caption": ["x", "y"], "mask": [one, other]}, n=2, seed=5)
    recipe = picture_recipe(made, r, 3)
    assert (recipe["n"], recipe["seed"], recipe["asked"]["caption"]) == (1, 8, ["y"])
    assert recipe["asked"]["mask"][0]["shape"] == [4, 6]
    again, changes = like(made, recipe, {"mask": [other]})
    assert changes == []
    assert again.asked["mask"][0].tolist() == other.tolist()
    for given in (None, {"mask": [one]}):
        with pytest.raises(RequestError, match="give the same again"):
            like(made, recipe, given)


def test_a_request_without_rows_is_one_row() -> None:
    assert (Request(n=5).rows, Request(n=5).count, Request(n=5).fields(), Request().labels()) == (1, 5, {}, None)
