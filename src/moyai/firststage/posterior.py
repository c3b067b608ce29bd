"""The posterior q(z | x) that an encoder gives, and what holds it in shape.

For a diagonal Gaussian N(mean, diag(std^2)) against the standard normal (Kingma and Welling 2014, appendix B):

    KL = 1/2 sum(mean^2 + std^2 - 1 - ln std^2)

summed over the latents of a picture. The posterior over a codebook or a grid is `quantization.Quantized`.

A *bottleneck* makes the posterior of what the encoder returns, and says how many channels that must have.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from moyai.randomness import Draw

LOGVAR_RANGE = (-30.0, 20.0)


class Posterior(Protocol):
    """What `Autoencoder.encode` returns for a batch of B pictures."""

    def sample(self, draw: Draw) -> Tensor:
        """What the decoder is trained on: one sample a picture, (B, C, h, w), with the noise of `draw`."""

    def mode(self) -> Tensor:
        """What the decoder is judged on: the most likely latents, (B, C, h, w)."""

    def regularizer(self) -> Tensor:
        """What the objective adds for the posterior's shape, (B,)."""

    def stored(self) -> dict[str, Tensor]:
        """What a cache keeps: "mean" (B, C, h, w), and "std" where the latents are noisy."""


class Bottleneck(Protocol):
    """Between encoder and decoder."""

    channels: int  # of the latents
    moments: int  # of what the encoder returns

    def __call__(self, h: Tensor) -> Posterior:
        """The posterior of an encoder's output (B, moments, h, w)."""

    def quantize(self, z: Tensor) -> Tensor:
        """Latents as the codec keeps them; the identity where they are continuous."""

    def restored(self, values: Tensor) -> Tensor:
        """Such latents as the decoder's networks take them, in the coordinates of the encoder's output."""


class DiagonalGaussian:
    """A Gaussian with independent latents; `parameters` (B, 2C, h, w) are the encoder's mean and log variance."""

    def __init__(self, parameters: Tensor) -> None:
        mean, logvar = parameters.float().chunk(2, dim=1)
        self.mean = mean
        self.logvar = logvar.clamp(*LOGVAR_RANGE)

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, draw: Draw) -> Tensor:
        return self.mean + self.std * draw.normal("posterior", self.mean.shape[1:])

    def mode(self) -> Tensor:
        return self.mean

    def regularizer(self) -> Tensor:
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(1)  # (B,)

    def stored(self) -> dict[str, Tensor]:
        return {"mean": self.mean.contiguous(), "std": self.std.contiguous()}


class Gaussian(nn.Module):
    """The bottleneck of a KL autoencoder: it has no weights of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.moments = channels, 2 * channels

    def forward(self, h: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(h)

    def quantize(self, z: Tensor) -> Tensor:
        return z

    def restored(self, values: Tensor) -> Tensor:
        return values
