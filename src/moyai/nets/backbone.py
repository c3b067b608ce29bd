"""What the networks of a diffusion prior share, whatever lies between: how time and conditions come in.

emb = silu(mlp(sinusoids(time)) + project(vector)),   x = [x, concat]
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.errors import ConfigError
from moyai.nets.layers import groups_for, timestep_embedding


def mlp(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))


def heads_for(channels: int, heads: int | None, head_width: int) -> int:
    """How many attention heads so many channels get: `heads`, which must divide them, else by the width of one."""
    if heads is None:
        return groups_for(channels, max(1, channels // head_width))
    if channels % heads:
        possible = [h for h in range(1, channels + 1) if channels % h == 0 and channels // h >= 8]
        near = sorted(possible or [1], key=lambda h: abs(h - heads))[:4]
        raise ConfigError(
            f"prior.net.heads is {heads}, which does not divide {channels} channels; "
            f"possible: {', '.join(map(str, sorted(near)))}"
        )
    return heads


def embedded(
    time: Tensor, vector: Tensor | None, *, width: int, dtype: torch.dtype, net: nn.Module, project: nn.Module | None
) -> Tensor:
    """What the blocks see of time (B,) on 0..1000 and of the vector (B, V), activated once for all of them.

    width: of the sinusoids; dtype: of the weights; net: of time; project: of the vector, None where it has no route.
    """
    with torch.autocast(time.device.type, enabled=False):  # neighbouring times differ by less than bfloat16 tells
        emb: Tensor = net(timestep_embedding(time, width).to(dtype))
        if project is not None and vector is not None:
            emb = emb + project(vector.to(dtype))
        return F.silu(emb)


def joined(x: Tensor, concat: Tensor | None, *, channels: int, dtype: torch.dtype) -> Tensor:
    """The input with its concatenated condition, in the weights' dtype; `channels` are what the network takes."""
    x = x.to(dtype) if concat is None else torch.cat((x.to(dtype), concat.to(dtype)), dim=1)
    if x.shape[1] != channels:
        raise ValueError(f"{x.shape[1]} channels, concatenated ones included; the network takes {channels}")
    return x
