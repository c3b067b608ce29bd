"""Extractors of our own: a small convolutional network trained on the data set in minutes.

Published networks saw photographs and, on digits or brain slices, measure little; a network that had to tell *these*
pictures apart has features for what matters in them. Two ways of training the same trunk:

* **with labels**: cross-entropy on the classes. It also gives class confidence and accuracy;
* **without**: to recognise views of one picture and what it is like (`selfsupervised`).

Large pictures are seen smaller (`fitting.seen`). Training is a pure function of (pictures, labels, seed, steps). What
the network reaches on pictures held out from it is kept with it (`facts`): the accuracy, or the share of held-out views
that find their other view among 256.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moyai.errors import DataError
from moyai.evaluation import keeping, selfsupervised
from moyai.evaluation.features import Pixels, check_pixels, content_hash, to_images, weights_hash
from moyai.evaluation.fitting import optimised, parted, resize_told, seen, untrained
from moyai.evaluation.keeping import Shape, Trained
from moyai.evaluation.values import Source
from moyai.firststage.perceptual import OWN_EPS, Perceptual
from moyai.nets.trunk import LARGEST, WIDTH, FoldedTrunk, Trunk
from moyai.randomness import generator, torch_seed

VERSION = 1  # counts up when the same call gives another network


class OwnExtractor:
    """A trained trunk and, where it was trained with labels, the classes read from its features.

    A trunk of as many channels as `shape` (C, H, W) sees pictures as they are; one of more, squares as channels.
    """

    def __init__(
        self,
        trunk: Trunk,
        classes: nn.Linear | None,
        shape: Shape,
        facts: Mapping[str, float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.device, self.shape, self.facts = torch.device(device), shape, dict(facts)
        self.trunk = trunk.to(device).eval().requires_grad_(False)
        self.head = None if classes is None else classes.to(device).requires_grad_(False)
        kind = "own self-supervised" if self.head is None else f"own classifier of {self.head.out_features} classes"
        channels, height, width = shape
        self._seen: Callable[[Tensor], Tensor] = nn.Identity() if self.trunk.channels == channels else seen
        name = f"{kind}, {height} x {width} x {channels}, {resize_told(height, width)}, of stored integers"
        self.source = Source(name, weights_hash(self.tensors()), 8 * self.trunk.width)

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name."""
        return keeping.named(trunk=self.trunk, **({} if self.head is None else {"head": self.head}))

    def __call__(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.shape:
            channels, height, width = self.shape
            raise DataError(
                f"this extractor was trained on pictures of {height} x {width} with {channels} channel(s), "
                f"not {' x '.join(map(str, images.shape[2:]))} with {images.shape[1]}"
            )
        return self.trunk(self._seen(images.to(self.device)))

    @property
    def able(self) -> str:
        """What it reached on pictures held out from its training, in words; "" where that is not known."""
        if "accuracy" in self.facts:
            return f"tell the class of {100 * self.facts['accuracy']:.3g} % of pictures it was not trained on"
        if "views found" in self.facts:
            found, among = self.facts["views found"], self.facts["among"]
            return f"find {100 * found:.3g} % of the views of pictures it was not trained on, each among {among:g}"
        return ""

    def perceptual(self, images: Tensor, others: Tensor) -> Tensor:
        """The perceptual distance (`firststage.perceptual`) of each pair (B, C, H, W) in [-1, 1], in this network's
        maps of what it sees of them: (B,)."""
        return self._perceptual(images.to(self.device), others.to(self.device)).cpu()

    @cached_property
    def _perceptual(self) -> Perceptual:
        return Perceptual(FoldedTrunk(self.trunk), None, prepare=self._seen, eps=OWN_EPS).to(self.device)

    def probabilities(self, features: Tensor) -> Tensor | None:
        return None if self.head is None else self.head(features.to(self.device)).softmax(1).cpu()


# ---- training


def train_classifier(
    pixels: Pixels,
    labels: np.ndarray,
    *,
    seed: int,
    steps: int = 1500,
    batch: int = 128,
    held_out: tuple[Pixels, np.ndarray] | None = None,
    whole: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[Trained[OwnExtractor]]:
    """Train a trunk to tell the classes apart.

    held_out: pictures and labels for the accuracy, else a tenth is held out from training. whole: the trunk sees
    pictures of any size as they are.
    """
    check_pixels(pixels)
    labels = np.asarray(labels, dtype=np.int64)
    count = _check_labels(labels, len(pixels))
    chosen, tested = parted(len(pixels), seed, held_out is None)
    looked: Callable[[Tensor], Tensor] = nn.Identity() if whole else seen
    inputs = looked(to_images(pixels[:1])).shape[1]
    trunk, head = untrained(inputs, lambda features: nn.Linear(features, count), seed, device)
    net = nn.Sequential(trunk, head)

    def loss(step: int, rows: np.ndarray) -> Tensor:
        images = looked(to_images(pixels[rows]).to(device))
        return F.cross_entropy(net(images), torch.from_numpy(labels[rows]).to(device))

    for step, value in optimised(net, loss, chosen, seed=seed, steps=steps, batch=batch):
        yield Trained(step, steps, value)
    made = OwnExtractor(trunk, head, tuple(pixels.shape[1:]), {}, device)
    judged = (pixels[tested], labels[tested]) if held_out is None else held_out
    made.facts.update(accuracy=_accuracy(made, *judged), steps=steps, seed=seed)
    yield Trained(steps, steps, value, made)


def train_self_supervised(
    pixels: Pixels,
    *,
    seed: int,
    steps: int = 800,
    batch: int = 128,
    whole: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[Trained[OwnExtractor]]:
    """Train a trunk without labels (`selfsupervised`); a tenth of the pictures is held out from it. whole: as above."""
    check_pixels(pixels)
    if len(pixels) < 4:
        raise DataError(f"{len(pixels)} picture(s) are too few to train an extractor on; at least 4 are needed")
    looked: Callable[[Tensor], Tensor] = nn.Identity() if whole else seen
    for state in selfsupervised.train(pixels, looked, seed=seed, steps=steps, batch=batch, device=device):
        if state.made is None:
            yield Trained(state.step, steps, state.loss)
        else:
            trunk, facts = state.made
            made = OwnExtractor(trunk, None, tuple(pixels.shape[1:]), facts, device)
            yield Trained(steps, steps, state.loss, made)


def perceptual_trunk(
    pixels: Pixels,
    labels: np.ndarray | None,
    *,
    seed: int,
    steps: int,
    device: torch.device | str = "cpu",
) -> Iterator[Trained[OwnExtractor]]:
    """Train the network whose maps a first stage's perceptual distance compares (`firststage.perceptual.own`).

    It is another network than the extractor of the same seed: other initial weights, other order, other pictures held
    out. A first stage lowers every difference that its own perceptual network can see, so in that network's features
    its pictures look better than they are; a judge that was optimised against is no judge.

    Pictures larger than 64 are not averaged down, as fine detail is what the distance is for: the network is trained on
    one window of 64 x 64 of each. Without two classes or more it is trained without labels.
    """
    check_pixels(pixels)
    apart = torch_seed(seed, "perceptual network")
    cut = _windows(pixels, apart)
    if labels is None or len(classes := np.unique(labels)) < 2:
        return train_self_supervised(cut, seed=apart, steps=steps, whole=True, device=device)
    numbers = np.searchsorted(classes, labels)
    return train_classifier(cut, numbers, seed=apart, steps=steps, whole=True, device=device)


def _windows(pixels: Pixels, seed: int) -> Pixels:
    """A window of at most LARGEST x LARGEST of each picture, anywhere in it; the pictures where none is larger."""
    sides = np.array(pixels.shape[2:])
    height, width = np.minimum(sides, LARGEST)
    if (height, width) == tuple(sides):
        return pixels
    places = generator(seed, "extractor/windows").integers(0, sides - (height, width) + 1, (len(pixels), 2))
    cut = np.empty((len(pixels), pixels.shape[1], height, width), pixels.dtype)
    for i, (top, left) in enumerate(places):
        cut[i] = pixels[i][:, top : top + height, left : left + width]
    return cut


def _check_labels(labels: np.ndarray, count: int) -> int:
    """The number of classes; DataError where the labels are no training material."""
    if labels.shape != (count,):
        raise DataError(f"{count} pictures need as many labels, not {labels.shape}")
    if labels.min() < 0:
        raise DataError(f"classes are numbered from 0, not {labels.min()}")
    sizes = np.bincount(labels)
    if len(sizes) < 2:
        raise DataError("all pictures are of one class: there is nothing to tell apart; train without labels")
    if not sizes.all():
        raise DataError(f"class {int(np.argmin(sizes))} of 0 to {len(sizes) - 1} has no picture to learn from")
    return len(sizes)


def _accuracy(extractor: OwnExtractor, pixels: Pixels, labels: np.ndarray) -> float:
    hits = 0
    with torch.no_grad():
        for start in range(0, len(pixels), 256):
            p = extractor.probabilities(extractor(to_images(pixels[start : start + 256])))
            if p is not None:
                hits += int((p.argmax(1).numpy() == labels[start : start + 256]).sum())
    return hits / len(pixels)


# ---- files


def save(extractor: OwnExtractor, path: Path) -> None:
    """The extractor as one safetensors file, whole or not at all."""
    told = {"shape": extractor.shape, "facts": extractor.facts, "version": VERSION}
    keeping.write(path, "extractor", extractor.tensors(), told)


def load(path: Path, device: torch.device | str = "cpu") -> OwnExtractor:
    """What `save` wrote; CheckpointError for anything else."""

    def make(trunk: Trunk, head: nn.Linear | None, shape: Shape, told: Mapping[str, Any]) -> OwnExtractor:
        return OwnExtractor(trunk, head, shape, told["facts"], device)

    return keeping.read_trunk(path, "extractor", make)


def path_in(cache: Path, pixels: Pixels, labels: np.ndarray | None, *, seed: int, steps: int) -> Path:
    """Where the extractor trained by exactly this call is kept: the name is the hash of all it follows from."""
    told = "self-supervised" if labels is None else keeping.array_hash(labels, "<i8")
    if max(pixels.shape[2:]) > LARGEST // 2:
        told += " by squares"
    return keeping.place(cache, VERSION, WIDTH, content_hash(pixels), told, seed, steps)
