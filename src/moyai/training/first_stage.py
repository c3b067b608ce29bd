"""The training of the first stage: pictures in, the autoencoder's loss out, reconstructions while it goes.

With a discriminator two things are trained against each other in one backward pass. The generator's term reaches the
autoencoder through a discriminator that is frozen while it does; the discriminator sees reconstructions that are cut
off from the autoencoder. So neither's gradient is found in the other.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moyai import pictures
from moyai.batch import Batch, Cond
from moyai.data.images import ImageSet, to_uint
from moyai.firststage.autoencoder import LatentAutoencoder
from moyai.firststage.config import DecoderConfig, FirstStageConfig
from moyai.firststage.grid import FSQ
from moyai.firststage.hierarchy import code_maps, quantizers
from moyai.firststage.instruments import Measurement
from moyai.firststage.objective import Objective
from moyai.firststage.posterior import Posterior
from moyai.firststage.quantization import VectorQuantizer
from moyai.firststage.rivalry import Rival
from moyai.nets.precision import autocast, placed
from moyai.randomness import Draw
from moyai.recipe.model import Recipe
from moyai.training.schedule import Order, flips
from moyai.training.state import TrainState
from moyai.training.steps import Losses

VALIDATION = 512  # held-out pictures looked at while training, at most
SHOWN = 8  # pictures in a row of a preview
FIRST_LOOK = 1024  # training pictures a codebook is started from, or as many as have a latent for each vector
BOXED = ("oasis", "nifti")  # data with a dark background, which a score of the whole frame is made easy by


class FirstStageTraining:
    """The autoencoder on pictures; `rival` is its discriminator, `perceptual` the distance it is judged by.

    With `decoder` that section of the recipe is trained by, and the decoder alone: what makes latents rests.
    """

    name, title = "first_stage", "first stage"

    def __init__(
        self,
        recipe: Recipe,
        model: LatentAutoencoder,
        train: ImageSet,
        held_out: ImageSet,
        device: torch.device,
        *,
        perceptual: nn.Module | None = None,
        rival: Rival | None = None,
        decoder: DecoderConfig | None = None,
    ) -> None:
        config: FirstStageConfig | DecoderConfig = recipe.first_stage if decoder is None else decoder
        self.only_decoder = decoder is not None
        if self.only_decoder:
            self.name = self.title = "decoder"
            model.requires_grad_(False).decoder.requires_grad_(True)
        self.seed, self.flip, self.train, self.held_out, self.device = (
            recipe.seed,
            recipe.data.flip,
            train,
            held_out,
            device,
        )
        self.autoencoder = placed(model, device)
        self.rival = None if rival is None else placed(rival, device)
        rate = 0.0 if rival is None else rival.config.learning_rate
        rivals: dict[str, nn.Module] = {} if self.rival is None else {"discriminator": self.rival}
        self.state = TrainState.new({"autoencoder": self.autoencoder}, config.train, rivals, rate)
        if config.train.compile:  # the average, copied above, stays as it is: it is run too rarely to pay
            self.autoencoder.compile_networks()
        frozen = None if perceptual is None else placed(perceptual, device)
        self.objective = Objective(config.objective, config.train.steps or 1, frozen)
        self.precision = config.train.precision
        self.boxed = recipe.data.kind in BOXED
        self.order = Order(recipe.seed, self.name, train.count, config.train.batch)
        # Of each map of codes: latents and codes of this step's micro-batches.
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @staticmethod
    def look(held_out: int) -> float:
        """What a validation and a preview cost, in pictures trained on (a forward is a third of a step)."""
        return (min(held_out, VALIDATION) + SHOWN) / 3

    def batch(self, step: int) -> Batch:
        index = self.order(step)
        return self.train.batch(index, flips(self.seed, self.name, step, len(index)) if self.flip else None)

    def losses(self, batch: Batch, draw: Draw) -> Losses:
        images = _pictures(batch)
        self._start_codes(draw)
        with autocast(self.precision, self.device):
            cond = self._told(batch, draw)
            posterior = self.autoencoder.encode(images, cond)
            reconstructions = self.autoencoder.decode(posterior.sample(draw), _size(images), cond)
            terms = self.objective(images, reconstructions, posterior, draw.step)
            self._remember(posterior, draw)
            loss, parts = terms.fidelity + terms.regularizer, terms.parts
            share = 0.0 if self.rival is None else self.rival.share(draw.step, self.objective.steps)
            if self.rival is not None and share > 0:
                last = self.autoencoder.last_layer
                more, said = self.rival.losses(images, reconstructions, batch.fields, terms.fidelity, last, share)
                loss, parts = loss + more, {**parts, **said}
        return loss, parts

    def applied(self, draw: Draw) -> dict[str, float]:
        """Codebooks follow what chose them; the discriminator's running means follow its logits."""
        said: dict[str, float] = {}
        if self.rival is not None:
            self.rival.applied()
        for name, codebook in quantizers(self.autoencoder.bottleneck).items():
            if isinstance(codebook, VectorQuantizer) and name in self._seen and not self.only_decoder:
                z, codes = (torch.cat(rows) for rows in zip(*self._seen[name], strict=True))
                said[f"restarted {name}".rstrip()] = float(codebook.update(z, codes, draw))
                # The average goes along: between a vector's old and new place there is none.
                average = quantizers(self._average().bottleneck)[name]
                if isinstance(average, VectorQuantizer) and len(codebook.moved):
                    with torch.no_grad():
                        average.codebook[codebook.moved] = codebook.codebook[codebook.moved]
        self._seen = {}
        return said

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The instruments on held-out pictures, posterior mode (`firststage.instruments`)."""
        model, rival = self._average(), self._begun_rival()
        codes = {name: one.size for name, one in quantizers(model.bottleneck).items()}
        measured = Measurement(perceptual=self.objective.perceptual, boxed=self.boxed, codes=codes)
        for batch in self._held_out():
            images = _pictures(batch)
            with autocast(self.precision, self.device):
                cond = model.told(batch.fields, len(images))
                posterior = model.encode(images, cond)
                shown = model.decode(posterior.mode(), _size(images), cond).float().clamp(-1, 1)
                logits = None if rival is None else rival.judged(images, shown, batch.fields)
            of = None if self.held_out.groups is None else self.held_out.groups[batch.index.cpu().numpy()]
            measured.add(images, shown, posterior, logits, groups=of)
        return measured.result()

    @torch.no_grad()
    def preview(self, path: Path) -> None:
        """Held-out pictures above their reconstructions."""
        index = np.linspace(0, self.held_out.count - 1, min(SHOWN, self.held_out.count)).astype(np.int64)
        batch = self.held_out.batch(index).to(self.device)
        images = _pictures(batch)
        model = self._average()
        with autocast(self.precision, self.device):
            cond = model.told(batch.fields, len(images))
            shown = model.decode(model.encode(images, cond).mode(), _size(images), cond).float().clamp(-1, 1)
        rows = np.concatenate([to_uint(t.cpu(), bits=self.train.bits) for t in (images, shown)])
        labels = ("original", "reconstruction")
        pictures.save_png(path, pictures.grid(rows, columns=len(index), row_labels=labels), None)

    def _told(self, batch: Batch, draw: Draw) -> Cond | None:
        """The condition of training pictures, each part left out at its own rate."""
        conditioner: Any = self.autoencoder.conditioner
        return None if conditioner is None else conditioner.dropped(batch.fields, draw)

    def _remember(self, posterior: Posterior, draw: Draw) -> None:
        if draw.start == 0:  # the first micro-batch; an earlier step may have been skipped
            self._seen = {}
            if self.rival is not None:
                self.rival.begin()
        for name, one in code_maps(posterior).items():
            self._seen.setdefault(name, []).append((one.z.detach(), one.codes))

    @torch.no_grad()
    def _start_codes(self, draw: Draw) -> None:
        """Put new codebooks and grids where the latents of training pictures are, before the first step; coarse ones
        first, which decide the latents of finer ones."""
        for name, codebook in quantizers(self.autoencoder.bottleneck).items():
            if bool(codebook.initialised):
                continue
            if isinstance(codebook, FSQ):
                codebook.initialise(self._first_latents(name, 1))
            else:
                key = "first_stage.top_codebook.size" if name == "top" else "first_stage.codebook.size"
                codebook.initialise(self._first_latents(name, codebook.size), draw, key)

    def _first_latents(self, name: str, size: int) -> Tensor:
        """Latents of a map of codes, (N, c, h, w), of pictures from all over the training set: `size` of them or more
        where there are as many."""
        (_, height, width), factor = self.train.shape, self.autoencoder.factor
        places = -(-height // factor) * -(-width // factor)  # a finer map has more
        wanted = min(self.train.count, max(FIRST_LOOK, -(-size // places)))
        index = np.linspace(0, self.train.count - 1, wanted).astype(np.int64)
        found = []
        for start in range(0, len(index), 64):
            batch = self.train.batch(index[start : start + 64]).to(self.device)
            images = _pictures(batch)
            with autocast(self.precision, self.device):
                posterior = self.autoencoder.encode(images, self.autoencoder.told(batch.fields, len(images)))
            found.append(code_maps(posterior)[name].z)
        return torch.cat(found)

    def _begun_rival(self) -> Rival | None:
        """The discriminator, once the last step was one of its own."""
        last = max(0, self.state.step - 1)
        return self.rival if self.rival is not None and self.rival.share(last, self.objective.steps) > 0 else None

    def _average(self) -> LatentAutoencoder:
        average = self.state.averages["autoencoder"]
        if not isinstance(average, LatentAutoencoder):
            raise TypeError(type(average).__name__)
        return average

    def _held_out(self, size: int = 64) -> Iterator[Batch]:
        """Batch after batch: all of them together may be more than the device holds."""
        count = min(VALIDATION, self.held_out.count)
        index = np.linspace(0, self.held_out.count - 1, count).astype(np.int64)
        for start in range(0, count, size):
            yield self.held_out.batch(index[start : start + size]).to(self.device)


def _pictures(batch: Batch) -> Tensor:
    if batch.images is None:
        raise ValueError("the first stage is trained on pictures")
    return batch.images


def _size(images: Tensor) -> tuple[int, int]:
    return int(images.shape[-2]), int(images.shape[-1])
