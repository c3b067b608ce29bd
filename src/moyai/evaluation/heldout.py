"""How likely a prior finds held-out pictures, whatever kind of prior it is, in the unit that it has.

    diffusion over pixels     bits a dimension, an upper bound (`priors.likelihood`)
    diffusion over latents    nats a latent value, an upper bound; of one first stage only
    codes                     bits a code, exact; of one first stage only. Beside it bits a pixel, the rate alone: what
                              the first stage loses is not in it

Each is given what the prior is told of a picture, so that a conditional prior may find it likelier.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moyai.batch import Cond
from moyai.data.images import ImageSet, rows_of
from moyai.errors import ConfigError
from moyai.firststage.codec import LatentCodec
from moyai.model import LatentModel, told_fields
from moyai.priors.codes import CodePrior
from moyai.priors.likelihood import likelihood
from moyai.randomness import Draw

PICTURES = 128
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Rate:
    """A negative log-likelihood, or a bound on it: the mean over pictures, its standard error, and the unit."""

    value: float
    error: float
    unit: str  # bits/dim, nats/value or bits/code
    pictures: int
    per_pixel: float | None = None  # of codes: the same in bits a pixel


@torch.no_grad()
def rate(model: LatentModel, images: ImageSet, progress: Progress | None = None, count: int = PICTURES) -> Rate:
    """Of at most `count` of the pictures, evenly chosen. progress(done, total) counts forwards.

    Raises ConfigError where it is not defined (a diffusion prior without a table), RequestError for pixels of other
    than 8 bits and for fewer than two pictures.
    """
    prior = model.prior
    rows = np.linspace(0, images.count - 1, min(count, images.count)).astype(np.int64)
    draw = Draw(0, 0, len(rows), stage="held out", device=model.device)
    if isinstance(prior, CodePrior):
        return _of_codes(model, prior, images, rows, draw, progress)
    parts = [
        model.codec.latents(_stored(model, images, rows[some]), draw.rows(some.start, some.stop))
        for some in _batches(model, len(rows))
    ]
    found = likelihood(
        prior,
        torch.cat(parts),
        _cond(model, images, rows, draw),
        draw,
        bits=model.facts.bits,
        batch=model.recipe.sampling.batch,
        progress=progress,
    )
    return Rate(found.value, found.error, found.unit, found.pictures)


def _of_codes(
    model: LatentModel, prior: CodePrior, held_out: ImageSet, rows: np.ndarray, draw: Draw, progress: Progress | None
) -> Rate:
    if not isinstance(model.codec, LatentCodec):
        raise ConfigError("there are no codes without a first stage")
    cond = _cond(model, held_out, rows, draw)
    parts: list[Tensor] = []
    batches = _batches(model, len(rows))
    for done, some in enumerate(batches, 1):
        codes = model.codec.codes(_stored(model, held_out, rows[some]))
        here = cond.rows(some.start, some.stop) if cond.routes() else cond
        parts.append(prior.loss(codes, here, draw.rows(some.start, some.stop)))
        if progress:
            progress(done, len(batches))
    bits = torch.cat(parts).double()
    error = float(bits.std()) / len(bits) ** 0.5 if len(bits) > 1 else float("nan")
    _, height, width = model.codec.image_shape
    per_pixel = float(bits.mean()) * prior.places() / (height * width)
    return Rate(float(bits.mean()), error, "bits/code", len(bits), per_pixel)


def _batches(model: LatentModel, count: int) -> list[slice]:
    size = model.recipe.sampling.batch
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _stored(model: LatentModel, images: ImageSet, rows: np.ndarray) -> dict[str, Tensor]:
    batch = images.batch(rows).to(model.device)
    if batch.images is None:
        raise ValueError("a data set without pictures")
    return model.codec.store(batch.images, batch.fields)


def _cond(model: LatentModel, images: ImageSet, rows: np.ndarray, draw: Draw) -> Cond:
    """What the prior is told of these pictures."""
    some = images.subset(rows)
    fields = rows_of(told_fields(model.conditioner, some), np.arange(len(rows)))
    here = {name: values.to(model.device) for name, values in fields.items()}
    return model.conditioner(model.conditioner.corrupted(here, draw), len(rows))
