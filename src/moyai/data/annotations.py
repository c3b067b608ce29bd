"""What is known of each picture of a folder: class, caption, numbers, mask.

    sub-folders                     class             (the column decides where a table has one)
    cat.txt, cat.caption of cat.png caption: captions.py
    metadata.csv, metadata.jsonl    caption, class, numbers, names of masks: tables.py, columns.py
    cat_mask.png, masks/cat.png     mask: masks.py

`look` finds all this and matches it by name, before a picture is opened; `told` puts it into the set in the pictures'
order. A picture that lacks what others have (a row, a number, a mask) is treated as one that cannot be read.

Every file that tells something is a row of the fingerprint beside the pictures.
"""

import hashlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from moyai.data import captions, columns, masks, tables
from moyai.data.config import FolderConfig
from moyai.data.decode import MAX_BYTES, UnreadablePicture
from moyai.data.images import BadFile, ImageSet, SourceFile
from moyai.data.listing import Entry, Listing, contents, some, suffix, unreadable
from moyai.errors import DataError, choices

FOUND = ("metadata.csv", "metadata.tsv", "metadata.jsonl")


@dataclass(frozen=True)
class Known:
    """What is said of the pictures, by their names, before any is read.

    pictures: without masks; those that lack something are among the bad. labels: None where no table has classes.
    captions: the text, or the file that holds it. told: which fields there are and whence, for the fingerprint.
    """

    pictures: Listing
    classes: tuple[str, ...]
    labels: Mapping[str, str] | None
    captions: Mapping[str, str | Entry] | None
    numbers: Mapping[str, Mapping[str, float]]
    masks: Mapping[str, Entry] | None
    files: tuple[SourceFile, ...]
    notes: tuple[str, ...]
    told: str


def look(listed: Listing, config: FolderConfig, root: Path) -> Known:
    """What lies in a folder or .zip besides its pictures. Raises DataError for what is wrong with it as a whole."""
    entry = _table_file(listed, config, root)
    values, notes, told, files = columns.Values(), list[str](), list[str](), tuple[SourceFile, ...]()
    if entry is not None:
        values, notes, told, files = _table(entry, listed, config, root)
    elif config.columns is not None:
        raise DataError(f"{root}: data.columns is given, but there is no table, such as metadata.csv (data.table)")
    everything = {one.name: one for one in (*listed.entries, *map(unreadable, listed.bad))}
    pairs, unused = _masks(everything, values, config, root)
    taken = {*pairs.values(), *unused}
    pictures = [name for name in everything if name not in taken]
    told_by, used = captions.find(listed.texts, pictures, values.captions, config, root)
    for name in pictures:
        if pairs and name not in pairs:
            example, mask = next(iter(pairs.items()))
            values.unfit.setdefault(name, f'it has no mask, as {example} has {mask} (data.masks="none" uses none)')
    left = Listing(
        tuple(one for one in listed.entries if one.name not in taken),
        tuple(one for one in listed.bad if one.name not in taken),
        listed.others - used - (entry is not None and entry in listed.texts),
    )
    where = [*told, *(["caption from files"] if used else []), *(["mask from files"] if pairs else [])]
    return Known(
        pictures=without(left, values.unfit),
        classes=values.classes,
        labels=values.labels,
        captions=told_by,
        numbers=values.numbers,
        masks={picture: everything[mask] for picture, mask in pairs.items()} if pairs else None,
        files=files,
        notes=(*notes, *_doubts(pictures, unused, values)),
        told=", ".join(where),
    )


def without(listed: Listing, unfit: Mapping[str, str]) -> Listing:
    """The listing with some pictures among the bad, and why."""
    if not unfit:
        return listed
    lacking = [BadFile(one.name, unfit[one.name]) for one in listed.entries if one.name in unfit]
    entries = tuple(one for one in listed.entries if one.name not in unfit)
    bad = sorted((*listed.bad, *lacking), key=lambda file: file.name)
    return Listing(entries, tuple(bad), listed.others, listed.texts)


def told(images: ImageSet, known: Known, said: captions.Captions) -> ImageSet:
    """The set with all that is known of its pictures, masks and classes by folder left aside."""
    fields = dict(images.fields)
    notes = [*images.notes, *known.notes]
    for field, values in known.numbers.items():
        fields[field] = np.array([values[name] for name in images.names], dtype=np.float32)
    if known.labels is not None:
        number = {name: i for i, name in enumerate(known.classes)}
        fields["class"] = np.array([number[known.labels[name]] for name in images.names], dtype=np.int64)
    if known.captions is not None:
        texts = [said.texts.get(name, "") for name in images.names]
        notes += captions.notes(images.names, texts)
        if any(texts):
            fields["caption"] = np.array(texts, dtype=object)  # "U" would make every row as long as the longest
    return replace(
        images,
        fields=fields,
        classes=known.classes if known.labels is not None else images.classes,
        files=(*images.files, *known.files, *said.files),
        notes=tuple(notes),
        decoding=f"{images.decoding}; told {known.told}" if known.told else images.decoding,
    )


def _table_file(listed: Listing, config: FolderConfig, root: Path) -> Entry | None:
    """The table there is, by its well-known name or as the recipe names it."""
    if config.table == "none":
        return None
    if config.table == "found":
        found = [one for one in listed.texts if one.name.rpartition("/")[2].lower() in FOUND]
        if len(found) > 1:
            raise DataError(
                f"{root} has {len(found)} tables ({', '.join(one.name for one in found[:3])}): say which one by "
                'data.table ("none" for none), or give data.root the folder of one'
            )
        return found[0] if found else None
    named = {one.name: one for one in listed.texts if suffix(one.name) in tables.KINDS}
    inside = str(PurePosixPath(config.table))
    if inside in named:
        return named[inside]
    path = Path(config.table).expanduser()
    if suffix(path.name) not in tables.KINDS or not path.is_file():
        raise DataError(
            f"data.table is {config.table!r}, which is no {', '.join(tables.KINDS)} file in {root} or elsewhere: "
            f"{choices(inside, named)}"
        )
    size = path.stat().st_size
    if size > MAX_BYTES or not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path} has {size / 2**20:.0f} MiB; a table has at most {MAX_BYTES // 2**20}")
    return Entry(path.name, size, path.read_bytes)


def _table(
    entry: Entry, listed: Listing, config: FolderConfig, root: Path
) -> tuple[columns.Values, list[str], list[str], tuple[SourceFile, ...]]:
    """What the table tells, notes about it, which field is whence, and its row of the fingerprint."""
    where = f"{root}: {entry.name}"
    try:
        data = contents(entry)
    except UnreadablePicture as error:
        raise DataError(f"{where} {error}") from error
    names = [*(one.name for one in listed.entries), *(one.name for one in listed.bad)]
    table = tables.read(entry, data, names, root)
    fields, notes = columns.chosen(table, config, where)
    values = columns.values(table, fields, where)
    if fields:
        for name in names:
            if name not in table.rows:
                values.unfit.setdefault(name, f"no row in {entry.name} is of this picture")
    file = SourceFile(entry.name, len(data), hashlib.sha256(data).hexdigest())
    return values, notes, [f"{name} from column {column}" for column, name in sorted(fields.items())], (file,)


def _masks(
    everything: Mapping[str, Entry], values: columns.Values, config: FolderConfig, root: Path
) -> tuple[dict[str, str], list[str]]:
    """Mask by picture, and masks of no picture."""
    if values.masks is not None:
        lost = {picture: mask for picture, mask in values.masks.items() if mask not in everything}
        values.unfit.update({picture: f"its mask {mask} is not there" for picture, mask in lost.items()})
        return {picture: mask for picture, mask in values.masks.items() if picture not in lost}, []
    if config.masks == "none":
        return {}, []
    if config.masks == "found":
        pairs: dict[str, str] = {}
        for mask, picture in masks.beside(everything).items():
            if picture in pairs:
                raise DataError(
                    f"{root}: {pairs[picture]} and {mask} are masks of one picture, {picture}: move one away"
                )
            pairs[picture] = mask
        return pairs, []
    folder = config.masks.strip("/")
    found = [name for name in everything if name.startswith(f"{folder}/")]
    if not found:
        folders = sorted({name.rpartition("/")[0] for name in everything} - {""})
        raise DataError(
            f"{root} has no pictures in a folder {folder!r}, as data.masks says: {choices(folder, folders)}"
        )
    pairs = masks.inside(folder, found, [name for name in everything if not name.startswith(f"{folder}/")])
    return pairs, sorted(set(found) - set(pairs.values()))


def _doubts(pictures: Sequence[str], unused: Sequence[str], values: columns.Values) -> list[str]:
    """What may be meant otherwise."""
    notes = []
    folders = {name.split("/")[0] for name in pictures if "/" in name}
    if unused:
        notes.append(f"{len(unused)} masks of no picture: left out ({some(unused)})")
    if values.labels is not None and len(folders) > 1:
        notes.append("classes are those of the table, not the sub-folders")
    for name in sorted(folders):
        if len(folders) > 1 and name.lower() in ("mask", "masks", "segmentation", "segmentations"):
            notes.append(f'the folder {name} holds pictures like any other; data.masks="{name}" would make them masks')
    return notes
