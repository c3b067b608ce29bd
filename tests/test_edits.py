"""Edits: what is known stays to the bit, what is missing is not looked at, and a picture says how it was edited."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import moyai
import tiny
from moyai import edits, pictures, tasks
from moyai.build.conditions import build_conditioner
from moyai.build.firststage import build_autoencoder, build_codec
from moyai.build.prior import build_prior
from moyai.commands import asking, outputs
from moyai.edits import Original
from moyai.errors import RequestError
from moyai.model import LatentModel
from moyai.priors.codes import CodePrior
from moyai.recipe.resolve import DataFacts, resolve

SIDE = tiny.SIDE


@pytest.fixture(scope="module")
def model(finished_run: Path) -> LatentModel:
    return tiny.opinionated(finished_run / "run")


def given(count: int = 1, missing: np.ndarray | None = None) -> list[Original]:
    return [Original(image[..., None], missing) for image in tiny.shapes(count, seed=7)[0]]


def half(value: int = 255) -> np.ndarray:
    """A mask: the right half is to be painted."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, SIDE // 2 :] = value
    return mask


def drawn(
    model: LatentModel, begun: list[Original], classes: list[str | int] | None = None, **settings: Any
) -> np.ndarray:
    return tasks.collect(model, tasks.request(model, classes, originals=begun, **settings))


def test_each_picture_with_each_of_what_is_asked(model: LatentModel) -> None:
    r = tasks.request(model, ["ring", "disc"], originals=given(3), n=2)
    assert (r.rows, r.count, r.strength, r.repeats) == (6, 12, 0.6, 1)
    labels = r.labels()
    assert labels is not None
    assert labels.tolist() == [1, 1, 0, 0] * 3
    assert [one.image[0, 0, 0] for one in r.originals] == [one.image[0, 0, 0] for one in given(3) for _ in range(2)]
    alone = tasks.request(model, originals=given(3, half()))
    assert (alone.asked, alone.rows, alone.strength, alone.repeats) == ({}, 3, 1.0, 10)
    assert tasks.request(model, originals=given(), n=2).batch == 2  # no forward is larger than the edit
    assert tasks.row_names(model, alone) == ("picture 1", "picture 2", "picture 3")


def test_little_strength_leaves_the_reconstruction_and_more_changes_more(model: LatentModel) -> None:
    begun = given(6)
    again = model.decode(model.encode(np.stack([one.image for one in begun]))).astype(float)
    far = [
        float(np.abs(drawn(model, begun, n=1, strength=strength, steps=6) - again).mean())
        for strength in (0.001, 0.2, 0.5, 1.0)
    ]
    assert far[0] < 1
    assert far == sorted(far)
    assert far[-1] > 10


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "ddpm"])
def test_what_is_known_stays_to_the_bit(model: LatentModel, sampler: str) -> None:
    begun = given(3, half())
    images = drawn(model, begun, ["ring"], n=2, sampler=sampler, repeats=2, steps=3)
    whole = np.repeat(np.stack([one.image for one in begun]), 2, axis=0)
    assert np.array_equal(images[:, :, : SIDE // 2], whole[:, :, : SIDE // 2])
    assert not np.array_equal(images[:, :, SIDE // 2 :], whole[:, :, SIDE // 2 :])
    assert len({image.tobytes() for image in images}) == 6


def test_the_walk_itself_is_held_to_what_is_known(model: LatentModel) -> None:
    """Not only the pixels that are put back: the latents, where no pixel of their place is missing."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[3, SIDE - 1] = 255  # one pixel, and so one place of the latents
    begun = given(2, mask)
    known, missing = edits.beginning(model, begun, {}, 1.0)
    assert missing is not None
    side = SIDE // known.shape[2]
    assert [tuple(place) for place in missing[0, 0].nonzero().tolist()] == [(3 // side, known.shape[3] - 1)]
    *_, last = tasks.generate(model, tasks.request(model, originals=begun, n=1, steps=3, repeats=2))
    there = missing.expand_as(known) > 0
    assert torch.equal(last.denoised[~there], known[~there])
    assert not torch.isclose(last.denoised[there], known[there]).any()


@pytest.mark.parametrize(("repeats", "forwards"), [(1, 5), (4, 17)])
def test_each_step_but_the_last_is_walked_so_often(model: LatentModel, repeats: int, forwards: int) -> None:
    rows: list[int] = []
    hook = model.diffusion.denoiser.net.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    drawn(model, given(2, half()), n=1, steps=5, repeats=repeats, sampler="euler")
    hook.remove()
    assert rows == [2] * forwards


def test_a_picture_without_a_mask_begins_as_it_would_alone(model: LatentModel) -> None:
    mixed, alone = [given(2, half())[0], given(2)[1]], given(2)[1:]
    together = drawn(model, mixed, n=2, seed=5, strength=1.0, repeats=1, batch=4)
    assert np.array_equal(together[2:], drawn(model, alone, n=2, seed=7, strength=1.0, repeats=1, batch=4))


def test_a_tables_own_grid_gives_way_to_one_that_may_begin_anywhere(model: LatentModel) -> None:
    recipe = model.recipe.model_copy(update={"sampling": model.recipe.sampling.model_copy(update={"grid": "table"})})
    paper = replace(model, recipe=recipe)
    assert tasks.request(paper).grid == tasks.request(paper, originals=given(1, half())).grid == "table"
    assert tasks.request(paper, originals=given(), strength=0.4).grid == "uniform-time"


def test_the_way_there_ends_in_the_result(model: LatentModel) -> None:
    r = tasks.request(model, originals=given(2, half(100)), n=1, steps=3, repeats=2)
    noisy, predicted = tasks.process(model, r)
    assert np.array_equal(noisy[-1], predicted[-1])
    assert np.array_equal(predicted[-1], tasks.collect(model, r))


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "not square": ({}, {"width": 16}),
    "four channels": ({}, {"channels": 4}),
    "16 bits": ({}, {"bits": 16}),
    "pixels": ({"codec": {"kind": "pixels"}}, {}),
    "a first stage that is told": ({"first_stage.conditions": {"class": {"kind": "class", "width": 8}}}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_keeps_what_is_known(kind: str) -> None:
    changes, known = KINDS[kind]
    size = {"channels": 1, "height": SIDE, "width": SIDE, "bits": 8} | known
    facts = DataFacts(count=60, classes=tiny.CLASSES, fields=("class",), **size)
    recipe = resolve(tiny.recipe(Path("data"), {**changes, "sampling": {"batch": 4}}), facts)
    first = None if "codec" in changes else build_autoencoder(recipe, facts)
    codec, told = build_codec(recipe, facts, first), build_conditioner(recipe, facts)
    model = LatentModel(codec, told, build_prior(recipe, told, codec.shape()), recipe, facts)
    dtype = np.dtype(np.uint16 if facts.bits > 8 else np.uint8)
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(dtype).max, (facts.height, facts.width, facts.channels), dtype, endpoint=True)
    mask = np.zeros((facts.height, facts.width), np.uint8)
    mask[: facts.height // 2] = 255
    begun = [Original(image, mask)]
    drawings = drawn(model, begun, ["ring"], n=2, steps=3, repeats=2)
    assert (drawings.dtype, drawings.shape[1:]) == (dtype, image.shape)
    assert (drawings[:, facts.height // 2 :] == image[facts.height // 2 :]).all()
    assert (drawings[:, : facts.height // 2] != image[: facts.height // 2]).mean() > 0.5
    assert begun[0].shown()[0, 0, 0] == np.iinfo(dtype).max // 2
    changed = drawn(model, [Original(image)], n=2, steps=3, strength=1e-4)
    assert np.abs(changed - model.decode(model.encode(image[None])).astype(float)).max() <= np.iinfo(dtype).max / 100


def test_at_full_strength_nothing_of_the_hole_is_looked_at(model: LatentModel) -> None:
    begun = given(2, half())
    scribbled = [replace(one, image=one.image.copy()) for one in begun]
    for one in scribbled:
        one.image[:, SIDE // 2 :] = 255 - one.image[:, SIDE // 2 :]
    assert np.array_equal(drawn(model, begun, steps=3), drawn(model, scribbled, steps=3))
    assert not np.array_equal(
        drawn(model, begun, steps=3, strength=0.3), drawn(model, scribbled, steps=3, strength=0.3)
    )


def test_a_soft_mask_mixes(model: LatentModel) -> None:
    hard, soft = (drawn(model, given(1, half(value)), n=1, steps=3).astype(float) for value in (255, 51))
    image = given(1)[0].image.astype(float)
    assert np.abs(soft[0] - (image + 0.2 * (hard[0] - image))).max() <= 0.5


def test_a_picture_is_the_same_alone_and_among_others(model: LatentModel) -> None:
    begun = [*given(2, half()), *given(1)]
    together = drawn(model, begun, n=2, seed=5, strength=0.7, repeats=2, batch=4)
    alone = drawn(model, begun[1:2], n=2, seed=7, strength=0.7, repeats=2, batch=4)
    assert np.array_equal(together[2:4], alone)


def test_a_hole_is_continued_from_what_is_around_it() -> None:
    image = torch.zeros(1, 1, 7, 7)
    image[..., :4], image[..., 4:] = -0.5, 0.5
    missing = torch.zeros(1, 1, 7, 7)
    missing[..., 2:4, 1:3] = 1
    spoiled = torch.where(missing > 0, 9.0, image)
    assert torch.equal(edits.surrounded(spoiled, missing), image)  # the nearest squares know nothing but -0.5
    ramp = torch.linspace(-1, 1, 49).reshape(1, 1, 7, 7)
    filled = edits.surrounded(torch.where(missing > 0, 9.0, ramp), missing)
    assert torch.equal(filled[missing == 0], ramp[missing == 0])
    assert bool(((filled >= -1) & (filled <= 1)).all())
    lone = torch.ones(1, 1, 7, 7)
    lone[..., 6, 6] = 0
    assert torch.equal(edits.surrounded(ramp, lone), ramp[..., 6:, 6:].expand_as(ramp))
    assert torch.equal(edits.surrounded(ramp, torch.ones_like(ramp)), torch.zeros_like(ramp))


@pytest.mark.parametrize("mask", [None, half()])
def test_the_recipe_in_an_edited_picture_makes_it_again(
    model: LatentModel, mask: np.ndarray | None, tmp_path: Path
) -> None:
    begun = given(2, mask)
    r = tasks.request(model, ["ring"], originals=begun, n=2, seed=9, strength=0.5, repeats=3, steps=3)
    images = tasks.collect(model, r)
    list(outputs.write(model, r, images, tmp_path / "all", None))
    for k, file in enumerate(sorted((tmp_path / "all").glob("*.png"))):
        recipe = pictures.read_recipe(file)
        again, changes = tasks.like(model, recipe, originals=begun)
        assert changes == []
        assert (again.seed, again.strength, again.repeats, again.count) == (9 + k, 0.5, 3, 1)
        assert np.array_equal(tasks.collect(model, again)[0], images[k])
        for others in ((), given(2, half(100)), [Original(255 - one.image, mask) for one in begun]):
            with pytest.raises(RequestError, match="made of another one, which is not what was given"):
                tasks.like(model, recipe, originals=others)
        said = Image.open(file).info["XML:com.adobe.xmp"]
        assert ("compositeWithTrainedAlgorithmicMedia" in said) == (mask is not None)
        assert "Denoising strength: 0.5" in Image.open(file).info["parameters"]
    list(outputs.write(model, r, images, tmp_path / "sheet.png", None))
    assert tasks.like(model, pictures.read_recipe(tmp_path / "sheet.png"), originals=begun)[0].plain() == r.plain()
    assert "originals" not in tasks.picture_recipe(model, tasks.request(model))


def test_the_public_function(model: LatentModel) -> None:
    images = np.stack([one.image for one in given(2)])
    changed = moyai.edit(model, images, classes=["disc"], n=2, seed=3, steps=3)
    assert np.array_equal(changed, drawn(model, given(2), ["disc"], n=2, seed=3, steps=3))
    filled = moyai.edit(model, images, mask=half(), steps=3, repeats=2)
    assert np.array_equal(filled[:, :, : SIDE // 2], images[:, :, : SIDE // 2])
    each = moyai.edit(model, images, mask=np.stack([half(), half()]), steps=3, repeats=2)
    assert np.array_equal(each, filled)
    numbers = moyai.edit(model, images, strength=np.float32(0.5), steps=3)  # type: ignore[arg-type]
    assert np.array_equal(numbers, moyai.edit(model, images, strength=0.5, steps=3))
    with pytest.raises(RequestError, match="there are no pictures to edit"):
        moyai.edit(model, images[:0], strength=0.5)
    with pytest.raises(RequestError, match="3 masks for 2 pictures"):
        moyai.edit(model, images, mask=np.stack([half()] * 3))
    with pytest.raises(RequestError, match=r"given \(8, 1\) uint8"):
        moyai.edit(model, images[0])


@pytest.mark.parametrize(
    ("begun", "settings", "message"),
    [
        ([Original(np.zeros((4, 4, 1), np.uint8))], {}, r"edits pictures \(8, 8, 1\) uint8; given \(4, 4, 1\) uint8"),
        ([Original(np.zeros((8, 8, 1), np.uint16))], {}, r"given \(8, 8, 1\) uint16"),
        (given(1, np.zeros((4, 4), np.uint8)), {}, r"the mask must be \(8, 8\) uint8 as the picture is"),
        (
            given(1, np.zeros((8, 8), np.uint8)),
            {},
            "the mask has no value above 0: there is nothing to fill in; possible: 255",
        ),
        (given(1, np.ones((8, 8), np.uint8)), {}, "the mask has no value above 1: there is nothing to fill in"),
        (given(), {"strength": 0.0}, "strength 0.0 is out of range; possible: 0.0001 to 1"),
        (given(), {"strength": "much"}, "strength is 'much', which is no number"),
        (given(), {"strength": 0.5, "grid": "table"}, "begins at the table's end only, and strength 0.5 does not"),
        (given(), {"strength": 1.1}, "strength 1.1 is out of range"),
        (given(), {"strength": float("nan")}, "strength nan is out of range"),
        (given(), {"repeats": 0}, "repeats 0 is out of range; possible: 1 to 1000"),
        (given(), {"repeats": 2.5}, "repeats is 2.5, which is no whole number"),
        ([], {"strength": 0.5}, "strength is of pictures to begin with, and none is given"),
        ([], {"repeats": 5}, "repeats is of pictures to begin with"),
        (given(), {"rows": {"class": [0, 1]}}, "a value for each field they name"),
    ],
)
def test_what_cannot_be_edited(
    model: LatentModel, begun: list[Original], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        tasks.request(model, originals=begun, **settings)


def test_a_prior_over_codes_edits_nothing(model: LatentModel) -> None:
    with pytest.raises(
        RequestError, match="prior is of codes, drawn one after the other; edits need a diffusion prior"
    ):
        edits.settings(replace(model, prior=CodePrior([])), given(), None, None)


def test_a_larger_mask_does_not_ring_at_its_edges(model: LatentModel, tmp_path: Path) -> None:
    large = np.kron(half(), np.ones((10, 10), np.uint8))
    Image.fromarray(large).save(tmp_path / "mask.png")
    Image.fromarray(np.kron(tiny.shapes(1)[0][0], np.ones((10, 10), np.uint8))).save(tmp_path / "a.png")
    said: list[str] = []
    (one,) = asking.originals(model, [tmp_path / "a.png"], tmp_path / "mask.png", said.append)
    assert one.missing is not None
    assert np.array_equal(one.missing, half())
    assert said == [f"{tmp_path / 'a.png'}: brought from another size by 'crop'"]
    Image.fromarray(np.dstack([large] * 3)).save(tmp_path / "a.png")
    asking.originals(model, [tmp_path / "a.png"], None, said.append)
    assert said[-1].endswith("colour: turned to grey")


def test_the_command(finished_run: Path, tmp_path: Path) -> None:
    def edit(*words: object) -> tuple[int, str]:
        out = [] if "--out" in words else ["--out", tmp_path / "out.png"]
        return tiny.moyai(["edit", finished_run / "run", *words, *out], tmp_path / "said")

    for name, image in zip(("a", "b"), tiny.shapes(2, seed=3)[0], strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    Image.fromarray(half()).save(tmp_path / "mask.png")
    Image.fromarray(np.zeros((20, 10), np.uint8)).save(tmp_path / "tall.png")
    a, b, mask = (tmp_path / f"{name}.png" for name in ("a", "b", "mask"))
    status, said = edit(a, b, "--mask", mask, "--n", 2, "--steps", 2, "--gif", tmp_path / "way.gif")
    assert status == 0, said
    assert "4 pictures in" in said
    sheet = np.asarray(Image.open(tmp_path / "out.png"))
    status, said = edit(a, b, "--mask", mask, "--like", tmp_path / "out.png", "--out", tmp_path / "again.png")
    assert status == 0, said
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), sheet)
    status, said = edit(tmp_path / "tall.png", "--class", "ring", "--strength", 0.4, "--steps", 2)
    assert status == 0, said
    assert "tall.png: brought from another size by" in said
    status, said = edit(a, b, "--n", 1, "--steps", 2, "--out", tmp_path / "each")
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == ["a-000000.png", "b-000001.png"]
    status, said = edit(tmp_path / "each" / "a-000000.png", "--n", 1, "--steps", 2, "--out", tmp_path / "each")
    assert len(list((tmp_path / "each").iterdir())) == 3  # what was begun with is still there
    for words, message in (
        ([tmp_path / "none.png"], "none.png cannot be read as a picture"),
        ([tmp_path / "tall.png", "--mask", mask], "the mask must have the size of the picture"),
        ([a, "--strength", "2"], "strength 2.0 is out of range; possible"),
        ([a, "--strength", "0.5", "--grid", "table"], "strength 0.5 does not; possible: karras"),
        ([a, b, "--out", b], "is one of the pictures to be read; possible: another --out"),
        ([a, "--like", finished_run / "run" / "samples" / "samples.png"], "was drawn from nothing, not of another one"),
        ([a, "--like", tmp_path / "way.gif", "--strength", "0.3"], "--strength would change that"),
        ([a, "--like", tmp_path / "way.gif"], "possible: `moyai edit` with the same picture"),
    ):
        status, said = edit(*words, "--quiet")
        assert status == 2, said
        assert message in tiny.one_line(said)
    words = ["sample", finished_run / "run", "--like", tmp_path / "way.gif", "--out", tmp_path / "x.png", "--quiet"]
    status, said = tiny.moyai(words, tmp_path / "said")
    assert status == 2
    assert "this picture was made of another one" in tiny.one_line(said)
