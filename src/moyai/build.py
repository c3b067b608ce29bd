"""From a recipe to objects: the only file that matches on configuration types."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from moyai.conditioning.conditioner import Conditioner
from moyai.conditioning.config import (
    ClassCondition,
    ConditionConfig,
    LowResolutionCondition,
    MapCondition,
    MaskedCondition,
    PositionCondition,
    PublishedTextCondition,
    ScalarCondition,
    TextCondition,
)
from moyai.conditioning.embeddings import ClassEmbedding, NumberEmbedding
from moyai.conditioning.publishedtext import PublishedText
from moyai.conditioning.spatial import LowResolution, Masked, RegionMap
from moyai.conditioning.text import TextEmbedding, checked, train_tokenizer
from moyai.data import brain, cifar, digits, folder, idx, shapes, volumes
from moyai.data.config import (
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    FolderConfig,
    IdxConfig,
    NiftiConfig,
    OasisConfig,
    ShapesConfig,
)
from moyai.data.images import ImageSet, captioned
from moyai.data.locate import cache_folder
from moyai.diffusion import noise
from moyai.diffusion.bound import discretized, gaussian
from moyai.diffusion.config import (
    CosineTable,
    DensityConfig,
    EDMConfig,
    EpsConfig,
    FlowConfig,
    LearnedVariance,
    LinearTable,
    LogitNormalDensity,
    LogNormalDensity,
    ParameterizationConfig,
    ScaledLinearTable,
    TableConfig,
    TableDensity,
    UniformTDensity,
    VConfig,
    X0Config,
)
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import weighting
from moyai.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, Tabled, V
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
    VQ2FirstStage,
    VQFirstStage,
)
from moyai.firststage.hierarchy import HierarchicalAutoencoder, Hierarchy
from moyai.firststage.posterior import Gaussian
from moyai.firststage.quantization import FSQ, VectorQuantizer
from moyai.firststage.rivalry import Rival
from moyai.nets.causal import CodeTransformer
from moyai.nets.config import CodeNetConfig, CodeTransformerConfig, DiTConfig, PixelCNNConfig, UNetConfig
from moyai.nets.discriminator import PatchDiscriminator
from moyai.nets.dit import DiT
from moyai.nets.pixelcnn import PixelCNN
from moyai.nets.precision import autocast_dtype, placed
from moyai.nets.unet import UNet
from moyai.priors.codes import CodeLevel, CodePrior
from moyai.priors.config import CodePriorConfig, DiffusionPriorConfig
from moyai.priors.diffusion import Bound, Density, DiffusionPrior
from moyai.randomness import torch_seed
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts

Progress = Callable[[str, int, int], None]


def read_data(config: DataConfig, cache: Path, progress: Progress | None = None) -> ImageSet:
    """The data of a recipe, as arrays."""
    images = _source(config, cache, progress)
    return captioned(images, config.class_captions) if config.class_captions else images


def _source(config: DataConfig, cache: Path, progress: Progress | None) -> ImageSet:
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
        case ShapesConfig():
            return shapes.read(config, cache, progress)


def facts_of(images: ImageSet, train: ImageSet) -> DataFacts:
    """What is known of the data once they are read; train: those of them that are trained on."""
    channels, height, width = images.shape
    numbers = {n: v for n, v in train.fields.items() if v.ndim == 1 and v.dtype.kind == "f" and n != "position"}
    return DataFacts(
        channels=channels,
        height=height,
        width=width,
        bits=images.bits,
        count=train.count,
        classes=images.classes,
        fields=tuple(images.fields),
        ranges={name: (float(v.min()), float(v.max())) for name, v in numbers.items() if v.min() < v.max()},
        regions=images.regions,
    )


def with_tokenizers(recipe: Recipe, facts: DataFacts, train: ImageSet) -> DataFacts:
    """The facts with a tokenizer for each caption that a text encoder of our own reads, learned from the captions."""
    made = {}
    for name, config in (recipe.prior.conditions or {}).items():
        if isinstance(config, TextCondition):
            facts.needs(config.field, f"prior.conditions.{name}")
            made[name] = train_tokenizer(checked(train.fields[config.field], config.field), config.vocabulary)
    return facts.model_copy(update={"tokenizers": made}) if made else facts


def autoencoder(recipe: Recipe, facts: DataFacts) -> LatentAutoencoder:
    """The first stage with its initial weights, a function of the recipe's seed."""
    with _initial_weights(recipe.seed, "first stage"):
        config = recipe.first_stage
        told = _conditions(config.conditions, facts, "first_stage")
        kind = HierarchicalAutoencoder if isinstance(config, VQ2FirstStage) else LatentAutoencoder
        return kind(config.net, facts.channels, bottleneck(config), told)


def bottleneck(config: FirstStageConfig) -> nn.Module:
    """What lies between the encoder and the decoder."""
    match config:
        case KLFirstStage():
            return Gaussian(config.net.latent_channels)
        case VQFirstStage():
            return VectorQuantizer(config.codebook, config.net.latent_channels)
        case VQ2FirstStage():
            channels = config.net.latent_channels
            top = VectorQuantizer(config.top_codebook or config.codebook, channels)
            return Hierarchy(top, VectorQuantizer(config.codebook, channels), config.top_factor)
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
    """What the prior is told, with its initial weights."""
    factor = 1 if recipe.codec.kind == "pixels" else recipe.first_stage.net.factor
    if factor is None:
        raise ConfigError("first_stage.net.factor is not known yet; give it, or resolve the recipe")
    with _initial_weights(recipe.seed, "conditioner"):
        told = _conditions(recipe.prior.conditions or {}, facts, "prior", factor, recipe.prior.drop_all)
        return told or Conditioner({})


def _conditions(
    configs: Mapping[str, ConditionConfig], facts: DataFacts, stage: str, factor: int = 1, together: float = 0.0
) -> Conditioner | None:
    made = {name: _condition(f"{stage}.conditions.{name}", config, facts, factor) for name, config in configs.items()}
    try:
        return Conditioner(made, together) if made else None
    except ValueError as error:
        raise ConfigError(f"{stage}.conditions: {error}") from error


def _condition(name: str, config: ConditionConfig, facts: DataFacts, factor: int) -> nn.Module:
    """One condition; factor: how many pixels' sides go into one of the latents'."""
    if not isinstance(config, ClassCondition) and (field := getattr(config, "field", None)):
        facts.needs(field, name)
    image_shape = (facts.channels, facts.height, facts.width)
    size = (-(-facts.height // factor), -(-facts.width // factor))
    match config:
        case ClassCondition():
            if not facts.classes:
                raise ConfigError(f"{name} needs classes, but these data have none; possible: conditions={{}}")
            return ClassEmbedding(config, len(facts.classes))
        case PositionCondition():
            return NumberEmbedding(config)
        case ScalarCondition():
            if config.field not in facts.ranges:
                raise ConfigError(f"{name} needs numbers, and {config.field!r} of these data has none")
            return NumberEmbedding(config, *facts.ranges[config.field])
        case TextCondition():
            own = name.rpartition(".")[2]
            if own not in facts.tokenizers:
                raise ConfigError(f"{name} needs a tokenizer, and none was learned from these data")
            return TextEmbedding(config, facts.tokenizers[own])
        case PublishedTextCondition():
            return PublishedText(config, cache_folder())
        case MapCondition():
            return RegionMap(config, max(2, len(facts.regions)), size)
        case LowResolutionCondition():
            return LowResolution(config, image_shape, size)
        case MaskedCondition():
            return Masked(config, image_shape, factor)


def net(recipe: Recipe, told: Conditioner, latent_shape: tuple[int, int, int]) -> nn.Module:
    """What of the prior is trained, with its initial weights, over latents (c, h, w)."""
    config = recipe.prior
    if isinstance(config, CodePriorConfig):
        return _code_prior(recipe, config, told, latent_shape[1:])
    channels = latent_shape[0]
    outputs = channels * (2 if isinstance(config.variance, LearnedVariance) else 1)
    routes = {
        "vector_width": told.vector_width,
        "context_width": told.context_width,
        "concat_channels": told.concat_channels,
    }
    with _initial_weights(recipe.seed, "prior"):
        match config.net:
            case UNetConfig():
                return UNet(config.net, channels_in=channels, channels_out=outputs, **routes)
            case DiTConfig():
                return DiT(config.net, channels_in=channels, channels_out=outputs, **routes)


def prior(
    recipe: Recipe, told: Conditioner, latent_shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> DiffusionPrior | CodePrior:
    """The prior, untrained."""
    match recipe.prior:
        case DiffusionPriorConfig():
            return _diffusion_prior(recipe, recipe.prior, told, latent_shape, device)
        case CodePriorConfig():
            over_codes = _code_prior(recipe, recipe.prior, told, latent_shape[1:])
            over_codes.autocast = autocast_dtype(recipe.prior.train.precision, device)
            return over_codes


def _code_prior(recipe: Recipe, config: CodePriorConfig, told: Conditioner, shape: tuple[int, int]) -> CodePrior:
    levels: list[CodeLevel] = []
    coarser: list[int] = []  # how many codes each of the maps before has
    with _initial_weights(recipe.seed, "prior"):
        for count, size in code_maps(recipe.first_stage, shape):
            over = code_net(config.net, told, count, size, config.net.width * len(coarser))
            levels.append(CodeLevel(over, coarser, config.net.width))
            coarser.append(count)
    return CodePrior(levels)


def code_maps(config: FirstStageConfig, latents: tuple[int, int]) -> list[tuple[int, tuple[int, int]]]:
    """How many codes each map of a discrete first stage has, and its (h, w), coarse to fine; latents: (h, w)."""
    match config:
        case VQFirstStage():
            return [(config.codebook.size, latents)]
        case VQ2FirstStage():
            top, (height, width), ratio = config.top_codebook or config.codebook, latents, config.top_factor
            return [(top.size, latents), (config.codebook.size, (ratio * height, ratio * width))]
        case FSQFirstStage():
            return [(math.prod(config.grid.levels), latents)]
        case KLFirstStage():
            raise ConfigError('first_stage.kind is "kl", which has no codes; possible: vq, vq2, fsq')


def code_net(
    config: CodeNetConfig, told: Conditioner, codes: int, shape: tuple[int, int], coarser: int = 0
) -> PixelCNN | CodeTransformer:
    """A network over maps of codes, untrained; coarser: channels of coarser maps beside those of the conditions."""
    planes = (told.concat_channels or 0) + coarser or None
    match config:
        case PixelCNNConfig():
            return PixelCNN(config, codes, shape, vector_width=told.vector_width, concat_channels=planes)
        case CodeTransformerConfig():
            widths = {"vector_width": told.vector_width, "context_width": told.context_width}
            return CodeTransformer(config, codes, shape, **widths, concat_channels=planes)


def _diffusion_prior(
    recipe: Recipe,
    config: DiffusionPriorConfig,
    told: Conditioner,
    latent_shape: tuple[int, int, int],
    device: torch.device | str,
) -> DiffusionPrior:
    made = parameterization(config.parameterization)
    learned = isinstance(config.variance, LearnedVariance)
    denoiser = Denoiser(net(recipe, told, latent_shape), made, learned_variance=learned)
    denoiser.autocast = autocast_dtype(config.train.precision, device)
    weight = weighting(config.weighting.kind, gamma=config.weighting.gamma, sigma_data=config.weighting.sigma_data)
    bound = Bound(discretized if recipe.codec.kind == "pixels" else gaussian)
    if isinstance(config.variance, LearnedVariance):
        bound = Bound(bound.decoder, config.variance.bound_weight)
    return DiffusionPrior(denoiser, density(config.density, made), weight, bound)


def parameterization(config: ParameterizationConfig) -> Parameterization:
    match config:
        case EpsConfig():
            return Eps(table(config.table))
        case X0Config():
            made = table(config.table)
            return X0(made.zero_terminal() if config.zero_terminal else made)
        case VConfig():
            made = table(config.table)
            return V(made.zero_terminal() if config.zero_terminal else made)
        case EDMConfig():
            return EDM(config.sigma_data)
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
            if not isinstance(made, Tabled):
                raise ConfigError(
                    f"prior.density.kind is 'table', but {type(made).__name__} has no table; possible: log-normal, "
                    "logit-normal, uniform-t"
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
