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
        description="spatial transformers at each level (the middle has its own key); all but the first where the "
        "latents are large, all where they are small",
    )
    middle_attention: bool = Field(True, description="a spatial transformer in the middle")
    attention_kind: Literal["transformer", "self"] = Field(
        "transformer",
        description="what a spatial transformer is: self-attention, cross-attention and feed-forward layers; or "
        "self-attention alone, which has no context",
    )
    depth: Positive | tuple[Positive, ...] = Field(
        1, description="transformer blocks in each spatial transformer, or of each level; the middle has the last's"
    )
    projections: Literal["linear", "conv"] = Field(
        "linear", description="the way into and out of a spatial transformer; one function, published weights differ"
    )
    heads: Positive | None = Field(None, description="attention heads, at every level; by head_width where none")
    head_width: Positive = Field(32, description="channels of an attention head")
    scale_shift: bool = Field(
        False, description="the time scales and shifts what a residual block normalises, rather than being added"
    )
    resample: Literal["conv", "residual"] = Field(
        "conv", description="halve and double by a convolution, or within residual blocks (Dhariwal and Nichol 2021)"
    )
    maps: Literal["concat", "spade"] = Field(
        "concat", description="planes of conditions: more input channels, or scales and shifts of every norm (SPADE)"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="in the residual blocks, in training")
    groups: Positive = Field(32, description="groups of GroupNorm (at most; must divide the channels)")


class DiTConfig(Config):
    """A diffusion transformer with adaptive layer norm that starts at zero (Peebles and Xie 2023)."""

    kind: Literal["dit"] = "dit"
    patch: Positive | None = Field(
        None, description="side of a patch, which is one token; follows from the latents: at most 256 tokens"
    )
    width: Positive = Field(192, description="channels of a token; divided by four and by the heads")
    depth: Positive = Field(6, description="transformer blocks")
    heads: Positive | None = Field(None, description="attention heads; by head_width where none")
    head_width: Positive = Field(32, description="channels of an attention head")
    mlp: Annotated[float, Field(gt=0)] = Field(4.0, description="hidden channels of a feed-forward layer, in widths")
    qk_norm: bool = Field(False, description="normalise queries and keys of every head (RMSNorm)")
    convolution: bool = Field(
        False,
        description="a depthwise 3 x 3 convolution in the feed-forward layers (Mix-FFN): neighbours belong together "
        "from the start, where attention must learn it",
    )
    skips: bool = Field(False, description="join each late block's input with an early one's output (Bao et al. 2023)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="in the feed-forward layers, in training")


class PixelCNNConfig(Config):
    """A gated PixelCNN over codes (van den Oord et al. 2016)."""

    kind: Literal["pixelcnn"] = "pixelcnn"
    width: Positive = Field(64, description="channels of each stack")
    layers: Positive = Field(8, description="gated layers; each sees (kernel - 1) / 2 places further than the last")
    kernel: Literal[3, 5, 7, 9] = Field(5, description="side of the square whose earlier half a layer sees")
    places: bool = Field(True, description="a learned vector for each place of the map")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="in every layer, in training")


class CodeTransformerConfig(Config):
    """A causal transformer over codes in reading order."""

    kind: Literal["transformer"] = "transformer"
    width: Positive = Field(128, description="channels of a token; four times the heads must divide it")
    depth: Positive = Field(6, description="blocks")
    heads: Positive = Field(4, description="attention heads")
    positions: Literal["rope", "learned"] = Field(
        "rope", description="rows and columns as turns of queries and keys, or as learned vectors"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="in every block, in training")


CodeNetConfig = Annotated[PixelCNNConfig | CodeTransformerConfig, Field(discriminator="kind")]

NetConfig = Annotated[UNetConfig | DiTConfig, Field(discriminator="kind")]
