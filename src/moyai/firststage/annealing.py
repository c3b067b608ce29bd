"""The weight of the Kullback-Leibler term over the run.

Cyclical annealing (Fu et al., "Cyclical annealing schedule: a simple approach to mitigating KL vanishing", NAACL 2019,
equations 6 and 7). A run of T steps has M cycles; in the share R of each the factor rises, in the rest it is 1. At the
t-th step, counted from 1:

    tau = mod(t - 1, ceil(T / M)) / (T / M)
    factor = f(tau / R) if tau <= R, else 1

with a rise f on [0, 1] as in the authors' code:

    linear   f(v) = v
    cosine   f(v) = (1 - cos(pi v)) / 2
    sigmoid  f(v) = 1 / (1 + exp(6 - 12 v))      (from 0.0025 to 0.9975, not from 0 to 1)

A warm-up is one such cycle over the whole run.
"""

import math

from moyai.firststage.config import AnnealConfig


def kl_factor(config: AnnealConfig, step: int, steps: int) -> float:
    """What the KL weight is multiplied by, in [0, 1], at a step (counted from 0) of a run of `steps` steps.

    From step `steps` on it stays what it was at the last one. Where a cycle is no longer than one step, every step
    is the beginning of a cycle.
    """
    if config.kind == "none":
        return 1.0
    steps = max(steps, 1)
    step = min(step, steps - 1)
    cycles = config.cycles if config.kind == "cyclical" else 1
    tau = (step % math.ceil(steps / cycles)) / (steps / cycles)
    return _rise(tau / config.ratio, config.ramp) if tau <= config.ratio else 1.0


def _rise(v: float, ramp: str) -> float:
    """f(v) of the module's docstring, v in [0, 1]."""
    if ramp == "linear":
        return v
    if ramp == "cosine":
        return 0.5 - 0.5 * math.cos(math.pi * v)
    return 1.0 / (1.0 + math.exp(6.0 - 12.0 * v))
