"""Charts without a plotting library: inline SVG for pages and files, braille for a terminal.

An SVG made here says its colours as CSS variables with a light and a dark set of its own, so it is readable on a page
of either kind and as a file by itself. A curve of many points is thinned to the extremes of its neighbourhoods, which
draws the same picture: what a spike looks like is never averaged away. Values that are not finite leave a gap.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np

Values = Sequence[float] | np.ndarray

_COLOURS = ("#0969da", "#c4501b", "#1a7f4b", "#a33ea1", "#8a6d00", "#2a7f8e")  # 4.5 : 1 or more on white
_DARK = ("#6cb6ff", "#ff9d6b", "#5fd38d", "#e38ee0", "#e3c24d", "#6fd3e0")
_STYLE = (
    ".moyai-chart{--ink:#24292f;--soft:#5f6872;--line:#d8dde3;"
    + "".join(f"--c{i}:{c};" for i, c in enumerate(_COLOURS))
    + "font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}"
    + "@media(prefers-color-scheme:dark){.moyai-chart{--ink:#e6e9ec;--soft:#a2abb5;--line:#363d46;"
    + "".join(f"--c{i}:{c};" for i, c in enumerate(_DARK))
    + "}}"
)


@dataclass(frozen=True)
class Series:
    """Named values of y over x, drawn as a curve, as a cloud of points, as points joined in their order, or as a level
    that others are held against. intervals: the least and the greatest of each y that is drawn as points."""

    name: str
    x: Values
    y: Values
    mark: Literal["line", "points", "joined", "level"] = "line"
    intervals: tuple[Values, Values] | None = None

    def __post_init__(self) -> None:
        ends = self.intervals or ()
        if any(len(values) != len(self.x) for values in (self.y, *ends)):
            raise ValueError(f"{self.name}: {len(self.x)} values of x and {len(self.y)} of y, or of their intervals")


@dataclass(frozen=True)
class _Axis:
    """A range of values laid on a range of pixels."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[tuple[float, str], ...]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


@dataclass(frozen=True)
class _Place:
    """Where a pair of values lies in the drawing."""

    x: _Axis
    y: _Axis

    def __call__(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f},{self.y(y):.1f}"


def chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    width: int = 440,
    height: int = 290,
) -> str:
    """All series in one frame, as one SVG element. With `log_y` what is not positive is a gap.

    `x_limits` and `y_limits` (in log10 where the axis is logarithmic) are what the axes show at least: (0, 1) for
    shares. Of a cloud at most 2,000 points are drawn.
    """
    values = [_values(one.x, one.y, log_y) for one in series]
    ends = [[_values(one.x, end, log_y)[1] for end in one.intervals or ()] for one in series]
    xs = np.concatenate([x[np.isfinite(x) & np.isfinite(y)] for x, y in values] or [np.empty(0)])
    ys = np.concatenate([y[np.isfinite(x) & np.isfinite(y)] for x, y in values] or [np.empty(0)])
    ys = np.concatenate([ys, *(end[np.isfinite(end)] for pair in ends for end in pair)])
    names, legend_height = _legend(series, width)
    top, bottom = 50 + legend_height, height - 40
    parts = [_text(0, 16, title, "font-weight:600;font-size:14px;fill:var(--ink)"), names]
    if len(xs):
        y_axis = _axis(ys, bottom, top, 5, log_y, y_limits)
        left = 12 + max(_width(label) for _, label in y_axis.ticks)
        x_axis = _axis(xs, left, width - 10, max(2, width // 90), False, x_limits, pad=False)
        parts += _frame(x_axis, y_axis, width)
        for i, (one, (x, y), pair) in enumerate(zip(series, values, ends, strict=True)):
            place, colour = _Place(x_axis, y_axis), f"var(--c{i % len(_COLOURS)})"
            parts.append(_whiskers(x, y, pair[0], pair[1], place, colour) if pair else "")
            parts.append(_drawn(one.mark, x, y, place, colour))
    else:
        parts.append(_text(width / 2, (top + bottom) / 2, "no finite values", "fill:var(--soft)", "middle"))
    parts.append(_text(0, top - 14, y_label, "fill:var(--soft)"))
    parts.append(_text(width - 2, height - 4, x_label, "fill:var(--soft)", "end"))
    return (
        f'<svg class="moyai-chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{_escaped(_spoken(title, series, values, log_y))}">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>"
    )


def thinned(y: np.ndarray, limit: int) -> np.ndarray:
    """Which of many values to draw: of each neighbourhood the least, the greatest and the first gap; both ends."""
    if len(y) <= limit:
        return np.arange(len(y))
    keep = {0, len(y) - 1}
    for bounds in np.array_split(np.arange(len(y)), max(1, limit // 2)):
        part = y[bounds]
        gaps = np.flatnonzero(~np.isfinite(part))
        if len(gaps):
            keep.add(int(bounds[gaps[0]]))
        if len(gaps) < len(part):
            keep.update((int(bounds[np.nanargmin(part)]), int(bounds[np.nanargmax(part)])))
    return np.array(sorted(keep))


# ---- what is drawn, and the frame around it


def _drawn(mark: str, x: np.ndarray, y: np.ndarray, place: _Place, colour: str) -> str:
    """One series: a line, dots, or both; a level from side to side."""
    if mark == "level":
        seen = y[np.isfinite(y)]
        ends = (f"{x:.1f},{place.y(seen[0]):.1f}" for x in (place.x.start, place.x.stop) if len(seen))
        path = f"M{'L'.join(ends)}" if len(seen) else ""
        return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="5 4"/>'
    line = "" if mark == "points" else _line(x, y, place, colour)
    dots = "" if mark == "line" else _dots(x, y, place, colour, faint=mark == "points" and len(x) > 50)
    return line + dots


def _line(x: np.ndarray, y: np.ndarray, place: _Place, colour: str) -> str:
    keep = thinned(y, int(2 * (place.x.stop - place.x.start) / 3))
    parts, lone, run = [], [], []
    for a, b in [*zip(x[keep], y[keep], strict=True), (np.nan, np.nan)]:
        if np.isfinite(a) and np.isfinite(b):
            run.append(place(a, b))
            continue
        if len(run) == 1:
            lone.append(run[0])  # a value between two gaps would not be seen as a line
        elif run:
            parts.append("M" + "L".join(run))
        run = []
    pen = 1.2 if len(keep) < len(y) else 1.75
    style = f'fill="none" stroke="{colour}" stroke-width="{pen}" stroke-linejoin="round"'
    drawn = f'<path d="{"".join(parts)}" {style}/>' if parts else ""
    return drawn + "".join(_dot(at, colour, 2) for at in lone)


def _dots(x: np.ndarray, y: np.ndarray, place: _Place, colour: str, *, faint: bool) -> str:
    """Few points large and full, many small and faint, so that where they crowd is darker."""
    seen = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    seen = seen[:: max(1, math.ceil(len(seen) / 2000))]
    dots = "".join(_dot(place(x[i], y[i]), colour, 2.5 if faint else 4) for i in seen)
    return f'<g fill-opacity="0.6">{dots}</g>' if faint else dots


def _whiskers(x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray, place: _Place, colour: str) -> str:
    """Each point's interval as a stroke; down to the axis where its end is not on it (0 where it is logarithmic)."""
    strokes = []
    for i in np.flatnonzero(np.isfinite(x) & np.isfinite(y) & np.isfinite(high)):
        bottom = place.y(low[i]) if np.isfinite(low[i]) else place.y.start
        strokes.append(f"M{place.x(x[i]):.1f},{bottom:.1f}V{place.y(high[i]):.1f}")
    return f'<path d="{"".join(strokes)}" stroke="{colour}" stroke-width="1.2" stroke-opacity="0.6"/>'


def _values(x_values: Values, y_values: Values, log_y: bool) -> tuple[np.ndarray, np.ndarray]:
    """x and y as they are laid on the axes: log10 of y where the axis is logarithmic, NaN where there is nothing."""
    x, y = np.asarray(x_values, dtype=np.float64), np.asarray(y_values, dtype=np.float64)
    x, y = np.where(np.isfinite(x), x, np.nan), np.where(np.isfinite(y), y, np.nan)
    if log_y:
        return x, np.log10(np.where(y > 0, y, np.nan))
    return np.clip(x, -1e300, 1e300), np.clip(y, -1e300, 1e300)  # so that no difference overflows


def _frame(x_axis: _Axis, y_axis: _Axis, width: int) -> list[str]:
    left, right, bottom = x_axis.start, x_axis.stop, y_axis.start
    parts = []
    for value, label in y_axis.ticks:
        y = y_axis(value)
        parts.append(f'<path d="M{left:.1f},{y:.1f}H{right:.1f}" stroke="var(--line)" stroke-width="1"/>')
        parts.append(_text(left - 8, y + 4, label, "fill:var(--soft)", "end"))
    for value, label in x_axis.ticks:
        x = x_axis(value)
        parts.append(f'<path d="M{x:.1f},{bottom:.1f}v4" stroke="var(--soft)" stroke-width="1"/>')
        half = _width(label) / 2
        parts.append(_text(min(x, width - half), bottom + 17, label, "fill:var(--soft)", "middle"))
    return parts


def _legend(series: Sequence[Series], width: int) -> tuple[str, int]:
    """The names beside a stroke of their colours, wrapped; nothing for a single curve, which the title names."""
    if len(series) < 2:
        return "", 0
    x, y, parts = 0.0, 38.0, []
    for i, one in enumerate(series):
        needed = 24 + _width(one.name) + 16
        if x > 0 and x + needed > width:
            x, y = 0.0, y + 18
        parts.append(
            f'<path d="M{x:.1f},{y - 4:.1f}h16" stroke="var(--c{i % len(_COLOURS)})" stroke-width="3" '
            f'stroke-linecap="round"/>{_text(x + 22, y, one.name, "fill:var(--ink)")}'
        )
        x += needed
    return "".join(parts), int(y - 38) + 24


def _axis(
    values: np.ndarray,
    start: float,
    stop: float,
    count: int,
    log: bool,
    limits: tuple[float, float] | None,
    *,
    pad: bool = True,
) -> _Axis:
    """The axis that shows all values, its ticks at round numbers (powers of ten and their 2s and 5s where log)."""
    low, high = float(values.min()), float(values.max())
    if limits is not None:
        low, high, pad = min(low, limits[0]), max(high, limits[1]), False
    if high - low <= max(1e-300, 1e-12 * max(abs(low), abs(high))):
        spread = 0.5 if log or abs(low) < 1e-290 else 0.1 * abs(low)
        low, high = low - spread, high + spread
    if pad:
        margin = 0.05 * (high - low)
        floor = not log and low >= 0 and low < 0.3 * high  # near enough to zero that zero should be seen
        low, high = (0.0 if floor else low - margin), high + margin
    ticks = _log_ticks(low, high) if log else _ticks(low, high, count)
    return _Axis(low, high, start, stop, tuple(ticks))


def _ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, _number(i * step, step)) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    decades = range(math.floor(low), math.ceil(high) + 1)
    every = max(1, math.ceil((high - low) / 6))
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    at = [(d + math.log10(f), f * 10.0**d) for d in decades if d % every == 0 for f in factors]
    inside = [(place, f"{value:.3g}") for place, value in at if low - 1e-9 <= place <= high + 1e-9]
    if len(inside) >= 2:
        return inside
    return [(math.log10(v), label) for v, label in _ticks(10**low, 10**high, 4) if v > 0]


def _number(value: float, step: float) -> str:
    """A tick: as many decimals as its step has, thousands and millions shortened."""
    if abs(value) < step / 2:
        return "0"
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit and step >= unit / 100:
            return f"{value / unit:.10g}{sign}"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.4g}"
    return f"{value:.{min(8, max(0, -math.floor(math.log10(step) + 1e-9) + (f'{step:.1e}'[2] != '0')))}f}"


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    """Text for XML, which has no control characters and no half of a surrogate pair."""
    return escape(re.sub("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text))


def _dot(at: str, colour: str, radius: float) -> str:
    x, y = at.split(",")
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{colour}"/>'


def _width(text: str) -> float:
    """Of text in 12 px letters of whatever font there will be: rather too much than too little."""
    return sum(
        12 if c > "\u2e80" else 10.5 if c in "mwMW%@" else 4.2 if c in " ijlftrI.,:;'|!()" else 7.5 for c in text
    )


def _spoken(title: str, series: Sequence[Series], values: Sequence[tuple[np.ndarray, np.ndarray]], log_y: bool) -> str:
    """What a reader who does not see the chart is told: each series by its first, last and extreme values."""
    told = []
    for one, (_, y) in zip(series, values, strict=True):
        seen = y[np.isfinite(y)]
        seen = 10**seen if log_y else seen
        if len(seen):
            told.append(
                f"{one.name} from {seen[0]:.4g} to {seen[-1]:.4g}, least {seen.min():.4g}, most {seen.max():.4g}"
            )
    return f"{title}: {'; '.join(told) or 'no finite values'}"
