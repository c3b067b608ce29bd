"""`moyai evaluate` on runs, folders, archives and arrays; each mistake is one line and exit status 2."""

import functools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from moyai import cli, console
from moyai.checkpoints import models
from moyai.commands import evaluate as evaluation
from moyai.commands.evaluate import table
from moyai.commands.subjects import Halves, against
from moyai.data.images import ImageSet, SourceFile
from moyai.evaluation import extractors

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command: exit status, stdout, stderr."""
    monkeypatch.setenv("MOYAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extractors, "own_extractor", functools.partial(extractors.own_extractor, steps=20))

    def run(*words: object) -> tuple[int, str, str]:
        status = cli.main(["evaluate", *map(str, words), "--quiet"])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Real pictures in class folders."""
    return tiny.folder(tmp_path / "data", count=60)


def samples(root: Path, count: int = 24, side: int = tiny.SIDE, seed: int = 7) -> Path:
    """Other pictures of the same kind, in class folders."""
    for i, (picture, label) in enumerate(zip(*tiny.shapes(count, side, seed), strict=True)):
        (root / tiny.CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / tiny.CLASSES[label] / f"{i:03d}.png")
    return root


def arrays(path: Path, count: int = 24, **changes: Any) -> Path:
    """As `moyai sample --out x.npz` writes them."""
    pixels, labels = tiny.shapes(count, seed=7)
    held = {"images": pixels[..., None], "labels": labels, **changes}
    np.savez_compressed(path, **{name: values for name, values in held.items() if values is not None})
    return path


def values(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_a_folder_an_archive_and_arrays_of_the_same_pictures_say_the_same(
    evaluate: Command, data: Path, tmp_path: Path
) -> None:
    folder = samples(tmp_path / "samples")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", folder))
    pixels, labels = tiny.shapes(24, seed=7)
    order = np.argsort(labels, kind="stable")  # a folder lists class by class
    stacked = arrays(tmp_path / "x.npz", images=pixels[order, ..., None], labels=labels[order])
    found = []
    for subject in (folder, archive, stacked):
        status, said, error = evaluate(subject, "--against", data, "--json", tmp_path / "out" / "x.json")
        assert (status, error) == (0, "")
        assert "24 samples" in said
        assert "class accuracy" in said
        found.append(values(tmp_path / "out" / "x.json"))
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == ["as many samples", "held out", "samples"]  # of fewer held-out pictures
    assert json.loads((tmp_path / "out" / "x.json").read_text())["facts"]["against"] == str(data)


def test_a_run_is_judged_with_its_first_stage_and_sampled_arrays_by_its_data(
    evaluate: Command, finished_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run / "run", tmp_path / "run"))
    status, said, error = evaluate(run, "--n", 9, "--seed", 3, "--json", tmp_path / "x.json")
    assert (status, error) == (0, "")
    assert "first stage" in said
    drawn = values(run / "evaluation.json")
    assert drawn == values(tmp_path / "x.json")
    out = tmp_path / "x.npz"
    assert cli.main(["sample", str(run), "--n", "3", "--seed", "3", "--batch", "80", "--out", str(out), "--quiet"]) == 0
    status, _, error = evaluate(out, "--against", run, "--json", tmp_path / "y.json")
    assert (status, error) == (0, "")
    assert values(tmp_path / "y.json")["samples"] == drawn["samples"]  # the same pictures, the same extractor
    elsewhere = tiny.folder(tmp_path / "elsewhere", count=45)
    status, _, error = evaluate(run, "--n", 9, "--seed", 3, "--against", elsewhere, "--json", tmp_path / "z.json")
    assert (status, error) == (0, "")
    assert values(tmp_path / "z.json")["samples"]["fid"]["reference"] != drawn["samples"]["fid"]["reference"]
    assert "class accuracy" in values(tmp_path / "z.json")["samples"]


def test_copies_in_a_folder_are_named_and_shown(evaluate: Command, data: Path, tmp_path: Path) -> None:
    """Two of the pictures are training pictures under other names; the sheets lie where `--out` says."""
    folder, out = tmp_path / "made", tmp_path / "out"
    folder.mkdir()
    halves = against(str(data), tmp_path / "cache", lambda *_: None)
    fresh, _ = tiny.shapes(20, seed=99)
    for i, picture in enumerate(fresh):
        Image.fromarray(picture).save(folder / f"fresh{i:02d}.png")
    for i in (3, 7):
        Image.fromarray(np.asarray(halves.train.pixels[i])[0]).save(folder / f"stolen{i}.png")
    status, said, error = evaluate(folder, "--against", data, "--out", out)
    assert status == 0, error
    for i in (3, 7):
        assert re.search(rf"near in pixels: stolen{i}\.png to {re.escape(halves.train.names[i])} \(0\)", said)
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert {match["sample"] for match in found["copies"]["pixels"]["worst"][:2]} == {"stolen3.png", "stolen7.png"}
    assert {path.name for path in (out / "evaluation").iterdir()} == set(found["facts"]["sheets"])
    assert len(found["facts"]["sheets"]) == 3


def test_what_is_judged_is_not_written_over(evaluate: Command, data: Path, tmp_path: Path) -> None:
    path = arrays(tmp_path / "x.npz")
    before = path.read_bytes()
    status, _, error = evaluate(path, "--against", data, "--json", path)
    assert status == 2
    assert "is what is judged; possible: another name" in error
    assert path.read_bytes() == before


def test_what_was_measured_is_kept_when_nobody_listens(evaluate: Command, data: Path, tmp_path: Path) -> None:
    """`moyai evaluate ... | head -1`: the reader goes after the first line."""
    lines = evaluation.evaluate(data, console.Silent(), evaluation.Options(str(data), json=tmp_path / "x.json"), {})
    next(lines)
    assert (tmp_path / "x.json").is_file()


def test_classes_count_only_where_the_reference_has_them(evaluate: Command, data: Path, tmp_path: Path) -> None:
    folder = samples(tmp_path / "samples")
    (folder / "disc").rename(folder / "circle")
    assert evaluate(folder, "--against", data, "--json", tmp_path / "x.json")[0] == 0
    found = values(tmp_path / "x.json")
    assert "class accuracy" in found["held out"]
    assert "class accuracy" not in found["samples"]
    unlabelled = arrays(tmp_path / "x.npz", labels=np.full(24, -1))
    assert evaluate(unlabelled, "--against", data, "--n", 10, "--json", tmp_path / "x.json")[0] == 0
    assert "class accuracy" not in values(tmp_path / "x.json")["samples"]
    assert values(tmp_path / "x.json")["samples"]["fid"]["count"] == 10


def labelled(labels: np.ndarray, classes: tuple[str, ...], **fields: np.ndarray) -> ImageSet:
    pixels = np.zeros((len(labels), 1, tiny.SIDE, tiny.SIDE), np.uint8)
    names, files = [str(i) for i in range(len(labels))], (SourceFile("all", 1, "0" * 64),)
    return ImageSet(pixels, {"class": labels.astype(np.int64), **fields}, classes, names, files)


def test_samples_are_of_the_classes_that_the_data_have_as_often(finished_run: Path) -> None:
    """Were they of every class alike, the most faithful model of uneven data would be far from them."""
    model = models.load(finished_run / "run")
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [700, 250, 50]))
    data = labelled(labels, ("square", "disc", "ring"))  # in another order than the model's
    made = evaluation._request(model, Halves(data, data), 40, seed=1)
    asked = Counter(model.classes[number] for number in made.fields()["class"])
    assert asked == {"square": 28, "disc": 10, "ring": 2}
    others = labelled(labels, ("a", "b", "c"))  # of which the model knows nothing: of each of its own as many
    made = evaluation._request(model, Halves(others, others), 40, seed=1)
    assert Counter(made.fields()["class"].tolist()) == {0: 14, 1: 14, 2: 14}


def test_positions_are_those_of_their_class() -> None:
    labels = np.arange(200) % 2
    place = np.where(labels == 0, 0.25, 0.75) + np.linspace(-0.25, 0.25, 200)
    data = labelled(labels, ("low", "high"), position=place.astype(np.float32))
    model: Any = SimpleNamespace(fields=("class", "position"), classes=("high", "low"))
    found = evaluation._as_the_data(model, data, 50)
    assert found is not None
    assert found["class"] == [0] * 25 + [1] * 25
    for name, positions in (("high", found["position"][:25]), ("low", found["position"][25:])):
        real = place[labels == ("low", "high").index(name)]
        assert positions == sorted(positions)
        assert np.quantile(positions, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(real, [0.1, 0.5, 0.9]), abs=0.01)
    model.fields = ("position", "caption")
    assert evaluation._as_the_data(model, data, 50) is None


def one_line(found: tuple[int, str, str]) -> str:
    status, said, error = found
    assert status == 2, (said, error)
    return tiny.one_line(error)


def test_bad_folders_are_one_line(evaluate: Command, data: Path, tmp_path: Path) -> None:
    def judged(folder: Path) -> str:
        return one_line(evaluate(folder, "--against", data))

    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in judged(tmp_path / "empty")
    assert "holds 1 readable picture; at least 2 are needed" in judged(samples(tmp_path / "one", count=1))
    said = judged(samples(tmp_path / "large", side=12))
    assert "are not of 8 x 8 as the reference is" in said
    assert "of 12 x 12" in said
    mixed = samples(tmp_path / "mixed")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(mixed / "disc" / "000.png")
    assert "1 picture(s) are not of 8 x 8 as the reference is, such as disc/000.png of 8 x 9" in judged(mixed)
    colour = samples(tmp_path / "colour")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(colour / "disc" / "000.png")
    assert "8 x 8 with 3 channel(s) of 8 bits and the reference is 8 x 8 with 1 channel(s)" in judged(colour)
    emptied = samples(tmp_path / "emptied")
    (emptied / "oval").mkdir()
    assert "class 'oval' has no picture" in judged(emptied)
    broken = samples(tmp_path / "broken")
    (broken / "disc" / "000.png").write_bytes(b"no picture")
    assert "disc/000.png" in judged(broken)


def test_bad_references_are_one_line(evaluate: Command, data: Path, tmp_path: Path) -> None:
    folder = samples(tmp_path / "samples")
    assert "so --against has to name what it is judged against" in one_line(evaluate(folder))
    said = one_line(evaluate(folder, "--against", "mnits"))
    assert "--against 'mnits' is nothing to judge by; possible: a recipe, a run's folder" in said
    (tmp_path / "void").mkdir()
    assert "holds no pictures" in one_line(evaluate(folder, "--against", tmp_path / "void"))
    (data / "disc" / "000.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(data / "disc" / "z.png")
    assert "such as disc/z.png of 9 x 9" in one_line(evaluate(folder, "--against", data))
    (data / "disc" / "z.png").unlink()
    (data / "oval").mkdir()
    assert "class 'oval' has no picture" in one_line(evaluate(folder, "--against", data))


def test_bad_arrays_are_one_line(evaluate: Command, data: Path, tmp_path: Path) -> None:
    def judged(**changes: Any) -> str:
        return one_line(evaluate(arrays(tmp_path / "x.npz", **changes), "--against", data))

    pixels = tiny.shapes(24)[0][..., None]
    assert "has no array `images` but labels" in judged(images=None)
    assert "`images` is float64 (24, 8, 8, 1); possible: uint8 or uint16" in judged(images=pixels / 255)
    assert "`images` is uint8 (24, 8, 8)" in judged(images=pixels[..., 0])
    assert "holds 1 picture; at least 2 are needed" in judged(images=pixels[:1], labels=None)
    assert "holds 0 pictures" in judged(images=pixels[:0], labels=None)
    assert "with 3 channel(s) of 8 bits and the reference" in judged(images=pixels.repeat(3, 3))
    assert "8 x 8 with 1 channel(s) of 16 bits and the reference" in judged(images=pixels.astype(np.uint16))
    assert "`labels` is int64 (7,)" in judged(labels=np.zeros(7, np.int64))
    assert "`labels` reach to 3, and the reference has 3 classes, 0 to 2" in judged(labels=np.full(24, 3))
    assert "cannot be read as an .npz of arrays" in judged(images=np.array([{}]))  # a pickle
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:100])
    assert "cannot be read as an .npz" in one_line(evaluate(tmp_path / "x.npz", "--against", data))
    np.save(tmp_path / "x.npy", pixels)
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    assert "holds one bare array" in one_line(evaluate(tmp_path / "x.npz", "--against", data))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist; possible: a run's folder"),
        (
            ["samples", "--against", "data", "--extractor", "vgg"],
            "--extractor 'vgg' is unknown; possible: own, inception",
        ),
        (["samples", "--against", "data", "--extractor", "inception:x.safetensors"], "there is no file x.safetensors"),
        (["samples", "--against", "data", "--extractor", "clip:x"], "there is no folder x"),
        (["samples", "--against", "data", "--extractor", "dinov2:data"], "data has no config.json"),
        (["samples", "--against", "data", "--seed", "3"], "--seed is for the samples of a run"),
        (["samples", "--against", "data", "--steps", "3"], "--steps is for the samples of a run"),
        (["samples", "--against", "data", "--n", "1"], "--n 1 is too few to judge; possible: 2 to 24"),
        (["samples", "--against", "data", "--json", "data"], "--json data is a folder"),
        (["samples", "--against", "data", "--json", "file.txt/x.json"], "file.txt cannot be made"),
        (["file.txt", "--against", "data"], "file.txt cannot be judged"),
    ],
)
def test_wrong_words_are_one_line(
    evaluate: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    samples(tmp_path / "samples")
    (tmp_path / "file.txt").write_text("")
    assert message in one_line(evaluate(*words))


def test_a_run_is_not_judged_by_data_it_was_not_trained_on_or_of_another_size(
    evaluate: Command, finished_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run / "run", tmp_path / "run"))
    said = one_line(evaluate(run, "--n", 4, "--against", tiny.folder(tmp_path / "large", side=12)))
    assert "makes pictures of 8 x 8 with 1 channel(s), and the reference is 12 x 12 with 1" in said
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"]["root"] = str(tiny.folder(tmp_path / "other", count=30))
    (run / "recipe.json").write_text(json.dumps(recipe))
    assert "was trained on other data" in one_line(evaluate(run, "--n", 4))
    assert not (run / "evaluation.json").exists()


def test_the_printed_table_names_its_counts_and_its_extractor() -> None:
    value = {
        "value": 1.5,
        "low": 1.0,
        "high": 2.0,
        "error": None,
        "warning": "few pictures",
        "source": "x",
        "metric": "fid",
    }
    facts = {"samples": 3, "held out": 3, "reference": 9, "extractor": "own (abc)"}
    row = {"fid": value, "ms-ssim": {**value, "metric": "ms-ssim (2 scales, window 11)", "warning": ""}}
    lines = list(table({"rows": {"samples": row, "held out": row}, "facts": facts}))
    assert "3 samples, 3 held-out and 9 training pictures; features: own (abc)" in lines[0]
    assert lines[1].split() == ["held", "out", "samples"]
    told = facts | {"extractor is able to": "tell the class of 92 % of pictures it was not trained on"}
    assert list(table({"rows": {"samples": row}, "facts": told}))[1].startswith("it can tell the class of 92 %")
    assert lines[2].count("1.5 (1 to 2)") == 2
    assert {len(line) for line in lines[1:4]} == {len(lines[1])}  # one under another
    assert lines[4] == "with: ms-ssim (2 scales, window 11)"
    assert lines[-1] == "note: fid: few pictures"


def test_the_averages_a_run_kept_are_judged_and_put_into_its_report(
    evaluate: Command, finished_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run / "run", tmp_path / "run"))
    status, said, wrong = evaluate(run, "--n", 12, "--seed", 5, "--snapshots")
    assert (status, wrong) == (0, "")
    steps = values_of(run / "evaluation" / "snapshots.json")["steps"]
    assert len(steps) > 1
    assert [f"step {step['step']:,}:" in said for step in steps] == [True] * len(steps)
    row = values(run / "evaluation.json")["samples"]
    for name in ("fid", "precision", "recall"):  # the last average is the run's own model
        assert steps[-1]["values"][name]["value"] == row[name]["value"]
    assert cli.main(["train", str(run), "--quiet"]) == 0
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "FID against training step" in html
    assert "Precision against recall" in html
    made = (run / "report.html").stat().st_mtime_ns
    assert cli.main(["train", str(run), "--quiet"]) == 0
    assert (run / "report.html").stat().st_mtime_ns == made
    status, _, wrong = evaluate(samples(tmp_path / "pictures"), "--against", run, "--snapshots")
    assert status == 2
    assert "--snapshots is for the samples of a run" in wrong


def values_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_of_a_run_without_a_prior_the_first_stage_is_judged(evaluate: Command, tmp_path: Path) -> None:
    recipe = tiny.recipe_file(tmp_path / "tiny.json", tiny.folder(tmp_path / "data"))
    run = tmp_path / "run"
    status, said = tiny.moyai(["train", recipe, "--out", run, "--stage", "first_stage"], tmp_path / "said")
    assert status == 0, said
    status, said, error = evaluate(run, "--json", tmp_path / "alone.json")
    assert (status, error) == (0, "")
    assert "there is no prior yet: the first stage was judged alone" in said
    alone = values(tmp_path / "alone.json")
    assert set(alone) == {"held out", "first stage"}
    assert {"fid", "psnr", "ssim", "class accuracy"} <= set(alone["first stage"])
    assert not (run / "evaluation.json").exists()
    status, _, error = evaluate(run, "--seed", 3)
    assert status == 2
    assert "has no prior yet; possible: without it" in tiny.one_line(error)
    # The whole run says the same of its first stage.
    status, said = tiny.moyai(["train", recipe, "--out", run], tmp_path / "said")
    assert status == 0, said
    status, said, error = evaluate(run, "--n", 24, "--json", tmp_path / "whole.json")
    assert (status, error) == (0, "")
    assert "a held-out picture costs the prior" in said
    facts = json.loads((tmp_path / "whole.json").read_text())["facts"]
    rates = [facts["likelihood"], facts["likelihood of training pictures"]]
    assert [rate["unit"] for rate in rates] == ["nats/value"] * 2
    assert rates[0]["pictures"] == rates[1]["pictures"] <= facts["held out"]
    assert rates[0]["value"] != rates[1]["value"]
    whole = values(tmp_path / "whole.json")["first stage"]
    assert {name: alone["first stage"][name]["value"] for name in ("psnr", "ssim", "fid")} == pytest.approx(
        {name: whole[name]["value"] for name in ("psnr", "ssim", "fid")}, rel=1e-3
    )
