"""The first stage: its network, what holds its latents in shape, its objective, and how it is trained."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from moyai.conditioning.config import ConditionConfig, Name
from moyai.nets.config import AutoencoderConfig, DiscriminatorConfig
from moyai.schema import Config
from moyai.training.config import TrainConfig

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class AnnealConfig(Config):
    """How the KL weight comes to its value over the run (Fu et al., NAACL 2019: cyclical annealing)."""

    kind: Literal["none", "warmup", "cyclical"] = Field(
        "none", description="fixed from the start, risen once from 0, or risen from 0 in every cycle"
    )
    cycles: Count = Field(4, description="cyclical only: cycles in the run")
    ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="the share of a cycle (of the run, for warmup) in which the weight rises"
    )
    ramp: Literal["linear", "cosine", "sigmoid"] = Field("linear", description="the shape of the rise")


class KLConfig(Config):
    """The Kullback-Leibler term, a sum over a picture's latents divided by its pixels x channels."""

    weight: Weight = Field(1e-6, description="1 is the ELBO of a unit-scale likelihood")
    anneal: AnnealConfig = AnnealConfig()


class CodebookConfig(Config):
    """A codebook: every place of the latents becomes the nearest of `size` vectors (van den Oord et al. 2017)."""

    size: Annotated[int, Field(ge=2, le=65536)] = Field(512, description="vectors in the codebook")
    update: Literal["ema", "gradient"] = Field(
        "ema", description="the vectors follow the mean of what chose them, or the gradient of their distance to it"
    )
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.99, description="ema only: of the running means")
    commitment: Weight = Field(0.25, description="weight of the encoder's distance to the chosen vector")
    start: Literal["kmeans", "uniform"] = Field("kmeans", description="from the first batch, or at random")
    restart: Weight = Field(
        0.1,
        description="a vector chosen less than this share of the even rate is put on a latent of the batch; 0 never",
    )
    cosine: bool = Field(False, description="latents and vectors of length 1: the nearest by angle (Yu et al. 2022)")


class FSQConfig(Config):
    """Finite scalar quantisation: every channel is bounded and rounded to few levels (Mentzer et al. 2024)."""

    levels: tuple[Annotated[int, Field(ge=2, le=256)], ...] = Field(
        (8, 5, 5, 5),
        description="of each channel of the latents, the first of which has most of the picture; their product is the "
        "number of codes",
    )


class LpipsConfig(Config):
    """LPIPS (Zhang et al. 2018) on the published VGG16, from files that lie here; nothing is fetched."""

    kind: Literal["lpips"] = "lpips"
    weight: Weight = Field(1.0, description="of the distance, one number a picture")
    vgg: Path = Field(description="torchvision's VGG16 weights: vgg16-397923af.pth, or as .safetensors")
    heads: Path = Field(description="the linear heads of LPIPS 0.1 for VGG16: vgg.pth, or as .safetensors")


class OwnPerceptualConfig(Config):
    """The same distance in a small network trained on these data first, on their classes where they have any."""

    kind: Literal["own"] = "own"
    weight: Weight = Field(0.5, description="of the distance, one number a picture")
    steps: Count = Field(400, description="training steps of that network, before the first stage begins")


class LearnedSimilarityConfig(Config):
    """The distance in the discriminator's own features (Larsen et al. 2016); needs objective.adversarial."""

    kind: Literal["discriminator"] = "discriminator"
    weight: Weight = Field(1.0, description="of the distance, one number a picture")


PerceptualConfig = Annotated[LpipsConfig | OwnPerceptualConfig | LearnedSimilarityConfig, Field(discriminator="kind")]


class AdversarialConfig(Config):
    """A discriminator that tells patches of pictures from patches of reconstructions (Esser et al. 2021)."""

    net: DiscriminatorConfig = DiscriminatorConfig()
    loss: Literal["hinge", "vanilla"] = Field("hinge", description="of the discriminator; vanilla is cross-entropy")
    weight: Weight = Field(0.5, description="of the adversarial term, on top of the adaptive weight")
    adaptive: bool = Field(
        True, description="balance the gradients at the decoder's last layer (Esser et al. 2021, eq. 7)"
    )
    start: Annotated[float, Field(ge=0)] = Field(
        0.3, description="when it begins: below 1 a share of the run, otherwise a step"
    )
    warmup: Share = Field(0.1, description="share of the run over which its weight then rises")
    regularizer: Literal["none", "r1", "lecam"] = Field(
        "none", description="of the discriminator: R1 (Mescheder et al. 2018) or LeCam (Tseng et al. 2021)"
    )
    regularizer_weight: Weight = Field(0.1, description="of that")
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="of the discriminator's Adam, at its peak")


class ObjectiveConfig(Config):
    """What the first stage is trained to do."""

    reconstruction: Literal["l1", "l2"] = Field("l1", description="absolute or squared distance to the picture")
    detail: Weight | None = Field(
        None,
        description="weight of the likeness of fine detail, which an error of pixels blurs; if null 0.4; codebooks 0.1",
    )
    kl: KLConfig = Field(KLConfig(), description="first stages of kind kl only")
    perceptual: PerceptualConfig | None = Field(None, description="a distance in the features of a network")
    adversarial: AdversarialConfig | None = Field(None, description="a discriminator")


class _FirstStage(Config):
    net: AutoencoderConfig = AutoencoderConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    conditions: dict[Name, ConditionConfig] = Field(
        {}, description="what encoder, decoder and discriminator are told of a picture, by name"
    )
    train: TrainConfig = TrainConfig(batch=16, learning_rate=1e-3)


class KLFirstStage(_FirstStage):
    """An autoencoder whose latents are a diagonal Gaussian held near N(0, 1) (Kingma and Welling 2014)."""

    kind: Literal["kl"] = "kl"


class VQFirstStage(_FirstStage):
    """An autoencoder whose latents are vectors of a codebook (van den Oord et al. 2017)."""

    kind: Literal["vq"] = "vq"
    codebook: CodebookConfig = CodebookConfig()


class VQ2FirstStage(_FirstStage):
    """An autoencoder of two maps of codes, a coarse one and a fine one (VQ-VAE-2; Razavi et al. 2019).

    `net` is that of the fine map, the bottom; a prior over it is one over codes.
    """

    kind: Literal["vq2"] = "vq2"
    codebook: CodebookConfig = CodebookConfig()
    top_codebook: CodebookConfig | None = Field(None, description="of the coarse map, the top; as codebook where none")
    top_factor: Literal[2, 4] = Field(2, description="how many times coarser than the bottom the top is")


class FSQFirstStage(_FirstStage):
    """An autoencoder whose latents are rounded to a grid (Mentzer et al. 2024)."""

    kind: Literal["fsq"] = "fsq"
    grid: FSQConfig = FSQConfig()


FirstStageConfig = Annotated[KLFirstStage | VQFirstStage | VQ2FirstStage | FSQFirstStage, Field(discriminator="kind")]


class DecoderConfig(Config):
    """The decoder trained further by itself, when the rest is done: latents and priors stay as they are."""

    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="its kl does not act: the encoder rests")
    train: TrainConfig = Field(
        TrainConfig(batch=16, learning_rate=5e-4), description="its steps or epochs must be given; no budget covers it"
    )


class LatentCodecConfig(Config):
    """The prior lives in the first stage's latents, each channel less its own mean, over a standard deviation."""

    kind: Literal["latent"] = "latent"
    scale: Literal["channels", "whole"] = Field(
        "channels", description="each channel's own standard deviation, or one of all channels together"
    )


class PixelCodecConfig(Config):
    """The prior lives in the pixels themselves, as Ho et al. (2020) have it; there is no first stage."""

    kind: Literal["pixels"] = "pixels"


CodecConfig = Annotated[LatentCodecConfig | PixelCodecConfig, Field(discriminator="kind")]
