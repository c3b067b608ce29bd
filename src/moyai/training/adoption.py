"""A first stage taken over from another run: several priors over one first stage, trained once."""

import shutil
from pathlib import Path

from moyai.checkpoints import models, native
from moyai.errors import RequestError
from moyai.files import sync_folder
from moyai.recipe import resolve
from moyai.recipe.model import Recipe
from moyai.training.record import Record

KEPT = ("model", "log.jsonl", "perceptual.safetensors")


def adopt(source: Path, record: Record, recipe: Recipe) -> Recipe:
    """The recipe with the first stage of the run `source`, whose weights are copied to where `record` keeps them.

    A decoder that was trained further there comes along. RequestError where there is no finished first stage, or where
    the run has one of its own already.
    """
    theirs, _ = models.described(source)
    if "first_stage" not in resolve.stages(theirs) or not (source / "first_stage" / "model").is_dir():
        raise RequestError(f"{source} has no finished first stage; possible: another run, or training it there first")
    if "first_stage" not in resolve.stages(recipe):
        raise RequestError('codec.kind is "pixels": there is no first stage to take over')
    native.verify(source / "first_stage" / "model")
    mine = record.folder / "first_stage" / "model"
    if mine.is_dir():
        if _digest(mine) != _digest(source / "first_stage" / "model"):
            raise RequestError(f"{record.folder} has another first stage already; possible: another --out")
    elif record.begun("first_stage"):
        raise RequestError(f"{record.folder} has begun a first stage of its own; possible: another --out")
    else:
        for stage in ("decoder", "first_stage"):
            _copy(source / stage, record.folder / stage)
    return resolve.changed(recipe, {"first_stage": theirs.first_stage.model_dump()})


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all: what vouches for the stage, `model`, comes last, by a rename."""
    if not (source / "model").is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT[1:]:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    partial = target / "adopted.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source / "model", partial)
    sync_folder(partial)
    partial.rename(target / "model")


def _digest(model: Path) -> str:
    return native.tensors_digest(native.read(model)["model"])
