"""Pictures that let a reader judge for himself what the numbers of an evaluation say.

    worst        the samples nearest to a training picture, each above that picture: are they copies? In the features
                 of the extractor, and in pixels
    neighbours   samples spread over the request, each above its nearest training pictures in feature space: what has
                 the model learned, and does it draw more than it was shown? (as Karras et al. 2018, figure 10)

A distance is in the units of the space it was measured in and means something only beside the border, the 1st
percentile of the same distance of held-out pictures (`memorization`); so both stand above each pair.

These sheets show training pictures. They belong into the folder of the run, beside the data's own rights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from moyai import pictures
from moyai.errors import DataError
from moyai.evaluation.features import Pixels
from moyai.evaluation.memorization import Memorization
from moyai.evaluation.metrics import pixel_source
from moyai.evaluation.neighbours import nearest
from moyai.evaluation.values import Features, same_source

FOLDER = "evaluation"  # of a run's folder
WORST, NEIGHBOURS = {"features": "worst.png", "pixels": "worst-in-pixels.png"}, "neighbours.png"
CELL = 84  # small pictures are drawn larger, up to so many pixels: ten are as wide as a page
LARGEST = 2 * CELL  # larger pictures are drawn smaller, and the page shows the sheet smaller than it is
ORDER = ("nearest", "second", "third", "fourth", "fifth")


def write(
    run: Path,
    found: Mapping[str, Memorization],
    samples: np.ndarray,
    training: Pixels,
    of_samples: Features,
    of_training: Features,
) -> list[Path]:
    """The sheets into the run's folder `evaluation`, one of the worst for each space; returns their paths.

    found: of `memorization`, in "features" and in "pixels"; samples (N, H, W, C) as `tasks.collect` gives them;
    training (M, C, H, W), the pictures `found` was measured against; both uint8 or uint16. of_samples, of_training:
    their features, row for row. DataError where counts disagree; RequestError where sizes, depths or extractors do.
    """
    sheets = {WORST[space]: worst(each, samples, training) for space, each in found.items()}
    sheets[NEIGHBOURS] = neighbours(of_samples, of_training, samples, training)
    for name, sheet in sheets.items():
        pictures.save_png(run / FOLDER / name, sheet, None)
    return [run / FOLDER / name for name in sheets]


def worst(found: Memorization, samples: np.ndarray, training: Pixels) -> Image.Image:
    """The (at most ten) samples nearest to a training picture, nearest first, each above that picture.

    samples (N, H, W, C), training (M, C, H, W), uint8 or uint16: what `found` was measured on, in its order. The label
    of each pair is its distance and the border, in the units of `found`. Errors as of `write`.
    """
    _check(samples, training, len(found.distances))
    above = samples[[match.sample for match in found.worst]]
    below = _upright(training, [match.training for match in found.worst])
    return _sheet(
        np.concatenate([above, below]),
        row_labels=("sample", "training picture"),
        column_labels=[f"distance {_number(match.distance)}, border {_number(found.border)}" for match in found.worst],
    )


def neighbours(
    of_samples: Features, of_training: Features, samples: np.ndarray, training: Pixels, *, count: int = 8
) -> Image.Image:
    """`count` samples spread over the request, each above its five nearest training pictures in feature space.

    of_samples (N, D) and of_training (M, D) are the features of samples (N, H, W, C) and training (M, C, H, W), row for
    row. Fewer than five training pictures give fewer rows. The label of each column is the distance to the nearest.
    Errors as of `write`.
    """
    _check(samples, training, len(of_samples), len(of_training))
    same_source(of_samples.source, of_training.source)
    chosen = np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(np.int64)
    k = min(len(ORDER), len(training))
    distances, numbers = nearest(of_samples.values[torch.from_numpy(chosen)], of_training.values, k)
    found = [_upright(training, numbers[:, place].tolist()) for place in range(k)]
    return _sheet(
        np.concatenate([samples[chosen], *found]),
        row_labels=("sample", *ORDER[:k]),
        column_labels=[f"distance {_number(distance)}" for distance in distances[:, 0].tolist()],
    )


def _check(samples: np.ndarray, training: Pixels, of_samples: int, of_training: int | None = None) -> None:
    """DataError or RequestError unless these are pictures of one kind, as many as were measured."""
    same_source(pixel_source(samples.transpose(0, 3, 1, 2)), pixel_source(training))
    if of_samples != len(samples) or of_training not in (None, len(training)):
        raise DataError(
            f"{len(samples)} samples and {len(training)} training pictures are not what was measured: "
            f"{of_samples} samples" + ("" if of_training is None else f" and {of_training} training pictures")
        )


def _number(distance: float) -> str:
    return f"{distance:.3g}" if distance < 1000 else f"{distance:,.0f}"


def _upright(training: Pixels, numbers: list[int]) -> np.ndarray:
    """Some of (M, C, H, W) as (n, H, W, C)."""
    return np.asarray(training[np.array(numbers, np.int64)]).transpose(0, 2, 3, 1)


def _sheet(images: np.ndarray, row_labels: Sequence[str], column_labels: Sequence[str]) -> Image.Image:
    """A labelled grid of cells of more than half of `CELL` and at most `LARGEST` pixels."""
    side = max(images.shape[1:3])
    return pictures.grid(
        _smaller(images, LARGEST) if side > LARGEST else images,
        scale=max(1, CELL // side),
        row_labels=row_labels,
        column_labels=column_labels,
    )


def _smaller(images: np.ndarray, longest: int) -> np.ndarray:
    """(N, H, W, C) brought to a longer side of `longest` pixels, each the mean of those it stands for."""
    height, width = images.shape[1:3]
    size = tuple(max(1, round(n * longest / max(height, width))) for n in (height, width))
    planes = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
    means = torch.nn.functional.interpolate(planes, size=size, mode="area").round()
    return means.permute(0, 2, 3, 1).numpy().astype(images.dtype)
