"""The learning rate and the order of the samples, as functions of the step."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moyai.training.config import TrainConfig
from moyai.training.schedule import Order, learning_rate


def rates(decay: str, steps: int = 100, warmup: float = 0.1) -> list[float]:
    config = TrainConfig(steps=steps, learning_rate=2.0, warmup=warmup, decay=decay)
    return [learning_rate(config, step) for step in range(steps)]


def test_the_rate_rises_in_a_line_to_its_peak() -> None:
    assert rates("none")[:11] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.0])
    assert rates("none", warmup=0.0)[0] == 2.0


def test_values_of_the_decays() -> None:
    assert rates("none")[10:] == [2.0] * 90
    cosine, linear = rates("cosine"), rates("linear")
    assert cosine[10] == linear[10] == 2.0
    assert cosine[55] == pytest.approx(2 * (0.01 + 0.99 * 0.5))  # half way from step 10 to 100
    assert linear[55] == pytest.approx(2 * (0.01 + 0.99 * 0.5))
    assert cosine[40] == pytest.approx(2 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 3))))
    assert linear[40] == pytest.approx(2 * (0.01 + 0.99 * 2 / 3))
    end = learning_rate(TrainConfig(steps=100, learning_rate=2.0, warmup=0.1), 100)
    assert end == pytest.approx(0.02)
    for values in (cosine, linear):
        assert all(later < earlier for earlier, later in itertools.pairwise(values[10:]))


def test_a_run_of_one_step_has_a_rate() -> None:
    assert rates("cosine", steps=1) == [2.0]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 50), batch=st.integers(1, 70), steps=st.integers(1, 12), seed=st.integers(0, 2**63 - 1))
def test_every_epoch_is_a_permutation_and_nothing_is_lost(count: int, batch: int, steps: int, seed: int) -> None:
    order = Order(seed, "stage", count, batch)
    seen = np.concatenate([order(step) for step in range(steps)])
    for start in range(0, len(seen) - count + 1, count):
        assert sorted(seen[start : start + count]) == list(range(count))
    rest = seen[len(seen) - len(seen) % count :]
    assert len(set(rest)) == len(rest)


def test_the_order_has_no_state() -> None:
    straight = Order(3, "stage", 10, 4)
    expected = [straight(step).tolist() for step in range(20)]
    for step in (19, 0, 7, 7, 3, 12):  # any step, in any order of asking
        assert Order(3, "stage", 10, 4)(step).tolist() == expected[step]
        assert straight(step).tolist() == expected[step]


def test_epochs_seeds_and_stages_have_orders_of_their_own() -> None:
    def orders(seed: int, stage: str) -> list[tuple[int, ...]]:
        order = Order(seed, stage, 30, 30)
        return [tuple(order(step)) for step in range(3)]

    every = orders(0, "prior") + orders(1, "prior") + orders(0, "first_stage")
    assert len(set(every)) == 9
    assert tuple(range(30)) not in every
