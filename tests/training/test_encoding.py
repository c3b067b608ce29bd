"""The latents stage encodes what the prior sees, and no more."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny
from moyai.data import latents
from moyai.training import encoding
from moyai.training.encoding import both_ways, halves_of_the_prior, wanted
from moyai.training.prior import VALIDATION
from training.test_resume import image_set


def test_as_many_as_the_steps_come_to_and_enough_for_the_statistics() -> None:
    assert wanted(100, 64, 5_000, flips=False) == 5_000
    assert wanted(100, 64, 60_000, flips=False) == encoding.FEWEST
    assert wanted(400, 64, 60_000, flips=False) == 25_600
    assert wanted(4_000, 64, 60_000, flips=False) == 60_000
    assert wanted(400, 64, 60_000, flips=True) == 12_800  # each is there twice
    assert wanted(4_000, 64, 60_000, flips=True) == 60_000


def test_the_rows_are_a_function_of_the_seed_and_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "FEWEST", 10)
    train, held_out = image_set(300), image_set(VALIDATION + 44)
    recipe = tiny.recipe(Path("x"))  # 12 steps of 8
    halves = halves_of_the_prior(recipe, train, held_out)
    again = halves_of_the_prior(recipe, train, held_out)
    assert halves["train"].count == 96
    assert halves["train"].fingerprint == again["train"].fingerprint != train.fingerprint
    names = list(halves["train"].names)
    assert len(set(names)) == 96
    assert names == sorted(names, key=list(train.names).index)  # in the order they are stored in
    other = halves_of_the_prior(recipe.model_copy(update={"seed": 1}), train, held_out)
    assert list(other["train"].names) != names
    # What is validated on are the very rows that all held-out pictures would give.
    rows = np.linspace(0, held_out.count - 1, VALIDATION).astype(np.int64)
    assert list(halves["held-out"].names) == [held_out.names[i] for i in rows]
    few = image_set(20)
    same = halves_of_the_prior(recipe, few, few)
    assert same["train"] is same["held-out"] is few


def test_what_is_mirrored_is_half_as_many_pictures_and_only_of_the_training_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "FEWEST", 10)
    images = image_set(300)
    counts = {}
    for flip in (False, True):
        recipe = tiny.recipe(Path("x"), {"data": {"kind": "folder", "root": "x", "flip": flip}})  # 12 steps of 8
        halves = halves_of_the_prior(recipe, images, image_set(20))
        counts[flip] = [halves[half].count * (1 + both_ways(recipe, half)) for half in ("train", "held-out")]
        assert halves["train"].count == (48 if flip else 96)
    assert counts == {False: [96, 20], True: [96, 20]}


def few() -> None:
    encoding.FEWEST = 16


def test_a_run_whose_prior_sees_some_pictures_goes_on_with_the_same(tmp_path: Path) -> None:
    recipe = tiny.recipe_file(tmp_path / "tiny.json", tiny.folder(tmp_path / "data"))
    words = ["train", recipe, "prior.train.batch=2"]
    status, said = tiny.moyai([*words, "--out", tmp_path / "a"], tmp_path / "said", few)
    assert status == 0, said
    mean = np.load(tmp_path / "a" / "latents" / "train" / "plain-mean.npy", mmap_mode="r")
    assert len(mean) == 24  # 12 steps of 2, of more than 40 training pictures
    assert "encoding train" in said
    # Another run that is cut short and goes on is the same run; the latents are not encoded again.
    status, said = tiny.moyai([*words, "--out", tmp_path / "b", "--stage", "first_stage"], tmp_path / "said", few)
    assert status == 0, said
    status, said = tiny.moyai([*words, "--out", tmp_path / "b", "--stage", "latents"], tmp_path / "said", few)
    assert status == 0, said
    written = (tmp_path / "b" / "latents" / "train" / "cache.json").stat().st_mtime_ns
    status, said = tiny.moyai([*words, "--out", tmp_path / "b"], tmp_path / "said", few)
    assert status == 0, said
    assert (tmp_path / "b" / "latents" / "train" / "cache.json").stat().st_mtime_ns == written
    assert tiny.differences(tiny.outcome(tmp_path / "a"), tiny.outcome(tmp_path / "b")) == []


@pytest.fixture
def pixels(tmp_path: Path) -> Callable[..., str]:
    """Runs a stage of a recipe without a first stage, in whose digest nothing ever changes; what is said."""
    recipe = tiny.recipe_file(tmp_path / "tiny.json", tiny.folder(tmp_path / "data"), {"codec.kind": "pixels"})

    def run(
        out: str, *words: str, stage: str = "latents", status: int = 0, before: Callable[[], None] = lambda: None
    ) -> str:
        command = ["train", recipe, *words, "--out", tmp_path / out, "--stage", stage, "--quiet"]
        found, said = tiny.moyai(command, tmp_path / "said", before)
        assert found == status, said
        return said

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_recipe_that_flips_now_or_no_more_is_encoded_again(pixels: Callable[..., str], tmp_path: Path) -> None:
    straight = {}
    for out, flip in (("a", "false"), ("b", "true")):
        pixels(out, f"data.flip={flip}")
        straight[flip] = contents(tmp_path / out / "latents" / "train")
    assert set(straight["false"]) == {"plain-mean.npy", "cache.json"}
    assert set(straight["true"]) == {"plain-mean.npy", "flipped-mean.npy", "cache.json"}
    assert straight["false"]["plain-mean.npy"] == straight["true"]["plain-mean.npy"]  # the same pictures: all of them
    for out, flip in (("a", "true"), ("b", "false")):
        line = tiny.one_line(pixels(out, f"data.flip={flip}", stage="prior", status=2))
        assert "and data.flip asks for plain" in line
        pixels(out, f"data.flip={flip}")
        assert contents(tmp_path / out / "latents" / "train") == straight[flip]
        assert "flipped-mean.npy" not in contents(tmp_path / out / "latents" / "held-out")
    plain, mirrored = (np.load(tmp_path / "a" / "latents" / "train" / f"{v}-mean.npy") for v in ("plain", "flipped"))
    assert np.array_equal(mirrored, plain[..., ::-1])
    written = (tmp_path / "a" / "latents" / "train" / "cache.json").stat().st_mtime_ns
    pixels("a", "data.flip=true")
    assert (tmp_path / "a" / "latents" / "train" / "cache.json").stat().st_mtime_ns == written


def test_a_disk_too_small_for_the_latents_is_one_line(pixels: Callable[..., str], tmp_path: Path) -> None:
    def small() -> None:
        latents.free_bytes = lambda path: 10  # type: ignore[attr-defined]

    folder = tmp_path / "a" / "latents" / "train"
    line = tiny.one_line(pixels("a", status=3, before=small))
    assert line.startswith(f"moyai: cannot save {folder}: No space left on device; needed: ")
    assert contents(folder) == {}
    pixels("a")  # the same command goes on where there is room
    assert "cache.json" in contents(folder)
