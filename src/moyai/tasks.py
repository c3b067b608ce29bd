"""What one does with a model: a request in (`requests.py`), an iterator of progress out.

The engine runs the network at a fixed number of pictures, `batch`, and pads the last forward: image i of a request
with seed s has seed s + i and, at the same `batch`, thread count, dtype and versions, the same bits in any request
(`docs/reproducibility.md`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moyai import edits
from moyai.batch import Cond
from moyai.data.images import to_uint
from moyai.diffusion.denoiser import Denoise
from moyai.diffusion.grids import GRIDS
from moyai.diffusion.guidance import clamped, inpainting, nested
from moyai.diffusion.samplers import SAMPLERS
from moyai.diffusion.sampling import Step, repeated, start
from moyai.edits import Original
from moyai.errors import RequestError
from moyai.firststage.codec import LatentCodec
from moyai.model import LatentModel
from moyai.priors import codes
from moyai.priors.codes import CodePrior
from moyai.randomness import image_noise
from moyai.redrawing import like, picture_recipe
from moyai.requests import Request, request, row_names

__all__ = [
    "Original",
    "Progress",
    "Request",
    "collect",
    "edit",
    "generate",
    "like",
    "picture_recipe",
    "process",
    "request",
    "row_names",
    "sample",
]


class Progress(NamedTuple):
    """One sampler step of one forward's pictures. `images` comes with the last step."""

    pictures: range  # which of the request
    step: int  # 1 .. steps
    steps: int
    x: Tensor  # (b, c, h, w), the state after the step
    denoised: Tensor  # (b, c, h, w), the estimate of x0 the step was made with
    sigma: float  # of x
    images: np.ndarray | None  # (b, H, W, C)


@torch.no_grad()
def generate(model: LatentModel, r: Request) -> Iterator[Progress]:
    """Draw the pictures of a request, `r.batch` at a time; from its originals, where it has any (`edits`).
    Closing the iterator cancels."""
    if isinstance(model.prior, CodePrior):
        yield from _codes(model, model.prior, r)
        return
    parameterization = model.diffusion.denoiser.parameterization
    sigmas = GRIDS[r.grid](parameterization, r.steps, r.strength)
    asked = told_of(model, r)
    for first in range(0, r.count, r.batch):
        here = range(first, min(first + r.batch, r.count))
        rows = [min(i, r.count - 1) for i in range(first, first + r.batch)]  # the last forward is padded
        seeds = [r.seed + i for i in rows]
        told = {name: values[rows].to(model.device) for name, values in asked.items()}
        denoise = bound(model, told, len(rows), r.guidance)
        noise = image_noise(seeds, model.codec.shape()).to(model.device)
        originals, known = [r.originals[i // r.n] for i in rows] if r.originals else [], None
        if originals:
            known, missing = edits.beginning(model, originals, told, r.strength)
            denoise = denoise if missing is None else inpainting(denoise, known, missing, noise)
        x = start(noise, parameterization, sigmas, full=not originals, x0=known)
        for step in _walk(model, denoise, x, sigmas, seeds, r):
            images = decoded(model, step.denoised, told, originals)[: len(here)] if step.index == r.steps else None
            k = len(here)
            yield Progress(here, step.index, r.steps, step.x[:k], step.denoised[:k], step.sigma, images)


def _codes(model: LatentModel, prior: CodePrior, r: Request) -> Iterator[Progress]:
    """As `generate`, over codes: a step is one code of every picture, x the latents of those drawn so far."""
    codec = model.codec
    if not isinstance(codec, LatentCodec):
        raise TypeError(type(codec).__name__)
    asked, cut = told_of(model, r), {"temperature": r.temperature, "top_k": r.top_k, "top_p": r.top_p}
    for first in range(0, r.count, r.batch):
        here = range(first, min(first + r.batch, r.count))
        rows = [min(i, r.count - 1) for i in range(first, first + r.batch)]  # the last forward is padded
        told = {name: values[rows].to(model.device) for name, values in asked.items()}
        conds, scales = nest(model, told, len(rows), r.guidance)
        noise = codes.uniforms([r.seed + i for i in rows], prior.shapes())
        for step in codes.generate(prior, conds, scales, noise=noise, **cut):  # type: ignore[arg-type]
            z = codec.latents_of(step.codes)
            images = decoded(model, z, told)[: len(here)] if step.drawn == step.total else None
            yield Progress(here, step.drawn, step.total, z[: len(here)], z[: len(here)], 0.0, images)


def overview(model: LatentModel, n: int, **settings: Any) -> Request:
    """A request that shows what the model can do: `n` of at most ten classes, or of what `request` takes by itself."""
    if isinstance(model.prior, CodePrior):
        settings = {name: value for name, value in settings.items() if name not in ("steps", "sampler", "grid")}
    if not set(model.fields) <= {"class", "position"} or not model.classes:
        return request(model, n=n, **settings)
    places = [0.5] if "position" in model.fields else None  # one row a class is enough to look at
    return request(model, range(min(10, len(model.classes))), positions=places, n=n, **settings)


def told_of(model: LatentModel, r: Request) -> dict[str, Tensor]:
    """What each picture of a request is asked to be, prepared as the conditioner takes it, (count, ...)."""
    return {name: torch.from_numpy(values) for name, values in model.conditioner.prepared(r.fields()).items()}


def encode(model: LatentModel, r: Request, progress: Callable[[int, int], None]) -> None:
    """Have a published text encoder read a request's captions, before the first step has to wait for it.

    progress(done, total) counts captions that are new to it; it is not called where there are none.
    """
    model.conditioner.encode(r.fields(), progress)


def bound(model: LatentModel, told: Mapping[str, Tensor], count: int, scale: float | Mapping[str, float]) -> Denoise:
    """The guided denoiser of `count` pictures with what is told of them bound; scale as a request's guidance."""
    made = nested(model.diffusion.denoiser, *nest(model, told, count, scale))
    # Pixels have bounds, which Ho et al. (2020) keep their estimates in.
    return clamped(made, -1.0, 1.0) if model.recipe.codec.kind == "pixels" else made


def nest(
    model: LatentModel, told: Mapping[str, Tensor], count: int, scale: float | Mapping[str, float]
) -> tuple[list[Cond], list[float]]:
    """The conditions that guidance nests, nothing first, and the weight of each after it."""
    steps = model.conditioner.guided_by(told, scale)
    conds = [model.conditioner({name: told[name] for name in names}, count) for names, _ in steps]
    return conds, [weight for _, weight in steps[1:]]


def decoded(
    model: LatentModel, latents: Tensor, told: Mapping[str, Tensor], originals: Sequence[Original] = ()
) -> np.ndarray:
    """Latents to pictures (B, H, W, C); what is known of them, by the originals or told ("masked"), is there as it
    was."""
    images = model.decode(latents, told)
    if "masked" in told:
        known, missing = told["masked"][:, :-1], told["masked"][:, -1:]
        hole = missing.permute(0, 2, 3, 1).cpu().ceil().numpy()
        images = edits.pasted(images, to_uint(known, bits=model.facts.bits), hole)
    return edits.completed(images, originals) if originals else images


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

    def fresh(number: int) -> Tensor:
        return image_noise(seeds, shape, purpose="repeat", step=number).to(model.device)

    sampler = SAMPLERS[r.sampler]
    if r.repeats > 1:
        sampler = repeated(sampler, r.repeats, fresh)
    return sampler(denoise, x, sigmas, eta=r.eta, noise=noise)


def sample(
    model: LatentModel,
    *,
    classes: Sequence[str | int] | None = None,
    positions: Sequence[float] | None = None,
    captions: Sequence[str] | None = None,
    others: Mapping[str, Sequence[Any]] | None = None,
    n: int = 8,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    eta: float | None = None,
    guidance: float | Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Draw `n` pictures of each combination of what is asked: (count, H, W, C) uint8, in that order.

    others: values of further fields of the data by name, such as {"age": [70.0]} or {"mask": [array (H, W)]}.
    guidance: one weight, or weights by condition, such as {"caption": 4.0, "class": 1.5}. What is not said of the walk
    (steps, sampler, grid, eta, guidance) is as the recipe has it.
    """
    asked = {"positions": positions, "captions": captions, "others": others}
    how = {"steps": steps, "sampler": sampler, "grid": grid, "eta": eta, "guidance": guidance}
    settings = {"n": n, "seed": seed, **how}
    return collect(model, request(model, classes, **asked, **settings), progress)  # type: ignore[arg-type]


def edit(
    model: LatentModel,
    images: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    strength: float | None = None,
    repeats: int | None = None,
    classes: Sequence[str | int] | None = None,
    positions: Sequence[float] | None = None,
    captions: Sequence[str] | None = None,
    others: Mapping[str, Sequence[Any]] | None = None,
    n: int = 1,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    eta: float | None = None,
    guidance: float | Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Pictures (P, H, W, C), as `sample` returns them, changed or filled in: `n` of each, for each combination of what
    is asked of them, in that order; (count, H, W, C).

    mask: (H, W) or (P, H, W) uint8, 255 where to paint and 0 where the picture stays as it is, to the bit; without one
    all of it changes. strength: how much, above 0 up to 1, a share of the model's own time (default: 0.6, with a mask
    1, where nothing of what stands there is looked at). repeats: how often each step is walked (default: 1, with a mask
    10). Raises RequestError naming what was given and what is possible.
    """
    if mask is not None and mask.ndim != 2 and len(mask) != len(images):
        raise RequestError(f"{len(mask)} masks for {len(images)} pictures; possible: one (H, W), or as many (P, H, W)")
    masks = [mask] * len(images) if mask is None or mask.ndim == 2 else mask
    if not len(images):
        raise RequestError("there are no pictures to edit; possible: one or more, (P, H, W, C)")
    originals = [Original(image, missing) for image, missing in zip(images, masks, strict=True)]
    asked = {"positions": positions, "captions": captions, "others": others, "originals": originals}
    settings = {
        "strength": strength,
        "repeats": repeats,
        "n": n,
        "seed": seed,
        "steps": steps,
        "sampler": sampler,
        "grid": grid,
        "eta": eta,
        "guidance": guidance,
    }
    return collect(model, request(model, classes, **asked, **settings), progress)  # type: ignore[arg-type]


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


def process(model: LatentModel, r: Request, frames: int = 30) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The diffusion process of one forward's pictures, for a GIF: noisy states and predicted x0, decoded.

    Returns two lists of (b, H, W, C), at most about `frames` long, the last being the result. A noisy state is shown
    at unit scale, as the network sees it.
    """
    noisy, predicted = [], []
    told = {name: values[: min(r.count, r.batch)] for name, values in told_of(model, r).items()}
    originals = [r.originals[i // r.n] for i in range(min(r.count, r.batch))] if r.originals else []
    every = max(1, r.steps // frames)
    for state in generate(model, r):
        if state.step % every == 0 or state.step in (1, state.steps):
            x = state.x
            if state.sigma > 0:
                sigma = torch.tensor([state.sigma], device=x.device)
                x = x * model.diffusion.denoiser.parameterization(sigma).in_.to(x.dtype)
            noisy.append(model.decode(x, told))
            predicted.append(decoded(model, state.denoised, told, originals))
        if state.images is not None:
            noisy[-1] = predicted[-1] = state.images
            break
    return noisy, predicted
