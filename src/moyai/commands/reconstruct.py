"""`moyai reconstruct`: pictures through a first stage and back, beside their originals, and judged.

Each picture is brought to the run's resolution and channels as its training pictures were, or keeps its own size
(`--size native`), in tiles where it is large. Nothing here is sampled: the same pictures give the same table.

A first stage that is told a position is told that of `--position`, or of a slice in the OASIS layout what its name says
where it was trained on such a layout.

A file that gives no picture is named and skipped, as the folder source does; that none is left is an error.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moyai import similarity
from moyai.batch import Cond
from moyai.checkpoints import models
from moyai.commands import outputs, sidebyside
from moyai.commands.sidebyside import Values, judge, overlap
from moyai.console import Reporter
from moyai.data.brain import position_in
from moyai.data.decode import KINDS, MAX_BYTES, Seen, Target, UnreadablePicture, changes, decode, inspect, quiet
from moyai.data.images import BadFile
from moyai.data.listing import Entry, contents, listing
from moyai.errors import DataError, RequestError
from moyai.files import read_json, write_json_atomic
from moyai.firststage.autoencoder import LatentAutoencoder
from moyai.firststage.tiling import check_tiles
from moyai.nets.precision import placed
from moyai.recipe import resolve
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts

TILE = 512
POSSIBLE = "pictures, folders of pictures, .zip files of pictures"
LABEL = 40  # the table's first column is no wider


@dataclass(frozen=True)
class Options:
    """What the command line says beside the run and the pictures; tile and position are None where it is silent."""

    out: Path = Path("reconstructions.png")
    native: bool = False
    tile: int | None = None
    position: float | None = None
    json: Path | None = None
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Found:
    """A picture file: its name in the table, its bytes, its header, what it becomes, and the position told with it."""

    name: str
    entry: Entry
    seen: Seen
    target: Target
    position: float | None


@dataclass(frozen=True)
class Subject:
    """The first stage of a run, ready to be judged."""

    run: Path
    recipe: Recipe
    facts: DataFacts
    autoencoder: LatentAutoencoder
    places: tuple[str, ...]  # names of its conditions that are a position
    last: int | None  # slice of its data, where the names of slices say their position

    def told(self, position: float | None, device: torch.device | str) -> Cond | None:
        """The condition of one picture."""
        conditions = self.recipe.first_stage.conditions
        fields = [conditions[name].field for name in self.places]  # type: ignore[union-attr]
        value = torch.tensor([position or 0.0], device=device)
        with torch.no_grad():
            return self.autoencoder.told({} if position is None else dict.fromkeys(fields, value), 1)

    def untold(self, found: Sequence[Found]) -> tuple[str, ...]:
        """Names of its conditions that stay at their null for all of the pictures, or for some."""
        all_placed = all(one.position is not None for one in found)
        return tuple(name for name in self.recipe.first_stage.conditions if not (all_placed and name in self.places))


def reconstruct(run: Path, paths: Sequence[Path], reporter: Reporter, options: Options) -> Iterator[str]:
    """Judge a run's first stage by the pictures at `paths`, write what is seen, and yield the table's lines."""
    _check(paths, options)
    subject = _subject(run, options)
    bad: list[BadFile] = []
    judged: list[tuple[Found, Values]] = []
    with ExitStack() as stack, quiet():
        found, others = _look(stack, paths, subject, options, bad)
        if not found and not bad:
            raise DataError(f"{', '.join(map(str, paths))}: no pictures there (PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF)")
        if found:
            yield from _head(subject, found, others, options)
        width = min(LABEL, max([len(f"mean of {len(found)}"), *(len(one.name) for one in found)]))
        writer = sidebyside.writer(options.out)
        for one, pixels, made, values in _judged(subject, found, bad, options, reporter):
            if not judged:
                yield _line(width, "picture", "height x width", "PSNR", "SSIM", "MS-SSIM", "L1")
            judged.append((one, values))
            yield _line(width, one.name, f"{one.target.height} x {one.target.width}", *_shown(values))
            caption = f"{_shortened(one.name, 32)} PSNR {values.psnr:.1f} SSIM {values.ssim:.3f}"
            writer.add(sidebyside.Row(one.name, caption, pixels.transpose(1, 2, 0), made.transpose(1, 2, 0)))
    if not judged:
        more = f" (and {len(bad) - 1} more files)" if len(bad) > 1 else ""
        raise DataError(f"{bad[0].name}: {bad[0].reason}{more}: no picture is left to reconstruct")
    for file in bad:
        reporter.warn(f"{file.name} is skipped: {file.reason}")
    mean = Values(*(float(np.mean(column)) for column in zip(*(asdict(v).values() for _, v in judged), strict=True)))
    yield _line(width, f"mean of {len(judged)}", "", *_shown(mean))
    yield from writer.close()
    if options.json is not None:
        write_json_atomic(options.json, _plain(subject, found, judged, mean, bad, options))
        yield f"written to {options.json}"


def _check(paths: Sequence[Path], options: Options) -> None:
    """Refuse, before anything is read, what cannot be done."""
    for path in paths:
        if not path.exists():
            raise RequestError(f"{path} does not exist; possible: {POSSIBLE}")
    sidebyside.check(options.out, paths)
    if options.tile is not None and not options.native:
        raise RequestError("--tile is for pictures of their own size; possible: --size native --tile N")
    if options.position is not None and not 0 <= options.position <= 1:
        raise RequestError(f"--position {options.position:g} is outside the range; possible: 0 to 1")
    if options.json is not None:
        outputs.check_json(options.json, "reconstructions.json")


def _subject(run: Path, options: Options) -> Subject:
    recipe, facts = models.described(run)
    if "first_stage" not in resolve.stages(recipe):
        raise RequestError(
            f'{run} has no first stage (codec.kind = "{recipe.codec.kind}"): nothing to reconstruct with'
        )
    places = tuple(name for name, c in recipe.first_stage.conditions.items() if c.kind == "position")
    if options.position is not None and not places:
        raise RequestError(f"{run}: this first stage is not told a position; possible: without --position")
    autoencoder: LatentAutoencoder = models.read_first_stage(run, recipe, facts)
    autoencoder = placed(autoencoder.eval().requires_grad_(False), options.device)
    if options.tile is not None:
        check_tiles(options.tile, overlap(options.tile, autoencoder.factor), autoencoder.factor)
    return Subject(run, recipe, facts, autoencoder, places, _last_slice(run) if recipe.data.kind == "oasis" else None)


def _last_slice(run: Path) -> int | None:
    """The slice at position 1 in the data of a run, from its report on them."""
    cases = read_json(run / "data.json").get("report", {}).get("cases") or {}
    reach = cases.get("positions", [0, 0])[1]
    return round(cases["slices"][1] / reach) if reach else None


def _look(
    stack: ExitStack, paths: Sequence[Path], subject: Subject, options: Options, bad: list[BadFile]
) -> tuple[list[Found], int]:
    """The pictures at all paths by their headers, and how many files are none by name; unreadable ones go to `bad`."""
    entries: list[Entry] = []
    others = 0
    for path in paths:
        if path.is_dir() or path.suffix.lower() == ".zip":
            listed = stack.enter_context(listing(path))
            before = f"{path.name}/" if len(paths) > 1 else ""
            entries += [Entry(before + one.name, one.size, one.read) for one in listed.entries]
            bad += [BadFile(before + one.name, one.reason) for one in listed.bad]
            others += listed.others
        elif not path.is_file():
            bad.append(BadFile(str(path), "not a regular file"))
        elif (size := path.stat().st_size) > MAX_BYTES:
            bad.append(BadFile(str(path), f"{size / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20}"))
        else:
            entries.append(Entry(str(path), size, path.read_bytes))
    facts, resize, last, found = subject.facts, subject.recipe.data.resize, subject.last, []
    for entry in entries:
        try:
            seen = inspect(contents(entry))
        except UnreadablePicture as error:
            bad.append(BadFile(entry.name, str(error)))
        else:
            height, width = (seen.height, seen.width) if options.native else (facts.height, facts.width)
            target = Target(height, width, facts.channels, 16 if seen.deep else 8, resize)
            named = position_in(entry.name, last) if subject.places and last is not None else None
            position = named if options.position is None else options.position
            found.append(Found(entry.name, entry, seen, target, position))
    return found, others


def _judged(
    subject: Subject, found: Sequence[Found], bad: list[BadFile], options: Options, reporter: Reporter
) -> Iterator[tuple[Found, np.ndarray, np.ndarray, Values]]:
    """Each picture that can be decoded, what becomes of it, and how near that is."""
    precision = subject.recipe.first_stage.train.precision
    for done, one in enumerate(found, 1):
        try:
            pixels, _ = decode(contents(one.entry), one.target)
        except UnreadablePicture as error:
            bad.append(BadFile(one.name, str(error)))
        else:
            made, values = judge(
                subject.autoencoder,
                pixels,
                subject.told(one.position, options.device),
                tile=_tile(one, options),
                precision=precision,
                device=options.device,
            )
            yield one, pixels, made, values
        reporter.progress("reconstructing", done, len(found))


def _tile(one: Found, options: Options) -> int | None:
    """The side of the tiles a picture is cut into, None where it is taken whole."""
    tile = TILE if options.tile is None else options.tile
    return tile if options.native and max(one.target.height, one.target.width) > tile else None


def _head(subject: Subject, found: Sequence[Found], others: int, options: Options) -> Iterator[str]:
    """What was done to the pictures before they were judged, and what the numbers are."""
    facts, factor = subject.facts, subject.autoencoder.factor
    where = "at their own size" if options.native else f"at {facts.height} x {facts.width}"
    stage = f"first stage of kind {subject.recipe.first_stage.kind}, factor {factor}"
    yield f"{subject.run}: {stage}; {KINDS[facts.channels]} pictures {where}"
    for what, count in _notes(subject, found, others).items():
        yield f"{count} {'files' if count != 1 else 'file'}: {what}"
    tiled = [tile for one in found if (tile := _tile(one, options)) is not None]
    if tiled:
        yield (
            f"{len(tiled)} {'files' if len(tiled) != 1 else 'file'}: in tiles of {tiled[0]} that overlap by "
            f"{overlap(tiled[0], factor)}; normalisation and attention see one tile at a time"
        )
    if untold := subject.untold(found):
        hint = "; possible: --position X" if set(untold) & set(subject.places) else ""
        yield f"the first stage is not told: {', '.join(untold)}{hint}"
    scales = sorted({similarity.scales(one.target.height, one.target.width) for one in found})
    span = str(scales[0]) if len(scales) == 1 else f"{scales[0]} to {scales[-1]}"
    yield f"PSNR in dB; MS-SSIM over {span} scale{'s' * (scales[-1] != 1)}; L1 of values in [-1, 1]"


def _notes(subject: Subject, found: Sequence[Found], others: int) -> dict[str, int]:
    """What was done that a person may want to know of, counted, as the folder source does."""
    notes = Counter[str]()
    for one in found:
        notes.update(changes(one.seen, one.target))
        notes["told the position"] += one.position is not None
    notes["not a picture by its name: left out"] = others
    return {what: count for what, count in notes.items() if count}


def _line(width: int, name: str, size: str, *values: str) -> str:
    return f"{_shortened(name, width):{width}}  {size:>14}" + "".join(f"{value:>9}" for value in values)


def _shortened(name: str, width: int) -> str:
    return name if len(name) <= width else f"...{name[3 - width :]}"


def _shown(values: Values) -> tuple[str, ...]:
    return (f"{values.psnr:.2f}", f"{values.ssim:.4f}", f"{values.ms_ssim:.4f}", f"{values.l1:.4f}")


def _plain(
    subject: Subject,
    found: Sequence[Found],
    judged: Sequence[tuple[Found, Values]],
    mean: Values,
    bad: Sequence[BadFile],
    options: Options,
) -> dict[str, Any]:
    """All of it for a file; an infinite PSNR is null there."""
    return {
        "run": str(subject.run),
        "size": "native" if options.native else "model",
        "position": options.position,
        "not told": list(subject.untold(found)),
        "pictures": [
            {
                "name": one.name,
                "height": one.target.height,
                "width": one.target.width,
                "channels": one.target.channels,
                "bits": one.target.bits,
                "position": one.position,
                "tile": _tile(one, options),
                "ms_ssim_scales": similarity.scales(one.target.height, one.target.width),
                **_numbers(values),
            }
            for one, values in judged
        ],
        "mean": _numbers(mean),
        "skipped": [asdict(file) for file in bad],
    }


def _numbers(values: Values) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(values).items()}
