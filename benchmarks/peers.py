"""The peer's networks in the shapes of ours: the same levels, widths, blocks, heads and groups."""

import diffusers

from moyai.nets.config import AutoencoderConfig, UNetConfig
from moyai.nets.layers import groups_for


def autoencoder(config: AutoencoderConfig, channels: int) -> diffusers.AutoencoderKL:
    assert config.multipliers is not None
    levels = len(config.multipliers)
    return diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.width * m for m in config.multipliers),
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        mid_block_add_attention=config.attention,
    )


def unet(config: UNetConfig, channels: int, *, size: int, context_width: int) -> diffusers.UNet2DConditionModel:
    """With a class embedding added to the time's, and a context of one token."""
    assert config.multipliers is not None
    assert config.attention is not None
    widths = tuple(config.width * m for m in config.multipliers)
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in config.attention[::-1])
    return diffusers.UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=config.blocks,
        cross_attention_dim=context_width,
        # The peer's name for the number of heads.
        attention_head_dim=tuple(groups_for(w, max(1, w // config.head_width)) for w in widths),
        norm_num_groups=config.groups,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=context_width,
        use_linear_projection=True,
    )
