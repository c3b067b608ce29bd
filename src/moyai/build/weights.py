"""Initial weights as a function of a recipe's seed and of what they are for."""

import torch

from moyai.randomness import torch_seed


class initial_weights:
    """Within this context torch draws the weights from (seed, what) and leaves the caller's generator alone."""

    def __init__(self, seed: int, what: str) -> None:
        self.seed = torch_seed(seed, f"{what} weights")
        self._fork = torch.random.fork_rng(devices=[])

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        self._fork.__exit__(*error)  # type: ignore[arg-type]
