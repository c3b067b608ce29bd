"""Brain slices in the OASIS PNG layout: case and position are in the name of each file.

    keras_png_slices_train | keras_png_slices_validate | keras_png_slices_test / case_XXX_slice_N.nii.png
    keras_png_slices_seg_train | ... / seg_XXX_slice_N.nii.png

The layout is a folder or a .zip, perhaps inside another folder. The position of slice N is N / L on [0, 1], with L the
greatest slice number of the whole layout, so that it does not depend on which folders are used or on a limit. Values
are kept as they are stored: no window, no stretching.

Neighbouring slices of one head are nearly the same picture, so what is held out is whole cases, those of another
folder, or for tuning a third of the training cases (by the hash of the case number). A case in two folders is refused,
also where one of these is not used. Segmentation masks are counted and compared with the slices, and not read.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moyai.data import folder
from moyai.data.config import FolderConfig, OasisConfig
from moyai.data.decode import quiet
from moyai.data.images import ImageSet, Progress, spread
from moyai.data.listing import Entry, Listing, listing
from moyai.data.locate import find_root
from moyai.errors import DataError

PARTS = ("train", "validate", "test")
PREFIX = "keras_png_slices_"
FOLDER = re.compile(rf"{PREFIX}(seg_)?({'|'.join(PARTS)})")
NAMED = {
    "": re.compile(r"case_(\d+)_slice_(\d+)(\.nii)?\.png"),
    "seg_": re.compile(r"seg_(\d+)_slice_(\d+)(\.nii)?\.png"),
}
EXPECTED = {"": "case_XXX_slice_N.nii.png", "seg_": "seg_XXX_slice_N.nii.png"}


@dataclass(frozen=True)
class Slice:
    """A file of the layout and what its name says."""

    entry: Entry
    part: str  # of PARTS
    case: int
    number: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.part, self.case, self.number


@dataclass(frozen=True)
class Layout:
    """Everything found, by (part, case, slice number)."""

    slices: tuple[Slice, ...]
    masks: tuple[Slice, ...]
    misnamed_masks: tuple[str, ...]
    outside: int  # pictures in none of the folders

    @property
    def last(self) -> int:
        """The greatest slice number."""
        return max(one.number for one in self.slices)


def read(config: OasisConfig, cache: Path, progress: Progress | None = None) -> ImageSet:
    """The slices to train on and those held out, with "slice" int64 and "position" float32 in [0, 1] of each.

    Groups are the cases. Raises DataError for a missing folder, a name without case or position, a case in two folders.
    """
    root = find_root(config, needs=f"folders {PREFIX}train and {PREFIX}validate (or a .zip of them)", cache=cache)
    with listing(root) as listed, quiet():
        layout = _layout(listed, root)
        used, outside = _sides(layout, config, root)
        used, outside = _limited(used, outside, config.limit)
        images = _pictures(used, listed, config, root, cache, progress)
    known = {one.entry.name: one for one in used}
    rows = [known[name] for name in images.names]
    numbers = np.array([one.number for one in rows], dtype=np.int64)
    return replace(
        images,
        fields={"slice": numbers, "position": (numbers / max(layout.last, 1)).astype(np.float32)},
        groups=np.array([one.case for one in rows], dtype=np.int64),
        held_out=np.array([one.key in outside for one in rows], dtype=bool),
        notes=(*images.notes, *_notes(layout)),
        decoding=f"{images.decoding}; held out {config.held_out}",
    )


def position_in(name: str, last: int) -> float | None:
    """The position that the name of a slice says, with `last` the greatest slice number of its layout; None where it
    says none up to there."""
    said = NAMED[""].fullmatch(name.rsplit("/", 1)[-1])
    return int(said[2]) / max(last, 1) if said and int(said[2]) <= last else None


def _layout(listed: Listing, root: Path) -> Layout:
    """What the names say, checked. Files that cannot be read are in it too: the names are all that counts here."""
    found: dict[str, list[Slice]] = {"": [], "seg_": []}
    misnamed: dict[str, list[str]] = {"": [], "seg_": []}
    outside = 0
    for entry in listed.entries:
        *above, name = entry.name.split("/")
        place = FOLDER.fullmatch(above[-1]) if above else None
        if place is None:
            outside += 1
            continue
        kind = place[1] or ""
        said = NAMED[kind].fullmatch(name)
        if said:
            found[kind].append(Slice(entry, place[2], int(said[1]), int(said[2])))
        else:
            misnamed[kind].append(entry.name)
    if misnamed[""]:
        raise DataError(
            f"{root}: {len(misnamed[''])} files have no case and position in their names: {_some(misnamed[''])}; "
            f"expected: {EXPECTED['']}"
        )
    if not found[""]:
        raise DataError(f"{root} holds no slices: expected are {PREFIX}train/{EXPECTED['']} and {PREFIX}validate/...")
    _refuse_twice(found[""], root)
    _refuse_shared(found[""], root)
    slices, masks = (tuple(sorted(found[kind], key=_order)) for kind in ("", "seg_"))
    return Layout(slices, masks, tuple(misnamed["seg_"]), outside)


def _order(one: Slice) -> tuple[int, int, int]:
    return PARTS.index(one.part), one.case, one.number


def _refuse_twice(slices: Sequence[Slice], root: Path) -> None:
    first: dict[tuple[str, int, int], str] = {}
    for one in slices:
        if one.key in first:
            raise DataError(f"{root}: {first[one.key]} and {one.entry.name} are the same slice of the same case")
        first[one.key] = one.entry.name


def _refuse_shared(slices: Sequence[Slice], root: Path) -> None:
    homes: dict[int, set[str]] = defaultdict(set)
    for one in slices:
        homes[one.case].add(one.part)
    shared = {case: parts for case, parts in sorted(homes.items()) if len(parts) > 1}
    if shared:
        named = [
            f"case {case:03d} in {' and '.join(PREFIX + part for part in PARTS if part in parts)}"
            for case, parts in shared.items()
        ]
        raise DataError(f"{root}: a case lies in one folder only, or what is held out is known; here: {_some(named)}")


def _sides(layout: Layout, config: OasisConfig, root: Path) -> tuple[list[Slice], set[tuple[str, int, int]]]:
    """The slices that are used, and the keys of those among them that are held out."""
    parts = ("train",) if config.held_out == "tuning" else ("train", config.held_out)
    there = {one.part for one in layout.slices}
    missing = [f"{PREFIX}{part}" for part in parts if part not in there]
    if missing:
        raise DataError(
            f"{root} has no slices in {' and '.join(missing)}, which data.held_out = {config.held_out} needs; it has "
            f"{', '.join(PREFIX + part for part in PARTS if part in there)}"
        )
    used = [one for one in layout.slices if one.part in parts]
    if config.held_out != "tuning":
        return used, {one.key for one in used if one.part == config.held_out}
    cases = sorted({one.case for one in used}, key=lambda case: hashlib.sha256(f"case {case}".encode()).digest())
    chosen = set(cases[: max(1, round(len(cases) / 3))])
    return used, {one.key for one in used if one.case in chosen}


def _limited(
    used: list[Slice], outside: set[tuple[str, int, int]], limit: int | None
) -> tuple[list[Slice], set[tuple[str, int, int]]]:
    """At most `limit` slices, the two sides in proportion and each with one at least."""
    if limit is None or limit >= len(used):
        return used, outside
    few = min(max(1, round(limit * len(outside) / len(used))), limit - 1)
    kept: list[Slice] = []
    for side, count in ((False, limit - few), (True, few)):
        members = [one for one in used if (one.key in outside) == side]
        numbers = np.array([one.number for one in members])
        kept += [members[i] for i in spread([one.entry.name for one in members], numbers, count)]
    kept.sort(key=_order)
    return kept, outside & {one.key for one in kept}


def _pictures(
    used: Sequence[Slice], listed: Listing, config: OasisConfig, root: Path, cache: Path, progress: Progress | None
) -> ImageSet:
    """The pictures decoded as the folder source does it: in parallel, bad files by policy, cached where many."""
    same = ("root", "resolution", "channels", "resize", "bad_files", "max_bad")
    plain = FolderConfig.model_validate({name: getattr(config, name) for name in same})
    folders = {one.entry.name.rsplit("/", 1)[0] for one in used}
    bad = tuple(file for file in listed.bad if file.name.rsplit("/", 1)[0] in folders)
    chosen = Listing(tuple(one.entry for one in used), bad, listed.others)
    return folder.read_listed(chosen, plain, root, cache, progress)


def _notes(layout: Layout) -> list[str]:
    """What is left out and what is odd about the masks; nothing of it stops a run."""
    slices, masks = ({one.key: one.entry.name for one in kind} for kind in (layout.slices, layout.masks))
    parts = {part for part, _, _ in masks}
    alone = [name for key, name in masks.items() if key not in slices]
    bare = [name for key, name in slices.items() if key[0] in parts and key not in masks]
    found = (
        (layout.outside, f"in none of the folders {PREFIX}{'|'.join(PARTS)}: left out", ()),
        (len(masks), "segmentation masks: counted, not read", ()),
        (len(alone), "masks without a slice of their case and number", alone),
        (len(bare), "slices without a mask, though others of their folder have one", bare),
        (len(layout.misnamed_masks), f"in the mask folders not named {EXPECTED['seg_']}", layout.misnamed_masks),
    )
    return [
        f"{count} file{'s' if count > 1 else ''}: {what}" + (f": {_some(names)}" if names else "")
        for count, what, names in found
        if count
    ]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
