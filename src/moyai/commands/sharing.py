"""What several models can be asked alike: rows that mean the same to each, for pictures that are laid side by side.

A field counts where every model is told it and means the same by it: classes by their names, maps where the regions
are the same ones, small pictures where they have one size. What only some of them are told is left untold.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from moyai.conditioning.conditioner import class_numbers
from moyai.errors import RequestError
from moyai.model import LatentModel
from moyai.requests import POSITIONS

CLASSES = 10  # of those the models share, at most, where none is asked for
Models = Mapping[str, LatentModel]  # by label


def rows(models: Models, given: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Values by field, of equal length, as `tasks.request` takes them; classes by name.

    given: "class", "position" and "caption" as the user says them, each combined with each. Where nothing is given:
    shared classes and positions if that is all the models share, otherwise the examples a run kept.
    RequestError for what is not shared by all, and where a model needs what others are not told.
    """
    fields = shared_fields(models)
    first = next(iter(models.values()))
    for name, model in models.items():
        if needed := [field for field in model.conditioner.needed() if field not in fields]:
            raise RequestError(f"{name} draws nothing without its {needed[0]}, which not all runs are told")
    if unknown := [field for field in given if field not in fields]:
        raise RequestError(
            f"--{unknown[0]} was given, which not all runs are told; all are told: {', '.join(fields) or 'nothing'}"
        )
    simple = set(fields) <= {"class", "position"}
    if not given and not simple:
        return _examples(models, fields)
    wanted = {name: list(values) for name, values in given.items()}
    if "class" in wanted:
        wanted["class"] = _named(models, wanted["class"])
    elif "class" in fields and simple:
        wanted = {"class": shared_classes(models)[:CLASSES], **wanted}
    if "position" in fields and "position" not in wanted and simple:
        places = [0.5] if "class" in wanted else [(i + 0.5) / POSITIONS for i in range(POSITIONS)]
        wanted["position"] = places
    for name, model in models.items():
        if lost := [field for field in model.conditioner.needed() if field not in wanted]:
            words = f"--{lost[0]}, or " if lost[0] in ("class", "position", "caption") else ""
            raise RequestError(
                f"{name} draws nothing without its {lost[0]}; possible: {words}without --{next(iter(given))}"
            )
    return _combined({name: wanted[name] for name in first.fields if name in wanted})


def shared_fields(models: Models) -> list[str]:
    """What every model is told and means the same by, in the order of the first."""
    first, *others = models.values()
    return [name for name in first.fields if all(_same(name, first, other) for other in others)]


def shared_classes(models: Models) -> list[str]:
    """The names of classes that all know, in the order of the first."""
    first, *others = models.values()
    return [name for name in first.classes if all(name in other.classes for other in others)]


def _same(name: str, one: LatentModel, other: LatentModel) -> bool:
    if name not in other.fields:
        return False
    if name == "class":
        return bool(set(one.classes) & set(other.classes))
    if name == "mask":
        return one.facts.regions == other.facts.regions
    if name == "low_resolution":
        shapes = [model.conditioner.blanks()[name].shape for model in (one, other)]
        return shapes[0] == shapes[1]
    return True


def _named(models: Models, wanted: Sequence[str | int]) -> list[str]:
    """Classes as a user says them, by name; RequestError for one that a run does not know."""
    first = next(iter(models.values()))
    names = [first.classes[number] for number in class_numbers(wanted, first.classes)]
    for label, model in models.items():
        if strange := [name for name in names if name not in model.classes]:
            known = ", ".join(shared_classes(models)[:20])
            raise RequestError(f"class {strange[0]!r} is not known to {label}; all runs know: {known}")
    return names


def _combined(wanted: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Each value with each, the last field changing first."""
    each = list(itertools.product(*wanted.values()))
    return {name: [row[i] for row in each] for i, name in enumerate(wanted)}


def _examples(models: Models, fields: Sequence[str]) -> dict[str, list[Any]]:
    """Held-out pictures' own values, of the first run that kept those of all fields."""
    classes = shared_classes(models)
    for model in models.values():
        if not all(name in model.examples for name in fields):
            continue
        found = {name: list(model.examples[name]) for name in fields}
        if "class" in found:
            found["class"] = [model.classes[int(number)] for number in found["class"]]
            known = [i for i, name in enumerate(found["class"]) if name in classes]
            if not known:
                continue
            found = {name: [values[i] for i in known] for name, values in found.items()}
        return found
    raise RequestError(f"no run kept examples of {', '.join(fields)}; possible: --class, --position or --caption")
