"""What one does with a model: a request in, an iterator of progress out.

The engine runs the network at a fixed number of pictures, `batch`, and pads the last forward: image i of a request
with seed s has seed s + i and, at the same `batch`, thread count, dtype and versions, the same bits in any request
(`docs/reproducibility.md`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moyai.batch import Cond
from moyai.conditioning.conditioner import class_numbers
from moyai.diffusion.grids import GRIDS
from moyai.diffusion.guidance import guided
from moyai.diffusion.sampling import SAMPLERS, Step, start
from moyai.errors import RequestError, choices
from moyai.model import LatentModel
from moyai.randomness import SEEDS, check_seed, image_noise
from moyai.version import __version__

POSITIONS = 8  # drawn where positions are known and none is asked for


@dataclass(frozen=True)
class Request:
    """Pictures to draw: `n` of each class at each position (of the data as a whole where neither is named).

    positions: of slices in their volume, in [0, 1].
    """

    n: int = 8
    classes: tuple[int, ...] = ()
    positions: tuple[float, ...] = ()
    seed: int = 0
    steps: int = 20
    sampler: str = "dpmpp_2m"
    grid: str = "karras"
    guidance: float = 1.0
    eta: float = 0.0
    batch: int = 32

    @property
    def count(self) -> int:
        return self.n * max(1, len(self.classes)) * max(1, len(self.positions))

    def labels(self) -> np.ndarray | None:
        """The class of each picture, (count,) int64, class by class; None where no class is asked for."""
        return self.fields().get("class")

    def fields(self) -> dict[str, np.ndarray]:
        """What each picture is asked to be, by the name of the field, (count,): class by class, in each by position."""
        found = {}
        if self.classes:
            each = self.n * max(1, len(self.positions))
            found["class"] = np.repeat(np.array(self.classes, dtype=np.int64), each)
        if self.positions:
            one = np.repeat(np.array(self.positions, dtype=np.float32), self.n)
            found["position"] = np.tile(one, max(1, len(self.classes)))
        return found


class Progress(NamedTuple):
    """One sampler step of one forward's pictures. `images` comes with the last step."""

    pictures: range  # which of the request
    step: int  # 1 .. steps
    steps: int
    x: Tensor  # (b, c, h, w), the state after the step
    denoised: Tensor  # (b, c, h, w), the estimate of x0 the step was made with
    sigma: float  # of x
    images: np.ndarray | None  # (b, H, W, C)


def request(
    model: LatentModel,
    classes: Sequence[str | int] | None = None,
    *,
    positions: Sequence[float] | None = None,
    **settings: Any,
) -> Request:
    """A checked request; what is not given follows from the model's recipe. Where the model knows of them, all classes
    when none is named, and eight positions over the whole range when none is given.

    Raises RequestError naming what was given and what is possible.
    """
    sampling = model.recipe.sampling
    fields = ("steps", "sampler", "grid", "guidance", "eta", "batch")
    values: dict[str, Any] = {name: getattr(sampling, name) for name in fields}
    for name, value in settings.items():
        if name not in (*fields, "n", "seed"):
            raise RequestError(f"{name} is no setting of a request; {choices(name, (*fields, 'n', 'seed'))}")
        if value is not None:
            values[name] = value
    if classes:
        numbers = class_numbers(classes, model.classes)
    else:
        numbers = list(range(len(model.classes)))
    made = Request(classes=tuple(numbers), positions=_positions(model, positions), **values)
    _check(made)
    return made


def _positions(model: LatentModel, wanted: Sequence[float] | None) -> tuple[float, ...]:
    if "position" not in model.fields:
        if wanted:
            raise RequestError(f"position {wanted[0]} was asked for, but this model knows no positions")
        return ()
    given = [(i + 0.5) / POSITIONS for i in range(POSITIONS)] if not wanted else list(wanted)
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not 0 <= value <= 1:
            raise RequestError(
                f"position {value!r} is out of range; possible: 0 to 1, the share of the volume below it"
            )
    return tuple(float(value) for value in given)


def _check(r: Request) -> None:
    _check_types(r)
    if r.sampler not in SAMPLERS:
        raise RequestError(f"sampler {r.sampler!r} is unknown; {choices(r.sampler, SAMPLERS)}")
    if r.grid not in GRIDS:
        raise RequestError(f"grid {r.grid!r} is unknown; {choices(r.grid, GRIDS)}")
    bounds: dict[str, tuple[float, float]] = {
        "n": (1, 1_000_000),
        "steps": (1, 1000),
        "batch": (1, 4096),
        "guidance": (0, 1000),
        "eta": (0, 1),
    }
    for name, (low, high) in bounds.items():
        value = getattr(r, name)
        if not low <= value <= high:
            raise RequestError(f"{name} {value} is out of range; possible: {low} to {high}")
    if r.eta and r.sampler == "heun":
        raise RequestError(f"eta {r.eta:g} needs a sampler that adds noise; possible: euler, dpmpp_2s, dpmpp_2m")
    check_seed(r.seed)
    if r.seed + r.count > SEEDS:
        raise RequestError(f"seed {r.seed} leaves no room for {r.count} pictures; image i has seed {r.seed} + i")


def _check_types(r: Request) -> None:
    """What a picture's own recipe says may be anything."""
    whole = (int, np.integer)
    kinds: tuple[tuple[str, tuple[type, ...], tuple[str, ...]], ...] = (
        ("whole number", whole, ("n", "seed", "steps", "batch")),
        ("number", (*whole, float, np.floating), ("guidance", "eta")),
        ("name", (str,), ("sampler", "grid")),
    )
    for what, types, names in kinds:
        for name in names:
            value = getattr(r, name)
            if isinstance(value, bool) or not isinstance(value, types):
                raise RequestError(f"{name} is {value!r}, which is no {what}")


@torch.no_grad()
def generate(model: LatentModel, r: Request) -> Iterator[Progress]:
    """Draw the pictures of a request, `r.batch` at a time. Closing the iterator cancels."""
    parameterization = model.prior.denoiser.parameterization
    sigmas = GRIDS[r.grid](parameterization, r.steps, 1.0)
    asked = {name: torch.from_numpy(values) for name, values in r.fields().items()}
    for first in range(0, r.count, r.batch):
        here = range(first, min(first + r.batch, r.count))
        rows = [min(i, r.count - 1) for i in range(first, first + r.batch)]  # the last forward is padded
        seeds = [r.seed + i for i in rows]
        told = {name: values[rows].to(model.device) for name, values in asked.items()}
        denoise = guided(model.prior.denoiser, *_conditions(model, told, len(rows)), r.guidance if told else 1.0)
        x = start(image_noise(seeds, model.codec.shape()).to(model.device), parameterization, sigmas)
        for step in _walk(model, denoise, x, sigmas, seeds, r):
            images = model.decode(step.denoised, told)[: len(here)] if step.index == r.steps else None
            k = len(here)
            yield Progress(here, step.index, r.steps, step.x[:k], step.denoised[:k], step.sigma, images)


def _conditions(model: LatentModel, told: Mapping[str, Tensor], count: int) -> tuple[Cond, Cond]:
    return model.conditioner(told, count), model.conditioner.null(count)


def _walk(
    model: LatentModel,
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigmas: Tensor,
    seeds: Sequence[int],
    r: Request,
) -> Iterator[Step]:
    shape = model.codec.shape()

    def noise(step: int) -> Tensor:
        return image_noise(seeds, shape, purpose="ancestral", step=step).to(model.device)

    return SAMPLERS[r.sampler](denoise, x, sigmas, eta=r.eta, noise=noise)


def sample(
    model: LatentModel,
    *,
    classes: Sequence[str | int] | None = None,
    positions: Sequence[float] | None = None,
    n: int = 8,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Draw `n` pictures of each class at each position: (count, H, W, C) uint8, in that order."""
    r = request(model, classes, positions=positions, n=n, seed=seed, steps=steps, sampler=sampler, guidance=guidance)
    return collect(model, r, progress)


def collect(model: LatentModel, r: Request, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """All pictures of a request, (count, H, W, C). progress(done, total) counts sampler steps."""
    total = r.steps * -(-r.count // r.batch)
    out = []
    for done, state in enumerate(generate(model, r), 1):
        if progress:
            progress(done, total)
        if state.images is not None:
            out.append(state.images)
    return np.concatenate(out)


def row_names(model: LatentModel, r: Request) -> tuple[str, ...] | None:
    """What each row of a request's pictures, `n` long, was asked to be; None where nothing was asked."""
    fields = {name: values[:: r.n] for name, values in r.fields().items()}
    if not fields:
        return None
    count = len(next(iter(fields.values())))
    classes = [model.classes[c] for c in fields["class"]] if "class" in fields else [""] * count
    places = [f"position {p:.2f}" for p in fields["position"]] if "position" in fields else [""] * count
    return tuple(f"{name} {place}".strip() for name, place in zip(classes, places, strict=True))


def picture_recipe(model: LatentModel, r: Request, index: int | None = None) -> dict[str, Any]:
    """What made the pictures: enough to make them again. With `index`, of that one picture alone."""
    settings = asdict(r)
    if index is not None:
        one = {name: (values[index].item(),) for name, values in r.fields().items()}
        asked = {"classes": one.get("class", ()), "positions": one.get("position", ())}
        settings |= {"n": 1, "seed": r.seed + index, **asked}
    names = [model.classes[c] for c in settings["classes"]]
    return {
        "moyai": __version__,
        "model": model.recipe.name,
        "model_hash": model.digest,
        **settings,
        "class_names": names,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def like(model: LatentModel, recipe: Mapping[str, Any]) -> tuple[Request, list[str]]:
    """The request that a picture's recipe records, and what differs from then, a sentence each."""
    names = ("n", "seed", "steps", "sampler", "grid", "guidance", "eta", "batch")
    if missing := [name for name in (*names, "classes") if name not in recipe]:
        raise RequestError(f"this picture's recipe has no {missing[0]}; it was not drawn by moyai sample")
    if not isinstance(recipe["classes"], list | tuple) or not all(type(c) is int for c in recipe["classes"]):
        raise RequestError(f"this picture's recipe names the classes {recipe['classes']!r}, which are no class numbers")
    places = recipe.get("positions", ())
    if not isinstance(places, list | tuple):
        raise RequestError(f"this picture's recipe names the positions {places!r}, which are no numbers")
    settings = {name: recipe[name] for name in names}
    made = request(model, recipe["classes"] or None, positions=places, **settings)
    now = picture_recipe(model, made)
    changes = [
        f"{name.replace('_', ' ')} was {recipe.get(name)}, is {now[name]}"
        for name in ("model_hash", "threads", "torch", "moyai")
        if recipe.get(name) != now[name]
    ]
    return made, changes


def process(model: LatentModel, r: Request, frames: int = 30) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The diffusion process of one forward's pictures, for a GIF: noisy states and predicted x0, decoded.

    Returns two lists of (b, H, W, C), at most about `frames` long, the last being the result. A noisy state is shown
    at unit scale, as the network sees it.
    """
    parameterization = model.prior.denoiser.parameterization
    noisy, predicted = [], []
    told = {name: torch.from_numpy(values[: r.batch]) for name, values in r.fields().items()}
    every = max(1, r.steps // frames)
    for state in generate(model, r):
        if state.step % every == 0 or state.step in (1, state.steps):
            sigma = torch.tensor([state.sigma], device=state.x.device)
            scale = parameterization(sigma).in_.to(state.x.dtype)
            noisy.append(model.decode(state.x * (scale if state.sigma > 0 else 1.0), told))
            predicted.append(model.decode(state.denoised, told))
        if state.step == state.steps:
            break
    return noisy, predicted
