"""scikit-learn's handwritten digits: 1,797 pictures of 8 x 8 with values 0 to 16 (Alpaydin and Kaynak, UCI, 1998).

They come with scikit-learn, so a first model needs no download. Values are scaled to 0 .. 255 and the pictures enlarged
by Pillow's BICUBIC, which looks smooth.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from moyai.data.arrays import from_arrays
from moyai.data.config import DigitsConfig
from moyai.data.images import ImageSet, Progress, SourceFile
from moyai.errors import DataError


def read(config: DigitsConfig, cache: Path, progress: Progress | None = None) -> ImageSet:
    """All 1,797 digits. Nothing is looked for and nothing is kept in the cache."""
    try:
        from sklearn.datasets import load_digits  # an extra of moyai: imported where it is used
    except ImportError as error:
        raise DataError("the digits come with scikit-learn, which is not there: pip install moyai[digits]") from error
    values, labels = load_digits(return_X_y=True)  # (1797, 64) float64, (1797,)
    levels = np.rint(values / 16 * 255).astype(np.uint8).reshape(-1, 1, 8, 8)
    source = levels.tobytes() + labels.astype(np.uint8).tobytes()
    return from_arrays(
        config,
        levels,
        labels,
        classes=tuple(map(str, range(10))),
        names=[f"digits[{i}]" for i in range(len(levels))],
        files=[SourceFile("sklearn.datasets.load_digits", len(source), hashlib.sha256(source).hexdigest())],
        resolution=8,
        progress=progress,
        resample=Image.Resampling.BICUBIC,
    )
