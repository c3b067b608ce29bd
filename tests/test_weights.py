"""Guidance with a weight for each condition: against the equation written out, and from the command line to the bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import moyai
import tiny
from moyai import cli, pictures, provenance, tasks
from moyai.checkpoints import models
from moyai.commands import asking, evaluate
from moyai.diffusion.grids import GRIDS
from moyai.diffusion.sampling import start
from moyai.errors import RequestError
from moyai.evaluation import assessment
from moyai.files import read_json, write_json_atomic
from moyai.model import LatentModel
from moyai.randomness import image_noise
from moyai.recipe import reading

FEW = {**tiny.QUICK, "steps": 3, "validate_every": 3, "save_every": 2}
CONDITIONS = {
    "label": {"kind": "class", "width": 8},
    "age": {"kind": "scalar", "field": "years", "width": 8, "guidance": 2.0},
    "place": {"kind": "scalar", "field": "metres", "width": 8, "dropout": 0.0},
}
ASKED: dict[str, Any] = {"others": {"years": [30.0], "metres": [5.0]}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is told three things of a picture, the last of them always."""
    home = tmp_path_factory.mktemp("weights")
    table = ["file_name,class,years,metres"]
    (home / "data").mkdir()
    for i, (picture, label) in enumerate(zip(*tiny.shapes(30), strict=True)):
        Image.fromarray(picture).save(home / "data" / f"{i:02d}.png")
        table.append(f"{i:02d}.png,{tiny.CLASSES[label]},{20 + i},{i / 4}")
    (home / "data" / "metadata.csv").write_text("\n".join(table), encoding="utf-8")
    tree = tiny.tree(home / "data", {"first_stage.train": FEW, "prior.train": FEW})
    tree["prior"]["conditions"] = CONDITIONS
    return moyai.train(reading.parse(tree), out=home / "run")


@pytest.fixture(scope="module")
def model(run: Path) -> LatentModel:
    """With an opinion: a network of three steps is still nearly zero."""
    made, generator = models.load(run), torch.Generator().manual_seed(0)
    for module in (made.prior, made.conditioner):
        for parameter in module.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


def asked(model: LatentModel, guidance: Any, label: str = "ring", **settings: Any) -> tasks.Request:
    words = {"n": 4, "seed": 5, "steps": 3, "sampler": "euler", **settings}
    return tasks.request(model, [label], **ASKED, guidance=guidance, **words)


def drawn(model: LatentModel, guidance: Any, label: str = "ring", **settings: Any) -> Tensor:
    """The latents that the walk ends at."""
    return [step.denoised for step in tasks.generate(model, asked(model, guidance, label, **settings))][-1]


def by_hand(model: LatentModel, guidance: Callable[[Callable[..., Tensor]], Tensor]) -> Tensor:
    """The same by Euler's steps on dx / dsigma = (x - D) / sigma; guidance: from D by what is told to the guided D."""
    parameterization = model.diffusion.denoiser.parameterization
    sigmas = GRIDS[model.recipe.sampling.grid](parameterization, 3, 1.0)
    told = {"class": torch.ones(4, dtype=torch.int64), "years": torch.full((4,), 30.0), "metres": torch.full((4,), 5.0)}
    x = start(image_noise(range(5, 9), model.codec.shape()), parameterization, sigmas).double()  # sigma is in thousands
    d = x
    with torch.no_grad():
        for here, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            sigma = torch.full((4,), here)

            def estimate(*names: str, x: Tensor = x, sigma: Tensor = sigma) -> Tensor:
                cond = model.conditioner({name: told[name] for name in names}, 4)
                return model.diffusion.denoiser.given(cond)(x.float(), sigma)

            d = guidance(estimate).double()
            x = x + (after - here) * (x - d) / here
    return d.float()


def test_weights_nest_as_the_equation_says(model: LatentModel) -> None:
    """D = D(c_0) + w_1 (D(c_0, c_1) - D(c_0)) + w_2 (D(c_0, c_1, c_2) - D(c_0, c_1)), c_0 what is always told."""

    def nested(estimate: Callable[..., Tensor]) -> Tensor:
        always, one, both = estimate("metres"), estimate("metres", "class"), estimate("metres", "class", "years")
        return always + 3.0 * (one - always) + 0.5 * (both - one)

    made = drawn(model, {"age": 0.5, "label": 3.0})  # in the order of the recipe, however they are given
    torch.testing.assert_close(made, by_hand(model, nested), atol=2e-5, rtol=1e-4)
    for other in (3.0, {"label": 3.0}, {"label": 0.5, "age": 3.0}, {"label": 1.0, "age": 1.0}):
        assert float((made - drawn(model, other)).abs().max()) > 0.01  # far from what rounding does


def test_equal_weights_are_one_number(model: LatentModel) -> None:
    """The sum telescopes: D(c_0) + w (D(all) - D(c_0)); w = 1 is what is told, w = 0 what is always told alone."""

    def one(weight: float) -> Callable[[Callable[..., Tensor]], Tensor]:
        def guided(estimate: Callable[..., Tensor]) -> Tensor:
            told, untold = estimate("metres", "class", "years"), estimate("metres")
            return untold + weight * (told - untold)

        return guided

    for weight in (2.5, 1.0, 0.0):
        made = drawn(model, {"label": weight, "age": weight})
        torch.testing.assert_close(made, by_hand(model, one(weight)), atol=2e-5, rtol=1e-4)
    assert torch.equal(drawn(model, {"label": 0, "age": 0}, "disc"), drawn(model, {"label": 0, "age": 0}, "ring"))
    assert not torch.equal(drawn(model, {"label": 0, "age": 1}, "disc"), drawn(model, {"label": 0, "age": 1}, "ring"))


def test_one_number_keeps_its_meaning(model: LatentModel) -> None:
    """It is the weight of what has none of its own in the recipe, where age has 2. To the bit."""
    usual = model.recipe.sampling.guidance
    for given, weights in (
        (3.0, {"label": 3.0, "age": 2.0}),
        ({"*": 3.0}, {"label": 3.0, "age": 2.0}),
        (2.0, {"label": 2.0, "age": 2.0}),
        ({}, {"label": usual, "age": 2.0}),
        ({"age": 4}, {"label": usual, "age": 4.0}),
        ({"age": 4, "*": 0.5}, {"label": 0.5, "age": 4.0}),
        ({"label": np.float32(0.5)}, {"label": 0.5, "age": 2.0}),
    ):
        made = asked(model, given)
        if isinstance(given, dict):
            assert (made.guidance, list(made.guidance)) == (weights, ["label", "age"])  # type: ignore[arg-type]
        else:
            assert made.guidance == given
        assert torch.equal(drawn(model, given), drawn(model, weights))
    assert tasks.request(model).guidance == usual
    words = {"classes": ["ring"], **ASKED, "n": 2, "steps": 2}
    one, by_name = (moyai.sample(model, **words, guidance=given) for given in (3.0, {"label": 3, "age": 2}))
    assert np.array_equal(one, by_name)


def test_a_picture_keeps_its_weights_and_is_drawn_again(model: LatentModel) -> None:
    request = asked(model, {"label": 4.0})
    images = tasks.collect(model, request)
    for index in (None, 2):
        carried = provenance.from_json(provenance.to_json(tasks.picture_recipe(model, request, index)))
        assert carried["guidance"] == {"label": 4.0, "age": 2.0}
        age = model.conditioner.conditions["age"]
        try:
            age.guidance = 7.0  # the recipe's own weight is another now, and the picture's stands
            again, changes = tasks.like(model, carried)
        finally:
            age.guidance = 2.0
        assert changes == []
        assert np.array_equal(tasks.collect(model, again), images if index is None else images[2:3])
    with pytest.raises(RequestError, match="guidance of colour: this model has no such condition"):
        tasks.like(model, {**carried, "guidance": {"colour": 1.0}})
    with pytest.raises(RequestError, match="guidance of label is None, which is no number"):
        tasks.like(model, {**carried, "guidance": {"label": None}})
    with pytest.raises(RequestError, match=r"guidance is \[1\], which is no number"):
        tasks.like(model, {**carried, "guidance": [1]})
    with pytest.raises(RequestError, match=r"steps is \{\}, which is no whole number"):
        tasks.like(model, {**carried, "steps": {}})


WRONG = [
    (["lable=3"], "guidance of lable: this model has no such condition; did you mean label"),
    (["class=3"], "guidance of class: this model has no such condition; possible: label, age"),  # that is the field
    (["place=2"], "guidance of place: training never left this condition out (dropout 0), so that it has no weight"),
    (["label=-1"], "guidance of label -1.0 is out of range; possible: 0 to 1000"),
    (["label=nan"], "guidance of label nan is out of range"),
    (["age=inf"], "guidance of age inf is out of range"),
    (["-1", "label=2"], "guidance -1.0 is out of range"),
    (["label=2", "label=2"], "--guidance label=2: label was given before"),
    (["2", "3"], "--guidance 3: one number was given before"),
    (["label=much"], "--guidance label=much is no number"),
    (["much"], "--guidance much is no number"),
    (["label="], "--guidance label= is no number"),
    (["=3"], "--guidance =3 names no condition"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_weights_are_one_line(run: Path, tmp_path: Path, words: list[str], message: str) -> None:
    given = [f"--guidance={word}" for word in words]
    command = ["sample", run, "--out", tmp_path / "x.png", "--quiet", *given]
    status, said = tiny.moyai(command, tmp_path / "said")
    assert status == 2, said
    assert message in tiny.one_line(said)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("value", ["2", True, None])
def test_weights_are_numbers(model: LatentModel, value: Any) -> None:
    with pytest.raises(RequestError, match=f"guidance of label is {value!r}, which is no number"):
        asked(model, {"label": value})


def test_a_model_that_is_told_nothing_has_no_weights(finished_run: Path) -> None:
    model = models.load(finished_run / "run")
    del model.conditioner.conditions["class"]
    with pytest.raises(RequestError, match="guidance of class: this model has no condition that is guided"):
        tasks.request(model, guidance={"class": 2.0})


def test_words_become_weights() -> None:
    assert asking.guidance(None) is None
    assert asking.guidance(["3"]) == 3.0
    assert asking.guidance(["caption=4", "class=1.5"]) == {"caption": 4.0, "class": 1.5}
    assert asking.guidance(["caption=4", "2e-1"]) == {"caption": 4.0, "*": 0.2}
    assert asking.guidance(["a=b=4"]) == {"a=b": 4.0}


def test_the_command_line_draws_what_the_library_draws_and_again(run: Path, tmp_path: Path) -> None:
    words = ["sample", run, "--class", "ring", "--number", "years=30", "metres=5", "--n", 3, "--seed", 5, "--quiet"]
    weights = ["--guidance", "age=0.5", "--guidance", "6"]
    status, said = tiny.moyai([*words, *weights, "--out", tmp_path / "drawn"], tmp_path / "said")
    assert (status, said) == (0, "")
    files = sorted((tmp_path / "drawn").iterdir())
    assert pictures.read_recipe(files[1])["guidance"] == {"label": 6.0, "age": 0.5}
    model = models.load(run)
    request = tasks.request(model, ["ring"], **ASKED, n=3, seed=5, guidance={"label": 6.0, "age": 0.5})
    expected = tasks.collect(model, request)
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), expected[..., 0])
    status, said = tiny.moyai(
        ["sample", run, "--like", files[1], "--out", tmp_path / "again", "--quiet"], tmp_path / "said"
    )
    assert (status, said) == (0, "")
    (again,) = (tmp_path / "again").iterdir()
    assert np.array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(files[1])))
    assert pictures.read_recipe(again) == pictures.read_recipe(files[1])


class Asked(Exception):
    """What an evaluation would have drawn."""


def test_evaluate_takes_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def assess(model: LatentModel, train: Any, held_out: Any, extractor: Any, request: Any, **more: Any) -> None:
        raise Asked(request)

    monkeypatch.setattr(evaluate, "_judges", lambda *given: (None, {}))
    monkeypatch.setattr(assessment, "assess", assess)
    with pytest.raises(Asked) as caught:
        cli.main(["evaluate", str(run), "--n", "6", "--guidance", "label=3", "--guidance", "age=0.5", "--quiet"])
    request = caught.value.args[0]
    assert request.guidance == {"label": 3.0, "age": 0.5}
    assert set(request.asked) == {"class", "years", "metres"}
    np.savez(tmp_path / "x.npz", images=tiny.shapes(9)[0][..., None])
    capsys.readouterr()
    for words, message in (
        ([run, "--guidance", "lable=2"], "guidance of lable: this model has no such condition; did you mean label"),
        ([tmp_path / "x.npz", "--against", run, "--guidance", "label=2"], "--guidance is for the samples of a run"),
    ):
        assert cli.main(["evaluate", *map(str, words), "--quiet"]) == 2
        assert message in tiny.one_line(capsys.readouterr().err)


def test_compare_takes_weights(run: Path, finished_run: Path, tmp_path: Path) -> None:
    """Every run that is compared must have what is named; what an evaluation was drawn by is said where it differs."""
    one, other = (Path(shutil.copytree(run, tmp_path / name)) for name in ("one", "other"))
    model = models.load(one)
    request = asked(model, {"label": 3.0, "age": 0.5}, steps=2, sampler="dpmpp_2m").plain()
    facts = {"model_hash": model.digest, "request": request}
    write_json_atomic(one / "evaluation.json", {"rows": {"samples": {}, "held out": {}}, "facts": facts})
    out = ["--n", 2, "--out", tmp_path / "x.png", "--json", tmp_path / "x.json", "--quiet"]
    status, said = tiny.moyai(["compare", one, other, "--guidance=1", "--guidance=age=4", *out], tmp_path / "said")
    assert status == 0, said
    told = read_json(tmp_path / "x.json")
    (line,) = (line for line in told["lines"] if line["name"] == "drawn by")
    assert line["values"] == ["dpmpp_2m 2, guidance age=4 label=1"] * 2
    assert [made["request"]["guidance"] for made in told["runs"]] == [{"label": 1.0, "age": 4.0}] * 2
    expected = "evaluation: the samples of one were drawn with guidance age=0.5 label=3 (here age=4 label=1)"
    assert [note for note in told["notes"] if "drawn with" in note] == [expected]
    words = ["compare", one, finished_run / "run", "--guidance", "label=3", *out]
    status, said = tiny.moyai(words, tmp_path / "said")
    assert status == 2
    assert "one draws nothing without its metres, which not all runs are told" in tiny.one_line(said)
    recipe = read_json(one / "recipe.json")
    recipe["prior"]["conditions"]["place"]["dropout"] = 0.1  # as if training had left it out at times
    write_json_atomic(one / "recipe.json", recipe)
    status, said = tiny.moyai(words, tmp_path / "said")
    assert status == 2
    assert "run: guidance of label: this model has no such condition; possible: class" in tiny.one_line(said)
