"""The posterior q(z | x) that an encoder gives, and what holds it in shape.

For a diagonal Gaussian N(mean, diag(std^2)) against the standard normal (Kingma and Welling 2014, appendix B):

    KL = 1/2 sum(mean^2 + std^2 - 1 - ln std^2)

summed over the latents of a picture.
"""

from typing import Protocol

import torch
from torch import Tensor

from moyai.randomness import Draw

LOGVAR_RANGE = (-30.0, 20.0)


class Posterior(Protocol):
    """What `Autoencoder.encode` returns for a batch of B pictures."""

    def sample(self, draw: Draw) -> Tensor:
        """One sample a picture, (B, C, h, w), with the noise of `draw`."""

    def mode(self) -> Tensor:
        """The most likely latents, (B, C, h, w)."""

    def regularizer(self) -> Tensor:
        """What the objective adds for the posterior's shape, summed over a picture, (B,)."""


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
