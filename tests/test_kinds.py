"""Every kind of first stage, no first stage, and positions: from data to report, sampled and taken back to pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import moyai
import tiny
from moyai import pictures, tasks
from moyai.checkpoints import models
from moyai.commands import outputs
from moyai.errors import ConfigError, RequestError
from moyai.files import read_json
from moyai.recipe import reading

FEW = {**tiny.QUICK, "steps": 3, "validate_every": 3, "save_every": 2}
SHORT: dict[str, Any] = {"first_stage.train": FEW, "prior.train": FEW}


def trained(place: Path, **changes: Any) -> Path:
    root = tiny.folder(place / "pictures")
    recipe = tiny.recipe_file(place / "tiny.json", root, {**SHORT, **changes})
    return moyai.train(str(recipe), out=place / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {"first_stage.kind": "vq", "first_stage.codebook": {"size": 8}},
        {"first_stage.kind": "vq", "first_stage.codebook": {"size": 8, "update": "gradient", "cosine": True}},
        {"first_stage.kind": "fsq", "first_stage.grid": {"levels": [5, 3]}},
        {"first_stage.conditions": {"class": {}}},
    ],
    ids=["vq", "cosine", "fsq", "told"],
)
def test_a_first_stage_of_any_kind(changes: dict[str, Any], tmp_path: Path) -> None:
    run = trained(tmp_path, **changes)
    model = models.load(run)
    images = moyai.sample(model, n=2, steps=2)
    assert images.shape == (2 * len(tiny.CLASSES), tiny.SIDE, tiny.SIDE, 1)
    latents = model.encode(images)
    assert latents.shape[1] == model.codec.shape()[0] == (2 if changes.get("first_stage.kind") == "fsq" else 4)
    # What the prior sees is continuous; quantising it once more than the codec does changes nothing.
    z = latents * model.codec.std[None, :, None, None] + model.codec.mean[None, :, None, None]
    autoencoder: Any = model.codec.autoencoder  # type: ignore[attr-defined]
    once = autoencoder.quantize(z)
    assert torch.equal(autoencoder.quantize(once), once)
    assert torch.equal(once, z) is ("first_stage.kind" not in changes)
    stored = sorted(path.name for path in (run / "latents" / "train").glob("*.npy"))
    assert stored == (["plain-mean.npy"] if "first_stage.kind" in changes else ["plain-mean.npy", "plain-std.npy"])
    assert "First stage" in (run / "report.html").read_text(encoding="utf-8")


def test_without_a_first_stage_the_latents_are_the_pixels(tmp_path: Path) -> None:
    run = trained(tmp_path, codec={"kind": "pixels"})
    assert not (run / "first_stage").exists()
    assert set(read_json(run / "times.json")) >= {"prior", "samples and report"}
    model = models.load(run)
    assert model.codec.shape() == (1, tiny.SIDE, tiny.SIDE)
    images = moyai.sample(model, n=2, steps=2)
    assert np.array_equal(model.decode(model.encode(images)), images)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "First stage" not in html
    assert "Original" in html
    with pytest.raises(RequestError, match=r'codec\.kind is "pixels": there is no first stage'):
        moyai.train(str(run), stage="first_stage")


def slices(root: Path) -> Path:
    """Brain slices in the OASIS layout: a disc that grows with the position."""
    y, x = np.mgrid[: tiny.SIDE, : tiny.SIDE] - (tiny.SIDE - 1) / 2
    for part, cases in (("train", range(1, 9)), ("validate", range(9, 12))):
        folder = root / f"keras_png_slices_{part}"
        folder.mkdir(parents=True)
        for case in cases:
            for n in range(8):
                picture = np.where(x**2 + y**2 <= (1 + n / 3) ** 2, 120 + 10 * case, 0).astype(np.uint8)
                Image.fromarray(picture).save(folder / f"case_{case:03d}_slice_{n}.nii.png")
    return root


@pytest.fixture(scope="module")
def by_position(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("positions")
    tree = tiny.tree(slices(place / "brain"), {**SHORT, "first_stage.conditions": {"position": {}}})
    tree["data"] = {"kind": "oasis", "root": str(place / "brain")}
    tree["prior"]["conditions"] = {"position": {}}
    return moyai.train(reading.parse(tree), out=place / "run")


def test_slices_are_drawn_by_position(by_position: Path, tmp_path: Path) -> None:
    model = models.load(by_position)
    assert model.fields == ("position",)
    assert model.classes == ()
    request = tasks.request(model, positions=[0.0, 0.5, 1.0], n=2, steps=2, seed=3)
    assert request.count == 6
    assert request.fields()["position"].tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert tasks.row_names(model, request) == ("position 0.00", "position 0.50", "position 1.00")
    images = tasks.collect(model, request)
    # Picture i alone, from the recipe it carries.
    list(outputs.write(model, request, images, tmp_path / "out", None))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[0] == "000003-0.000.png"
    assert names[-1] == "000008-1.000.png"
    again, changes = tasks.like(model, pictures.read_recipe(tmp_path / "out" / names[-1]))
    assert changes == []
    assert (again.asked, again.seed, again.count) == ({"position": (1.0,)}, 8, 1)
    assert np.array_equal(tasks.collect(model, again)[0], images[-1])
    list(outputs.write(model, request, images, tmp_path / "out.npz", None))
    assert np.load(tmp_path / "out.npz")["positions"].tolist() == request.fields()["position"].tolist()
    assert tasks.request(model).rows == 8


def test_slices_are_drawn_by_their_whole_numbers(by_position: Path, tmp_path: Path) -> None:
    """The number of a slice is an integer of the data, told as any number is."""
    tree = tiny.tree(by_position.parent / "brain", SHORT)
    tree["data"] = {"kind": "oasis", "root": str(by_position.parent / "brain")}
    tree["prior"]["conditions"] = {"number": {"kind": "scalar", "field": "slice", "width": 8}}
    model = models.load(moyai.train(reading.parse(tree), out=tmp_path / "run", first_stage=by_position))
    assert (model.fields, model.facts.ranges) == (("slice",), {"slice": (0.0, 7.0)})
    assert model.examples["slice"].dtype == np.int64
    request = tasks.request(model, n=1, steps=2)  # of the examples
    assert request.asked["slice"] == tuple(float(number) for number in model.examples["slice"])
    assert tasks.collect(model, request).shape == (len(model.examples["slice"]), tiny.SIDE, tiny.SIDE, 1)
    assert tasks.row_names(model, tasks.request(model, others={"slice": [3]})) == ("slice 3",)
    embedding: Any = model.conditioner.conditions["number"]
    at = [embedding(torch.tensor([number]), torch.ones(1, dtype=torch.bool)).vector for number in (7, 7.0, 6)]
    assert torch.equal(at[0], at[1])
    assert not torch.equal(at[0], at[2])
    tree["prior"]["conditions"] = {"place": {"kind": "position", "field": "slice"}}
    with pytest.raises(
        ConfigError, match=r"which lies in 0\.\.1, and 'slice' goes from 0 to 7; possible: .kind=\"scalar\""
    ):
        moyai.train(reading.parse(tree), out=tmp_path / "other", first_stage=by_position)


@pytest.mark.parametrize("wrong", [[1.5], [-0.1], ["top"], [True]])
def test_positions_that_are_none(by_position: Path, wrong: list[Any]) -> None:
    with pytest.raises(RequestError, match=r"position .* is out of range; possible: 0 to 1"):
        tasks.request(models.load(by_position), positions=wrong)


def test_positions_asked_of_what_knows_none(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="this model knows no positions"):
        tasks.request(models.load(finished_run / "run"), positions=[0.5])
    with pytest.raises(ConfigError, match="needs the field 'position' of the data, which have class"):
        trained(tmp_path, **{"prior.conditions": {"position": {}}})
