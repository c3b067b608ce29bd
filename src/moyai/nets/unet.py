"""The U-Net of latent diffusion (Ronneberger et al. 2015; Ho et al. 2020; Rombach et al. 2022).

A map is halved level by level and doubled again; what each step of the way down made is kept and joined, channel
by channel, to the same size on the way up. Residual blocks see the time; spatial transformers see the context.

    emb = mlp(sinusoids(time)) + mlp(vector)
    down: conv, [blocks x (residual, transformer), halve] x levels
    middle: residual, transformer, residual
    up: [(blocks + 1) x (residual on joined maps, transformer), double] x levels, norm, silu, conv

The last convolution, each residual block's and each transformer's last layer start at zero: a fresh network's
output is exactly zero. Doubling goes to the size of the map that will be joined, so that any size works.

What published networks differ in are choices of the configuration: transformers or plain self-attention (Ho et al.
2020), their depth and heads, where they stand; whether time shifts or also scales; whether convolutions or residual
blocks change the size (Dhariwal and Nichol 2021). With `maps = "spade"` the planes of a condition do not join the
input: they scale and shift every residual block's norms (`nets/modulation.py`).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.errors import ConfigError
from moyai.nets.attention import AttentionBlock, SpatialTransformer
from moyai.nets.backbone import embedded, heads_for, joined, mlp
from moyai.nets.config import UNetConfig
from moyai.nets.layers import Downsample, ResBlock, Upsample, groups_for, silu, zeroed


class Stage(nn.Module):
    """A residual block, and a spatial transformer (or plain self-attention) where the level has one."""

    def __init__(self, residual: ResBlock, transformer: SpatialTransformer | AttentionBlock | None) -> None:
        super().__init__()
        self.residual = residual
        self.transformer = transformer

    def forward(self, x: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        x = self.residual(x, emb, cond.concat)
        if self.transformer is None:
            return x
        if isinstance(self.transformer, AttentionBlock):
            return self.transformer(x)
        return self.transformer(x, cond.context, cond.mask)


class Down(nn.Module):
    """The stages of one resolution on the way down, and the halving after them (None at the last)."""

    def __init__(self, stages: list[Stage], resample: Downsample | ResBlock | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor, cond: Cond) -> list[Tensor]:
        """What each step makes, in order."""
        made = []
        for stage in self.stages:
            h = stage(h, emb, cond)
            made.append(h)
        if isinstance(self.resample, ResBlock):
            made.append(self.resample(h, emb, cond.concat))
        elif self.resample is not None:
            made.append(self.resample(h))
        return made


class Up(nn.Module):
    """The stages of one resolution on the way up, and the doubling after them (None at the first resolution)."""

    def __init__(self, stages: list[Stage], resample: Upsample | ResBlock | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor, cond: Cond, kept: list[Tensor]) -> Tensor:
        """Takes the last of the kept maps for each stage, and doubles to the size of the one after."""
        for stage in self.stages:
            h = stage(torch.cat((h, kept.pop()), dim=1), emb, cond)
        if self.resample is None:
            return h
        size = tuple(kept[-1].shape[-2:])
        if isinstance(self.resample, ResBlock):
            return self.resample(h, emb, cond.concat, size)
        return self.resample(h, size)


class _Parts:
    """Makes the parts of a network: what they all have in common."""

    def __init__(self, config: UNetConfig, context_width: int | None, planes: int | None) -> None:
        multipliers, attention, depth = config.multipliers, config.attention, config.depth
        if multipliers is None or attention is None:
            raise ConfigError(
                "the U-Net's multipliers or attention are not known yet; give them, or resolve the recipe"
            )
        if len(multipliers) != len(attention):
            raise ConfigError(
                f"{len(multipliers)} multipliers and {len(attention)} values of attention; both have one for each level"
            )
        self.depths = (depth,) * len(multipliers) if isinstance(depth, int) else depth
        if len(self.depths) != len(multipliers):
            raise ConfigError(
                f"{len(multipliers)} multipliers and {len(self.depths)} values of depth; possible: one number, "
                "or one for each level"
            )
        if config.attention_kind == "self" and context_width is not None:
            raise ConfigError(
                'prior.net.attention_kind is "self", which has no context; possible: "transformer", or conditions '
                'whose route is "vector"'
            )
        self.config, self.context_width, self.planes = config, context_width, planes
        self.widths = [config.width * m for m in multipliers]
        self.attention, self.time_width = attention, 4 * config.width

    def stage(self, before: int, after: int, depth: int) -> Stage:
        """depth: transformer blocks; 0: none."""
        return Stage(self.residual(before, after), self._transformer(after, depth) if depth else None)

    def residual(self, before: int, after: int, resample: Literal["down", "up"] | None = None) -> ResBlock:
        return ResBlock(
            before,
            after,
            time_width=self.time_width,
            groups=self.config.groups,
            dropout=self.config.dropout,
            scale_shift=self.config.scale_shift,
            planes=self.planes,
            resample=resample,
        )

    def _transformer(self, channels: int, depth: int) -> SpatialTransformer | AttentionBlock:
        config = self.config
        heads = heads_for(channels, config.heads, config.head_width)
        if config.attention_kind == "self":
            return AttentionBlock(channels, heads=heads, groups=config.groups, eps=1e-5)
        return SpatialTransformer(
            channels,
            heads=heads,
            depth=depth,
            context_width=self.context_width,
            groups=config.groups,
            convolutions=config.projections == "conv",
        )

    def down(self, channels: int) -> Downsample | ResBlock:
        conv = self.config.resample == "conv"
        return Downsample(channels) if conv else self.residual(channels, channels, "down")

    def up(self, channels: int) -> Upsample | ResBlock:
        conv = self.config.resample == "conv"
        return Upsample(channels) if conv else self.residual(channels, channels, "up")

    def depth_at(self, level: int) -> int:
        return self.depths[level] if self.attention[level] else 0


class UNet(nn.Module):
    """(x (B, C, h, w), time (B,) on 0..1000, cond) -> (B, channels_out, h, w), float32 under autocast.

    `vector_width` and `context_width` are the widths of those routes, or None where they are not used; a route a
    network has may still be left out of a call. `concat_channels` are the channels of `cond.concat`; where it is not
    given, `channels_in` counts them too.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        channels_in: int,
        channels_out: int,
        vector_width: int | None = None,
        context_width: int | None = None,
        concat_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.spade = config.maps == "spade" and concat_channels is not None
        parts = _Parts(config, context_width, concat_channels if self.spade else None)
        widths = parts.widths
        self.width = config.width
        self.channels_in = channels_in + (0 if self.spade else concat_channels or 0)
        self.time = mlp(config.width, parts.time_width)
        self.vector = None if vector_width is None else mlp(vector_width, parts.time_width)
        self.conv_in = nn.Conv2d(self.channels_in, widths[0], 3, padding=1)
        kept = self._build_down(parts, config.blocks)
        self.middle1 = parts.stage(widths[-1], widths[-1], parts.depths[-1] if config.middle_attention else 0)
        self.middle2 = parts.stage(widths[-1], widths[-1], 0)
        self._build_up(parts, config.blocks, kept)
        self.norm_out = nn.GroupNorm(groups_for(widths[0], config.groups), widths[0])
        self.conv_out = zeroed(nn.Conv2d(widths[0], channels_out, 3, padding=1))

    def _build_down(self, parts: _Parts, blocks: int) -> list[int]:
        """The way down; returns the channels of the maps that are kept, in order."""
        self.down = nn.ModuleList()
        before, kept = parts.widths[0], [parts.widths[0]]
        for i, width in enumerate(parts.widths):
            stages = [parts.stage(before if j == 0 else width, width, parts.depth_at(i)) for j in range(blocks)]
            last = i == len(parts.widths) - 1
            self.down.append(Down(stages, None if last else parts.down(width)))
            kept += [width] * (blocks + (not last))
            before = width
        return kept

    def _build_up(self, parts: _Parts, blocks: int, kept: list[int]) -> None:
        """The way up, which takes the kept maps last first."""
        self.up = nn.ModuleList()
        before, kept = parts.widths[-1], list(kept)
        for i in reversed(range(len(parts.widths))):
            stages = []
            for _ in range(blocks + 1):
                stages.append(parts.stage(before + kept.pop(), parts.widths[i], parts.depth_at(i)))
                before = parts.widths[i]
            self.up.append(Up(stages, None if i == 0 else parts.up(before)))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        dtype = self.conv_in.weight.dtype
        emb = embedded(time, cond.vector, width=self.width, dtype=dtype, net=self.time, project=self.vector)
        x = joined(x, None if self.spade else cond.concat, channels=self.channels_in, dtype=dtype)
        kept = [self.conv_in(x)]
        for level in self.down:
            kept += level(kept[-1], emb, cond)
        h = self.middle2(self.middle1(kept[-1], emb, cond), emb, cond)
        for level in self.up:
            h = level(h, emb, cond, kept)
        h = silu(self.norm_out(h))
        with torch.autocast(h.device.type, enabled=False):
            out: Tensor = self.conv_out(h.to(self.conv_out.weight.dtype))
        return out
