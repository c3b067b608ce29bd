"""Two maps of codes: what reaches what, exact ways between latents, codes and pictures, and how they are trained."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from moyai.build.firststage import build_autoencoder
from moyai.data.images import ImageSet, SourceFile
from moyai.errors import ConfigError, RequestError
from moyai.firststage import health
from moyai.firststage.codec import LatentCodec
from moyai.firststage.config import CodebookConfig
from moyai.firststage.hierarchy import HierarchicalAutoencoder, Hierarchy, code_maps, quantizers
from moyai.firststage.instruments import Measurement
from moyai.firststage.quantization import VectorQuantizer, perplexity
from moyai.firststage.tiling import check_tiles, decode_tiled, encode_tiled
from moyai.nets.autoencoder import enlarged, small_picture
from moyai.nets.config import AutoencoderConfig
from moyai.randomness import Draw
from moyai.recipe import reading
from moyai.recipe.resolve import DataFacts
from moyai.training.first_stage import FirstStageTraining
from moyai.training.steps import train_step

TOP, BOTTOM = 3, 2  # channels of the vectors of each map


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def autoencoder(
    ratio: int = 2, top_size: int = 7, size: int = 16, *, shortcut: bool = True, **settings: Any
) -> HierarchicalAutoencoder:
    """Of factor 2 at the bottom; its weights are such that nothing begins at zero."""
    codebook = {"start": "uniform", **settings}
    top = VectorQuantizer(CodebookConfig(**{**codebook, "size": top_size}), TOP)
    bottom = VectorQuantizer(CodebookConfig(**{**codebook, "size": size}), BOTTOM)
    net = AutoencoderConfig(factor=2, width=8, multipliers=(1, 2), groups=4, attention=False, shortcut=shortcut)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = HierarchicalAutoencoder(net, 1, Hierarchy(top, bottom, ratio))
        for parameter in made.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        for one in (top, bottom):
            one.codebook.data.copy_(torch.randn_like(one.codebook) * 0.5)
    return made


def without_norms(module: nn.Module) -> None:
    """Normalisation sees the whole picture; without it a network's sight ends where its kernels do."""
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, nn.Identity())
        else:
            without_norms(child)


# ---- the maps


@pytest.mark.parametrize("ratio", [2, 4])
def test_two_maps_lie_in_one_and_come_out_of_it(ratio: int) -> None:
    made = autoencoder(ratio)
    both, factor = made.bottleneck, 2 * ratio
    assert (made.factor, made.channels) == (factor, TOP + ratio**2 * BOTTOM)
    top, bottom = noise(2, TOP, 3, 5), noise(2, BOTTOM, 3 * ratio, 5 * ratio)
    latents = both.joined((top, bottom))
    assert latents.shape == (2, made.channels, 3, 5)
    # A cell holds its own vector and those of the places within it.
    assert torch.equal(latents[1, :TOP, 2, 4], top[1, :, 2, 4])
    within = bottom[1, :, 2 * ratio : 3 * ratio, 4 * ratio : 5 * ratio]
    assert sorted(latents[1, TOP:, 2, 4].tolist()) == sorted(within.flatten().tolist())
    assert all(torch.equal(a, b) for a, b in zip(both.split(latents), (top, bottom), strict=True))
    quantized = made.quantize(latents)
    assert torch.equal(made.quantize(quantized), quantized)
    for one, z, values in zip((both.top, both.bottom), (top, bottom), both.split(quantized), strict=True):
        assert torch.equal(values, one.quantize(z))
        assert not torch.equal(values, z)


def test_what_is_quantised_is_the_posteriors_latents() -> None:
    made = autoencoder()
    posterior = made.encode(noise(3, 1, 7, 9))  # continued to 8 x 12
    assert posterior.z.shape == posterior.values.shape == (3, made.channels, 2, 3)
    assert torch.equal(made.quantize(posterior.z), posterior.values)
    assert posterior.mode() is posterior.values
    assert posterior.sample(Draw(0, 0, 3)) is posterior.values
    assert [tuple(one.codes.shape[1:]) for one in code_maps(posterior).values()] == [(2, 3), (4, 6)]
    assert list(posterior.stored()) == ["mean"]
    torch.testing.assert_close(posterior.regularizer(), sum(one.penalty for one in posterior.maps.values()))
    assert made.decode(posterior.values, (7, 9)).shape == (3, 1, 7, 9)


def test_the_bottom_is_chosen_in_sight_of_the_tops_codes() -> None:
    made, images = autoencoder(), noise(2, 1, 8, 8)
    before = made.encode(images).maps["bottom"].z
    made.bottleneck.top.codebook.data.mul_(-1)
    assert not torch.allclose(made.encode(images).maps["bottom"].z, before)


@pytest.mark.parametrize("half", [False, True])
def test_a_fresh_autoencoder_is_a_pyramid_of_two_small_pictures(half: bool) -> None:
    net = AutoencoderConfig(factor=2, width=8, multipliers=(1, 2), groups=4)
    both = Hierarchy(VectorQuantizer(CodebookConfig(), 4), VectorQuantizer(CodebookConfig(), 4), 2)
    made, images = HierarchicalAutoencoder(net, 1, both), noise(2, 1, 8, 8)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            posterior = made.encode(images)
        coarse = enlarged(posterior.maps["top"].values, 4, 1)
        torch.testing.assert_close(posterior.maps["top"].z, small_picture(images, 4, 4))
        torch.testing.assert_close(posterior.maps["bottom"].z, small_picture(images - coarse, 2, 4))
        # Four values of a block of 2 x 2 say it whole: without codes nothing would be lost.
        latents = both.joined((posterior.maps["top"].values, posterior.maps["bottom"].z))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            shown = made.decode(latents)
        torch.testing.assert_close(shown, images)


@pytest.mark.parametrize("shortcut", [False, True])
def test_gradients_pass_straight_through_to_both_encoders(shortcut: bool) -> None:
    made, images = autoencoder(shortcut=shortcut, commitment=0.0), noise(4, 1, 8, 8)
    posterior = made.encode(images)
    made.decode(posterior.sample(Draw(0, 0, 4))).square().sum().backward()
    named = [(n, p) for n, p in made.named_parameters() if not n.startswith("bottleneck")]
    assert {n.split(".")[0] for n, _ in named} == {"encoder", "top", "coarse", "decoder"}
    assert [n for n, p in named if p.grad is None or not bool((p.grad != 0).any())] == []
    # The vectors themselves follow running means.
    assert all(one.codebook.grad is None for one in quantizers(made.bottleneck).values())


def test_the_top_alone_reaches_the_encoder_through_what_is_made_of_it() -> None:
    # With the decoder blind to the top's vectors, their gradient comes by way of the bottom's latents.
    made = autoencoder(commitment=0.0)
    posterior = made.encode(noise(4, 1, 8, 8))
    _, bottom = made.bottleneck.split(posterior.values)
    bottom.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in made.top.parameters() if p.grad is not None)
    assert made.top.conv_in.weight.grad is not None


@pytest.mark.parametrize(("map_", "cell"), [(0, 4), (1, 2)])
def test_a_code_alters_the_picture_as_far_as_the_decoder_sees(map_: int, cell: int) -> None:
    made = autoencoder()  # its shortcut sees no farther
    without_norms(made.decoder)
    codec = LatentCodec(made, (1, 64, 64))
    codes = codec.codes(codec.store(noise(1, 1, 64, 64)))
    changed = [one.clone() for one in codes]
    changed[map_][0, 0, 0] = (changed[map_][0, 0, 0] + 1) % 7
    # In the corner. At the latents' size 9 convolutions of 3 x 3 follow each other (the first, two in each of the
    # middle's two blocks and the level's two), at the picture's 6 (one after doubling, two in each of two blocks, and
    # the last): 9 x 2 + 6 pixels beyond the code's own cell.
    with torch.no_grad():
        pair = [made.decode(made.bottleneck.joined(_looked_up(made, one))) for one in (codes, changed)]
    apart = (pair[0] != pair[1])[0, 0].nonzero()
    # What arrives at the very edge may be lost to rounding.
    assert all(cell + 18 <= farthest + 1 <= cell + 24 for farthest in apart.amax(0).tolist())
    assert float((pair[0] - pair[1])[0, 0, :cell, :cell].abs().min()) > 0


def _looked_up(made: HierarchicalAutoencoder, codes: list[Tensor]) -> list[Tensor]:
    return [one.lookup(numbers) for one, numbers in zip(quantizers(made.bottleneck).values(), codes, strict=True)]


# ---- the codec


def codec(height: int = 7, width: int = 9) -> LatentCodec:
    made = LatentCodec(autoencoder(), (1, height, width))
    return made.measured((torch.linspace(-1, 1, made.mean.numel()), torch.linspace(0.5, 2, made.std.numel())))


def test_pictures_to_codes_and_back_is_decoding_what_is_quantised() -> None:
    made, images = codec(), noise(5, 1, 7, 9)
    stored = made.store(images)
    codes = made.codes(stored)
    assert made.codes_counts() == [7, 16]
    assert made.code_shapes() == [(2, 3), (4, 6)] == [tuple(one.shape[1:]) for one in codes]
    assert made.shape() == (TOP + 4 * BOTTOM, 2, 3)
    assert all(len(one.unique()) > 2 for one in codes)
    shown = made.decode_codes(codes)
    with torch.no_grad():
        z = made.autoencoder.quantize(stored["mean"])
        assert torch.equal(shown, made.autoencoder.decode(z, (7, 9)).clamp(-1, 1))
        assert torch.equal(shown, made.autoencoder.decode(made.autoencoder.encode(images).mode(), (7, 9)).clamp(-1, 1))
    assert torch.equal(made.decode(made.encode(images)), shown)
    again = made.codes({"mean": z})
    assert all(torch.equal(a, b) for a, b in zip(again, codes, strict=True))


def test_the_digest_covers_both_maps_and_not_the_decoder() -> None:
    made = codec()
    before = made.digest()
    for name, parameter in made.autoencoder.named_parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter.add_(1e-3)
            assert (made.digest() == before) is name.startswith("decoder."), name
            parameter.copy_(kept)
    assert made.digest() == before


# ---- tiles


def test_tiles_keep_to_the_tops_cells() -> None:
    made = autoencoder()
    with pytest.raises(RequestError, match="a tile of 10 does not fit the factor 4"):
        check_tiles(10, 4, made.factor)
    images = noise(1, 1, 14, 30)
    z = encode_tiled(made, images, tile=32, overlap=8)
    assert torch.equal(z, made.encode(images).z)  # all in one tile
    without_norms(made.decoder)
    latents = made.quantize(noise(1, made.channels, 10, 36, seed=3))
    with torch.no_grad():
        whole = made.decode(latents)
    # A quarter of the overlap is as far as the decoder sees.
    tiled = decode_tiled(made, latents, tile=120, overlap=96)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


# ---- instruments


def test_instruments_of_each_map_are_those_of_its_codes() -> None:
    made, images = autoencoder(), noise(6, 1, 16, 16)
    sizes = {name: one.size for name, one in quantizers(made.bottleneck).items()}
    found = Measurement(codes=sizes)
    parts = []
    with torch.no_grad():
        for rows in (slice(0, 4), slice(4, 6)):
            posterior = made.encode(images[rows])
            parts.append(posterior)
            found.add(images[rows], made.decode(posterior.mode()).clamp(-1, 1), posterior)
    values = found.result()
    for name in ("top", "bottom"):
        codes = torch.cat([part.maps[name].codes.flatten() for part in parts])
        assert values[f"perplexity {name}"] == pytest.approx(perplexity(codes.bincount()))
        assert values[f"codes used {name}"] == len(codes.unique()) / sizes[name]
        assert values[f"choices {name}"] == len(codes)
    assert not {"perplexity", "codes used", "codes"} & values.keys()


def test_a_collapsed_map_is_named() -> None:
    values = {"codes top": 512.0, "choices top": 9000.0, "perplexity top": 1.2, "codes used top": 0.9}
    values |= {"codes bottom": 512.0, "choices bottom": 9000.0, "perplexity bottom": 200.0, "codes used bottom": 0.9}
    (said,) = health.judge(values)
    assert said.startswith("top map: few codes do nearly all the work, as 1.2 would")
    assert health.of_maps(values)["bottom"]["perplexity"] == 200
    assert health.of_maps({"perplexity": 3.0, "codes": 4.0}) == {}


# ---- training


def stage(kind: str = "vq2", factor: int = 2, steps: int = 8, decoder: bool = False, **net: Any) -> FirstStageTraining:
    pixels, labels = tiny.shapes(36, side=16)
    data = ImageSet(
        pixels[:, None],
        {"class": labels.astype(np.int64)},
        tiny.CLASSES,
        [str(i) for i in range(36)],
        (SourceFile("shapes", 1, "0" * 64),),
    )
    train = {"steps": steps, "batch": 12, "micro_batch": 6, "learning_rate": 3e-3}
    shape = {"width": 8, "groups": 4, "attention": False, "factor": factor, "multipliers": [1, 2, 2][: factor // 2 + 1]}
    tree: dict[str, Any] = {
        "name": "maps",
        "data": {"kind": "folder", "root": "x"},
        "first_stage": {"kind": kind, "net": {**shape, **net}, "codebook": {"size": 16}, "train": train},
        "prior": {"kind": "codes"},
    }
    if kind == "vq2":
        tree["first_stage"]["top_codebook"] = {"size": 12}
    if decoder:
        tree["decoder"] = {"train": train}
    recipe = reading.parse(tree)
    facts = DataFacts(channels=1, height=16, width=16, count=36, classes=data.classes, fields=("class",))
    model = build_autoencoder(recipe, facts)
    return FirstStageTraining(recipe, model, data, data, torch.device("cpu"), decoder=recipe.decoder)


def steps(made: FirstStageTraining, until: int) -> list[dict[str, float]]:
    said = []
    for step in range(made.state.step, until):
        batch = made.batch(step)
        draw = Draw(0, step, len(batch), stage=made.name)
        said.append(train_step(made.state, made.losses, batch, draw, 6.94, made.applied))
    return said


def test_both_codebooks_start_from_the_data_follow_it_and_go_on_where_they_were() -> None:
    straight = stage()
    said = steps(straight, 4)
    assert all({"restarted top", "restarted bottom"} <= one.keys() for one in said)
    kept = copy.deepcopy(straight.state.contents())
    steps(straight, 8)
    again = stage()
    again.state.restore(kept)
    top, bottom = (one.codebook.clone() for one in quantizers(again.autoencoder.bottleneck).values())
    steps(again, 8)
    assert tiny.digests(again.state.contents()) == tiny.digests(straight.state.contents())
    both = again.autoencoder.bottleneck
    assert bool(both.top.initialised)
    assert bool(both.bottom.initialised)
    assert not torch.equal(both.top.codebook, top)
    assert not torch.equal(both.bottom.codebook, bottom)


def test_two_maps_keep_more_than_the_top_alone() -> None:
    two, alone = stage(steps=24), stage("vq", factor=4, steps=24)
    for made in (two, alone):
        steps(made, 24)
    assert two.autoencoder.factor == alone.autoencoder.factor == 4
    values = two.validate()
    assert values["psnr"] > alone.validate()["psnr"] + 1
    assert {"perplexity top", "perplexity bottom"} <= values.keys()
    assert values["codes top"] == 12


def test_the_decoder_further_leaves_both_maps_alone() -> None:
    made = stage(decoder=True, steps=2)
    frozen = LatentCodec(made.autoencoder, (1, 16, 16))
    made.autoencoder.decoder.requires_grad_(True)
    for one in quantizers(made.autoencoder.bottleneck).values():
        one.initialised.fill_(True)
    before, weight = frozen.digest(), made.autoencoder.decoder.conv_out.weight.clone()
    steps(made, 2)
    assert frozen.digest() == before
    assert not torch.equal(made.autoencoder.decoder.conv_out.weight, weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prior": {}}, r'first_stage.kind is "vq2", but prior.kind is "diffusion".*possible: prior.kind="codes"'),
        ({"first_stage": {"kind": "vq2", "top_factor": 3}}, "top_factor"),
    ],
)
def test_what_cannot_be_is_said(change: dict[str, Any], said: str) -> None:
    tree = {"name": "x", "data": {"kind": "digits"}, "first_stage": {"kind": "vq2"}, "prior": {"kind": "codes"}}
    with pytest.raises(ConfigError, match=said):
        reading.parse(tree | change)


@pytest.mark.parametrize(("factor", "channels"), [(2, 2), (4, 4), (4, 6)])
def test_each_map_goes_past_the_networks_its_own_way(factor: int, channels: int) -> None:
    """The coarse vectors, which the decoder is shown beside the fine ones, are no bands of the fine ones' picture."""
    top, bottom = (VectorQuantizer(CodebookConfig(size=16, start="uniform"), channels) for _ in range(2))
    net = AutoencoderConfig(factor=factor, width=8, multipliers=(1,) * factor.bit_length(), groups=4)
    made = HierarchicalAutoencoder(net, 1, Hierarchy(top, bottom, 2)).eval()
    coarse, fine = noise(2, channels, 3, 5), noise(2, channels, 6, 10, seed=1)
    with torch.no_grad():
        shown = made.decode(made.bottleneck.joined((coarse, fine)))
    torch.testing.assert_close(shown, enlarged(fine, factor, 1) + enlarged(coarse, 2 * factor, 1))
