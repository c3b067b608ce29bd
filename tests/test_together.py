"""A class, a caption, a position, a whole number and a map together in one model, each with its own guidance: from a
folder with a table, through training, to pictures by the command line, to their judgement, and drawn again."""

import functools
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import moyai
import tiny
from moyai import cli, tasks
from moyai.batch import Cond
from moyai.checkpoints import models
from moyai.evaluation import extractors, obedience
from moyai.files import read_json
from moyai.recipe import reading

FEW = {**tiny.QUICK, "steps": 3, "validate_every": 3, "save_every": 2}
COUNT = 40
STAGE = {"first_stage.kind": "vq", "first_stage.codebook": {"size": 8}}
CONDITIONS = {
    "class": {"kind": "class", "width": 8, "guidance": 2.0},
    "words": {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 12, "guidance": 3.0},
    "place": {"kind": "position", "width": 8, "guidance": 1.5},
    "age": {"kind": "scalar", "field": "age", "width": 8},
    "regions": {"kind": "map", "field": "mask", "guidance": 1.25},
}
FIELDS = ("class", "caption", "position", "age", "mask")


def folder(root: Path) -> Path:
    """Pictures with a table and masks; what is known of each is drawn by itself."""
    root.mkdir()
    rng = np.random.default_rng(0)
    table = ["file_name,class,caption,position,age"]
    for i, (picture, label) in enumerate(zip(*tiny.shapes(COUNT), strict=True)):
        Image.fromarray(picture).save(root / f"{i:02d}.png")
        Image.fromarray(((picture > 120) * 255).astype(np.uint8)).save(root / f"{i:02d}_mask.png")
        name = tiny.CLASSES[label]
        table.append(f"{i:02d}.png,{name},a {name},{rng.integers(0, 9) / 8},{rng.integers(20, 80)}")
    (root / "metadata.csv").write_text("\n".join(table), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pictures` and `run`; its weights are moved from where they begin, which is at zero."""
    home = tmp_path_factory.mktemp("together")
    tree = tiny.tree(folder(home / "pictures"), {**STAGE, "first_stage.train": FEW, "prior.train": FEW})
    tree["prior"]["conditions"] = CONDITIONS
    moyai.train(reading.parse(tree), out=home / "run")
    return home


def shaken(module: torch.nn.Module) -> None:
    """A network of three steps is still nearly zero."""
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.3)


def test_whole_numbers_of_a_table_are_told_by_their_range(home: Path) -> None:
    model = models.load(home / "run")
    table = (home / "pictures" / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:]
    ages = [int(line.rpartition(",")[2]) for line in table]
    low, high = model.facts.ranges["age"]  # of those that are trained on
    assert min(ages) <= low < high <= max(ages)
    assert low.is_integer()
    assert high.is_integer()
    embedding: Any = model.conditioner.conditions["age"]
    assert (embedding.low, embedding.high) == (low, high)
    # 37 is 37, whichever type it is asked in
    asked = [tasks.request(model, others={"age": [age]}).fields()["age"] for age in (37, 37.0, np.int64(37))]
    assert all(np.array_equal(one, asked[0]) for one in asked)
    assert asked[0].tolist() == [37.0] * 8


def test_each_is_guided_by_its_own_weight(home: Path) -> None:
    """Against equation (2) of `diffusion.guidance`, written out over all that is told."""
    model = models.load(home / "run")
    shaken(model.prior)
    shaken(model.conditioner)
    request = tasks.request(model, n=1)
    told = tasks.told_of(model, request)
    count, shape = request.count, model.codec.shape()
    x = 3 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    sigma = torch.full((count,), 3.0)
    with torch.no_grad():
        found = tasks.bound(model, told, count, 1.75)(x, sigma)  # of the age, which has none of its own

        def estimate(names: tuple[str, ...]) -> torch.Tensor:
            cond: Cond = model.conditioner({name: told[name] for name in names}, count)
            return model.diffusion.denoiser(x, sigma, cond)

        each = [estimate(FIELDS[:k]) for k in range(6)]
    wanted = each[0]
    for weight, (before, after) in zip((2.0, 3.0, 1.5, 1.75, 1.25), pairwise(each), strict=True):
        assert not torch.equal(before, after)  # every one of them matters
        wanted = wanted + weight * (after - before)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_all_are_asked_for_at_once_judged_and_drawn_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run, map_file = str(home / "run"), str(home / "pictures" / "00_mask.png")
    words = ["sample", run, "--n", "2", "--steps", "2", "--quiet"]
    asked = ["--class", "ring", "disc", "--caption", "a ring", "--position", "0.25", "--number", "age=30,40"]
    weights = ["--guidance", "words=4", "--guidance", "regions=2", "--guidance", "1.5"]
    assert cli.main([*words, *asked, "--map", map_file, *weights, "--out", str(tmp_path / "drawn")]) == 0
    files = sorted((tmp_path / "drawn").iterdir())
    assert len(files) == 8
    assert cli.main([*words, *asked, "--map", map_file, *weights, "--out", str(tmp_path / "drawn.npz")]) == 0
    drawn = np.load(tmp_path / "drawn.npz")
    assert drawn["labels"].tolist() == [1] * 4 + [0] * 4
    assert drawn["ages"].tolist() == [30, 30, 40, 40] * 2
    like = ["sample", run, "--map", map_file, "--quiet", "--out", str(tmp_path / "again.npz"), "--like"]
    assert cli.main([*like, str(files[-1])]) == 0
    assert np.array_equal(np.load(tmp_path / "again.npz")["images"][0], drawn["images"][-1])
    assert cli.main([*words, *asked, "--map", map_file, *weights, "--out", str(tmp_path / "sheet.png")]) == 0
    assert cli.main([*like, str(tmp_path / "sheet.png")]) == 0  # one map, in four rows
    assert np.array_equal(np.load(tmp_path / "again.npz")["images"], drawn["images"])
    assert cli.main([*words, "--number", "age=300", "--out", str(tmp_path / "old.png")]) == 0
    low, high = models.load(home / "run").facts.ranges["age"]
    assert f"age 300 is outside of what was trained on, {low:g} to {high:g}" in capsys.readouterr().err

    monkeypatch.setenv("MOYAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extractors, "own_extractor", functools.partial(extractors.own_extractor, steps=10))
    monkeypatch.setattr(obedience, "STEPS", 10)
    monkeypatch.setattr(obedience, "SEGMENTER_STEPS", 10)
    assert cli.main(["evaluate", run, "--n", "8", "--json", str(tmp_path / "x.json"), "--quiet"]) == 0
    rows = read_json(tmp_path / "x.json")["rows"]
    for row in ("samples", "held out"):
        assert {"class accuracy", "position error", "age error", "mask mIoU"} <= set(rows[row]), row
    assert json.loads((home / "run" / "evaluation.json").read_text())["facts"]["request"]["n"] >= 1


@pytest.mark.parametrize(
    "prior",
    [
        {"kind": "diffusion", "net": {"kind": "dit", "patch": 1, "width": 16, "depth": 2, "heads": 2}},
        {"kind": "codes", "net": {"kind": "transformer", "width": 16, "depth": 1, "heads": 2}},
    ],
    ids=["dit", "codes"],
)
def test_other_priors_are_told_the_same(prior: dict[str, Any], home: Path, tmp_path: Path) -> None:
    tree = tiny.tree(home / "pictures", STAGE)
    tree["prior"] = {**prior, "conditions": CONDITIONS, "train": FEW}
    model = models.load(moyai.train(reading.parse(tree), out=tmp_path / "run", first_stage=home / "run"))
    assert model.fields == FIELDS
    shaken(model.prior)
    shaken(model.conditioner)

    def drawn(**changes: Any) -> np.ndarray:
        asked: dict[str, Any] = {"class": ["ring"], "position": [0.25], "caption": ["a ring"]}
        asked |= {"age": [30], "mask": [np.zeros((tiny.SIDE, tiny.SIDE), np.uint8)], **changes}
        words = {"classes": asked.pop("class"), "positions": asked.pop("position"), "captions": asked.pop("caption")}
        settings = {"n": 4, "steps": 2} if prior["kind"] == "diffusion" else {"n": 16}  # codes move in jumps
        request = tasks.request(model, others=asked, **words, **settings)
        return [state.x for state in tasks.generate(model, request)][-1].numpy()

    first = drawn()
    assert np.array_equal(first, drawn())
    others = {"class": ["disc"], "caption": ["a disc"], "position": [1.0], "age": [80]}
    for field, value in {**others, "mask": [np.ones((tiny.SIDE, tiny.SIDE), np.uint8)]}.items():
        assert not np.array_equal(first, drawn(**{field: value})), field
