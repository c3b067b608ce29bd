"""Everything periodic as a pure function of the step: the learning rate, what is due, the order of the samples."""

import math

import numpy as np

from moyai.randomness import generator, permutation
from moyai.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the step from `step` to `step + 1`: linear warm-up, then the decay to a hundredth of the peak."""
    if config.steps is None:
        raise ValueError("the number of steps is not resolved")
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    if config.decay == "none":
        return config.learning_rate
    share = 0.5 * (1 + math.cos(math.pi * done)) if config.decay == "cosine" else 1 - done
    return config.learning_rate * (0.01 + 0.99 * share)


class Order:
    """Which samples a step sees: epochs of `count` samples, each in its own order, read `batch` at a time.

    Step s holds positions s x batch to (s + 1) x batch of the endless sequence; nothing is dropped at an epoch's end,
    and there is no state but the step number.
    """

    def __init__(self, seed: int, stage: str, count: int, batch: int) -> None:
        self.seed, self.purpose, self.count, self.batch = seed, f"{stage} order", count, batch
        self._epochs: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> np.ndarray:
        """The sample numbers of a step, (batch,) int64."""
        positions = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs, offsets = np.divmod(positions, self.count)
        out = np.empty(self.batch, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = self._epoch(int(epoch))[offsets[here]]
        return out

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = permutation(self.seed, self.purpose, epoch, self.count)
        return self._epochs[epoch]


def flips(seed: int, stage: str, step: int, count: int) -> np.ndarray:
    """Which pictures of a step are shown mirrored: (count,) bool."""
    return generator(seed, f"{stage}/flip", step).random(count) < 0.5
