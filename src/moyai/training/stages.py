"""The two stages of a latent diffusion model: what each is trained on, its loss, what is measured and shown."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moyai import pictures, tasks
from moyai.batch import Batch
from moyai.conditioning.conditioner import Conditioner
from moyai.data.images import ImageSet, to_uint
from moyai.data.latents import FLIPPED, LatentCache
from moyai.firststage.autoencoder import KLAutoencoder
from moyai.firststage.codec import LatentCodec
from moyai.firststage.objective import Objective
from moyai.model import LatentModel
from moyai.nets.precision import autocast, placed
from moyai.priors.diffusion import DiffusionPrior
from moyai.randomness import Draw, generator
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts
from moyai.training.schedule import Order
from moyai.training.state import TrainState
from moyai.training.steps import Losses

VALIDATION = 512  # held-out pictures looked at while training, at most
LEVELS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)  # quantiles of the training density at which the prior is validated
SHOWN = 8  # pictures in a row of a preview
PREVIEW_STEPS = 12


class FirstStageTraining:
    """The autoencoder on pictures."""

    name, title = "first_stage", "first stage"

    def __init__(
        self, recipe: Recipe, model: KLAutoencoder, train: ImageSet, held_out: ImageSet, device: torch.device
    ) -> None:
        config = recipe.first_stage
        self.seed, self.flip, self.train, self.held_out, self.device = (
            recipe.seed,
            recipe.data.flip,
            train,
            held_out,
            device,
        )
        self.autoencoder = placed(model, device)
        self.state = TrainState.new({"autoencoder": self.autoencoder}, config.train)
        if config.train.compile:  # the average, copied above, stays as it is: it is run too rarely to pay
            self.autoencoder.encoder.compile()
            self.autoencoder.decoder.compile()
        self.objective = Objective(config.objective)
        self.precision = config.train.precision
        self.order = Order(recipe.seed, self.name, train.count, config.train.batch)

    def batch(self, step: int) -> Batch:
        index = self.order(step)
        return self.train.batch(index, _flips(self.seed, self.name, step, len(index)) if self.flip else None)

    def losses(self, batch: Batch, draw: Draw) -> Losses:
        images = _pictures(batch)
        with autocast(self.precision, self.device):
            posterior = self.autoencoder.encode(images)
            reconstructions = self.autoencoder.decode(posterior.sample(draw), _size(images))
        return self.objective(images, reconstructions, posterior)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """L1, PSNR (dB, of the stored range) and KL a latent value, on held-out pictures, posterior mode."""
        model = self._average()
        l1, psnr, kl, count = 0.0, 0.0, 0.0, 0
        for images in self._held_out():
            with autocast(self.precision, self.device):
                posterior = model.encode(images)
                shown = model.decode(posterior.mode(), _size(images)).float().clamp(-1, 1)
            error = (shown - images).flatten(1)
            l1 += float(error.abs().mean(1).sum())
            # The range is 2 in these units, so that the figure equals the one on integers.
            psnr += float((10 * torch.log10(4 / error.square().mean(1).clamp_min(1e-10))).sum())
            kl += float(posterior.regularizer().sum()) / posterior.mean[0].numel()
            count += len(images)
        return {"l1": l1 / count, "psnr": psnr / count, "kl": kl / count}

    @torch.no_grad()
    def preview(self, path: Path) -> None:
        """Held-out pictures above their reconstructions."""
        index = np.linspace(0, self.held_out.count - 1, min(SHOWN, self.held_out.count)).astype(np.int64)
        images = self.held_out.images(index).to(self.device)
        model = self._average()
        with autocast(self.precision, self.device):
            shown = model.decode(model.encode(images).mode(), _size(images)).float().clamp(-1, 1)
        rows = np.concatenate([to_uint(t.cpu(), bits=self.train.bits) for t in (images, shown)])
        labels = ("original", "reconstruction")
        pictures.save_png(path, pictures.grid(rows, columns=len(index), row_labels=labels), None)

    def _average(self) -> KLAutoencoder:
        average = self.state.averages["autoencoder"]
        if not isinstance(average, KLAutoencoder):
            raise TypeError(type(average).__name__)
        return average

    def _held_out(self, size: int = 64) -> list[Tensor]:
        count = min(VALIDATION, self.held_out.count)
        index = np.linspace(0, self.held_out.count - 1, count).astype(np.int64)
        return [self.held_out.images(index[i : i + size]).to(self.device) for i in range(0, count, size)]


class PriorTraining:
    """The prior on cached latents, and the conditioner with it."""

    name, title = "prior", "prior"

    def __init__(
        self,
        recipe: Recipe,
        facts: DataFacts,
        codec: LatentCodec,
        conditioner: Conditioner,
        prior: DiffusionPrior,
        train: LatentCache,
        held_out: LatentCache,
        device: torch.device,
    ) -> None:
        config = recipe.prior.train
        self.recipe, self.facts, self.codec, self.device = recipe, facts, placed(codec, device), device
        self.train, self.held_out = train, held_out
        self.prior, self.conditioner = placed(prior, device), conditioner.to(device)
        self.state = TrainState.new({"prior": self.prior, "conditioner": self.conditioner}, config)
        if config.compile:
            self.prior.denoiser.net.compile()
        self.order = Order(recipe.seed, self.name, len(train), config.batch)

    def batch(self, step: int) -> Batch:
        index = self.order(step)
        flips = FLIPPED in self.train.variants
        return self.train.batch(index, _flips(self.recipe.seed, self.name, step, len(index)) if flips else None)

    def losses(self, batch: Batch, draw: Draw) -> Losses:
        z = self.codec.latents(batch.latents or {}, draw)
        cond = self.conditioner.dropped(batch.fields, draw)
        return self.prior.loss(z, cond, draw), {}

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
        """Samples of the averaged weights from fixed seeds, a column a class."""
        model = self.model()
        classes = range(min(10, len(model.classes)))
        n = 4 if classes else 16
        settings = {"n": n, "steps": PREVIEW_STEPS, "batch": n * max(1, len(classes))}
        request = tasks.request(model, classes, **settings)
        images = tasks.collect(model, request)
        columns = len(classes) or SHOWN
        if classes:
            images = images.reshape(len(classes), n, *images.shape[1:]).swapaxes(0, 1).reshape(-1, *images.shape[1:])
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


def _flips(seed: int, stage: str, step: int, count: int) -> np.ndarray:
    """Which pictures of a step are shown mirrored: (count,) bool."""
    return generator(seed, f"{stage}/flip", step).random(count) < 0.5


def _pictures(batch: Batch) -> Tensor:
    if batch.images is None:
        raise ValueError("the first stage is trained on pictures")
    return batch.images


def _size(images: Tensor) -> tuple[int, int]:
    return int(images.shape[-2]), int(images.shape[-1])


def parameter_count(*modules: nn.Module) -> int:
    """How many values are trained."""
    return sum(p.numel() for m in modules for p in m.parameters())
