"""Extractors of our own: a small convolutional network trained on the data set in minutes.

Published networks saw photographs and, on digits or brain slices, measure little; a network that had to tell *these*
pictures apart has features for what matters in them. Two ways of training the same trunk:

* **with labels**: cross-entropy on the classes. It also gives class confidence and accuracy;
* **without**: SimCLR (Chen et al. 2020, eq. 1). Two random views of each picture have to find each other among all
  views of the batch; the trunk's features are kept, the head that the loss saw is not. Views are crops of 0.6 to 1 of
  the side, brightness, contrast, colour, an erased square, noise; no mirror images, since digits and brains have sides.

Training is a pure function of (pictures, labels, seed, steps). What the network reaches on pictures held out from it is
kept with it (`facts`): the accuracy, or the share of held-out views that find their other view among 256.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moyai.errors import DataError, RequestError
from moyai.evaluation import keeping
from moyai.evaluation.features import Pixels, check_pixels, content_hash, to_images, weights_hash
from moyai.evaluation.keeping import Shape, Trained
from moyai.evaluation.values import Source
from moyai.nets.trunk import LARGEST, WIDTH, Trunk
from moyai.randomness import generator, permutation, torch_seed

VERSION = 1  # counts up when the same call gives another network
TEMPERATURE = 0.2  # of the contrastive loss
Head = TypeVar("Head", bound=nn.Module)


class OwnExtractor:
    """A trained trunk and, where it was trained with labels, the classes read from its features."""

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
        kind = "own simclr" if self.head is None else f"own classifier of {self.head.out_features} classes"
        channels, height, width = shape
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
        return self.trunk(images.to(self.device))

    def probabilities(self, features: Tensor) -> Tensor | None:
        return None if self.head is None else self.head(features.to(self.device)).softmax(1).cpu()


def shrinking(height: int, width: int) -> int:
    """The side of the squares that pictures of this size are averaged over."""
    return math.ceil(max(height, width) / LARGEST)


def resize_told(height: int, width: int) -> str:
    """The same in the words of an extractor's name."""
    shrink = shrinking(height, width)
    return "no resize" if shrink == 1 else f"averaged over {shrink} x {shrink}"


# ---- training


def train_classifier(
    pixels: Pixels,
    labels: np.ndarray,
    *,
    seed: int,
    steps: int = 1500,
    batch: int = 128,
    held_out: tuple[Pixels, np.ndarray] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Trained[OwnExtractor]]:
    """Train a trunk to tell the classes apart; held_out: pictures and labels for the accuracy, else a tenth is held
    out from training."""
    check_pixels(pixels)
    labels = np.asarray(labels, dtype=np.int64)
    count = _check_labels(labels, len(pixels))
    chosen, tested = _held_out(len(pixels), seed, held_out is None)
    trunk, head = untrained(pixels.shape[1], lambda features: nn.Linear(features, count), seed, device)
    net = nn.Sequential(trunk, head)

    def loss(step: int, rows: np.ndarray) -> Tensor:
        return F.cross_entropy(net(to_images(pixels[rows]).to(device)), torch.from_numpy(labels[rows]).to(device))

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
    steps: int = 1000,
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> Iterator[Trained[OwnExtractor]]:
    """Train a trunk to recognise two views of one picture; a tenth of the pictures is held out from it."""
    check_pixels(pixels)
    if len(pixels) < 4:
        raise DataError(f"{len(pixels)} picture(s) are too few to train an extractor on; at least 4 are needed")
    chosen, tested = _held_out(len(pixels), seed, True)
    trunk, head = untrained(pixels.shape[1], _projection, seed, device)
    net = nn.Sequential(trunk, head)

    def pair(step: int, rows: np.ndarray) -> Tensor:
        images = to_images(pixels[rows]).to(device)
        return torch.cat([views(images, seed, 2 * step), views(images, seed, 2 * step + 1)])

    def loss(step: int, rows: np.ndarray) -> Tensor:
        return contrastive(net(pair(step, rows)))

    for step, value in optimised(net, loss, chosen, seed=seed, steps=steps, batch=batch):
        yield Trained(step, steps, value)
    net.eval()
    with torch.no_grad():
        projected = F.normalize(net(pair(steps, tested[:256])), dim=1)
    one, two = projected.chunk(2)
    found = float(((one @ two.T).argmax(1).cpu() == torch.arange(len(one))).float().mean())
    facts = {"views found": found, "among": float(len(one)), "steps": steps, "seed": seed}
    yield Trained(steps, steps, value, OwnExtractor(trunk, None, tuple(pixels.shape[1:]), facts, device))


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
        return train_self_supervised(cut, seed=apart, steps=steps, device=device)
    return train_classifier(cut, np.searchsorted(classes, labels), seed=apart, steps=steps, device=device)


def _windows(pixels: Pixels, seed: int) -> Pixels:
    """A window of at most LARGEST x LARGEST of each picture, anywhere in it; the pictures where none is larger."""
    sides = np.array(pixels.shape[2:])
    height, width = np.minimum(sides, LARGEST)
    if (height, width) == tuple(sides):
        return pixels
    places = generator(seed, "extractor/windows").integers(0, sides - (height, width) + 1, (len(pixels), 2))
    cut = np.empty((len(pixels), pixels.shape[1], height, width), pixels.dtype)
    for i, (top, left) in enumerate(places):
        cut[i] = pixels[i, :, top : top + height, left : left + width]
    return cut


def _projection(features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 64))


def untrained(channels: int, head: Callable[[int], Head], seed: int, device: torch.device | str) -> tuple[Trunk, Head]:
    """A trunk and what reads its features, initialised from the seed and nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "extractor"))
        trunk, made = Trunk(int(channels)), head(8 * WIDTH)
    return trunk.to(device), made.to(device)


def optimised(
    net: nn.Module,
    loss: Callable[[int, np.ndarray], Tensor],
    chosen: np.ndarray,
    *,
    seed: int,
    steps: int,
    batch: int,
) -> Iterator[tuple[int, float]]:
    """AdamW with a warm-up and a cosine, over the rows `chosen`, epoch by epoch in a new order."""
    if steps < 1:
        raise RequestError(f"an extractor is trained for 1 step or more, not {steps}")
    batch = min(batch, len(chosen))
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    a_turn = len(chosen) // batch  # batches an epoch; what is left over waits for the next order
    net.train()
    for step in range(steps):
        rate = min(1.0, (step + 1) / (0.05 * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * rate
        turn, place = divmod(step, a_turn)
        order = chosen[permutation(seed, "extractor/order", turn, len(chosen))]
        value = loss(step, order[place * batch : (place + 1) * batch])
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        yield step + 1, float(value.detach())


def _held_out(count: int, seed: int, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
    """(trained on, held out): a random tenth held out where that is wanted."""
    order = permutation(seed, "extractor/split", 0, count)
    cut = max(1, count // 10) if wanted else 0
    return np.sort(order[cut:]), np.sort(order[:cut])


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


def contrastive(projected: Tensor) -> Tensor:
    """The loss of views (2 B, D), row i and row i + B being of one picture (Chen et al. 2020, eq. 1)."""
    count = len(projected) // 2
    unit = F.normalize(projected, dim=1)
    alike = (unit @ unit.T / TEMPERATURE).fill_diagonal_(-math.inf)
    other = torch.arange(2 * count, device=projected.device).roll(count)
    return F.cross_entropy(alike, other)


def views(images: Tensor, seed: int, number: int) -> Tensor:
    """A random view of each picture (B, C, H, W); the same for the same seed and number."""
    rng, (b, c, h, w) = generator(seed, "extractor/views", number), images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (b, *shape)).astype(np.float32)).to(images.device)

    size = uniform(0.6, 1)
    crop = torch.zeros(b, 2, 3, device=images.device)
    crop[:, 0, 0] = crop[:, 1, 1] = size
    crop[:, :, 2] = uniform(-1, 1, 2) * (1 - size)[:, None]
    grid = F.affine_grid(crop, [b, c, h, w], align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if c >= 3:  # colour, which alone would tell two photographs apart
        grey = x[:, :3].mean(1, keepdim=True)
        share = uniform(-1, 1, 1, 1, 1).clamp_min(0)
        x = torch.cat([torch.lerp(x[:, :3], grey.expand(-1, 3, -1, -1), share), x[:, 3:]], 1)
        x = x + uniform(-0.2, 0.2, c, 1, 1)
    x = x * uniform(0.6, 1.4, 1, 1, 1) + uniform(-0.2, 0.2, 1, 1, 1)
    rows, columns = torch.arange(h, device=x.device) / h, torch.arange(w, device=x.device) / w
    centre, half = uniform(0, 1, 2), uniform(-0.2, 0.2).clamp_min(0)  # half of the squares are empty
    inside = ((rows - centre[:, :1]).abs() < half[:, None])[:, None, :, None]
    inside = inside & ((columns - centre[:, 1:]).abs() < half[:, None])[:, None, None, :]
    noise = torch.from_numpy(rng.standard_normal((b, c, h, w), dtype=np.float32)).to(x.device)
    return torch.where(inside, 0.0, x) + 0.05 * noise


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
    told = "simclr" if labels is None else keeping.array_hash(labels, "<i8")
    return keeping.place(cache, VERSION, WIDTH, content_hash(pixels), told, seed, steps)
