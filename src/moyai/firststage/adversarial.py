"""The contest of autoencoder and discriminator (Esser et al. 2021, section 3.1; Rombach et al. 2022, section 3.1).

With logits D of real pictures x and reconstructions y, each loss a mean over a picture's patches:

    hinge    discriminator  (relu(1 - D(x)) + relu(1 + D(y))) / 2         autoencoder  -D(y)
    vanilla  discriminator  (softplus(-D(x)) + softplus(D(y))) / 2        autoencoder  softplus(-D(y))

hinge: Lim and Ye 2017. vanilla: the cross-entropy of Goodfellow et al. 2014, for the autoencoder in the form that does
not saturate (its section 3: maximise log D instead of minimising log(1 - D)). Esser et al. use -D(y) with both.

How much the contest weighs against the reconstruction is found at the decoder's last layer L (Esser et al., eq. 7):

    weight = |d reconstruction / dL| / (|d adversarial / dL| + 1e-4),   kept in [0, 1e4], a constant to the gradient

Two gradients must never leak. The autoencoder's passes through the discriminator and must leave nothing in it: the
discriminator is called under `frozen`. The discriminator's must not reach the autoencoder: it is given reconstructions
that are detached. Then both losses may share one backward, whatever optimiser steps first.

Regularisers of the discriminator, added to its loss: R1 (Mescheder et al. 2018, eq. 9) holds the gradient at real
pictures small; LeCam (Tseng et al. 2021) holds the logits near what those of the other side have been on average.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.firststage.config import AdversarialConfig

EPS = 1e-4  # below the adversarial gradient's norm
AT_MOST = 1e4  # the adaptive weight
DECAY = 0.99  # of LeCam's running means, as its authors' code has it


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """What the discriminator minimises: logits (B, 1, h, w) of pictures and of reconstructions to (B,)."""
    if kind == "hinge":
        return 0.5 * (_mean(F.relu(1 - real)) + _mean(F.relu(1 + fake)))
    if kind == "vanilla":
        return 0.5 * (_mean(F.softplus(-real)) + _mean(F.softplus(fake)))
    raise _unknown(kind)


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """What the autoencoder minimises: logits (B, 1, h, w) of reconstructions to (B,)."""
    if kind == "hinge":
        return -_mean(fake)
    if kind == "vanilla":
        return _mean(F.softplus(-fake))
    raise _unknown(kind)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: nn.Parameter) -> Tensor:
    """The weight at which both losses pull equally at `last_layer`: a scalar in [0, 1e4], float32, detached.

    reconstruction, adversarial: losses of the pictures of a micro-batch, (B,); their means are weighed. Both graphs
    are kept for the backward that follows, and no parameter's `.grad` is touched.
    """
    pulls = [
        torch.autograd.grad(loss.mean(), last_layer, retain_graph=True)[0].detach().float().norm()
        for loss in (reconstruction, adversarial)
    ]
    return (pulls[0] / (pulls[1] + EPS)).clamp(0, AT_MOST)


def factor(config: AdversarialConfig, step: int, steps: int) -> float:
    """How far the contest is in at `step` (from 0) of `steps`: 0 before its start, above 0 from then on, 1 at last.

    It rises linearly over `config.warmup` of the run: with a rise of n steps, the k-th of them (from 1) has k / n.
    """
    begin = round(config.start * steps) if config.start < 1 else round(config.start)
    rise = max(1, round(config.warmup * steps))
    return min(1.0, max(0, step - begin + 1) / rise)


def r1(logits: Tensor, images: Tensor) -> Tensor:
    """|d (sum of a picture's logits) / d picture|^2 / 2: (B, 1, h, w) and (B, C, H, W) to (B,), differentiable.

    `images` are the real pictures that `logits` were computed from, and require a gradient. Patches and pixels are
    summed: the value grows with the picture. Pictures count alone only where none normalises another (not "batch").
    """
    if not images.requires_grad:
        raise ValueError("R1 needs real pictures that require a gradient: images.detach().requires_grad_()")
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1)


class LeCam(nn.Module):
    """Holds logits near the running mean of the other side's (Tseng et al. 2021): for pictures x, reconstructions y

        mean over patches of (D(x) - fake)^2 + (D(y) - real)^2,    real, fake <- decay old + (1 - decay) mean logit

    as the paper's equation has it; its code leaves out logits that lie beyond the other side's mean already. The
    means begin at 0, the border between both sides.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = DECAY) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of pictures and of reconstructions to (B,)."""
        return _mean((real - self.fake).square()) + _mean((fake - self.real).square())

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Moves the means, once for each applied step: all logits (or all pictures' mean logits) of that step."""
        self.real.lerp_(real.float().mean(), 1 - self.decay)
        self.fake.lerp_(fake.float().mean(), 1 - self.decay)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within, no parameter of `module` requires a gradient: gradients pass through what is computed here to its
    inputs, and none stays in the module, even if the backward comes later. What required one before, does again."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def _unknown(kind: str) -> ValueError:
    return ValueError(f"adversarial loss {kind!r} is not known; possible: hinge, vanilla")
