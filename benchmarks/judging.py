"""One judge for every system: the same pictures held out, the same reference, the features of one classifier.

The data are split as moyai's recipe splits them, so that no system sees the held-out tenth. The classifier is moyai's
own, trained on the training half; 20,000 training pictures are what all is compared with, and as many held-out
pictures as there are samples give the floor.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moyai.build.data import read_data
from moyai.data import splits
from moyai.data.images import ImageSet
from moyai.data.locate import cache_folder
from moyai.recipe import reading


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


@dataclass(frozen=True)
class Data:
    """The training half and the held-out tenth of a recipe's data."""

    train: ImageSet
    held_out: ImageSet

    @classmethod
    def of(cls, recipe: Path) -> "Data":
        config = reading.load(recipe).data
        images = read_data(config, cache_folder())
        train, held_out = splits.split(images, config.validation)
        return cls(images.subset(train), images.subset(held_out))

    def pixels(self) -> np.ndarray:
        """The training pictures, (N, H, W) uint8."""
        return np.asarray(self.train.pixels)[:, 0]

    def real(self, count: int) -> np.ndarray:
        """So many held-out pictures, (n, H, W) uint8, evenly chosen: the floor's."""
        rows = np.linspace(0, self.held_out.count - 1, min(count, self.held_out.count)).astype(np.int64)
        return self.held_out.pixels[rows][:, 0]


def judge(
    data: Data, samples: np.ndarray, labels: np.ndarray | None, again: np.ndarray | None, *, steps: int = 800
) -> dict[str, Any]:
    """The rows of an assessment as JSON holds them (samples, floor, and first stage where `again` is given), the name
    of the extractor and the number of pictures that all is compared with.

    samples: (N, H, W) uint8; labels: (N,), the classes asked for, None of what knows no classes, which is then not
    judged by them; again: `Data.real` through a first stage and back; steps: of the classifier's training.
    """
    from moyai.evaluation import assessment, extractors, obedience
    from moyai.evaluation.rows import Pictures

    cache = cache_folder()
    found = assessment.assess_pictures(
        Pictures(samples[:, None], {} if labels is None else {"class": labels}),
        data.train,
        data.held_out,
        extractors.own_extractor(data.train, cache, silent, steps=steps),
        again=None if again is None else again[:, None],
        judges={} if labels is None else obedience.judges(data.train, cache, silent),
        cache=cache,
        progress=silent,
    )
    made = found.plain()
    return {"rows": made["rows"], "extractor": made["facts"]["extractor"], "reference": made["facts"]["reference"]}
