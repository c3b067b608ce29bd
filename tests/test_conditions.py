"""Every condition from data to report: what is told in training can be asked of the model, together or alone."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import moyai
import tiny
from moyai import cli, pictures, tasks
from moyai.checkpoints import models
from moyai.commands import asking, outputs
from moyai.errors import ConfigError, RequestError
from moyai.files import read_json
from moyai.recipe import reading

SIDE, COUNT = 32, 40
FEW = {**tiny.QUICK, "steps": 3, "validate_every": 3, "save_every": 2, "preview_every": 3}
CONDITIONS = {
    "caption": {"kind": "text", "width": 16, "depth": 1, "heads": 2, "length": 24, "vocabulary": 300, "guidance": 2.0},
    "mask": {"kind": "map"},
    "small": {"kind": "low-resolution", "factor": 8, "dropout": 0.1},
    "holes": {"kind": "masked"},  # never left out, which is what it is without a word
}


def recipe(place: Path, conditions: dict[str, Any], **changes: Any) -> Any:
    tree = tiny.tree(place, {"first_stage.train": FEW, "prior.train": FEW, **changes})
    tree["data"] = {"kind": "shapes", "count": COUNT, "resolution": SIDE}
    tree["prior"]["conditions"] = conditions
    tree["report"]["gif"] = True
    return reading.parse(tree)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model that is told everything at once."""
    place = tmp_path_factory.mktemp("told")
    return moyai.train(recipe(place, CONDITIONS), out=place / "run")


def test_any_number_of_conditions_go_together(run: Path) -> None:
    model = models.load(run)
    assert model.fields == ("caption", "mask", "low_resolution", "masked")
    request = tasks.request(model, n=1, steps=2)  # of the examples that the run kept
    assert request.rows == len(model.examples["caption"])
    assert set(request.asked) == set(model.fields)
    images = tasks.collect(model, request)
    assert images.shape == (request.rows, SIDE, SIDE, 3)
    report = (run / "report.html").read_text(encoding="utf-8")
    assert model.examples["caption"][0][:20] in read_json(run / "data.json")["facts"]["tokenizers"]["caption"] or report
    assert (run / "samples" / "process.gif").is_file()
    assert list((run / "prior" / "previews").iterdir())


def test_each_condition_matters_by_itself(run: Path) -> None:
    model = models.load(run)
    for parameter in model.prior.parameters():  # a network of three steps is still nearly zero
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.05)

    def drawn(**others: Any) -> np.ndarray:
        settings: dict[str, Any] = {"n": 1, "steps": 2, "seed": 3}
        return tasks.collect(model, tasks.request(model, others=others, **settings))

    picture = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    hole = np.concatenate((np.zeros((3, SIDE, SIDE)), np.ones((1, SIDE, SIDE)))).astype(np.float32)
    base: dict[str, Any] = {"low_resolution": [picture], "masked": [hole]}
    first = drawn(**base)
    assert not np.array_equal(first, drawn(masked=[hole]))  # what was left out at times may be left out
    assert not np.array_equal(first, drawn(**base, caption=["a large red circle"]))
    assert not np.array_equal(first, drawn(**base, mask=[np.ones((SIDE, SIDE), np.uint8)]))
    assert not np.array_equal(first, drawn(**{**base, "low_resolution": [255 - picture]}))
    with pytest.raises(RequestError, match="needs a picture to begin with, and masked was not given"):
        drawn(caption=["a large red circle"], low_resolution=[picture])


def test_what_is_known_of_a_picture_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    model = models.load(run)
    rng = np.random.default_rng(1)
    original = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    missing = np.zeros((SIDE, SIDE), np.uint8)
    missing[4:12, 6:14] = 255
    Image.fromarray(original).save(tmp_path / "picture.png")
    Image.fromarray(missing).save(tmp_path / "mask.png")
    asked = asking.others(model, pictures=[str(tmp_path / "picture.png")], mask=tmp_path / "mask.png")
    values = asked["masked"][0]
    assert (values[:, missing > 0] == np.array([[0], [0], [0], [1]])).all()
    model = models.load(run)
    small = np.zeros((3, 4, 4), np.uint8)
    request = tasks.request(model, others={**asked, "low_resolution": [small]}, n=2, steps=2)
    images = tasks.collect(model, request)
    assert np.array_equal(images[:, missing == 0], np.stack([original[missing == 0]] * 2))
    assert not np.array_equal(images[0][missing > 0], original[missing > 0])


def test_a_picture_drawn_for_arrays_is_drawn_again_with_the_same_arrays(run: Path, tmp_path: Path) -> None:
    model = models.load(run)
    request = tasks.request(model, n=1, steps=2, seed=9)
    images = tasks.collect(model, request)
    list(outputs.write(model, request, images, tmp_path / "out", None))
    file = sorted((tmp_path / "out").iterdir())[1]
    carried = pictures.read_recipe(file)
    with pytest.raises(RequestError, match="give the same again"):
        tasks.like(model, carried)
    given = {name: [values[1]] for name, values in model.examples.items() if name != "caption"}
    again, changes = tasks.like(model, carried, given)
    assert changes == []
    assert np.array_equal(tasks.collect(model, again)[0], images[1])


def test_the_command_line_asks_in_words_and_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(tmp_path / "map.png")
    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(tmp_path / "small.png")
    words = ["sample", str(run), "--n", "1", "--steps", "2", "--out", str(tmp_path / "out.png"), "--quiet"]
    asked = ["--caption", "a small blue square", "--map", str(tmp_path / "map.png")]
    assert cli.main([*words, *asked, "--picture", str(tmp_path / "small.png")]) == 2  # and what is missing of it?
    assert "needs a picture to begin with, and masked was not given" in capsys.readouterr().err
    Image.fromarray(np.ones((SIDE, SIDE - 1), np.uint8)).save(tmp_path / "narrow.png")
    Image.fromarray(np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3)).save(tmp_path / "colour.png")
    for extra, message in (
        (["--map", str(tmp_path / "narrow.png")], "the map is 32 x 31; this model takes 32 x 32"),
        (["--map", str(tmp_path / "colour.png")], "has colours; the maps of this model have one number a pixel"),
        (["--map", str(tmp_path / "none.png")], "cannot be read as a map of regions: No such file"),
        (["--number", "age"], "is not of the form field=number"),
        (["--number", "age=70"], "this model can be told caption, mask"),
        (["--mask", str(tmp_path / "map.png")], "none is given"),
        (["--class", "circle"], "this model knows no classes"),
    ):
        assert cli.main([*words, *extra]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(words) == 0
    assert pictures.read_recipe(tmp_path / "out.png")["asked"]["caption"]


def test_a_model_that_enlarges_and_fills_in_is_told_which_picture_is_which(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    photo = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for name, pixels in {"photo": photo, "other": 255 - photo, "small": photo[:4, :4]}.items():
        Image.fromarray(pixels).save(f"{name}.png")
    missing = np.zeros((SIDE, SIDE), np.uint8)
    missing[:, 10:] = 255
    Image.fromarray(missing).save("hole.png")
    words = ["sample", str(run), "--n", "1", "--steps", "2", "--quiet", "--out", "out.npz"]

    def drawn(*asked: str) -> dict[str, np.ndarray]:
        assert cli.main([*words, *asked, "--mask", "hole.png"]) == 0, capsys.readouterr().err
        return dict(np.load("out.npz"))

    named = drawn("--picture", "low_resolution=small.png", "masked=photo.png")
    assert np.array_equal(named["low_resolutions"][0].transpose(1, 2, 0), photo[:4, :4])
    assert np.array_equal(named["images"][0][missing == 0], photo[missing == 0])
    # by the names in the recipe, by kind; a file without one is what is left, and with a mask it is the one to fill in
    for asked in (["small=small.png", "holes=photo.png"], ["low-resolution=small.png", "photo.png"]):
        assert np.array_equal(drawn("--picture", *asked)["images"], named["images"])
    assert np.array_equal(drawn("--picture", "masked=photo.png", "small.png")["images"], named["images"])
    alone = drawn("--picture", "photo.png")
    assert "low_resolutions" not in alone
    assert np.array_equal(alone["images"][0][missing == 0], photo[missing == 0])
    both = drawn("--picture", "low_resolution=small.png", "photo.png", "other.png")
    assert np.array_equal(both["images"][1][missing == 0], 255 - photo[missing == 0])
    # again, from what a picture says of itself
    assert cli.main([*words[:-1], "drawn", "--picture", "small=small.png", "photo.png", "--mask", "hole.png"]) == 0
    (file,) = (tmp_path / "drawn").iterdir()
    again = ["sample", str(run), "--like", str(file), "--quiet", "--out", "again.npz", "--mask", "hole.png"]
    assert cli.main([*again, "--picture", "small=small.png", "photo.png"]) == 0
    assert np.array_equal(np.load("again.npz")["images"], named["images"])
    for asked, message in (
        (
            ["masked=photo.png", "small=small.png", "other.png"],
            "other.png does not say what it is; possible: low_resol",
        ),
        (["smal=small.png"], "smal=small.png: neither a file nor of the form low_resolution=FILE or masked=FILE"),
        (["small=small.png"], "none of the pictures is one to fill in"),
        (["masked="], "cannot be read as a picture"),
    ):
        assert cli.main([*words, "--picture", *asked, "--mask", "hole.png"]) == 2
        assert message in tiny.one_line(capsys.readouterr().err)
    assert cli.main([*words, "--picture", "holes=photo.png"]) == 2
    assert "--mask says what is (white)" in tiny.one_line(capsys.readouterr().err)


def test_a_picture_drawn_again_is_not_asked_to_be_another(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["sample", str(run), "--n", "1", "--steps", "2", "--quiet", "--out", str(tmp_path / "x.png")]) == 0
    words = ["sample", str(run), "--like", str(tmp_path / "x.png"), "--quiet", "--out", str(tmp_path / "y.png")]
    for more, name in (
        (["--caption", "a red circle"], "caption"),
        (["--class", "3"], "class"),
        (["--n", "2"], "n"),
        (["--seed", "0"], "seed"),
        (["--guidance", "2"], "guidance"),
        (["--top-k", "2"], "top-k"),
    ):
        assert cli.main([*words, *more]) == 2
        assert f"and --{name} would change that" in tiny.one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"age": {"kind": "scalar", "field": "age"}}, "needs the field 'age' of the data, which have caption, mask"),
        ({"caption": {"kind": "scalar", "field": "caption"}}, "needs numbers that differ, and 'caption'"),
        ({"class": {"kind": "class"}}, "needs classes, and the data have none"),
    ],
)
def test_conditions_the_data_cannot_give_are_refused(conditions: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        moyai.train(recipe(tmp_path, conditions), out=tmp_path / "run")
    assert not list((tmp_path / "run").glob("first_stage/*"))  # at once, not when the first stage has been trained


def test_a_class_is_read_from_a_field_that_there_is(tmp_path: Path) -> None:
    tree = tiny.tree(tiny.folder(tmp_path / "pictures"), {"first_stage.train": FEW, "prior.train": FEW})
    tree["prior"]["conditions"] = {"class": {"kind": "class", "field": "nothing"}}
    with pytest.raises(ConfigError, match="needs the field 'nothing'"):
        moyai.train(reading.parse(tree), out=tmp_path / "run")


def test_captions_that_do_not_fit_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    short = {"caption": CONDITIONS["caption"] | {"length": 4}}
    path = tmp_path / "recipe.json"
    path.write_text(reading.to_json(recipe(tmp_path, short)), encoding="utf-8")
    assert cli.main(["train", str(path), "--out", str(tmp_path / "run"), "--stage", "first_stage"]) == 0
    assert "36 of 36 captions have more tokens than fit and lose their end" in capsys.readouterr().err


def test_what_is_missing_of_a_picture_is_cut_as_the_picture_is(run: Path, tmp_path: Path) -> None:
    """A wide photo is cut to its middle, and so is the mask: the hole stays where it is in the photo."""
    model = models.load(run)
    photo, mask = np.full((SIDE, 3 * SIDE, 3), 200, np.uint8), np.zeros((SIDE, 3 * SIDE), np.uint8)
    mask[:, SIDE : SIDE + 8] = 255  # the first eight columns of the middle
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    told = asking.others(model, pictures=[str(tmp_path / "photo.png")], mask=tmp_path / "mask.png")["masked"][0]
    missing = told[-1] > 0
    assert missing[:, :8].all()
    assert not missing[:, 8:].any()
    Image.fromarray(mask[:, : 2 * SIDE]).save(tmp_path / "other.png")
    with pytest.raises(RequestError, match=r"must have the size of the picture, but .*other\.png is 32 x 64 and .*96"):
        asking.others(model, pictures=[str(tmp_path / "photo.png")], mask=tmp_path / "other.png")


def test_maps_in_colours_are_asked_for_by_their_colours(run: Path, tmp_path: Path) -> None:
    """Where masks in training were colours, and grey saved as RGB where they were numbers."""
    model = models.load(run)
    colours = dataclasses.replace(model, facts=model.facts.model_copy(update={"regions": ("#000000", "#0a141e")}))
    wanted = np.random.default_rng(0).integers(0, 2, (SIDE, SIDE))
    picture = tmp_path / "map.png"
    Image.fromarray((wanted[..., None] * [10, 20, 30]).astype(np.uint8)).save(picture)
    assert np.array_equal(asking.others(colours, maps=[picture])["mask"][0], wanted)
    Image.fromarray((wanted[..., None] * [10, 20, 31]).astype(np.uint8)).save(picture)
    with pytest.raises(RequestError, match="has the value #0a141f; the masks of the data have #000000, #0a141e"):
        asking.others(colours, maps=[picture])
    Image.fromarray(np.repeat(wanted[..., None], 3, 2).astype(np.uint8)).save(picture)
    assert np.array_equal(asking.others(model, maps=[picture])["mask"][0], wanted)
    Image.fromarray(wanted.astype(np.uint8)).save(picture)
    nameless = dataclasses.replace(model, facts=model.facts.model_copy(update={"regions": ()}))
    assert np.array_equal(asking.others(nameless, maps=[picture])["mask"][0], wanted)
    with pytest.raises(RequestError, match="has one number a pixel; the masks of the data have colours"):
        asking.others(colours, maps=[picture])


def test_captions_are_made_of_classes(tmp_path: Path) -> None:
    tree = tiny.tree(tiny.folder(tmp_path / "pictures"), {"first_stage.train": FEW, "prior.train": FEW})
    tree["data"]["class_captions"] = ["a {class}", "one {class}"]
    tree["prior"]["conditions"] = {"caption": {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 12}}
    run = moyai.train(reading.parse(tree), out=tmp_path / "run")
    model = models.load(run)
    assert model.fields == ("caption",)
    assert set(model.examples["caption"]) <= {f"{a} {name}" for a in ("a", "one") for name in tiny.CLASSES}
    assert moyai.sample(model, captions=["a ring"], n=2, steps=2).shape == (2, tiny.SIDE, tiny.SIDE, 1)
    with pytest.raises(ConfigError, match=r"no \{class\}"):
        reading.parse({**tree, "data": {**tree["data"], "class_captions": ["a thing"]}})


def test_a_first_stage_is_taken_over_from_another_run(run: Path, tmp_path: Path) -> None:
    other = moyai.train(recipe(tmp_path, {}, **{"first_stage.net.width": 4}), out=tmp_path / "run", first_stage=run)
    mine, theirs = models.load(other), models.load(run)
    assert mine.codec.digest() == theirs.codec.digest()
    assert mine.recipe.first_stage == theirs.recipe.first_stage
    assert mine.fields == ()
    assert "first stage" not in read_json(other / "times.json")
    again = moyai.train(str(other))  # nothing left to do, and nothing against it
    assert again == other
    with pytest.raises(RequestError, match="is no run"):
        moyai.train(recipe(tmp_path, {}), out=tmp_path / "third", first_stage=tmp_path)


def test_two_conditions_that_read_one_field_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prior\.conditions\.b and prior\.conditions\.a both read 'caption'"):
        recipe(tmp_path, {"a": {"kind": "text"}, "b": {"kind": "text"}})


def test_a_folder_with_a_table_and_masks_is_told_and_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    table = ["file_name,caption,age"]
    for i, (picture, label) in enumerate(zip(*tiny.shapes(30), strict=True)):
        Image.fromarray(picture).save(root / f"{i:02d}.png")
        Image.fromarray(((picture > 120) * 255).astype(np.uint8)).save(root / f"{i:02d}_mask.png")
        table.append(f"{i:02d}.png,a {tiny.CLASSES[label]},{20 + i}")
    (root / "metadata.csv").write_text("\n".join(table), encoding="utf-8")
    told = {
        "caption": {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 12},
        "age": {"kind": "scalar", "field": "age", "width": 8},
        "regions": {"kind": "map", "field": "mask"},
    }
    tree = tiny.tree(root, {"first_stage.train": FEW, "prior.train": FEW})
    tree["prior"]["conditions"] = told
    run = moyai.train(reading.parse(tree), out=tmp_path / "run")
    assert models.load(run).examples["caption"].dtype.kind == "U"
    words = ["sample", str(run), "--n", "2", "--steps", "2", "--quiet", "--out", str(tmp_path / "out.npz")]
    asked = ["--caption", "a ring", "a disc", "--number", "age=30,40", "--map", str(root / "00_mask.png")]
    assert cli.main([*words, *asked]) == 0
    drawn = np.load(tmp_path / "out.npz")
    assert drawn["captions"].tolist() == ["a ring"] * 4 + ["a disc"] * 4
    assert drawn["ages"].tolist() == [30, 30, 40, 40] * 2
    assert drawn["masks"].shape == drawn["images"].shape[:3]
    assert np.array_equal(drawn["masks"][0] * 255, np.asarray(Image.open(root / "00_mask.png")))
    Image.fromarray(np.full((tiny.SIDE, tiny.SIDE), 7, np.uint8)).save(tmp_path / "seven.png")
    assert cli.main([*words, "--map", str(tmp_path / "seven.png")]) == 2
    assert "has the value 7; the masks of the data have 0, 255" in capsys.readouterr().err
    assert cli.main([*words, "--number", "weight=3"]) == 2
    assert "this model can be told caption, age, mask" in capsys.readouterr().err
