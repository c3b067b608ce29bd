"""From docs/results/*.json to the tables of docs/results.md and README.md, and the figure of the factors.

What stands between `<!-- results:begin NAME -->` and `<!-- results:end NAME -->` is made here and nowhere else; the
rest of a page is written by people. Nothing is computed but means and ranges, and values of different extractors are
never put into one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from results_rows import Row, points, rows

from moyai.diffusion.config import METHODS
from moyai.errors import DataError
from moyai.files import read_json, write_atomic

Json = Mapping[str, Any]
Measured = Mapping[str, Json]  # a row's name -> its file
COPIES = "share closer than the control's 1st percentile"
# A metric as evaluation.json calls it -> what the tables call it, and its decimals; the order of the tables.
METRICS = {
    "fid": ("FID", 2),
    "fid-infinity": ("FID, extrapolated to infinitely many samples", 2),
    "kid": ("KID", 4),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "density": ("density", 2),
    "coverage": ("coverage", 3),
    "class accuracy": ("class accuracy", 3),
    "class confidence": ("class confidence", 2),
    "position error": ("position error, slices of 31", 2),
    "mask mIoU": ("map, mIoU", 3),
    "scenes as told": ("scenes as told", 3),
    "colours as told": ("colours as told", 3),
    "shapes as told": ("shapes as told", 3),
    "sizes as told": ("sizes as told", 3),
    "relations as told": ("relations as told", 3),
    "sliced wasserstein": ("sliced Wasserstein, grey levels", 1),
    "ms-ssim of pairs": ("MS-SSIM of pairs, of one class where there are classes", 3),
    "psnr": ("PSNR", 1),
    "ssim": ("SSIM", 3),
    "ms-ssim": ("MS-SSIM", 3),
    "perceptual distance": ("perceptual distance, 0 to 2", 3),
    COPIES: ("nearer to a training picture than 99 % of held-out ones", 3),
    f"{COPIES} in pixels": ("the same in pixels", 3),
}
REAL, AGAIN, DRAWN = "held out", "first stage", "samples"
FEWER = "as many samples"  # of the samples as many as there are held-out pictures, where these are fewer
BLOCK = re.compile(r"(<!-- results:begin(?: ([\w-]+))? -->\n).*?(<!-- results:end(?: \2)? -->)", re.S)


def read(folder: Path) -> dict[str, Json]:
    """Every row's file, by its name."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}


def write(docs: Path) -> list[Path]:
    """Fill docs/results.md and the README.md above docs, those that are there, and draw what they show."""
    measured, written = read(docs / "results"), []
    for page in (docs / "results.md", docs.parent / "README.md"):
        if page.is_file():
            text = page.read_text(encoding="utf-8")
            write_atomic(page, filled(text, measured).encode())
            written.append(page)
    if done(measured, "factors"):
        from results_figure import figure

        path = docs / "pictures" / "factors.svg"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, figure(measured["factors"]["points"]).encode())
        written.append(path)
    return written


def filled(text: str, measured: Measured) -> str:
    """A page with its marked blocks made from what was measured. DataError for a block nobody makes."""

    def block(found: re.Match[str]) -> str:
        name = found[2] or "readme"
        if name not in BLOCKS:
            raise DataError(f"results:begin {name}: no such table; possible: {', '.join(BLOCKS)}")
        return f"{found[1]}\n{BLOCKS[name](measured)}\n\n{found[3]}"

    return BLOCK.sub(block, text)


def done(measured: Measured, row: str) -> Sequence[Json]:
    return measured.get(row, {}).get("points", [])


# ---- the recipes


def recipes(measured: Measured) -> str:
    """What each recipe's runs came to."""
    head = ["recipe", "seeds", "threads", "minutes", "steps (first stage + prior)", "parameters", "held-out PSNR"]
    head += ["held-out prior loss", "peak memory", "moyai"]
    lines = []
    for row in _recipes():
        found = done(measured, row.name)
        versions = ", ".join(dict.fromkeys(p["moyai"] for p in found if p["moyai"]))
        loss = _mean([p["prior_loss"] for p in found], 3)
        lines.append([*_head(row, found), loss, _memory(found), versions] if found else _missing(row, len(head)))
    return f"{_table(head, lines)}\n\n{_machines(measured)}\n\n{_RANGE}"


def readme(measured: Measured) -> str:
    """The short table of what is measured, for a first look. Samples are judged at the count of the floor."""
    head = ["recipe", "seeds", "threads", "minutes", "steps (first stage + prior)", "parameters", "held-out PSNR"]
    head += ["FID: samples", "first stage", "floor", "of", "class accuracy (real)", "peak memory"]
    lines = []
    for row in _recipes():
        found = done(measured, row.name)
        judged = [p for p in found if p.get("evaluation")]
        drawn = FEWER if any(FEWER in p["evaluation"]["rows"] for p in judged) else DRAWN
        fids = [_of(judged, part, "fid") for part in (drawn, AGAIN, REAL)]
        accuracy = _of(judged, drawn, "class accuracy", plain=True)
        accuracy += f" ({_of(judged, REAL, 'class accuracy', plain=True)})" if accuracy else ""
        if found:
            lines.append([*_head(row, found), *fids, _judge(judged, drawn), accuracy, _memory(found)])
    return f"{_table(head, lines)}\n\n{_JUDGES}\n\n{_machines(measured)}"


_JUDGES = (
    "Of: how many samples, as many held-out pictures, and by which network. FIDs by different networks, or of other "
    "counts, cannot be compared. In brackets 95 % intervals, or of several seeds the least and the greatest."
)


def _judge(judged: Sequence[Json], drawn: str) -> str:
    """How many samples a row's values are of, and the first digits of the hash of the network that judged them."""
    if not judged:
        return ""
    weights = re.search(r"\(([0-9a-f]+)\)$", extractor(judged))
    count = judged[0]["evaluation"]["held out" if drawn == FEWER else "samples"]
    return f"{count:,}, {weights[1][:6] if weights else extractor(judged)}"


_RANGE = "Of several seeds: the mean (least to greatest)."


def _recipes() -> list[Row]:
    """Rows that are a recipe as it stands."""
    return [row for row in rows() if row.measure == "runs" and not row.variants]


def _missing(row: Row, columns: int) -> list[str]:
    return [row.name, "not yet run", *[""] * (columns - 2)]


def _head(row: Row, found: Sequence[Json]) -> list[str]:
    wanted = len(points(row))
    seeds = f"{len(found)}" if len(found) >= wanted else f"{len(found)} of {wanted}"
    threads = ", ".join(dict.fromkeys(str(p["machine"]["threads"]) for p in found))
    return [
        row.name,
        seeds,
        threads,
        _mean([p["minutes"] for p in found], 1),
        _steps(found),
        _both([p["parameters"] for p in found], lambda values: f"{values[0] / 1e6:.1f} M"),
        _mean([p["psnr"] for p in found], 1),
    ]


def _steps(found: Sequence[Json]) -> str:
    return _both([p["steps"] for p in found], lambda values: _mean(values, 0))


def _both(values: Sequence[Json], shown: Callable[[list[float]], str]) -> str:
    """Of both stages; of the prior alone where no run has a first stage."""
    each = [[v[stage] for v in values] for stage in ("first_stage", "prior")]
    return " + ".join(shown(stage) for stage in each if any(stage))


def _memory(found: Sequence[Json]) -> str:
    return f"{max((p['peak_mib'] for p in found), default=0) / 1024:.1f} GiB"


def _machines(measured: Measured) -> str:
    """One line with the machines of all rows."""
    found: dict[str, list[str]] = {}
    for row in rows():
        for point in done(measured, row.name):
            machine = {name: value for name, value in point["machine"].items() if name != "threads"}
            found.setdefault(_machine(machine), []).append(row.name)
    if not found:
        return "Nothing was measured yet."
    if len(found) == 1:
        return f"Machine: {next(iter(found))}."
    return "Machines: " + "; ".join(f"{name} ({', '.join(dict.fromkeys(who))})" for name, who in found.items()) + "."


def _machine(machine: Json) -> str:
    parts = [
        f"{machine['cores']} core{'s' * (machine['cores'] != 1)} of {machine['processor']}",
        machine["gpu"] or "no GPU",
    ]
    return ", ".join([*parts, f"torch {machine['torch']}", machine["precision"]])


# ---- what the runs were judged to be


def evaluations(measured: Measured) -> str:
    """A table for each judged recipe: every metric beside its floor."""
    judged = {row: [p for p in done(measured, row.name) if p.get("evaluation")] for row in _recipes()}
    parts = [_evaluation(row, found) for row, found in judged.items() if found]
    if missing := [row.name for row, found in judged.items() if not found]:
        parts.append(f"Not yet evaluated (`make results ROW=...`): {', '.join(missing)}.")
    return "\n\n".join(parts)


def _evaluation(row: Row, found: Sequence[Json]) -> str:
    facts = found[0]["evaluation"]
    caption = (
        f"{row.name}: {facts['samples']:,} samples and {facts['held out']:,} held-out pictures against "
        f"{facts['reference']:,} training pictures{_fewer(facts)}; features: {extractor(found)}. "
    )
    brackets = "Of each seed's values the mean (least to greatest)"
    if len(found) == 1:
        brackets = "95 % intervals in brackets, that of sliced Wasserstein over its directions only"
    present = {name for p in found for part in p["evaluation"]["rows"].values() for name in part}
    names = [name for name in METRICS if name in present] + sorted(present - set(METRICS))
    columns = [part for part in (REAL, AGAIN, FEWER, DRAWN) if part in facts["rows"]]
    lines = []
    for name in names:
        cells = [_of(found, part, name) for part in columns]
        if name.startswith(COPIES) and not cells[0]:
            count = facts["held out"]  # `evaluation.memorization.expected_by_chance`, which would import torch
            cells[0] = f"{(0.99 + 0.01 * count) / (count + 1):.3f} expected"
        lines.append([METRICS.get(name, (name, 3))[0], *cells])
    table = _table(["", "held out (floor)", *columns[1:]], lines)
    return "\n\n".join([f"{caption}{brackets}.", table, *_warnings(found)])


def _fewer(facts: Json) -> str:
    """Where precision, recall, density and coverage are against fewer pictures."""
    near = facts.get("neighbourhood")
    if near is None or near == facts["reference"]:
        return ""
    return f" (precision, recall, density and coverage: {near:,})"


def _warnings(found: Sequence[Json]) -> list[str]:
    """What the values are warned of, once each, with the metrics it is said of."""
    said: dict[str, dict[str, None]] = {}
    for point in found:
        for values in point["evaluation"]["rows"].values():
            for name, value in values.items():
                if value.get("warning"):
                    said.setdefault(value["warning"], {})[METRICS.get(name, (name, 3))[0]] = None
    return ["\n".join(f"- {', '.join(names)}: {warning}." for warning, names in said.items())] if said else []


def extractor(found: Sequence[Json]) -> str:
    """The one extractor of all these points; DataError where they have several, whose values cannot be compared."""
    names = sorted({p["evaluation"]["extractor"] for p in found if p.get("evaluation")})
    if len(names) > 1:
        raise DataError(f"{found[0]['name']} and others of its row were judged with {' and '.join(names)}: --again")
    return names[0] if names else ""


def _of(found: Sequence[Json], part: str, name: str, *, plain: bool = False, decimals: int | None = None) -> str:
    """A metric of one part of the evaluations: the interval of a single one, the range of several; "" for none."""
    extractor(found)
    values = [p["evaluation"]["rows"].get(part, {}).get(name) for p in found]
    present = [v for v in values if v is not None]
    decimals = METRICS.get(name, ("", 3))[1] if decimals is None else decimals
    if len(present) == 1 and not plain and present[0].get("low") is not None:
        v = present[0]
        return f"{_rounded(v['value'], decimals)} ({v['low']:.{decimals}f} to {v['high']:.{decimals}f})"
    return _mean([v["value"] for v in present], decimals)


# ---- samplers, factors, peers


def samplers(measured: Measured) -> str:
    found = done(measured, "samplers")
    if not found:
        return "Not yet run: `make results ROW=samplers`."
    first, steps = found[0]["evaluation"], found[0]["steps"]
    caption = (
        f"The Fashion-MNIST model after {steps['first_stage']:,} + {steps['prior']:,} steps, {first['samples']:,} "
        f"samples, {first['reference']:,} training pictures as reference; features: {extractor(found)}. The floor "
        f"at this count is {_of(found[:1], REAL, 'fid', plain=True)}. Class accuracy is the classifier's, which finds "
        f"{_of(found[:1], REAL, 'class accuracy', plain=True, decimals=2)} on held-out real pictures."
    )
    lines = []
    for point in found:
        told = dict(text.removeprefix("sampling.").split("=", 1) for text in point["overrides"])
        each = METHODS[told["sampler"]].evaluations
        evaluations = each * int(told["steps"]) - (each - 1)  # the step to 0 takes one
        eta = f" with eta {told['eta']}" if float(told["eta"]) else ""
        how = f"{told['sampler']}{eta}, {told['grid']}, {told['steps']} ({evaluations})"
        values = [_of([point], DRAWN, name, decimals=2) for name in ("fid", "class accuracy")]
        lines.append([how, told["guidance"], *values])
    note = measured["samplers"].get("note")
    caption += f" {note}" if note else ""
    return f"{caption}\n\n" + _table(["sampler, grid, steps (evaluations)", "guidance", "FID", "class accuracy"], lines)


def factors(measured: Measured) -> str:
    found = done(measured, "factors")
    if not found:
        return "Not yet run: `make results ROW=factors`."
    first = found[0]["evaluation"]
    caption = (
        f"Fashion-MNIST brought to 32 x 32; {first['samples']:,} samples against {first['reference']:,} training "
        f"pictures of that size; features: {extractor(found)}. The floor is FID "
        f"{_of(found[:1], REAL, 'fid', plain=True)} and class confidence "
        f"{_of(found[:1], REAL, 'class confidence', plain=True)}. Threads: "
        f"{', '.join(dict.fromkeys(str(p['machine']['threads']) for p in found))}."
    )
    lines = []
    for point in sorted(found, key=lambda p: (factor(p), p["minutes"])):
        head = [f"{factor(point)}" + (" (pixels)" if factor(point) == 1 else ""), f"{point['minutes']:.1f}"]
        first_stage = "" if factor(point) == 1 else _of([point], AGAIN, "fid", plain=True)
        values = [first_stage, _of([point], DRAWN, "fid")]
        lines.append([*head, _steps([point]), _batch(point), *values, _of([point], DRAWN, "class confidence")])
    head = [
        "factor",
        "minutes",
        "steps (first stage + prior)",
        "prior's batch",
        "FID, first stage",
        "FID, samples",
        "class confidence",
    ]
    picture = "![FID and class confidence against minutes, a curve for each factor](pictures/factors.svg)"
    return f"{picture}\n\n{caption}\n\n{_table(head, lines)}"


def factor(point: Json) -> int:
    """The downsampling factor of a point of `factors`."""
    for text in point["overrides"]:
        if text.startswith("first_stage.net.factor="):
            return int(text.partition("=")[2])
    return 1


def _batch(point: Json) -> str:
    """The pictures in a step of a point's prior, where its overrides say so."""
    name = "prior.train.batch="
    return next((text.removeprefix(name) for text in point["overrides"] if text.startswith(name)), "")


def peers(measured: Measured) -> str:
    found = done(measured, "peers")
    if not found:
        return "Not yet run: `make results ROW=peers`."
    head = ["system", "minutes", "threads", "samples", "steps trained", "FID"]
    head += ["precision", "recall", "class confidence"]
    lines, first = [], found[0]["evaluation"]
    if len(steps := {p["sampling_steps"] for p in found}) > 1:
        raise DataError(f"peers were sampled in {' and '.join(map(str, sorted(steps)))} steps: --again")
    for p in sorted(found, key=lambda p: (p["minutes"], p["evaluation"]["rows"][DRAWN]["fid"]["value"])):
        cells = [_of([p], DRAWN, name) for name in ("fid", "precision", "recall", "class confidence")]
        count = f"{p['evaluation']['samples']:,}"
        head_cells = [p["system"], f"{p['minutes']:g}", str(p["machine"]["threads"]), count, _steps([p])]
        lines.append([*head_cells, *cells, _of([p], AGAIN, "fid")])
    # A floor is of its count; of several the one that is judged by its classes too.
    by_length = sorted(found, key=lambda p: len(p["evaluation"]["rows"][REAL]))
    for count, p in sorted({p["evaluation"]["held out"]: p for p in by_length}.items()):
        floor = [_of([p], REAL, name) for name in ("fid", "precision", "recall", "class confidence")]
        lines.append(["held-out pictures (floor)", "", "", f"{count:,}", "", *floor, ""])
    notes = dict.fromkeys(f"- {p['system']}: {p['about']} ({p['versions']})" for p in found)
    caption = (
        f"{found[0]['sampling_steps']} steps of each system's own sampler, against {first['reference']:,} training "
        f"pictures; features: {extractor(found)}. Values of different numbers of samples cannot be compared."
    )
    return "\n".join([caption, "", _table([*head, "FID, first stage"], lines), "", *notes])


BLOCKS: dict[str, Callable[[Measured], str]] = {
    "readme": readme,
    "recipes": recipes,
    "evaluations": evaluations,
    "samplers": samplers,
    "factors": factors,
    "peers": peers,
}


# ---- tables


def _mean(values: Sequence[float | None], decimals: int) -> str:
    """One value, or the mean of several with their range; those that are missing are left out, "" where all are."""
    known = [v for v in values if v is not None]
    if not known:
        return ""
    shown = [_rounded(v, decimals) for v in (sum(known) / len(known), min(known), max(known))]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _rounded(value: float, decimals: int) -> str:
    """A share that is not quite all is not rounded to 1."""
    return f"{value:,.{decimals + (value < 1 and round(value, decimals) == 1)}f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|" + "---|" * len(head)
    return "\n".join([_line(head), rule, *(_line(line) for line in lines)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
