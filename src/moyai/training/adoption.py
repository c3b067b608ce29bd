"""A first stage taken over from another run: several priors over one first stage, trained once."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from moyai.checkpoints import models, native
from moyai.errors import RequestError
from moyai.files import read_json, save_error, sync_folder, write_json_atomic
from moyai.recipe import resolve
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts
from moyai.training.record import Record

KEPT = ("model", "log.jsonl", "perceptual.safetensors")
SOURCE = "adopted.json"  # beside the weights: whose they are


@dataclass(frozen=True)
class Adopted:
    """The first stage of the run `source`: its recipe, what data it knows, and the digest of its weights."""

    source: Path
    recipe: Recipe
    facts: DataFacts
    digest: str

    def check(self, facts: DataFacts) -> None:
        """RequestError where its pictures are of another kind."""
        if self.facts.channels != facts.channels:
            raise RequestError(
                f"{self.source} has a first stage of pictures of {self.facts.channels} channels, and these have "
                f"{facts.channels}; possible: another run, or data.channels={self.facts.channels}"
            )

    def take(self, record: Record) -> None:
        """Copy the weights to where `record` keeps them, unless they are there; a decoder that was trained further
        comes along."""
        home = record.folder / "first_stage"
        if (home / "model").is_dir():
            return
        write_json_atomic(home / SOURCE, {"run": str(self.source), "digest": self.digest})
        for stage in ("decoder", "first_stage"):
            _copy(self.source / stage, record.folder / stage)


def find(source: Path, record: Record, recipe: Recipe) -> tuple[Adopted, Recipe]:
    """The first stage of a run, and the recipe with that part of its recipe. Nothing is written.

    RequestError where there is no finished first stage, or where `record` has one of its own already.
    """
    theirs, facts = models.described(source)
    if "first_stage" not in resolve.stages(theirs) or not (source / "first_stage" / "model").is_dir():
        raise RequestError(f"{source} has no finished first stage; possible: another run, or training it there first")
    if "first_stage" not in resolve.stages(recipe):
        raise RequestError('codec.kind is "pixels": there is no first stage to take over')
    native.verify(source / "first_stage" / "model")
    digest, mine = _digest(source / "first_stage" / "model"), record.folder / "first_stage" / "model"
    if mine.is_dir():
        if _digest(mine) != digest:
            raise RequestError(f"{record.folder} has another first stage already; possible: another --out")
    elif record.begun("first_stage"):
        raise RequestError(f"{record.folder} has begun a first stage of its own; possible: another --out")
    found = Adopted(source, theirs, facts, digest)
    return found, resolve.changed(recipe, {"first_stage": theirs.first_stage.model_dump()})


def is_adopted(record: Record, stage: str) -> bool:
    """Whether a stage was not trained here."""
    return (record.folder / stage / SOURCE).is_file()


def source_of(record: Record) -> Path | None:
    """The run whose first stage this one has, where it is not its own."""
    path = record.folder / "first_stage" / SOURCE
    return Path(read_json(path)["run"]) if path.is_file() else None


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all: what vouches for the stage, `model`, comes last, by a rename."""
    if not (source / "model").is_dir():
        return
    partial = target / "adopted.partial"
    size = sum(path.stat().st_size for path in (source / "model").rglob("*") if path.is_file())
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in KEPT[1:]:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        for left in (partial, target / "model"):  # by a go that was cut off
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(source / "model", partial)
        sync_folder(partial)
        partial.rename(target / "model")
    except OSError as error:  # shutil.Error is one, and says nothing of the reason but in its text
        raise save_error(error, target, size) from error


def _digest(model: Path) -> str:
    return native.tensors_digest(native.read(model)["model"])
