"""Requests: what is refused, what makes a picture the same again, and what it may depend on."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moyai
import tiny
from moyai import pictures, tasks
from moyai.commands import outputs
from moyai.errors import RequestError
from moyai.model import LatentModel
from tiny import CLASSES


@pytest.fixture(scope="module")
def model(finished_run: Path) -> LatentModel:
    return tiny.opinionated(finished_run / "run")


def drawn(model: LatentModel, classes: list[str | int] | None = None, **settings: Any) -> np.ndarray:
    return tasks.collect(model, tasks.request(model, classes, **settings))


def test_what_is_not_said_follows_from_the_recipe(model: LatentModel) -> None:
    r = tasks.request(model)
    sampling = model.recipe.sampling
    assert (r.steps, r.sampler, r.grid, r.batch) == (2, sampling.sampler, sampling.grid, 4)
    assert (r.n, r.seed, r.asked, r.count) == (8, 0, {"class": (0, 1, 2)}, 24)
    labels = tasks.request(model, ["ring", 0], n=2).labels()
    assert labels is not None
    assert labels.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "eular"}, "sampler 'eular' is unknown; did you mean euler"),
        ({"grid": "kerras"}, "grid 'kerras' is unknown; did you mean karras"),
        ({"n": 0}, "n 0 is out of range; possible: 1 to 1000000"),
        ({"steps": 0}, "steps 0 is out of range; possible: 1 to 1000"),
        ({"steps": 1001}, "steps 1001 is out of range; possible: 1 to 1000"),
        ({"batch": 0}, "batch 0 is out of range; possible: 1 to 4096"),
        ({"guidance": -1.0}, "guidance -1.0 is out of range; possible: 0 to 1000"),
        ({"guidance": float("nan")}, "guidance nan is out of range"),
        ({"guidance": float("inf")}, "guidance inf is out of range"),
        ({"eta": 1.5, "sampler": "euler"}, "eta 1.5 is out of range; possible: 0 to 1"),
        ({"eta": 0.5, "sampler": "heun"}, "eta 0.5 needs a sampler that adds noise; possible: euler"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": 2**63}, "seed 9223372036854775808 is out of range"),
        ({"seed": 2**63 - 3}, "leaves no room for 24 pictures"),
        ({"step": 3}, "step is no setting of a request; did you mean steps"),
        ({"steps": 2.5}, "steps is 2.5, which is no whole number"),
        ({"n": True}, "n is True, which is no whole number"),
        ({"guidance": "2"}, "guidance is '2', which is no number"),
        ({"sampler": ["euler"]}, r"sampler is \['euler'\], which is no name"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(model: LatentModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        tasks.request(model, **settings)


def test_a_picture_is_the_same_alone_in_any_request_and_at_any_place(model: LatentModel) -> None:
    """At one `batch`: to the bit."""
    together = drawn(model, ["ring"], n=6, seed=10)
    for i in range(6):
        assert np.array_equal(drawn(model, ["ring"], n=1, seed=10 + i)[0], together[i])
    assert np.array_equal(drawn(model, ["ring"], n=3, seed=13), together[3:])
    among = drawn(model, ["disc", "ring", "square"], n=2, seed=8)
    assert np.array_equal(among[2:4], together[:2])
    assert len({image.tobytes() for image in together}) == 6


def test_another_batch_changes_a_grey_level_at_most(model: LatentModel) -> None:
    reference = drawn(model, n=12, seed=3, batch=4).astype(int)
    for batch in (1, 3, 36, 50):
        far = np.abs(drawn(model, n=12, seed=3, batch=batch).astype(int) - reference)
        assert far.max() <= 1
        assert (far > 0).mean() <= 0.001


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2s", "dpmpp_2m"])
def test_large_seeds_eta_and_samplers(model: LatentModel, sampler: str) -> None:
    eta = 0.0 if sampler == "heun" else 1.0
    one, same, other = (
        drawn(model, ["disc"], n=2, seed=s, steps=4, sampler=sampler, eta=eta) for s in (1, 1, 2**32 + 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    if eta:
        assert np.array_equal(drawn(model, ["disc"], n=1, seed=2, steps=4, sampler=sampler, eta=eta)[0], one[1])
        assert not np.array_equal(one, drawn(model, ["disc"], n=2, seed=1, steps=4, sampler=sampler, eta=0.0))


def test_classes_and_guidance_matter(model: LatentModel) -> None:
    pairs = [drawn(model, ["disc"], n=4, guidance=g) for g in (0.0, 1.0, 4.0)]
    pairs.append(drawn(model, ["square"], n=4, guidance=1.0))
    for one, other in itertools.combinations(pairs, 2):
        assert not np.array_equal(one, other)
    assert np.array_equal(drawn(model, ["square"], n=4, guidance=0.0), pairs[0])  # guidance 0 does not know the class


def test_progress_counts_and_states(model: LatentModel) -> None:
    r = tasks.request(model, ["disc", "ring"], n=3, steps=3, batch=4)
    told: list[tuple[int, int]] = []
    images = tasks.collect(model, r, lambda done, total: told.append((done, total)))
    assert told == [(i, 6) for i in range(1, 7)]
    states = list(tasks.generate(model, r))
    assert [(s.pictures, s.step) for s in states] == [(p, k) for p in (range(4), range(4, 6)) for k in (1, 2, 3)]
    assert [s.images is not None for s in states] == [False, False, True] * 2
    assert [s.sigma for s in states[:3]] == sorted((s.sigma for s in states[:3]), reverse=True)
    assert states[2].sigma == 0
    assert torch.equal(states[2].x, states[2].denoised)
    assert [len(s.x) for s in states] == [4, 4, 4, 2, 2, 2]
    assert np.array_equal(np.concatenate([s.images for s in states if s.images is not None]), images)


def test_closing_the_iterator_cancels(model: LatentModel) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = model.prior.denoiser.net.register_forward_hook(count)
    walk = tasks.generate(model, tasks.request(model, n=4, steps=50, sampler="euler"))
    next(walk)
    walk.close()
    handle.remove()
    assert calls == 1


@pytest.mark.parametrize(("steps", "frames"), [(1, 30), (5, 30), (40, 10)])
def test_the_process_ends_in_the_result(model: LatentModel, steps: int, frames: int) -> None:
    r = tasks.request(model, n=1, steps=steps, sampler="euler", batch=3)
    noisy, predicted = tasks.process(model, r, frames)
    assert len(noisy) == len(predicted)
    assert min(steps, frames) <= len(noisy) <= frames + 2
    result = tasks.collect(model, r)
    assert np.array_equal(noisy[-1], result)
    assert np.array_equal(predicted[-1], result)
    assert steps == 1 or not np.array_equal(noisy[0], result)


def test_the_recipe_in_a_picture_makes_it_again(model: LatentModel, tmp_path: Path) -> None:
    r = tasks.request(model, ["ring", "disc"], n=2, seed=2**40, guidance=3.0, sampler="euler", eta=0.5, steps=3)
    images = tasks.collect(model, r)
    list(outputs.write(model, r, images, tmp_path / "all", None))
    files = sorted((tmp_path / "all").glob("*.png"))
    assert [f.name for f in files] == [f"{2**40 + i}-{('ring', 'disc')[i // 2]}.png" for i in range(4)]
    for k, file in enumerate(files):
        recipe = pictures.read_recipe(file)
        again, changes = tasks.like(model, recipe)
        assert changes == []
        assert (again.count, again.seed, recipe["class_names"]) == (1, 2**40 + k, [("ring", "disc")[k // 2]])
        assert np.array_equal(tasks.collect(model, again)[0], images[k])
        assert np.array_equal(np.asarray(pictures.Image.open(file)), images[k][..., 0])
    list(outputs.write(model, r, images, tmp_path / "sheet.png", None))
    again, _ = tasks.like(model, pictures.read_recipe(tmp_path / "sheet.png"))
    assert again.plain() == r.plain()


def test_what_has_changed_since_is_said(model: LatentModel) -> None:
    recipe = tasks.picture_recipe(model, tasks.request(model))
    _, changes = tasks.like(model, {**recipe, "model_hash": "other", "threads": 99})
    assert changes == [
        f"model hash was other, is {model.digest}",
        f"threads was 99, is {torch.get_num_threads()}",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "9; rm"}, "steps is '9; rm', which is no whole number"),
        ({"asked": "disc"}, "asks for 'disc', which are no rows"),
        ({"asked": {"class": ["disc"]}}, r"names the classes \['disc'\], which are no class numbers"),
        ({"asked": {"class": [9]}}, "class 9 is unknown"),
        ({"asked": {"class": [-1]}}, "class -1 is unknown"),
        ({"n": 10**9}, "out of range"),
        ({"seed": None}, None),
    ],
)
def test_a_recipe_that_says_nonsense_is_refused(
    model: LatentModel, changes: dict[str, Any], message: str | None
) -> None:
    recipe = {**tasks.picture_recipe(model, tasks.request(model)), **changes}
    if message is None:
        assert tasks.like(model, recipe)[0].seed == 0
        return
    with pytest.raises(RequestError, match=message):
        tasks.like(model, recipe)
    del recipe["batch"]
    with pytest.raises(RequestError, match="this picture's recipe has no batch"):
        tasks.like(model, recipe)


def test_arrays_hold_pictures_and_labels(model: LatentModel, tmp_path: Path) -> None:
    r = tasks.request(model, ["square", "disc"], n=3)
    images = tasks.collect(model, r)
    assert list(outputs.write(model, r, images, tmp_path / "a.npz", None)) == [f"6 pictures in {tmp_path / 'a.npz'}"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["images", "labels"]
        assert (arrays["images"].dtype, arrays["images"].shape) == (np.uint8, (6, 8, 8, 1))
        assert (arrays["labels"].dtype, arrays["labels"].tolist()) == (np.int64, [2, 2, 2, 0, 0, 0])
        assert np.array_equal(arrays["images"], images)


def test_the_public_words(model: LatentModel) -> None:
    images = moyai.sample(model, classes=["ring"], n=3, seed=4, steps=2)
    assert (images.shape, images.dtype) == ((3, 8, 8, 1), np.uint8)
    assert np.array_equal(images, drawn(model, ["ring"], n=3, seed=4))
    walk = {"sampler": "euler", "grid": "uniform-log", "eta": 1.0}
    other = moyai.sample(model, classes=["ring"], n=3, seed=4, steps=2, **walk)
    assert np.array_equal(other, drawn(model, ["ring"], n=3, seed=4, steps=2, **walk))
    assert not np.array_equal(other, images)
    z = model.encode(images)
    assert z.shape == (3, *model.codec.shape())
    assert model.decode(z).shape == images.shape
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2) / 255 * 2 - 1
    torch.testing.assert_close(model.encode(tensor), z)
    assert model.classes == CLASSES


def test_pictures_of_another_kind_are_refused(model: LatentModel) -> None:
    with pytest.raises(RequestError, match=r"takes pictures of 1 channels, 8x8; given \(3, 8, 8\)"):
        model.encode(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(RequestError, match=r"must be unsigned \(B, H, W, C\), not float64"):
        model.encode(np.zeros((1, 8, 8, 1)))
