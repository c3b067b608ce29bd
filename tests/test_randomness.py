"""Randomness as a function of (seed, purpose, step): pinned, independent, and blind to how a batch is cut."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moyai.errors import RequestError
from moyai.randomness import SEEDS, Draw, check_seed, generator, image_noise, permutation, torch_seed

PINNED_0 = [-0.8314850330352783, 0.5228579640388489, 1.4938030242919922, -0.7088121771812439]
PINNED_7 = [-1.6286978721618652, -0.9224349856376648, 0.5547602772712708, 0.7268420457839966]
PINNED_ORDER = [2, 1, 5, 7, 3, 4, 0, 6]
PINNED_TIMES = [0.6964929699897766, 0.5633199214935303, 0.2048497349023819]
PINNED_TORCH = 2951822262


def test_the_first_values_are_pinned() -> None:
    """Whoever changes these makes every published seed mean another picture."""
    assert image_noise([0], (4,))[0].tolist() == PINNED_0
    assert image_noise([7], (4,), purpose="ancestral", step=3)[0].tolist() == PINNED_7
    assert permutation(0, "order", 0, 8).tolist() == PINNED_ORDER
    assert Draw(1, 2, 3, stage="prior").stratified("time").tolist() == PINNED_TIMES
    assert torch_seed(0, "prior weights") == PINNED_TORCH


def test_every_seed_is_another_picture() -> None:
    seeds = [0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**53 + 1, SEEDS - 1]  # torch's own generator knows 32 bits only
    noise = image_noise(seeds, (16,))
    assert len({tuple(row) for row in noise.tolist()}) == len(seeds)
    assert not torch.equal(noise[1], noise[5])


@pytest.mark.parametrize("seed", [-1, SEEDS, 2**64])
def test_other_seeds_are_refused(seed: int) -> None:
    with pytest.raises(RequestError, match=f"seed {seed} is out of range; possible: 0 to {SEEDS - 1}"):
        check_seed(seed)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, SEEDS - 8), place=st.integers(0, 7))
def test_a_picture_alone_has_the_noise_it_has_in_a_batch(seed: int, place: int) -> None:
    batch = image_noise([seed + i for i in range(8)], (2, 3, 3))
    assert torch.equal(batch[place], image_noise([seed + place], (2, 3, 3))[0])


def test_purposes_steps_and_seeds_are_independent() -> None:
    rows = [
        generator(seed, purpose, step).standard_normal(4000)
        for seed in (0, 1)
        for purpose in ("start", "ancestral")
        for step in (0, 1)
    ]
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert abs(correlation).max() < 5 / np.sqrt(4000)


def test_noise_is_standard_normal() -> None:
    noise = image_noise(range(40), (500,)).numpy().ravel()
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)


def test_no_pictures_have_no_noise() -> None:
    assert image_noise([], (2, 3)).shape == (0, 2, 3)


cuts = st.lists(st.integers(0, 12), max_size=4).map(lambda inner: [0, *sorted(inner), 12])


@settings(max_examples=40, deadline=None)
@given(cuts=cuts, seed=st.integers(0, SEEDS - 1), step=st.integers(0, 10**9))
def test_micro_batches_together_see_what_the_batch_sees(cuts: list[int], seed: int, step: int) -> None:
    whole = Draw(seed, step, 12, stage="prior")
    pieces = [whole.rows(a, b) for a, b in itertools.pairwise(cuts)]
    assert [len(piece) for piece in pieces] == np.diff(cuts).tolist()
    assert torch.equal(torch.cat([p.normal("noise", (2, 2)) for p in pieces]), whole.normal("noise", (2, 2)))
    assert torch.equal(torch.cat([p.uniform("drop") for p in pieces]), whole.uniform("drop"))
    assert torch.equal(torch.cat([p.stratified("time") for p in pieces]), whole.stratified("time"))
    assert torch.equal(whole.rows(2, 9).rows(1, 4).normal("noise"), whole.rows(3, 6).normal("noise"))


def test_draws_differ_by_seed_step_stage_and_purpose() -> None:
    draws = [Draw(s, t, 4, stage=g).normal(p) for s in (0, 1) for t in (0, 1) for g in ("a", "b") for p in ("x", "y")]
    assert len({tuple(d.tolist()) for d in draws}) == 16


def test_rows_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="rows 2 to 9 are not rows of a batch of 4"):
        Draw(0, 0, 4).rows(2, 9)


def test_stratified_values_are_stratified_and_each_uniform() -> None:
    total = 16
    values = np.stack([Draw(0, step, total).stratified("time").numpy() for step in range(2000)])
    assert values.min() >= 0
    assert values.max() < 1
    assert (np.sort(np.floor(values * total).astype(int)) == np.arange(total)).all()  # one in each stratum
    for row in (0, 5, 15):  # alone, a row is uniform: a chi-squared test on ten bins, 1 in 10^6
        counts = np.histogram(values[:, row], bins=10, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 47
    # together they have little variance: of the mean, 1/(12 n^3) instead of 1/(12 n)
    assert values.mean(1).var() == pytest.approx(1 / (12 * total**3), rel=0.2)
