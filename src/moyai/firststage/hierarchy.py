"""Two maps of codes: a coarse one on top, and a fine one below it (VQ-VAE-2; Razavi, van den Oord and Vinyals 2019).

With features h of picture x at the bottom's resolution, codebooks Q_t and Q_b, and "up" to the bottom's resolution:

    t = Q_t(top(h))                        the shape of things, at a fraction of the bottom's sides
    b = Q_b(head(h + coarse(t)))           what the top's codes do not say
    y = decoder(b, up t)

which is their algorithm 1: the bottom's codes are chosen in sight of the top's, and the decoder sees both. Their
convolution over the joined maps is a sum here, of h and of a convolution over what is made of t. Gradients pass
straight through both codebooks, and through t into b.

Unless `shortcut` is off, the networks learn what a fixed way past them lacks, as in `nets.autoencoder`; here that is a
pyramid (Burt and Adelson 1983): past the top's encoder goes a small picture s(x) on the top's grid, past the bottom's
s(x - e(t)) on its own, what the top's codes leave; past the decoder e(b) + e(t), each enlarged. So both maps have their
part from the start. With the bottom's shortcut alone its codes say everything, and the top's hardly matter.

Everything else sees one map of latents, on the grid of the top: a cell is the top's vector, and then the vectors of the
`ratio` x `ratio` places of the bottom that lie in it, `channels` = c_t + ratio^2 c_b of them. So pictures are continued
to multiples of the top's cells, and tiles keep to them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.firststage.autoencoder import LatentAutoencoder
from moyai.firststage.grid import FSQ
from moyai.firststage.posterior import Posterior
from moyai.firststage.quantization import Quantized, VectorQuantizer
from moyai.nets.autoencoder import Decoder, Encoder, enlarged, small_picture
from moyai.nets.config import AutoencoderConfig
from moyai.nets.layers import zeroed
from moyai.randomness import Draw


@dataclass(frozen=True)
class QuantizedMaps:
    """The posterior over several maps of codes; `z` and `values` (B, C, h, w) as one map of latents."""

    z: Tensor
    values: Tensor
    maps: Mapping[str, Quantized]  # by name, coarse to fine

    def sample(self, draw: Draw) -> Tensor:
        """The quantised latents; there is no noise in them."""
        return self.values

    def mode(self) -> Tensor:
        return self.values

    def regularizer(self) -> Tensor:
        """The sum of the maps' commitment (and codebook) terms, each a mean over a picture's latents: (B,)."""
        return torch.stack([one.penalty for one in self.maps.values()]).sum(0)

    def stored(self) -> dict[str, Tensor]:
        return {"mean": self.z.detach().contiguous()}


class Hierarchy(nn.Module):
    """The codebooks of the two maps, and how both lie in one map of latents; ratio: of the maps' sides."""

    def __init__(self, top: VectorQuantizer, bottom: VectorQuantizer, ratio: int) -> None:
        super().__init__()
        self.top, self.bottom, self.ratio = top, bottom, ratio
        self.channels = top.channels + ratio**2 * bottom.channels

    def split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(B, channels, h, w) to the top's (B, c_t, h, w) and the bottom's (B, c_b, ratio h, ratio w)."""
        top, bottom = latents.tensor_split([self.top.channels], dim=1)
        return top, F.pixel_shuffle(bottom, self.ratio)

    def joined(self, maps: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        top, bottom = maps
        return torch.cat([top, F.pixel_unshuffle(bottom, self.ratio)], dim=1)

    def quantize(self, latents: Tensor) -> Tensor:
        """(B, channels, h, w): every vector to the nearest of its map's."""
        top, bottom = self.split(latents)
        return self.joined((self.top.quantize(top), self.bottom.quantize(bottom)))

    def restored(self, values: Tensor) -> Tensor:
        return values


class HierarchicalAutoencoder(LatentAutoencoder):
    """An autoencoder of two maps; `config.factor` is that of the bottom, `factor` that of the top.

    bottleneck: a `Hierarchy`. `config.latent_channels` has no say: the codebooks have.
    """

    def encode(self, images: Tensor, cond: Cond | None = None) -> QuantizedMaps:
        images, vector = self._padded(images), self._vector(cond, len(images))
        h = self.encoder.features(images, vector)
        z, left = self.top(h, vector).float(), images.float()
        if self.past:
            with torch.autocast(z.device.type, enabled=False):
                z = z + small_picture(left, self.factor, z.shape[1])
        top: Quantized = self.bottleneck.top(z)
        if self.past:
            left = left - self._enlarged(top.values, images.shape[1])
        h = h + self.coarse(top.values, vector)
        bottom: Quantized = self.bottleneck.bottom(self.encoder.moments(h, left, vector))
        joined = self.bottleneck.joined
        return QuantizedMaps(
            joined((top.z, bottom.z)), joined((top.values, bottom.values)), {"top": top, "bottom": bottom}
        )

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, cond: Cond | None = None) -> Tensor:
        top, bottom = self.bottleneck.split(latents)
        above = F.interpolate(top, scale_factor=self.bottleneck.ratio, mode="nearest")
        images = super().decode(torch.cat([bottom, above], dim=1), None, cond)
        if self.past:
            images = images + self._enlarged(top, images.shape[1])
        return images if size is None else images[..., : size[0], : size[1]]

    def compile_networks(self) -> None:
        super().compile_networks()
        self.top.compile()
        self.coarse.compile()
        for part in ("features", "moments"):  # the encoder is never run in one piece
            setattr(self.encoder, part, torch.compile(getattr(self.encoder, part)))

    def _enlarged(self, top: Tensor, channels: int) -> Tensor:
        """The part that the top's vectors have in pictures by themselves, in float32 whatever the autocast."""
        with torch.autocast(top.device.type, enabled=False):
            return enlarged(top.float(), self.factor, channels)

    def _build(self, config: AutoencoderConfig, image_channels: int, width: int | None) -> None:
        made, ratio = self.bottleneck, self.bottleneck.ratio
        top, bottom = made.top.channels, made.bottom.channels
        own = config.model_copy(update={"latent_channels": bottom})
        self.encoder = Encoder(own, image_channels, moments=bottom, vector_width=width)
        features = self.encoder.conv_out.in_channels
        above = config.model_copy(
            update={
                "factor": ratio,
                "width": features,
                "multipliers": (1,) * ratio.bit_length(),
                "latent_channels": top,
                "shortcut": False,
            }
        )
        self.top = Encoder(above, features, moments=top, vector_width=width)
        self.coarse = Decoder(above, features, vector_width=width)
        both = config.model_copy(update={"latent_channels": bottom + top})
        self.decoder = Decoder(both, image_channels, vector_width=width, past=bottom)  # the top's has its own way
        self.factor *= ratio
        self.past = config.shortcut
        if self.past:
            zeroed(self.top.quant_conv)


def quantizers(bottleneck: nn.Module) -> dict[str, VectorQuantizer | FSQ]:
    """The codebook or grid of each map of codes by the map's name, coarse to fine; of a single one it is ""."""
    if isinstance(bottleneck, Hierarchy):
        return {"top": bottleneck.top, "bottom": bottleneck.bottom}
    return {"": bottleneck} if isinstance(bottleneck, VectorQuantizer | FSQ) else {}


def code_maps(posterior: Posterior) -> Mapping[str, Quantized]:
    """The maps of codes of a posterior, named as in `quantizers`; {} where it has none."""
    if isinstance(posterior, QuantizedMaps):
        return posterior.maps
    return {"": posterior} if isinstance(posterior, Quantized) else {}
