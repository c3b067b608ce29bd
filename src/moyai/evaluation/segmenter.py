"""A map of regions read from a picture: is a thing where the map asked for it?

A small U-Net (Ronneberger et al. 2015) with BatchNorm, trained on the real training pictures and their maps by
cross-entropy. Squares of s x s pixels become channels before it and its answer's channels become pixels after it (Shi
et al. 2016), s being 1, 2 or 4 by the picture's size, so that it is quick and still says something of every pixel. Rare
regions count for more, by the square root of how rare they are:

    loss = mean_p w[t_p] (-log softmax(f(x)_p)[t_p]),      w[k] ~ (share of region k)^(-1/2),   mean of w[t] = 1

A network trained so gives softmax f[k] ~ w[k] p(k | x), which at edges favours what is rare; so log w[k] is taken off
its answers in the end, and the region read is the most probable one.

What is measured is how far the map read and the map asked for agree, over all pictures together (Everingham 2010):

    mIoU = mean over the regions k asked for or read of |read_k and asked_k| / |read_k or asked_k|

Training is a pure function of (pictures, maps, seed, steps); the network is kept in the cache under the hash of these.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moyai.errors import DataError
from moyai.evaluation import keeping
from moyai.evaluation.features import Pixels, check_pixels, content_hash, to_images, weights_hash
from moyai.evaluation.fitting import optimised
from moyai.evaluation.keeping import Trained
from moyai.evaluation.values import Source
from moyai.randomness import torch_seed

VERSION = 1  # counts up when the same call gives another network
WIDTH = 24  # channels of the first level; each of the two below has twice as many
SIDE = 32  # the longer side that squares of pixels bring a picture down to, as far as 4 x 4 will do
_BATCH = 128  # pictures read at once


class SmallUNet(nn.Module):
    """(B, C, H, W) in [-1, 1] -> (B, regions, H, W), the logit of each region at each pixel."""

    def __init__(self, channels: int, regions: int, square: int) -> None:
        super().__init__()
        self.square = square
        widths = (WIDTH, 2 * WIDTH, 4 * WIDTH)
        inputs = (channels * square**2, *widths)
        self.down = nn.ModuleList(_double(i, o) for i, o in zip(inputs, widths, strict=False))
        self.up = nn.ModuleList(_double(o + i, i) for i, o in pairwise(widths))
        self.head = nn.Conv2d(WIDTH, regions * square**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        unit = self.square * 4
        x = F.pad(x, (0, -width % unit, 0, -height % unit), mode="replicate")
        x = F.pixel_unshuffle(x, self.square)  # (B, C s^2, H / s, W / s)
        maps: list[Tensor] = []
        for i, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if i else x)
            maps.append(x)
        for i in reversed(range(len(self.up))):
            x = self.up[i](torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), maps[i]], 1))
        return F.pixel_shuffle(self.head(x), self.square)[..., :height, :width]


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in (inputs, outputs):
        layers += [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class Segmenter:
    """A trained network that reads the region of every pixel."""

    def __init__(
        self, net: SmallUNet, shape: tuple[int, int, int], regions: int, device: torch.device | str = "cpu"
    ) -> None:
        self.device, self.shape, self.regions = torch.device(device), shape, regions
        self.net = net.to(device).eval().requires_grad_(False)
        channels, height, width = shape
        name = f"own segmenter of {regions} regions, {height} x {width} x {channels}, of stored integers"
        self.source = Source(name, weights_hash(self.tensors()), regions)

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name."""
        return keeping.named(net=self.net)

    def read(self, pixels: Pixels) -> np.ndarray:
        """The region of each pixel of pictures (N, C, H, W) uint8 or uint16: (N, H, W) uint8."""
        check_pixels(pixels)
        if tuple(pixels.shape[1:]) != self.shape:
            raise DataError(f"{self.source.name} does not take pictures (C, H, W) of {tuple(pixels.shape[1:])}")
        found = np.empty((len(pixels), *self.shape[1:]), np.uint8)
        with torch.no_grad():
            for start in range(0, len(pixels), _BATCH):
                logits = self.net(to_images(pixels[start : start + _BATCH]).to(self.device))
                found[start : start + _BATCH] = logits.argmax(1).byte().cpu().numpy()
        return found


def train(
    pixels: Pixels,
    maps: np.ndarray,
    *,
    regions: int,
    seed: int,
    steps: int = 500,
    batch: int = 16,
    device: torch.device | str = "cpu",
) -> Iterator[Trained[Segmenter]]:
    """Train a network to read the maps (N, H, W) of region numbers below `regions` from the pictures (N, C, H, W)."""
    check_pixels(pixels)
    check_maps(maps, (len(pixels), *pixels.shape[2:]), regions)
    channels, height, width = (int(n) for n in pixels.shape[1:])
    square = next((s for s in (1, 2) if max(height, width) <= SIDE * s), 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "segmenter"))
        net = SmallUNet(channels, regions, square)
    net.to(device)
    weights = _weights(maps, regions).to(device)

    def loss(step: int, rows: np.ndarray) -> Tensor:
        wanted = torch.from_numpy(np.asarray(maps[rows]).astype(np.int64)).to(device)
        each = F.cross_entropy(net(to_images(pixels[rows]).to(device)), wanted, weight=weights, reduction="none")
        return each.mean()

    value = 0.0
    for step, value in optimised(net, loss, np.arange(len(pixels)), seed=seed, steps=steps, batch=batch):
        yield Trained(step, steps, value)
    with torch.no_grad():
        net.head.get_parameter("bias").sub_(weights.log().repeat_interleave(square**2))
    yield Trained(steps, steps, value, Segmenter(net, (channels, height, width), regions, device))


def _weights(maps: np.ndarray, regions: int) -> Tensor:
    """(regions,) what an error in each region weighs; 1 on average over the pixels."""
    counts = np.bincount(np.asarray(maps).ravel(), minlength=regions).astype(np.float64)
    shares = counts / counts.sum()
    rare = np.maximum(shares, 1e-6) ** -0.5
    return torch.from_numpy(rare / (rare * shares).sum()).float()


def check_maps(maps: np.ndarray, shape: tuple[int, ...], regions: int) -> None:
    """DataError unless these are maps (N, H, W) of region numbers below `regions`."""
    if tuple(maps.shape) != shape:
        raise DataError(f"{shape[0]} pictures of {shape[1]} x {shape[2]} need maps as large, not {tuple(maps.shape)}")
    if maps.dtype.kind not in "iu" or maps.min() < 0 or maps.max() >= regions:
        raise DataError(f"maps hold region numbers, 0 to {regions - 1}, not {maps.dtype} up to {maps.max()}")


def overlaps(read: np.ndarray, asked: np.ndarray, regions: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that two sets of maps (N, H, W) have in common and together: (N, regions) int64 each."""
    common, together = (np.empty((len(read), regions), np.int64) for _ in range(2))
    for k in range(regions):
        one, other = read == k, asked == k
        common[:, k], together[:, k] = (one & other).sum((1, 2)), (one | other).sum((1, 2))
    return common, together


def mean_iou(common: np.ndarray, together: np.ndarray) -> float:
    """mIoU of all pictures together from their `overlaps`; regions that are in neither set do not count."""
    both, either = common.sum(0), together.sum(0)
    there = either > 0
    return float((both[there] / either[there]).mean()) if there.any() else math.nan


# ---- files


def save(segmenter: Segmenter, path: Path) -> None:
    """The segmenter as one safetensors file, whole or not at all."""
    told = {"shape": segmenter.shape, "regions": segmenter.regions, "square": segmenter.net.square, "version": VERSION}
    keeping.write(path, "segmenter", segmenter.tensors(), told)


def load(path: Path, device: torch.device | str = "cpu") -> Segmenter:
    """What `save` wrote; CheckpointError for anything else."""

    def make(tensors: dict[str, Tensor], told: dict[str, Any]) -> Segmenter:
        channels, height, width = (int(n) for n in told["shape"])
        net = SmallUNet(channels, int(told["regions"]), int(told["square"]))
        net.load_state_dict(keeping.part(tensors, "net"))
        return Segmenter(net, (channels, height, width), int(told["regions"]), device)

    return keeping.read(path, "segmenter", make)


def path_in(cache: Path, pixels: Pixels, maps: np.ndarray, *, regions: int, seed: int, steps: int) -> Path:
    """Where the segmenter trained by exactly this call is kept: the name is the hash of all it follows from."""
    told = keeping.array_hash(maps, "<i8")
    return keeping.place(cache, "segmenter", VERSION, WIDTH, content_hash(pixels), told, regions, seed, steps)
