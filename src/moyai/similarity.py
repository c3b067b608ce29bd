"""How alike two pictures are: PSNR, SSIM, MS-SSIM. All take (B, C, H, W) floats from 0 to `top` and give (B,).

    SSIM    = l c,  l = (2 m n + C1) / (m^2 + n^2 + C1),  c = (2 s_xy + C2) / (s_x^2 + s_y^2 + C2)         (1)
    MS-SSIM = mean(l_S c_S)^w_S prod_{j<S} mean(c_j)^w_j         (means over places; S the coarsest scale)   (2)

with Gaussian means, variances and covariance (window 11, sigma 1.5), C1 = (0.01 top)^2, C2 = (0.03 top)^2 (Wang et al.
2004, eq. 13; Wang, Simoncelli and Bovik 2003, eq. 7). Variances are the population's. As torchmetrics has it: the
picture is mirrored at its borders, l c is averaged over all places, c over those where the window lies inside. Between
scales the picture is averaged over 2 x 2.

**Small pictures.** Five scales need sides of 176. We take as many as fit, at least one, and scale the weights of those
to a sum of 1; where even the window does not fit, it is the largest odd number that does. Such numbers are compared at
the same size only, and the report prints the scales.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from moyai.errors import DataError

WINDOW, SIGMA = 11, 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2


def window(height: int, width: int) -> int:
    """The side of the Gaussian window for pictures of this size."""
    side = min(height, width)
    return WINDOW if side >= WINDOW else side - 1 + side % 2


def scales(height: int, width: int) -> int:
    """How many scales of MS-SSIM fit, 1 to 5."""
    side = min(height, width)
    return next((s for s in range(len(WEIGHTS), 1, -1) if side // 2 ** (s - 1) >= WINDOW), 1)


def psnr(x: Tensor, y: Tensor, *, top: float) -> Tensor:
    """10 log10(top^2 / mean squared error) in dB of each pair; infinite for equal pictures."""
    _check(x, y)
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(top**2 / error)).float()


def ssim(x: Tensor, y: Tensor, *, top: float) -> Tensor:
    """The mean of l c over places and channels, -1 to 1; 1 for equal pictures."""
    _check(x, y)
    return _terms(x, y, top)[0]


def ms_ssim(x: Tensor, y: Tensor, *, top: float) -> Tensor:
    """(2) over as many scales as fit, 0 to 1; negative terms count as 0, as no root of them is real."""
    _check(x, y)
    count = scales(x.shape[2], x.shape[3])
    total = sum(WEIGHTS[:count])
    result = torch.ones(len(x), device=x.device)
    for scale, weight in enumerate(WEIGHTS[:count]):
        whole, contrast = _terms(x, y, top)
        term = whole if scale == count - 1 else contrast
        result = result * term.clamp_min(0) ** (weight / total)
        if scale < count - 1:  # a side of 1 has no half
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise DataError(f"pictures to compare are (B, C, H, W) of one shape, not {tuple(x.shape)} and {tuple(y.shape)}")


def _terms(x: Tensor, y: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """The means of l c and of c of (1) over places and channels, (B,) each."""
    side, channels = window(x.shape[2], x.shape[3]), x.shape[1]
    pad = side // 2
    x, y = (F.pad(t / top, (pad, pad, pad, pad), mode="reflect") for t in (x, y))
    stacked = torch.cat([x, y, x * x, y * y, x * y])  # (5 B, C, H + 2 pad, W + 2 pad)
    places = torch.arange(side, device=x.device, dtype=x.dtype) - pad
    line = torch.exp(-(places**2) / (2 * SIGMA**2))
    line = line / line.sum()
    rows = F.conv2d(stacked, line.view(1, 1, side, 1).expand(channels, 1, side, 1), groups=channels)
    mean = F.conv2d(rows, line.view(1, 1, 1, side).expand(channels, 1, 1, side), groups=channels)
    mx, my, xx, yy, xy = mean.chunk(5)
    light = (2 * mx * my + 0.01**2) / (mx * mx + my * my + 0.01**2)
    spread = (xx - mx * mx).clamp_min(0) + (yy - my * my).clamp_min(0)  # rounding can make a variance negative
    contrast = (2 * (xy - mx * my) + 0.03**2) / (spread + 0.03**2)
    inner = contrast[:, :, pad : contrast.shape[2] - pad, pad : contrast.shape[3] - pad]
    return (light * contrast).flatten(1).mean(1), inner.flatten(1).mean(1)
