"""What stands on one line of a comparison, and what is said of the rest."""

import pytest

import tiny
from moyai.evaluation.comparing import Figure, Line, Table, objective
from moyai.recipe.model import Recipe


def table(count: int) -> Table:
    return Table(tuple("abcd"[:count]))


def test_figures_of_one_scale_share_a_line_and_one_that_is_alone_is_left_out_with_the_nearest_difference() -> None:
    told = table(4)
    near, far = {"kind": "x", "data": "1"}, {"kind": "y", "data": "2"}
    told.compare("loss", [Figure(1.0, near), Figure(2.0, {**near, "data": "3"}), "cut off", Figure(3.5, near, 0.25)])
    assert told.lines == [Line("loss", (1.0, None, None, 3.5), ("1", "-", "-", "3.5 ± 0.25"))]
    assert told.notes == [
        "loss: none of c: cut off",
        "loss: that of b is left out: its data is 3, and that of a 1",
    ]
    told = table(3)
    told.compare("loss", [Figure(1.0, near), Figure(2.0, far), Figure(3.0, {**near, "more": "1"})])
    assert told.lines == []
    assert told.notes[0] == "loss: that of a is left out: its more is none, and that of c 1"
    assert told.notes[1] == "loss: that of b is left out: its kind is y, and that of a x"


def test_two_groups_have_two_lines_that_say_what_tells_them_apart() -> None:
    told = table(4)
    ours, theirs = {"kind": "x", "data": "1"}, {"kind": "x", "data": "2"}
    told.compare("loss", [Figure(1.0, ours), Figure(2.0, theirs), Figure(3.0, theirs), Figure(float("inf"), ours)])
    assert [line.name for line in told.lines] == ["loss (data 1)", "loss (data 2)"]
    assert [line.values for line in told.lines] == [(1.0, None, None, None), (None, 2.0, 3.0, None)]
    assert told.lines[0].shown == ("1", "-", "-", "inf")
    assert told.notes == []


def test_what_may_stand_alone_does() -> None:
    told = table(2)
    told.compare("rate", [Figure(1.0, {"data": "1"}), "no table"], alone=True)
    told.compare("rate", ["", ""], alone=True)
    assert [line.values for line in told.lines] == [(1.0, None)]
    assert told.notes == ["rate: none of b: no table"]


def recipe(**prior: object) -> Recipe:
    return tiny.recipe(tiny.Path("data"), {f"prior.{name}": value for name, value in prior.items()})


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"train": {"steps": 99}}, True),
        ({"conditions": {}}, True),
        ({"net": {"width": 64}}, True),
        ({"variance": {"kind": "learned"}}, True),  # what is validated is without the bound
        ({"weighting": {"kind": "plain", "gamma": 3.0}}, True),  # gamma is min-snr's
        ({"weighting": {"kind": "min-snr"}}, False),
        ({"parameterization": {"kind": "eps"}}, False),
        ({"parameterization": {"kind": "v", "table": {"kind": "linear"}}}, False),
        ({"parameterization": {"kind": "v", "zero_terminal": True}}, False),
        ({"density": {"kind": "logit-normal"}}, False),
    ],
)
def test_a_loss_is_that_of_its_parameterisation_density_and_weighting(changes: dict[str, object], same: bool) -> None:
    assert (objective(recipe()) == objective(recipe(**changes))) is same


def test_gamma_counts_where_it_acts() -> None:
    one, other = (objective(recipe(weighting={"kind": "min-snr", "gamma": gamma})) for gamma in (5.0, 3.0))
    assert one["weighting.gamma"] == "5.0"
    assert [key for key in one if one[key] != other[key]] == ["weighting.gamma"]
