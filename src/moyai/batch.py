"""What flows between the rooms of the house: a batch of data, and a condition with its four routes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What a data set yields.

    `index`: (B,) int64, which samples these are. `images`: (B, C, H, W) float32 in [-1, 1], or None where the
    latents were cached. `latents`: what the codec stored of each image, rows in the same order, or None.
    `fields`: what else is known of each image by name ("class": (B,) int64, ...), for the conditioner.
    """

    index: Tensor
    images: Tensor | None = None
    latents: Mapping[str, Tensor] | None = None
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def rows(self, start: int, stop: int) -> "Batch":
        """Rows start to stop."""
        return self._map(lambda t: t[start:stop])

    def to(self, device: torch.device | str) -> "Batch":
        return self._map(lambda t: t.to(device, non_blocking=True))

    def _map(self, f: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            f(self.index),
            None if self.images is None else f(self.images),
            None if self.latents is None else {k: f(v) for k, v in self.latents.items()},
            {k: f(v) for k, v in self.fields.items()},
        )


@dataclass(frozen=True)
class Cond:
    """A condition, by the route it takes into a network.

    `vector`: (B, D), added to the time embedding. `context`: (B, L, D), attended to. `mask`: (B, L) bool, which
    entries of the context count (all where None). `concat`: (B, C, h, w), concatenated to the input unscaled.
    A route that is None is not used. Dropping a condition is `cond.where(keep, null)`.
    """

    vector: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    concat: Tensor | None = None

    def routes(self) -> dict[str, Tensor]:
        """The routes in use, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def __len__(self) -> int:
        """The number of rows; 0 where no route is in use."""
        return next((int(t.shape[0]) for t in self.routes().values()), 0)

    def to(self, *args: torch.device | torch.dtype | str) -> "Cond":
        """Every route to a device or a dtype (the mask keeps its own dtype)."""
        moved = self.routes()
        for name in moved:
            for where in args:
                if name != "mask" or not isinstance(where, torch.dtype):
                    moved[name] = moved[name].to(where)
        return Cond(**moved)

    def rows(self, start: int, stop: int) -> "Cond":
        return Cond(**{name: t[start:stop] for name, t in self.routes().items()})

    def where(self, keep: Tensor, other: "Cond") -> "Cond":
        """Row i of this where `keep[i]`, else row i of `other`. keep: (B,) bool."""
        self._same_routes(other)
        theirs = other.routes()
        mixed = {}
        for name, mine in self.routes().items():
            choose = keep.view(-1, *[1] * (mine.ndim - 1))
            mixed[name] = torch.where(choose, mine, theirs[name])
        return Cond(**mixed)

    @staticmethod
    def cat(conds: Sequence["Cond"]) -> "Cond":
        """The rows of several conditions one after the other; all must use the same routes."""
        first, *rest = conds
        for other in rest:
            first._same_routes(other)
        return Cond(**{name: torch.cat([c.routes()[name] for c in conds]) for name in first.routes()})

    def _same_routes(self, other: "Cond") -> None:
        mine, theirs = sorted(self.routes()), sorted(other.routes())
        if mine != theirs:
            raise ValueError(f"conditions with routes {mine} and {theirs} cannot be mixed")
