"""Tables laid over tables: a recipe's file, its [gpu] table, the overrides of the command line, and the defaults.

Each is a nested table of plain values (what TOML can say). Laying one over another replaces value by value; an empty
table empties the one below it; and a `kind` that changes takes away the keys the new kind does not have, so that
`prior.parameterization.kind=flow` works on a recipe that chose another and set that one's keys.
"""

import tomllib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from moyai.errors import ConfigError
from moyai.recipe.explain import default_of, free_values, members, name, optional, shown, tag, variants
from moyai.schema import Config

_DEPTH = 12  # tables in tables; a recipe has 5
_PLAIN = (bool, int, float, str)


def override(text: str) -> tuple[tuple[str, ...], Any]:
    """`prior.train.steps=400` as a path and a value: a TOML value where it reads as one, else text."""
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"override {shown(text)} is not of the form section.key=value")
    return path, toml_value(value.strip())


def toml_value(text: str) -> Any:
    """A value as TOML reads it; text that is no TOML value (or a date, which no key holds) is itself."""
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if list(read) != ["value"] or not isinstance(read["value"], (*_PLAIN, list, dict)):
        return text
    return read["value"]


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """{a: {b: value}} of (a, b)."""
    for part in reversed(path):
        value = {part: value}
    return dict(value)


def check_plain(value: Any, source: str, path: tuple[str, ...] = ()) -> None:
    """Refuse what a recipe cannot hold: dates, numbers beyond 64 bits, text that is not Unicode, endless nesting."""
    key = ".".join(map(name, path[:4])) or source
    if len(path) > _DEPTH:
        raise ConfigError(f"{source}: {key} ... is nested deeper than {_DEPTH} tables")
    if isinstance(value, Mapping):
        for word, inner in value.items():
            check_plain(str(word), source, path)
            check_plain(inner, source, (*path, str(word)))
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, source, (*path, "[]"))
    elif isinstance(value, str):
        if not value.isascii() and value.encode("utf-8", "replace").decode() != value:
            raise ConfigError(f"{source}: {key} holds text that is not Unicode: {shown(value)}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ConfigError(f"{source}: {key} is a number beyond 64 bits")
    elif value is not None and not isinstance(value, _PLAIN):
        raise ConfigError(f"{source}: {key} is {shown(value)}, a {type(value).__name__}; no key of a recipe holds one")


def _table(slot: Any, kind: Any, default: Any) -> type[Config] | None:
    """The model of the table in a slot: the kind given, else the default's, else the only one."""
    tables = variants(slot)
    if kind is None and isinstance(default, Config):
        return type(default)
    if len(tables) == 1:
        return next(iter(tables.values()))
    return tables.get(kind) if isinstance(kind, str) else None


def lay(model: type[Config] | None, under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The table `over` laid over `under`; `model` is what the table below is."""
    laid = dict(under)
    for word, value in over.items():
        below = laid.get(word)
        if not (isinstance(value, Mapping) and value and isinstance(below, Mapping)):
            laid[word] = value
            continue
        field = None if model is None else model.model_fields.get(word)
        if field is None:
            laid[word] = lay(None, below, value)
            continue
        values = free_values(field.annotation)
        if values is not None:
            laid[word] = _lay_free(values, below, value)
        else:
            laid[word] = _lay_slot(field.annotation, field.default, below, value)
    return laid


def _lay_slot(slot: Any, default: Any, below: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    table = _table(slot, value.get("kind", below.get("kind")), default)
    if table is not None and "kind" in value:
        below = {word: kept for word, kept in below.items() if word in table.model_fields}
    return lay(table, below, value)


def _lay_free(slot: Any, under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    laid = dict(under)
    for word, value in over.items():
        both = isinstance(value, Mapping) and value and isinstance(laid.get(word), Mapping)
        laid[word] = _lay_slot(slot, None, laid[word], value) if both else value
    return laid


def filled(model: type[Config], given: Mapping[str, Any], base: Config | None = None) -> dict[str, Any]:
    """The table with the defaults of `base` under it, at every depth.

    pydantic gives a table that is written in part the defaults of its class; here it keeps those of the place it stands
    in: `[prior.train] steps = 400` keeps the prior's learning rate, `[prior.parameterization.table]` alone is of
    the default kind. Text `none` unsets a key that can be unset, as TOML has no word for it.
    """
    under = {} if base is None else base.model_dump(mode="json")
    result = {**under, **given}
    for word, value in given.items():
        field = model.model_fields.get(word)
        if field is None:
            continue
        values = free_values(field.annotation)
        if value == "none" and _unsets(field.annotation):
            result[word] = None
        elif isinstance(value, Mapping) and values is not None:
            result[word] = {key: _filled_slot(values, None, _named(values, key, v)) for key, v in value.items()}
        else:
            result[word] = _filled_slot(field.annotation, default_of(field, word, base), value)
    return result


def _named(slot: Any, key: str, value: Any) -> Any:
    """A table that does not say its kind and is called as one is of that kind: `conditions.class` is a class."""
    if isinstance(value, Mapping) and "kind" not in value and key in variants(slot):
        return {"kind": key, **value}
    return value


def _unsets(slot: Any) -> bool:
    words = [a for m in members(slot) if get_origin(m) is Literal for a in get_args(m)]
    return optional(slot) and "none" not in words


def _filled_slot(slot: Any, default: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    table = _table(slot, kind, default)
    if table is None:
        return value
    same = isinstance(default, table) and kind in (None, tag(table) or kind)
    return filled(table, value, default if same else None)
