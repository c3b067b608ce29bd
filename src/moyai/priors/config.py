"""The prior: the model of the latents."""

from typing import Annotated, Literal

from pydantic import Field

from moyai.conditioning.config import ConditionConfig, Name
from moyai.diffusion.config import (
    DensityConfig,
    FixedVariance,
    ParameterizationConfig,
    VarianceConfig,
    VConfig,
    WeightingConfig,
)
from moyai.nets.config import CodeNetConfig, NetConfig, PixelCNNConfig, UNetConfig
from moyai.schema import Config
from moyai.training.config import TrainConfig


class DiffusionPriorConfig(Config):
    """A diffusion model over normalised latents."""

    kind: Literal["diffusion"] = "diffusion"
    net: NetConfig = UNetConfig()
    parameterization: ParameterizationConfig = VConfig()
    density: DensityConfig | None = Field(
        None,
        description="of sigma in training; follows from the parameterisation: table for eps, x0 and v, log-normal for "
        "edm, logit-normal for flow",
    )
    weighting: WeightingConfig = WeightingConfig()
    variance: VarianceConfig = FixedVariance()
    conditions: dict[Name, ConditionConfig] | None = Field(
        None, description="by name; {} is unconditional; follows from the data: classes and captions where there are"
    )
    drop_all: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="how often all conditions are left out together, besides each at its own rate"
    )
    train: TrainConfig = TrainConfig()


class CodeSamplingConfig(Config):
    """How codes are drawn unless a request says otherwise; the batch is that of `sampling`."""

    temperature: Annotated[float, Field(ge=0, le=100)] = Field(
        1.0, description="below 1 likely codes are drawn more often than the model says; 0 takes the likeliest"
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(None, description="draw among so many likeliest codes only")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="draw among the fewest likeliest codes whose probabilities come to this"
    )
    guidance: Annotated[float, Field(ge=0)] = Field(1.0, description="classifier-free guidance; 1 is none")


class CodePriorConfig(Config):
    """A model of the codes of a discrete first stage (vq, fsq), drawn one after the other."""

    kind: Literal["codes"] = "codes"
    net: CodeNetConfig = PixelCNNConfig()
    conditions: dict[Name, ConditionConfig] | None = Field(
        None, description="by name; {} is unconditional; follows from the data: classes and captions where there are"
    )
    drop_all: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="how often all conditions are left out together, besides each at its own rate"
    )
    sampling: CodeSamplingConfig = CodeSamplingConfig()
    train: TrainConfig = TrainConfig()


PriorConfig = Annotated[DiffusionPriorConfig | CodePriorConfig, Field(discriminator="kind")]
