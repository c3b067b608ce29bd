"""What the first stage is trained to do.

For a picture x of n = C H W values with reconstruction y and posterior q (both sums divided by n, so that a KL weight
of 1 is the evidence lower bound of a unit-scale likelihood, and the 1e-6 of Rombach et al. is the same number here):

    loss = |x - y| / n + weight KL(q || N(0, 1)) / n

Adversarial and perceptual terms join here; the autoencoder does not know of them.
"""

from torch import Tensor

from moyai.firststage.config import ObjectiveConfig
from moyai.firststage.posterior import Posterior


def reconstruction_error(images: Tensor, reconstructions: Tensor, kind: str) -> Tensor:
    """|x - y| ("l1") or (x - y)^2 ("l2"), summed over a picture and divided by its pixels x channels: (B,)."""
    error = reconstructions - images
    return (error.abs() if kind == "l1" else error.square()).flatten(1).mean(1)


class Objective:
    """The loss of each picture and the parts it is made of."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def __call__(
        self, images: Tensor, reconstructions: Tensor, posterior: Posterior
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """images, reconstructions: (B, C, H, W). Returns the loss (B,) and its parts by name, each (B,)."""
        reconstruction = reconstruction_error(images, reconstructions, self.config.reconstruction)
        kl = posterior.regularizer() / images[0].numel()
        loss = reconstruction + self.config.kl.weight * kl
        return loss, {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
