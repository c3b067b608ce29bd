"""A table that tells of pictures: .csv, .tsv or .jsonl, one row for each picture, named by its column file_name.

The convention is that of Hugging Face's imagefolder: metadata.csv or metadata.jsonl, file names relative to the folder
the table lies in. Commas, semicolons and tabs are told apart by the header: what separates a cell that says file_name.
UTF-8 with or without a byte order mark, any line ends, and back slashes in file names are read.

What cannot be understood is an error and never a guess: a row of too many or too few cells, a picture with two rows, a
file that is not there.
"""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moyai.data.decode import UnreadablePicture
from moyai.data.listing import Entry, suffix
from moyai.errors import DataError, choices

KEY = "file_name"
KINDS = (".csv", ".tsv", ".jsonl")
DELIMITERS = (",", ";", "\t")
FLAGS = {"true": 1.0, "false": 0.0}
_HALF = re.compile("[\ud800-\udfff]")  # JSON can spell one half of a pair that only together is a character
Row = tuple[int, dict[str, Any]]  # the number of its line in the file, and its cells by column


@dataclass(frozen=True)
class Table:
    """The rows of a table by the name of the picture, and its columns in order, file_name left out."""

    name: str
    columns: tuple[str, ...]
    rows: dict[str, Row]

    def cells(self, column: str) -> Iterator[tuple[str, int, Any]]:
        """Picture, line and cell of every row; None where a row of JSON does not have the column."""
        for picture, (line, cells) in self.rows.items():
            yield picture, line, cells.get(column)


def utf8(data: bytes) -> str:
    """The text of a file; UnreadablePicture says what is wrong with it."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise UnreadablePicture(f"not UTF-8 from byte {error.start} on{wide}: save it as UTF-8") from error


def read(entry: Entry, data: bytes, pictures: Iterable[str], root: Path) -> Table:
    """The table in `data`, its rows matched with the names of pictures; DataError for all that is wrong with it."""
    where = f"{root}: {entry.name}"
    try:
        text = utf8(data)
    except UnreadablePicture as error:
        raise DataError(f"{where} is {error}") from error
    rows = list(_json_rows(text, where) if suffix(entry.name) == ".jsonl" else _csv_rows(text, where))
    if not rows:
        raise DataError(f"{where} has no rows; it needs one for each picture")
    columns = tuple(dict.fromkeys(name for _, cells in rows for name in cells if name != KEY))
    folder = entry.name.rpartition("/")[0]
    return Table(entry.name, columns, _matched(rows, folder, list(pictures), where))


def number(cell: Any) -> float | None:
    """A cell as a finite number (true is 1, false 0); None where it is none, or beyond float32."""
    if isinstance(cell, str):
        cell = FLAGS.get(cell.strip().lower(), cell)
    if not isinstance(cell, str | int | float) or (isinstance(cell, str) and "_" in cell):
        return None  # Python would read 1_000, which no other program means as a number
    try:
        value = float(cell)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and abs(value) <= float(np.finfo(np.float32).max) else None


def empty(cell: Any) -> bool:
    """Whether a cell says nothing: blank, null, or the NaN that a table of JSON has where others have a blank."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _csv_rows(text: str, where: str) -> Iterator[Row]:
    delimiter = _delimiter(text, where)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(cells, where)
            elif len(cells) != len(header):
                raise DataError(
                    f"{where}, line {reader.line_num}: {len(cells)} cells, but the header has {len(header)} "
                    f"({', '.join(header)}); text with {delimiter!r} in it needs quotes"
                )
            else:
                yield reader.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if name}
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num}: {error}") from error


def _delimiter(text: str, where: str) -> str:
    first = next((line for line in text.splitlines() if line.strip(",;\t ")), "")
    if not first:
        raise DataError(f"{where} is empty; it needs a header with {KEY} and a row for each picture")
    try:
        headers = {delimiter: next(csv.reader([first], delimiter=delimiter)) for delimiter in DELIMITERS}
    except csv.Error as error:
        raise DataError(f"{where} has no header with {KEY} in its first line: {error}") from error
    fitting = [delimiter for delimiter, cells in headers.items() if KEY in map(_plain, cells)]
    if fitting:
        return fitting[0]
    names = [name.strip() for name in max(headers.values(), key=len)]
    raise DataError(
        f"{where} has no column {KEY}, by which a row is matched with its picture: {choices(KEY, names)} "
        '(data.table="none" leaves the table alone)'
    )


def _plain(name: str) -> str:
    return KEY if name.strip().lower() == KEY else name.strip()


def _header(cells: list[str], where: str) -> list[str]:
    """Names of columns; a column without one, as pandas writes its row numbers, is left out."""
    names = [_plain(cell) for cell in cells]
    twice = [name for i, name in enumerate(names) if name and name in names[:i]]
    if twice:
        raise DataError(f"{where} has two columns {twice[0]!r}: rename one")
    return names


def _json_rows(text: str, where: str) -> Iterator[Row]:
    for line, words in enumerate(io.StringIO(text, newline=None), 1):
        if not words.strip():
            continue
        try:
            cells = json.loads(words)
            half = _HALF.search(json.dumps(cells, ensure_ascii=False)) if "\\u" in words else None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}, line {line}: no JSON ({error})") from error
        if not isinstance(cells, dict):
            raise DataError(f'{where}, line {line}: each line is an object such as {{"{KEY}": "a.png", "age": 3}}')
        if not isinstance(cells.get(KEY), str):
            raise DataError(f"{where}, line {line} has no {KEY}, by which it is matched: {choices(KEY, cells)}")
        if half:
            raise DataError(f"{where}, line {line} has {half[0]!r}, half of a character, which no file can hold")
        yield line, cells


def _matched(rows: list[Row], folder: str, pictures: list[str], where: str) -> dict[str, Row]:
    """Rows by the picture's name. A letter with an accent may be written as one character or as two."""
    there = {unicodedata.normalize("NFC", name): name for name in pictures} | {name: name for name in pictures}
    matched: dict[str, Row] = {}
    unknown: list[str] = []
    for line, cells in rows:
        given = relative(str(cells[KEY]), f"{where}, line {line}: {KEY}")
        wanted = f"{folder}/{given}" if folder else given
        picture = there.get(wanted) or there.get(unicodedata.normalize("NFC", wanted))
        if picture is None:
            unknown.append(f"{given} (line {line})")
        elif picture in matched:
            raise DataError(f"{where} has two rows for {given}: lines {matched[picture][0]} and {line}")
        else:
            matched[picture] = line, cells
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        beside = [name.removeprefix(f"{folder}/") for name in pictures if not folder or name.startswith(f"{folder}/")]
        example = f", such as {beside[0]}" if beside else ""
        raise DataError(
            f"{where}: {len(unknown)} of {len(rows)} rows are of pictures that are not there: "
            f"{', '.join(unknown[:3])}{more}; names are relative to the folder of the table{example}"
        )
    return matched


def relative(given: str, where: str) -> str:
    """A file name with forward slashes, which stays inside the folder; DataError otherwise."""
    parts = [part for part in given.strip().replace("\\", "/").split("/") if part != "."]
    if parts in ([], [""]):
        raise DataError(f"{where} is empty")
    if ".." in parts or parts[0] == "" or parts[0][1:] == ":":
        raise DataError(f"{where} {given.strip()!r} leads outside the folder: give a relative name")
    return "/".join(parts)


def first_cells(cells: Iterable[Any]) -> str:
    """A few different cells, for a message."""
    shown = list(dict.fromkeys(_shown(cell) for cell in cells if not empty(cell)))
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")


def _shown(cell: Any) -> str:
    words = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    words = " ".join(words.split())
    return repr(words if len(words) <= 40 else f"{words[:37]}...")
