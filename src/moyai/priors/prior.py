"""What a prior is to the training loop: a loss for each picture's latents."""

from typing import Protocol

from torch import Tensor

from moyai.batch import Cond
from moyai.randomness import Draw


class Prior(Protocol):
    """A model of the codec's latents."""

    def loss(self, z: Tensor, cond: Cond, draw: Draw) -> Tensor:
        """z: (B, c, h, w) normalised latents. Returns (B,), whose mean is minimised."""
