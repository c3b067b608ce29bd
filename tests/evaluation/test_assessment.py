"""A run judged as a whole: the table is complete, repeatable, beside its floor, and copies are named."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tiny
from moyai import build, tasks
from moyai.checkpoints import models
from moyai.commands.evaluate import evaluate, table
from moyai.console import Silent
from moyai.data import splits
from moyai.data.images import to_uint
from moyai.evaluation import assessment
from moyai.training.run import train


@pytest.fixture
def run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOYAI_CACHE", str(tmp_path / "cache"))
    few = functools.partial(assessment.own_extractor, steps=30)
    monkeypatch.setattr(assessment, "own_extractor", few)
    return Path(shutil.copytree(finished_run / "run", tmp_path / "run"))


def test_the_table_is_complete_repeatable_and_in_the_report(run: Path) -> None:
    lines = list(evaluate(run, Silent(), count=12, seed=5))
    first = json.loads((run / "evaluation.json").read_text())
    assert list(evaluate(run, Silent(), count=12, seed=5)) == lines
    assert json.loads((run / "evaluation.json").read_text()) == first
    rows, names = assessment.ordered(first)
    assert tuple(rows) == assessment.ROWS
    assert {"fid", "kid", "precision", "recall", "density", "coverage", "class accuracy"} <= set(names)
    assert set(rows["first stage"]) - set(rows["held out"]) == {"psnr", "ssim"}
    for values in rows.values():  # one extractor and one reference for all
        assert len({values[n]["source"] for n in ("fid", "kid", "recall")}) == 1
        assert values["fid"]["reference"] == first["facts"]["reference"]
    assert first["facts"]["samples"] == 12
    train(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "what real pictures reach" in html
    assert all(f">{name}<" in html for name in ("fid", "class accuracy", "ssim"))


def test_copies_of_training_pictures_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.load(run)
    images = build.read_data(model.recipe.data, run)
    mine, theirs = (images.subset(index) for index in splits.split(images, model.recipe.data.validation))
    extractor = assessment.own_extractor(mine, run, lambda *progress: None)
    request = tasks.request(model, n=4)
    judge = functools.partial(assessment.assess, model, mine, theirs, extractor, request, cache=run)
    honest = judge(progress=lambda *progress: None)
    index = np.linspace(0, mine.count - 1, request.count).astype(np.int64)
    copies = to_uint(mine.images(index), bits=8)
    monkeypatch.setattr(tasks, "collect", lambda *request: copies)
    copied = judge(progress=lambda *progress: None)
    assert copied.memorized.close.value == 1.0
    assert len(copied.memorized.worst) == 10
    assert all(match.training == index[match.sample] for match in copied.memorized.worst)
    assert honest.memorized.close.value < 1.0
    # Real pictures are nearer to real ones than those of a model of 12 steps. (FID means nothing at 12 samples.)
    measure = "sliced wasserstein"
    assert copied.values["samples"][measure].value < honest.values["samples"][measure].value


def test_other_data_are_refused_in_one_line(run: Path, finished_run: Path, tmp_path: Path) -> None:
    data = tiny.folder(tmp_path / "other", count=30)
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"]["root"] = str(data)
    (run / "recipe.json").write_text(json.dumps(recipe))
    status, said = tiny.moyai(["evaluate", run, "--n", "4", "--quiet"], tmp_path / "said")
    assert status == 2
    assert "was trained on other data" in tiny.one_line(said)


def test_the_printed_table_names_its_counts_and_its_extractor() -> None:
    value = {"value": 1.5, "low": 1.0, "high": 2.0, "error": None, "warning": "few pictures", "source": "x"}
    facts = {"samples": 3, "held out": 3, "reference": 9, "extractor": "own (abc)"}
    lines = list(table({"rows": {"samples": {"fid": value}, "held out": {"fid": value}}, "facts": facts}))
    assert "3 samples, 3 held-out and 9 training pictures; features: own (abc)" in lines[0]
    assert lines[1].split() == ["held", "out", "samples"]
    assert lines[2].count("1.5 (1 to 2)") == 2
    assert lines[-1] == "note: few pictures"
