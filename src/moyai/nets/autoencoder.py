"""The encoder and the decoder of a latent autoencoder (Esser et al. 2021; Rombach et al. 2022).

Structure and arithmetic are those of CompVis' `Encoder` / `Decoder` and of `AutoencoderKL` in diffusers, the 1x1
`quant_conv` and `post_quant_conv` included, so that published weights fit by renaming:

    encoder: conv, [blocks x residual, halve] x levels, residual - attention - residual, norm, silu, conv, 1x1
    decoder: 1x1, conv, residual - attention - residual, [(blocks + 1) x residual, double] x levels, norm, silu, conv

What the encoder's 2 x latent channels mean (mean and log-variance, or a code's coordinates) is the posterior's
business. The last layers run in float32 under autocast: they are cheap, and what they return is compared with
pixels or exponentiated.
"""

import torch
from torch import Tensor, nn

from moyai.errors import ConfigError
from moyai.nets.config import AutoencoderConfig
from moyai.nets.layers import AttentionBlock, Downsample, ResBlock, Upsample, groups_for, silu

EPS = 1e-6  # of every normalisation, as in the published weights


def _block(config: AutoencoderConfig, channels_in: int, channels_out: int) -> ResBlock:
    return ResBlock(channels_in, channels_out, groups=config.groups, eps=EPS)


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

    def forward(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h)
        return h if self.resample is None else self.resample(h)


class Middle(nn.Module):
    """Residual, attention over the whole map (where wanted), residual."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.first = _block(config, channels, channels)
        self.attention = AttentionBlock(channels, groups=config.groups, eps=EPS) if config.attention else None
        self.second = _block(config, channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        h = self.first(h)
        if self.attention is not None:
            h = self.attention(h)
        return self.second(h)


class Encoder(nn.Module):
    """Pictures to the parameters of a posterior: (B, C, H, W) -> (B, 2 latent, H / factor, W / factor)."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        widths = _widths(config)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            blocks = [_block(config, before if j == 0 else width, width) for j in range(config.blocks)]
            last = i == len(widths) - 1
            self.levels.append(Level(blocks, None if last else Downsample(width, centred=False)))
            before = width
        self.middle = Middle(config, before)
        self.norm_out = nn.GroupNorm(groups_for(before, config.groups), before, EPS)
        self.conv_out = nn.Conv2d(before, 2 * config.latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in self.levels:
            h = level(h)
        h = silu(self.norm_out(self.middle(h)))
        with torch.autocast(h.device.type, enabled=False):
            h = h.to(self.conv_out.weight.dtype)
            moments: Tensor = self.quant_conv(self.conv_out(h))
        return moments


class Decoder(nn.Module):
    """Latents to pictures: (B, latent, h, w) -> (B, C, factor h, factor w)."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        before = widths[0]
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, before, 3, padding=1)
        self.middle = Middle(config, before)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            blocks = [_block(config, before if j == 0 else width, width) for j in range(config.blocks + 1)]
            last = i == len(widths) - 1
            self.levels.append(Level(blocks, None if last else Upsample(width)))
            before = width
        self.norm_out = nn.GroupNorm(groups_for(before, config.groups), before, EPS)
        self.conv_out = nn.Conv2d(before, channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.middle(self.conv_in(self.post_quant_conv(latents)))
        for level in self.levels:
            h = level(h)
        h = silu(self.norm_out(h))
        with torch.autocast(h.device.type, enabled=False):
            images: Tensor = self.conv_out(h.to(self.conv_out.weight.dtype))
        return images
