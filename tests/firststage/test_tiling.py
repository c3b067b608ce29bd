"""Tiles against the whole picture: weights that sum to one, equal results where the network's view is small, bounded
differences where it is not, and never more than a tile at once."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firststage.test_objective import autoencoder, pictures
from moyai.batch import Cond
from moyai.errors import RequestError
from moyai.firststage.posterior import DiagonalGaussian
from moyai.firststage.tiling import GRAIN, decode_tiled, encode_tiled, starts, weights

FACTOR = 4
BOUNDS = ((0.4, 0.5), (0.15, 0.25), (0.08, 0.15))  # latents and pictures, in tiles of 32, 64 and 96 of 128 x 96


class Convolutions(nn.Module):
    """An autoencoder of factor 4 that sees only a few pixels around each place; it notes the sizes it is given."""

    factor, channels = FACTOR, 3

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.down = nn.ModuleList([nn.Conv2d(image_channels, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 2, 1)])
            self.up = nn.ModuleList([nn.Conv2d(3, 5, 3, 1, 1), nn.Conv2d(5, image_channels, 3, 1, 1)])
        self.seen: list[tuple[int, int]] = []

    def encode(self, images: Tensor, cond: Cond | None = None) -> DiagonalGaussian:
        self.seen.append((images.shape[-2], images.shape[-1]))
        assert all(side % FACTOR == 0 for side in self.seen[-1])
        return DiagonalGaussian(self.down[1](F.silu(self.down[0](images))))

    def quantize(self, latents: Tensor) -> Tensor:
        return latents

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, cond: Cond | None = None) -> Tensor:
        self.seen.append((latents.shape[-2], latents.shape[-1]))
        h = F.silu(self.up[0](F.interpolate(latents, scale_factor=2.0)))
        return self.up[1](F.interpolate(h, scale_factor=2.0))


class Flat(Convolutions):
    """Its latents and pictures have one value over a whole tile: the mean of what it was given."""

    def encode(self, images: Tensor, cond: Cond | None = None) -> DiagonalGaussian:
        mean = images.mean((1, 2, 3), keepdim=True).expand(-1, 6, images.shape[-2] // 4, images.shape[-1] // 4)
        return DiagonalGaussian(mean)

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, cond: Cond | None = None) -> Tensor:
        mean = latents.mean((1, 2, 3), keepdim=True)
        return mean.expand(-1, 1, 4 * latents.shape[-2], 4 * latents.shape[-1])


def cases(count: int) -> list[tuple[int, int, int]]:
    """(length, tile, overlap) of all kinds, an overlap of one and of all but one among them."""
    drawn = torch.Generator().manual_seed(1)
    found = [(10, 4, 3), (7, 4, 1), (5, 4, 2), (9, 8, 7), (4, 4, 2), (3, 8, 4)]
    while len(found) < count:
        length, tile = (int(torch.randint(2, 90, (), generator=drawn)) for _ in range(2))
        found.append((length, tile, int(torch.randint(1, tile, (), generator=drawn))))
    return found


@pytest.mark.parametrize(("length", "tile", "overlap"), cases(40))
def test_tiles_cover_the_line_and_overlap_enough(length: int, tile: int, overlap: int) -> None:
    begins = starts(length, tile, overlap)
    assert begins[0] == 0
    assert begins[-1] + tile >= length
    assert begins[-1] + tile == length or len(begins) == 1
    for one, other in itertools.pairwise(begins):
        assert one < other <= one + tile - overlap
    fewer = len(begins) - 1
    assert fewer == 0 or fewer * tile - (fewer - 1) * overlap < length  # one tile less would not do


@pytest.mark.parametrize(("length", "tile", "overlap"), cases(40))
def test_weights_are_ramps_within_their_tile_that_sum_to_one_exactly(length: int, tile: int, overlap: int) -> None:
    begins = starts(length, tile, overlap)
    table = weights(begins, tile, overlap, length)
    assert table.shape == (len(begins), length)
    assert table.min() >= 0
    assert torch.equal(table.sum(0), torch.ones(length))
    # In two dimensions, summed one after the other in float32 as the tiles are.
    plane = torch.zeros(length, length)
    for row, column in itertools.product(table, table):
        plane += row[:, None] * column[None, :]
    assert torch.equal(plane, torch.ones(length, length))
    steepest = (table[:, 1:] - table[:, :-1]).abs().max().item()
    assert steepest <= min(1.0, 2 / overlap) + 1 / GRAIN
    for begin, row in zip(begins, table, strict=True):
        inside = torch.zeros(length, dtype=torch.bool)
        first = 0 if begin == 0 else begin + overlap // 4
        last = length if begin == begins[-1] else begin + tile - overlap // 4
        inside[first:last] = True
        assert (row[~inside] == 0).all()  # the outer quarter of an overlap counts for nothing


def reach(network: Convolutions, what: str) -> int:
    """How many pixels beyond its own cell an output's gradient goes (encoder), or beyond itself (decoder)."""
    if what == "encode":
        x = pictures(1, 1, 64, 64).requires_grad_()
        network.encode(x).mean[0, :, 8, 8].sum().backward()
        own, per = (32, 35), 1
    else:
        x = pictures(1, 3, 16, 16).requires_grad_()
        network.decode(x)[0, :, 32, 32].sum().backward()
        own, per = (8, 8), FACTOR
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    return per * max(own[0] - int(rows.min()), int(rows.max()) - own[1])


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 100, 67), (3, 64, 130), (4, 37, 96)])
def test_a_view_that_fits_the_overlap_gives_what_the_whole_picture_gives(
    channels: int, height: int, width: int
) -> None:
    network = Convolutions(channels)
    farthest = max(reach(Convolutions(1), "encode"), reach(Convolutions(1), "decode"))
    assert 3 <= farthest <= 8  # else the test would show little
    tile, overlap = 48, 4 * farthest
    images = pictures(2, channels, height, width)
    with torch.no_grad():
        below, right = -height % FACTOR, -width % FACTOR
        z = network.encode(F.pad(images, (0, right, 0, below), mode="replicate")).mean
        whole = network.decode(z)[..., :height, :width]
    network.seen.clear()
    found = encode_tiled(network, images, tile=tile, overlap=overlap)
    assert len(network.seen) > 1
    torch.testing.assert_close(found, z, atol=1e-5, rtol=1e-5)
    made = decode_tiled(network, z, (height, width), tile=tile, overlap=overlap)
    torch.testing.assert_close(made, whole, atol=1e-5, rtol=1e-5)
    assert made.shape == images.shape
    # With an overlap that the view does not fit into, tiles do show: the comparison above can fail.
    images = pictures(1, channels, 2 * tile - FACTOR, tile)  # two tiles with just that overlap
    with torch.no_grad():
        z = network.encode(images).mean
        whole = network.decode(z)
    assert (encode_tiled(network, images, tile=tile, overlap=FACTOR) - z).abs().max() > 1e-3
    assert (decode_tiled(network, z, tile=tile, overlap=FACTOR) - whole).abs().max() > 1e-3


def test_no_more_than_a_tile_is_in_the_network_at_once() -> None:
    network = Convolutions(1)
    z = encode_tiled(network, pictures(1, 1, 300, 150), tile=32, overlap=8)
    assert z.shape == (1, 3, 75, 38)
    assert {(32, 32)} == set(network.seen)
    network.seen.clear()
    made = decode_tiled(network, z, tile=32, overlap=8)
    assert made.shape == (1, 1, 300, 152)
    assert {(8, 8)} == set(network.seen)
    assert not made.requires_grad


def test_seams_are_blended() -> None:
    """Tiles that each have one value of their own: from one to the next the result goes in steps of 2 / overlap."""
    images = torch.linspace(-1, 1, 96).expand(1, 1, 96, 96)
    tile, overlap = 48, 32
    z = encode_tiled(Flat(1), images, tile=tile, overlap=overlap)[0, 0]
    values = [images[..., begin : begin + tile].mean().item() for begin in (0, 16, 32, 48)]
    assert z[:, 0].tolist() == pytest.approx([values[0]] * 24, abs=1e-5)
    assert z[:, -1].tolist() == pytest.approx([values[-1]] * 24, abs=1e-5)
    rising = z[0, 1:] - z[0, :-1]
    jump = values[1] - values[0]
    assert rising.min() >= -1e-6
    assert rising.max() == pytest.approx(jump * 2 / (overlap / FACTOR), rel=0.01)
    made = decode_tiled(Flat(1), z.expand(1, 3, 24, 24), tile=tile, overlap=overlap)[0, 0]
    rising = made[0, 1:] - made[0, :-1]
    assert 0 < rising.max() <= (made.max() - made.min()) * 2 / overlap


def ours() -> nn.Module:
    """Our network with GroupNorm and attention, no weight zero: all parameters drawn, as if trained."""
    made = autoencoder()
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=drawn) / fan**0.5)
    return made.eval()


def test_ours_differs_within_bounds_and_by_less_the_larger_the_tiles_are() -> None:
    """GroupNorm and attention see a tile, so nothing is equal. These weights are drawn, and worse than trained ones."""
    made = ours()
    drawn = torch.Generator().manual_seed(5)
    smooth = F.interpolate(torch.rand(1, 1, 16, 16, generator=drawn) * 2 - 1, size=(128, 96), mode="bicubic")
    images = smooth.clamp(-1, 1) + 0.1 * torch.randn(1, 1, 128, 96, generator=drawn)
    with torch.no_grad():
        z = made.encode(images).stored()["mean"]
        whole = made.decode(z, (128, 96))
    far: list[tuple[float, float]] = []
    for tile in (32, 64, 96):
        mean = encode_tiled(made, images, tile=tile, overlap=tile // 4)
        picture = decode_tiled(made, z, (128, 96), tile=tile, overlap=tile // 4)
        far.append((relative(mean, z), relative(picture, whole)))
    for bounds, found in zip(BOUNDS, far, strict=True):
        assert all(0 < value < bound for value, bound in zip(found, bounds, strict=True)), far


def relative(found: Tensor, wanted: Tensor) -> float:
    """The root mean square difference in standard deviations."""
    return float((found - wanted).square().mean().sqrt() / wanted.std())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 30), (1, 5)])
def test_a_picture_of_one_tile_is_that_of_the_untiled_network_to_the_bit(height: int, width: int) -> None:
    made, images = autoencoder().eval(), pictures(2, 1, height, width)
    with torch.no_grad():
        z = made.encode(images).stored()["mean"]
        whole = made.decode(z, (height, width))
    assert torch.equal(encode_tiled(made, images, tile=32, overlap=8), z)
    assert torch.equal(decode_tiled(made, z, (height, width), tile=32, overlap=8), whole)


def test_tiles_are_told_the_condition() -> None:
    class Told(Convolutions):
        def encode(self, images: Tensor, cond: Cond | None = None) -> DiagonalGaussian:
            assert cond is not None
            assert cond.vector is not None
            return DiagonalGaussian(super().encode(images).mean.repeat(1, 2, 1, 1) + cond.vector[:, :, None, None])

        def decode(self, latents: Tensor, size: tuple[int, int] | None = None, cond: Cond | None = None) -> Tensor:
            assert cond is not None
            assert cond.vector is not None
            return super().decode(latents) + cond.vector[:, :1, None, None]

    network, images, cond = Told(1), pictures(2, 1, 64, 64), Cond(vector=torch.tensor([[1.0] * 6, [-2.0] * 6]))
    null = Cond(vector=torch.zeros(2, 6))
    z, plain = (encode_tiled(network, images, c, tile=32, overlap=8) for c in (cond, null))
    torch.testing.assert_close(z - plain, torch.tensor([1.0, -2.0]).view(2, 1, 1, 1).expand_as(z))
    made, plain = (decode_tiled(network, z, None, c, tile=32, overlap=8) for c in (cond, null))
    torch.testing.assert_close(made - plain, torch.tensor([1.0, -2.0]).view(2, 1, 1, 1).expand_as(made))


@pytest.mark.parametrize(
    ("tile", "overlap", "said"),
    [
        (30, 8, "a tile of 30 does not fit the factor 4; possible: a multiple, as 32"),
        (32, 6, "an overlap of 6 does not fit the factor 4; possible: a multiple, as 8"),
        (32, 0, "an overlap of 0 does not fit the factor 4; possible: a multiple, as 4"),
        (-4, 4, "a tile of -4 does not fit the factor 4; possible: a multiple, as 4"),
        (32, 32, "tiles of 32 cannot overlap by 32; possible: 4 to 28"),
        (4, 4, "tiles of 4 are one cell, and cannot overlap; possible: 8 or more"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tile: int, overlap: int, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        encode_tiled(Convolutions(1), pictures(1, 1, 64, 64), tile=tile, overlap=overlap)
    assert str(caught.value) == said
    with pytest.raises(RequestError):
        decode_tiled(Convolutions(1), pictures(1, 3, 16, 16), tile=tile, overlap=overlap)
