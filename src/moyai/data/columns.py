"""Which columns of a table are used, as what, and the values they hold.

    text, caption, prompt   -> field "caption", text
    class, label            -> field "class"
    mask_file_name          -> the mask of a picture, a file
    any other of numbers    -> a field of its own name; "position" lies in 0..1

`data.columns` says it otherwise. A column that is none of these is left out, and said to be. A cell that a used column
needs and that is empty or no number makes its picture one that cannot be used; what it lacks is its reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moyai.data.config import FolderConfig
from moyai.data.tables import Table, empty, first_cells, number, relative
from moyai.errors import DataError, choices

CAPTIONS = ("text", "caption", "prompt")
CLASSES = ("class", "label")
MASK = "mask_file_name"
UNSAID = ("nan", "NaN")  # as programs write a class that is missing
RESERVED = ("masked", "low_resolution")  # what a prior is told of the picture itself goes by these names


@dataclass
class Values:
    """What a table tells, each by the name of the picture, and by name what is wrong with a picture's row."""

    captions: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    classes: tuple[str, ...] = ()
    masks: dict[str, str] | None = None  # names of files, relative to the root
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)


def chosen(table: Table, config: FolderConfig, where: str) -> tuple[dict[str, str], list[str]]:
    """The field of each column that is used, and notes about the others."""
    fields, notes = _asked(table, config.columns, where) if config.columns is not None else _found(table, config)
    for wanted in dict.fromkeys(fields.values()):
        columns = [column for column, name in fields.items() if name == wanted]
        if len(columns) > 1:
            raise DataError(
                f"{where}: columns {' and '.join(columns)} are both {wanted}: choose with data.columns, such as "
                f'{{{columns[0]}="{wanted}"}}'
            )
    for name, key, value in (("caption", "captions", config.captions), ("mask", "masks", config.masks)):
        if name in fields.values() and value not in ("found", "table"):
            raise DataError(f"data.columns has a column as {name}, and data.{key} is {value!r}: leave one of them out")
    return fields, notes


def _asked(table: Table, asked: Mapping[str, str], where: str) -> tuple[dict[str, str], list[str]]:
    for column, name in asked.items():
        if column not in table.columns:
            raise DataError(f"{where} has no column {column!r}, as data.columns says: {choices(column, table.columns)}")
        if name in RESERVED or not name:
            raise DataError(f"data.columns.{column} is {name!r}, which no column can be; possible: another name")
    rest = [column for column in table.columns if column not in asked]
    return dict(asked), [f"columns left out by data.columns: {', '.join(rest)}"] if rest else []


def _found(table: Table, config: FolderConfig) -> tuple[dict[str, str], list[str]]:
    fields: dict[str, str] = {}
    notes: list[str] = []
    for column in table.columns:
        name = column.lower()
        if name in CAPTIONS and config.captions in ("found", "table"):
            fields[column] = "caption"
        elif name in CLASSES and config.classes != "none":
            fields[column] = "class"
        elif name == MASK and config.masks == "found":
            fields[column] = "mask"
        elif name in (*CAPTIONS, *CLASSES, MASK):
            notes.append(f"column {column} of {table.name}: not used, as data.captions, .classes or .masks say")
        elif name in (*RESERVED, "mask") or not _numeric(table, column):
            cells = [cell for _, _, cell in table.cells(column)]
            notes.append(
                f"column {column} of {table.name}: neither caption, class nor numbers "
                f"({first_cells(cells) or 'empty'}), left out; data.columns can say what it is"
            )
        else:
            fields[column] = "position" if name == "position" else column
    return fields, notes


def _numeric(table: Table, column: str) -> bool:
    """Whether a column is meant to hold numbers: half of what it holds are, so that a slip is seen as one."""
    cells = [cell for _, _, cell in table.cells(column) if not empty(cell)]
    return bool(cells) and 2 * sum(number(cell) is not None for cell in cells) >= len(cells)


def values(table: Table, fields: Mapping[str, str], where: str) -> Values:
    """The values of the columns that are used."""
    told = Values()
    for column, name in fields.items():
        if name == "caption":
            told.captions = _read(table, column, told.unfit, _caption)
        elif name == "class":
            told.labels, told.classes = _classes(table, column, told.unfit, where)
        elif name == "mask":
            told.masks = _masks(table, column, told.unfit, where)
        else:
            told.numbers[name] = _numbers(table, column, name, told.unfit, where)
    return told


def _read(table: Table, column: str, unfit: dict[str, str], meaning: Callable[[Any], Any]) -> dict[str, Any]:
    """The meaning of each cell; where it raises ValueError, its message is what is wrong with the picture."""
    found = {}
    for picture, line, cell in table.cells(column):
        try:
            found[picture] = meaning(cell)
        except ValueError as error:
            shown = "is empty" if empty(cell) else f"is {first_cells([cell])}, {error}"
            unfit.setdefault(picture, f"{table.name}, line {line}: {column} {shown}")
    return found


def _caption(cell: Any) -> str:
    if isinstance(cell, list | dict):
        raise ValueError("not one text")
    return "" if empty(cell) else str(cell).strip()


def _number(cell: Any) -> float:
    value = number(cell)
    if value is None:
        raise ValueError("no finite number (data.columns says which columns are used)")
    return value


def _name(cell: Any) -> str:
    if empty(cell) or isinstance(cell, list | dict) or str(cell).strip() in UNSAID:
        raise ValueError("no class")
    return str(cell).strip()


def _file(cell: Any) -> str:
    if empty(cell) or not isinstance(cell, str):
        raise ValueError("no file")
    return cell


def _numbers(table: Table, column: str, name: str, unfit: dict[str, str], where: str) -> dict[str, float]:
    if not _numeric(table, column):
        cells = [cell for _, _, cell in table.cells(column)]
        raise DataError(
            f"{where}: column {column} is to be the number {name!r}, but holds {first_cells(cells) or 'nothing'}"
        )
    found: dict[str, float] = _read(table, column, unfit, _number)
    low, high = min(found.values()), max(found.values())
    if name == "position" and not 0 <= low <= high <= 1:
        raise DataError(
            f"{where}: column {column} has values from {low:g} to {high:g}, and a position lies in 0..1: divide them, "
            f'or give the column as another field, such as data.columns={{{column}="place"}}'
        )
    return found


def _classes(table: Table, column: str, unfit: dict[str, str], where: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The name of each picture's class, and all names in order; whole numbers by size."""
    names: dict[str, str] = _read(table, column, unfit, _name)
    numbers = {name: number(name) for name in names.values() if name.lower() not in ("true", "false")}
    if len(numbers) < len(set(names.values())) or None in numbers.values():
        return names, tuple(sorted(set(names.values())))
    whole = {name: int(value) for name, value in numbers.items() if value is not None and value.is_integer()}
    broken = [name for name in numbers if name not in whole]
    if broken:
        raise DataError(
            f"{where}: column {column} has the class {broken[0]}, which is no whole number; for a number as such, give "
            f'it as another field, such as data.columns={{{column}="value"}}'
        )
    ordered = tuple(str(value) for value in sorted(set(whole.values())))
    return {picture: str(whole[name]) for picture, name in names.items()}, ordered  # pandas writes 1.0 for 1


def _masks(table: Table, column: str, unfit: dict[str, str], where: str) -> dict[str, str]:
    folder = table.name.rpartition("/")[0]
    given: dict[str, str] = _read(table, column, unfit, _file)
    found = {}
    for picture, words in given.items():
        name = relative(words, f"{where}, line {table.rows[picture][0]}: {column}")
        found[picture] = f"{folder}/{name}" if folder else name
    return found
