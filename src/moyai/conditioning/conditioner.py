"""The conditioner tau: what is known of a picture, as the condition a prior takes (Rombach et al. 2022, section 3.3).

Each condition has a value that stands for "not told" (its null), learned like the others because a share of the
training pictures is shown with it; classifier-free guidance (Ho and Salimans 2022) then compares told with not told.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.conditioning.config import ClassCondition, PositionCondition
from moyai.errors import RequestError, choices
from moyai.nets.layers import timestep_embedding
from moyai.randomness import Draw


class Condition(Protocol):
    """One condition, and the widths of the routes it uses (None where it does not)."""

    field: str
    dropout: float
    vector_width: int | None
    context_width: int | None

    def __call__(self, values: Tensor, keep: Tensor) -> Cond:
        """values: (B, ...) the field's values; keep: (B,) bool, the null stands where it is False."""


class ClassEmbedding(nn.Module):
    """A learned vector for each class, and one more for the null."""

    def __init__(self, config: ClassCondition, classes: int) -> None:
        super().__init__()
        self.field, self.dropout, self.classes = config.field, config.dropout, classes
        self.vector_width = config.width if config.route in ("vector", "both") else None
        self.context_width = config.width if config.route in ("context", "both") else None
        self.embedding = nn.Embedding(classes + 1, config.width)

    def forward(self, values: Tensor, keep: Tensor) -> Cond:
        rows = self.embedding(torch.where(keep, values, torch.full_like(values, self.classes)))  # (B, width)
        return Cond(
            vector=rows if self.vector_width else None,
            context=rows[:, None, :] if self.context_width else None,  # (B, 1, width)
        )


class PositionEmbedding(nn.Module):
    """Sinusoids of a number in [0, 1] times `scale`, through a small network; a learned vector for the null."""

    def __init__(self, config: PositionCondition) -> None:
        super().__init__()
        self.field, self.dropout, self.width, self.scale = config.field, config.dropout, config.width, config.scale
        self.vector_width = config.width if config.route in ("vector", "both") else None
        self.context_width = config.width if config.route in ("context", "both") else None
        self.layers = nn.Sequential(
            nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.null = nn.Parameter(torch.zeros(config.width))

    def forward(self, values: Tensor, keep: Tensor) -> Cond:
        waves = timestep_embedding(values.float() * self.scale, self.width, max_period=100.0)  # wavelengths to 628
        rows = torch.where(keep[:, None], self.layers(waves), self.null)  # (B, width)
        return Cond(
            vector=rows if self.vector_width else None,
            context=rows[:, None, :] if self.context_width else None,  # (B, 1, width)
        )


class Conditioner(nn.Module):
    """Any number of conditions by name. Vectors are put side by side, contexts one after the other."""

    def __init__(self, conditions: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.conditions = nn.ModuleDict(dict(conditions))
        self.register_buffer("_device", torch.empty(0), persistent=False)
        widths = {c.context_width for c in self._all().values() if c.context_width}
        if len(widths) > 1:
            raise ValueError(f"conditions attended to together must have one width, not {sorted(widths)}")
        self.context_width: int | None = next(iter(widths), None)
        self.vector_width: int | None = sum(c.vector_width or 0 for c in self._all().values()) or None

    def forward(self, fields: Mapping[str, Tensor], count: int, keep: Mapping[str, Tensor] | None = None) -> Cond:
        """fields: the values by field name, each (B, ...). A condition whose field is absent is null.

        keep: by condition name, (B,) bool; all are kept where it is None.
        """
        parts = []
        for name, condition in self._all().items():
            device = self._buffers["_device"].device  # type: ignore[union-attr]
            told = condition.field in fields
            values = fields[condition.field] if told else torch.zeros(count, dtype=torch.int64, device=device)
            kept = torch.full((count,), told, device=device)
            if keep is not None and told:
                kept = kept & keep[name]
            parts.append(condition(values, kept))
        return _merged(parts)

    def null(self, count: int) -> Cond:
        """Nothing told, for `count` pictures."""
        return self({}, count)

    def dropped(self, fields: Mapping[str, Tensor], draw: Draw) -> Cond:
        """The condition of training pictures, each left out at its own rate."""
        keep = {name: draw.uniform(f"drop {name}") >= c.dropout for name, c in self._all().items()}
        return self(fields, len(draw), keep)

    def fields(self) -> tuple[str, ...]:
        """The fields of the data that are told to the prior."""
        return tuple(condition.field for condition in self._all().values())

    def _all(self) -> dict[str, Condition]:
        return cast(dict[str, Condition], dict(self.conditions.items()))


def _merged(parts: list[Cond]) -> Cond:
    vectors = [p.vector for p in parts if p.vector is not None]
    contexts = [p.context for p in parts if p.context is not None]
    return Cond(
        vector=torch.cat(vectors, dim=1) if vectors else None,
        context=torch.cat(contexts, dim=1) if contexts else None,
    )


def class_numbers(wanted: Sequence[str | int], classes: tuple[str, ...]) -> list[int]:
    """Class names or numbers, as a user gives them, to class numbers.

    An integer is a number. A word is a name first, as it is written or else in any case, and then a number: classes
    may be called "3" and need not stand at place 3.
    """
    if not classes:
        raise RequestError(f"class {wanted[0]} was asked for, but this model knows no classes")
    low = [c.lower() for c in classes]
    return [_class_number(word, classes, low) for word in wanted]


def _class_number(word: str | int, classes: tuple[str, ...], low: list[str]) -> int:
    if not isinstance(word, str):
        number = operator.index(word)
    elif word in classes:
        number = classes.index(word)
    elif word.lower() in low:
        number = low.index(word.lower())
    else:
        number = int(word) if word.isdecimal() else -1
    if not 0 <= number < len(classes):
        raise RequestError(f"class {word!r} is unknown; {choices(str(word), classes)}")
    return number
