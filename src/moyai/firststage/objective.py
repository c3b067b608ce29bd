"""What the first stage is trained to do.

For a picture x of n = C H W values with reconstruction y and posterior q:

    loss = |x - y| / n + w_d c(x, y) + w_p d(x, y) + regulariser + w_g lambda g(y)

* the regulariser of a Gaussian is weight * KL(q || N(0, 1)) / n: both sums are divided by n, so that a weight of 1 is
  the evidence lower bound of a unit-scale likelihood, and the 1e-6 of Rombach et al. is the same number here. Its
  weight may rise over the run (`annealing`). That of a codebook is the commitment term of `quantization`;
* c compares fine detail, which errors of pixels blur (`detail`);
* d is a perceptual distance, one number a picture (`perceptual`);
* g is the adversarial term, balanced by the adaptive weight lambda (`adversarial`); the training step adds it, because
  it needs the gradients of the rest.
"""

from typing import NamedTuple

from torch import Tensor, nn

from moyai.firststage.annealing import kl_factor
from moyai.firststage.config import ObjectiveConfig
from moyai.firststage.detail import detail_distance
from moyai.firststage.posterior import DiagonalGaussian, Posterior


class Terms(NamedTuple):
    """The loss of each picture: what compares pictures, what holds the latents, and the parts of both, each (B,)."""

    fidelity: Tensor
    regularizer: Tensor
    parts: dict[str, Tensor]


def reconstruction_error(images: Tensor, reconstructions: Tensor, kind: str) -> Tensor:
    """|x - y| ("l1") or (x - y)^2 ("l2"), summed over a picture and divided by its pixels x channels: (B,)."""
    error = reconstructions - images
    return (error.abs() if kind == "l1" else error.square()).flatten(1).mean(1)


class Objective:
    """The loss of each picture and the parts it is made of; `steps` is the length of the run, for what changes in it.

    perceptual: a frozen module that takes pictures and reconstructions and gives their distances (B,).
    """

    def __init__(self, config: ObjectiveConfig, steps: int = 1, perceptual: nn.Module | None = None) -> None:
        self.config, self.steps, self.perceptual = config, steps, perceptual

    def __call__(self, images: Tensor, reconstructions: Tensor, posterior: Posterior, step: int = 0) -> Terms:
        """images, reconstructions: (B, C, H, W); step: of the run, from 0."""
        fidelity = reconstruction_error(images, reconstructions, self.config.reconstruction)
        parts = {"reconstruction": fidelity.detach()}
        if self.config.detail:
            detail = detail_distance(images, reconstructions)
            fidelity = fidelity + self.config.detail * detail
            parts["detail"] = detail.detach()
        if self.perceptual is not None and self.config.perceptual is not None:
            distance = self.perceptual(images, reconstructions)
            fidelity = fidelity + self.config.perceptual.weight * distance
            parts["perceptual"] = distance.detach()
        regularizer = posterior.regularizer()
        if isinstance(posterior, DiagonalGaussian):
            regularizer = regularizer / images[0].numel()
            parts["kl"] = regularizer.detach()
            weight = self.config.kl.weight * kl_factor(self.config.kl.anneal, step, self.steps)
            return Terms(fidelity, weight * regularizer, parts)
        parts["commitment"] = regularizer.detach()
        return Terms(fidelity, regularizer, parts)
