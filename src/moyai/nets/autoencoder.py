"""The encoder and the decoder of a latent autoencoder (Esser et al. 2021; Rombach et al. 2022).

Structure and arithmetic are those of CompVis' `Encoder` / `Decoder` and of `AutoencoderKL` in diffusers, the 1x1
`quant_conv` and `post_quant_conv` included, so that published weights fit by renaming:

    encoder: conv, [blocks x residual, halve] x levels, residual - attention - residual, norm, silu, conv, 1x1
    decoder: 1x1, conv, residual - attention - residual, [(blocks + 1) x residual, double] x levels, norm, silu, conv

What the encoder's last channels mean (mean and log-variance, or a code's coordinates) is the bottleneck's business:
it says how many they are. Where something is known of a picture (its class, the place of a slice in its volume), a
vector of it is added to the map between the two convolutions of every residual block, as time is in a U-Net.

Unless `shortcut` is off, the networks only learn what a fixed way past them lacks (residual autoencoding: Chen et al.
2025, "Deep compression autoencoder", section 3.1; its space-to-channel step here takes the Haar transform, as Nvidia's
Cosmos tokenizer does). Past the encoder, the picture is averaged to twice the latents' sides, and each 2 x 2 block of
that becomes its mean and three differences, the first channels of the latents; past the decoder, the way back, smoothly
enlarged. The last layers of both start at zero, so a fresh autoencoder is that small picture, and no time is spent on
learning to copy. Channels beyond these four get what the smooth enlargement lacks of the next finer picture (as in the
Laplacian pyramid of Burt and Adelson 1983), first the bands of its 4 x 4 blocks that carry the most of it: a short
training would leave them empty. The way past has no weights.

The last layers run in float32 under autocast: they are cheap, and what they return is compared with
pixels or exponentiated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.errors import ConfigError
from moyai.nets.attention import AttentionBlock
from moyai.nets.config import AutoencoderConfig
from moyai.nets.layers import Downsample, ResBlock, Upsample, groups_for, silu, zeroed

EPS = 1e-6  # of every normalisation, as in the published weights
# Rows of `_haar4`, by power in photographs and in brains.
FINER = (5, 10, 1, 2, 7, 11, 0, 3, 4, 8, 15, 6, 9, 13, 14, 12)
START_LOGVAR = -6.0  # of a posterior that starts on the shortcut: noise of 0.05 on values in [-1, 1]


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


def _haar(like: Tensor) -> Tensor:
    """Rows: sum, difference across, difference down, both, of a 2 x 2 block in reading order."""
    rows = [[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _haar4(like: Tensor) -> Tensor:
    """Orthonormal rows over a 4 x 4 block in reading order: `_haar` of its pixels, then of its 2 x 2 blocks."""
    haar = _haar(like).view(4, 2, 2) / 2
    rows = torch.einsum("iyx,kYX->ikYyXx", haar, haar).reshape(16, 16)  # row 4 i + k
    return rows[list(FINER)]


def small_picture(images: Tensor, factor: int, channels: int) -> Tensor:
    """What goes past the encoder: (B, C, factor h, factor w) -> (B, channels, h, w), in the range of the pictures.

    The bands come one after the other, means first, so that too few channels lose the finest; those that are left over
    where a picture has no more are zero.
    """
    if factor == 1:
        bands = images
    else:
        half = F.avg_pool2d(images, factor // 2)  # (B, C, 2h, 2w)
        blocks = F.pixel_unshuffle(half, 2).unflatten(1, (-1, 4))  # (B, C, 4, h, w)
        bands = torch.einsum("ij,bcjhw->bichw", _haar(images) / 4, blocks).flatten(1, 2)  # (B, 4C, h, w)
        if factor > 2 and channels > bands.shape[1]:
            lacking = F.avg_pool2d(images, factor // 4) - _doubled(half)  # (B, C, 4h, 4w)
            blocks = F.pixel_unshuffle(lacking, 4).unflatten(1, (-1, 16))
            finer = torch.einsum("ij,bcjhw->bichw", _haar4(images), blocks).flatten(1, 2)  # (B, 16C, h, w)
            bands = torch.cat((bands, finer), dim=1)
    return F.pad(bands, (0, 0, 0, 0, 0, channels - bands.shape[1]))  # a negative pad cuts


def enlarged(latents: Tensor, factor: int, channels: int) -> Tensor:
    """What goes past the decoder, the way back: (B, c, h, w) -> (B, channels, factor h, factor w)."""
    count = channels if factor == 1 else 4 * channels
    bands = F.pad(latents, (0, 0, 0, 0, 0, count - latents.shape[1]))
    if factor == 1:
        return bands
    blocks = torch.einsum("ij,bichw->bcjhw", _haar(latents), bands.unflatten(1, (4, channels)))
    half = F.pixel_shuffle(blocks.flatten(1, 2), 2)
    if factor == 2:
        return half
    finer = latents[:, count:]
    if not finer.shape[1]:
        return F.interpolate(half, scale_factor=factor // 2, mode="bilinear")
    bands = F.pad(finer, (0, 0, 0, 0, 0, 16 * channels - finer.shape[1])).unflatten(1, (16, channels))
    blocks = torch.einsum("ij,bichw->bcjhw", _haar4(latents), bands)
    images = _doubled(half) + F.pixel_shuffle(blocks.flatten(1, 2), 4)
    return images if factor == 4 else F.interpolate(images, scale_factor=factor // 4, mode="bilinear")


def _doubled(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2, mode="bilinear")


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
        self.shortcut = (2 ** (len(widths) - 1), config.latent_channels) if config.shortcut else None
        if self.shortcut is not None:
            zeroed(self.quant_conv)
            nn.init.constant_(self.quant_conv.bias[config.latent_channels :], START_LOGVAR)  # type: ignore[index]

    def forward(self, images: Tensor, vector: Tensor | None = None) -> Tensor:
        return self.moments(self.features(images, vector), images, vector)

    def features(self, images: Tensor, vector: Tensor | None = None) -> Tensor:
        """What the levels make of pictures: (B, width of the last level, H / factor, W / factor)."""
        emb = None if vector is None else F.silu(vector)
        h: Tensor = self.conv_in(images)
        for level in self.levels:
            h = level(h, emb)
        return h

    def moments(self, h: Tensor, images: Tensor, vector: Tensor | None = None) -> Tensor:
        """The parameters of the posterior from features h; images (B, C, H, W): what the shortcut takes past."""
        emb = None if vector is None else F.silu(vector)
        h = silu(self.norm_out(self.middle(h, emb)))
        with torch.autocast(h.device.type, enabled=False):
            h = h.to(self.conv_out.weight.dtype)
            moments: Tensor = self.quant_conv(self.conv_out(h))
            if self.shortcut is not None:
                factor, channels = self.shortcut
                past = small_picture(images.to(moments.dtype), factor, channels)
                moments = moments + F.pad(past, (0, 0, 0, 0, 0, moments.shape[1] - channels))
        return moments


class Decoder(nn.Module):
    """Latents to pictures: (B, latent, h, w) -> (B, C, factor h, factor w); vector_width as the encoder's.

    past: how many of the latents, the first, the shortcut takes; all where it is None.
    """

    def __init__(
        self, config: AutoencoderConfig, channels: int, *, vector_width: int | None = None, past: int | None = None
    ) -> None:
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
        self.shortcut = (2 ** (len(widths) - 1), channels) if config.shortcut else None
        self.past = past
        if self.shortcut is not None:
            zeroed(self.conv_out)

    def forward(self, latents: Tensor, vector: Tensor | None = None) -> Tensor:
        emb = None if vector is None else F.silu(vector)
        h = self.middle(self.conv_in(self.post_quant_conv(latents)), emb)
        for level in self.levels:
            h = level(h, emb)
        h = silu(self.norm_out(h))
        with torch.autocast(h.device.type, enabled=False):
            images: Tensor = self.conv_out(h.to(self.conv_out.weight.dtype))
            if self.shortcut is not None:
                images = images + enlarged(latents[:, : self.past].to(images.dtype), *self.shortcut)
        return images
