"""A first stage taken over: from where it is refused nothing comes along, and a take-over that is cut off goes on."""

from pathlib import Path

import pytest

import moyai
import tiny
from moyai.checkpoints import models
from moyai.errors import DataError, RequestError, SaveError
from moyai.files import read_json
from moyai.training import adoption
from training.test_decoder import FEW, FURTHER

SMALL = {"first_stage.train": FEW, "prior.train": FEW}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adoption")
    recipe = tiny.recipe_file(place / "tiny.json", tiny.folder(place / "pictures"), SMALL)
    return moyai.train(str(recipe), *FURTHER, out=place / "run")


def other(place: Path, source: Path, **changes: object) -> str:
    """A recipe over the same pictures."""
    return str(tiny.recipe_file(place / "other.json", source.parent / "pictures", {**SMALL, **changes}))


def test_a_refused_take_over_leaves_no_foreign_weights(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(DataError):
        moyai.train(other(tmp_path, source), "data.root=/nowhere", out=run, first_stage=source)
    assert not (run / "first_stage").exists()
    moyai.train(other(tmp_path, source), "first_stage.train.steps=4", out=run)
    assert models.load(run).recipe.first_stage.train.steps == 4
    assert models.load(run).codec.digest() != models.load(source).codec.digest()
    assert adoption.source_of(adoption.Record(run)) is None


def test_pictures_of_other_channels_are_one_line(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"pictures of 1 channels, and these have 3; possible: another run, or"):
        moyai.train(other(tmp_path, source), "data.channels=3", out=tmp_path / "run", first_stage=source)


@pytest.mark.parametrize("after", ["decoder", "first_stage"])
def test_a_take_over_that_was_cut_off_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """Killed when the weights of one stage lie there, by a first stage of another run at that."""
    run, recipe = tmp_path / "run", other(tmp_path, source)
    stranger = moyai.train(recipe, "seed=5", *FURTHER, out=tmp_path / "stranger")
    copy = adoption._copy

    def cut(of: Path, to: Path) -> None:
        copy(of, to)
        if to.name == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(adoption, "_copy", cut)
    with pytest.raises(KeyboardInterrupt):
        moyai.train(recipe, out=run, first_stage=stranger if after == "decoder" else source)
    monkeypatch.setattr(adoption, "_copy", copy)
    moyai.train(recipe, *FURTHER, out=run, first_stage=source)
    mine, theirs = models.load(run), models.load(source)
    assert mine.codec.digest() == theirs.codec.digest()
    decoders = [(r / "decoder" / "model" / "model.safetensors").read_bytes() for r in (run, source)]
    assert decoders[0] == decoders[1]
    told = read_json(run / "first_stage" / "adopted.json")
    assert told["run"] == str(source)
    assert "--first-stage" in (run / "report.html").read_text(encoding="utf-8")


def test_a_disk_that_is_full_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adoption.shutil, "copytree", full)
    with pytest.raises(SaveError, match="No space left on device; needed: "):
        moyai.train(other(tmp_path, source), out=tmp_path / "run", first_stage=source)
