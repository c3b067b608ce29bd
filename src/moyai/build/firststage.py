"""The first stage of a recipe, untrained: autoencoder and bottleneck, its discriminator, the codec around it."""

import torch
from torch import nn

from moyai.build.conditions import conditioner_of
from moyai.build.weights import initial_weights
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
from moyai.firststage.grid import FSQ
from moyai.firststage.hierarchy import HierarchicalAutoencoder, Hierarchy
from moyai.firststage.posterior import Gaussian
from moyai.firststage.quantization import VectorQuantizer
from moyai.firststage.rivalry import Rival
from moyai.nets.discriminator import PatchDiscriminator
from moyai.nets.precision import placed
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts


def build_autoencoder(recipe: Recipe, facts: DataFacts) -> LatentAutoencoder:
    """The first stage with its initial weights, a function of the recipe's seed."""
    with initial_weights(recipe.seed, "first stage"):
        config = recipe.first_stage
        told = conditioner_of(config.conditions, facts, "first_stage")
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


def build_rival(recipe: Recipe, facts: DataFacts, objective: ObjectiveConfig | None = None) -> Rival | None:
    """The discriminator of an objective (the first stage's when not given) with its initial weights, if it has one."""
    objective = recipe.first_stage.objective if objective is None else objective
    if objective.adversarial is None:
        return None
    with initial_weights(recipe.seed, "discriminator"):
        told = conditioner_of(recipe.first_stage.conditions, facts, "first_stage")
        width = None if told is None else told.vector_width
        net = PatchDiscriminator(objective.adversarial.net, facts.channels, width)
        perceptual = objective.perceptual
        similarity = perceptual.weight if isinstance(perceptual, LearnedSimilarityConfig) else 0.0
        return Rival(objective.adversarial, net, told, similarity=similarity)


def build_codec(
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
