"""From a recipe to objects: the only file that matches on configuration types."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from moyai.conditioning.conditioner import ClassEmbedding, Conditioner, PositionEmbedding
from moyai.conditioning.config import ClassCondition, ConditionConfig, PositionCondition
from moyai.data import brain, cifar, digits, folder, idx, volumes
from moyai.data.config import (
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    FolderConfig,
    IdxConfig,
    NiftiConfig,
    OasisConfig,
)
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
from moyai.firststage.autoencoder import LatentAutoencoder
from moyai.firststage.codec import Codec, LatentCodec, PixelCodec
from moyai.firststage.config import (
    FirstStageConfig,
    FSQFirstStage,
    KLFirstStage,
    LatentCodecConfig,
    LearnedSimilarityConfig,
    ObjectiveConfig,
    PixelCodecConfig,
    VQFirstStage,
)
from moyai.firststage.posterior import Gaussian
from moyai.firststage.quantization import FSQ, VectorQuantizer
from moyai.firststage.rivalry import Rival
from moyai.nets.discriminator import PatchDiscriminator
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
        case OasisConfig():
            return brain.read(config, cache, progress)
        case NiftiConfig():
            return volumes.read(config, cache, progress)


def autoencoder(recipe: Recipe, facts: DataFacts) -> LatentAutoencoder:
    """The first stage with its initial weights, a function of the recipe's seed."""
    with _initial_weights(recipe.seed, "first stage"):
        config = recipe.first_stage
        told = _conditions(config.conditions, facts, "first_stage")
        return LatentAutoencoder(config.net, facts.channels, bottleneck(config), told)


def bottleneck(config: FirstStageConfig) -> nn.Module:
    """What lies between the encoder and the decoder."""
    match config:
        case KLFirstStage():
            return Gaussian(config.net.latent_channels)
        case VQFirstStage():
            return VectorQuantizer(config.codebook, config.net.latent_channels)
        case FSQFirstStage():
            return FSQ(config.grid)


def rival(recipe: Recipe, facts: DataFacts, objective: ObjectiveConfig | None = None) -> Rival | None:
    """The discriminator of an objective (the first stage's when not given) with its initial weights, if it has one."""
    objective = recipe.first_stage.objective if objective is None else objective
    if objective.adversarial is None:
        return None
    with _initial_weights(recipe.seed, "discriminator"):
        told = _conditions(recipe.first_stage.conditions, facts, "first_stage")
        width = None if told is None else told.vector_width
        net = PatchDiscriminator(objective.adversarial.net, facts.channels, width)
        perceptual = objective.perceptual
        similarity = perceptual.weight if isinstance(perceptual, LearnedSimilarityConfig) else 0.0
        return Rival(objective.adversarial, net, told, similarity=similarity)


def codec(
    recipe: Recipe, facts: DataFacts, trained: LatentAutoencoder | None, device: torch.device | str = "cpu"
) -> Codec:
    """Pixels to the prior's space and back; `trained` is the first stage, None where there is none."""
    shape = (facts.channels, facts.height, facts.width)
    match recipe.codec:
        case PixelCodecConfig():
            return placed(PixelCodec(shape), device)
        case LatentCodecConfig():
            if trained is None:
                raise ConfigError('codec.kind is "latent", which needs a first stage')
            return placed(LatentCodec(trained, shape, precision=recipe.first_stage.train.precision), device)


def conditioner(recipe: Recipe, facts: DataFacts) -> Conditioner:
    with _initial_weights(recipe.seed, "conditioner"):
        return _conditions(recipe.prior.conditions or {}, facts, "prior") or Conditioner({})


def _conditions(configs: Mapping[str, ConditionConfig], facts: DataFacts, stage: str) -> Conditioner | None:
    made = {name: _condition(f"{stage}.conditions.{name}", config, facts) for name, config in configs.items()}
    return Conditioner(made) if made else None


def _condition(name: str, config: ConditionConfig, facts: DataFacts) -> nn.Module:
    match config:
        case ClassCondition():
            if not facts.classes:
                raise ConfigError(f"{name} needs classes, but these data have none; possible: conditions={{}}")
            return ClassEmbedding(config, len(facts.classes))
        case PositionCondition():
            if config.field not in facts.fields:
                has = ", ".join(facts.fields) or "no field"
                raise ConfigError(f"{name} needs the field {config.field!r}, but these data have {has}")
            return PositionEmbedding(config)


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
