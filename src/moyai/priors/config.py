"""The prior: the model of the latents."""

from typing import Literal

from pydantic import Field

from moyai.conditioning.config import ConditionConfig
from moyai.diffusion.config import DensityConfig, ParameterizationConfig, VConfig, WeightingConfig
from moyai.nets.config import NetConfig, UNetConfig
from moyai.schema import Config
from moyai.training.config import TrainConfig


class DiffusionPriorConfig(Config):
    """A diffusion model over normalised latents."""

    kind: Literal["diffusion"] = "diffusion"
    net: NetConfig = UNetConfig()
    parameterization: ParameterizationConfig = VConfig()
    density: DensityConfig | None = Field(
        None,
        description="of sigma in training; follows from the parameterisation: table for eps and v, else logit-normal",
    )
    weighting: WeightingConfig = WeightingConfig()
    conditions: dict[str, ConditionConfig] | None = Field(
        None, description="by name; {} is unconditional; follows from the data: class where there are classes"
    )
    train: TrainConfig = TrainConfig(learning_rate=5e-4)


PriorConfig = DiffusionPriorConfig
