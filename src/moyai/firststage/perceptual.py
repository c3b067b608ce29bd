"""Perceptual distance: how far apart two pictures are in the features of a network (LPIPS, Zhang et al. 2018, eq. 1).

    d(x, y) = sum_l mean_{h,w} sum_c w_lc (u_lc(x) - u_lc(y))^2,      u_l = f_l / (|f_l| + eps)              (1)

f_l: the map of layer l; |.| over its channels at each place; w_l >= 0: the layer's head. Two networks are at hand:

* **LPIPS**: VGG16's five maps with the heads fitted to people's judgements, from the published files where the user
  has them. Nothing is fetched. A .pth file is a pickle: it is read only where its sha256 is that of the published file,
  and even then by torch's reader of plain tensors.
* **own**: the four maps of a small network trained on the user's own pictures, for grey, medical or otherwise unusual
  ones, and wherever nothing may be downloaded. There are no judgements to fit heads to; every layer counts alike:
  w = 1 / layers, so d is the mean over layers of 2 (1 - cosine), 0 for equal pictures and at most 2.

The network is frozen. Gradients go through it into the pictures, never into it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moyai.errors import CheckpointError, ConfigError
from moyai.firststage.config import LpipsConfig
from moyai.nets.trunk import FoldedTrunk, Trunk
from moyai.nets.vgg import BLOCKS, SMALLEST, VGG16, VGGInput

# sha256 of the published files (torchvision's VGG16_Weights.IMAGENET1K_V1; LPIPS 0.1, weights/v0.1/vgg.pth)
VGG_FILE = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
HEADS_FILE = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
EPS = 1e-10  # of LPIPS
OWN_EPS = 0.05  # of a small network, in which a place may have hardly any feature: bounds the gradient there


class Perceptual(nn.Module):
    """(1) over any stack of feature maps; frozen, and in evaluation mode whatever `train` is told.

    stages: a module with `features(x) -> list of (B, C_l, H_l, W_l)`, which becomes part of this one and is frozen in
    place; or a plain function that gives such a list, whose parameters stay their owner's.
    heads: the weights w_l, each of C_l values in any shape; None for 1 / layers everywhere.
    prepare: from pictures (B, C, H, W) in [-1, 1] to what the network takes.
    """

    def __init__(
        self,
        stages: Callable[[Tensor], list[Tensor]],
        heads: Sequence[Tensor] | None,
        *,
        prepare: Callable[[Tensor], Tensor],
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.stages, self.prepare, self.eps = stages, prepare, eps
        self.heads = None if heads is None else nn.ParameterList(head.detach().flatten() for head in heads)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Perceptual":
        """Evaluation mode, always: BatchNorm and dropout of a judge do not follow what it judges."""
        return super().train(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps of pictures (B, C, H, W) in [-1, 1]."""
        features = getattr(self.stages, "features", self.stages)
        found: list[Tensor] = features(self.prepare(images))
        return found

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """The distance of each pair (B, C, H, W) in [-1, 1]: (B,), at least float32 also under autocast."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            wanted = self.maps(images)
        given = self.maps(reconstructions)
        with torch.autocast(images.device.type, enabled=False):
            terms = []
            for layer, (x, y) in enumerate(zip(wanted, given, strict=True)):
                squares = (unit(x, self.eps) - unit(y, self.eps)).square()
                if self.heads is None:
                    places = squares.sum(1) / len(given)
                else:
                    places = (squares * self.heads[layer][:, None, None]).sum(1)
                terms.append(places.mean((1, 2)))
            return torch.stack(terms).sum(0)


def unit(features: Tensor, eps: float) -> Tensor:
    """Each place's features (B, C, H, W) divided by their length over the channels + eps; float32 or float64."""
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    # vector_norm's gradient at 0 is 0, where that of a square root of a sum would not be a number
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + eps)


def own(trunk: Trunk) -> Perceptual:
    """The distance in a network trained on the user's own data (`evaluation.networks.perceptual_trunk`). The trunk is
    copied, so it may go on training; pictures have the channels it was trained on."""
    return Perceptual(FoldedTrunk(trunk), None, prepare=nn.Identity(), eps=OWN_EPS)


def lpips(config: LpipsConfig) -> Perceptual:
    """LPIPS 0.1 on VGG16 from the user's files. CheckpointError for files that are not those, in one line."""
    weights = _read(config.vgg, "features.", VGG_FILE, "torchvision's vgg16-397923af.pth")
    heads = _read(config.heads, "lin", HEADS_FILE, "vgg.pth, the heads of LPIPS 0.1")
    with torch.device("meta"):
        network = VGG16()
    names = {name: name.replace("layers.", "features.") for name in network.state_dict()}
    _check(config.vgg, weights, {names[name]: tuple(w.shape) for name, w in network.state_dict().items()})
    _check(config.heads, heads, {f"lin{i}.model.1.weight": (1, c, 1, 1) for i, (c, _) in enumerate(BLOCKS)})
    network.load_state_dict({name: weights[theirs] for name, theirs in names.items()}, assign=True)
    return Perceptual(network, [heads[f"lin{i}.model.1.weight"] for i in range(len(BLOCKS))], prepare=LpipsInput())


class LpipsInput(VGGInput):
    """VGG16's input. ConfigError for pictures it cannot take: smaller ones, and those of two channels."""

    def forward(self, x: Tensor) -> Tensor:
        channels, *sides = x.shape[1:]
        if min(sides) < SMALLEST:
            raise ConfigError(
                f"LPIPS needs pictures of {SMALLEST} x {SMALLEST} or more, not {' x '.join(map(str, sides))}; "
                "possible for smaller ones: objective.perceptual.kind = own"
            )
        if channels == 2:
            raise ConfigError("LPIPS sees 1 channel (as grey), 3, or the first 3 of more, not 2; possible: kind = own")
        return super().forward(x)


# ---- files


def _read(path: Path, prefix: str, known: str, what: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, float32, in memory of their own."""
    path = path.expanduser()
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
                return {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
            if found != known:
                raise CheckpointError(
                    f"{path} is not {what}: its sha256 is {found[:16]}..., not {known[:16]}...; "
                    "the same tensors as a .safetensors file are accepted from anywhere"
                )
            handle.seek(0)
            loaded: Mapping[str, Tensor] = torch.load(handle, weights_only=True, map_location="cpu")
            return {n: t.detach().to(torch.float32, copy=True) for n, t in loaded.items() if n.startswith(prefix)}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}, which should be {what}: {error}") from error


def _check(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    misshapen = [name for name, shape in wanted.items() if name in tensors and tuple(tensors[name].shape) != shape]
    if missing or unexpected or misshapen:
        message = f"{path} holds other tensors than LPIPS on VGG16 needs"
        raise CheckpointError(message, missing=missing, unexpected=unexpected, misshapen=misshapen)
