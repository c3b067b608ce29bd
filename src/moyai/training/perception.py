"""The network a first stage's perceptual distance is taken in: published weights from files, or one of our own.

Our own is trained on the run's pictures before the first stage begins, and kept in the run, so that a run that goes on
is judged by the same network. It is never the network that `moyai evaluate` judges by.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from moyai.data.images import ImageSet
from moyai.errors import DataError
from moyai.evaluation import networks
from moyai.files import sweep_temporaries
from moyai.firststage import perceptual
from moyai.firststage.config import LpipsConfig, ObjectiveConfig, OwnPerceptualConfig
from moyai.nets.trunk import Trunk

FEWEST = 4  # pictures that such a network can be trained on


def perception(
    objective: ObjectiveConfig,
    images: ImageSet,
    seed: int = 0,
    path: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> nn.Module | None:
    """The distance of an objective, a frozen module, or None where it has none (or takes the discriminator's features).

    path: where our own network is kept, and found again; without it the network is untrained, for timing only.
    """
    config = objective.perceptual
    if isinstance(config, LpipsConfig):
        return perceptual.lpips(config)
    if not isinstance(config, OwnPerceptualConfig):
        return None
    if path is None:
        return perceptual.own(Trunk(images.shape[0]))
    if not path.is_file():
        if images.count < FEWEST:
            raise DataError(
                f"{images.count} training pictures are too few for a perceptual network of their own, which takes "
                f"{FEWEST}; possible: objective.perceptual.kind = lpips, or none"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(path.parent)
        made = None
        # Pictures on the disk stay there: of each no more than a window is in memory.
        labels = images.fields.get("class")
        for state in networks.perceptual_trunk(images.pixels, labels, seed=seed, steps=config.steps):
            progress("training the perceptual network", state.step, state.steps)
            made = state.made or made
        if made is None:
            raise ValueError("training gave no network")
        networks.save(made, path)
    return perceptual.own(networks.load(path).trunk)
