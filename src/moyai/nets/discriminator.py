"""The discriminator of patches: a logit for each patch of a picture, real or reconstructed.

PatchGAN (Isola et al. 2017, appendix 6.1.2), shaped as `NLayerDiscriminator` in pix2pix and taming-transformers:

    conv 4x4 / 2, act,  [conv 4x4 / 2, norm, act] x (layers - 1),  conv 4x4 / 1, norm, act,  conv 4x4 / 1 -> logits

with act = LeakyReLU(0.2). A logit sees r x r pixels, where r grows by 3 x (the stride so far) at every convolution:
16, 34 and 70 for one, two and three halvings. It judges texture; the distance to the picture itself keeps the rest.

The original's conditional discriminator is never given its condition. Here what is known of a picture (its class, the
place of a slice in its volume) comes as a vector v, and every map is shifted before it is normalised and activated:

    h = act(norm(conv(h) + linear(silu(v))))

The shift moves each channel along the bend of its activation: that is how a condition decides what a texture counts.
Two things keep it in. Its weights start as the convolutions' do, from N(0, 0.02^2), not at zero: the contest begins
in the middle of a run, and a judge who does not know the condition yet would pull the decoder from the first step.
And normalisation is over groups of several channels: were a group one channel, it would subtract the shift again.
The logits get none: a constant added to all of them tells nothing of the picture.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.errors import ConfigError
from moyai.nets.config import DiscriminatorConfig
from moyai.nets.layers import groups_for

SLOPE = 0.2  # of the activation, below zero
SPREAD = 0.02  # standard deviation of fresh weights (Radford et al. 2016)
IN_A_GROUP = 8  # channels that are normalised together, at least (where there are so many)


def _norm(kind: str, channels: int) -> nn.Module | None:
    if kind == "none":
        return None
    if kind == "batch":
        # By the batch's own statistics, always: also where held-out pictures are judged while it trains. Running
        # means would keep what a step that is not applied left in them.
        return nn.BatchNorm2d(channels, track_running_stats=False)
    return nn.GroupNorm(groups_for(channels, min(32, max(1, channels // IN_A_GROUP))), channels)


class _Layer(nn.Module):
    """Convolution, shift by what is known of the picture, normalisation, activation."""

    def __init__(self, channels_in: int, channels: int, *, stride: int, norm: str, vector_width: int | None) -> None:
        super().__init__()
        # A batch's mean takes away any constant of a channel, so that a bias before it would be idle. The mean of a
        # group of channels takes away only what they have in common.
        self.conv = nn.Conv2d(channels_in, channels, 4, stride, padding=1, bias=norm != "batch")
        # The constant part of the shift is the convolution's bias, or the normalisation's.
        self.emb = None if vector_width is None else nn.Linear(vector_width, channels, bias=False)
        self.norm = _norm(norm, channels)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.conv(x)
        if self.emb is not None and emb is not None:
            h = h.add_(self.emb(emb)[:, :, None, None])  # in place: no backward asks for a convolution's output
        if self.norm is not None:
            h = self.norm(h)
        return F.leaky_relu(h, SLOPE, inplace=True)  # nor for a normalisation's


class PatchDiscriminator(nn.Module):
    """Pictures (B, C, H, W) in [-1, 1] to logits of their patches (B, 1, h, w): high where a patch looks real.

    channels: C. vector_width: of what is known of a picture, (B, vector_width), where anything is; it is then needed
    in every call. H and W are any from `smallest` on, 3 x 2^layers; h and w are about H and W / 2^layers, less 2.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int, vector_width: int | None = None) -> None:
        super().__init__()
        self.smallest = 3 * 2**config.layers  # of either side: 3 are left after the halvings, 1 after the last two
        self.vector_width = vector_width
        self.layers = nn.ModuleList()
        before = channels
        for i in range(config.layers + 1):
            width = config.width * min(2**i, 8)
            stride, norm = 2 if i < config.layers else 1, config.norm if i > 0 else "none"
            self.layers.append(_Layer(before, width, stride=stride, norm=norm, vector_width=vector_width))
            before = width
        self.conv_out = nn.Conv2d(before, 1, 4, padding=1)
        self.apply(_fresh)

    def features(self, images: Tensor, vector: Tensor | None = None) -> list[Tensor]:
        """The maps after each activation, layers + 1 of them; the logits are made of the last.

        Raises ConfigError for pictures too small, ValueError where the vector is missing or not expected.
        """
        self._check(images, vector)
        emb = None if vector is None else F.silu(vector)
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1], emb))
        return maps[1:]

    def forward(self, images: Tensor, vector: Tensor | None = None) -> Tensor:
        h = self.features(images, vector)[-1]
        with torch.autocast(h.device.type, enabled=False):  # losses compare logits with 1: bfloat16 is too coarse
            logits: Tensor = self.conv_out(h.to(self.conv_out.weight.dtype))
        return logits

    def _check(self, images: Tensor, vector: Tensor | None) -> None:
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise ConfigError(
                f"pictures of {height} x {width} are too small for a discriminator of {len(self.layers) - 1} layers; "
                f"the smallest side is {self.smallest} (use fewer layers: 3 x 2^layers pixels are needed)"
            )
        if self.vector_width is not None and vector is None:
            raise ValueError(f"this discriminator judges under a condition: give it a vector (B, {self.vector_width})")
        if self.vector_width is None and vector is not None:
            raise ValueError("this discriminator takes no condition, and was given one; build it with vector_width")


def _fresh(module: nn.Module) -> None:
    """Weights as pix2pix starts them: N(0, 0.02^2), the gains of a normalisation N(1, 0.02^2), biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, SPREAD)
    elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, SPREAD)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
