"""Which extractor judges: the words of `--extractor`, read before anything is computed, and what they name.

    own                          a small network trained on the training pictures themselves (`networks`), cached
    inception:FILE.safetensors   the network of the published FID (`inception`)
    dinov2:FOLDER, clip:FOLDER   published vision transformers (`embeddings`)

Nothing is ever downloaded. Values of different extractors are never compared (`values.same_source`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from moyai.data.images import ImageSet
from moyai.errors import DataError, RequestError
from moyai.evaluation import embeddings, inception, keeping, networks
from moyai.evaluation.features import Extractor

Progress = Callable[[str, int, int], None]
Kind = Literal["own", "inception", "inception-tf", "dinov2", "clip"]
FORMS: dict[Kind, str] = {
    "own": "own",
    "inception": "inception:FILE.safetensors",
    "inception-tf": "inception-tf:FILE.safetensors",
    "dinov2": "dinov2:FOLDER",
    "clip": "clip:FOLDER",
}


@dataclass(frozen=True)
class Choice:
    """What `--extractor` said: the kind and where its weights lie (None for our own)."""

    kind: Kind
    path: Path | None = None


def read(words: str) -> Choice:
    """`own`, or `<kind>:<path>`. RequestError for an unknown kind or a path where nothing is."""
    name, colon, place = words.partition(":")
    kind = next((known for known in FORMS if known == name), None)
    if kind is None:
        raise RequestError(f"--extractor {words!r} is unknown; possible: {', '.join(FORMS.values())}")
    if kind == "own":
        if colon:
            raise RequestError(f"--extractor {words!r}: own has no file, it is trained on the data; possible: own")
        return Choice(kind)
    if not place:
        raise RequestError(f"--extractor {words!r} does not say where the weights lie; possible: {FORMS[kind]}")
    path = Path(place).expanduser()
    is_file = kind in ("inception", "inception-tf")
    if not (path.is_file() if is_file else path.is_dir()):
        what = "file" if is_file else "folder"
        raise RequestError(f"--extractor {words!r}: there is no {what} {path}; possible: {FORMS[kind]}")
    return Choice(kind, path)


def make(
    choice: Choice, train: ImageSet, cache: Path, progress: Progress, *, device: torch.device | str = "cpu"
) -> Extractor:
    """The extractor that was chosen; our own is trained on `train`, or read from the cache."""
    if choice.kind == "own" or choice.path is None:
        return own_extractor(train, cache, progress, device=device)
    if choice.kind == "inception":
        return inception.load(choice.path, "pytorch-fid", device)
    if choice.kind == "inception-tf":
        return inception.load(choice.path, "torch-fidelity", device)
    return embeddings.load(choice.kind, choice.path, device)


def own_extractor(
    train: ImageSet,
    cache: Path,
    progress: Progress,
    *,
    seed: int = 0,
    steps: int = 800,
    device: torch.device | str = "cpu",
) -> networks.OwnExtractor:
    """A small network trained on the training pictures (on their classes where there are two or more), or the
    cached one."""
    pixels, labels = train.pixels, classes_of(train)
    return keeping.found_or_made(
        networks.path_in(cache, pixels, labels, seed=seed, steps=steps),
        lambda path: networks.load(path, device),
        networks.save,
        lambda: (
            networks.train_self_supervised(pixels, seed=seed, steps=steps, device=device)
            if labels is None
            else networks.train_classifier(pixels, labels, seed=seed, steps=steps, device=device)
        ),
        progress,
        "training the extractor",
    )


def classes_of(train: ImageSet) -> np.ndarray | None:
    """The class of each training picture, (N,) int64; None where there are not two to tell apart. DataError where a
    class has no picture."""
    labels = train.fields.get("class")
    if labels is None or len(train.classes) < 2:
        return None
    sizes = np.bincount(labels, minlength=len(train.classes))
    if not sizes.all():
        empty = ", ".join(repr(train.classes[i]) for i in np.flatnonzero(sizes == 0)[:5])
        raise DataError(
            f"no training picture is of class {empty}: a classifier of these data cannot be trained; possible: "
            "more pictures of it, or --against with data that have some"
        )
    return labels
