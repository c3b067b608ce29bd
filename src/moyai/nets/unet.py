"""The U-Net of latent diffusion (Ronneberger et al. 2015; Ho et al. 2020; Rombach et al. 2022).

A map is halved level by level and doubled again; what each step of the way down made is kept and joined, channel
by channel, to the same size on the way up. Residual blocks see the time; spatial transformers see the context.

    emb = mlp(sinusoids(time)) + mlp(vector)
    down: conv, [blocks x (residual, transformer), halve] x levels
    middle: residual, transformer, residual
    up: [(blocks + 1) x (residual on joined maps, transformer), double] x levels, norm, silu, conv

The last convolution, each residual block's and each transformer's last layer start at zero: a fresh network's
output is exactly zero. Doubling goes to the size of the map that will be joined, so that any size works.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.errors import ConfigError
from moyai.nets.config import UNetConfig
from moyai.nets.layers import (
    Downsample,
    ResBlock,
    SpatialTransformer,
    Upsample,
    groups_for,
    silu,
    timestep_embedding,
    zeroed,
)


class Stage(nn.Module):
    """A residual block, and a spatial transformer where the level has one."""

    def __init__(
        self,
        config: UNetConfig,
        channels_in: int,
        channels_out: int,
        *,
        attends: bool,
        time_width: int,
        context_width: int | None,
    ) -> None:
        super().__init__()
        self.residual = ResBlock(
            channels_in, channels_out, time_width=time_width, groups=config.groups, dropout=config.dropout
        )
        self.transformer = (
            SpatialTransformer(
                channels_out,
                heads=groups_for(channels_out, max(1, channels_out // config.head_width)),
                depth=config.depth,
                context_width=context_width,
                groups=config.groups,
            )
            if attends
            else None
        )

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.residual(x, emb)
        return x if self.transformer is None else self.transformer(x, context, mask)


class Down(nn.Module):
    """The stages of one resolution on the way down, and the halving after them (None at the last)."""

    def __init__(self, stages: list[Stage], resample: Downsample | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor, cond: Cond) -> list[Tensor]:
        """What each step makes, in order."""
        made = []
        for stage in self.stages:
            h = stage(h, emb, cond.context, cond.mask)
            made.append(h)
        if self.resample is not None:
            made.append(self.resample(h))
        return made


class Up(nn.Module):
    """The stages of one resolution on the way up, and the doubling after them (None at the first resolution)."""

    def __init__(self, stages: list[Stage], resample: Upsample | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor, cond: Cond, kept: list[Tensor]) -> Tensor:
        """Takes the last of the kept maps for each stage, and doubles to the size of the one after."""
        for stage in self.stages:
            h = stage(torch.cat((h, kept.pop()), dim=1), emb, cond.context, cond.mask)
        return h if self.resample is None else self.resample(h, kept[-1].shape[-2:])


_MakeStage = Callable[[int, int, bool], Stage]  # (channels before, after, attends)


def _mlp(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))


class UNet(nn.Module):
    """(x (B, C, h, w), time (B,) on 0..1000, cond) -> (B, channels_out, h, w), float32 under autocast.

    `channels_in` counts the channels of `cond.concat` too. `vector_width` and `context_width` are the widths of
    those routes, or None where they are not used; a route a network has may still be left out of a call.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        channels_in: int,
        channels_out: int,
        vector_width: int | None = None,
        context_width: int | None = None,
    ) -> None:
        super().__init__()
        if config.multipliers is None or config.attention is None:
            raise ConfigError(
                "the U-Net's multipliers or attention are not known yet; give them, or resolve the recipe"
            )
        if len(config.multipliers) != len(config.attention):
            raise ConfigError(
                f"{len(config.multipliers)} multipliers and {len(config.attention)} values of attention; "
                "both have one for each level"
            )
        widths = [config.width * m for m in config.multipliers]
        time_width = 4 * config.width
        self.width, self.channels_in = config.width, channels_in
        self.time = _mlp(config.width, time_width)
        self.vector = None if vector_width is None else _mlp(vector_width, time_width)
        self.conv_in = nn.Conv2d(channels_in, widths[0], 3, padding=1)

        def stage(before: int, after: int, attends: bool) -> Stage:
            return Stage(config, before, after, attends=attends, time_width=time_width, context_width=context_width)

        kept = self._build_down(config, widths, stage)
        self.middle1 = stage(widths[-1], widths[-1], True)
        self.middle2 = stage(widths[-1], widths[-1], False)
        self._build_up(config, widths, kept, stage)
        self.norm_out = nn.GroupNorm(groups_for(widths[0], config.groups), widths[0])
        self.conv_out = zeroed(nn.Conv2d(widths[0], channels_out, 3, padding=1))

    def _build_down(self, config: UNetConfig, widths: list[int], stage: _MakeStage) -> list[int]:
        """The way down; returns the channels of the maps that are kept, in order."""
        assert config.attention is not None
        self.down = nn.ModuleList()
        before, kept = widths[0], [widths[0]]
        for i, (width, attends) in enumerate(zip(widths, config.attention, strict=True)):
            stages = [stage(before if j == 0 else width, width, attends) for j in range(config.blocks)]
            last = i == len(widths) - 1
            self.down.append(Down(stages, None if last else Downsample(width)))
            kept += [width] * (config.blocks + (not last))
            before = width
        return kept

    def _build_up(self, config: UNetConfig, widths: list[int], kept: list[int], stage: _MakeStage) -> None:
        """The way up, which takes the kept maps last first."""
        assert config.attention is not None
        self.up = nn.ModuleList()
        before, kept = widths[-1], list(kept)
        for i in reversed(range(len(widths))):
            stages = []
            for _ in range(config.blocks + 1):
                stages.append(stage(before + kept.pop(), widths[i], config.attention[i]))
                before = widths[i]
            self.up.append(Up(stages, None if i == 0 else Upsample(before)))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        emb = self._embed(time, cond.vector)
        kept = [self.conv_in(self._joined(x, cond.concat))]
        for level in self.down:
            kept += level(kept[-1], emb, cond)
        h = self.middle1(kept[-1], emb, cond.context, cond.mask)
        h = self.middle2(h, emb, cond.context, cond.mask)
        for level in self.up:
            h = level(h, emb, cond, kept)
        h = silu(self.norm_out(h))
        with torch.autocast(h.device.type, enabled=False):
            out: Tensor = self.conv_out(h.to(self.conv_out.weight.dtype))
        return out

    def _embed(self, time: Tensor, vector: Tensor | None) -> Tensor:
        """What the residual blocks see of time and vector, (B, 4 width), activated once for all of them."""
        dtype = self.conv_in.weight.dtype
        with torch.autocast(time.device.type, enabled=False):  # neighbouring times differ by less than bfloat16 tells
            emb: Tensor = self.time(timestep_embedding(time, self.width).to(dtype))
            if self.vector is not None and vector is not None:
                emb = emb + self.vector(vector.to(dtype))
            return F.silu(emb)

    def _joined(self, x: Tensor, concat: Tensor | None) -> Tensor:
        """The input with its concatenated condition, in the weights' dtype."""
        dtype = self.conv_in.weight.dtype
        x = x.to(dtype) if concat is None else torch.cat((x.to(dtype), concat.to(dtype)), dim=1)
        if x.shape[1] != self.channels_in:
            raise ValueError(f"{x.shape[1]} channels, concatenated ones included; the U-Net takes {self.channels_in}")
        return x
