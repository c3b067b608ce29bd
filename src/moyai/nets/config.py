"""The shapes of the networks. A field that is None follows from the data (see `recipe.resolve`)."""

from typing import Annotated, Literal

from pydantic import Field

from moyai.schema import Config

Positive = Annotated[int, Field(gt=0)]


class AutoencoderConfig(Config):
    """A convolutional autoencoder: an encoder that halves the picture log2(factor) times, and its mirror image."""

    factor: Literal[1, 2, 4, 8, 16, 32] | None = Field(None, description="downsampling; follows from the resolution")
    width: Positive = Field(16, description="channels at full resolution, before its multiplier")
    multipliers: tuple[Positive, ...] | None = Field(
        None, description="width of each level, first the full resolution; log2(factor) + 1 of them"
    )
    blocks: Positive = Field(1, description="residual blocks a level in the encoder (the decoder has one more)")
    latent_channels: Positive = Field(4, description="channels of the latents")
    attention: bool = Field(True, description="self-attention at the lowest resolution")
    shortcut: bool = Field(
        True, description="the networks learn what a small picture in wavelets lacks; false as in published ones"
    )
    groups: Positive = Field(8, description="groups of GroupNorm (at most; must divide the channels)")


class DiscriminatorConfig(Config):
    """A PatchGAN (Isola et al. 2017): strided 4x4 convolutions, a logit for each patch."""

    width: Positive = Field(32, description="channels after the first convolution; doubled at each next, at most x 8")
    layers: Annotated[int, Field(ge=1, le=6)] = Field(
        3, description="halvings; 3 is the classic patch of 70 pixels, 2 of 34, 1 of 16"
    )
    norm: Literal["group", "batch", "none"] = Field("group", description="normalisation between the convolutions")


class UNetConfig(Config):
    """A U-Net with time embedding, residual blocks and spatial transformers (Rombach et al. 2022, appendix)."""

    kind: Literal["unet"] = "unet"
    width: Positive = Field(64, description="channels of the first level, before its multiplier")
    multipliers: tuple[Positive, ...] | None = Field(None, description="width of each level; follows from the latents")
    blocks: Positive = Field(1, description="residual blocks a level (one more on the way up)")
    attention: tuple[bool, ...] | None = Field(
        None,
        description="spatial transformers at each level (the middle always has one); all but the first where the "
        "latents are large, all where they are small",
    )
    depth: Positive = Field(1, description="transformer blocks in each spatial transformer")
    head_width: Positive = Field(32, description="channels of an attention head")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="in the residual blocks, in training")
    groups: Positive = Field(32, description="groups of GroupNorm (at most; must divide the channels)")


NetConfig = UNetConfig
