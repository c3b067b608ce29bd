"""The codec: pixels to the prior's space and back. Latents are normalised here, by their owner.

A prior wants values of mean 0 and variance 1 in every channel. What it sees of picture x is a *sample* of the
posterior, so over the training set each channel has

    mean = E[mean(x)]        variance = Var[mean(x)] + E[std(x)^2]

measured once over the whole set and saved with the first stage (others take one scalar from one batch; Stable
Diffusion's 0.18215 is such a number). What the cache stores of each picture is the distribution, (mean, std), never
one noisy sample of it: a cached sample would be noise that no prior can predict.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from moyai.firststage.autoencoder import KLAutoencoder
from moyai.nets.precision import Precision, autocast
from moyai.randomness import Draw

Stored = Mapping[str, Tensor]


class Codec(Protocol):
    """Frozen: nothing here is trained any more."""

    image_shape: tuple[int, int, int]

    def store(self, images: Tensor) -> dict[str, Tensor]:
        """What is kept of pictures (B, C, H, W) in [-1, 1], by name."""

    def latents(self, stored: Stored, draw: Draw) -> Tensor:
        """Normalised latents (B, c, h, w), with the noise of `draw` where the posterior has any."""

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents to pictures (B, C, H, W) in [-1, 1]."""

    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents of one picture."""

    def digest(self) -> str:
        """A hash of all that decides what latents mean; a prior trained on others is refused."""


class LatentStatistics:
    """Streams stored posteriors and gives each channel's mean and standard deviation, in float64."""

    def __init__(self) -> None:
        self.count, self.sum, self.sum_square = 0, torch.zeros(()), torch.zeros(())

    def add(self, stored: Stored) -> None:
        mean, std = stored["mean"].double(), stored["std"].double()
        self.count += mean.numel() // mean.shape[1]
        self.sum = self.sum + mean.sum((0, 2, 3))
        self.sum_square = self.sum_square + (mean.square() + std.square()).sum((0, 2, 3))

    def result(self) -> tuple[Tensor, Tensor]:
        """(mean, std) of each channel, float32 (c,)."""
        mean = self.sum / self.count
        variance = self.sum_square / self.count - mean.square()
        return mean.float(), variance.clamp_min(1e-12).sqrt().float()


class LatentCodec(nn.Module):
    """A KL autoencoder with the statistics of its latents."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        autoencoder: KLAutoencoder,
        image_shape: tuple[int, int, int],
        *,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.image_shape = image_shape
        self.precision: Precision = precision
        self.register_buffer("mean", torch.zeros(autoencoder.channels))
        self.register_buffer("std", torch.ones(autoencoder.channels))

    def measured(self, statistics: tuple[Tensor, Tensor]) -> "LatentCodec":
        """This codec with the statistics of its latents set."""
        self.mean.copy_(statistics[0])
        self.std.copy_(statistics[1])
        return self

    @torch.no_grad()
    def store(self, images: Tensor) -> dict[str, Tensor]:
        with autocast(self.precision, images.device):
            posterior = self.autoencoder.encode(images)
        return {"mean": posterior.mean.contiguous(), "std": posterior.std.contiguous()}

    def latents(self, stored: Stored, draw: Draw) -> Tensor:
        mean, std = stored["mean"].float(), stored["std"].float()
        return self.normalised(mean + std * draw.normal("posterior", mean.shape[1:]))

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) to the normalised mode of their latents."""
        return self.normalised(self.store(images)["mean"])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        z = latents * self._column(self.std) + self._column(self.mean)
        with autocast(self.precision, latents.device):
            images = self.autoencoder.decode(z, self.image_shape[1:])
        return images.float().clamp(-1, 1)

    def normalised(self, z: Tensor) -> Tensor:
        return (z - self._column(self.mean)) / self._column(self.std)

    def shape(self) -> tuple[int, int, int]:
        f = self.autoencoder.factor
        return self.autoencoder.channels, -(-self.image_shape[1] // f), -(-self.image_shape[2] // f)

    def digest(self) -> str:
        """Covers the encoder side only, so that a decoder trained further keeps its latents valid."""
        tensors = [(f"encoder.{k}", v) for k, v in self.autoencoder.encoder.state_dict().items()]
        return _digest([*tensors, ("mean", self.mean), ("std", self.std)])

    @staticmethod
    def _column(values: Tensor) -> Tensor:
        return values[None, :, None, None]


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        values = tensor.detach().cpu().numpy()
        sha.update(f"{name} {values.dtype} {values.shape}".encode())
        sha.update(values.tobytes())  # in C order, however the tensor lies in memory
    return sha.hexdigest()
