"""Conditions that are one number: a class, a position, any scalar; each a vector, and so a context of one entry.

A position or scalar u in 0..1 goes through sinusoids of u x scale (Vaswani et al. 2017) and two layers, so that near
numbers have near vectors; a class has a learned vector of its own. The null is one more learned vector.
"""

import numpy as np
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.conditioning.config import ClassCondition, PositionCondition, ScalarCondition
from moyai.errors import DataError
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
        """Class numbers (N,) int64. DataError for other values, such as those of a field of real numbers."""
        values = _one_each(values, self.field)
        strange = values[(values != np.floor(values)) | (values < 0) | (values >= self.classes)]
        if len(strange):
            raise DataError(
                f"{self.field} has the value {strange[0]}; possible: class numbers, 0 to {self.classes - 1}"
            )
        return values.astype(np.int64)

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
        """Numbers (N,) float32. DataError for what is no number, or none that float32 can hold."""
        values = _one_each(values, self.field)
        with np.errstate(over="ignore"):
            prepared = values.astype(np.float32)
        if not np.isfinite(prepared).all():
            strange = values[~np.isfinite(prepared)][0]
            raise DataError(f"{self.field} has the value {strange}; possible: numbers that float32 holds, up to 3.4e38")
        return prepared

    def blank(self, count: int, device: torch.device) -> Tensor:
        return torch.zeros(count, device=device)

    def corrupt(self, values: Tensor, draw: Draw) -> Tensor:
        return values

    def forward(self, values: Tensor, keep: Tensor) -> Cond:
        share = values.float()
        if (self.low, self.high) != (0.0, 1.0):  # in float64: a range may be wider than float32 holds, or far from 0
            share = ((values.double() - self.low) / (self.high - self.low)).float()
        waves = timestep_embedding(share * self.scale, self.width, max_period=100.0)  # wavelengths to 628
        rows = torch.where(keep[:, None], self.layers(waves), self.null)  # (B, width)
        return _routed(rows, self.vector_width, self.context_width)


def _one_each(values: np.ndarray, field: str) -> np.ndarray:
    """The values of a field that has one number a picture; DataError for text, maps and pictures."""
    values = np.asarray(values)
    if values.dtype.kind not in "biuf" or values.ndim != 1:
        what = "text" if values.dtype.kind in "OUS" else f"of shape {values.shape[1:]}"
        raise DataError(f"{field} is to be one number a picture, and is {what}; possible: another field")
    return values


def _routed(rows: Tensor, vector_width: int | None, context_width: int | None) -> Cond:
    return Cond(
        vector=rows if vector_width else None,
        context=rows[:, None, :] if context_width else None,  # (B, 1, width)
    )
