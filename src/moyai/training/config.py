"""How a stage is trained."""

from typing import Annotated, Literal

from pydantic import Field

from moyai.schema import Config

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class NonFinite(Config):
    """What to do when a loss or a gradient is not finite: the step is skipped, and counted."""

    patience: Count = Field(5, description="stop after so many non-finite steps in a row; 1 stops at once")


class EmaConfig(Config):
    """A moving average of the weights; its width is a share of the run so far (Karras et al. 2024, "EDM2", eq. 121)."""

    std: Annotated[float, Field(gt=0, lt=0.28)] = Field(0.05, description="width of the average, relative to the run")


class TrainConfig(Config):
    """How long, how fast and in what portions a stage is trained."""

    steps: Count | None = Field(None, description="optimiser steps; goes before epochs and before budget.minutes")
    epochs: Rate | None = Field(None, description="passes over the training data")
    batch: Count = Field(32, description="pictures a step, over all ranks and micro-batches")
    micro_batch: Count | None = Field(None, description="pictures a forward; the batch is accumulated over them")
    learning_rate: Rate = Field(1e-3, description="of Adam, at its peak")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="of AdamW, decoupled from the gradient")
    betas: tuple[float, float] = Field((0.9, 0.99), description="of Adam: decay of the gradient's mean and square")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.02, description="share of the steps the rate rises over")
    decay: Literal["cosine", "linear", "none"] = Field(
        "cosine", description="how the rate falls after the warm-up, to a hundredth of its peak"
    )
    clip: Rate | None = Field(1.0, description="the gradient's norm is clipped to this")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="bfloat16 where the processor gains from it; weights stay float32"
    )
    compile: bool = Field(False, description="torch.compile the network")
    ema: EmaConfig = EmaConfig()
    nonfinite: NonFinite = NonFinite()
    tensorboard: bool = Field(False, description="write the log for TensorBoard too (needs moyai[tensorboard])")
    log_every: Count = Field(20, description="steps between two lines of the log")
    validate_every: Count | None = Field(
        None, description="steps; a tenth of the run when not given, more if it is short"
    )
    save_every: Count | None = Field(None, description="steps; a tenth of the run, at most 1000, when not given")
    preview_every: Count | None = Field(None, description="steps; as validate_every when not given")
    keep: Annotated[int, Field(ge=2)] = Field(3, description="checkpoints kept, beside the snapshots at 1/16 and 1/8")
