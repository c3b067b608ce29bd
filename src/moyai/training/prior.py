"""The training of the prior: cached latents in, the loss of a diffusion model out, samples while it goes."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from moyai import pictures, tasks
from moyai.batch import Batch
from moyai.conditioning.conditioner import Conditioner
from moyai.data.latents import FLIPPED, LatentCache
from moyai.firststage.codec import LatentCodec
from moyai.model import LatentModel
from moyai.nets.precision import placed
from moyai.priors.codes import CodeLevel, CodePrior
from moyai.priors.diffusion import DiffusionPrior
from moyai.randomness import Draw
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
        model: LatentModel,
        train: LatentCache,
        held_out: LatentCache,
        device: torch.device,
    ) -> None:
        """model: what is trained, with its codec; the caches' fields are prepared by its conditioner."""
        recipe, config = model.recipe, model.recipe.prior.train
        self.untrained, self.recipe, self.codec, self.device = model, recipe, model.codec, device
        placed(cast(nn.Module, model.codec), device)
        self.train, self.held_out = train, held_out
        self.prior, self.conditioner = placed(model.prior, device), model.conditioner.to(device)
        self.state = TrainState.new({"prior": self.prior, "conditioner": self.conditioner}, config)
        if config.compile:
            self.compile()
        self.order = Order(recipe.seed, self.name, len(train), config.batch)

    def compile(self) -> None:
        self.untrained.diffusion.denoiser.net.compile()

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
        return self.untrained.diffusion.loss(z, cond, draw), {}

    def applied(self, draw: Draw) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss at fixed noise levels with fixed noise, on held-out latents; `loss` is their mean."""
        model = self.model()
        prior, conditioner = model.diffusion, model.conditioner
        index = np.linspace(0, len(self.held_out) - 1, min(VALIDATION, len(self.held_out))).astype(np.int64)
        batch = self.held_out.batch(index).to(self.device)
        out: dict[str, float] = {}
        for k, level in enumerate(LEVELS):
            draw = Draw(0, k, len(index), stage="validation", device=self.device)
            z = self.codec.latents(batch.latents or {}, draw)
            cond = conditioner(conditioner.corrupted(batch.fields, draw), len(index))
            out[f"loss at {level:g}"] = float(prior.loss_at(z, cond, level, draw).mean())
        return {"loss": sum(out.values()) / len(out), **out}

    def preview(self, path: Path) -> None:
        """Samples of the averaged weights from fixed seeds, a column for each class, position or example."""
        model = self.model()
        n = 4 if model.fields else 16
        request = tasks.overview(model, n=n, steps=PREVIEW_STEPS, batch=4 * SHOWN)
        images = tasks.collect(model, request)
        columns = len(images) // n if model.fields else SHOWN
        if model.fields:
            images = images.reshape(columns, n, *images.shape[1:]).swapaxes(0, 1).reshape(-1, *images.shape[1:])
        pictures.save_png(path, pictures.grid(images, columns=columns), tasks.picture_recipe(model, request))

    def model(self) -> LatentModel:
        """The model as it stands, with the averaged weights."""
        prior, conditioner = self._averages()
        return replace(self.untrained, conditioner=conditioner, prior=prior)

    def _averages(self) -> tuple[DiffusionPrior | CodePrior, Conditioner]:
        prior, conditioner = self.state.averages["prior"], self.state.averages["conditioner"]
        if not isinstance(prior, DiffusionPrior | CodePrior) or not isinstance(conditioner, Conditioner):
            raise TypeError(f"{type(prior).__name__}, {type(conditioner).__name__}")
        return prior, conditioner


class CodeTraining(PriorTraining):
    """The prior over codes, and the conditioner with it; its loss is bits per code."""

    def __init__(self, model: LatentModel, train: LatentCache, held_out: LatentCache, device: torch.device) -> None:
        super().__init__(model, coded(train, model), coded(held_out, model), device)
        if not isinstance(model.prior, CodePrior):
            raise TypeError(type(model.prior).__name__)
        self.over_codes = model.prior

    def compile(self) -> None:
        for module in self.prior.modules():
            if isinstance(module, CodeLevel):
                module.net.compile()

    @staticmethod
    def look(held_out: int) -> float:
        """As above; what is drawn for a preview costs about as much as a forward of every picture, twice if guided."""
        return (min(held_out, VALIDATION) + 2 * 4 * SHOWN) / 3

    def losses(self, batch: Batch, draw: Draw) -> Losses:
        cond = self.conditioner.dropped(batch.fields, draw)
        return self.over_codes.loss(_maps(batch), cond, draw), {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Bits per code of held-out pictures, with what is known of them told, and with nothing told."""
        prior, conditioner = self._averages()
        index = np.linspace(0, len(self.held_out) - 1, min(VALIDATION, len(self.held_out))).astype(np.int64)
        batch = self.held_out.batch(index).to(self.device)
        draw = Draw(0, 0, len(index), stage="validation", device=self.device)
        told = conditioner(conditioner.corrupted(batch.fields, draw), len(index))
        if not isinstance(prior, CodePrior):
            raise TypeError(type(prior).__name__)
        out = {"loss": float(prior.loss(_maps(batch), told, draw).mean())}
        if conditioner.fields():
            out["loss, nothing told"] = float(prior.loss(_maps(batch), conditioner.null(len(index)), draw).mean())
        return out


def training_of(model: LatentModel, train: LatentCache, held_out: LatentCache, device: torch.device) -> PriorTraining:
    """The training of a model's prior, whichever it is."""
    kind = CodeTraining if isinstance(model.prior, CodePrior) else PriorTraining
    return kind(model, train, held_out, device)


def coded(cache: LatentCache, model: LatentModel) -> LatentCache:
    """The cache with the codes of its latents in their place."""
    codec = model.codec
    if not isinstance(codec, LatentCodec):
        raise TypeError(type(codec).__name__)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for variant in cache.variants:
        portions = [codec.codes({k: t.to(model.device) for k, t in s.items()}) for s in cache.stored(variant, 1024)]
        maps = (torch.cat(level).to(torch.int32).cpu().numpy() for level in zip(*portions, strict=True))
        arrays[variant] = {f"codes {level}": numbers for level, numbers in enumerate(maps)}
    return replace(cache, arrays=arrays)


def _maps(batch: Batch) -> list[torch.Tensor]:
    """The maps of codes, coarse to fine."""
    return [numbers.long() for numbers in (batch.latents or {}).values()]
