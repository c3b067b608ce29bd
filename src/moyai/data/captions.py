"""Captions: a text file beside each picture, or a column of the table.

cat.txt or cat.caption is the caption of cat.png, cat.jpg and so on; white space around it is no part of it. A picture
without a caption stays, and its caption is empty: nothing is told of it. A file that is no text in UTF-8 makes its
picture one that cannot be used.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moyai.data.config import FolderConfig
from moyai.data.decode import UnreadablePicture
from moyai.data.images import SourceFile
from moyai.data.listing import Entry, contents, in_order, some, stem, suffix
from moyai.data.tables import utf8
from moyai.errors import DataError

MAX_BYTES = 2**20  # of a caption's file
LONG = 1000  # characters of a caption above which there is a note


@dataclass(frozen=True)
class Captions:
    """The captions that were read, by picture; the files they were in; what is wrong with a file, by picture."""

    texts: Mapping[str, str]
    files: tuple[SourceFile, ...]
    unfit: Mapping[str, str]


def find(
    texts: Sequence[Entry], pictures: Sequence[str], column: Mapping[str, str] | None, config: FolderConfig, root: Path
) -> tuple[Mapping[str, str | Entry] | None, int]:
    """Captions by picture, and in how many of the files `texts` they lie; column: those of the table, if it has any.

    Raises DataError where they lie in both and data.captions does not say which, or not where it says.
    """
    if config.captions == "none":
        return None, 0
    if config.captions == "table":
        if column is None:
            raise DataError(f'{root}: data.captions is "table", but no table has a column text, caption or prompt')
        return column, 0
    files: dict[str, Entry] = {}
    for one in texts:
        if suffix(one.name) not in (".txt", ".caption"):
            continue
        if (other := files.setdefault(stem(one.name), one)) is not one:
            raise DataError(f"{root}: {other.name} and {one.name} are captions of one picture: move one away")
    found: dict[str, str | Entry] = {}
    for name in pictures:
        if stem(name) in files:
            found[name] = files[stem(name)]
    if found and column is not None:
        raise DataError(
            f"{root}: captions lie in files ({files[stem(next(iter(found)))].name}) and in a column of the table: say "
            'which by data.captions; possible: "files", "table", "none"'
        )
    if not found and config.captions == "files":
        raise DataError(f'{root}: data.captions is "files", but no picture has one, such as cat.txt beside cat.png')
    return found or column, len({one.name for one in found.values() if isinstance(one, Entry)})


def read(pictures: Sequence[Entry], captions: Mapping[str, str | Entry] | None) -> Captions:
    """The captions of some pictures; a picture without one has none in the answer."""
    given = {} if captions is None else captions
    texts = {one.name: said for one in pictures if isinstance(said := given.get(one.name), str)}
    jobs = [(one.name, said) for one in pictures if isinstance(said := given.get(one.name), Entry)]
    unfit: dict[str, str] = {}
    files: dict[str, SourceFile] = {}  # by name: pictures may share one
    for (name, entry), result in in_order(lambda job: _caption(job[1]), jobs):
        if isinstance(result, str):
            unfit[name] = f"its caption {entry.name}: {result}"
        else:
            texts[name], files[entry.name] = result
    return Captions(texts, tuple(files.values()), unfit)


def _caption(entry: Entry) -> tuple[str, SourceFile] | str:
    """The text in a caption's file and its row of the fingerprint, or why there is none."""
    if entry.size > MAX_BYTES:
        return f"{entry.size / 2**20:.1f} MiB; at most {MAX_BYTES // 2**20}"
    try:
        data = contents(entry)
        return utf8(data).strip(), SourceFile(entry.name, len(data), hashlib.sha256(data).hexdigest())
    except UnreadablePicture as error:
        return str(error)


def notes(names: Sequence[str], texts: Sequence[str]) -> list[str]:
    """What a person may want to know of the captions of a set."""
    none = [name for name, text in zip(names, texts, strict=True) if not text]
    long = [name for name, text in zip(names, texts, strict=True) if len(text) > LONG]
    found = []
    if none:
        found.append(f"{_count(none)} without a caption, or with an empty one: nothing is told of it ({some(none)})")
    if long:
        found.append(f"{_count(long)} with a caption of more than {LONG} characters ({some(long)})")
    return found


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} picture{'' if len(names) == 1 else 's'}"
