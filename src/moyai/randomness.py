"""Randomness as a function, not a state: everything random is drawn from (seed, purpose, step).

Philox is a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a key
and a counter give the stream, so nothing has to be saved for a run to go on exactly where it stopped.

Two rules follow (docs/reproducibility.md):

* **Training** draws for the *global* batch and every rank and micro-batch takes its rows, so neither the number of
  ranks nor the size of a micro-batch changes what a step sees. That is `Draw`.
* **Sampling** draws per picture: image i of a request with seed s has seed s + i, and its noise is the same to the
  bit whichever batch it is in. That is `image_noise`.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moyai.errors import RequestError

SEEDS = 2**63  # seeds are 0 .. 2^63 - 1


def _purpose(name: str) -> int:
    """64 bits that stand for a purpose: the name's own hash, so that a new purpose never shifts an old one."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def check_seed(seed: int) -> int:
    if not 0 <= seed < SEEDS:
        raise RequestError(f"seed {seed} is out of range; possible: 0 to {SEEDS - 1}")
    return seed


def generator(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """The numpy generator of (seed, purpose, step); any two that differ in one of them are independent."""
    key = np.array([check_seed(seed), _purpose(purpose)], dtype=np.uint64)
    counter = np.array([0, 0, 0, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def image_noise(seeds: Sequence[int], shape: Sequence[int], *, purpose: str = "start", step: int = 0) -> Tensor:
    """Standard normal noise, one row for each seed: (len(seeds), *shape), float32 on the CPU."""
    rows = [generator(seed, purpose, step).standard_normal(tuple(shape), dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty((0, *shape))


def permutation(seed: int, purpose: str, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(count), int64."""
    return generator(seed, purpose, epoch).permutation(count)


def torch_seed(seed: int, purpose: str) -> int:
    """A seed for `torch.manual_seed`, for the one thing torch draws by itself: the initial weights."""
    digest = hashlib.blake2b(f"{check_seed(seed)} {purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


class Draw:
    """The randomness of one training step, for the rows of the global batch that this caller holds.

    `Draw(seed, step, total)` holds all rows; `draw.rows(a, b)` is the same randomness seen by rows a to b. Each
    purpose of each stage is an independent stream. Values are float32 on `device`; on the CPU they come from Philox
    in numpy, on an accelerator from its own counter-based generator (equality across devices is not promised).
    """

    def __init__(
        self,
        seed: int,
        step: int,
        total: int,
        *,
        stage: str = "",
        device: torch.device | str = "cpu",
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self.seed, self.step, self.total, self.stage = seed, step, total, stage
        self.device = torch.device(device)
        self.start, self.stop = start, total if stop is None else stop
        if not 0 <= self.start <= self.stop <= total:
            raise ValueError(f"rows {self.start} to {self.stop} are not rows of a batch of {total}")

    def __len__(self) -> int:
        return self.stop - self.start

    def rows(self, start: int, stop: int) -> "Draw":
        """The same randomness for rows start to stop of this draw's rows."""
        return Draw(
            self.seed,
            self.step,
            self.total,
            stage=self.stage,
            device=self.device,
            start=self.start + start,
            stop=self.start + stop,
        )

    def normal(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal values, (rows, *shape)."""
        full = (self.total, *shape)
        if self.device.type == "cpu":
            rng = self._generator(purpose)
            return torch.from_numpy(rng.standard_normal(full, dtype=np.float32)[self.start : self.stop])
        return torch.randn(full, generator=self._device_generator(purpose), device=self.device)[self.start : self.stop]

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Values uniform on [0, 1), (rows, *shape)."""
        full = (self.total, *shape)
        if self.device.type == "cpu":
            rng = self._generator(purpose)
            return torch.from_numpy(rng.random(full, dtype=np.float32)[self.start : self.stop])
        return torch.rand(full, generator=self._device_generator(purpose), device=self.device)[self.start : self.stop]

    def stratified(self, purpose: str) -> Tensor:
        """One value on [0, 1) a row, the whole global batch spread evenly: row i of a random order falls in
        [i/total, (i+1)/total). (rows,), float32. Each row alone is uniform; together they have little variance."""
        rng = self._generator(purpose)
        values = (rng.permutation(self.total) + rng.random(self.total)) / self.total
        last = np.nextafter(np.float32(1), np.float32(0))
        values = np.minimum(values.astype(np.float32), last)[self.start : self.stop]
        return torch.from_numpy(values).to(self.device)

    def _generator(self, purpose: str) -> np.random.Generator:
        return generator(self.seed, f"{self.stage}/{purpose}", self.step)

    def _device_generator(self, purpose: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed} {self.stage}/{purpose} {self.step}".encode(), digest_size=8).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "little") >> 1)
