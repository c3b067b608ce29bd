"""Our own extractors: they learn, they are functions of their arguments, and they come back from their files whole."""

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

import tiny
from moyai.errors import CheckpointError, DataError, RequestError
from moyai.evaluation import networks
from moyai.evaluation.features import extract
from moyai.evaluation.networks import OwnExtractor


@pytest.fixture(scope="module")
def classifier() -> OwnExtractor:
    return tiny.last(
        networks.train_classifier(*tiny.stripes(300, 0), seed=1, steps=60, batch=32, held_out=tiny.stripes(90, 5))
    )


def test_a_classifier_learns_and_reports_its_held_out_accuracy(classifier: OwnExtractor) -> None:
    assert classifier.facts["accuracy"] > 0.9
    assert classifier.source.dimensions == 128
    assert "own classifier of 3 classes, 8 x 8 x 1, no resize" in classifier.source.name
    pixels, labels = tiny.stripes(90, 5)
    found = extract(classifier, pixels)
    assert found.probabilities is not None
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(90))
    accuracy = float((found.probabilities.argmax(1).numpy() == labels).mean())
    assert classifier.facts["accuracy"] == pytest.approx(accuracy)


def test_steps_are_told_as_they_come() -> None:
    steps = list(networks.train_classifier(*tiny.stripes(40, 0), seed=1, steps=5, batch=8))
    assert [s.step for s in steps] == [1, 2, 3, 4, 5, 5]
    assert [s.made is None for s in steps] == [True] * 5 + [False]
    assert all(math.isfinite(s.loss) and s.steps == 5 for s in steps)


def test_training_is_a_function_of_its_arguments(classifier: OwnExtractor) -> None:
    torch.manual_seed(99)  # the state of torch's own generator is nothing to it, and stays
    before = torch.get_rng_state()
    arguments = {"steps": 3, "batch": 16}
    one, two, other = (
        tiny.last(networks.train_classifier(*tiny.stripes(60, 0), seed=seed, steps=3, batch=16)).source.digest
        for seed in (1, 1, 2)
    )
    assert one == two != other
    assert torch.get_rng_state().equal(before)
    pixels = tiny.stripes(60, 0)[0]
    one, two = (tiny.last(networks.train_self_supervised(pixels, seed=1, **arguments)).source.digest for _ in range(2))
    assert one == two


def test_an_extractor_comes_back_from_its_file_whole(classifier: OwnExtractor, tmp_path: Path) -> None:
    path = networks.path_in(tmp_path, *tiny.stripes(300, 0), seed=1, steps=30)
    networks.save(classifier, path)
    again = networks.load(path)
    assert again.source == classifier.source
    assert again.facts == classifier.facts
    pixels = tiny.stripes(20, 3)[0]
    one, two = extract(classifier, pixels), extract(again, pixels)
    assert one.values.equal(two.values)
    assert one.probabilities is not None
    assert one.probabilities.equal(two.probabilities)


def test_where_it_is_kept_follows_from_all_it_follows_from(tmp_path: Path) -> None:
    pixels, labels = tiny.stripes(30, 0)
    plain = networks.path_in(tmp_path, pixels, labels, seed=1, steps=2)
    assert plain == networks.path_in(tmp_path, pixels.copy(), labels.astype(np.int32), seed=1, steps=2)
    others = {
        networks.path_in(tmp_path, pixels + np.uint8(1), labels, seed=1, steps=2),
        networks.path_in(tmp_path, pixels, labels[::-1], seed=1, steps=2),
        networks.path_in(tmp_path, pixels, None, seed=1, steps=2),
        networks.path_in(tmp_path, pixels, labels, seed=2, steps=2),
        networks.path_in(tmp_path, pixels, labels, seed=1, steps=3),
    }
    assert len(others - {plain}) == 5


def test_large_pictures_are_averaged_down_and_it_is_said() -> None:
    trunk = networks.Trunk(1).eval()
    blocks = torch.rand(1, 1, 48, 48)
    large: Tensor = blocks.repeat_interleave(3, 2).repeat_interleave(3, 3)  # 144 x 144
    with torch.no_grad():
        torch.testing.assert_close(trunk(large), trunk(blocks))
    assert "averaged over 3 x 3" in OwnExtractor(trunk, None, (1, 144, 144), {}).source.name


def test_the_perceptual_network_is_another_than_the_judge_and_learns_as_well() -> None:
    pixels, labels = tiny.stripes(300, 0)
    judge = tiny.last(networks.train_classifier(pixels, labels, seed=1, steps=1, batch=32))
    one, again = (tiny.last(networks.perceptual_trunk(pixels, labels, seed=1, steps=1)) for _ in range(2))
    assert one.source.digest == again.source.digest != judge.source.digest
    first = "trunk.stages.0.weight"
    apart = F.cosine_similarity(one.tensors()[first].flatten(), judge.tensors()[first].flatten(), dim=0)
    assert float(apart.abs()) < 0.5  # not only otherwise trained: begun elsewhere
    trained = tiny.last(networks.perceptual_trunk(pixels, labels, seed=1, steps=60))
    assert trained.facts["accuracy"] > 0.9


def test_the_perceptual_network_takes_any_labels_there_may_be() -> None:
    pixels, labels = tiny.stripes(40, 0)
    gaps = tiny.last(
        networks.perceptual_trunk(pixels, 5 * labels + 2, seed=1, steps=1)
    )  # as a part of a set may have them
    assert gaps.source.digest == tiny.last(networks.perceptual_trunk(pixels, labels, seed=1, steps=1)).source.digest
    for none in (None, labels * 0):
        assert "accuracy" not in tiny.last(networks.perceptual_trunk(pixels, none, seed=1, steps=1)).facts


def test_the_perceptual_network_sees_large_pictures_in_full_detail() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 70, 40), np.uint8)
    made = tiny.last(networks.perceptual_trunk(pixels, None, seed=1, steps=1))
    assert made.shape == (1, 64, 40)
    assert "no resize" in made.source.name
    cut = networks._windows(pixels, 1)
    tops = [[t for t in range(7) if np.array_equal(c, p[:, t : t + 64])] for c, p in zip(cut, pixels, strict=True)]
    assert all(len(t) == 1 for t in tops)  # each is a part of its own picture
    assert len({t[0] for t in tops}) > 3
    assert networks._windows(pixels[:, :, :64], 1).shape == (12, 1, 64, 40)


def test_bad_input_in_one_line(classifier: OwnExtractor, tmp_path: Path) -> None:
    pixels, labels = tiny.stripes(30, 0)

    def refused(labels: np.ndarray, steps: int = 1) -> None:
        tiny.last(networks.train_classifier(pixels, labels, seed=0, steps=steps))

    with pytest.raises(DataError, match="class 1 of 0 to 2 has no picture"):
        refused(np.where(labels == 1, 0, labels))
    with pytest.raises(DataError, match="all pictures are of one class"):
        refused(labels * 0)
    with pytest.raises(DataError, match="30 pictures need as many labels"):
        refused(labels[:4])
    with pytest.raises(DataError, match="numbered from 0, not -1"):
        refused(labels - 1)
    with pytest.raises(RequestError, match="1 step or more, not 0"):
        refused(labels, steps=0)
    with pytest.raises(DataError, match=r"1 picture\(s\) are too few"):
        tiny.last(networks.train_self_supervised(pixels[:1], seed=0, steps=1))
    with pytest.raises(DataError, match=r"trained on pictures of 8 x 8 with 1 channel\(s\), not 8 x 8 with 3"):
        extract(classifier, pixels.repeat(3, 1))
    with pytest.raises(DataError, match="not 9 x 8 with 1"):
        classifier(torch.zeros(1, 1, 9, 8))
    other = tmp_path / "other.safetensors"
    with pytest.raises(CheckpointError, match="is not an extractor of moyai"):
        networks.load(other)
    safetensors.torch.save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(CheckpointError, match="is not an extractor of moyai"):
        networks.load(other)
