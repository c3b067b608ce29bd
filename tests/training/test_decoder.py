"""The decoder trained further by itself: what makes latents rests, and what was trained on them stays valid."""

from pathlib import Path

import pytest
import torch

import moyai
import tiny
from moyai.checkpoints import models, native
from moyai.errors import ConfigError, RequestError
from moyai.files import read_json

FEW = {**tiny.QUICK, "steps": 3, "validate_every": 3, "save_every": 2}
FURTHER = ("decoder.train.steps=4", "decoder.train.batch=8", "decoder.objective.reconstruction=l2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("decoder")
    root = tiny.folder(place / "pictures")
    recipe = tiny.recipe_file(place / "tiny.json", root, {"first_stage.train": FEW, "prior.train": FEW})
    return moyai.train(str(recipe), out=place / "run")


def digests(run: Path) -> dict[str, str]:
    found = {
        stage: native.tensors_digest(native.read(run / stage / "model")["model"]) for stage in ("prior", "first_stage")
    }
    latents = {path.name: path.read_bytes() for path in sorted((run / "latents" / "train").iterdir())}
    return {**found, **{name: str(hash(data)) for name, data in latents.items()}}


def test_the_decoder_alone_moves(run: Path) -> None:
    before, codec = digests(run), models.load(run).codec.digest()
    first = models.load(run)
    shown = moyai.sample(first, n=1, steps=2)
    report = (run / "report.html").read_text(encoding="utf-8")

    moyai.train(str(run), *FURTHER)

    assert digests(run) == before
    again = models.load(run)
    assert again.codec.digest() == codec
    old, new = (native.read(run / stage / "model")["model"] for stage in ("first_stage", "decoder"))
    moved = {name.split(".")[1] for name in old if not torch.equal(old[name], new[name])}
    assert moved == {"decoder"}
    assert not (moyai.sample(again, n=1, steps=2) == shown).all()
    assert (run / "report.html").read_text(encoding="utf-8") != report
    assert read_json(run / "samples" / "made-of.json")["decoder"]["train"]["steps"] == 4
    # Once more changes nothing, and another number of steps is refused as for every stage.
    stamp = (run / "decoder" / "model" / "MANIFEST.json").read_bytes()
    moyai.train(str(run))
    assert (run / "decoder" / "model" / "MANIFEST.json").read_bytes() == stamp
    with pytest.raises(ConfigError, match="decoder was begun with other values"):
        moyai.train(str(run), "decoder.train.steps=5")


def test_a_new_run_trains_its_decoder_too(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "pictures")
    recipe = tiny.recipe_file(tmp_path / "tiny.json", root, {"first_stage.train": FEW, "prior.train": FEW})
    run = moyai.train(str(recipe), *FURTHER, out=tmp_path / "run")
    assert all((run / stage / "model").is_dir() for stage in ("first_stage", "prior", "decoder"))
    assert read_json(run / "samples" / "made-of.json")["decoder"]["train"]["steps"] == 4


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "pictures", count=12)
    recipe = str(tiny.recipe_file(tmp_path / "tiny.json", root))
    with pytest.raises(ConfigError, match=r"decoder\.train says neither steps nor epochs"):
        moyai.train(recipe, "decoder={}", out=tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r'decoder\.objective\.perceptual\.kind is "discriminator", but there is none'
    ):
        moyai.train(recipe, "decoder.train.steps=1", 'decoder.objective.perceptual={kind="discriminator"}')
    with pytest.raises(RequestError, match=r"the recipe has no \[decoder\]; possible: decoder\.train\.steps"):
        moyai.train(recipe, "first_stage.train.steps=1", stage="decoder", out=tmp_path / "none")
    with pytest.raises(RequestError, match="has no first_stage yet"):
        moyai.train(recipe, "decoder.train.steps=1", stage="decoder", out=tmp_path / "run")
