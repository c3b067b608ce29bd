"""The evaluation as a reader of the report sees it: the table beside its floor, charts, copies, neighbours.

Made from what `moyai evaluate` left in the run's folder, each part where its file is:

    evaluation.json              the table, a sentence for each number, warnings, precision against recall
    evaluation/snapshots.json    FID against the training step (`snapshots`)
    evaluation/worst.png         the samples nearest to a training picture in features (`gallery`)
    evaluation/worst-in-pixels.png    the same in pixels
    evaluation/neighbours.png    samples above their nearest training pictures (`gallery`)
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moyai.evaluation import curves, gallery, page, snapshots
from moyai.evaluation.memorization import expected_by_chance, most_by_chance
from moyai.evaluation.wording import cost, grouped, meaning, neighbourhood, ordered, shown, with_what
from moyai.files import read_json

RESULT = Path("evaluation.json")
WORST = {space: Path(gallery.FOLDER) / name for space, name in gallery.WORST.items()}
NEIGHBOURS = Path(gallery.FOLDER) / gallery.NEIGHBOURS
COPIES = "share closer than"  # how the names of these values begin, whatever space they were measured in
MOST = 10  # groups that are listed
FEW_WARNINGS = 3  # so many stand as notes, more as a table
Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]

INTRODUCTION = """No number here means much alone; read it beside "held out". Those are real pictures that the model \
has never seen, measured in the same way and, where there are enough of them, in the same number: the floor that \
perfect samples would reach.{first_stage}

A range in brackets is a 95 % interval, ± one standard error: how far the value would move with other pictures from \
the same source, the training pictures it is measured against held fixed; that of KID lets them vary too. That of the \
sliced Wasserstein distance covers only its choice of directions, that of a share of close samples no other held-out \
pictures. Values of another extractor, or at other counts, are on another scale and cannot be compared with \
these.{neighbourhood}"""
FIRST_STAGE = """ "First stage" is what these pictures become through the latents and back; its FID is against the \
training pictures, as every other here, not against the originals. Samples are seldom better than that, so where both \
rows are alike, a better first stage helps more than a longer training."""
STALE = """The evaluation in this folder is of the model as it was before; `moyai evaluate {run}` judges this one."""
AGAINST = """Judged against {against}, not against the data of this run: "held out" and "training pictures" are the \
two halves of those."""
FEWER = """

There are fewer held-out pictures than samples. Values that depend on the number of pictures, FID first of all, are \
therefore given for "as many samples" too: compare these with the floor."""
WORST_CAPTION = """The samples that are nearest to a training picture, nearest first, each above that picture. A copy \
is the same picture twice; two pictures that are merely alike are not. Distances are in the features of the table; \
1 % of held-out pictures are nearer to a training picture than the border."""
WORST_IN_PIXELS = "The same by the difference of pixels, in grey levels of 255."
NEIGHBOURS_CAPTION = """Samples from all over the request, each above the training pictures that are nearest to it in \
features. Neighbours of the same kind show that the sample was understood as one of them; small differences in shape \
and detail show that it was drawn anew. The number is the distance to the nearest."""


def blocks(run: Path, model: str | None = None) -> list[page.Block]:
    """The blocks of the section; empty where the run was not evaluated. DataError where a file is not to be read.

    model: the hash of the run's model as it is now. An evaluation of another one is named, and not shown.
    """
    if not (run / RESULT).is_file():
        return []
    result = read_json(run / RESULT)
    if model is not None and result["facts"].get("model_hash", model) != model:
        return [page.Warning(STALE.format(run=run))]
    rows, names = ordered(result)
    steps = _steps(run, result["facts"])
    against = result["facts"].get("against")
    return [
        page.Text(
            INTRODUCTION.format(
                first_stage=FIRST_STAGE if "first stage" in rows else "", neighbourhood=_neighbourhood(result["facts"])
            )
            + (FEWER if "as many samples" in rows else "")
        ),
        *([] if against is None else [page.Warning(AGAINST.format(against=against))]),
        *_tables(rows, names, result["facts"]),
        *_warnings(rows),
        *_charts(rows, steps),
        *_copies(run, rows.get("samples", {}), result),
        *_picture(
            run / NEIGHBOURS, NEIGHBOURS_CAPTION, "samples above their nearest training pictures", result["facts"]
        ),
    ]


def _steps(run: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The averages that were measured; none where they drew another request than the table's samples, or were judged by
    another extractor or against other pictures."""
    if not (run / snapshots.FILE).is_file():
        return []
    found = read_json(run / snapshots.FILE)
    theirs = found["facts"]
    same = all(theirs.get(name) == facts.get(name) for name in ("request", "extractor"))
    same = same and theirs.get("reference", {}).get("count") == facts.get("reference")
    return list(found["steps"]) if same else []


def made_of(run: Path) -> dict[str, str]:
    """The files the section is made from and their sha256: what tells whether a report shows the newest."""
    files = (path for path in (RESULT, snapshots.FILE, *WORST.values(), NEIGHBOURS) if (run / path).is_file())
    return {path.as_posix(): hashlib.sha256((run / path).read_bytes()).hexdigest() for path in files}


def _tables(rows: Rows, names: Sequence[str], facts: Mapping[str, Any]) -> list[page.Block]:
    """The numbers, and what each says: two tables, since ranges need the whole width."""
    cells = [(name, *(shown(values.get(name)) or None for values in rows.values())) for name in names]
    caption = (
        f"{facts['samples']:,} samples and {facts['held out']:,} held-out pictures against {facts['reference']:,} "
        f"training pictures"
    )
    said = [(name, told) for name in names if (told := meaning(name))]
    notes = [f"Features: {facts['extractor']}."]
    if able := facts.get("extractor is able to"):
        notes.append(f"This extractor can {able}.")
    notes += [f"{told[0].upper()}{told[1:]}." for told in (cost(facts), grouped(facts), with_what(rows)) if told]
    return [
        page.Table(("", *rows), cells, caption, " ".join(notes)),
        page.Table(("", "what it says"), said, "What the numbers mean"),
    ]


def _warnings(rows: Rows) -> list[page.Block]:
    """Each once, with the metrics it is about; many of them as a table."""
    about: dict[str, dict[str, None]] = {}
    for values in rows.values():
        for name, value in values.items():
            if value["warning"]:
                about.setdefault(value["warning"], {})[name] = None
    told = [(", ".join(names), f"{text}.") for text, names in about.items()]
    if len(told) <= FEW_WARNINGS:
        return [page.Warning(f"{names}: {text}") for names, text in told]
    which = f"{len(told)} reservations are to be made about these numbers; the table below says which."
    return [page.Warning(which), page.Table(("", "what to know before believing it"), told, "Reservations")]


# ---- charts


def _charts(rows: Rows, steps: Sequence[Mapping[str, Any]]) -> list[page.Block]:
    found: list[page.Block] = []
    mine = rows.get("samples", {}).get("precision")
    ours = mine is not None and all(_comparable(mine, step["values"]["precision"]) for step in steps)
    way = [step["values"] for step in steps] if ours else []
    series = [
        _points(row, [values], way)
        for row, values in reversed(list(rows.items()))
        if {"precision", "recall"} <= set(values)
    ]
    if series:
        svg = curves.chart(
            series,
            title="Precision against recall",
            x_label="recall: share of real pictures among samples",
            y_label="precision: share of samples among real pictures",
            x_limits=(0, 1),
            y_limits=(0, 1),
        )
        found.append(page.Chart(svg, _WHERE + (_WAY.format(steps[0]["step"], steps[-1]["step"]) if way else "")))
    if len(steps) > 1:
        found += [page.Chart(_by_step(rows, steps), _BY_STEP), _steps_table(steps)]
    return found


_WHERE = (
    "Top right is best. Low precision: samples that look like no real picture. Low recall: kinds of real pictures that "
    "are never drawn."
)
_WAY = " Joined are the averages that training kept, from step {:,} to step {:,}; the last point is the table's."
_BY_STEP = (
    "The same request drawn by each average that training kept. Where the curve still falls at its end, more steps "
    "help; where it has met the first stage's line, they will not."
)


def _points(row: str, values: Sequence[Mapping[str, Any]], way: Sequence[Mapping[str, Any]]) -> curves.Series:
    """The place of a row; of the samples also the way there."""
    joined = row == "samples" and len(way) > 0
    places = [*way, *values] if joined else values
    recall, precision = ([one[axis]["value"] for one in places] for axis in ("recall", "precision"))
    return curves.Series(row, recall, precision, "joined" if joined else "points")


def _by_step(rows: Rows, steps: Sequence[Mapping[str, Any]]) -> str:
    """FID of each step, and as level lines the rows it may be compared with."""
    at, values = [one["step"] for one in steps], [one["values"]["fid"] for one in steps]
    series = [curves.Series("samples", at, [value["value"] for value in values], "joined")]
    for row, label in (("first stage", "first stage"), ("held out", "held out (the floor)")):
        level = rows.get(row, {}).get("fid")
        if level is not None and all(_comparable(level, value) for value in values):
            series.append(curves.Series(label, [at[0], at[-1]], [level["value"]] * 2))
    drawn = [y for one in series for y in one.y]
    wide = min(drawn) > 0 and max(drawn) > 5 * min(drawn)
    label = "FID (logarithmic), lower is better" if wide else "FID, lower is better"
    return curves.chart(series, title="FID against training step", x_label="step", y_label=label, log_y=wide)


def _comparable(level: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Whether two values are of one extractor, one reference and as many pictures."""
    return all(level[name] == value[name] for name in ("source", "reference", "count"))


def _steps_table(steps: Sequence[Mapping[str, Any]]) -> page.Table:
    names = ("fid", "precision", "recall")
    cells = tuple((f"{one['step']:,}", *(shown(one["values"][name]) for name in names)) for one in steps)
    return page.Table(("step", *names), cells, "The averages kept during training")


def _neighbourhood(facts: Mapping[str, Any]) -> str:
    told = neighbourhood(facts)
    return f" {told[0].upper()}{told[1:]}." if told else ""


# ---- copies


def _copies(run: Path, samples: Mapping[str, Mapping[str, Any]], result: Mapping[str, Any]) -> list[page.Block]:
    told = [_sentence(value, result) for name, value in samples.items() if name.startswith(COPIES)]
    facts = result["facts"]
    if told and facts.get("searched for copies", 0) < facts.get("training", 0):
        told.append(f"Looked for among {facts['searched for copies']:,} of {facts['training']:,} training pictures.")
    said = [page.Text("Are the samples copies? " + "\n\n".join(told))] if told else []
    alt = "samples above the training pictures they are nearest to"
    found = result.get("copies", {})
    named = [b for space, one in found.items() for b in (*_named(one, facts, space), *_by_group(one, space))]
    return [
        *said,
        *_picture(run / WORST["features"], WORST_CAPTION, alt, facts),
        *_picture(run / WORST["pixels"], WORST_IN_PIXELS, alt, facts),
        *named,
    ]


def _named(found: Mapping[str, Any], facts: Mapping[str, Any], space: str) -> list[page.Block]:
    """Which pictures those are: the seed draws the sample again, the name finds the training picture."""
    if not found.get("worst"):
        return []
    seed = facts.get("request", {}).get("seed")
    rows = []
    for match in found["worst"]:
        which = match["sample"] if seed is None else seed + match["sample"]
        group = () if match.get("group") is None else (str(match["group"]),)
        rows.append((str(which), str(match["training"]), *group, float(match["distance"])))
    first = "sample" if seed is None else "seed of the sample"
    groups = ("group",) * (len(rows[0]) - 3)
    caption = f"The samples nearest to a training picture in {space} (border: {found['border']:.3g})"
    return [page.Table((first, "training picture", *groups, "distance"), rows, caption)]


def _by_group(found: Mapping[str, Any], space: str) -> list[page.Block]:
    groups = list(found.get("by_group", {}).items())
    if not groups:
        return []
    note = f"The first {MOST} of {len(groups)} groups." if len(groups) > MOST else ""
    caption = f"Samples within the border in {space}, by the group of the training picture they are nearest to"
    return [page.Table(("group", "samples"), groups[:MOST], caption, note)]


def _sentence(value: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The share of close samples in words, and whether chance explains it, unless held-out pictures come in groups."""
    count, share, facts = value["count"], value["value"], result["facts"]
    space = "pixels" if value["source"].startswith("pixels") else "features"
    held_out, within = facts["held out"], result.get("copies", {}).get(space, {}).get("within")
    close, expected = round(share * count), expected_by_chance(held_out, within)
    said = (
        f"In {space}, {close:,} of {count:,} samples ({100 * share:.3g} %) are closer to a training picture than 99 % "
        f"of the {held_out:,} held-out pictures are; {100 * expected:.2g} % is expected where nothing is copied."
    )
    if told := grouped(facts):
        alike = told.split(":")[0]
        return f"{said} Whether that is chance cannot be told: {alike}."
    most = most_by_chance(count, held_out, within)
    if close > most:
        return f"{said} That is more than chance explains ({most:,} at most in 97.5 % of cases)."
    return f"{said} {'That is no more than expected.' if share <= expected else 'Chance can explain that.'}"


def _picture(path: Path, caption: str, alt: str, facts: Mapping[str, Any]) -> list[page.Block]:
    """A sheet, unless it is of another evaluation than the numbers: these are written after all of theirs."""
    if not path.is_file():
        return []
    known = facts.get("sheets", {}).get(path.name)
    if known is not None and known != hashlib.sha256(path.read_bytes()).hexdigest():
        return [page.Warning(f"{path.name} is of another evaluation than these numbers: evaluate once more")]
    # Not pixelated: the sheet has its pixels as large as it wants them, and its letters should stay readable.
    return [page.Picture(path.read_bytes(), "image/png", caption, alt, pixelated=False)]
