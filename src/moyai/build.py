"""From a recipe to objects: the only file that matches on configuration types."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from moyai.conditioning.conditioner import ClassEmbedding, Conditioner
from moyai.conditioning.config import ClassCondition
from moyai.data import cifar, digits, folder, idx
from moyai.data.config import Cifar10Config, DataConfig, DigitsConfig, FolderConfig, IdxConfig
from moyai.data.images import ImageSet
from moyai.diffusion import noise
from moyai.diffusion.config import (
    CosineTable,
    DensityConfig,
    EpsConfig,
    FlowConfig,
    LinearTable,
    LogitNormalDensity,
    LogNormalDensity,
    ParameterizationConfig,
    ScaledLinearTable,
    TableConfig,
    TableDensity,
    UniformTDensity,
    VConfig,
)
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import weighting
from moyai.diffusion.parameterization import Eps, Flow, Parameterization, V
from moyai.errors import ConfigError
from moyai.firststage.autoencoder import KLAutoencoder
from moyai.firststage.codec import LatentCodec
from moyai.nets.precision import autocast_dtype, placed
from moyai.nets.unet import UNet
from moyai.priors.diffusion import Density, DiffusionPrior
from moyai.randomness import torch_seed
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts

Progress = Callable[[str, int, int], None]


def read_data(config: DataConfig, cache: Path, progress: Progress | None = None) -> ImageSet:
    """The data of a recipe, as arrays."""
    match config:
        case DigitsConfig():
            return digits.read(config, cache, progress)
        case IdxConfig():
            return idx.read(config, cache, progress)
        case Cifar10Config():
            return cifar.read(config, cache, progress)
        case FolderConfig():
            return folder.read(config, cache, progress)


def autoencoder(recipe: Recipe, facts: DataFacts) -> KLAutoencoder:
    """The first stage with its initial weights, a function of the recipe's seed."""
    with _initial_weights(recipe.seed, "first stage"):
        return KLAutoencoder(recipe.first_stage.net, facts.channels)


def codec(recipe: Recipe, facts: DataFacts, trained: KLAutoencoder, device: torch.device | str = "cpu") -> LatentCodec:
    shape = (facts.channels, facts.height, facts.width)
    return placed(LatentCodec(trained, shape, precision=recipe.first_stage.train.precision), device)


def conditioner(recipe: Recipe, facts: DataFacts) -> Conditioner:
    with _initial_weights(recipe.seed, "conditioner"):
        return Conditioner({n: _condition(n, c, facts) for n, c in (recipe.prior.conditions or {}).items()})


def _condition(name: str, config: ClassCondition, facts: DataFacts) -> nn.Module:
    if config.field == "class" and not facts.classes:
        raise ConfigError(f"prior.conditions.{name} needs classes, but these data have none; possible: conditions={{}}")
    return ClassEmbedding(config, len(facts.classes))


def net(recipe: Recipe, told: Conditioner, latent_shape: tuple[int, int, int]) -> UNet:
    """The prior's network with its initial weights, over latents (c, h, w)."""
    with _initial_weights(recipe.seed, "prior"):
        return UNet(
            recipe.prior.net,
            channels_in=latent_shape[0],
            channels_out=latent_shape[0],
            vector_width=told.vector_width,
            context_width=told.context_width,
        )


def prior(
    recipe: Recipe, told: Conditioner, latent_shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> DiffusionPrior:
    """The prior, untrained."""
    config = recipe.prior
    made = parameterization(config.parameterization)
    denoiser = Denoiser(net(recipe, told, latent_shape), made)
    denoiser.autocast = autocast_dtype(config.train.precision, device)
    weight = weighting(config.weighting.kind, gamma=config.weighting.gamma, sigma_data=config.weighting.sigma_data)
    return DiffusionPrior(denoiser, density(config.density, made), weight)


def parameterization(config: ParameterizationConfig) -> Parameterization:
    match config:
        case EpsConfig():
            return Eps(table(config.table))
        case VConfig():
            made = table(config.table)
            return V(made.zero_terminal() if config.zero_terminal else made)
        case FlowConfig():
            return Flow()


def table(config: TableConfig) -> noise.Table:
    match config:
        case LinearTable():
            return noise.Table.linear(config.start, config.end, config.steps)
        case ScaledLinearTable():
            return noise.Table.scaled_linear(config.start, config.end, config.steps)
        case CosineTable():
            return noise.Table.cosine(config.offset, config.steps)


def density(config: DensityConfig | None, made: Parameterization) -> Density:
    match config:
        case TableDensity():
            if not isinstance(made, Eps | V):
                raise ConfigError(
                    "prior.density.kind is 'table', but flow has no table; possible: logit-normal, uniform-t"
                )
            return noise.TableDensity(made.table)
        case LogNormalDensity():
            return noise.LogNormal(config.mean, config.std, config.shift)
        case UniformTDensity():
            return noise.UniformT(config.shift)
        case LogitNormalDensity():
            return noise.LogitNormal(config.mean, config.std, config.shift)
        case None:
            raise ConfigError("prior.density is not resolved")


class _initial_weights:
    """Within this context torch draws the weights from (seed, what) and leaves the caller's generator alone."""

    def __init__(self, seed: int, what: str) -> None:
        self.seed = torch_seed(seed, f"{what} weights")
        self._fork = torch.random.fork_rng(devices=[])

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        self._fork.__exit__(*error)  # type: ignore[arg-type]
