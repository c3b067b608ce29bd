"""The averaged priors a run keeps of its training, each as a model: what it could draw at that step.

prior/snapshots/step-*     the average at 1/16 and 1/8 of the run (training/loop.py)
prior/checkpoints/step-*   the newest states, each with its average
prior/model                the average at the end
"""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from moyai.checkpoints import models, native
from moyai.errors import CheckpointError
from moyai.model import LatentModel


@dataclass(frozen=True)
class Average:
    """One of them: the folder, the key its weights lie under, the step, and the sha256 of the weights' file."""

    path: Path
    key: str
    step: int
    digest: str


def kept(run: Path) -> list[Average]:
    """Those of a run's prior whose manifests are sound, by step, one a step; none where nothing was trained."""
    prior, found = run / "prior", {}
    for place, key in (("checkpoints", "ema"), ("snapshots", "model")):
        for checkpoint in native.listed(prior / place):
            found[checkpoint.step] = _average(checkpoint.path, key, checkpoint.manifest)
    if (prior / "model").is_dir():
        last = _average(prior / "model", "model", native.inspect(prior / "model"))
        found[last.step] = last
    return [found[step] for step in sorted(found)]


def _average(path: Path, key: str, manifest: dict) -> Average:
    digests = {entry["key"]: entry["sha256"] for entry in manifest["files"].values()}
    if key not in digests or not isinstance(manifest["info"].get("step"), int):
        raise CheckpointError(f"{path} holds no averaged weights of a step")
    return Average(path, key, manifest["info"]["step"], digests[key])


def at(model: LatentModel, average: Average) -> LatentModel:
    """The model as it was then: its first stage is shared with `model`, its prior and conditioner are copies.

    CheckpointError where the weights are torn, were trained on other latents or do not fit.
    """
    codec = native.inspect(average.path)["info"].get("codec")
    if codec != model.codec.digest():
        raise CheckpointError(
            f"{average.path} was trained on latents of codec {str(codec)[:12]}, but the first stage is "
            f"{model.codec.digest()[:12]}"
        )
    tensors = native.read(average.path, [average.key])[average.key]
    prior, conditioner = copy.deepcopy(model.prior), copy.deepcopy(model.conditioner)
    models.fill({"prior": prior, "conditioner": conditioner}, tensors, f"prior in {average.path}")
    digest = native.tensors_digest(tensors)
    return dataclasses.replace(model, prior=prior, conditioner=conditioner, digest=digest)
