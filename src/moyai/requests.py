"""What is asked of a model: how many pictures, of what, from which seeds, drawn how.

A request has rows. In each row every field that is told (class, position, caption, a map, ...) has one value, and `n`
pictures are drawn of it; picture i of the whole has seed `seed + i`. A row may begin with a picture (`edits`). What is
drawn carries its request, which `redrawing` reads back.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from moyai import edits
from moyai.conditioning.conditioner import class_numbers
from moyai.conditioning.spatial import FROM_PICTURES
from moyai.diffusion.config import NOISY
from moyai.diffusion.grids import GRIDS
from moyai.diffusion.samplers import SAMPLERS
from moyai.edits import Original
from moyai.errors import RequestError, choices
from moyai.model import LatentModel
from moyai.priors.codes import CodePrior
from moyai.priors.config import CodePriorConfig
from moyai.provenance import fingerprint
from moyai.randomness import SEEDS, check_seed

POSITIONS = 8  # drawn where positions are known and none is asked for
LARGEST = float(np.finfo(np.float32).max)  # of the numbers asked for
SETTINGS = ("steps", "sampler", "grid", "guidance", "eta", "batch", "temperature", "top_k", "top_p")
OF_CODES = {"sampler": "codes", "grid": "codes", "eta": 0.0}  # a prior over codes takes its places one by one
OF_DIFFUSION = {"temperature": 1.0, "top_k": None, "top_p": 1.0}  # which has no probabilities to cut
OF_EDITS = ("originals", "strength", "repeats")
PICTURED = ("mask", "low_resolution", "masked")  # fields whose values are arrays
NAME = 60  # letters of a caption in a row's name

Rows = Mapping[str, Sequence[Any]]  # by field, the value of each row


@dataclass(frozen=True, eq=False)
class Request:
    """Pictures to draw: `n` of each row of `asked` (of the data as a whole where nothing is asked).

    asked: class numbers, positions in [0, 1], captions, numbers of other fields, maps (H, W) uint8, ..., by field.
    guidance: the weight of what has none of its own in the model's recipe; or that of each condition by its name.
    originals: the picture that each row begins with, and strength how much of it is drawn anew (`edits`); without any,
    rows begin with noise.
    """

    n: int = 8
    asked: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    seed: int = 0
    steps: int = 20
    sampler: str = "dpmpp_2m"
    grid: str = "karras"
    guidance: float | Mapping[str, float] = 1.0
    eta: float = 0.0
    batch: int = 32
    temperature: float = 1.0  # these three of a prior over codes
    top_k: int | None = None
    top_p: float = 1.0
    originals: tuple[Original, ...] = ()
    strength: float = 1.0
    repeats: int = 1  # times each step is walked (`diffusion.sampling.repeated`)

    @property
    def rows(self) -> int:
        """1 where nothing is asked and nothing begun with."""
        return max([1, len(self.originals), *map(len, self.asked.values())])

    @property
    def count(self) -> int:
        return self.n * self.rows

    def labels(self) -> np.ndarray | None:
        """The class of each picture, (count,) int64; None where no class is asked for."""
        return self.fields().get("class")

    def fields(self) -> dict[str, np.ndarray]:
        """What each picture is asked to be, by the name of the field, (count, ...)."""
        return {name: np.repeat(_array(name, values), self.n, axis=0) for name, values in self.asked.items()}

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; of an array its shape and its hash."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OF_EDITS}
        if self.originals:
            originals = [one.plain() for one in self.originals]
            plain |= {"originals": originals, "strength": self.strength, "repeats": self.repeats}
        return plain | {"asked": {name: [_plain(v) for v in values] for name, values in self.asked.items()}}


def request(
    model: LatentModel,
    classes: Sequence[str | int] | None = None,
    *,
    positions: Sequence[float] | None = None,
    captions: Sequence[str] | None = None,
    others: Rows | None = None,
    rows: Rows | None = None,
    originals: Sequence[Original] = (),
    strength: float | None = None,
    repeats: int | None = None,
    **settings: Any,
) -> Request:
    """A checked request; what is not given follows from the model's recipe.

    Classes, positions, captions and `others` (numbers and arrays, by field) are combined, each with each; `rows` are
    taken as they are. Where nothing is asked: all classes, and eight positions over the whole range, if that is all
    the model can be told; otherwise the examples that its run kept of its held-out data. Among the settings, guidance
    may be weights by condition, where "*" stands for those that are neither named nor given one by the recipe.

    originals: pictures to begin with, each for each combination of what is asked; with `rows`, one for each of these.
    Where nothing is asked they are changed or filled in without a condition. strength, repeats: `edits`.

    Raises RequestError naming what was given and what is possible.
    """
    usual = _settings(model)[0]["guidance"]
    values = _given(model, settings)
    if rows is None:
        told: dict[str, Sequence[Any] | None] = {"class": classes, "position": positions, "caption": captions}
        wanted = {name: list(each) for name, each in (told | dict(others or {})).items() if each}
        rows, originals = _laid_out(model, wanted, originals)
    if len({len(each) for each in (*rows.values(), *([originals] if originals else []))}) > 1:
        raise RequestError("the rows of a request need a value for each field they name")
    asked = {name: tuple(_checked(model, name, each)) for name, each in rows.items()}
    _check_needed(model, asked, edited=bool(originals))
    by_condition = values["guidance"] if isinstance(values["guidance"], Mapping) else None
    begun: dict[str, Any] = {}
    if originals:
        begun = {"originals": tuple(originals), **edits.settings(model, originals, strength, repeats)}
        if values["grid"] == "table" and begun["strength"] < 1 and settings.get("grid") is None:
            values["grid"] = "uniform-time"  # which may begin anywhere
    elif strength is not None or repeats is not None:
        word = "repeats" if strength is None else "strength"
        raise RequestError(f"{word} is of pictures to begin with, and none is given")
    made = Request(asked=asked, **begun, **values | ({} if by_condition is None else {"guidance": usual}))
    _check(made)
    if originals and settings.get("batch") is None:  # few, as a rule, and dear: no forward is larger than all of them
        made = replace(made, batch=min(made.batch, made.count))
    return made if by_condition is None else replace(made, guidance=model.conditioner.weights(by_condition, usual))


def _given(model: LatentModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings with those that are given laid over them."""
    values, fixed = _settings(model)
    for name, value in settings.items():
        if name not in (*SETTINGS, "n", "seed"):
            raise RequestError(f"{name} is no setting of a request; {choices(name, (*SETTINGS, 'n', 'seed'))}")
        if value is not None and name in fixed and value != fixed[name]:
            raise RequestError(f"{name} {value} is nothing that this model's prior knows; it is {fixed[name]}")
        if value is not None:
            values[name] = value
    return values


def _laid_out(
    model: LatentModel, wanted: Mapping[str, list[Any]], originals: Sequence[Original]
) -> tuple[Rows, Sequence[Original]]:
    """What is wanted as rows, each value with each and each of the originals, and the original of each row."""
    if not (wanted or originals or _simple(model)) and model.examples:
        return {name: list(each) for name, each in model.examples.items()}, ()
    known = {name: _checked(model, name, each) for name, each in wanted.items()}
    if not originals:
        return _combined(_completed(model, known)), ()
    rows = _combined(known)
    each_row = len(next(iter(rows.values()), (None,)))
    return (
        {name: [*values] * len(originals) for name, values in rows.items()},
        [one for one in originals for _ in range(each_row)],
    )


def _settings(model: LatentModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the recipe has pictures drawn, and what of it has only one value with its prior."""
    sampling = model.recipe.sampling
    if isinstance(model.recipe.prior, CodePriorConfig) and isinstance(model.prior, CodePrior):
        fixed = {**OF_CODES, "steps": model.prior.places()}
        return {**model.recipe.prior.sampling.model_dump(), "batch": sampling.batch, **fixed}, fixed
    names = (name for name in SETTINGS if name not in OF_DIFFUSION)
    return {name: getattr(sampling, name) for name in names} | OF_DIFFUSION, dict(OF_DIFFUSION)


def _simple(model: LatentModel) -> bool:
    return set(model.fields) <= {"class", "position"}


def _completed(model: LatentModel, given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """With all classes and some positions, where these are all that can be told or nothing is."""
    if _simple(model) or not given:
        if "class" in model.fields and "class" not in given:
            given = {"class": list(range(len(model.classes))), **given}
        if "position" in model.fields and "position" not in given:
            given = given | {"position": [(i + 0.5) / POSITIONS for i in range(POSITIONS)]}
    return given


def _check_needed(model: LatentModel, asked: Rows, *, edited: bool) -> None:
    """Refuse to draw without what training never left out: the null of it was never learned."""
    told = {*model.conditioner.needed(), *(set(model.codec.needed()) & set(model.fields))}
    needed = [name for name in model.fields if name in told and name not in asked]
    if not needed:
        return
    if edited and set(needed) & set(FROM_PICTURES):
        raise RequestError(
            "this model is told a picture of its own, which an edit does not tell; possible: `moyai sample --picture`"
        )
    if pictured := [name for name in needed if name in FROM_PICTURES]:
        raise RequestError(f"this model needs a picture to begin with, and {pictured[0]} was not given")
    raise RequestError(
        f"no {needed[0]} was given, and training never left it out (dropout 0), so that nothing is drawn without"
    )


def _combined(given: dict[str, list[Any]]) -> Rows:
    """Each value with each, the last field changing first."""
    return dict(zip(given, zip(*itertools.product(*given.values()), strict=True), strict=True)) if given else {}


def _checked(model: LatentModel, name: str, values: Sequence[Any]) -> list[Any]:
    """The values of a field as a request holds them."""
    if name not in model.fields:
        knows = ", ".join(model.fields) or "nothing"
        shown = "" if name in PICTURED else f" {values[0]}"
        raise RequestError(
            f"{name}{shown} was asked for, but this model knows {_none_of(name)}; it can be told: {knows}"
        )
    if name == "class":
        return class_numbers(values, model.classes)
    if name == "caption":
        if wrong := [value for value in values if not isinstance(value, str)]:
            raise RequestError(f"caption {wrong[0]!r} is no text")
        return [str(value) for value in values]
    if name in PICTURED:
        return [array_checked(model, name, np.asarray(value)) for value in values]
    for value in values:
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        number = number and -LARGEST < value < LARGEST  # a whole number may be beyond what any float holds
        if name != "position" and not number:
            raise RequestError(f"{name} {value!r} is no finite number of float32")
        if name == "position" and not (number and 0 <= value <= 1):
            raise RequestError(
                f"position {value!r} is out of range; possible: 0 to 1, the share of the volume below it"
            )
    return [float(value) for value in values]


def _none_of(name: str) -> str:
    return {"class": "no classes", "caption": "no captions"}.get(name, f"no {name}s")


def array_checked(model: LatentModel, name: str, value: np.ndarray) -> np.ndarray:
    """The array of a field as a request holds it. RequestError for a map that the model cannot be told."""
    if name != "mask":
        return value  # the condition knows the shapes it takes, and says so
    height, width = model.codec.image_shape[1:]
    if value.shape != (height, width):
        raise RequestError(f"the map is {' x '.join(map(str, value.shape))}; this model takes {height} x {width}")
    known = max(2, len(model.facts.regions))
    if value.dtype.kind not in "bui" or int(value.max(initial=0)) >= known or int(value.min(initial=0)) < 0:
        raise RequestError(f"the map has region {value.max()}; this model knows 0 to {known - 1}")
    return value.astype(np.uint8)


def _check(r: Request) -> None:
    _check_types(r)
    of_codes = r.sampler == OF_CODES["sampler"]
    if r.sampler not in SAMPLERS and not of_codes:
        raise RequestError(f"sampler {r.sampler!r} is unknown; {choices(r.sampler, SAMPLERS)}")
    if r.grid == "table" and r.strength < 1:
        raise RequestError(
            f"grid table begins at the table's end only, and strength {r.strength:g} does not; "
            f"possible: {', '.join(name for name in GRIDS if name != 'table')}"
        )
    if r.grid not in GRIDS and not of_codes:
        raise RequestError(f"grid {r.grid!r} is unknown; {choices(r.grid, GRIDS)}")
    bounds: dict[str, tuple[float, float]] = {
        "n": (1, 1_000_000),
        "steps": (1, 1_000_000 if of_codes else 1000),
        "batch": (1, 4096),
        "guidance": (0, 1000),
        "eta": (0, 1),
        "temperature": (0, 100),
    }
    for name, (low, high) in bounds.items():
        value = getattr(r, name)
        if not low <= value <= high:
            raise RequestError(f"{name} {value} is out of range; possible: {low} to {high}")
    if not 0 < r.top_p <= 1:
        raise RequestError(f"top_p {r.top_p} is out of range; possible: above 0, up to 1")
    if r.top_k is not None and (type(r.top_k) is not int or r.top_k < 1):
        raise RequestError(f"top_k {r.top_k} is out of range; possible: a whole number from 1 on")
    if r.eta and r.sampler not in NOISY and not of_codes:
        raise RequestError(f"eta {r.eta:g} needs a sampler that adds noise; possible: {', '.join(NOISY)}")
    check_seed(r.seed)
    if r.seed + r.count > SEEDS:
        raise RequestError(f"seed {r.seed} leaves no room for {r.count} pictures; image i has seed {r.seed} + i")


def _check_types(r: Request) -> None:
    """What a picture's own recipe says may be anything."""
    whole = (int, np.integer)
    kinds: tuple[tuple[str, tuple[type, ...], tuple[str, ...]], ...] = (
        ("whole number", whole, ("n", "seed", "steps", "batch")),
        ("number", (*whole, float, np.floating), ("guidance", "eta", "temperature", "top_p")),
        ("name", (str,), ("sampler", "grid")),
    )
    for what, types, names in kinds:
        for name in names:
            value = getattr(r, name)
            if isinstance(value, bool) or not isinstance(value, types):
                raise RequestError(f"{name} is {value!r}, which is no {what}")


def _array(name: str, values: Sequence[Any]) -> np.ndarray:
    if name in PICTURED:
        return np.stack(values)
    if name == "caption":
        return np.array(values, dtype=object)  # as "U" each would take the room of the longest
    return np.array(values, dtype=np.int64 if name == "class" else np.float32)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return fingerprint(value)
    return value


def row_names(model: LatentModel, r: Request) -> tuple[str, ...] | None:
    """What each row of a request's pictures, `n` long, was asked to be, or was begun with; None where neither tells
    rows apart."""
    if not r.asked and len(r.originals) < 2:
        return None
    return tuple(
        " ".join(
            [_named(model, name, values[row], row) for name, values in r.asked.items()]
            or [r.originals[row].name or f"picture {row + 1}"]
        )
        for row in range(r.rows)
    )


def _named(model: LatentModel, name: str, value: Any, row: int) -> str:
    if name == "class":
        return model.classes[value]
    if name == "caption":
        return value if len(value) <= NAME else f"{value[: NAME - 3]}..."
    if name in PICTURED:
        return f"{name.replace('_', ' ')} {row + 1}"
    return f"{name} {value:.2f}" if name == "position" else f"{name} {value:g}"
