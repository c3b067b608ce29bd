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


@dataclass(frozen=True)
class Request:
    """Pictures to draw: `n` of each class (of the data as a whole where `classes` is empty)."""

    n: int = 8
    classes: tuple[int, ...] = ()
    seed: int = 0
    steps: int = 20
    sampler: str = "dpmpp_2m"
    grid: str = "karras"
    guidance: float = 1.0
    eta: float = 0.0
    batch: int = 32

    @property
    def count(self) -> int:
        return self.n * max(1, len(self.classes))

    def labels(self) -> np.ndarray | None:
        """The class of each picture, (count,) int64, class by class; None where no class is asked for."""
        return np.repeat(np.array(self.classes, dtype=np.int64), self.n) if self.classes else None


class Progress(NamedTuple):
    """One sampler step of one forward's pictures. `images` comes with the last step."""

    pictures: range  # which of the request
    step: int  # 1 .. steps
    steps: int
    x: Tensor  # (b, c, h, w), the state after the step
    denoised: Tensor  # (b, c, h, w), the estimate of x0 the step was made with
    sigma: float  # of x
    images: np.ndarray | None  # (b, H, W, C)


def request(model: LatentModel, classes: Sequence[str | int] | None = None, **settings: Any) -> Request:
    """A checked request; what is not given follows from the model's recipe, all classes where none is named.

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
    made = Request(classes=tuple(numbers), **values)
    _check(made)
    return made


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
    labels = r.labels()
    for first in range(0, r.count, r.batch):
        here = range(first, min(first + r.batch, r.count))
        rows = [min(i, r.count - 1) for i in range(first, first + r.batch)]  # the last forward is padded
        seeds = [r.seed + i for i in rows]
        told = {} if labels is None else {"class": torch.from_numpy(labels[rows]).to(model.device)}
        denoise = guided(model.prior.denoiser, *_conditions(model, told, len(rows)), r.guidance if told else 1.0)
        x = start(image_noise(seeds, model.codec.shape()).to(model.device), parameterization, sigmas)
        for step in _walk(model, denoise, x, sigmas, seeds, r):
            images = model.decode(step.denoised)[: len(here)] if step.index == r.steps else None
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
    n: int = 8,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Draw `n` pictures of each class: (count, H, W, C) uint8, class by class."""
    r = request(model, classes, n=n, seed=seed, steps=steps, sampler=sampler, guidance=guidance)
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


def picture_recipe(model: LatentModel, r: Request, index: int | None = None) -> dict[str, Any]:
    """What made the pictures: enough to make them again. With `index`, of that one picture alone."""
    settings = asdict(r)
    if index is not None:
        labels = r.labels()
        settings |= {"n": 1, "seed": r.seed + index, "classes": () if labels is None else (int(labels[index]),)}
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
    made = request(model, recipe["classes"] or None, **{name: recipe[name] for name in names})
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
    every = max(1, r.steps // frames)
    for state in generate(model, r):
        if state.step % every == 0 or state.step in (1, state.steps):
            sigma = torch.tensor([state.sigma], device=state.x.device)
            scale = parameterization(sigma).in_.to(state.x.dtype)
            noisy.append(model.decode(state.x * (scale if state.sigma > 0 else 1.0)))
            predicted.append(model.decode(state.denoised))
        if state.step == state.steps:
            break
    return noisy, predicted
