"""The figure of the factors: FID and class confidence against minutes, side by side, a curve for each factor with the
intervals of its points, and what held-out pictures reach."""

from collections.abc import Mapping, Sequence
from typing import Any

from results_page import DRAWN, REAL, extractor, factor

from moyai.evaluation import curves

WIDTH, HEIGHT, GAP = 440, 320, 24


def figure(points: Sequence[Mapping[str, Any]]) -> str:
    """One SVG file. DataError where the points were judged with different extractors."""
    extractor(points)
    panels = [
        curves.chart(
            _series(points, metric),
            title=title,
            x_label="minutes of the whole run",
            y_label=label,
            log_y=metric == "fid",
            width=WIDTH,
            height=HEIGHT,
        )
        for metric, title, label in (
            ("fid", "Distance of the samples", "FID (logarithmic), lower is better"),
            ("class confidence", "Confidence of the classifier", "class confidence, best as that of real pictures"),
        )
    ]
    placed = [panel.replace("<svg ", f'<svg x="{i * (WIDTH + GAP)}" ', 1) for i, panel in enumerate(panels)]
    width = 2 * WIDTH + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}">'
        f"{''.join(placed)}</svg>\n"
    )


def _series(points: Sequence[Mapping[str, Any]], metric: str) -> list[curves.Series]:
    out = []
    for number in sorted({factor(p) for p in points}):
        mine = sorted((p for p in points if factor(p) == number), key=lambda p: p["minutes"])
        values, *ends = [[_part(p, DRAWN, metric, end) for p in mine] for end in ("value", "low", "high")]
        name = f"f = {number}" + (" (pixels)" if number == 1 else "")
        out.append(curves.Series(name, [p["minutes"] for p in mine], values, "joined", (ends[0], ends[1])))
    reached = [p["minutes"] for p in points]
    level = [_part(points[0], REAL, metric, "value")] * 2  # of one extractor and one count: the same for all points
    return [*out, curves.Series("held-out pictures", [min(reached), max(reached)], level, "level")]


def _part(point: Mapping[str, Any], row: str, metric: str, end: str) -> float:
    found = point["evaluation"]["rows"][row].get(metric, {}).get(end)
    return float("nan") if found is None else found
