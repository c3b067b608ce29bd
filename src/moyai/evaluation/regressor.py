"""A number read from a picture, such as where in a volume a slice lies: does a sample have what was asked for?

The trunk of our own extractors with one linear output, trained on the real training pictures and their numbers t by
the absolute difference

    loss = mean |f(x) - t'|,      t' = (t - mean) / deviation

and read back in the units of t. What it reaches on held-out real pictures is no property of the samples, so it stands
beside theirs as the floor. Training is a pure function of (pictures, numbers, seed, steps); the network is kept in the
cache under the hash of these.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moyai.errors import DataError
from moyai.evaluation import keeping, networks
from moyai.evaluation.features import Pixels, check_pixels, content_hash, to_images, weights_hash
from moyai.evaluation.keeping import Trained
from moyai.evaluation.networks import Trunk
from moyai.evaluation.values import Source

VERSION = 1  # counts up when the same call gives another network


class Regressor:
    """A trained trunk and the number read from its features. It is an extractor too, so that features are cached."""

    def __init__(
        self,
        trunk: Trunk,
        head: nn.Linear,
        shape: tuple[int, int, int],
        field: str,
        scale: tuple[float, float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.device, self.shape, self.field, self.scale = torch.device(device), shape, field, scale
        self.trunk = trunk.to(device).eval().requires_grad_(False)
        self.head = head.to(device).eval().requires_grad_(False)
        channels, height, width = shape
        name = f"own regressor of {field}, {height} x {width} x {channels}, of stored integers"
        self.source = Source(name, weights_hash(self.tensors()), head.in_features)

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name, with the mean and deviation of the numbers."""
        named = keeping.named(trunk=self.trunk, head=self.head)
        return {**named, "scale": torch.tensor(self.scale, dtype=torch.float64)}

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, D) of pictures (B, C, H, W) in [-1, 1]."""
        if tuple(images.shape[1:]) != self.shape:
            raise DataError(f"{self.source.name} does not take pictures (C, H, W) of {tuple(images.shape[1:])}")
        return self.trunk(images.to(self.device))

    def probabilities(self, features: Tensor) -> None:
        """It knows no classes."""
        return

    def read(self, features: Tensor) -> np.ndarray:
        """The number of each picture, (N,) float64, from features (N, D)."""
        with torch.no_grad():
            found = self.head(features.to(self.device))[:, 0].double().cpu().numpy()
        return found * self.scale[1] + self.scale[0]


def train(
    pixels: Pixels,
    numbers: np.ndarray,
    *,
    field: str,
    seed: int,
    steps: int = 800,
    batch: int = 128,
    device: torch.device | str = "cpu",
) -> Iterator[Trained[Regressor]]:
    """Train a trunk to read `numbers` (N,) from pictures (N, C, H, W). DataError where they are all the same."""
    check_pixels(pixels)
    numbers = np.asarray(numbers, dtype=np.float64)
    scale = _scale(numbers, len(pixels), field)
    wanted = torch.from_numpy((numbers - scale[0]) / scale[1]).float()
    trunk, head = networks.untrained(pixels.shape[1], lambda features: nn.Linear(features, 1), seed, device)
    net = nn.Sequential(trunk, head)

    def loss(step: int, rows: np.ndarray) -> Tensor:
        return (net(to_images(pixels[rows]).to(device))[:, 0] - wanted[rows].to(device)).abs().mean()

    value = 0.0
    every = np.arange(len(pixels))
    for step, value in networks.optimised(net, loss, every, seed=seed, steps=steps, batch=batch):
        yield Trained(step, steps, value)
    yield Trained(steps, steps, value, Regressor(trunk, head, tuple(pixels.shape[1:]), field, scale, device))


def _scale(numbers: np.ndarray, count: int, field: str) -> tuple[float, float]:
    """Mean and deviation of the numbers."""
    if numbers.shape != (count,):
        raise DataError(f"{count} pictures need as many values of {field}, not {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise DataError(f"{int((~np.isfinite(numbers)).sum())} of {count} values of {field} are not finite")
    if numbers.std() == 0:
        raise DataError(f"{field} is {numbers[0]:g} in all pictures: there is nothing to learn to read")
    return float(numbers.mean()), float(numbers.std())


# ---- files


def save(regressor: Regressor, path: Path) -> None:
    """The regressor as one safetensors file, whole or not at all."""
    told = {"shape": regressor.shape, "field": regressor.field, "version": VERSION}
    keeping.write(path, "regressor", regressor.tensors(), told)


def load(path: Path, device: torch.device | str = "cpu") -> Regressor:
    """What `save` wrote; CheckpointError for anything else."""

    def make(tensors: dict[str, Tensor], told: dict[str, Any]) -> Regressor:
        channels, height, width = (int(n) for n in told["shape"])
        trunk, line = Trunk(channels), nn.Linear(tensors["head.weight"].shape[1], 1)
        trunk.load_state_dict(keeping.part(tensors, "trunk"))
        line.load_state_dict(keeping.part(tensors, "head"))
        mean, deviation = tensors["scale"].tolist()
        return Regressor(trunk, line, (channels, height, width), str(told["field"]), (mean, deviation), device)

    return keeping.read(path, "regressor", make)


def path_in(cache: Path, pixels: Pixels, numbers: np.ndarray, *, field: str, seed: int, steps: int) -> Path:
    """Where the regressor trained by exactly this call is kept: the name is the hash of all it follows from."""
    versions = (VERSION, networks.VERSION, networks.WIDTH)
    told = keeping.array_hash(numbers, "<f8")
    return keeping.place(cache, *versions, field, content_hash(pixels), told, seed, steps)
