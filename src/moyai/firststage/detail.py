"""Whether a reconstruction's fine detail is as strong as the picture's, and in the right places.

With h what a small blur takes from a picture (5 x 5 binomial: a quarter of it is left at half the Nyquist frequency),
E a mean over a window and p = E[h_x^2], SSIM's term of contrast and structure (Wang et al. 2004, equations 9 and 10) is

    c = 2 E[h_x h_y] / (E[h_x^2] + E[h_y^2]),        distance = sum p (1 - c) / (sum p + C)   over windows and channels

Means are left out, since a blur has taken them. As a loss SSIM is known from Zhao et al. 2017 ("Loss functions for
image restoration with neural networks"); of the detail alone it does what an absolute or squared error does not. Where
the latents cannot tell the detail but to a correlation r, the least squared error has r times its strength: a blur. c
is greatest at its full strength, whatever r is, and grows with r; no texture is invented, as a discriminator would. It
is for latents that hold most of the detail: where r is small, as with few codes, full strength exaggerates.
A window counts by the detail that it has: else the grain of flat and dark parts, of which there is more, and which
nobody can tell, would be what is learned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)
WINDOW = 7  # pixels of a side; less where a picture is smaller
C = 0.02**2  # of values in [-1, 1], in the mean: a picture without detail is at no distance from any
TINY = 1e-12


def detail(images: Tensor) -> Tensor:
    """h of (B, C, H, W), the same shape; beyond its edge a picture goes on as it is there."""
    row = torch.tensor(BINOMIAL, dtype=images.dtype, device=images.device) / sum(BINOMIAL)
    kernel = (row[:, None] * row).expand(images.shape[1], 1, -1, -1)
    return images - F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=images.shape[1])


def detail_distance(images: Tensor, reconstructions: Tensor) -> Tensor:
    """The distance of each pair of (B, C, H, W) in [-1, 1]: (B,), 0 for equal pictures, at most 2; in float32."""
    with torch.autocast(images.device.type, enabled=False):
        x, y = detail(images.float()), detail(reconstructions.float())
        side = min(WINDOW, *images.shape[2:])
        p, q, both = (F.avg_pool2d(v, side, stride=(side + 1) // 2).flatten(1) for v in (x * x, y * y, x * y))
        apart = (p + q - 2 * both) / (p + q + TINY)
        return (p * apart).mean(1) / (p.mean(1) + C)
