"""The autoencoder: pictures to a posterior over latents, latents to pictures.

Latents are `factor` times smaller on each side. Pictures whose sides are no multiple of the factor are continued at
their right and lower edge before encoding; `decode(z, size)` cuts the surplus off again.

What the latents are is the bottleneck's choice: a Gaussian, vectors of a codebook, a grid. What is known of a picture
(its class, the place of a slice in its volume) may be told to encoder and decoder, which then need not store it.
"""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.firststage.posterior import Gaussian, Posterior
from moyai.nets.autoencoder import Decoder, Encoder
from moyai.nets.config import AutoencoderConfig


class Autoencoder(Protocol):
    """What a first stage is to everything after it."""

    factor: int
    channels: int  # of the latents

    def encode(self, images: Tensor, cond: Cond | None = None) -> Posterior:
        """(B, C, H, W) in [-1, 1] to the posterior over (B, channels, ceil(H / factor), ceil(W / factor))."""

    def quantize(self, latents: Tensor) -> Tensor:
        """Latents as a prior sees them to latents as `decode` takes them."""

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, cond: Cond | None = None) -> Tensor:
        """Latents to pictures (B, C, H, W), cut to `size` where it is given; not clamped."""


class LatentAutoencoder(nn.Module):
    """A convolutional autoencoder around a bottleneck (Rombach et al. 2022, section 3.1).

    bottleneck: a module that is a `Bottleneck`; a Gaussian of `config.latent_channels` when not given. conditioner: a
    `conditioning.Conditioner` whose vectors encoder and decoder are told; where `cond` is None they are its null.
    """

    bottleneck: Any
    conditioner: Any

    def __init__(
        self,
        config: AutoencoderConfig,
        image_channels: int,
        bottleneck: nn.Module | None = None,
        conditioner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if config.factor is None:
            raise ValueError("the autoencoder's factor is not resolved")
        self.bottleneck = Gaussian(config.latent_channels) if bottleneck is None else bottleneck
        self.conditioner = conditioner
        made, told = cast(Any, self.bottleneck), cast(Any, conditioner)  # a module's attributes have no types
        width: int | None = None if conditioner is None else told.vector_width
        self.factor: int = config.factor
        self.channels: int = made.channels
        self._build(config, image_channels, width)

    def told(self, fields: Mapping[str, Tensor] | None, count: int) -> Cond | None:
        """The condition of `count` pictures from what is known of them, each field (count, ...)."""
        return None if self.conditioner is None else self.conditioner(fields or {}, count)

    def encode(self, images: Tensor, cond: Cond | None = None) -> Posterior:
        moments = self.encoder(self._padded(images), self._vector(cond, len(images)))
        posterior: Posterior = self.bottleneck(moments.float())
        return posterior

    def quantize(self, latents: Tensor) -> Tensor:
        quantized: Tensor = self.bottleneck.quantize(latents)
        return quantized

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, cond: Cond | None = None) -> Tensor:
        images = self.decoder(self.bottleneck.restored(latents), self._vector(cond, len(latents))).float()
        return images if size is None else images[..., : size[0], : size[1]]

    def compile_networks(self) -> None:
        """From now on the networks run compiled; copies made before stay as they are."""
        self.encoder.compile()
        self.decoder.compile()

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last convolution, where adversarial terms are balanced."""
        weight = self.decoder.conv_out.weight
        if not isinstance(weight, nn.Parameter):
            raise TypeError("the decoder's last layer has no weight")
        return weight

    def _build(self, config: AutoencoderConfig, image_channels: int, width: int | None) -> None:
        """The networks; width: of the vector they are told, None where they are told nothing."""
        config = config.model_copy(update={"latent_channels": self.channels})
        self.encoder = Encoder(config, image_channels, moments=self.bottleneck.moments, vector_width=width)
        self.decoder = Decoder(config, image_channels, vector_width=width)

    def _vector(self, cond: Cond | None, count: int) -> Tensor | None:
        cond = self.told({}, count) if cond is None else cond
        return None if cond is None else cond.vector

    def _padded(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        below, right = -height % self.factor, -width % self.factor
        return F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images
