"""A finished run, read back as a model: `moyai.load`."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moyai.build.conditions import build_conditioner
from moyai.build.firststage import build_autoencoder, build_codec
from moyai.build.prior import build_prior
from moyai.checkpoints import native
from moyai.errors import CheckpointError, RequestError
from moyai.files import read_json, write_arrays_atomic
from moyai.firststage.codec import Codec, LatentCodec
from moyai.model import LatentModel
from moyai.nets.precision import placed
from moyai.recipe import reading, resolve
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts


def load(
    path: str | Path, *, device: torch.device | str = "cpu", warn: Callable[[str], None] | None = None
) -> LatentModel:
    """The model of a run folder, with the averaged weights.

    Where the prior's training is not finished, its newest whole checkpoint is taken; `warn` is told of broken ones.
    Raises RequestError where `path` is no run, CheckpointError where what is there is torn, altered or does not fit.
    """
    run = Path(path)
    recipe, facts = described(run)
    codec = read_codec(run, recipe, facts, device)
    conditioner = build_conditioner(recipe, facts)
    prior = build_prior(recipe, conditioner, codec.shape(), device)
    tensors, info = _weights(run / "prior", "moyai train", warn)
    if info["codec"] != codec.digest():
        raise CheckpointError(
            f"{run / 'prior'} was trained on latents of codec {info['codec'][:12]}, but the first stage is "
            f"{codec.digest()[:12]}; train the prior again"
        )
    read = conditioner.digests()
    if changed := sorted(name for name, digest in info.get("encoders", {}).items() if read.get(name) != digest):
        raise CheckpointError(
            f"{run / 'prior'} was trained with another text encoder than the one that lies in the folder of "
            f"prior.conditions.{changed[0]} now; put back the files it was trained with"
        )
    fill({"prior": prior, "conditioner": conditioner}, tensors, f"prior in {run}")
    digest = native.tensors_digest(tensors)
    frozen = (m.eval().requires_grad_(False) for m in (prior, conditioner))
    for module in frozen:
        placed(module, device)
    return LatentModel(codec, conditioner, prior, recipe, facts, run, digest, _examples(run))


def write_examples(run: Path, examples: Mapping[str, np.ndarray]) -> None:
    """Keep what some held-out pictures are, which is what `moyai sample` asks for where nothing is asked."""
    write_arrays_atomic(run / "prior" / "examples.npz", examples)


def _examples(run: Path) -> dict[str, np.ndarray]:
    path = run / "prior" / "examples.npz"
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as read:
            return {name: read[name] for name in read.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} does not hold examples; it was altered") from error


def described(run: Path) -> tuple[Recipe, DataFacts]:
    """The resolved recipe and the data's facts, as the run saved them.

    Raises RequestError where `run` is no run; ConfigError, DataError or CheckpointError where its files were altered.
    """
    if not run.exists():
        raise RequestError(f"{run} does not exist; possible: a folder that `moyai train` made")
    if not reading.is_run(run):
        whole = reading.run_around(run)
        possible = f"{whole}, the run it is a part of" if whole else "a folder that `moyai train` made"
        raise RequestError(f"{run} is no run (it has no recipe.json and data.json); possible: {possible}")
    recipe = reading.load(run / "recipe.json")
    data: dict[str, Any] = read_json(run / "data.json")
    try:
        return recipe, DataFacts.model_validate(data["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run / 'data.json'} does not hold the facts of the data; it was altered") from error


def has_only_a_first_stage(run: Path) -> bool:
    """Whether a run's first stage is finished and no weights of a prior were kept yet."""
    kept = (run / "prior" / "model").is_dir() or native.newest(run / "prior" / "checkpoints") is not None
    return (run / "first_stage" / "model").is_dir() and not kept


def read_first_stage(run: Path, recipe: Recipe, facts: DataFacts, *, decoder: bool = True) -> Any:
    """The trained autoencoder of a run, with its decoder as it was trained further, if it was and `decoder` is true."""
    model = build_autoencoder(recipe, facts)
    further = decoder and (run / "decoder" / "model").is_dir()
    tensors, _ = _weights(run / ("decoder" if further else "first_stage"), "moyai train --stage first_stage")
    fill({"autoencoder": model}, tensors, f"first stage in {run}")
    return model


def untuned_codec(run: Path, recipe: Recipe, facts: DataFacts, device: torch.device | str = "cpu") -> Codec:
    """The codec of a run before its statistics are known: its first stage, where it has one."""
    first = read_first_stage(run, recipe, facts) if "first_stage" in resolve.stages(recipe) else None
    return build_codec(recipe, facts, first, device)


def read_codec(run: Path, recipe: Recipe, facts: DataFacts, device: torch.device | str = "cpu") -> Codec:
    """The codec of a run: its first stage with the statistics of its latents."""
    codec = untuned_codec(run, recipe, facts, device)
    statistics = run / "latents" / "statistics"
    if not statistics.is_dir():
        raise RequestError(f"{run} has no latent statistics yet; `moyai train` with --stage latents measures them")
    tensors = native.read(statistics)["statistics"]
    if not isinstance(codec, LatentCodec):
        return codec
    return placed(codec.measured((tensors["mean"], tensors["std"])), device)


def _weights(
    stage: Path, how: str, warn: Callable[[str], None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The averaged weights of a finished stage, or of its newest checkpoint."""
    if (stage / "model").is_dir():
        manifest = native.verify(stage / "model")
        return native.read(stage / "model")["model"], manifest["info"]
    newest = native.newest(stage / "checkpoints", on_skip=warn)
    if newest is None:
        raise RequestError(f"{stage} holds no trained weights yet; `{how}` makes them")
    return native.read(newest.path, ["ema"])["ema"], newest.manifest["info"]


def fill(modules: dict[str, torch.nn.Module], tensors: dict[str, Tensor], what: str) -> None:
    """Fill modules from tensors named `<module>.<parameter>`, strictly: CheckpointError names what differs."""
    wanted = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    missing = sorted(set(wanted) - set(tensors))
    unexpected = sorted(set(tensors) - set(wanted))
    misshapen = [k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape]
    if missing or unexpected or misshapen:
        raise CheckpointError(f"the {what} does not fit", missing=missing, unexpected=unexpected, misshapen=misshapen)
    with torch.no_grad():
        for key, target in wanted.items():
            target.copy_(tensors[key])
