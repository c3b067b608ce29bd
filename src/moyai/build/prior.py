"""The prior of a recipe, untrained: over continuous latents, or over the codes of a discrete first stage."""

import math

import torch
from torch import nn

from moyai.build.diffusion import density, parameterization
from moyai.build.weights import initial_weights
from moyai.conditioning.conditioner import Conditioner
from moyai.diffusion.bound import discretized, gaussian
from moyai.diffusion.config import LearnedVariance
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import weighting
from moyai.errors import ConfigError
from moyai.firststage.config import FirstStageConfig, FSQFirstStage, KLFirstStage, VQ2FirstStage, VQFirstStage
from moyai.nets.causal import CodeTransformer
from moyai.nets.config import CodeNetConfig, CodeTransformerConfig, DiTConfig, PixelCNNConfig, UNetConfig
from moyai.nets.dit import DiT
from moyai.nets.pixelcnn import PixelCNN
from moyai.nets.precision import autocast_dtype
from moyai.nets.unet import UNet
from moyai.priors.codes import CodeLevel, CodePrior
from moyai.priors.config import CodePriorConfig, DiffusionPriorConfig
from moyai.priors.diffusion import Bound, DiffusionPrior
from moyai.recipe.model import Recipe


def build_prior(
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


def build_net(recipe: Recipe, told: Conditioner, latent_shape: tuple[int, int, int]) -> nn.Module:
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
    with initial_weights(recipe.seed, "prior"):
        match config.net:
            case UNetConfig():
                return UNet(config.net, channels_in=channels, channels_out=outputs, **routes)
            case DiTConfig():
                return DiT(config.net, channels_in=channels, channels_out=outputs, **routes)


def _diffusion_prior(
    recipe: Recipe,
    config: DiffusionPriorConfig,
    told: Conditioner,
    latent_shape: tuple[int, int, int],
    device: torch.device | str,
) -> DiffusionPrior:
    made = parameterization(config.parameterization)
    learned = isinstance(config.variance, LearnedVariance)
    denoiser = Denoiser(build_net(recipe, told, latent_shape), made, learned_variance=learned)
    denoiser.autocast = autocast_dtype(config.train.precision, device)
    weight = weighting(config.weighting.kind, gamma=config.weighting.gamma, sigma_data=config.weighting.sigma_data)
    bound = Bound(discretized if recipe.codec.kind == "pixels" else gaussian)
    if isinstance(config.variance, LearnedVariance):
        bound = Bound(bound.decoder, config.variance.bound_weight)
    return DiffusionPrior(denoiser, density(config.density, made), weight, bound)


def _code_prior(recipe: Recipe, config: CodePriorConfig, told: Conditioner, shape: tuple[int, int]) -> CodePrior:
    levels: list[CodeLevel] = []
    coarser: list[int] = []  # how many codes each of the maps before has
    with initial_weights(recipe.seed, "prior"):
        for count, size in code_maps(recipe.first_stage, shape):
            over = code_net(config.net, told, count, size, config.net.width * len(coarser))
            levels.append(CodeLevel(over, coarser, config.net.width))
            coarser.append(count)
    return CodePrior(levels)


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
