"""A latent diffusion model, whole: what a run or a checkpoint loads into.

model = moyai.load("runs/fashion-mnist")
images = moyai.sample(model, classes=["bag"], n=4)      # (4, 28, 28, 1) uint8
again = model.decode(model.encode(images))              # through the latents and back
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from moyai.conditioning.conditioner import Conditioner
from moyai.conditioning.spatial import FROM_PICTURES
from moyai.data.images import ImageSet, to_uint
from moyai.errors import RequestError
from moyai.firststage.codec import Codec
from moyai.nets.precision import placed
from moyai.priors.codes import CodePrior
from moyai.priors.diffusion import DiffusionPrior
from moyai.randomness import Draw
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts

EXAMPLES = 8


def example_rows(count: int) -> np.ndarray:
    """Which of `count` held-out pictures a run keeps as examples of what can be told: evenly, (<= EXAMPLES,)."""
    return np.linspace(0, count - 1, min(count, EXAMPLES)).astype(np.int64)


def told_fields(conditioner: Conditioner, images: ImageSet) -> dict[str, np.ndarray]:
    """What a conditioner is told of a whole data set, prepared for batches: (N, ...) each; in training `dropped`
    makes of pictures what is told of them."""
    known = dict(images.fields) | {name: cast(np.ndarray, images.pixels) for name in FROM_PICTURES}
    return conditioner.prepared(known)


@dataclass
class LatentModel:
    """Codec, conditioner and prior, with the recipe and the facts of the data they were made for."""

    codec: Codec
    conditioner: Conditioner
    prior: DiffusionPrior | CodePrior
    recipe: Recipe
    facts: DataFacts
    path: Path | None = None
    digest: str = ""  # of the prior's weights; goes into every picture's recipe
    examples: Mapping[str, np.ndarray] = field(default_factory=dict)  # what some held-out pictures are, row by row

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that can be asked for; () where the prior is unconditional."""
        return self.facts.classes if "class" in self.fields else ()

    @property
    def fields(self) -> tuple[str, ...]:
        """What the prior can be told of a picture."""
        return self.conditioner.fields()

    @property
    def device(self) -> torch.device:
        return self.codec.mean.device

    @property
    def diffusion(self) -> DiffusionPrior:
        """The prior, where it is a diffusion model. RequestError where it is one of codes."""
        if not isinstance(self.prior, DiffusionPrior):
            raise RequestError("this model draws codes one after the other; it has no noise levels")
        return self.prior

    def to(self, device: torch.device | str) -> "LatentModel":
        """Move everything; returns itself."""
        modules: tuple[Any, ...] = (self.codec, self.conditioner, self.prior)
        for module in modules:
            placed(module, device)
        return self

    def told(self, images: ImageSet, index: np.ndarray) -> dict[str, np.ndarray]:
        """What the prior can be told of some pictures of a data set, (n, ...) each, as a request takes it."""
        found = {name: np.asarray(images.fields[name][index]) for name in self.fields if name in images.fields}
        made = {name: torch.from_numpy(images.pixels[index]) for name in self.fields if name in FROM_PICTURES}
        draw = Draw(0, 0, len(index), stage="examples")
        return found | {name: made_of.numpy() for name, made_of in self.conditioner.corrupted(made, draw).items()}

    def encode(self, images: np.ndarray | Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        """Pictures to normalised latents (B, c, h, w), the posterior's mode.

        images: (B, H, W, C) integers as `sample` returns them, or a float tensor (B, C, H, W) in [-1, 1]. fields: what
        is known of each, (B, ...), where the first stage is told of it; what is absent counts as not told.
        """
        channels, height, width = self.codec.image_shape
        if isinstance(images, np.ndarray):
            if images.ndim != 4 or not np.issubdtype(images.dtype, np.unsignedinteger):
                raise RequestError(f"pictures must be unsigned (B, H, W, C), not {images.dtype} {images.shape}")
            top = float(np.iinfo(images.dtype).max)
            tensor = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / top * 2 - 1
        else:
            tensor = images
        if tuple(tensor.shape[1:]) != (channels, height, width):
            raise RequestError(
                f"this model takes pictures of {channels} channels, {height}x{width}; given {tuple(tensor.shape[1:])}"
            )
        return self.codec.encode(tensor.to(self.device), self._here(fields))

    def decode(self, latents: Tensor, fields: Mapping[str, Tensor] | None = None) -> np.ndarray:
        """Normalised latents (B, c, h, w) to pictures (B, H, W, C), uint8 (uint16 for 16-bit data)."""
        images = self.codec.decode(latents.to(self.device), self._here(fields))
        return to_uint(images.cpu(), bits=self.facts.bits)

    def _here(self, fields: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        return {name: values.to(self.device) for name, values in (fields or {}).items()}
