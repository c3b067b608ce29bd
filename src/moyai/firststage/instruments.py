"""Instruments of a first stage: what is measured on held-out pictures.

With pictures x on [-1, 1], reconstructions y of the posterior's mode, and a Gaussian posterior N(m, s^2) whose channel
is c (means over pictures and places unless said):

    kl_c            mean of 1/2 (m^2 + s^2 - 1 - ln s^2)                     nats a latent value
    noise share_c   E[s^2] / (Var(m) + E[s^2])                               what part of the latents is posterior noise
    unused          mean over places of Var over pictures of m < 1 % of (that + E[s^2])
    perplexity      exp(entropy of how often each code is chosen)            1 to the number of codes
    fine power      sum over |f| > 1/4 of |FFT y|^2 / the same of x          f in cycles a pixel; 1/2 is Nyquist

A channel whose means differ between places, but not between pictures, says nothing of a picture: it is unused. Such a
Gaussian channel carries less than 1/2 ln(1 / 0.99) = 0.005 nats a value. Fine power takes a picture as periodic. It is
1 for the identity, and far below for a blur, which PSNR and SSIM forgive. What the numbers say, and when a person
should be told, is in `health`. Of several maps of codes each has its own, as "perplexity top".

Pictures that come in groups (the slices of a person) count by group: a figure of pictures is the mean over groups of
the mean in each. That of all pictures would be of those with the most slices.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moyai.firststage.hierarchy import code_maps
from moyai.firststage.posterior import DiagonalGaussian, Posterior
from moyai.firststage.quantization import perplexity
from moyai.similarity import ms_ssim, scales, ssim

FINE = 0.25  # cycles a pixel: half the Nyquist frequency
UNUSED = 0.01  # of what the decoder is given in a channel: a signal below this share is none
FLAT = 1e-12  # mean fine power below which a set of pictures has none but rounding


def fine_power(images: Tensor) -> Tensor:
    """Power above half the Nyquist frequency of (B, C, H, W), in squared units a value, mean over channels: (B,)."""
    height, width = images.shape[-2:]
    centred = images.float() - images.float().mean((-2, -1), keepdim=True)  # less to round
    power = torch.fft.rfft2(centred, norm="forward").abs().square()
    y = torch.fft.fftfreq(height, device=images.device)[:, None]
    x = torch.fft.rfftfreq(width, device=images.device)[None]
    # A real picture's spectrum is stored by half: all but the columns of f_x = 0 and f_x = 1/2 stand for two.
    counted = torch.where((x > 0) & (x < 0.5), 2.0, 1.0) * (torch.hypot(y, x) > FINE)
    return (power * counted).sum((-2, -1)).mean(1)


def blurred(images: Tensor, sigma: float = 1.0) -> Tensor:
    """(B, C, H, W) blurred by a Gaussian of `sigma` pixels, cut off at four, the edges mirrored; what SSIM forgives."""
    reach = min(math.ceil(4 * sigma), *(side - 1 for side in images.shape[-2:]))
    row = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma).square())
    row, channels = row / row.sum(), images.shape[1]
    wide = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    for kernel in (row[:, None], row[None]):
        wide = F.conv2d(wide, kernel.expand(channels, 1, *kernel.shape), groups=channels)
    return wide


def box_ssim(originals: Tensor, reconstructions: Tensor, threshold: float = 0.06) -> Tensor:
    """SSIM of each pair (B, C, H, W) in [-1, 1] within the box of what is not background: (B,).

    The box holds every pixel of the original that is above `threshold` of the range in some channel. nan where none is.
    """
    found = []
    for x, y in zip((originals + 1) / 2, (reconstructions + 1) / 2, strict=True):
        seen = (x > threshold).any(0)
        rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
        if not len(rows):
            found.append(x.new_tensor(math.nan))
            continue
        box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        found.append(ssim(x[None, :, *box], y[None, :, *box], top=1)[0])
    return torch.stack(found)


class Measurement:
    """Adds up the instruments over batches of held-out pictures, each looked at once.

    perceptual: a distance of pictures and reconstructions (B,), where the objective has one that stays as it is.
    boxed: whether SSIM is also taken in the box of what is not background. codes: how many there are to choose from, of
    each map of codes by its name (of a single one it is "").
    """

    def __init__(
        self,
        *,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        boxed: bool = False,
        codes: Mapping[str, int] | None = None,
    ) -> None:
        self.perceptual, self.boxed, self.codes = perceptual, boxed, codes or {}
        self._values: dict[str, list[Tensor]] = {}
        self._groups: dict[str, list[Tensor]] = {}
        self._gaussian = _Gaussian()
        self._chosen: dict[str, list[Tensor]] = {}  # of each map of codes
        self._scales, self._seen = 1, 0

    def add(
        self,
        images: Tensor,
        reconstructions: Tensor,
        posterior: Posterior | None = None,
        logits: tuple[Tensor, Tensor] | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        """images, reconstructions: (B, C, H, W) float32 in [-1, 1]; the latter decoded from the posterior's mode.

        logits: what a discriminator says of each of both, (B,). groups: (B,) int64, where the data have groups.
        """
        self._of = torch.arange(len(images)) if groups is None else torch.from_numpy(groups)
        self._of = self._of + (self._seen if groups is None else 0)  # a picture without a group is one of its own
        self._seen += len(images)
        error = (reconstructions - images).flatten(1)
        self._add("l1", error.abs().mean(1))
        # The range is 2 in these units, so that the figure equals the one on integers.
        self._add("psnr", 10 * torch.log10(4 / error.square().mean(1).clamp_min(1e-10)))
        x, y = (images + 1) / 2, (reconstructions + 1) / 2
        self._scales = scales(x.shape[-2], x.shape[-1])
        self._add("ssim", ssim(x, y, top=1))
        self._add("ms-ssim", ms_ssim(x, y, top=1))
        if self.boxed:
            values = box_ssim(images, reconstructions)
            self._add("box ssim", values, seen=torch.isfinite(values).cpu())
        if self.perceptual is not None:
            self._add("perceptual", self.perceptual(images, reconstructions))
        for side, said in zip(("real", "fake"), logits or (), strict=False):
            self._add(f"logits {side}", said)
        self._add("power of originals", fine_power(images))
        self._add("power of reconstructions", fine_power(reconstructions))
        if isinstance(posterior, DiagonalGaussian):
            self._gaussian.add(posterior)
        for name, one in {} if posterior is None else code_maps(posterior).items():
            self._chosen.setdefault(name, []).append(one.codes.flatten())

    def result(self) -> dict[str, float]:
        """The mean of every instrument that applies, by its name; those of a channel as "kl/0", "std/0", ..."""
        joined = {name: (torch.cat(v), torch.cat(self._groups[name])) for name, v in self._values.items()}
        found = {name: _by_group(values, groups) for name, (values, groups) in joined.items() if len(values)}
        original, reconstructed = found.pop("power of originals"), found.pop("power of reconstructions")
        found["ms-ssim scales"] = float(self._scales)
        if original > FLAT:
            found["fine power"] = reconstructed / original
        for name, chosen in self._chosen.items():
            of_map = _of_codes(torch.cat(chosen), self.codes.get(name))
            found |= {f"{instrument} {name}".rstrip(): value for instrument, value in of_map.items()}
        return {**found, **self._gaussian.result()}

    def _add(self, name: str, values: Tensor, *, seen: Tensor | None = None) -> None:
        """seen: (B,) bool, of which pictures there is a value; of all where it is None."""
        rows = slice(None) if seen is None else seen
        self._values.setdefault(name, []).append(values.detach().double().cpu()[rows])
        self._groups.setdefault(name, []).append(self._of[rows])


def _by_group(values: Tensor, groups: Tensor) -> float:
    """The mean over groups of the mean in each."""
    _, place = torch.unique(groups, return_inverse=True)
    counts = torch.bincount(place)
    sums = torch.zeros(len(counts), dtype=values.dtype).index_add_(0, place, values)
    return float((sums / counts).mean())


class _Gaussian:
    """Moments of a Gaussian posterior by channel, in float64: (C,), and (C, h, w) where places matter."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, posterior: DiagonalGaussian) -> None:
        mean, logvar = posterior.mean.double(), posterior.logvar.double()
        variance = logvar.exp()
        terms = {
            "kl": (0.5 * (mean.square() + variance - 1 - logvar)).mean((2, 3)),
            "std": variance.sqrt().mean((2, 3)),
            "noise": variance.mean((2, 3)),
            "mean": mean,
            "square": mean.square(),
        }
        self.count += len(mean)
        for name, values in terms.items():
            total = values.sum(0)
            self.sums[name] = self.sums[name] + total if name in self.sums else total

    def result(self) -> dict[str, float]:
        if not self.count:
            return {}
        of = {name: total / self.count for name, total in self.sums.items()}
        noise, places = of["noise"], (1, 2)
        everywhere = (of["square"].mean(places) - of["mean"].mean(places).square()).clamp_min(0)
        between = (of["square"] - of["mean"].square()).mean(places).clamp_min(0)  # pictures, at the same place
        found = {"kl": float(of["kl"].mean())}
        if self.count > 1:  # a single picture differs from no other
            found["unused channels"] = float((between < UNUSED * (between + noise)).sum())
        for name, channels in (("kl", of["kl"]), ("std", of["std"]), ("noise share", noise / (everywhere + noise))):
            found |= {f"{name}/{c}": value for c, value in enumerate(channels.tolist())}
        return found


def _of_codes(chosen: Tensor, size: int | None) -> dict[str, float]:
    counts = torch.unique(chosen, return_counts=True)[1]  # a grid can have more codes than memory has places
    found = {"perplexity": perplexity(counts)}
    if size is None:
        return found
    return {**found, "codes used": len(counts) / size, "codes": float(size), "choices": float(len(chosen))}
