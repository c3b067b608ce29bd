"""Conditions that are one number: a class, a position, any scalar; each a vector, and so a context of one entry.

A position or scalar u in 0..1 goes through sinusoids of u x scale (Vaswani et al. 2017) and two layers, so that near
numbers have near vectors; a class has a learned vector of its own. The null is one more learned vector.
"""

import numpy as np
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.conditioning.config import ClassCondition, PositionCondition, ScalarCondition
from moyai.nets.layers import timestep_embedding
from moyai.randomness import Draw


class ClassEmbedding(nn.Module):
    """A learned vector for each class, and one more for the null."""

    concat_channels = None

    def __init__(self, config: ClassCondition, classes: int) -> None:
        super().__init__()
        self.field, self.dropout, self.guidance, self.classes = config.field, config.dropout, config.guidance, classes
        self.vector_width = config.width if config.route in ("vector", "both") else None
        self.context_width = config.width if config.route in ("context", "both") else None
        self.embedding = nn.Embedding(classes + 1, config.width)

    def prepare(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.int64)

    def blank(self, count: int, device: torch.device) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=device)

    def corrupt(self, values: Tensor, draw: Draw) -> Tensor:
        return values

    def forward(self, values: Tensor, keep: Tensor) -> Cond:
        rows = self.embedding(torch.where(keep, values, torch.full_like(values, self.classes)))  # (B, width)
        return _routed(rows, self.vector_width, self.context_width)


class NumberEmbedding(nn.Module):
    """Sinusoids of a number through a small network; a learned vector for the null.

    low, high: the range of the field's values that is brought to 0..1; numbers outside it go on beyond.
    """

    concat_channels = None

    def __init__(self, config: PositionCondition | ScalarCondition, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.field, self.dropout, self.guidance = config.field, config.dropout, config.guidance
        self.width, self.scale, self.low, self.high = config.width, config.scale, low, high
        self.vector_width = config.width if config.route in ("vector", "both") else None
        self.context_width = config.width if config.route in ("context", "both") else None
        self.layers = nn.Sequential(
            nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.null = nn.Parameter(torch.zeros(config.width))

    def prepare(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.float32)

    def blank(self, count: int, device: torch.device) -> Tensor:
        return torch.zeros(count, device=device)

    def corrupt(self, values: Tensor, draw: Draw) -> Tensor:
        return values

    def forward(self, values: Tensor, keep: Tensor) -> Cond:
        share = values.float()
        if (self.low, self.high) != (0.0, 1.0):
            share = (share - self.low) / (self.high - self.low)
        waves = timestep_embedding(share * self.scale, self.width, max_period=100.0)  # wavelengths to 628
        rows = torch.where(keep[:, None], self.layers(waves), self.null)  # (B, width)
        return _routed(rows, self.vector_width, self.context_width)


def _routed(rows: Tensor, vector_width: int | None, context_width: int | None) -> Cond:
    return Cond(
        vector=rows if vector_width else None,
        context=rows[:, None, :] if context_width else None,  # (B, 1, width)
    )
