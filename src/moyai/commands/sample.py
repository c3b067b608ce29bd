"""`moyai sample`: pictures of a trained run, asked for in words, numbers and files, or as a picture says of itself."""

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
from moyai.model import LatentModel


@dataclass(frozen=True)
class Options:
    """What the command line asks for and where it goes; None where it is silent."""

    out: Path = Path("samples.png")
    gif: Path | None = None
    like: Path | None = None  # a picture whose recipe is drawn again; then only maps, pictures and mask count beside it
    classes: Sequence[str] | None = None
    position: Sequence[float] | None = None
    caption: Sequence[str] | None = None
    number: Sequence[str] | None = None
    map: Sequence[Path] | None = None
    picture: Sequence[Path] | None = None
    mask: Path | None = None
    device: torch.device | str = "cpu"


def sample(path: Path, reporter: Reporter, options: Options, settings: Mapping[str, Any]) -> Iterator[str]:
    """Draw of the run at `path`, write, and yield a line for each thing written. settings: as `tasks.request` takes."""
    outputs.check(options.out, options.gif)
    model = load(path, device=options.device, warn=reporter.warn)
    request = _request(model, reporter, options, settings)
    tasks.encode(model, request, functools.partial(reporter.progress, "encoding captions"))
    images = tasks.collect(model, request, functools.partial(reporter.progress, "sampling"))
    yield from outputs.write(model, request, images, options.out, options.gif)


def _request(model: LatentModel, reporter: Reporter, o: Options, settings: Mapping[str, Any]) -> tasks.Request:
    if o.like is None:
        others = asking.others(model, numbers=o.number, maps=o.map, pictures=o.picture, mask=o.mask)
        asked: dict[str, Any] = {"positions": o.position, "captions": o.caption, "others": others}
        return tasks.request(model, o.classes, **asked, **settings)
    given = asking.others(model, maps=o.map, pictures=o.picture, mask=o.mask)
    request, changes = tasks.like(model, pictures.read_recipe(o.like), given)
    for change in changes:
        reporter.warn(f"{o.like} may not come out the same to the bit: {change}")
    return request
