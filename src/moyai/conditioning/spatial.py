"""Conditions that are pictures themselves: a map of regions, the picture made smaller, the picture with a hole.

All take the route `concat`: planes of the latents' size that stand beside the noisy latents (Rombach et al. 2022,
sections 4.3.2, 4.4 and 4.5). A picture that is finer than the latents by a whole factor k becomes k^2 channels (space
to depth), so that nothing is lost and no encoder is needed.

    map              share of each region in each place of the latents, and a plane of ones: "told"
    low resolution   the small picture, and a plane of ones
    masked           the picture with zeros where it is missing, and where that is (1: missing, 0: known)

The null of the first two is all zeros; of the third the picture that is missing everywhere.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.conditioning.config import LowResolutionCondition, MapCondition, MaskedCondition
from moyai.errors import DataError, RequestError
from moyai.randomness import Draw

Size = tuple[int, int]  # (height, width)
FROM_PICTURES = ("low_resolution", "masked")  # fields that are made of the pictures themselves
AT_ONCE = 16  # regions whose planes are laid out at full size together: maps of many would need gigabytes


class RegionMap(nn.Module):
    """Maps of region numbers (B, H, W), 0 to regions - 1, for latents of `size`."""

    vector_width = context_width = None

    def __init__(self, config: MapCondition, regions: int, size: Size) -> None:
        super().__init__()
        self.field, self.dropout, self.guidance = config.field, config.dropout, config.guidance
        self.regions, self.size = regions, size
        self.concat_channels = regions + 1

    def prepare(self, values: np.ndarray) -> np.ndarray:
        """The maps as they are, which may be memory-mapped; their numbers are checked where they come from outside.
        DataError for what is no map."""
        if values.dtype.kind not in "biu" or values.ndim != 3:
            raise DataError(f"{self.field} is to be a map of region numbers, which it is not; possible: another field")
        return values

    def blank(self, count: int, device: torch.device) -> Tensor:
        return torch.zeros(count, *self.size, dtype=torch.uint8, device=device)

    def corrupt(self, values: Tensor, draw: Draw) -> Tensor:
        return values

    def forward(self, values: Tensor, keep: Tensor) -> Cond:
        shares = []
        for some in torch.arange(self.regions, device=values.device).split(AT_ONCE):
            planes = (values[:, None] == some[:, None, None]).float()  # (B, some, H, W)
            shares.append(F.interpolate(planes, size=self.size, mode="area"))
        return Cond(concat=_marked(torch.cat(shares, dim=1), keep))


class LowResolution(nn.Module):
    """Pictures made `factor` times smaller, (B, C, H / factor, W / factor) in [-1, 1], for latents of `size`."""

    field = "low_resolution"
    vector_width = context_width = None

    def __init__(self, config: LowResolutionCondition, image_shape: tuple[int, int, int], size: Size) -> None:
        super().__init__()
        self.dropout, self.guidance = config.dropout, config.guidance
        channels, height, width = image_shape
        self.shape = (channels, -(-height // config.factor), -(-width // config.factor))
        self.size = size
        fits = self.shape[1] % size[0] == 0 and self.shape[2] % size[1] == 0
        factors = (self.shape[1] // size[0], self.shape[2] // size[1])
        self.unshuffle = factors[0] if fits and factors[0] == factors[1] else 0  # 0: interpolated instead
        self.concat_channels = channels * max(1, self.unshuffle) ** 2 + 1

    def prepare(self, values: np.ndarray) -> np.ndarray:
        return values

    def blank(self, count: int, device: torch.device) -> Tensor:
        return torch.zeros(count, *self.shape, device=device)

    def corrupt(self, values: Tensor, draw: Draw) -> Tensor:
        """Pictures as they are stored, (B, C, H, W), to small ones."""
        return F.interpolate(in_range(values), size=self.shape[1:], mode="area")

    def forward(self, values: Tensor, keep: Tensor) -> Cond:
        small = in_range(values)
        if tuple(small.shape[1:]) != self.shape:
            channels, height, width = self.shape
            raise RequestError(
                f"this model enlarges pictures of {channels} channel(s), {height} x {width}; "
                f"given {small.shape[1]}, {small.shape[2]} x {small.shape[3]}"
            )
        if self.unshuffle:
            planes = F.pixel_unshuffle(small, self.unshuffle)
        else:
            planes = F.interpolate(small, size=self.size, mode="bilinear", antialias=True)
        return Cond(concat=_marked(planes, keep))


class Masked(nn.Module):
    """Pictures with a part missing, (B, C + 1, H, W): zeros there, and a last plane that is 1 there and 0 elsewhere."""

    field = "masked"
    vector_width = context_width = None

    def __init__(self, config: MaskedCondition, image_shape: tuple[int, int, int], factor: int) -> None:
        super().__init__()
        self.dropout, self.guidance = config.dropout, config.guidance
        self.shape, self.factor = image_shape, factor
        self.concat_channels = (image_shape[0] + 1) * factor**2

    def prepare(self, values: np.ndarray) -> np.ndarray:
        return values

    def blank(self, count: int, device: torch.device) -> Tensor:
        channels, height, width = self.shape
        missing = torch.ones(count, 1, height, width, device=device)
        return torch.cat((torch.zeros(count, channels, height, width, device=device), missing), dim=1)

    def corrupt(self, values: Tensor, draw: Draw) -> Tensor:
        """Pictures as they are stored, (B, C, H, W): a rectangle is cut out of each, or all but a rectangle is."""
        image = in_range(values)
        height, width = image.shape[-2:]
        sides = 0.15 + 0.65 * torch.stack((draw.uniform("mask height"), draw.uniform("mask width")))  # (2, B)
        corners = torch.stack((draw.uniform("mask top"), draw.uniform("mask left"))) * (1 - sides)
        rows = (torch.arange(height, device=image.device) + 0.5) / height
        columns = (torch.arange(width, device=image.device) + 0.5) / width
        down = (rows >= corners[0][:, None]) & (rows < (corners + sides)[0][:, None])  # (B, H)
        across = (columns >= corners[1][:, None]) & (columns < (corners + sides)[1][:, None])  # (B, W)
        missing = down[:, None, :, None] & across[:, None, None, :]
        missing = missing ^ (draw.uniform("mask outside") < 0.2)[:, None, None, None]
        return masked(image, missing.float())

    def forward(self, values: Tensor, keep: Tensor) -> Cond:
        values = values.float()
        if tuple(values.shape[1:]) != (self.shape[0] + 1, *self.shape[1:]):
            raise RequestError(
                f"this model fills in pictures of {self.shape[0]} channel(s), {self.shape[1]} x {self.shape[2]}; "
                f"given {values.shape[1] - 1}, {values.shape[2]} x {values.shape[3]}"
            )
        values = torch.where(keep[:, None, None, None], values, self.blank(len(values), values.device))
        below, right = -values.shape[2] % self.factor, -values.shape[3] % self.factor
        return Cond(concat=F.pixel_unshuffle(F.pad(values, (0, right, 0, below), mode="replicate"), self.factor))


def masked(image: Tensor, missing: Tensor) -> Tensor:
    """A picture (B, C, H, W) and what is missing of it (B, 1, H, W) in 0..1, as `Masked` takes them."""
    return torch.cat((image * (1 - missing), missing), dim=1)


def in_range(values: Tensor) -> Tensor:
    """Stored integers to [-1, 1]; what is in that range already as it is."""
    if values.is_floating_point():
        return values
    return values.float() / float(torch.iinfo(values.dtype).max) * 2 - 1


def _marked(planes: Tensor, keep: Tensor) -> Tensor:
    """The planes with one of ones behind them where they are told; all zeros where not."""
    planes = torch.cat((planes, torch.ones_like(planes[:, :1])), dim=1)
    return planes * keep[:, None, None, None]
