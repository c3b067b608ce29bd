"""An assessment in words: its rows and metrics in the order they are read in, values with their intervals, what each
metric says, and what has to be said beside the table. Of results as JSON holds them; nothing is measured here.
"""

import math
from collections.abc import Mapping
from typing import Any

ROWS = ("held out", "first stage", "as many samples", "samples")
NEAR = {  # how the share of close samples is called, by the space it was measured in
    "features": "share closer than the control's 1st percentile",
    "pixels": "share closer than the control's 1st percentile in pixels",
}
# What each number says, for the report.
MEANING = {
    "fid": "distance of the distributions in features; lower is better, the floor is what real pictures reach",
    "fid-infinity": "the same, extrapolated to infinitely many samples against this reference, whose own bias stays: "
    "not 0 for equal distributions, and comparable against as many reference pictures only",
    "kid": "distance by a kernel, unbiased; 0 is the same distribution",
    "precision": "share of samples that lie among real pictures",
    "recall": "share of real pictures that lie among samples",
    "density": "how densely samples lie among real pictures; about 1 for real ones",
    "coverage": "share of real pictures with a sample near",
    "class accuracy": "share that a classifier takes for the class asked for",
    "class confidence": "as the Inception score, by the extractor's classes: sure and varied is high",
    "position error": "how far from the position asked for, as a network reads it, in slices of 31",
    "mask mIoU": "how well the regions a network sees in a picture cover those of the mask asked for; 1 is everywhere",
    "scenes as told": "share in which a program finds everything that the caption tells",
    "colours as told": "share in which the right things have the right colours",
    "shapes as told": "the same for shapes",
    "sizes as told": "the same for sizes",
    "relations as told": "the same for what lies left of, right of, above or below what",
    "sliced wasserstein": "distance of the distributions in pixels, in grey levels",
    "ms-ssim of pairs": "likeness of two samples, of one class where classes are asked for; above the floor is a lack "
    "of variety",
    "psnr": "of reconstructions, dB",
    "ssim": "of reconstructions, 1 is perfect",
    "ms-ssim": "of reconstructions at several scales, 1 is perfect",
    "perceptual distance": "of reconstructions, in the maps of the judging network; 0 is perfect, at most 2",
    NEAR["features"]: "share of samples nearer to a training picture than 99 % of held-out pictures are; 0.01 is "
    "expected beside many of those, 0.02 beside 100; much more is copying",
    NEAR["pixels"]: "the same by the difference of grey values, which no extractor can blind",
}


OF_A_FIELD = {  # the same for metrics that are named after any other field of the data
    "error": "how far from the {} asked for, as a network reads it, in units of the data",
    "mIoU": "how well the regions a network sees in a picture cover those of the {} asked for; 1 is everywhere",
}


def ordered(result: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """The rows of a result as JSON holds it, and the names of its metrics, both in the order they are read in."""
    rows = {row: result["rows"][row] for row in ROWS if row in result["rows"]}
    found = {name for values in rows.values() for name in values}
    return rows, [*(name for name in MEANING if name in found), *sorted(found - set(MEANING))]


def shown(value: Mapping[str, Any] | None) -> str:
    """A value as JSON holds it, with its interval or error, for people."""
    if value is None:
        return ""
    number = f"{value['value']:.4g}"
    if value["low"] is not None:
        return f"{number} ({value['low']:.3g} to {value['high']:.3g})"
    return f"{number} ± {value['error']:.2g}" if value["error"] is not None else number


def cost(facts: Mapping[str, Any]) -> str:
    """What a held-out picture costs the prior beside a training picture (each a `heldout.Rate` as JSON holds it), in a
    sentence; "" where it is not known."""
    rate, training = facts.get("likelihood"), facts.get("likelihood of training pictures")
    if not rate:
        return ""
    pixels = f", {rate['per_pixel']:.3g} bits a pixel," if rate.get("per_pixel") is not None else ""
    told = (
        f"a held-out picture costs the prior {rate['value']:.4g} ± {rate['error']:.2g} {rate['unit']}{pixels} "
        f"({rate['pictures']} pictures{'' if rate['unit'] == 'bits/code' else '; an upper bound'})"
    )
    if not training:
        return told
    told = f"{told}, a training picture {training['value']:.4g} ± {training['error']:.2g}"
    more, chance = rate["value"] - training["value"], 2 * math.hypot(rate["error"], training["error"])
    # Pictures of a group are alike, and the errors take them for independent.
    return f"{told}: more than chance apart, it knows those better" if more > chance and not grouped(facts) else told


def grouped(facts: Mapping[str, Any]) -> str:
    """What groups do to the intervals, in a sentence; "" where the held-out pictures are one a group."""
    groups, count = facts.get("groups held out", 0), facts["held out"]
    return (
        f"the {count:,} held-out pictures are of {groups:,} groups, and those of a group are alike: the intervals of "
        "what is measured on them take them for independent and are too narrow"
        if 0 < groups < count
        else ""
    )


def neighbourhood(facts: Mapping[str, Any]) -> str:
    """How many training pictures precision and its kin are measured against, in a sentence; "" where it is all."""
    near, whole = facts.get("neighbourhood", 0), facts["reference"]
    return (
        f"precision, recall, density and coverage are measured against {near:,} of the {whole:,} training pictures"
        if 0 < near < whole
        else ""
    )


def with_what(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands in brackets behind a metric's name: how many scales of MS-SSIM fitted, how many neighbours; "" where
    nothing does."""
    told = {value["metric"] for values in rows.values() for value in values.values() if "(" in value.get("metric", "")}
    return f"with: {'; '.join(sorted(told))}" if told else ""


def meaning(name: str) -> str:
    """What a metric says, in a sentence; "" for one that nobody has explained."""
    if name in MEANING:
        return MEANING[name]
    field, _, kind = name.rpartition(" ")
    return OF_A_FIELD[kind].format(field) if field and kind in OF_A_FIELD else ""
