"""How a stage is trained."""

from typing import Annotated, Literal

from pydantic import Field

from moyai.schema import Config

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class NonFinite(Config):
    patience: Count = Field(5, description="stop after so many non-finite steps in a row; 1 stops at once")


class EmaConfig(Config):
    """A moving average of the weights whose width is a share of the run so far (Karras et al. 2024, "EDM2", eq. 121)."""

    std: Annotated[float, Field(gt=0, lt=0.28)] = Field(0.05, description="width of the average, relative to the run")


class TrainConfig(Config):
    steps: Count | None = Field(None, description="optimiser steps; goes before epochs and before budget.minutes")
    epochs: Rate | None = Field(None, description="passes over the training data")
    batch: Count = Field(128, description="pictures a step, over all ranks and micro-batches")
    micro_batch: Count | None = Field(None, description="pictures a forward; the batch is accumulated over them")
    learning_rate: Rate = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.02, description="share of the steps the rate rises over")
    decay: Literal["cosine", "linear", "none"] = "cosine"
    clip: Rate | None = Field(1.0, description="the gradient's norm is clipped to this")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="bfloat16 where the processor gains from it; weights stay float32"
    )
    compile: bool = Field(False, description="torch.compile the network")
    ema: EmaConfig = EmaConfig()
    nonfinite: NonFinite = NonFinite()
    log_every: Count = 20
    validate_every: Count | None = Field(None, description="steps; a tenth of the run when not given")
    save_every: Count | None = Field(None, description="steps; a tenth of the run, at most 1000, when not given")
    preview_every: Count | None = Field(None, description="steps; a tenth of the run when not given")
    keep: Annotated[int, Field(ge=2)] = Field(3, description="checkpoints kept, beside the snapshots at 1/16 and 1/8")
