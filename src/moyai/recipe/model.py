"""A recipe as a typed tree: every key a run has, and which of them go together.

A recipe is data: no key names code. Each section is the configuration that lies beside the thing it configures; a
choice between things is told by `kind`.
"""

import math
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from moyai.data.config import DataConfig
from moyai.diffusion.config import SamplingConfig, TableDensity
from moyai.errors import ConfigError
from moyai.firststage.config import (
    CodecConfig,
    DecoderConfig,
    FirstStageConfig,
    KLFirstStage,
    LatentCodecConfig,
    LearnedSimilarityConfig,
)
from moyai.priors.config import DiffusionPriorConfig, PriorConfig
from moyai.recipe.explain import shown
from moyai.schema import Config

_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))}  # of Windows

# Few channels at full resolution, where they are dear (a CPU spends most of its time there), more further down.
AUTOENCODER_MULTIPLIERS = {
    1: (2,),
    2: (2, 4),
    4: (1, 3, 6),
    8: (1, 2, 4, 6),
    16: (1, 2, 4, 6, 6),
    32: (1, 2, 4, 6, 6, 6),
}  # by factor


class BudgetConfig(Config):
    """How long the whole run may take, where the recipe does not say steps or epochs."""

    minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of the whole run, from data report to final report; 20 where no stage says steps or epochs"
    )
    first_stage: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="the share of the training time that the first stage gets"
    )


class ReportConfig(Config):
    """What the final report draws."""

    samples: Annotated[int, Field(ge=1, le=4096)] = Field(64, description="samples in the sheet of the report")
    per_class: Annotated[int, Field(ge=1, le=64)] = Field(8, description="samples of each class in the class sheet")
    gif: bool = Field(True, description="an animation of the way from noise to samples")


class Recipe(Config):
    """A run: data, first stage, codec, prior, sampling, and how long and how much of it."""

    name: str = Field(description="of the run's folder: letters, digits, dots, dashes and underscores")
    description: str = Field("", description="one line for people")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="everything random follows from it")
    data: DataConfig = Field(description="where the pictures come from, and how a picture becomes an array")
    first_stage: FirstStageConfig = KLFirstStage()
    codec: CodecConfig = LatentCodecConfig()
    prior: PriorConfig = DiffusionPriorConfig()
    decoder: DecoderConfig | None = Field(None, description="train the decoder further, when the rest is done")
    sampling: SamplingConfig = SamplingConfig()
    budget: BudgetConfig = BudgetConfig()
    report: ReportConfig = ReportConfig()

    @field_validator("name")
    @classmethod
    def _safe(cls, value: str) -> str:
        plain = value.isascii() and value.replace("-", "").replace("_", "").replace(".", "").isalnum()
        device = value.split(".")[0].lower() in _DEVICES
        if not plain or device or len(value) > 100 or value[0] in ".-" or value.endswith("."):
            raise ValueError(
                "it names a folder: up to 100 letters, digits, dashes, underscores and dots, not first or last a dot"
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        check(self)
        return self


def check(recipe: Recipe) -> None:
    """Refuse keys that are each right and do not go together."""
    _check_shapes(recipe)
    _check_first_stage(recipe)
    prior, sampling = recipe.prior, recipe.sampling
    table = getattr(prior.parameterization, "table", None)
    kind = shown(prior.parameterization.kind)
    if isinstance(prior.density, TableDensity) and table is None:
        raise ConfigError(f'prior.density.kind is "table", but parameterization {kind} has no table; try logit-normal')
    if sampling.grid == "table" and table is None:
        raise ConfigError(f'sampling.grid is "table", but parameterization {kind} has no table; try uniform-time')
    if prior.parameterization.kind == "eps" and getattr(table, "zero_terminal", False):
        raise ConfigError(
            'prior.parameterization.kind is "eps" with a zero-terminal table, where noise says nothing of the picture; '
            "possible: kind v, or zero_terminal = false"
        )
    if sampling.sampler == "heun" and sampling.eta > 0:
        raise ConfigError(f'sampling.eta is {sampling.eta:g}, but "heun" adds no noise; possible: 0, or another one')
    for stage, train in (("first_stage", recipe.first_stage.train), ("prior", recipe.prior.train)):
        if train.micro_batch is not None and train.micro_batch > train.batch:
            raise ConfigError(
                f"{stage}.train.micro_batch is {train.micro_batch}, more than the batch of {train.batch}; "
                f"possible: 1 to {train.batch}"
            )
        if not all(0 <= beta < 1 for beta in train.betas):
            raise ConfigError(f"{stage}.train.betas is {shown(train.betas)}; each must be >= 0 and < 1")


def _check_first_stage(recipe: Recipe) -> None:
    objectives = {"first_stage": recipe.first_stage.objective}
    if recipe.decoder is not None:
        objectives["decoder"] = recipe.decoder.objective
        if recipe.decoder.train.steps is None and recipe.decoder.train.epochs is None:
            raise ConfigError("decoder.train says neither steps nor epochs; possible: decoder.train.steps=2000")
    for stage, objective in objectives.items():
        if isinstance(objective.perceptual, LearnedSimilarityConfig) and objective.adversarial is None:
            raise ConfigError(
                f'{stage}.objective.perceptual.kind is "discriminator", but there is none; possible: '
                f"{stage}.objective.adversarial={{}}, or another kind"
            )
    for name, condition in recipe.first_stage.conditions.items():
        if condition.route == "context":
            raise ConfigError(
                f'first_stage.conditions.{name}.route is "context", which a first stage has not; possible: "vector"'
            )


def _check_shapes(recipe: Recipe) -> None:
    net, unet = recipe.first_stage.net, recipe.prior.net
    if net.factor is not None and net.multipliers is not None and 2 ** (len(net.multipliers) - 1) != net.factor:
        raise ConfigError(
            f"first_stage.net.multipliers has {len(net.multipliers)} values, but factor {net.factor} has "
            f"{net.factor.bit_length()} levels; possible: {net.factor.bit_length()} values, such as "
            f"{shown(AUTOENCODER_MULTIPLIERS[net.factor])}"
        )
    if unet.multipliers is not None and unet.attention is not None and len(unet.multipliers) != len(unet.attention):
        raise ConfigError(
            f"prior.net.multipliers has {len(unet.multipliers)} values and prior.net.attention {len(unet.attention)}; "
            "both have one for each level"
        )
    if recipe.data.resolution is None:
        return
    height, width = sides(recipe.data.resolution)
    if min(height, width) < 4:
        raise ConfigError(f"data.resolution is {shown(recipe.data.resolution)}; each side must be 4 or more")
    if net.factor is not None and (height % net.factor or width % net.factor):
        below = [max(1, side // net.factor) * net.factor for side in (height, width)]
        raise ConfigError(
            f"data.resolution is {height} x {width}, which first_stage.net.factor {net.factor} does not divide; "
            f"possible: {below[0]} x {below[1]}, or factor {math.gcd(height, width, 32)} or less"
        )


def sides(resolution: int | tuple[int, int]) -> tuple[int, int]:
    return (resolution, resolution) if isinstance(resolution, int) else resolution
