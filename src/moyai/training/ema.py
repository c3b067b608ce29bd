"""The moving average of the weights: a second copy, never swapped into the live model.

Power-function average (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
section 3.1): after update t the average moves towards the live weights by 1 - beta(t), beta(t) = (1 - 1/t)^(gamma + 1).
Its width is a fixed share of the run so far, so one setting suits short runs and long ones; gamma follows from the
relative standard deviation s by (eq. 126)

    s^-2 = (gamma + 2)^2 (gamma + 3) / (gamma + 1)
"""

import copy

import numpy as np
import torch
from torch import nn


def gamma_of(std: float) -> float:
    """The exponent whose profile has the relative standard deviation `std`, 0 < std < 0.2887."""
    s = std**-2
    return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())


def beta_at(step: int, gamma: float) -> float:
    """The share of the old average kept at update `step`, counted from 1 (where nothing old is kept)."""
    return float((1.0 - 1.0 / step) ** (gamma + 1.0))


def copy_of(module: nn.Module) -> nn.Module:
    """A frozen second copy in evaluation mode."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def update(average: nn.Module, live: nn.Module, beta: float) -> None:
    """average <- beta average + (1 - beta) live; what no gradient changes is copied (buffers, a codebook that follows
    running means)."""
    pairs = list(zip(average.parameters(), live.parameters(), strict=True))
    theirs = [a.detach() for a, p in pairs if p.requires_grad]
    mine = [p.detach() for _, p in pairs if p.requires_grad]
    if theirs:  # the conditioner of an unconditional prior has none
        torch._foreach_lerp_(theirs, mine, 1.0 - beta)
    for average_of, fixed in pairs:
        if not fixed.requires_grad:
            average_of.copy_(fixed)
    for target, source in zip(average.buffers(), live.buffers(), strict=True):
        target.copy_(source)
