"""The autoencoder: pictures to a posterior over latents, latents to pictures.

Latents are `factor` times smaller on each side. Pictures whose sides are no multiple of the factor are continued at
their right and lower edge before encoding; `decode(z, size)` cuts the surplus off again.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from moyai.firststage.posterior import DiagonalGaussian, Posterior
from moyai.nets.autoencoder import Decoder, Encoder
from moyai.nets.config import AutoencoderConfig


class Autoencoder(Protocol):
    """What a first stage is to everything after it."""

    factor: int
    channels: int  # of the latents

    def encode(self, images: Tensor) -> Posterior:
        """(B, C, H, W) in [-1, 1] to the posterior over (B, channels, ceil(H / factor), ceil(W / factor))."""

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Latents to pictures (B, C, H, W), cut to `size` where it is given; not clamped."""


class KLAutoencoder(nn.Module):
    """A convolutional autoencoder with a diagonal Gaussian posterior (Rombach et al. 2022, section 3.1)."""

    def __init__(self, config: AutoencoderConfig, image_channels: int) -> None:
        super().__init__()
        if config.factor is None:
            raise ValueError("the autoencoder's factor is not resolved")
        self.factor = config.factor
        self.channels = config.latent_channels
        self.encoder = Encoder(config, image_channels)
        self.decoder = Decoder(config, image_channels)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.encoder(self._padded(images)))

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        images = self.decoder(latents).float()
        return images if size is None else images[..., : size[0], : size[1]]

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last convolution, where adversarial terms are balanced."""
        weight = self.decoder.conv_out.weight
        if not isinstance(weight, nn.Parameter):
            raise TypeError("the decoder's last layer has no weight")
        return weight

    def _padded(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        below, right = -height % self.factor, -width % self.factor
        return F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images
