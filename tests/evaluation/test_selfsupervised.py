"""A judge without labels: its loss is the formula, it learns what was never named, and it sees what is wrong."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from moyai.data import idx
from moyai.data.config import IdxConfig
from moyai.evaluation import frechet, networks, selfsupervised
from moyai.evaluation.features import extract, to_images
from moyai.evaluation.networks import OwnExtractor
from moyai.evaluation.selfsupervised import Groups
from moyai.nets.trunk import Trunk


def neighbour_accuracy(known: torch.Tensor, labels: np.ndarray, asked: torch.Tensor, truth: np.ndarray) -> float:
    """How often most of the five nearest of labelled pictures have the class of a new one."""
    nearest = labels[torch.cdist(asked, known).topk(5, largest=False).indices.numpy()]
    votes = [np.bincount(found).argmax() for found in nearest]
    return float((np.array(votes) == truth).mean())


@pytest.fixture(scope="module")
def judge() -> OwnExtractor:
    return tiny.last(networks.train_self_supervised(tiny.stripes(400, 0)[0], seed=1, steps=40, batch=64))


def test_features_know_the_classes_they_never_saw(judge: OwnExtractor) -> None:
    (known, labels), (asked, truth) = tiny.stripes(90, 10), tiny.stripes(90, 11)

    def accuracy(extractor: OwnExtractor) -> float:
        features = [extract(extractor, pixels).values for pixels in (known, asked)]
        return neighbour_accuracy(features[0], labels, features[1], truth)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = OwnExtractor(Trunk(1), None, (1, 8, 8), {})
    assert accuracy(judge) > 0.9
    assert accuracy(judge) > accuracy(untrained)
    assert judge.probabilities(torch.zeros(1, 128)) is None
    assert judge.facts["views found"] > 5 / judge.facts["among"]  # five times chance
    assert judge.able.startswith("find ")
    assert "own self-supervised, 8 x 8 x 1, no resize" in judge.source.name


def test_what_is_wrong_with_pictures_is_far_above_the_floor(judge: OwnExtractor) -> None:
    """Noise, blur, a lost class, halves of two pictures, holes: views hide none of them from the judge."""
    rng = np.random.default_rng(2)
    reference, real = extract(judge, tiny.stripes(600, 20)[0]), tiny.stripes(300, 21)[0]
    noisy = (real + rng.normal(0, 25, real.shape)).clip(0, 255).astype(np.uint8)
    blurred = F.avg_pool2d(torch.from_numpy(real.astype(np.float32)), 3, 1, 1).numpy().astype(np.uint8)
    halves, holes = real.copy(), real.copy()
    halves[:, :, 4:] = real[rng.permutation(300), :, 4:]
    holes[:, :, 2:5, 2:5] = 0

    def distance(pixels: np.ndarray) -> float:
        return frechet.fid(extract(judge, pixels), reference, replicates=0).value.value

    floor = distance(real)
    found = {name: distance(pixels) / floor for name, pixels in (
        ("noise", noisy), ("blur", blurred), ("lost class", np.delete(real, np.s_[::3], 0)), ("halves", halves),
        ("holes", holes),
    )}  # fmt: skip
    assert min(found.values()) > 2, found


def test_the_contrastive_loss_is_its_formula() -> None:
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    unit = F.normalize(z, dim=1)
    terms = []
    for i in range(6):
        alike = [math.exp(float(unit[i] @ unit[j]) / 0.2) for j in range(6)]
        terms.append(-math.log(alike[(i + 3) % 6] / (sum(alike) - alike[i])))
    assert float(selfsupervised.contrastive(z)) == pytest.approx(np.mean(terms), rel=1e-9)


def test_views_differ_by_number_and_keep_shape() -> None:
    images = torch.rand(5, 3, 12, 10) * 2 - 1
    one = selfsupervised.views(images, 0, 7)
    assert one.shape == images.shape
    assert one.equal(selfsupervised.views(images, 0, 7))
    assert not one.equal(selfsupervised.views(images, 0, 8))
    assert bool(torch.isfinite(one).all())


def test_groups_are_what_lies_together() -> None:
    rng = np.random.default_rng(0)
    kinds, truth = rng.integers(0, 256, (4, 3, 20, 18)), rng.integers(0, 4, 400)
    pixels = (kinds[truth] + rng.integers(-5, 6, (400, 3, 20, 18))).clip(0, 255).astype(np.uint8)
    made = Groups.of(pixels, np.arange(300), seed=3)
    assert made.centres.shape == (30, 32)  # ten pictures a group
    found = made.number(to_images(pixels)).numpy()
    assert all(len(set(truth[found == group])) == 1 for group in set(found))  # none holds two kinds
    again = Groups.of(pixels, np.arange(300), seed=3)
    assert again.centres.equal(made.centres)
    assert not Groups.of(pixels, np.arange(300), seed=4).centres.equal(made.centres)
    assert Groups.of(pixels, np.arange(6), seed=3).number(to_images(pixels)).unique().tolist() == [0]


def test_groups_are_found_in_some_of_many_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfsupervised, "SHOWN", 50)
    pixels = tiny.stripes(3000, 0)[0]
    taken: list[int] = []
    small = selfsupervised._small
    monkeypatch.setattr(selfsupervised, "_small", lambda images: (taken.append(len(images)), small(images))[1])
    assert Groups.of(pixels, np.arange(3000), seed=0).centres.shape == (5, 32)
    assert sum(taken) == 50


def test_large_pictures_are_seen_as_squares_and_come_back_from_their_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 40, 30), np.uint8)
    made = tiny.last(networks.train_self_supervised(pixels, seed=0, steps=1, batch=4))
    assert made.trunk.channels == 4  # squares of 2 x 2: no convolution works at more than 32 x 32
    networks.save(made, tmp_path / "x.safetensors")
    again = networks.load(tmp_path / "x.safetensors")
    assert again.source == made.source
    assert extract(again, pixels).values.equal(extract(made, pixels).values)
    images = to_images(pixels)
    with torch.no_grad():
        assert float(made.perceptual(images, images).abs().max()) < 1e-6
        assert float(made.perceptual(images, images.flip(0)).min()) > 0
    whole = tiny.last(networks.train_self_supervised(pixels, seed=0, steps=1, batch=4, whole=True))
    assert whole.trunk.channels == 1


@pytest.mark.slow
def test_neighbours_in_features_are_as_alike_as_in_pixels(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fashion-MNIST without its labels, trained as long as `moyai evaluate` trains."""
    monkeypatch.setenv("MOYAI_DATA", str(real_data))
    images = idx.read(IdxConfig(name="fashion-mnist", download=False), tmp_path)
    pixels, labels = np.asarray(images.pixels), images.fields["class"]
    judge = tiny.last(networks.train_self_supervised(pixels[:20000], seed=0))
    known, asked = np.arange(5000), np.arange(20000, 21500)
    plain = torch.from_numpy(pixels.astype(np.float32)).flatten(1)
    by_pixels = neighbour_accuracy(plain[known], labels[known], plain[asked], labels[asked])
    features = [extract(judge, pixels[rows]).values for rows in (known, asked)]
    # 0.01 is a standard error of 1,500 pictures
    assert neighbour_accuracy(features[0], labels[known], features[1], labels[asked]) > by_pixels - 0.01 > 0.8
