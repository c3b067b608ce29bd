"""The conditioner tau: what is known of a picture, as the condition a prior takes (Rombach et al. 2022, section 3.3).

Each condition has a value that stands for "not told" (its null), learned like the others because a share of the
training pictures is shown with it; classifier-free guidance (Ho and Salimans 2022) then compares told with not told.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.errors import RequestError, choices
from moyai.randomness import Draw

OTHERS = "*"  # among guidance weights: the conditions that are not named and have none of their own
STRONGEST = 1000.0  # the largest guidance weight


class Condition(Protocol):
    """One condition, and the widths of the routes it uses (None where it does not). Implementations are modules."""

    field: str  # of the data and of a request; where `corrupt` makes it of the picture, a name of its own
    dropout: float
    guidance: float | None
    vector_width: int | None
    context_width: int | None
    concat_channels: int | None

    def prepare(self, values: np.ndarray) -> np.ndarray:
        """Values as the data or a user give them, (N, ...), as numbers that batches hold, (N, ...)."""

    def blank(self, count: int, device: torch.device) -> Tensor:
        """Values of the right shape where nothing is told."""

    def corrupt(self, values: Tensor, draw: Draw) -> Tensor:
        """In training, what the condition is made of ((B, ...), as prepared) to what it is."""

    def __call__(self, values: Tensor, keep: Tensor) -> Cond:
        """values: (B, ...) the field's values; keep: (B,) bool, the null stands where it is False."""


@runtime_checkable
class Encoding(Protocol):
    """A condition whose values take a large network to prepare, which may be done beforehand."""

    field: str

    def encode(self, values: np.ndarray, progress: Callable[[int, int], None] | None = None) -> None:
        """Values as `prepare` takes them, (N,); it then finds them encoded. progress(done, total) counts new ones."""


@runtime_checkable
class Truncating(Protocol):
    """A condition that takes so much of a value and no more."""

    field: str

    def truncated(self, values: np.ndarray) -> int:
        """How many of the values (N,) lose their end."""


class _Named(nn.ModuleDict):
    """Modules by any name, such as "type" or "half", which are attributes of a module too."""

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module


class Conditioner(nn.Module):
    """Any number of conditions by name. Vectors and planes are put side by side, contexts one after the other.

    together: how often all are left out at once, besides each by itself.
    """

    def __init__(self, conditions: Mapping[str, nn.Module], together: float = 0.0) -> None:
        super().__init__()
        self.conditions = _Named(dict(conditions))
        self.together = together
        self.register_buffer("_device", torch.empty(0), persistent=False)
        widths = {c.context_width for c in self._all().values() if c.context_width}
        if len(widths) > 1:
            raise ValueError(f"conditions attended to together must have one width, not {sorted(widths)}")
        self.context_width: int | None = next(iter(widths), None)
        self.vector_width: int | None = sum(c.vector_width or 0 for c in self._all().values()) or None
        self.concat_channels: int | None = sum(c.concat_channels or 0 for c in self._all().values()) or None

    def forward(self, fields: Mapping[str, Tensor], count: int, keep: Mapping[str, Tensor] | None = None) -> Cond:
        """fields: the prepared values by field name, each (B, ...). A condition whose field is absent is null.

        keep: by condition name, (B,) bool; all are kept where it is None.
        """
        device = self._buffers["_device"].device  # type: ignore[union-attr]
        parts = []
        for name, condition in self._all().items():
            told = condition.field in fields
            values = fields[condition.field] if told else condition.blank(count, device)
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
        if self.together:
            some = draw.uniform("drop all") >= self.together
            keep = {name: kept & some for name, kept in keep.items()}
        return self(self.corrupted(fields, draw), len(draw), keep)

    def corrupted(self, fields: Mapping[str, Tensor], draw: Draw) -> dict[str, Tensor]:
        """Fields of training pictures, with those that are pictures themselves made what the prior is told."""
        return dict(fields) | {
            c.field: c.corrupt(fields[c.field], draw) for c in self._all().values() if c.field in fields
        }

    def prepared(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of values as the data or a request have them, those that are told here, as batches hold them."""
        return {c.field: c.prepare(values[c.field]) for c in self._all().values() if c.field in values}

    def encode(self, values: Mapping[str, Any], progress: Callable[[int, int], None] | None = None) -> None:
        """Have published encoders read what of these values is new to them, so that `prepared` waits for nothing.

        values: as `prepared` takes them. progress(done, total) counts different values; it is not called where all are
        known, here or in the cache.
        """
        for condition in self.conditions.values():
            if isinstance(condition, Encoding) and condition.field in values:
                condition.encode(values[condition.field], progress)

    def truncated(self, values: Mapping[str, Any]) -> dict[str, int]:
        """By field, how many of these values (N,) are longer than what is read of them; none that are all read."""
        cutting = [c for c in self.conditions.values() if isinstance(c, Truncating) and c.field in values]
        counts = {c.field: c.truncated(values[c.field]) for c in cutting}
        return {field: count for field, count in counts.items() if count}

    def blanks(self, count: int = 1) -> dict[str, Tensor]:
        """By field, values of the right shape."""
        device = self._buffers["_device"].device  # type: ignore[union-attr]
        return {c.field: c.blank(count, device) for c in self._all().values()}

    def digests(self) -> dict[str, str]:
        """By condition, the hash of a published encoder that is not among the weights."""
        return {name: str(c.digest) for name, c in self.conditions.items() if hasattr(c, "digest")}

    def fields(self) -> tuple[str, ...]:
        """The fields of the data that are told to the prior."""
        return tuple(condition.field for condition in self._all().values())

    def needed(self) -> tuple[str, ...]:
        """The fields that training never left out: nothing was learned of a picture of which they are not told."""
        return tuple(condition.field for condition in self._all().values() if not self._left_out(condition))

    def weights(self, given: Mapping[str, float], usual: float) -> dict[str, float]:
        """The guidance weight of each condition that can be left out, in order, as `guided_by` takes them.

        given: by condition; "*" stands for those that are not named and have none of their own in the recipe, for
        which `usual` is the weight otherwise. RequestError for a name that is none of these, or a weight that is no
        number from 0 to 1000.
        """
        free = {name: c for name, c in self._all().items() if self._left_out(c)}
        for name, weight in given.items():
            if name not in free and name != OTHERS:
                raise RequestError(f"guidance of {name}: {self._not_guided(name, free)}")
            said = "guidance" if name == OTHERS else f"guidance of {name}"
            if isinstance(weight, bool) or not isinstance(weight, Real):
                raise RequestError(f"{said} is {weight!r}, which is no number")
            if not 0 <= weight <= STRONGEST:
                raise RequestError(f"{said} {weight} is out of range; possible: 0 to {STRONGEST:g}")
        others = given.get(OTHERS, usual)
        own = {name: others if c.guidance is None else c.guidance for name, c in free.items()}
        return {name: float(given.get(name, weight)) for name, weight in own.items()}

    def guided_by(
        self, fields: Mapping[str, Tensor], scale: float | Mapping[str, float]
    ) -> list[tuple[tuple[str, ...], float]]:
        """How guidance nests over what is told: (the fields told so far, the weight of this step), in order.

        The first entry, whose weight is 1, has what is never left out in training. Conditions of one weight that
        follow each other are one step. scale: the weight of those that have none of their own; or of each by its name,
        as `weights` gives them.
        """
        always = [c.field for c in self._all().values() if c.field in fields and not self._left_out(c)]
        steps: list[tuple[tuple[str, ...], float]] = [(tuple(always), 1.0)]
        for name, condition in self._all().items():
            if condition.field not in fields or condition.field in always:
                continue
            if isinstance(scale, Mapping):
                weight = scale[name]
            else:
                weight = scale if condition.guidance is None else condition.guidance
            told, last = steps[-1]
            now = ((*told, condition.field), weight)
            if len(steps) > 1 and weight == last:
                steps[-1] = now
            else:
                steps.append(now)
        return steps

    def _left_out(self, condition: Condition) -> bool:
        """Whether training leaves it out at times, without which guidance has nothing to compare it with."""
        return bool(condition.dropout or self.together)

    def _not_guided(self, name: str, free: Mapping[str, Condition]) -> str:
        if name in self.conditions:
            return "training never left this condition out (dropout 0), so that it has no weight"
        if not free:
            return "this model has no condition that is guided"
        return f"this model has no such condition; {choices(name, free)}"

    def _all(self) -> dict[str, Condition]:
        return cast(dict[str, Condition], dict(self.conditions.items()))


def _merged(parts: list[Cond]) -> Cond:
    vectors = [p.vector for p in parts if p.vector is not None]
    planes = [p.concat for p in parts if p.concat is not None]
    attended = [p for p in parts if p.context is not None]
    contexts = [p.context for p in attended if p.context is not None]
    masks = None
    if any(p.mask is not None for p in attended):  # entries of conditions without a mask all count
        masks = [_all_count(c) if p.mask is None else p.mask for p, c in zip(attended, contexts, strict=True)]
    return Cond(
        vector=torch.cat(vectors, dim=1) if vectors else None,
        context=torch.cat(contexts, dim=1) if contexts else None,
        mask=None if masks is None else torch.cat(masks, dim=1),
        concat=torch.cat(planes, dim=1) if planes else None,
    )


def _all_count(context: Tensor) -> Tensor:
    return torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)


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
