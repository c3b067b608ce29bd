"""What a picture says of how it was drawn, and the request that draws it again.

The recipe travels inside the file (`provenance`). Arrays that were told or begun with are known there by their hashes:
the same have to be given again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from moyai.edits import Original
from moyai.errors import RequestError
from moyai.model import LatentModel
from moyai.provenance import fingerprint
from moyai.requests import OF_EDITS, PICTURED, SETTINGS, Request, Rows, array_checked, request
from moyai.version import __version__


def picture_recipe(model: LatentModel, r: Request, index: int | None = None) -> dict[str, Any]:
    """What made the pictures: enough to make them again. With `index`, of that one picture alone."""
    if index is not None:
        row = index // r.n
        asked = {name: (values[row],) for name, values in r.asked.items()}
        r = replace(r, n=1, seed=r.seed + index, asked=asked, originals=r.originals[row : row + 1])
    settings = r.plain()
    return {
        "moyai": __version__,
        "model": model.recipe.name,
        "model_hash": model.digest,
        **settings,
        "class_names": [model.classes[c] for c in settings["asked"].get("class", ())],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def like(
    model: LatentModel, recipe: Mapping[str, Any], told: Rows | None = None, originals: Sequence[Original] = ()
) -> tuple[Request, list[str]]:
    """The request that a picture's recipe records, and what differs from then, a sentence each.

    told: arrays by field, in any order, for fields of which the recipe holds the hash only; originals: likewise
    the pictures that an edit began with.
    """
    names = ("n", "seed", *SETTINGS)
    if missing := [name for name in (*names, "asked") if name not in recipe]:
        raise RequestError(f"this picture's recipe has no {missing[0]}; it was not drawn by moyai")
    asked = recipe["asked"]
    if not isinstance(asked, Mapping) or not all(isinstance(values, list | tuple) for values in asked.values()):
        raise RequestError(f"this picture's recipe asks for {asked!r}, which are no rows of fields")
    if not all(type(c) is int for c in asked.get("class", ())):
        raise RequestError(f"this picture's recipe names the classes {asked['class']!r}, which are no class numbers")
    rows = {name: _again(model, name, values, (told or {}).get(name)) for name, values in asked.items()}
    begun: dict[str, Any] = {}
    if "originals" in recipe:
        begun = {name: recipe.get(name) for name in OF_EDITS} | {"originals": _same(recipe["originals"], originals)}
    elif originals:
        raise RequestError("this picture was drawn from nothing, not of another one; possible: `moyai sample --like`")
    made = request(model, rows=rows, **begun, **{name: recipe[name] for name in names})
    now = picture_recipe(model, made)
    changes = [
        f"{name.replace('_', ' ')} was {recipe.get(name)}, is {now[name]}"
        for name in ("model_hash", "threads", "torch", "moyai")
        if recipe.get(name) != now[name]
    ]
    return made, changes


def _again(model: LatentModel, name: str, values: Sequence[Any], told: Sequence[Any] | None) -> Sequence[Any]:
    """The values of a field's rows; of arrays those among the told ones that have the hashes of the recipe."""
    if name not in PICTURED:
        return values
    arrays = [array_checked(model, name, np.asarray(one)) for one in told or ()]
    known = [fingerprint(array) for array in arrays]
    if missing := [value for value in values if value not in known]:
        several = len({str(value) for value in missing})
        raise RequestError(f"this picture was drawn for {several} {name} of its own; give the same again")
    return [arrays[known.index(value)] for value in values]


def _same(recorded: Any, originals: Sequence[Original]) -> list[Original]:
    """Those of the originals that a recipe records, in its order."""
    known = [one.plain() for one in originals]
    if not isinstance(recorded, list | tuple) or any(one not in known for one in recorded):
        raise RequestError(
            "this picture was made of another one, which is not what was given; possible: `moyai edit` with the same "
            "picture, and the same mask if it had one"
        )
    return [originals[known.index(one)] for one in recorded]
