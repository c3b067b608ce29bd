"""The diffusion prior: L_LDM of Rombach et al. 2022 (eq. 2) in the coordinates of `diffusion.denoiser`.

    loss = w(sigma) out(sigma)^2 |F - target|^2,   x = x0 + sigma noise,   sigma drawn from the training density

with the times of a batch stratified: each alone has the stated density, together they have little variance.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import Weight, diffusion_loss
from moyai.randomness import Draw

Density = Callable[[Tensor], Tensor]


class DiffusionPrior(nn.Module):
    """A denoiser with the density its noise levels are drawn from in training and the weight of each."""

    def __init__(self, denoiser: Denoiser, density: Density, weight: Weight) -> None:
        super().__init__()
        self.denoiser, self.density, self.weight = denoiser, density, weight

    def loss(self, z: Tensor, cond: Cond, draw: Draw) -> Tensor:
        sigma = self.density(draw.stratified("time"))
        noise = draw.normal("noise", z.shape[1:])
        return diffusion_loss(self.denoiser, z, cond, sigma, noise, self.weight)

    @torch.no_grad()
    def loss_at(self, z: Tensor, cond: Cond, level: float, draw: Draw) -> Tensor:
        """The loss at one quantile `level` of the training density, with the noise of `draw`: (B,)."""
        sigma = self.density(torch.full((len(z),), level, device=z.device))
        return diffusion_loss(self.denoiser, z, cond, sigma, draw.normal("noise", z.shape[1:]), self.weight)
