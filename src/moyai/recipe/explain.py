"""A configuration in words: what a key may hold, what is wrong with a value, and the help page of every key.

Everything here is read from the pydantic models themselves, so the help, the messages and the checks cannot disagree.
A *slot* is the annotation of a key. It may hold a table (a `Config`, or a choice between several told apart by
`kind`), a table with free names (`dict`), or a plain value.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from moyai.errors import choices, nearest
from moyai.schema import Config

_PLAIN = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "Path": "a path"}
_SIGNS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
_SHOWN = 60  # characters of a value that a message repeats


class Key(NamedTuple):
    """A line of the help: `when` says for which kind the key exists, "" for all."""

    key: str
    when: str
    type: str
    default: str
    description: str


class Mistake(NamedTuple):
    """One thing wrong with a configuration: where, and the line that says so."""

    key: str
    line: str


# --- slots ---------------------------------------------------------------------------------------------------------


def members(slot: Any) -> list[Any]:
    """The alternatives of an annotation, unions flattened; each alternative keeps its own constraints."""
    if get_origin(slot) is Annotated and get_origin(get_args(slot)[0]) in (Union, types.UnionType):
        return members(get_args(slot)[0])
    if get_origin(slot) in (Union, types.UnionType):
        return [m for part in get_args(slot) for m in members(part)]
    return [slot]


def _bare(slot: Any) -> Any:
    return get_args(slot)[0] if get_origin(slot) is Annotated else slot


def optional(slot: Any) -> bool:
    """Whether `none` may stand in the slot."""
    return type(None) in members(slot)


def tag(model: type[Config]) -> str:
    """The kind that tells a table from the others it is chosen among; "" where `kind` (if any) is a key like others."""
    field = model.model_fields.get("kind")
    words = () if field is None else get_args(field.annotation)
    return str(words[0]) if len(words) == 1 else ""


def variants(slot: Any) -> dict[str, type[Config]]:
    """The tables a slot may hold, by kind; a table without a kind has the name ""."""
    found: dict[str, type[Config]] = {}
    for member in map(_bare, members(slot)):
        if isinstance(member, type) and issubclass(member, Config):
            found[tag(member)] = member
    return found


def free_values(slot: Any) -> Any | None:
    """What the names of a table with free names hold; None where the slot is none."""
    for member in map(_bare, members(slot)):
        if get_origin(member) is dict:
            return get_args(member)[1]
    return None


def default_of(field: FieldInfo, name: str, base: Config | None) -> Any:
    """A key's default; a table's default instance goes before the defaults of its class."""
    return field.get_default(call_default_factory=True) if base is None else getattr(base, name)


# --- words ---------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as a message repeats it: short, on one line, text in double quotes."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = '"' + repr(value)[1:-1] + '"'
    elif isinstance(value, Config):
        text = shown(value.model_dump(mode="json"))
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{name(str(k))} = {shown(v)}" for k, v in list(value.items())[:_SHOWN]) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(map(shown, value[:_SHOWN])) + "]"
    else:
        text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 4] + " ..."


def name(key: str) -> str:
    """A key as it is written: bare where TOML allows it, else quoted."""
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare and len(key) <= _SHOWN else shown(key)


def _bounds(metadata: Sequence[Any]) -> str:
    flat = [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = ((sign, getattr(m, word, None)) for word, sign in _SIGNS for m in flat)
    return " and ".join(f"{sign} {value}" for sign, value in found if value is not None)


def in_words(slot: Any, metadata: Sequence[Any] = ()) -> str:
    """What a slot may hold: `a number > 0 or none`."""
    parts: list[str] = []
    for member in members(slot):
        bare = _bare(member)
        bounds = _bounds([*metadata, *getattr(member, "__metadata__", ())])
        arguments = get_args(bare)
        if bare is type(None):
            parts.append("none")
        elif get_origin(bare) is Literal:
            parts.extend(shown(a) for a in arguments)
        elif get_origin(bare) is tuple and arguments[1:] == (...,):
            parts.append(f"a list, each {in_words(arguments[0])}")
        elif get_origin(bare) is tuple:
            parts.append(f"a list of {len(arguments)}, each {in_words(arguments[0])}")
        elif get_origin(bare) is dict or (isinstance(bare, type) and issubclass(bare, Config)):
            parts.append("a table")
        else:
            word = _PLAIN.get(getattr(bare, "__name__", ""), str(bare))
            parts.append(f"{word} {bounds}".strip())
    parts = sorted(dict.fromkeys(parts), key=lambda part: part.startswith("a list"))  # what comes last reads on
    return " or ".join(parts) if len(parts) <= 2 else f"{', '.join(parts[:-1])} or {parts[-1]}"


# --- help ----------------------------------------------------------------------------------------------------------


def first_line(model: type[Config]) -> str:
    """The first sentence or line of a model's own docstring."""
    text = " ".join((model.__dict__.get("__doc__") or "").split("\n\n")[0].split())
    return text.rstrip(".")


def keys(model: type[Config], base: Config | None = None, prefix: str = "", when: str = "") -> Iterator[Key]:
    """Every key of a model and of the tables below it, with its type, default and description."""
    for field_name, field in model.model_fields.items():
        if field_name == "kind" and tag(model):
            continue  # said once for the choice, by `_tables`
        key = f"{prefix}{field_name}"
        missing = base is None and field.is_required()
        default = None if missing else default_of(field, field_name, base)
        tables = variants(field.annotation)
        if not tables or default is None:
            words = in_words(field.annotation, field.metadata)
            yield Key(key, when, words, "required" if missing else shown(default), field.description or "")
        values = free_values(field.annotation)
        if tables or variants(values):
            slot, below = (field.annotation, key) if tables else (values, f"{key}.<name>")
            yield from _tables(slot, default if tables else None, below, when)


def _tables(slot: Any, default: Any, key: str, when: str) -> Iterator[Key]:
    tables = variants(slot)
    if "" not in tables:
        about = "; ".join(f"{kind}: {first_line(model)}" for kind, model in tables.items())
        usual = getattr(default, "kind", next(iter(tables)) if len(tables) == 1 else None)
        words = " or ".join(map(shown, tables))
        yield Key(f"{key}.kind", when, words, "required" if usual is None else shown(usual), about)
    found: dict[Key, list[str]] = {}
    for kind, model in tables.items():
        for line in keys(model, default if isinstance(default, model) else None, f"{key}."):
            found.setdefault(line, []).append(kind)
    for line, kinds in found.items():
        own = "" if len(kinds) == len(tables) else f"{key}.kind = {' or '.join(map(shown, kinds))}"
        yield line._replace(when=", ".join(filter(None, (when, own, line.when))))


# --- mistakes ------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where an error of pydantic is, in the words of the recipe."""

    key: str
    slot: Any
    metadata: Sequence[Any]
    table: type[Config] | None  # the table whose key this is
    siblings: Mapping[str, type[Config]]  # that table's other kinds
    value: Any


def _place(model: type[Config], loc: Sequence[str | int], given: Any) -> _Place:
    """Walk the model along pydantic's location, which names a chosen kind and an alternative as if they were keys."""
    key, value = "", given
    slot: Any = model
    metadata: Sequence[Any] = ()
    table: type[Config] | None = None
    siblings: Mapping[str, type[Config]] = {}
    tagged: type[Config] | None = model
    for part in loc:
        tables = variants(slot)
        values = free_values(slot)
        if len(tables) > 1 and tagged is None:
            tagged = tables.get(str(part))
            continue
        here = tagged or (next(iter(tables.values())) if tables else None)
        if here is not None:
            table, siblings, tagged = here, tables, None
            field = here.model_fields.get(str(part))
            slot, metadata = (Any, ()) if field is None else (field.annotation, tuple(field.metadata))
        elif values is not None:
            slot, metadata = values, ()
        elif isinstance(part, int) and len(members(slot)) <= 1 + optional(slot):
            item = next(_bare(m) for m in members(slot) if m is not type(None))
            slot, metadata = get_args(item)[0], ()
        else:
            break  # an alternative of a plain union: the whole value is what is wrong
        value = _inside(value, part)
        key = f"{key}[{part}]" if isinstance(part, int) else f"{key}.{name(part)}" if key else name(part)
    return _Place(key, slot, metadata, table, siblings, value)


def _inside(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(str(part))
    return value[part] if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value) else None


def _unknown(root: type[Config], place: _Place, word: str) -> str:
    kinds = [kind for kind, other in place.siblings.items() if word in other.model_fields]
    if kinds:
        mine = place.table.model_fields["kind"].default if place.table else ""
        owners = " and ".join(map(shown, kinds))
        return f"{place.key} is not a key of kind {shown(mine)}, only of {owners}"
    possible = list(place.table.model_fields) if place.table else []
    if not nearest(word, possible):
        elsewhere = list(dict.fromkeys(k.key for k in keys(root) if k.key.split(".")[-1] == word))
        if elsewhere and word != "kind":
            return f"{place.key} is unknown; did you mean {' or '.join(elsewhere[:3])}?"
    return f"{place.key} is unknown; {choices(word, possible)}"


def mistakes(root: type[Config], error: ValidationError, given: Mapping[str, Any]) -> list[Mistake]:
    """What pydantic found, one line for each key: the key, what was given and what is possible."""
    found: dict[str, str] = {}
    for item in error.errors(include_url=False, include_context=False):
        kind, loc = item["type"], item["loc"]
        if kind == "missing" and loc and isinstance(loc[-1], int):
            kind, loc = "too_short", loc[:-1]  # a list that ends too early is a list of the wrong length
        place = _place(root, loc, given)
        if kind == "extra_forbidden":
            line = _unknown(root, place, str(loc[-1]))
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            tag = place.value.get("kind") if isinstance(place.value, Mapping) else None
            state = "is missing" if kind == "union_tag_not_found" else f"is {shown(tag)}"
            line = f"{place.key}.kind {state}; possible: {', '.join(variants(place.slot))}"
        elif kind == "missing":
            line = f"{place.key} is missing; it must be {in_words(place.slot, place.metadata)}"
        elif kind == "value_error":
            line = f"{place.key} is {shown(place.value)}; {item['msg'].removeprefix('Value error, ')}"
        elif kind == "literal_error":
            options = [str(a) for m in map(_bare, members(place.slot)) for a in get_args(m)]
            line = f"{place.key} is {shown(place.value)}; possible: {', '.join(options)}"
        else:
            line = f"{place.key} is {shown(place.value)}; it must be {in_words(place.slot, place.metadata)}"
        found.setdefault(place.key, line)
    return [Mistake(key, line) for key, line in found.items()]
