"""The codec: pixels to the prior's space and back. Latents are normalised here, by their owner.

A prior wants values of mean 0 and variance 1 in every channel. What it sees of picture x is a *sample* of the
posterior, so over the training set each channel has

    mean = E[mean(x)]        variance = Var[mean(x)] + E[std(x)^2]

measured once over the whole set and saved with the first stage (others take one scalar from one batch; Stable
Diffusion's 0.18215 is such a number). What the cache stores of each picture is the distribution, (mean, std), never
one noisy sample of it: a cached sample would be noise that no prior can predict.

With `codec.scale="whole"` all channels are divided by one number, the root mean square of their standard deviations.
Channels that the shortcut carries are a picture's coarse part and its fine ones, which are a fraction as strong: noise
then hides these first, and they are drawn last, on what is there already, as in pixels. Each divided by its own, the
finest detail is worth as much to the loss, and is decided as early, as the whole picture's shape.

Over a codebook or a grid the prior sees latents *before* quantisation, which have no noise of their own; the codec
quantises once, before decoding. A prior over codes sees which code each place has instead. Without a first stage (Ho
et al. 2020) the latents are the pixels as they are.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from moyai.errors import ConfigError
from moyai.firststage.autoencoder import LatentAutoencoder
from moyai.firststage.grid import FSQ
from moyai.firststage.hierarchy import Hierarchy, quantizers
from moyai.firststage.quantization import VectorQuantizer
from moyai.nets.precision import Precision, autocast
from moyai.randomness import Draw

Stored = Mapping[str, Tensor]
Fields = Mapping[str, Tensor]  # what is known of a batch's pictures, each (B, ...)


class Codec(Protocol):
    """Frozen: nothing here is trained any more. Implementations are modules."""

    image_shape: tuple[int, int, int]
    mean: Tensor  # of each channel of the latents, (c,)
    std: Tensor

    def store(self, images: Tensor, fields: Fields | None = None) -> dict[str, Tensor]:
        """What is kept of pictures (B, C, H, W) in [-1, 1], by name; fields: what is known of them."""

    def latents(self, stored: Stored, draw: Draw) -> Tensor:
        """Normalised latents (B, c, h, w), with the noise of `draw` where the posterior has any."""

    def encode(self, images: Tensor, fields: Fields | None = None) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] to the normalised mode of their latents."""

    def decode(self, latents: Tensor, fields: Fields | None = None) -> Tensor:
        """Normalised latents to pictures (B, C, H, W) in [-1, 1]."""

    def needed(self) -> tuple[str, ...]:
        """The fields that it has to be told: training never left them out."""

    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents of one picture."""

    def digest(self) -> str:
        """A hash of all that decides what latents mean; a prior trained on others is refused."""


class LatentStatistics:
    """Streams stored posteriors and gives each channel's mean and standard deviation, in float64."""

    def __init__(self) -> None:
        self.count, self.sum, self.sum_square = 0, torch.zeros(()), torch.zeros(())

    def add(self, stored: Stored) -> None:
        mean = stored["mean"].double()
        second = mean.square() + stored["std"].double().square() if "std" in stored else mean.square()
        self.count += mean.numel() // mean.shape[1]
        self.sum = self.sum + mean.sum((0, 2, 3))
        self.sum_square = self.sum_square + second.sum((0, 2, 3))

    def result(self, scale: Literal["channels", "whole"] = "channels") -> tuple[Tensor, Tensor]:
        """(mean, std) of each channel, float32 (c,); the root mean square of the stds for all of them by "whole"."""
        mean = self.sum / self.count
        variance = self.sum_square / self.count - mean.square()
        if scale == "whole":
            variance = variance.mean().expand_as(variance)
        return mean.float(), variance.clamp_min(1e-12).sqrt().float()


class LatentCodec(nn.Module):
    """An autoencoder with the statistics of its latents."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        autoencoder: LatentAutoencoder,
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
    def store(self, images: Tensor, fields: Fields | None = None) -> dict[str, Tensor]:
        with autocast(self.precision, images.device):
            return self.autoencoder.encode(images, self.autoencoder.told(fields, len(images))).stored()

    def latents(self, stored: Stored, draw: Draw) -> Tensor:
        mean = stored["mean"].float()
        if "std" in stored:
            mean = mean + stored["std"].float() * draw.normal("posterior", mean.shape[1:])
        return self.normalised(mean)

    def encode(self, images: Tensor, fields: Fields | None = None) -> Tensor:
        return self.normalised(self.store(images, fields)["mean"])

    @torch.no_grad()
    def decode(self, latents: Tensor, fields: Fields | None = None) -> Tensor:
        z = latents * self._column(self.std) + self._column(self.mean)
        return self._decoded(self.autoencoder.quantize(z), fields)

    def codes(self, stored: Stored) -> list[Tensor]:
        """The numbers of what `decode` makes of stored latents, each map of codes (B, h, w) int64, coarse to fine.
        ConfigError for a Gaussian's, which are none; so do the next four."""
        maps = self._split(stored["mean"].float())
        return [one.codes_of(z) for one, z in zip(self._quantizers(), maps, strict=True)]

    def codes_counts(self) -> list[int]:
        """How many codes each map has, coarse to fine: 0 .. count - 1."""
        return [one.size for one in self._quantizers()]

    def code_shapes(self) -> list[tuple[int, int]]:
        """(h, w) of each map of codes, coarse to fine."""
        self._quantizers()
        return [(part.shape[2], part.shape[3]) for part in self._split(torch.empty(1, *self.shape()))]

    def latents_of(self, codes: Sequence[Tensor]) -> Tensor:
        """The normalised latents (B, c, h, w) that maps of codes (B, h, w), coarse to fine, are numbers of; `decode`
        takes them as well."""
        return self.normalised(self._values(codes))

    @torch.no_grad()
    def decode_codes(self, codes: Sequence[Tensor], fields: Fields | None = None) -> Tensor:
        """Maps of codes (B, h, w), coarse to fine, to pictures (B, C, H, W) in [-1, 1]: those of the latents that they
        are numbers of."""
        return self._decoded(self._values(codes), fields)

    def normalised(self, z: Tensor) -> Tensor:
        return (z - self._column(self.mean)) / self._column(self.std)

    def needed(self) -> tuple[str, ...]:
        conditioner: Any = self.autoencoder.conditioner
        return () if conditioner is None else tuple(conditioner.needed())

    def shape(self) -> tuple[int, int, int]:
        f = self.autoencoder.factor
        return self.autoencoder.channels, -(-self.image_shape[1] // f), -(-self.image_shape[2] // f)

    def digest(self) -> str:
        """Covers the encoder side only, so that a decoder trained further keeps its latents valid."""
        whole = self.autoencoder.state_dict()
        tensors = [(name, value) for name, value in whole.items() if not name.startswith("decoder.")]
        return _digest([*tensors, ("mean", self.mean), ("std", self.std)])

    def _decoded(self, z: Tensor, fields: Fields | None) -> Tensor:
        """Quantised latents to pictures."""
        with autocast(self.precision, z.device):
            images = self.autoencoder.decode(z, self.image_shape[1:], self.autoencoder.told(fields, len(z)))
        return images.float().clamp(-1, 1)

    def _quantizers(self) -> list[VectorQuantizer | FSQ]:
        found = list(quantizers(self.autoencoder.bottleneck).values())
        if not found:
            raise ConfigError("this first stage's latents are no codes; possible: first_stage.kind vq, vq2 or fsq")
        return found

    def _values(self, codes: Sequence[Tensor]) -> Tensor:
        """Quantised latents of maps of codes, coarse to fine."""
        maps = [one.lookup(numbers) for one, numbers in zip(self._quantizers(), codes, strict=True)]
        made = self.autoencoder.bottleneck
        return made.joined(maps) if isinstance(made, Hierarchy) else maps[0]

    def _split(self, latents: Tensor) -> Sequence[Tensor]:
        """Latents by map of codes, coarse to fine."""
        made = self.autoencoder.bottleneck
        return made.split(latents) if isinstance(made, Hierarchy) else [latents]

    @staticmethod
    def _column(values: Tensor) -> Tensor:
        return values[None, :, None, None]


class PixelCodec(nn.Module):
    """No first stage: the latents are the pictures themselves, in [-1, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.register_buffer("mean", torch.zeros(image_shape[0]))
        self.register_buffer("std", torch.ones(image_shape[0]))

    def store(self, images: Tensor, fields: Fields | None = None) -> dict[str, Tensor]:
        return {"mean": images}

    def latents(self, stored: Stored, draw: Draw) -> Tensor:
        return stored["mean"].float()

    def encode(self, images: Tensor, fields: Fields | None = None) -> Tensor:
        return images

    def decode(self, latents: Tensor, fields: Fields | None = None) -> Tensor:
        return latents.float().clamp(-1, 1)

    def needed(self) -> tuple[str, ...]:
        return ()

    def shape(self) -> tuple[int, int, int]:
        return self.image_shape

    def digest(self) -> str:
        return hashlib.sha256(f"pixels {self.image_shape}".encode()).hexdigest()


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        values = tensor.detach().cpu().numpy()
        sha.update(f"{name} {values.dtype} {values.shape}".encode())
        sha.update(values.tobytes())  # in C order, however the tensor lies in memory
    return sha.hexdigest()
