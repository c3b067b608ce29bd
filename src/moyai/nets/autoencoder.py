"""The encoder and the decoder of a latent autoencoder (Esser et al. 2021; Rombach et al. 2022).

Structure and arithmetic are those of CompVis' `Encoder` / `Decoder` and of `AutoencoderKL` in diffusers, the 1x1
`quant_conv` and `post_quant_conv` included, so that published weights fit by renaming:

    encoder: conv, [blocks x residual, halve] x levels, residual - attention - residual, norm, silu, conv, 1x1
    decoder: 1x1, conv, residual - attention - residual, [(blocks + 1) x residual, double] x levels, norm, silu, conv

What the encoder's last channels mean (mean and log-variance, or a code's coordinates) is the bottleneck's business:
it says how many they are. Where something is known of a picture (its class, the place of a slice in its volume), a
vector of it is added to the map between the two convolutions of every residual block, as time is in a U-Net.

The last layers run in float32 under autocast: they are cheap, and what they return is compared with
pixels or exponentiated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.errors import ConfigError
from moyai.nets.config import AutoencoderConfig
from moyai.nets.layers import AttentionBlock, Downsample, ResBlock, Upsample, groups_for, silu

EPS = 1e-6  # of every normalisation, as in the published weights


def _block(config: AutoencoderConfig, channels_in: int, channels_out: int, vector: int | None) -> ResBlock:
    return ResBlock(channels_in, channels_out, time_width=vector, groups=config.groups, eps=EPS)


def _widths(config: AutoencoderConfig) -> list[int]:
    """Channels of each level, full resolution first."""
    if config.multipliers is None:
        raise ConfigError("the autoencoder's multipliers are not known yet; give them, or resolve the recipe")
    levels = len(config.multipliers)
    if config.factor is not None and 2 ** (levels - 1) != config.factor:
        raise ConfigError(f"factor {config.factor} needs {config.factor.bit_length()} multipliers; {levels} are given")
    return [config.width * m for m in config.multipliers]


class Level(nn.Module):
    """The residual blocks of one resolution, and the way to the next (or None at the last)."""

    def __init__(self, blocks: list[ResBlock], resample: Downsample | Upsample | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            h = block(h, emb)
        return h if self.resample is None else self.resample(h)


class Middle(nn.Module):
    """Residual, attention over the whole map (where wanted), residual."""

    def __init__(self, config: AutoencoderConfig, channels: int, vector: int | None) -> None:
        super().__init__()
        self.first = _block(config, channels, channels, vector)
        self.attention = AttentionBlock(channels, groups=config.groups, eps=EPS) if config.attention else None
        self.second = _block(config, channels, channels, vector)

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.first(h, emb)
        if self.attention is not None:
            h = self.attention(h)
        return self.second(h, emb)


class Encoder(nn.Module):
    """Pictures to the parameters of a posterior: (B, C, H, W) -> (B, moments, H / factor, W / factor).

    moments: twice the latents' channels (mean and log-variance) when not given. vector_width: of what is known of a
    picture, (B, vector_width), where anything is.
    """

    def __init__(
        self, config: AutoencoderConfig, channels: int, *, moments: int | None = None, vector_width: int | None = None
    ) -> None:
        super().__init__()
        widths = _widths(config)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            blocks = [_block(config, before if j == 0 else width, width, vector_width) for j in range(config.blocks)]
            last = i == len(widths) - 1
            self.levels.append(Level(blocks, None if last else Downsample(width, centred=False)))
            before = width
        moments = moments or 2 * config.latent_channels
        self.middle = Middle(config, before, vector_width)
        self.norm_out = nn.GroupNorm(groups_for(before, config.groups), before, EPS)
        self.conv_out = nn.Conv2d(before, moments, 3, padding=1)
        self.quant_conv = nn.Conv2d(moments, moments, 1)

    def forward(self, images: Tensor, vector: Tensor | None = None) -> Tensor:
        emb = None if vector is None else F.silu(vector)
        h = self.conv_in(images)
        for level in self.levels:
            h = level(h, emb)
        h = silu(self.norm_out(self.middle(h, emb)))
        with torch.autocast(h.device.type, enabled=False):
            h = h.to(self.conv_out.weight.dtype)
            moments: Tensor = self.quant_conv(self.conv_out(h))
        return moments


class Decoder(nn.Module):
    """Latents to pictures: (B, latent, h, w) -> (B, C, factor h, factor w); vector_width as the encoder's."""

    def __init__(self, config: AutoencoderConfig, channels: int, *, vector_width: int | None = None) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        before = widths[0]
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, before, 3, padding=1)
        self.middle = Middle(config, before, vector_width)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            shapes = [(before if j == 0 else width, width) for j in range(config.blocks + 1)]
            blocks = [_block(config, *shape, vector_width) for shape in shapes]
            last = i == len(widths) - 1
            self.levels.append(Level(blocks, None if last else Upsample(width)))
            before = width
        self.norm_out = nn.GroupNorm(groups_for(before, config.groups), before, EPS)
        self.conv_out = nn.Conv2d(before, channels, 3, padding=1)

    def forward(self, latents: Tensor, vector: Tensor | None = None) -> Tensor:
        emb = None if vector is None else F.silu(vector)
        h = self.middle(self.conv_in(self.post_quant_conv(latents)), emb)
        for level in self.levels:
            h = level(h, emb)
        h = silu(self.norm_out(h))
        with torch.autocast(h.device.type, enabled=False):
            images: Tensor = self.conv_out(h.to(self.conv_out.weight.dtype))
        return images
