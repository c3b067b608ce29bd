"""DINOv2 and CLIP as extractors: published vision transformers read from a local folder, nothing downloaded.

Trained on hundreds of millions of pictures, they see more of a picture than Inception does (Stein et al. 2023,
section 5). The folder is one as published for transformers: `config.json`, `preprocessor_config.json` and safetensors.
Features are the pooled output: the class token after the last normalisation (of CLIP its vision tower's, before the
projection to the text's space).

Pictures are prepared as `preprocessor_config.json` says, by Pillow and torch: rounded to 8 bits, grey ones made RGB,
resized with antialiasing and rounded again (as Pillow does), cut to the middle, scaled, and normalised by channel,
(v - mean) / std. All of it stands in the extractor's name: with another preparation it is another extractor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from moyai.errors import CheckpointError, DataError, RequestError
from moyai.evaluation.values import Source
from moyai.nets import published

Kind = Literal["dinov2", "clip"]
# What the config.json of each may call itself: a whole CLIP, or its vision tower alone.
MODEL_TYPES: Mapping[Kind, tuple[str, ...]] = {"dinov2": ("dinov2",), "clip": ("clip", "clip_vision_model")}
NAMES: Mapping[Kind, str] = {"dinov2": "DINOv2", "clip": "CLIP vision tower"}


@dataclass(frozen=True)
class Preparation:
    """How stored integers become what the network takes.

    `shorter`: the shorter side is brought to this; `size` (height, width) goes before it; neither: no resize. `crop`
    (height, width): the middle that is kept, None for all. Values v of 0 to 255 become (v factor - mean) / std.
    """

    shorter: int | None
    size: tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        parts = ["no resize"]
        if self.size or self.shorter:
            where = f"{self.size[0]} x {self.size[1]}" if self.size else f"a shorter side of {self.shorter}"
            parts = [f"{self.resample.name.lower()} to {where}, antialiased, rounded to 8 bits"]
        if self.crop:
            parts.append(f"the middle {self.crop[0]} x {self.crop[1]}")
        mean, std = (" ".join(f"{v:.6g}" for v in values) for values in (self.mean, self.std))
        scaled = "" if abs(self.factor * 255 - 1) < 1e-6 else f"factor {self.factor:.6g}, "
        return "; ".join([*parts, f"{scaled}mean {mean}, std {std}"])

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures (B, 1 or 3, H, W) in [-1, 1] -> (B, 3, h, w) as the network takes them."""
        values = images.detach().cpu().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        rows = values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()  # (B, H, W, 3)
        size = self._resized(rows.shape[1], rows.shape[2])
        if size != rows.shape[1:3]:
            pictures = (Image.fromarray(row).resize(size[::-1], self.resample) for row in rows)
            rows = np.stack([np.asarray(picture) for picture in pictures])
        if self.crop:
            top, left = ((size[axis] - self.crop[axis]) // 2 for axis in (0, 1))
            if top < 0 or left < 0:
                raise DataError(
                    f"pictures of {size[0]} x {size[1]} have no middle of {self.crop[0]} x {self.crop[1]}, which "
                    "preprocessor_config.json asks for"
                )
            rows = rows[:, top : top + self.crop[0], left : left + self.crop[1]]
        scaled = torch.from_numpy(np.ascontiguousarray(rows)).float().mul(self.factor).permute(0, 3, 1, 2)
        return (scaled - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) after the resize; the longer side is rounded down."""
        if self.size:
            return self.size
        if self.shorter is None:
            return height, width
        if width <= height:
            return int(self.shorter * height / width), self.shorter
        return self.shorter, int(self.shorter * width / height)


class Embedding:
    """A vision transformer as an extractor of its pooled output."""

    def __init__(
        self, net: nn.Module, preparation: Preparation, source: Source, device: torch.device | str = "cpu"
    ) -> None:
        self.net, self.device = net.to(device).eval().requires_grad_(False), torch.device(device)
        self.preparation, self.source = preparation, source

    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(f"{self.source.name} takes pictures (B, 1 or 3, H, W), not {tuple(images.shape)}")
        pixels = self.preparation(images).to(self.device)
        try:
            pooled: Tensor = self.net(pixel_values=pixels).pooler_output
        except ValueError as error:  # of a size the positions were not trained for
            raise DataError(
                f"{self.source.name} does not take these pictures: {published.first_line(error)}"
            ) from error
        return pooled

    def probabilities(self, features: Tensor) -> None:
        """Neither network knows classes."""
        return


def load(kind: Kind, folder: Path, device: torch.device | str = "cpu") -> Embedding:
    """The extractor in a folder. RequestError where transformers is missing or the folder is of another model,
    CheckpointError where something in it is missing or broken."""
    config = published.read_object(folder / "config.json")
    if (found := config.get("model_type")) not in MODEL_TYPES[kind]:
        raise RequestError(
            f"{folder} holds a model of type {found!r}, not {kind}; possible: {', '.join(MODEL_TYPES[kind])}"
        )
    preparation = read_preparation(folder / "preprocessor_config.json")
    files = published.weight_files(folder)
    net = _read(kind, folder)
    vision: Any = net.config
    name = (
        f"{NAMES[kind]} {vision.num_hidden_layers} x {vision.hidden_size}, patch {vision.patch_size} "
        f"({preparation}; pooled output, of stored integers)"
    )
    return Embedding(net, preparation, Source(name, published.sha256(files), int(vision.hidden_size)), device)


def read_preparation(path: Path) -> Preparation:
    """What a preprocessor_config.json says. CheckpointError where it says nothing we know how to do."""
    told = published.read_object(path)
    try:
        shorter, size = _size(told.get("size", 224)) if told.get("do_resize", True) else (None, None)
        crop = _square(told.get("crop_size", 224)) if told.get("do_center_crop", True) else None
        factor = float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0
        plain = not told.get("do_normalize", True)
        mean, std = (
            (given,) * 3 if plain else tuple(float(v) for v in told[name])
            for name, given in (("image_mean", 0.0), ("image_std", 1.0))
        )
        if len(mean) != 3 or len(std) != 3 or not all(std):
            raise ValueError(f"mean {mean} and std {std} are not of three channels")
        return Preparation(shorter, size, Image.Resampling(told.get("resample", 3)), crop, factor, mean, std)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not say how pictures are prepared: {published.first_line(error)}"
        ) from error


def _size(told: Any) -> tuple[int | None, tuple[int, int] | None]:
    """`size` as (shorter side, None) or (None, (height, width)); a bare number is the shorter side."""
    if isinstance(told, Mapping) and "shortest_edge" not in told:
        return None, _square(told)
    return int(told["shortest_edge"] if isinstance(told, Mapping) else told), None


def _square(told: Any) -> tuple[int, int]:
    return (int(told["height"]), int(told["width"])) if isinstance(told, Mapping) else (int(told), int(told))


def _read(kind: Kind, folder: Path) -> nn.Module:
    """The network with its weights, every one of them from the files; no pickle, no code of the folder's."""
    try:
        from transformers import CLIPVisionModel, Dinov2Model
    except ImportError as error:
        raise RequestError(f"--extractor {kind} needs transformers: pip install 'moyai[embeddings]'") from error
    return published.read({"dinov2": Dinov2Model, "clip": CLIPVisionModel}[kind], folder, kind)
