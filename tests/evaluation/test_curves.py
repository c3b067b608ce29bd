"""Charts: the values read back from where they are drawn, and what is hard to draw."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyai.evaluation.curves import Series, _number, chart, thinned
from moyai.evaluation.terminal import terminal_plot

NS = "{http://www.w3.org/2000/svg}"
WORDS = {"title": "T", "x_label": "step", "y_label": "loss"}
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def value_of(label: str) -> float:
    return float(label[:-1]) * UNITS[label[-1]] if label[-1] in UNITS else float(label)


def ticks(root: ElementTree.Element) -> tuple[dict[float, float], dict[float, float]]:
    """The values written at the axes and where: read as a person reads them, by the grid lines and tick marks."""
    found: tuple[dict[float, float], dict[float, float]] = ({}, {})
    for mark, text in pairwise(list(root)):
        match = re.fullmatch(r"M([\d.-]+),([\d.-]+)(H[\d.-]+|v4)", mark.get("d", ""))
        if match and text.tag == f"{NS}text":
            axis = 0 if match[3] == "v4" else 1
            found[axis][value_of(text.text)] = float(match[1 + axis])
    return found


def reader(places: dict[float, float]) -> tuple[float, float]:
    """The straight line from pixels to values through the outermost ticks: (slope, offset)."""
    low, high = min(places), max(places)
    slope = (high - low) / (places[high] - places[low])
    return slope, low - slope * places[low]


def read(svg: str, log_y: bool = False) -> np.ndarray:
    root = ElementTree.fromstring(svg)
    x_ticks, y_ticks = ticks(root)
    y_ticks = {math.log10(v): p for v, p in y_ticks.items()} if log_y else y_ticks
    (xm, xb), (ym, yb) = reader(x_ticks), reader(y_ticks)
    drawn = [p.get("d") for p in root.iter(f"{NS}path") if p.get("fill") == "none"]
    points = np.array([[float(n) for n in pair.split(",")] for d in drawn for pair in re.split("[ML]", d) if pair])
    values = points * [xm, ym] + [xb, yb]
    return np.stack([values[:, 0], 10 ** values[:, 1] if log_y else values[:, 1]], axis=1)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 0.03, 1.0, 4e4, 7e8])
def test_values_can_be_read_off_the_axes(scale):
    x, y = np.arange(50) * 20, scale * np.cos(np.arange(50))
    values = read(chart([Series("a", x, y)], **WORDS))
    assert np.allclose(values[:, 0], x, rtol=0, atol=0.005 * x.max())
    assert np.allclose(values[:, 1], y, rtol=0, atol=0.005 * scale)


@pytest.mark.parametrize("decades", [0.3, 1.5, 6, 30])
def test_values_can_be_read_off_a_logarithmic_axis(decades):
    y = 10 ** np.linspace(0, -decades, 40)
    values = read(chart([Series("a", range(40), y)], **WORDS, log_y=True), log_y=True)
    assert np.allclose(np.log10(values[:, 1]), np.log10(y), rtol=0, atol=0.01 * decades)


def test_a_level_crosses_the_frame_and_whiskers_span_their_intervals():
    points = Series("a", [1, 2, 3], [10, 20, 40], "joined", ([5, math.nan, 30], [20, 30, 80]))
    root = ElementTree.fromstring(chart([points, Series("floor", [1, 3], [4, 4], "level")], **WORDS, log_y=True))
    xm, xb = reader(ticks(root)[0])
    ym, yb = reader({math.log10(value): place for value, place in ticks(root)[1].items()})
    dashed = [p for p in root.iter(f"{NS}path") if p.get("stroke-dasharray")]
    start, height, stop = map(float, re.fullmatch(r"M([\d.]+),([\d.]+)L([\d.]+),\2", dashed[0].get("d")).groups())
    assert 10 ** (ym * height + yb) == pytest.approx(4, rel=0.02)
    assert (xm * start + xb, xm * stop + xb) == (pytest.approx(1, abs=0.02), pytest.approx(3, abs=0.02))
    strokes = next(p.get("d") for p in root.iter(f"{NS}path") if p.get("stroke-opacity"))
    found = [
        (xm * float(x) + xb, 10 ** (ym * float(low) + yb), 10 ** (ym * float(high) + yb))
        for x, low, high in re.findall(r"M([\d.]+),([\d.]+)V([\d.]+)", strokes)
    ]
    assert np.allclose([f[0] for f in found], [1, 2, 3], atol=0.02)
    assert np.allclose([f[2] for f in found], [20, 30, 80], rtol=0.02)
    assert np.allclose([found[0][1], found[2][1]], [5, 30], rtol=0.02)
    assert found[1][1] < 4  # an end that is not on the axis: down to its bottom
    with pytest.raises(ValueError, match="or of their intervals"):
        Series("a", [1, 2], [1, 2], "joined", ([1], [2, 2]))


def test_gaps_break_the_line_and_lone_values_are_dots():
    y = [1, 2, math.nan, 3, math.inf, 2, 1, 2]
    root = ElementTree.fromstring(chart([Series("a", range(8), y)], **WORDS))
    lines = [p.get("d") for p in root.iter(f"{NS}path") if p.get("fill") == "none"]
    assert [part.count("L") + 1 for part in lines[0].split("M")[1:]] == [2, 3]
    assert len(list(root.iter(f"{NS}circle"))) == 1


@pytest.mark.parametrize(("y", "log_y"), [([], False), ([math.nan, math.inf], False), ([0.0, -1.0], True)])
def test_nothing_to_draw_is_said(y, log_y):
    svg = chart([Series("a", range(len(y)), y)], **WORDS, log_y=log_y)
    ElementTree.fromstring(svg)
    assert svg.count("no finite values") == 2  # seen, and told to a screen reader


@pytest.mark.parametrize(
    "y",
    [[5.0], [0.0, 0.0], [1e-300, 1e-300], [0.0, 5e-324], [1e-280], [-3e12, -3e12], [1e308, -1e308], [1.0, 1.0 + 1e-15]],
)
@pytest.mark.parametrize("mark", ["line", "points", "joined"])
def test_degenerate_values_are_drawn(y, mark):
    root = ElementTree.fromstring(chart([Series("a", range(len(y)), y, mark)], **WORDS))
    numbers = [float(n) for p in root.iter() for n in re.findall(r"-?[\d.]+|nan|inf", p.get("d", ""))]
    assert numbers
    assert np.isfinite(numbers).all()


@given(st.lists(st.floats(), min_size=1, max_size=60))
def test_any_values_stay_inside_the_frame(y):
    root = ElementTree.fromstring(chart([Series("a", range(len(y)), y)], **WORDS, width=440, height=290))
    for path in root.iter(f"{NS}path"):
        if path.get("fill") == "none":
            points = np.array([[float(n) for n in p.split(",")] for p in re.split("[ML]", path.get("d")) if p])
            assert (points >= 0).all()
            assert (points <= [440, 290]).all()


def test_thinning_keeps_spikes_gaps_and_ends():
    y = np.sin(np.arange(100_000) / 500)
    y[33_333], y[50_001], y[70_000:70_010] = 40.0, -40.0, np.nan
    keep = thinned(y, 300)
    assert len(keep) <= 300 * 1.5 + 2
    assert {0, 33_333, 50_001, 99_999} <= set(keep.tolist())
    assert np.isnan(y[keep]).any()
    assert (np.diff(keep) > 0).all()
    assert len(chart([Series("a", np.arange(100_000), y)], **WORDS)) < 20_000
    assert np.array_equal(thinned(y[:300], 300), np.arange(300))


def test_names_that_are_no_text_are_drawn():
    ElementTree.fromstring(chart([Series("a\x00\x1b\udcff\uffff漢🎨", [0], [1])], title="\x07", x_label="", y_label=""))


def test_names_are_text_and_colours_are_for_both_modes():
    bad = '<script>alert("&")</script>'
    svg = chart([Series(bad, [0, 1], [0, 1]), Series("b", [0, 1], [1, 0])], title=bad, x_label=bad, y_label=bad)
    root = ElementTree.fromstring(svg)
    assert not list(root.iter(f"{NS}script"))
    assert [t.text for t in root.iter(f"{NS}text")].count(bad) == 4
    assert "prefers-color-scheme:dark" in svg
    assert bad in root.get("aria-label")


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_a_legend_names_every_curve_but_a_single_one(count):
    series = [Series(f"method number {i}", [0, 1], [i, i + 1]) for i in range(count)]
    root = ElementTree.fromstring(chart(series, **WORDS, height=500))
    texts = [t.text for t in root.iter(f"{NS}text")]
    assert sum(t.startswith("method number") for t in texts) == (count if count > 1 else 0)


def test_points_draw_every_finite_one_up_to_a_limit():
    y = np.random.default_rng(0).standard_normal(500)
    y[3] = np.nan
    svg = chart([Series("a", y, y, "points"), Series("b", np.arange(9000.0), np.ones(9000), "points")], **WORDS)
    assert 499 + 1000 < svg.count("<circle") <= 499 + 2000
    assert not [p for p in ElementTree.fromstring(svg).iter(f"{NS}path") if p.get("fill") == "none"]


def test_points_lie_where_the_line_through_them_goes():
    x, y = [1, 4, 2, 3], [0.5, 2.0, math.nan, 1.0]
    svg = chart([Series("a", x, y, "joined")], **WORDS)
    root = ElementTree.fromstring(svg)
    circles = {(c.get("cx"), c.get("cy")) for c in root.iter(f"{NS}circle") if c.get("r") == "4"}
    lines = "".join(p.get("d") for p in root.iter(f"{NS}path") if p.get("fill") == "none")
    assert len(circles) == 3
    assert {tuple(pair.split(",")) for pair in re.split("[ML]", lines) if pair} < circles  # the last is alone: no line
    assert np.allclose(read(svg), [[1, 0.5], [4, 2.0]], atol=0.02)


@pytest.mark.parametrize(("values", "shown"), [([0.4, 0.5], (0, 1)), ([0.4, 1.5], (0, 1.5)), ([-2.0, -1.0], (-2, 1))])
def test_limits_are_what_the_axes_show_at_least(values, shown):
    svg = chart([Series("a", values, values, "points")], **WORDS, x_limits=(0, 1), y_limits=(0, 1))
    root = ElementTree.fromstring(svg)
    x_ticks, y_ticks = ticks(root)
    assert (min(x_ticks), max(x_ticks)) == (min(y_ticks), max(y_ticks)) == shown
    (slope, offset), circle = reader(x_ticks), next(root.iter(f"{NS}circle"))
    assert float(circle.get("cx")) * slope + offset == pytest.approx(values[0], abs=0.01)


def test_series_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="3 values of x and 2 of y"):
        Series("a", [1, 2, 3], [1, 2])


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [(0, 1, "0"), (2000, 1000, "2k"), (1500, 500, "1.5k"), (0.25, 0.25, "0.25"), (0.5, 0.25, "0.50"), (3e6, 1e6, "3M")],
)
def test_ticks_are_written_shortly(value, step, text):
    assert _number(value, step) == text


# ---- in a terminal


def dots_of(plot: str) -> np.ndarray:
    """The dots of a braille plot as (rows, columns) bool, by the Unicode block's own numbering of dots."""
    lines = [line.split("┤", 1)[1] for line in plot.splitlines()]
    dots = np.zeros((4 * len(lines), 2 * max(map(len, lines))), bool)
    where = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]  # of dots 1 to 8
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            for bit, (dy, dx) in enumerate(where):
                dots[4 * row + dy, 2 * column + dx] = (ord(letter) - 0x2800) >> bit & 1
    return dots


def test_terminal_plot_is_the_curve():
    y = np.linspace(0, 1, 40)
    plot = terminal_plot(y, 20, 10)
    assert len(plot.splitlines()) == 10
    assert plot.startswith("1 ┤")
    assert plot.splitlines()[-1].startswith("0 ┤")
    dots = dots_of(plot)
    assert dots.any(axis=0).all()
    assert (np.abs(dots.argmax(axis=0) - np.round((1 - y) * 39)) <= 1).all()


def test_terminal_plot_leaves_gaps_and_shows_spikes():
    y = np.zeros(4000)
    y[1000], y[2000:3000] = 9, np.nan
    dots = dots_of(terminal_plot(y, 40, 5))
    assert dots[:, 20].all()  # the spike, from bottom to top
    assert not dots[:, 41:60].any()
    assert dots[-1, 60:].all()


def test_terminal_plot_in_ascii():
    plot = terminal_plot([0, 1, 2, 3], 4, 4, ascii_only=True)
    assert plot.isascii()
    assert plot.splitlines()[0] == "3 |   *"
    assert [line.split("|")[1].count("*") for line in plot.splitlines()] == [1, 1, 1, 1]
    assert terminal_plot([math.nan], 10, 4) == "no finite values"
    assert "5 |" in terminal_plot([5, 5], 10, 4, ascii_only=True)
    with pytest.raises(ValueError, match="at least 2 x 2"):
        terminal_plot([1], 1, 4)
