"""A run judged: its samples and its reconstructions beside held-out pictures, by one extractor, at one count.

    reference      training pictures
    held out       the floor: real pictures the model has not seen, in the same number as the samples
    first stage    those held-out pictures through the latents and back (rFID, PSNR, SSIM)
    samples        drawn from the model as a request says

No value means anything alone: each stands beside the floor, with the counts and the extractor's name.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moyai import tasks
from moyai.data.images import ImageSet, to_uint
from moyai.evaluation import frechet, memorization, metrics, networks, similarity
from moyai.evaluation.features import Extractor, extract
from moyai.evaluation.neighbours import manifold
from moyai.evaluation.values import Features, Value
from moyai.model import LatentModel

Progress = Callable[[str, int, int], None]
REFERENCE = 20_000  # training pictures the others are compared with, at most
NEIGHBOURHOOD = 5_000  # of those, for precision and its kin, whose cost is the product of the counts
ROWS = ("held out", "first stage", "samples")
# What each number says, for the report.
MEANING = {
    "fid": "distance of the distributions in features; lower is better, the floor is what real pictures reach",
    "fid-infinity": "the same, extrapolated to infinitely many samples",
    "kid": "distance by a kernel, unbiased; 0 is the same distribution",
    "precision": "share of samples that lie among real pictures",
    "recall": "share of real pictures that lie among samples",
    "density": "how densely samples lie among real pictures; about 1 for real ones",
    "coverage": "share of real pictures with a sample near",
    "class accuracy": "share that a classifier takes for the class asked for",
    "class confidence": "as the Inception score, by this classifier: sure and varied is high",
    "sliced wasserstein": "distance of the distributions in pixels, in grey levels",
    "ms-ssim of pairs": "likeness of two samples of a class; above the floor is a lack of variety",
    "psnr": "of reconstructions, dB",
    "ssim": "of reconstructions, 1 is perfect",
    "share closer than the control's 1st percentile": "samples nearer to a training picture than 99 % of held-out "
    "ones are; 0.01 is expected, much more is copying",
}


@dataclass(frozen=True)
class Assessment:
    """The values of each row by metric, the copies that were looked for, and the pictures they are of."""

    values: Mapping[str, Mapping[str, Value]]
    memorized: memorization.Memorization
    samples: np.ndarray  # (N, H, W, C)
    facts: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        rows = {row: {name: _plain(v) for name, v in values.items()} for row, values in self.values.items()}
        return {"rows": rows, "facts": dict(self.facts)}


def own_extractor(train: ImageSet, cache: Path, progress: Progress, *, seed: int = 0, steps: int = 800) -> Extractor:
    """A small network trained on the training pictures (on their classes where they have any), or the cached one."""
    pixels = np.asarray(train.pixels[np.arange(train.count)])
    labels = train.fields.get("class")
    path = networks.path_in(cache, pixels, labels, seed=seed, steps=steps)
    if path.is_file():
        return networks.load(path)
    training = (
        networks.train_self_supervised(pixels, seed=seed, steps=steps)
        if labels is None
        else networks.train_classifier(pixels, labels, seed=seed, steps=steps)
    )
    made: networks.OwnExtractor | None = None
    for state in training:
        progress("training the extractor", state.step, state.steps)
        made = state.extractor or made
    if made is None:
        raise ValueError("training gave no extractor")
    networks.save(made, path)
    return made


def assess(
    model: LatentModel,
    train: ImageSet,
    held_out: ImageSet,
    extractor: Extractor,
    request: tasks.Request,
    *,
    cache: Path,
    progress: Progress,
) -> Assessment:
    """Draw the request's pictures and measure everything. The floor has as many held-out pictures, at most all."""
    drawn = tasks.collect(model, request, lambda done, total: progress("sampling", done, total))
    samples = _planes(drawn)
    real = _planes_of(held_out, _spread(held_out.count, len(samples)))
    again = _reconstructions(model, held_out, _spread(held_out.count, len(samples)), progress)
    chosen = _spread(train.count, REFERENCE)
    training = _planes_of(train, chosen)

    def features(pixels: np.ndarray, what: str) -> Features:
        return extract(extractor, pixels, cache=cache, progress=lambda a, b: progress(f"features of {what}", a, b))

    reference = features(training, "training pictures")
    of = {row: features(p, row) for row, p in zip(ROWS, (real, again, samples), strict=True)}
    labels = {row: _labels(held_out, len(real)) for row in ROWS[:2]} | {"samples": request.labels()}
    pixels = dict(zip(ROWS, (real, again, samples), strict=True))
    values: dict[str, dict[str, Value]] = {}
    for number, row in enumerate(ROWS, 1):
        progress("measuring", number, len(ROWS))
        values[row] = _measure(of[row], reference, pixels[row], training, labels[row])
    values["first stage"] |= _fidelity(real, again)
    found = memorization.in_features(of["samples"], reference, of["held out"])
    values["samples"][found.close.metric] = found.close
    facts = {
        "extractor": str(extractor.source),
        "samples": len(samples),
        "held out": len(real),
        "reference": len(training),
        "request": asdict(request),
        "model_hash": model.digest,
    }
    return Assessment(values, found, drawn, facts)


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


def _measure(
    mine: Features, reference: Features, pixels: np.ndarray, training: np.ndarray, labels: np.ndarray | None
) -> dict[str, Value]:
    distance = frechet.fid(mine, reference)
    near = manifold(mine, reference.rows(torch.from_numpy(_spread(len(reference), NEIGHBOURHOOD))))
    found = [distance.value, distance.infinity, metrics.kid(mine, reference)]
    found += [near.precision, near.recall, near.density, near.coverage]
    if labels is not None and mine.probabilities is not None:
        found += [metrics.class_accuracy(mine, torch.from_numpy(labels)), metrics.class_confidence(mine)]
    found += [metrics.sliced_wasserstein(pixels, training), metrics.ms_ssim_diversity(pixels, labels)]
    return {value.metric.split(" (")[0]: value for value in found}


def _fidelity(real: np.ndarray, again: np.ndarray) -> dict[str, Value]:
    """PSNR and SSIM of reconstructions, means over pictures with their standard errors."""
    source = metrics.pixel_source(real)
    top = float(np.iinfo(real.dtype).max)
    x, y = (torch.from_numpy(p.astype(np.float32)) for p in (real, again))
    out = {}
    for name, each in (("psnr", similarity.psnr(x, y, top=top)), ("ssim", similarity.ssim(x, y, top=top))):
        error = float(each.std()) / len(each) ** 0.5
        out[name] = Value(name, float(each.mean()), len(each), 0, source, error=error)
    return out


def _reconstructions(model: LatentModel, images: ImageSet, index: np.ndarray, progress: Progress) -> np.ndarray:
    out = []
    for start in range(0, len(index), 64):
        out.append(_planes(model.decode(model.encode(images.images(index[start : start + 64])))))
        progress("reconstructing", min(start + 64, len(index)), len(index))
    return np.concatenate(out)


def _planes(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) to (N, C, H, W)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _planes_of(images: ImageSet, index: np.ndarray) -> np.ndarray:
    return _planes(to_uint(images.images(index), bits=images.bits))


def _spread(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` of `count` numbers, evenly: (n,) int64."""
    return np.linspace(0, count - 1, min(count, wanted)).astype(np.int64)


def _labels(images: ImageSet, wanted: int) -> np.ndarray | None:
    return images.fields["class"][_spread(images.count, wanted)] if "class" in images.fields else None


def _plain(value: Value) -> dict[str, Any]:
    kept = {name: getattr(value, name) for name in ("value", "low", "high", "error", "count", "reference", "warning")}
    return {**kept, "source": str(value.source)}
