"""`moyai compare`: each number against the part it comes from, its picture against `moyai sample`, what it refuses to
put side by side, and each mistake in one line."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from moyai import cli, tasks
from moyai.checkpoints import models, native
from moyai.commands import subjects
from moyai.data.locate import cache_folder
from moyai.evaluation import comparing, extractors
from moyai.files import read_json, write_json_atomic
from moyai.pictures import read_recipe
from moyai.priors.likelihood import likelihood
from moyai.randomness import Draw

Command = Callable[..., tuple[int, list[str], str]]
CODEBOOK = {"first_stage.kind": "vq", "first_stage.codebook": {"size": 16}}
CELL, GAP, EDGE = 64, 2, 6  # of the picture: a side of 8 pixels is drawn 8 times


@pytest.fixture(scope="session")
def home(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run` and priors over the same first stage (`wide`, `flow`); and `other`, with a first stage of its
    own, over codes, and no conditions, with a prior over these codes (`codes`)."""
    home = tmp_path_factory.mktemp("compared")
    shutil.copytree(finished_run / "run", home / "run")
    shutil.copytree(finished_run / "data", home / "data")
    wide = {"prior.net": {**tiny.NETS["prior.net"], "width": 24}, "prior.train": {**tiny.QUICK, "steps": 6}}
    flow = {"prior.parameterization": {"kind": "flow"}, "sampling": {"steps": 3, "batch": 2}}
    recipes: dict[str, tuple[dict[str, Any], list[Any]]] = {
        "wide": (wide, ["--first-stage", home / "run"]),
        "flow": (flow, ["--first-stage", home / "run"]),
        "other": ({"seed": 1, "prior.conditions": {}, **CODEBOOK}, []),
        "codes": ({"seed": 1, **CODEBOOK}, ["--first-stage", home / "other"]),
    }
    for name, (changes, words) in recipes.items():
        tree = tiny.tree(finished_run / "data", {"name": name, **changes})
        if name == "codes":
            tree["prior"] = {"kind": "codes", "net": {"width": 8, "layers": 2}, "train": tiny.QUICK}
        recipe = home / f"{name}.json"
        recipe.write_text(json.dumps(tree))
        status, said = tiny.moyai(["train", recipe, "--out", home / name, *words], home / "said")
        assert status == 0, said
    return home


@pytest.fixture
def compare(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in the folder of runs: exit status, lines of stdout, stderr."""
    monkeypatch.chdir(home)

    def run(*words: object) -> tuple[int, list[str], str]:
        status = cli.main(["compare", *map(str, words), "--quiet"])
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err

    return run


def lines_of(told: dict[str, Any]) -> dict[str, list[Any]]:
    return {line["name"]: line["values"] for line in told["lines"]}


def notes_of(lines: list[str]) -> list[str]:
    return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


def test_each_number_is_that_of_the_part_it_comes_from(compare: Command, home: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.png", "--json", tmp_path / "x.json", "--n", 1)
    status, lines, error = compare("run", "wide", "flow", *out)
    assert (status, error) == (0, "")
    told = read_json(tmp_path / "x.json")
    found = lines_of(told)
    for i, name in enumerate(("run", "wide", "flow")):
        run = home / name
        weights = native.read(run / "prior" / "model")["model"]
        assert found["parameters"][i] == sum(tensor.numel() for tensor in weights.values())
        assert found["training time"][i] == read_json(run / "times.json")["prior"]
        assert told["runs"][i]["model_hash"] == native.tensors_digest(weights)
        assert told["runs"][i]["first_stage"] == native.inspect(run / "prior" / "model")["info"]["codec"]
    assert found["training steps"] == [12, 6, 12]
    assert found["batch"] == [8, 8, 8]
    assert found["recipe"] == ["tiny", "wide", "flow"]
    assert found["prior"] == ["diffusion v", "diffusion v", "diffusion flow"]
    assert found["net"] == ["unet"] * 3
    assert len(set(found["first stage"])) == 1
    last = [tiny.lines(home / name / "prior" / "log.jsonl")[-1]["validation"]["loss"] for name in ("run", "wide")]
    assert found["held-out loss"] == [*last, None]
    assert found["drawn by"] == ["dpmpp_2m 2, guidance 1.5"] * 2 + ["dpmpp_2m 3, guidance 1.5"]
    seconds = found["seconds a picture (batch 2)"]  # the smallest of the recipes' batches
    assert len(seconds) == 3
    assert all(0 < value < 60 for value in seconds)
    notes = notes_of(lines)
    assert notes == told["notes"]
    assert "held-out loss: that of flow is left out: its parameterization is flow, and that of run v" in notes
    assert any(note.startswith("held-out likelihood: none of flow: Flow has no table") for note in notes)
    assert "evaluation: none of run, wide, flow: `moyai evaluate RUN` was not run" in notes
    assert not any("first stages differ" in note for note in notes)


def test_the_json_is_the_table_that_is_printed(compare: Command, tmp_path: Path) -> None:
    _, lines, _ = compare("run", "other", "--out", tmp_path / "x.png", "--json", tmp_path / "x.json", "--n", 2)
    told = read_json(tmp_path / "x.json")
    assert lines[0].split() == ["run", "other"]
    assert [one["label"] for one in told["runs"]] == ["run", "other"]
    assert len({len(line) for line in lines[: len(told["lines"]) + 1]}) == 1  # one under another
    for printed, line in zip(lines[1:], told["lines"], strict=False):
        name, rest = printed[: len(line["name"])], printed[len(line["name"]) :]
        assert name == line["name"]
        assert " ".join(rest.split()) == " ".join(line["shown"])
    assert lines[-2:] == [
        f"2 pictures of each run in {tmp_path / 'x.png'}, a row a run",
        f"written to {tmp_path / 'x.json'}",
    ]


def test_the_likelihood_is_the_bound_on_held_out_latents(compare: Command, home: Path, tmp_path: Path) -> None:
    """By the cache that the run kept of them, and the classes by hand."""
    compare("run", "wide", "--out", tmp_path / "x.png", "--json", tmp_path / "x.json", "--n", 1)
    found = lines_of(read_json(tmp_path / "x.json"))["held-out nats/value"]
    for name, value in zip(("run", "wide"), found, strict=True):
        model = models.load(home / name)
        stored = {
            k: torch.from_numpy(np.load(home / name / "latents" / "held-out" / f"plain-{k}.npy"))
            for k in ("mean", "std")
        }
        count = len(stored["mean"])
        draw = Draw(0, 0, count, stage="held out")
        held_out = subjects.halves(model.recipe.data, cache_folder(), lambda *_: None).held_out
        told = {"class": torch.from_numpy(held_out.fields["class"])}
        z = model.codec.latents(stored, draw)
        with torch.no_grad():
            cond = model.conditioner(told, count)
        assert value == pytest.approx(likelihood(model.prior, z, cond, draw).value, rel=1e-5)
    assert found[0] != found[1]


def rows_of(picture: Path, rows: int, columns: int) -> np.ndarray:
    """The cells of a comparison, each as the 8 x 8 picture it shows: (rows, columns, 8, 8)."""
    sheet = np.asarray(Image.open(picture))
    height, width = sheet.shape
    top = height - EDGE - rows * (CELL + GAP) + GAP
    left = width - EDGE - columns * (CELL + GAP) + GAP
    out = np.empty((rows, columns, tiny.SIDE, tiny.SIDE), np.uint8)
    for i in range(rows):
        for j in range(columns):
            y, x = top + i * (CELL + GAP), left + j * (CELL + GAP)
            cell = sheet[y : y + CELL, x : x + CELL].reshape(tiny.SIDE, 8, tiny.SIDE, 8)
            assert (cell == cell[:, :1, :, :1]).all()
            out[i, j] = cell[:, 0, :, 0]
    return out


def test_a_row_of_the_picture_is_what_sample_draws(compare: Command, home: Path, tmp_path: Path) -> None:
    words = ("--class", "ring", "disc", "--n", 3, "--seed", 5)
    compare("run", "wide", "flow", *words, "--out", tmp_path / "x.png", "--json", tmp_path / "x.json")
    drawn = rows_of(tmp_path / "x.png", 3, 6)
    for i, name in enumerate(("run", "wide", "flow")):
        assert (
            cli.main(["sample", str(home / name), *map(str, words), "--out", str(tmp_path / "s.npz"), "--quiet"]) == 0
        )
        with np.load(tmp_path / "s.npz") as sampled:
            assert (drawn[i] == sampled["images"][..., 0]).all()
    assert len({row.tobytes() for row in drawn}) == 3
    assert read_json(tmp_path / "x.json")["columns"] == [
        *(f"ring seed {seed}" for seed in (5, 6, 7)),
        *(f"disc seed {seed}" for seed in (8, 9, 10)),
    ]
    carried = read_recipe(tmp_path / "x.png")["compared"]
    assert list(carried) == ["run", "wide", "flow"]
    assert {one["seed"] for one in carried.values()} == {5}
    assert carried["flow"]["steps"] == 3


def test_settings_on_the_command_line_are_everyones(compare: Command, tmp_path: Path) -> None:
    words = ("--steps", 4, "--sampler", "euler", "--guidance", 1)
    status, _, error = compare("run", "flow", *words, "--out", tmp_path / "x.png", "--json", tmp_path / "x.json")
    assert (status, error) == (0, "")
    told = read_json(tmp_path / "x.json")
    assert lines_of(told)["drawn by"] == ["euler 4, guidance 1"] * 2
    assert len(told["columns"]) == 9  # three classes, and eight columns or more


def test_other_first_stages_are_said_and_not_compared(compare: Command, tmp_path: Path) -> None:
    """And what not all are told is told to none: the picture has columns of seeds alone."""
    _, lines, _ = compare("run", "other", "wide", "--out", tmp_path / "x.png", "--json", tmp_path / "x.json")
    told = read_json(tmp_path / "x.json")
    found, digests = lines_of(told), [run["first_stage"][:12] for run in told["runs"]]
    assert digests[0] == digests[2] != digests[1]
    assert found["first stage"] == [f"kl {digests[0]}", f"vq {digests[1]}", f"kl {digests[2]}"]
    assert found["held-out loss"][1] is None
    ours, theirs = (found[f"held-out nats/value (first stage {digests[i]})"] for i in (0, 1))
    assert [value is None for value in ours] == [False, True, False]
    assert [value is None for value in theirs] == [True, False, True]
    notes = notes_of(lines)
    assert any(
        note.startswith(f"the first stages differ (run, wide: {digests[0]}; other: {digests[1]})") for note in notes
    )
    assert (
        f"held-out loss: that of other is left out: its first stage is {digests[1]}, and that of run {digests[0]}"
        in notes
    )
    assert told["columns"] == [f"seed {seed}" for seed in range(8)]
    assert "guidance" not in found["drawn by"][1]


def test_priors_over_codes_and_over_their_latents(compare: Command, home: Path, tmp_path: Path) -> None:
    words = ("--n", 3, "--seed", 7)
    out = ("--out", tmp_path / "x.png", "--json", tmp_path / "x.json")
    _, lines, error = compare("other", "codes", *words, *out, "--steps", 4)
    assert error == ""
    found = lines_of(read_json(tmp_path / "x.json"))
    assert len(set(found["first stage"])) == 1
    assert found["prior"] == ["diffusion v", "codes"]
    assert found["drawn by"] == ["dpmpp_2m 4", "temperature 1, guidance 1"]  # steps are of diffusion
    last = tiny.lines(home / "codes" / "prior" / "log.jsonl")[-1]["validation"]["loss"]
    assert found["held-out bits/code"] == [None, pytest.approx(last, rel=1e-5)]
    assert found["held-out nats/value"][1] is None
    left = "held-out loss: that of codes is left out: its prior.kind is codes, and that of other diffusion"
    assert left in notes_of(lines)
    drawn = rows_of(tmp_path / "x.png", 2, 3)
    other, codes = models.load(home / "other"), models.load(home / "codes")
    for row, model, said in ((drawn[0], other, {"steps": 4}), (drawn[1], codes, {})):
        request = tasks.request(model, rows={}, n=3, seed=7, **said)
        assert (row == tasks.collect(model, request)[..., 0]).all()


def test_a_decoder_trained_further_is_said(home: Path) -> None:
    found = [comparing.Run(n, home / n, models.load(home / n), "", 0, {}) for n in ("run", "wide")]
    assert comparing.stages_note(found) == ""
    with torch.no_grad():
        next(found[1].model.codec.autoencoder.decoder.parameters()).add_(1)
    assert "its decoder was trained further in some" in comparing.stages_note(found)


@pytest.fixture
def judged(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs that were evaluated, in a folder of their own."""
    monkeypatch.setattr(extractors, "own_extractor", functools.partial(extractors.own_extractor, steps=10))
    for name in ("run", "wide"):
        shutil.copytree(home / name, tmp_path / name)
        assert cli.main(["evaluate", str(tmp_path / name), "--n", "6", "--quiet"]) == 0
    return tmp_path


def changed(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    result = read_json(run / "evaluation.json")
    change(result)
    write_json_atomic(run / "evaluation.json", result)


def test_evaluations_are_compared_where_they_were_made_alike(compare: Command, judged: Path) -> None:
    run, wide = judged / "run", judged / "wide"
    words = (run, wide, "--out", judged / "x.png", "--json", judged / "x.json", "--n", 1)

    def told() -> tuple[dict[str, list[Any]], list[str]]:
        status, lines, error = compare(*words)
        assert (status, error) == (0, "")
        return lines_of(read_json(judged / "x.json")), notes_of(lines)

    found, notes = told()
    results = [read_json(one / "evaluation.json") for one in (run, wide)]
    for name in ("fid", "class accuracy"):
        assert found[name] == [result["rows"]["samples"][name]["value"] for result in results]
        assert f"{name}: held-out real pictures have {results[0]['rows']['held out'][name]['value']:.4g}" in notes
    assert f"fid: {results[0]['rows']['samples']['fid']['warning']}" in notes  # few pictures
    assert "kid" not in found
    assert not any("left out" in note or "drawn with" in note for note in notes)

    changed(wide, lambda result: result["rows"]["samples"]["fid"].update(source="inception (abc)"))
    changed(wide, lambda result: result["facts"]["request"].update(steps=50))
    changed(wide, lambda result: result["facts"].update(reference=7))
    found, notes = told()
    assert not {"fid", "class accuracy"} & set(found)
    source = results[0]["rows"]["samples"]["fid"]["source"]
    assert f"fid: that of run is left out: its extractor is {source}, and that of wide inception (abc)" in notes
    count = f"its count of reference pictures is {results[0]['facts']['reference']}, and that of wide 7"
    assert f"class accuracy: that of run is left out: {count}" in notes
    assert "evaluation: the samples of wide were drawn with steps 50 (here 2)" in notes

    write_json_atomic(wide / "evaluation.json", results[1])
    changed(wide, lambda result: result["facts"].update(model_hash="0"))
    found, notes = told()
    assert "fid" not in found
    assert "evaluation: none of wide: evaluation.json is of other weights; `moyai evaluate RUN` makes it anew" in notes
    assert "fid: that of run is left out, no other run has one" in notes


def test_an_evaluation_names_what_it_was_made_with(judged: Path) -> None:
    run = comparing.Run("run", judged / "run", models.load(judged / "run"), "0123456789abcdef", 12, {})
    found = comparing.evaluation(run)
    assert isinstance(found, comparing.Evaluation)
    assert found.figures["fid"].scale["reference"] == "0123456789ab (0.1 held out)"
    assert found.drawn["steps"] == 2
    changed(run.path, lambda result: result["facts"].update(against="pictures.zip"))
    found = comparing.evaluation(run)
    assert isinstance(found, comparing.Evaluation)
    assert found.figures["fid"].scale["reference"] == "that of --against pictures.zip"
    for text in ("[]", "{}", '{"rows": 1, "facts": 2}', "no JSON"):
        (run.path / "evaluation.json").write_text(text)
        assert "is not what this version of moyai writes" in str(comparing.evaluation(run)), text


def test_data_that_are_gone_cost_the_likelihood_alone(compare: Command, home: Path, tmp_path: Path) -> None:
    for name in ("run", "wide"):
        run = Path(shutil.copytree(home / name, tmp_path / name))
        recipe = read_json(run / "recipe.json")
        recipe["data"]["root"] = str(tmp_path / "gone")
        (run / "recipe.json").write_text(json.dumps(recipe))
    words = (tmp_path / "run", tmp_path / "wide", "--out", tmp_path / "x.png", "--json", tmp_path / "x.json")
    status, lines, _ = compare(*words, "--n", 1)
    assert status == 0
    assert any(note.startswith("held-out likelihood: none of run, wide: ") for note in notes_of(lines))
    found = lines_of(read_json(tmp_path / "x.json"))
    assert "held-out loss" in found
    assert not any("nats" in name for name in found)


def one_line(found: tuple[int, list[str], str]) -> str:
    status, lines, error = found
    assert (status, lines) == (2, [])
    return tiny.one_line(error)


def test_mistakes_are_one_line(compare: Command, home: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.png")
    assert "1 run is nothing to compare; possible: moyai compare RUN RUN ..." in one_line(compare("run", *out))
    assert "data is no run" in one_line(compare("run", "data", *out))
    assert "nowhere does not exist" in one_line(compare("run", "nowhere", *out))
    assert "run is named twice" in one_line(compare("run", home / "run", *out))
    assert "--out x.jpg is no .png; possible: comparison.png" in one_line(compare("run", "wide", "--out", "x.jpg"))
    assert "is a folder" in one_line(compare("run", "wide", *out, "--json", tmp_path))
    said = one_line(compare("run", "wide", *out, "--class", "oval"))
    assert "class 'oval' is unknown; possible: disc, ring, square" in said
    said = one_line(compare("run", "other", *out, "--class", "disc"))
    assert "--class was given, which not all runs are told; all are told: nothing" in said
    assert "3 conditions x 30 are 90 pictures in a row; possible: up to 64" in one_line(
        compare("run", "wide", *out, "--n", 30)
    )
    assert "n 0 is out of range" in one_line(compare("run", "wide", *out, "--n", 0))
    assert "sampler 'ddim' is unknown" in one_line(compare("run", "wide", *out, "--sampler", "ddim"))
    assert not (tmp_path / "x.png").exists()


def test_runs_that_are_not_finished_or_not_alike_are_refused(compare: Command, home: Path, tmp_path: Path) -> None:
    half = Path(shutil.copytree(home / "wide", tmp_path / "half"))
    shutil.rmtree(half / "prior" / "model")
    step = native.newest(half / "prior" / "checkpoints").step
    said = one_line(compare("run", half))
    assert f"{half}: training of the prior is at step {step}; `moyai train {half}` finishes it" in said
    shutil.rmtree(half / "prior")
    assert "training of the prior is not begun" in one_line(compare("run", half))
    large = Path(shutil.copytree(home / "wide", tmp_path / "large"))
    told = read_json(large / "data.json")
    told["facts"] |= {"height": 12, "width": 16}
    write_json_atomic(large / "data.json", told)
    said = one_line(compare("run", large))
    assert f"run makes pictures of 8 x 8 with 1 channel(s) of 8 bits, and {large} of 12 x 16 with 1" in said
