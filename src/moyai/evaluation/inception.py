"""The published network of the FID: Inception v3 as the TensorFlow graph of 2015-12-05 computed it.

Szegedy et al. 2016 (table 1) with the graph's own departures: average pools do not count the padding, the last block
(Mixed_7c) pools by maximum, and there are 1,008 outputs. Parameters are named as in pytorch-fid and torch-fidelity
(`Mixed_5b.branch5x5_1.conv.weight`, ...), so the weights they publish fit. They come as a .pth file, which is a pickle,
and moyai reads no pickles; once, where torch is at hand:

    weights = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()}, "inception.safetensors")

Features are the 2,048 averages of the last block. Two ways of bringing pictures to 299 x 299 are in use, and give other
numbers (Parmar et al. 2022), so each is an extractor of its own; both bilinear, without antialias:

* `pytorch-fid`: half-pixel centres, values 2 v / 255 - 1;
* `torch-fidelity`: TensorFlow 1's, output place i taken at i * in / 299, values (v - 128) / 128.

Grey pictures are repeated on three channels. Class probabilities are those of the outputs without their bias, as the
Inception score was computed.
"""

from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from moyai.errors import CheckpointError, DataError, RequestError
from moyai.evaluation.features import weights_hash
from moyai.evaluation.values import Source

SIDE = 299
Resize = Literal["pytorch-fid", "torch-fidelity"]


class Conv(nn.Module):
    """Convolution without bias, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, twice 3x3, pool."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(inputs, 48, 1), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), twice, self.branch_pool(_average(x))], 1
        )


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, F.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """17 x 17: 1x1, 7x7 in two strokes, twice 7x7 in four, pool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(768, width, 1), Conv(width, width, row)
        self.branch7x7_3 = Conv(width, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, width, 1), Conv(width, width, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(width, width, row), Conv(width, width, column)
        self.branch7x7dbl_5 = Conv(width, 192, row)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1)), Conv(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, F.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """8 x 8: 1x1, 3x3 split in two strokes side by side, the same after a 3x3, pool."""

    def __init__(self, inputs: int, pool: Literal["average", "maximum"]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _average(x) if self.pool == "average" else F.max_pool2d(x, 3, 1, 1)
        parts = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> (B, 2048); `fc` gives the 1,008 outputs of these."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2a_3x3.conv.padding = (0, 0)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Conv2d_4a_3x3.conv.padding = (0, 0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (BlockC(w) for w in (128, 160, 160, 192))
        self.Mixed_7a = BlockD()
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, "average"), BlockE(2048, "maximum")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))  # (B, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))  # (B, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (B, 768, 17, 17)
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))  # (B, 1280, 8, 8)
        x = self.Mixed_7c(self.Mixed_7b(x))  # (B, 2048, 8, 8)
        return x.mean((2, 3))


class Inception:
    """The network as an extractor of 2,048 features."""

    def __init__(self, net: InceptionV3, resize: Resize = "pytorch-fid", device: torch.device | str = "cpu") -> None:
        if resize not in ("pytorch-fid", "torch-fidelity"):
            raise RequestError(f"resize {resize!r} is not known; possible: pytorch-fid, torch-fidelity")
        weights = {name: values for name, values in net.state_dict().items() if not _counter(name)}
        name = f"inception-v3 2015-12-05 ({resize} resize: bilinear to 299, no antialias; of stored integers)"
        self.source = Source(name, weights_hash(weights), 2048)
        self.net, self.resize, self.device = net.to(device).eval().requires_grad_(False), resize, torch.device(device)

    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(f"Inception takes pictures (B, 1 or 3, H, W), not {tuple(images.shape)}")
        images = images.to(self.device).expand(-1, 3, -1, -1)
        if self.resize == "torch-fidelity":
            return self.net((_like_tensorflow(images.add(1).mul(127.5)) - 128) / 128)
        return self.net(F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False))

    def probabilities(self, features: Tensor) -> Tensor:
        return (features.to(self.device) @ self.net.fc.weight.T).softmax(1).cpu()


def _like_tensorflow(images: Tensor) -> Tensor:
    """Bilinear as in TensorFlow 1: place i of the output lies at i * in / out of the input."""

    def along(size: int) -> Tensor:  # (299, size): the weights of each output place
        where = torch.arange(SIDE, dtype=torch.float32, device=images.device) * (size / SIDE)
        left = where.floor().long().clamp(max=size - 1)
        right = (left + 1).clamp(max=size - 1)
        share = (where - left)[:, None]
        ones = torch.eye(size, device=images.device)
        return ones[left] * (1 - share) + ones[right] * share

    return along(images.shape[2]) @ images @ along(images.shape[3]).T


def load(path: Path, resize: Resize = "pytorch-fid", device: torch.device | str = "cpu") -> Inception:
    """The extractor with the weights of a safetensors file; see the head of this chapter for how to make one."""
    if path.suffix in (".pth", ".pt", ".ckpt", ".bin"):
        raise RequestError(f"{path} is a pickle, which moyai does not read; save its tensors as safetensors first")
    try:
        given = safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a safetensors file: {error}") from error
    with torch.device("meta"):
        net = InceptionV3()
    expected = {name: values for name, values in net.state_dict().items() if not _counter(name)}
    given = {name: values.float() for name, values in given.items() if not _counter(name)}
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    misshapen = sorted(n for n in expected.keys() & given.keys() if expected[n].shape != given[n].shape)
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"{path} is not the Inception network of the FID",
            missing=missing,
            unexpected=unexpected,
            misshapen=misshapen,
        )
    counters = {name: torch.zeros((), dtype=torch.int64) for name in net.state_dict() if _counter(name)}
    net.load_state_dict({**given, **counters}, assign=True)
    return Inception(net, resize, device)


def _counter(name: str) -> bool:
    """How many batches were seen in training: in some files and not in others, and of no effect."""
    return name.endswith("num_batches_tracked")
