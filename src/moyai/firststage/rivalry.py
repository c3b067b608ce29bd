"""The autoencoder's rival: a discriminator, what it is told, and the terms of both sides (Esser et al. 2021).

For pictures x with reconstructions y, logits D, and the warm-in share s of the adversarial weight w:

    autoencoder     s w lambda g(D(y))          lambda balances its gradient at the decoder's last layer with the rest's
    discriminator   h(D(x), D(y)) + its regulariser

D is frozen in the first line and y is cut off from the autoencoder in the second.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moyai.firststage import adversarial
from moyai.firststage.config import AdversarialConfig
from moyai.nets.discriminator import PatchDiscriminator


class Rival(nn.Module):
    """The discriminator with its own conditioner, and the running means that LeCam needs.

    similarity: the weight of the distance in the discriminator's features (Larsen et al. 2016), 0 for none.
    """

    def __init__(
        self,
        config: AdversarialConfig,
        discriminator: PatchDiscriminator,
        conditioner: nn.Module | None = None,
        *,
        similarity: float = 0.0,
    ) -> None:
        super().__init__()
        self.config, self.similarity = config, similarity
        self.discriminator = discriminator
        self.conditioner: Any = conditioner
        self.lecam = adversarial.LeCam() if config.regularizer == "lecam" else None
        self._logits: list[tuple[Tensor, Tensor]] = []  # of this step's micro-batches

    def share(self, step: int, steps: int) -> float:
        """How much of the adversarial weight counts at a step: 0 before the start, then rising to 1."""
        return adversarial.factor(self.config, step, steps)

    def losses(
        self,
        images: Tensor,
        reconstructions: Tensor,
        fields: Mapping[str, Tensor],
        fidelity: Tensor,
        last_layer: nn.Parameter,
        share: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What both sides add to the loss of each picture, and its parts, each (B,).

        fidelity: (B,) what compares the reconstructions with the pictures, whose gradient is the measure.
        """
        config = self.config
        more = torch.zeros_like(fidelity)
        with adversarial.frozen(self):
            vector = self._vector(fields, len(images))
            logits = self.discriminator(reconstructions, vector)
            if self.similarity > 0:
                distance = self._distance(images, reconstructions, vector)
                more = more + self.similarity * distance
        generator = adversarial.generator_loss(logits, config.loss)
        weight = torch.ones((), device=fidelity.device)
        if config.adaptive:
            weight = adversarial.adaptive_weight(fidelity + more, generator, last_layer)
        total = more + share * config.weight * weight * generator
        judged, real, fake = self._discriminator(images, reconstructions.detach(), fields)
        said = {
            "adversarial": generator.detach(),
            "adaptive weight": weight.detach().expand_as(generator),
            "discriminator": judged.detach(),
            "logits real": real.detach().flatten(1).mean(1),
            "logits fake": fake.detach().flatten(1).mean(1),
        }
        return total + judged, said

    @torch.no_grad()
    def judged(self, images: Tensor, reconstructions: Tensor, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Each picture's mean logit and its reconstruction's, (B,) float32 each; nothing is learned from them."""
        vector = self._vector(fields, len(images))
        real, fake = (self.discriminator(x, vector).float().flatten(1).mean(1) for x in (images, reconstructions))
        return real, fake

    def begin(self) -> None:
        """A step begins; what an earlier one left that was not applied is forgotten."""
        self._logits = []

    def applied(self) -> None:
        """Once a step is applied: the running means follow its logits."""
        if self.lecam is not None and self._logits:
            self.lecam.update(*(torch.cat(side) for side in zip(*self._logits, strict=True)))
        self._logits = []

    def _discriminator(
        self, images: Tensor, fakes: Tensor, fields: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        vector = self._vector(fields, len(images))
        images = images.detach().requires_grad_(config.regularizer == "r1")
        real, fake = self.discriminator(images, vector), self.discriminator(fakes, vector)
        loss = adversarial.discriminator_loss(real, fake, config.loss)
        if config.regularizer == "r1":
            loss = loss + config.regularizer_weight * adversarial.r1(real, images)
        if self.lecam is not None:
            loss = loss + config.regularizer_weight * self.lecam.penalty(real, fake)
            self._logits.append((real.detach(), fake.detach()))
        return loss, real, fake

    def _distance(self, images: Tensor, reconstructions: Tensor, vector: Tensor | None) -> Tensor:
        with torch.no_grad():
            real = self.discriminator.features(images, vector)
        fake = self.discriminator.features(reconstructions, vector)
        # In bfloat16 the difference of features that are nearly equal, and its mean, would be rounded to 3 digits.
        each = [(a.float() - b.float()).square().flatten(1).mean(1) for a, b in zip(real, fake, strict=True)]
        return torch.stack(each).mean(0)  # (B,)

    def _vector(self, fields: Mapping[str, Tensor], count: int) -> Tensor | None:
        return None if self.conditioner is None else self.conditioner(fields, count).vector
