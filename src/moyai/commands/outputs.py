"""Where sampled pictures go: a grid, a folder of PNGs, or arrays; each picture with the recipe that made it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moyai import pictures, tasks
from moyai.errors import RequestError
from moyai.files import write_arrays_atomic
from moyai.model import LatentModel


def check(out: Path, gif: Path | None, inputs: Sequence[Path] = ()) -> None:
    """Refuse, before anything is computed, an output that could not be written, or that is one of the inputs."""
    if out.suffix.lower() not in ("", ".png", ".npz"):
        raise RequestError(f"--out {out} is no .png, .npz or folder; possible: grid.png, samples.npz, samples/")
    if gif is not None and gif.suffix.lower() != ".gif":
        raise RequestError(f"--gif {gif} does not end in .gif")
    for option, path in (("--out", out), ("--gif", gif)):
        if path is not None and any(_same(path, one) for one in inputs):
            raise RequestError(f"{option} {path} is one of the pictures to be read; possible: another {option}")
        if path is not None and path.suffix:
            _check_file(option, path, "samples" + path.suffix.lower())
        elif path is not None:
            _check_folder(option, path)


def check_names(model: LatentModel, request: tasks.Request, out: Path, inputs: Sequence[Path]) -> None:
    """Refuse, before anything is drawn, a folder in which a picture would get the name of one of the inputs."""
    folder = out.resolve()
    beside = {one.name for one in (path.resolve() for path in inputs) if one.parent == folder}
    if out.suffix or not beside:
        return
    for i in range(request.count):
        if (name := _name(request, i, tasks.picture_recipe(model, request, i))) in beside:
            raise RequestError(
                f"--out {out}: {out / name} is one of the pictures to be read, and would be written over; possible: "
                "another --out"
            )


def _same(path: Path, other: Path) -> bool:
    """Whether both are one file; False where one is none."""
    try:
        return path.is_file() and path.samefile(other)
    except OSError:
        return False


def check_json(path: Path, example: str) -> None:
    """Refuse, before anything is computed, a place where no table could be written."""
    _check_file("--json", path, example)


def _check_file(option: str, path: Path, example: str) -> None:
    """Refuse a file that could not be written."""
    _check_folder(option, path.parent)
    try:
        taken = path.is_dir()
    except OSError as error:  # a name that is too long
        raise RequestError(f"{option} {path} cannot be made ({error.strerror}); possible: another name") from error
    if taken:
        raise RequestError(f"{option} {path} is a folder; possible: a file, such as {example}")


def _check_folder(option: str, folder: Path) -> None:
    """Make a folder where it is not there; refuse one that cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} cannot be made ({error.strerror}); possible: another place") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"{folder} may not be written to; possible: another {option}")


def write(model: LatentModel, request: tasks.Request, images: np.ndarray, out: Path, gif: Path | None) -> Iterator[str]:
    """Write the pictures; yields a sentence for each thing written."""
    if out.suffix.lower() == ".npz":
        _write_arrays(request, images, out)
    elif out.suffix.lower() == ".png":
        names = tasks.row_names(model, request)
        columns = request.n if names else None
        if request.originals:  # each row behind what it began with
            began = np.stack([one.shown() for one in request.originals])[:, None]
            drawn = images.reshape(request.rows, request.n, *images.shape[1:])
            images, columns = np.concatenate([began, drawn], axis=1).reshape(-1, *images.shape[1:]), request.n + 1
        sheet = pictures.grid(images, columns=columns, row_labels=names)
        pictures.save_png(out, sheet, tasks.picture_recipe(model, request))
    else:
        for i, image in enumerate(images):
            recipe = tasks.picture_recipe(model, request, i)
            pictures.save_png(out / _name(request, i, recipe), image, recipe)
    yield f"{request.count} pictures in {out}"
    if gif is not None:
        noisy, predicted = tasks.process(model, request)
        rows = zip(noisy, predicted, strict=True)
        frames = [
            pictures.grid(np.concatenate(pair), columns=len(pair[0]), row_labels=("noisy", "predicted"))
            for pair in rows
        ]
        pictures.save_gif(gif, frames, recipe=tasks.picture_recipe(model, request))
        yield f"the way there in {gif}"


def _name(request: tasks.Request, index: int, recipe: Mapping[str, Any]) -> str:
    """What a picture's file is called: what it began with, its seed, and what was asked for."""
    values = [asked[0] for asked in recipe["asked"].values() if type(asked[0]) in (str, float)]
    told = [_safe(value)[:40] if isinstance(value, str) else f"{value:.3f}" for value in values]
    begun = [_safe(request.originals[index // request.n].name)[-40:]] if request.originals else []
    return "-".join([*begun, f"{recipe['seed']:06d}", *(_safe(c) for c in recipe["class_names"]), *told]) + ".png"


def _write_arrays(request: tasks.Request, images: np.ndarray, out: Path) -> None:
    """`images` (N, H, W, C) and `labels` (N,), -1 where no class was asked for: what evaluation suites read; and
    what else was asked for, (N, ...), by the plural of its name."""
    fields = request.fields()
    arrays = {"images": images, "labels": fields.get("class", np.full(len(images), -1))}
    arrays |= {f"{name}s": values for name, values in fields.items() if name != "class"}
    write_arrays_atomic(out, arrays)


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)
