"""The training of the prior: cached latents in, the loss of a diffusion model out, samples while it goes."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from moyai import pictures, tasks
from moyai.batch import Batch
from moyai.conditioning.conditioner import Conditioner
from moyai.data.latents import FLIPPED, LatentCache
from moyai.firststage.codec import Codec
from moyai.model import LatentModel
from moyai.nets.precision import placed
from moyai.priors.diffusion import DiffusionPrior
from moyai.randomness import Draw
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts
from moyai.training.schedule import Order, flips
from moyai.training.state import TrainState
from moyai.training.steps import Losses

VALIDATION = 256  # held-out pictures looked at while training, at most
LEVELS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)  # quantiles of the training density at which the prior is validated
SHOWN = 8  # pictures in a row of a preview
PREVIEW_STEPS = 12


class PriorTraining:
    """The prior on cached latents, and the conditioner with it."""

    name, title = "prior", "prior"

    def __init__(
        self,
        recipe: Recipe,
        facts: DataFacts,
        codec: Codec,
        conditioner: Conditioner,
        prior: DiffusionPrior,
        train: LatentCache,
        held_out: LatentCache,
        device: torch.device,
    ) -> None:
        config = recipe.prior.train
        self.recipe, self.facts, self.codec, self.device = recipe, facts, codec, device
        placed(cast(nn.Module, codec), device)
        self.train, self.held_out = train, held_out
        self.prior, self.conditioner = placed(prior, device), conditioner.to(device)
        self.state = TrainState.new({"prior": self.prior, "conditioner": self.conditioner}, config)
        if config.compile:
            self.prior.denoiser.net.compile()
        self.order = Order(recipe.seed, self.name, len(train), config.batch)

    @staticmethod
    def look(held_out: int) -> float:
        """What a validation and a preview cost, in pictures trained on (a forward is a third of a step)."""
        return (min(held_out, VALIDATION) * len(LEVELS) + 2 * 4 * SHOWN * PREVIEW_STEPS) / 3

    def batch(self, step: int) -> Batch:
        index = self.order(step)
        flipped = flips(self.recipe.seed, self.name, step, len(index)) if FLIPPED in self.train.variants else None
        return self.train.batch(index, flipped)

    def losses(self, batch: Batch, draw: Draw) -> Losses:
        z = self.codec.latents(batch.latents or {}, draw)
        cond = self.conditioner.dropped(batch.fields, draw)
        return self.prior.loss(z, cond, draw), {}

    def applied(self, draw: Draw) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss at fixed noise levels with fixed noise, on held-out latents; `loss` is their mean."""
        prior, conditioner = self._averages()
        index = np.linspace(0, len(self.held_out) - 1, min(VALIDATION, len(self.held_out))).astype(np.int64)
        batch = self.held_out.batch(index).to(self.device)
        out: dict[str, float] = {}
        for k, level in enumerate(LEVELS):
            draw = Draw(0, k, len(index), stage="validation", device=self.device)
            z = self.codec.latents(batch.latents or {}, draw)
            cond = conditioner(batch.fields, len(index))
            out[f"loss at {level:g}"] = float(prior.loss_at(z, cond, level, draw).mean())
        return {"loss": sum(out.values()) / len(out), **out}

    def preview(self, path: Path) -> None:
        """Samples of the averaged weights from fixed seeds, a column a class (a position where there are none)."""
        model = self.model()
        classes = range(min(10, len(model.classes)))
        places = [0.5] if classes and "position" in model.fields else None  # one column a class is enough to look at
        n = 4 if model.fields else 16
        settings: dict[str, Any] = {"steps": PREVIEW_STEPS, "batch": 4 * SHOWN, "positions": places}
        request = tasks.request(model, classes, n=n, **settings)
        images = tasks.collect(model, request)
        columns = len(images) // n if model.fields else SHOWN
        if model.fields:
            images = images.reshape(columns, n, *images.shape[1:]).swapaxes(0, 1).reshape(-1, *images.shape[1:])
        pictures.save_png(path, pictures.grid(images, columns=columns), tasks.picture_recipe(model, request))

    def model(self) -> LatentModel:
        """The model as it stands, with the averaged weights."""
        prior, conditioner = self._averages()
        return LatentModel(self.codec, conditioner, prior, self.recipe, self.facts)

    def _averages(self) -> tuple[DiffusionPrior, Conditioner]:
        prior, conditioner = self.state.averages["prior"], self.state.averages["conditioner"]
        if not isinstance(prior, DiffusionPrior) or not isinstance(conditioner, Conditioner):
            raise TypeError(f"{type(prior).__name__}, {type(conditioner).__name__}")
        return prior, conditioner
