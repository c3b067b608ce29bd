"""The latents stage: every picture the prior will see encoded once, and the statistics of the latents measured.

A prior whose steps do not come to all training pictures is given as many as they come to, chosen at random; where
pictures are mirrored, half as many, each both ways.

The statistics are the prior's coordinates. Once a prior was begun in them they stay as they are, also where the data
have changed since; until then they are measured anew. Both halves of the data are sealed last, each with the codec and
the data it was made of, and halves so sealed are not encoded again, unless the recipe flips now and did not, or did.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from moyai.checkpoints import models, native
from moyai.data import latents
from moyai.data.images import ImageSet
from moyai.firststage.codec import Codec, LatentCodec, LatentStatistics
from moyai.firststage.config import CodecConfig, LatentCodecConfig
from moyai.randomness import permutation
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts
from moyai.training.prior import VALIDATION
from moyai.training.record import Record

FEWEST = 10_000  # training pictures that are encoded in any case: the statistics are theirs


def wanted(steps: int, batch: int, count: int, *, flips: bool) -> int:
    """How many of `count` training pictures a prior of so many steps is given; with flips each is two."""
    seen = steps * batch
    return min(count, max(FEWEST, -(-seen // 2) if flips else seen))


def halves_of_the_prior(recipe: Recipe, train: ImageSet, held_out: ImageSet) -> dict[str, ImageSet]:
    """The pictures that are encoded, "train" and "held-out": no more than the prior is trained and validated on."""
    config = recipe.prior.train
    count = wanted(config.steps or 0, config.batch, train.count, flips=recipe.data.flip)
    if count < train.count:
        train = train.subset(np.sort(permutation(recipe.seed, "prior pictures", 0, train.count)[:count]))
    if held_out.count > VALIDATION:
        held_out = held_out.subset(np.linspace(0, held_out.count - 1, VALIDATION).astype(np.int64))
    return {"train": train, "held-out": held_out}


def both_ways(recipe: Recipe, half: str) -> bool:
    """Whether the mirror images of a half are encoded too: of what is trained on, where the recipe flips."""
    return recipe.data.flip and half == "train"


def encode_pictures(
    record: Record,
    recipe: Recipe,
    facts: DataFacts,
    halves: Mapping[str, ImageSet],
    device: torch.device,
    progress: Callable[[str, int, int], None],
) -> None:
    """Whatever of the folder `latents` is not there yet. halves: "train" and "held-out"; the former is measured."""
    folder = record.folder / "latents"
    native.sweep(folder)
    codec, known = None, False
    if (folder / "statistics").is_dir():
        codec = models.read_codec(record.folder, recipe, facts, device)
        done = [
            latents.sealed(folder / half, codec=codec.digest(), data=images.fingerprint, flips=both_ways(recipe, half))
            for half, images in halves.items()
        ]
        if all(done):
            return
        known = _prior_begun_on(record.folder / "prior", codec.digest())
    with record.timed("latents"):
        if codec is None or not known:
            codec = models.untuned_codec(record.folder, recipe, facts, device)
        for half, images in halves.items():
            told = functools.partial(progress, f"encoding {half}")
            flips = both_ways(recipe, half)
            latents.build(folder / half, images, codec, flips=flips, device=device, progress=told)
        if not known:
            _measure(codec, recipe.codec, halves["train"], folder)
        for half, images in halves.items():
            latents.seal(folder / half, codec=codec.digest(), data=images.fingerprint, count=images.count)


def _prior_begun_on(stage: Path, codec: str) -> bool:
    """Whether there is a prior in these coordinates."""
    if (stage / "model").is_dir():
        return bool(native.inspect(stage / "model")["info"].get("codec") == codec)
    newest = native.newest(stage / "checkpoints")
    return newest is not None and newest.manifest["info"].get("codec") == codec


def _measure(codec: Codec, config: CodecConfig, train: ImageSet, folder: Path) -> None:
    """The statistics of all training latents, into the codec and the run."""
    if isinstance(codec, LatentCodec) and isinstance(config, LatentCodecConfig):
        statistics = LatentStatistics()
        cache = latents.read(folder / "train", train, codec=None)
        for variant in cache.variants:
            for stored in cache.stored(variant, 4096):
                statistics.add(stored)
        codec.measured(statistics.result(config.scale))
    native.commit(folder, "statistics", {"statistics": {"mean": codec.mean, "std": codec.std}}, {})
