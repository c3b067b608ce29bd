"""`moyai sample` and `moyai edit`: pictures of a trained run, asked for in words, numbers and files, or as a picture
says of itself; drawn from nothing, or from pictures that are changed or filled in.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moyai import pictures, tasks
from moyai.checkpoints.models import load
from moyai.commands import asking, outputs
from moyai.console import Reporter
from moyai.errors import RequestError
from moyai.model import LatentModel


@dataclass(frozen=True)
class Options:
    """What the command line asks for and where it goes; None where it is silent."""

    out: Path = Path("samples.png")
    gif: Path | None = None
    like: Path | None = None  # a picture whose recipe is drawn again; beside it only maps, pictures and mask are told
    classes: Sequence[str] | None = None
    position: Sequence[float] | None = None
    caption: Sequence[str] | None = None
    number: Sequence[str] | None = None
    map: Sequence[Path] | None = None
    picture: Sequence[str] | None = None
    mask: Path | None = None  # of the originals, where there are any; else of `picture`
    originals: Sequence[Path] = ()  # what an edit begins with
    strength: float | None = None
    repeats: int | None = None
    device: torch.device | str = "cpu"


def sample(path: Path, reporter: Reporter, options: Options, settings: Mapping[str, Any]) -> Iterator[str]:
    """Draw of the run at `path`, or edit the originals, write, and yield a line for each thing written. settings:
    as `tasks.request` takes."""
    inputs = _inputs(options)
    outputs.check(options.out, options.gif, inputs)
    _check_like(options, settings)
    model = load(path, device=options.device, warn=reporter.warn)
    request = _request(model, reporter, options, settings)
    for doubt in asking.doubts(model, request) if options.number else ():
        reporter.warn(doubt)
    outputs.check_names(model, request, options.out, inputs)
    tasks.encode(model, request, functools.partial(reporter.progress, "encoding captions"))
    images = tasks.collect(model, request, functools.partial(reporter.progress, "sampling"))
    yield from outputs.write(model, request, images, options.out, options.gif)


def _inputs(o: Options) -> list[Path]:
    """The files that are read, none of which may be written over. Of NAME=FILE both readings: which one holds is known
    by the model only."""
    words = [part for word in o.picture or () for part in (word, word.partition("=")[2]) if part]
    return [*o.originals, *(o.map or ()), *map(Path, words), *(one for one in (o.like, o.mask) if one is not None)]


def _check_like(o: Options, settings: Mapping[str, Any]) -> None:
    """Refuse words that the recipe of a picture would have to be changed for."""
    said: dict[str, Any] = {"class": o.classes, "position": o.position, "caption": o.caption, "number": o.number}
    said |= {"strength": o.strength, "repeat": o.repeats, **settings}
    if o.like is not None and (words := [name for name, value in said.items() if value is not None]):
        raise RequestError(
            f"--like draws {o.like} again as it says of itself, and --{words[0].replace('_', '-')} would change that; "
            "possible: one of the two"
        )


def _request(model: LatentModel, reporter: Reporter, o: Options, settings: Mapping[str, Any]) -> tasks.Request:
    originals = asking.originals(model, o.originals, o.mask, reporter.warn) if o.originals else []
    mask = None if o.originals else o.mask
    if o.like is None:
        others = asking.others(model, numbers=o.number, maps=o.map, pictures=o.picture, mask=mask)
        asked: dict[str, Any] = {"positions": o.position, "captions": o.caption, "others": others}
        edited: dict[str, Any] = {"originals": originals, "strength": o.strength, "repeats": o.repeats}
        return tasks.request(model, o.classes, **asked, **edited, **settings)
    told = asking.others(model, maps=o.map, pictures=o.picture, mask=mask)
    request, changes = tasks.like(model, pictures.read_recipe(o.like), told, originals)
    for change in changes:
        reporter.warn(f"{o.like} may not come out the same to the bit: {change}")
    return request
