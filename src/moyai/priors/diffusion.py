"""The diffusion prior: L_LDM of Rombach et al. 2022 (eq. 2) in the coordinates of `diffusion.denoiser`.

    loss = w(sigma) out(sigma)^2 |F - target|^2,   x = x0 + sigma noise,   sigma drawn from the training density

with the times of a batch stratified: each alone has the stated density, together they have little variance. Where the
variance of a step is learned too, the loss has its bound beside it (`diffusion.bound`, equation (6)).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.bound import Decoder, gaussian, hybrid_loss
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import Weight, diffusion_loss
from moyai.randomness import Draw

Density = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Bound:
    """What the variational bound needs to know: what L_0 is of, and its weight where the variance is learned."""

    decoder: Decoder = gaussian
    weight: float = 0.001


class DiffusionPrior(nn.Module):
    """A denoiser with the density its noise levels are drawn from in training and the weight of each."""

    def __init__(self, denoiser: Denoiser, density: Density, weight: Weight, bound: Bound = Bound()) -> None:
        super().__init__()
        self.denoiser, self.density, self.weight, self.bound = denoiser, density, weight, bound

    def loss(self, z: Tensor, cond: Cond, draw: Draw) -> Tensor:
        sigma = self.density(draw.stratified("time"))
        noise = draw.normal("noise", z.shape[1:])
        if not self.denoiser.learned_variance:
            return diffusion_loss(self.denoiser, z, cond, sigma, noise, self.weight)
        b = self.bound
        return hybrid_loss(self.denoiser, z, cond, sigma, noise, self.weight, decoder=b.decoder, bound_weight=b.weight)

    @torch.no_grad()
    def loss_at(self, z: Tensor, cond: Cond, level: float, draw: Draw) -> Tensor:
        """The loss at one quantile `level` of the training density, with the noise of `draw`: (B,).

        Without the bound of a learned variance, so that it compares with a prior that has none.
        """
        sigma = self.density(torch.full((len(z),), level, device=z.device))
        return diffusion_loss(self.denoiser, z, cond, sigma, draw.normal("noise", z.shape[1:]), self.weight)
