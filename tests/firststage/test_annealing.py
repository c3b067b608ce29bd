"""The annealing factor against values by hand, the authors' array and its own definition."""

import math

import numpy as np
import pytest

from moyai.firststage.annealing import kl_factor
from moyai.firststage.config import AnnealConfig

RAMPS = ["linear", "cosine", "sigmoid"]


def config(kind: str = "cyclical", cycles: int = 2, ratio: float = 0.5, ramp: str = "linear") -> AnnealConfig:
    return AnnealConfig(kind=kind, cycles=cycles, ratio=ratio, ramp=ramp)  # type: ignore[arg-type]


def factors(chosen: AnnealConfig, steps: int) -> list[float]:
    return [kl_factor(chosen, step, steps) for step in range(steps)]


def test_cycles_by_hand() -> None:
    cycle = [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert factors(config(), 16) == cycle * 2
    half = math.sqrt(0.5) / 2
    expected = [0, 0.5 - half, 0.5, 0.5 + half, 1, 1, 1, 1] * 2
    assert factors(config(ramp="cosine"), 16) == pytest.approx(expected, abs=1e-15)
    sigmoid = [1 / (1 + math.e**x) for x in (6, 3, 0, -3, -6)] + [1, 1, 1]
    assert factors(config(ramp="sigmoid"), 16) == pytest.approx(sigmoid * 2, abs=1e-15)


def test_a_warmup_is_one_cycle() -> None:
    assert factors(config("warmup", cycles=7, ratio=0.8), 10) == pytest.approx([i / 8 for i in range(9)] + [1.0])
    assert factors(config("warmup", ratio=1.0), 4) == [0, 0.25, 0.5, 0.75]
    assert factors(config("none"), 5) == [1.0] * 5


def test_cycles_that_do_not_divide_the_run() -> None:
    # T / M = 2.5, so a cycle is 3 steps long and tau is 0, 0.4, 0.8
    assert factors(config(cycles=4, ratio=0.8), 10) == pytest.approx([0, 0.5, 1, 0, 0.5, 1, 0, 0.5, 1, 0])


def published(steps: int, cycles: int, ratio: float, ramp: str) -> np.ndarray:
    """The array that the authors' code fills, cycle by cycle, for a period that is a whole number."""
    period = steps // cycles
    filled = np.ones(steps)
    shape = {
        "linear": lambda v: v,
        "cosine": lambda v: 0.5 - 0.5 * np.cos(np.pi * v),
        "sigmoid": lambda v: 1 / (1 + np.exp(-(v * 12 - 6))),
    }[ramp]
    for cycle in range(cycles):
        rising = np.arange(math.floor(period * ratio) + 1)
        filled[cycle * period + rising] = shape(rising / (period * ratio))
    return filled


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize(("steps", "cycles", "ratio"), [(32, 4, 0.5), (64, 2, 0.25), (50, 1, 0.5), (96, 3, 0.75)])
def test_it_is_the_authors_array(ramp: str, steps: int, cycles: int, ratio: float) -> None:
    np.testing.assert_allclose(
        factors(config("cyclical", cycles, ratio, ramp), steps), published(steps, cycles, ratio, ramp), atol=1e-12
    )


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("steps", [1, 2, 7, 100, 101])
@pytest.mark.parametrize("cycles", [1, 3, 200])
def test_it_stays_between_0_and_1_and_rises_within_a_cycle(ramp: str, steps: int, cycles: int) -> None:
    values = factors(config("cyclical", cycles, 0.6, ramp), steps)
    assert all(0 <= v <= 1 for v in values)
    length = math.ceil(steps / cycles)
    for start in range(0, steps, length):
        assert values[start : start + length] == sorted(values[start : start + length])


def test_after_the_run_it_stays_where_it_was() -> None:
    for kind in ("warmup", "cyclical"):
        chosen = config(kind)
        assert kl_factor(chosen, 16, 16) == kl_factor(chosen, 500, 16) == kl_factor(chosen, 15, 16) == 1.0
