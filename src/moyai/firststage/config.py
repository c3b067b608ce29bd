"""The first stage: its network, its objective, and how it is trained."""

from typing import Annotated, Literal

from pydantic import Field

from moyai.nets.config import AutoencoderConfig
from moyai.schema import Config
from moyai.training.config import TrainConfig


class KLConfig(Config):
    """The Kullback-Leibler term, a sum over a picture's latents divided by its pixels x channels."""

    weight: Annotated[float, Field(ge=0)] = Field(1e-6, description="1 is the ELBO of a unit-scale likelihood")


class ObjectiveConfig(Config):
    """What the first stage is trained to do."""

    reconstruction: Literal["l1", "l2"] = Field("l1", description="absolute or squared distance to the picture")
    kl: KLConfig = KLConfig()


class KLFirstStage(Config):
    """An autoencoder whose latents are a diagonal Gaussian held near N(0, 1) (Kingma and Welling 2014)."""

    kind: Literal["kl"] = "kl"
    net: AutoencoderConfig = AutoencoderConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig(batch=64, learning_rate=1e-3)


FirstStageConfig = KLFirstStage


class LatentCodecConfig(Config):
    """The prior lives in the first stage's latents, normalised by their own mean and standard deviation."""

    kind: Literal["latent"] = "latent"


CodecConfig = LatentCodecConfig
