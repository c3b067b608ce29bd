"""Seconds that an evaluation takes once the features are computed: 10,000 samples against a cached reference.

Features are random projections of random pictures of Fashion-MNIST's size, since the time does not depend on what they
are: 256 of them with 100 bootstrap replicates, 2,048 (Inception's) with 20. The parts are those of `moyai evaluate`:
reading features and statistics from the cache, the measures of the samples, those of the floor, and looking for copies
in features and in pixels. The whole is timed twice: the first time the held-out control's distances to the training
pictures are computed too, the second time they come from the cache, as in every later evaluation of the same data.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import common
import numpy as np
import torch

from moyai.data.images import ImageSet, SourceFile
from moyai.evaluation import assessment, features, frechet, memorization, metrics, rows
from moyai.evaluation.features import extract
from moyai.evaluation.neighbours import manifold
from moyai.evaluation.rows import Pictures
from moyai.evaluation.values import Source
from moyai.nets.precision import keep_memory

SIDE = 28
T = TypeVar("T")


class Projection:
    """So many random projections of a picture, as an extractor."""

    def __init__(self, dimensions: int) -> None:
        rng = np.random.default_rng(dimensions)
        self.matrix = torch.from_numpy(rng.standard_normal((SIDE * SIDE, dimensions)).astype(np.float32)) / SIDE
        self.source = Source(f"random projections {dimensions}", "0" * 64, dimensions)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) @ self.matrix).relu()

    def probabilities(self, features: torch.Tensor) -> None:
        return


def pictures(count: int, seed: int) -> np.ndarray:
    """Smooth random pictures, (count, 1, 28, 28) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 1, SIDE // 4, SIDE // 4))
    return coarse.repeat(4, 2).repeat(4, 3).astype(np.uint8)


def images(pixels: np.ndarray) -> ImageSet:
    names = [str(i) for i in range(len(pixels))]
    return ImageSet(pixels, {}, (), names, (SourceFile("random", 1, "0" * 64),))


class Clock:
    """Wall and processor seconds by part."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[float, float]] = {}

    def __call__(self, part: str, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.parts[part] = (time.perf_counter() - wall, time.process_time() - cpu)
        print(f"  {part:<42}{self.parts[part][0]:>8.1f}{self.parts[part][1]:>8.1f}", flush=True)
        return result


def measure(args: argparse.Namespace, dimensions: int, cache: Path) -> dict[str, tuple[float, float]]:
    """Each part by itself, then the whole as the command does it."""
    extractor, clock = Projection(dimensions), Clock()
    sets = {name: pictures(count, i) for i, (name, count) in enumerate(counts(args).items())}
    train, held_out = images(sets["reference"]), images(sets["held out"])
    for pixels in sets.values():
        extract(extractor, pixels, cache=cache)
    known = extract(extractor, sets["reference"], cache=cache)
    print(f"{dimensions} features, {args.threads} threads{'':<19}wall, s  cpu, s", flush=True)
    clock("statistics of the reference, their root", lambda: features.statistics(known).root)

    def silent(what: str, done: int, total: int) -> None:
        """Progress that nobody wants to see."""

    reference = assessment._reference(train, extractor, cache, silent)
    reference = clock("reference from the cache", lambda: assessment._reference(train, extractor, cache, silent))
    mine = clock("features of the samples from the cache", lambda: extract(extractor, sets["samples"], cache=cache))
    theirs = extract(extractor, sets["held out"], cache=cache)
    clock("FID with its interval and extrapolation", lambda: frechet.fid(mine, reference.statistics))
    clock("KID", lambda: metrics.kid(mine, reference.features))
    clock(
        "precision, recall, density, coverage", lambda: manifold(mine, reference.neighbourhood, radii=reference.radii)
    )
    clock("sliced Wasserstein", lambda: metrics.sliced_wasserstein(sets["samples"], reference.pixels))
    clock("MS-SSIM of pairs", lambda: metrics.ms_ssim_diversity(sets["samples"]))
    clock("copies in features", lambda: memorization.in_features(mine, reference.features, theirs))
    pixels = (sets["samples"], reference.pixels, sets["held out"])
    clock("copies in pixels", lambda: memorization.in_pixels(*pixels))
    clock("all measures of the samples", lambda: rows.measure(mine, reference, Pictures(sets["samples"]), {}))
    samples = Pictures(sets["samples"])
    for what in ("the whole, the first time", "the whole with a cached reference"):
        clock(
            what,
            lambda: assessment.assess_pictures(samples, train, held_out, extractor, cache=cache, progress=silent),
        )
    return clock.parts


def counts(args: argparse.Namespace) -> dict[str, int]:
    return {"samples": args.samples, "reference": args.reference, "held out": args.held_out}


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of an evaluation after the features are computed.")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--reference", type=int, default=assessment.REFERENCE)
    parser.add_argument("--held-out", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    print(", ".join(f"{count:,} {name}" for name, count in counts(args).items()), flush=True)
    with tempfile.TemporaryDirectory() as cache:
        found = {dimensions: measure(args, dimensions, Path(cache)) for dimensions in args.dimensions}
    print(f"peak memory {common.peak_memory():.0f} MiB", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"counts": counts(args), "threads": args.threads, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
