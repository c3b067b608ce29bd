"""A recipe as a typed tree: every key a run has, and which of them go together.

A recipe is data: no key names code. Each section is the configuration that lies beside the thing it configures; a
choice between things is told by `kind`.
"""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from moyai.conditioning.config import ClassCondition, ConditionConfig, PositionCondition, ScalarCondition
from moyai.data.config import DataConfig
from moyai.diffusion.config import METHODS, NOISY, LearnedVariance, SamplingConfig, TableDensity
from moyai.errors import ConfigError
from moyai.firststage.config import (
    CodecConfig,
    DecoderConfig,
    FirstStageConfig,
    FSQFirstStage,
    KLFirstStage,
    LatentCodecConfig,
    LearnedSimilarityConfig,
    VQ2FirstStage,
)
from moyai.nets.config import DiTConfig, PixelCNNConfig, UNetConfig
from moyai.priors.config import CodePriorConfig, DiffusionPriorConfig, PriorConfig
from moyai.recipe.explain import shown
from moyai.schema import Config

MOST_CODES = 2**16  # that a prior over codes has a probability for

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

    minutes: Annotated[float, Field(gt=0, le=525_600)] | None = Field(
        None,
        description="of the whole run, from data report to final report, but for a [decoder], which says its own "
        "steps; 20 where no stage says steps or epochs",
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
    _check_conditions(recipe.prior.conditions or {})
    if isinstance(recipe.prior.net, UNetConfig):
        _check_unet(recipe.prior.net, recipe.prior.conditions or {})
    elif isinstance(recipe.prior.net, DiTConfig):
        _check_dit(recipe, recipe.prior.net)
    if isinstance(recipe.prior, CodePriorConfig):
        _check_codes(recipe, recipe.prior)
    else:
        if isinstance(recipe.first_stage, VQ2FirstStage) and recipe.codec.kind != "pixels":
            raise ConfigError(
                f'first_stage.kind is "vq2", but prior.kind is {shown(recipe.prior.kind)}, which sees one map of '
                'latents and not two; possible: prior.kind="codes", or first_stage.kind="vq"'
            )
        _check_diffusion(recipe.prior, recipe.sampling)
    for stage, train in (("first_stage", recipe.first_stage.train), ("prior", recipe.prior.train)):
        if train.micro_batch is not None and train.micro_batch > train.batch:
            raise ConfigError(
                f"{stage}.train.micro_batch is {train.micro_batch}, more than the batch of {train.batch}; "
                f"possible: 1 to {train.batch}"
            )
        if not all(0 <= beta < 1 for beta in train.betas):
            raise ConfigError(f"{stage}.train.betas is {shown(train.betas)}; each must be >= 0 and < 1")


def _check_conditions(conditions: Mapping[str, ConditionConfig]) -> None:
    read: dict[str, str] = {}  # which condition reads a field
    for name, condition in conditions.items():
        field = getattr(condition, "field", condition.kind)
        if field in read:
            raise ConfigError(
                f"prior.conditions.{name} and prior.conditions.{read[field]} both read {field!r}; possible: one of them"
            )
        read[field] = name


def _check_codes(recipe: Recipe, prior: CodePriorConfig) -> None:
    first = recipe.first_stage
    if isinstance(first, KLFirstStage) or recipe.codec.kind == "pixels":
        key, kind = ("codec", "pixels") if recipe.codec.kind == "pixels" else ("first_stage", first.kind)
        raise ConfigError(
            f'prior.kind is "codes", but {key}.kind is {shown(kind)}, which has none; possible: first_stage.kind '
            '"vq", "vq2" or "fsq", or prior.kind="diffusion"'
        )
    if isinstance(first, FSQFirstStage) and math.prod(first.grid.levels) > MOST_CODES:
        raise ConfigError(
            f"first_stage.grid.levels is {shown(first.grid.levels)}: {math.prod(first.grid.levels)} codes are too many "
            f'to have a probability each; possible: up to {MOST_CODES}, or prior.kind="diffusion"'
        )
    if isinstance(prior.net, PixelCNNConfig):
        for name, condition in (prior.conditions or {}).items():
            if getattr(condition, "route", None) == "context" or condition.kind in ("text", "published-text"):
                raise ConfigError(
                    f"prior.conditions.{name} is attended to, which a PixelCNN cannot do; possible: "
                    'prior.net.kind="transformer", or another condition'
                )


def _check_diffusion(prior: DiffusionPriorConfig, sampling: SamplingConfig) -> None:
    kind = shown(prior.parameterization.kind)
    if not hasattr(prior.parameterization, "table"):
        if isinstance(prior.density, TableDensity):
            raise ConfigError(
                f'prior.density.kind is "table", but parameterization {kind} has no table; try logit-normal'
            )
        if isinstance(prior.variance, LearnedVariance):
            raise ConfigError(
                f'prior.variance.kind is "learned", but parameterization {kind} has no table to learn it on; '
                "possible: eps, x0 or v, or a fixed one"
            )
        if sampling.grid == "table":
            raise ConfigError(f'sampling.grid is "table", but parameterization {kind} has no table; try uniform-time')
    if isinstance(prior.variance, LearnedVariance) and not isinstance(prior.density, TableDensity | None):
        raise ConfigError(
            f"prior.density.kind is {shown(prior.density.kind)}, but a learned variance is trained on the table's own "
            'levels; possible: "table", or prior.variance.kind="fixed"'
        )
    if sampling.eta > 0 and not METHODS[sampling.sampler].eta:
        own = "has its own noise" if sampling.sampler.startswith("ddpm") else "adds no noise"
        raise ConfigError(
            f"sampling.eta is {sampling.eta:g}, but {shown(sampling.sampler)} {own}; possible: 0, or {', '.join(NOISY)}"
        )


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
        if not isinstance(condition, ClassCondition | PositionCondition | ScalarCondition):
            raise ConfigError(
                f"first_stage.conditions.{name} is of kind {condition.kind!r}, which a first stage cannot be told; "
                "possible: class, position, scalar"
            )
        if condition.route == "context":
            raise ConfigError(
                f'first_stage.conditions.{name}.route is "context", which a first stage has not; possible: "vector"'
            )


def _check_unet(net: UNetConfig, conditions: Mapping[str, ConditionConfig]) -> None:
    for name, values in (("attention", net.attention), ("depth", net.depth)):
        if net.multipliers is not None and isinstance(values, tuple) and len(values) != len(net.multipliers):
            raise ConfigError(
                f"prior.net.multipliers has {len(net.multipliers)} values and prior.net.{name} {len(values)}; "
                "both have one for each level"
            )
    for channels in (net.width * m for m in net.multipliers or ()):
        if net.heads is not None and channels % net.heads:
            raise ConfigError(
                f"prior.net.heads is {net.heads}, which does not divide a level's {channels} channels; possible: "
                f"a divisor of {channels}, or prior.net.head_width instead"
            )
    nowhere = net.attention is not None and not any(net.attention) and not net.middle_attention
    if net.attention_kind == "self" or nowhere:
        where = "attention is nowhere; possible: somewhere"
        reason = where if nowhere else 'attention_kind is "self"; possible: "transformer"'
        for name, condition in conditions.items():
            if getattr(condition, "route", "context" if "text" in condition.kind else None) in ("context", "both"):
                raise ConfigError(
                    f"prior.conditions.{name} is attended to, but prior.net.{reason}, or "
                    f'prior.conditions.{name}.route="vector" where it has a route'
                )


def _check_dit(recipe: Recipe, net: DiTConfig) -> None:
    if net.width % 4:
        raise ConfigError(f"prior.net.width is {net.width}; it must be a multiple of 4")
    if net.heads is not None and net.width % net.heads:
        raise ConfigError(
            f"prior.net.heads is {net.heads}, which does not divide prior.net.width {net.width}; possible: a divisor"
        )
    factor = 1 if recipe.codec.kind == "pixels" else recipe.first_stage.net.factor
    if net.patch is None or factor is None or recipe.data.resolution is None:
        return
    height, width = (side // factor for side in sides(recipe.data.resolution))
    if height % net.patch or width % net.patch:
        raise ConfigError(
            f"prior.net.patch is {net.patch}, which does not divide the latents' {height} x {width}; "
            f"possible: a divisor of {math.gcd(height, width)}"
        )


def _check_shapes(recipe: Recipe) -> None:
    net = recipe.first_stage.net
    if net.factor is not None and net.multipliers is not None and 2 ** (len(net.multipliers) - 1) != net.factor:
        raise ConfigError(
            f"first_stage.net.multipliers has {len(net.multipliers)} values, but factor {net.factor} has "
            f"{net.factor.bit_length()} levels; possible: {net.factor.bit_length()} values, such as "
            f"{shown(AUTOENCODER_MULTIPLIERS[net.factor])}"
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
