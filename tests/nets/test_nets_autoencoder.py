"""The encoder and the decoder, against diffusers' on random weights."""

import itertools
import math

import pytest
import torch

from moyai.errors import ConfigError
from moyai.firststage.autoencoder import LatentAutoencoder
from moyai.firststage.config import CodebookConfig
from moyai.firststage.quantization import VectorQuantizer
from moyai.nets.autoencoder import START_LOGVAR, Decoder, Encoder, enlarged, small_picture
from moyai.nets.config import AutoencoderConfig

CONFIG = AutoencoderConfig(
    factor=4, width=16, multipliers=(1, 2, 2), blocks=2, latent_channels=3, groups=8, shortcut=False
)  # as published


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def redraw(module, seed=0):
    """All parameters at random, the zero-initialised ones included, so that outputs have std near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            values = torch.randn(parameter.shape, generator=generator)
            scale = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.2
            parameter.copy_(values * scale + (1 if "norm" in name and name.endswith("weight") else 0))
    return module.eval()


def theirs(name: str) -> list[str]:
    """The names in diffusers of one of our tensors (three for a fused qkv)."""
    if name.startswith(("quant_conv", "post_quant_conv")):
        return [name]
    for ours, other in (
        ("middle.first", "mid_block.resnets.0"),
        ("middle.second", "mid_block.resnets.1"),
        ("middle.attention.norm", "mid_block.attentions.0.group_norm"),
        ("middle.attention.attention.out", "mid_block.attentions.0.to_out.0"),
        ("norm_out", "conv_norm_out"),
        (".skip", ".conv_shortcut"),
        ("resample", "RESAMPLERS.0"),
        (".blocks.", ".resnets."),
        ("levels.", "BLOCKS."),
    ):
        name = name.replace(ours, other)
    if "attention.attention.qkv" in name:
        return [name.replace("middle.attention.attention.qkv", f"mid_block.attentions.0.to_{x}") for x in "qkv"]
    return [name]


def from_diffusers(net, prefix, blocks, samplers, state):
    """Our state of `net` from theirs; every one of their names is used once."""
    built = {}
    for name in net.state_dict():
        names = [n.replace("BLOCKS", blocks).replace("RESAMPLERS", samplers) for n in theirs(name)]
        names = [n if "quant_conv" in n else f"{prefix}.{n}" for n in names]
        built[name] = torch.cat([state.pop(n) for n in names])
    return built


@pytest.mark.parametrize("attention", [True, False])
def test_parity_with_diffusers(attention):
    diffusers = pytest.importorskip("diffusers")
    config = CONFIG.model_copy(update={"attention": attention})
    peer = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        latent_channels=3,
        norm_num_groups=8,
        mid_block_add_attention=attention,
    )
    redraw(peer)
    state = peer.state_dict()
    encoder, decoder = Encoder(config, 3), Decoder(config, 3)
    encoder.load_state_dict(from_diffusers(encoder, "encoder", "down_blocks", "downsamplers", state))
    decoder.load_state_dict(from_diffusers(decoder, "decoder", "up_blocks", "upsamplers", state))
    assert not state
    images, latents = draw((2, 3, 16, 24)), draw((2, 3, 5, 4), 1)
    with torch.no_grad():
        for ours, want in (
            (encoder(images), peer.encode(images).latent_dist.parameters),
            (decoder(latents), peer.decode(latents).sample),
        ):
            assert 0.3 < want.std() < 5
            assert (ours - want).abs().max() <= 1e-5 * want.std()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(28, 20), (16, 16)])
def test_shapes(channels, size):
    h, w = size
    moments = Encoder(CONFIG, channels)(draw((2, channels, h, w)))
    assert moments.shape == (2, 6, h // 4, w // 4)
    assert Decoder(CONFIG, channels)(moments[:, :3]).shape == (2, channels, h, w)


def test_a_size_the_factor_does_not_divide_rounds_up():
    assert Encoder(CONFIG, 1)(draw((1, 1, 7, 5))).shape == (1, 6, 2, 2)


def test_factor_one_keeps_the_size():
    config = AutoencoderConfig(factor=1, width=8, multipliers=(1,), groups=4)
    assert Decoder(config, 1)(Encoder(config, 1)(draw((1, 1, 8, 6)))[:, :4]).shape == (1, 1, 8, 6)


def nets():
    return [(redraw(Encoder(CONFIG, 1)), draw((3, 1, 12, 8))), (redraw(Decoder(CONFIG, 1), 1), draw((3, 3, 3, 2)))]


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_reaches_every_parameter(which):
    net, x = nets()[which]
    net(x).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("which", [0, 1])
@torch.no_grad()
def test_row_by_row_channels_last_and_bfloat16_agree(which):
    net, x = nets()[which]
    want = net(x)
    changed = torch.cat((x[:1], draw(x[1:].shape, 9)))
    assert (net(changed)[0] - want[0]).abs().max() <= 1e-6 * want.std()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x)
    assert half.dtype == torch.float32
    assert (half - want).square().mean().sqrt() <= 3e-2 * want.std()
    net.to(memory_format=torch.channels_last)
    got = net(x.to(memory_format=torch.channels_last))
    assert (got - want).abs().max() <= 1e-5 * want.std()


def test_unresolved_and_contradictory_configurations_are_refused():
    with pytest.raises(ConfigError, match="multipliers are not known yet"):
        Encoder(AutoencoderConfig(), 1)
    with pytest.raises(ConfigError, match="factor 4 needs 3 multipliers; 2 are given"):
        Decoder(AutoencoderConfig(factor=4, multipliers=(1, 2)), 1)


@pytest.mark.parametrize(
    ("factor", "channels", "latents"), [(1, 1, 1), (1, 3, 4), (2, 1, 4), (2, 3, 12), (2, 4, 20), (4, 1, 20), (4, 3, 64)]
)
def test_the_way_past_the_networks_loses_nothing_where_it_has_the_channels(factor, channels, latents):
    images = draw((2, channels, 8, 12))
    small = small_picture(images, factor, latents)
    assert small.shape == (2, latents, 8 // factor, 12 // factor)
    assert (enlarged(small, factor, channels) - images).abs().max() < 1e-6


def test_the_way_past_the_networks_is_means_and_differences():
    block = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
    assert small_picture(block, 4, 4).flatten().tolist() == [4.0, -1.0, -2.0, 0.0]
    # Too few channels lose the finest bands first, of all colours alike, and nothing of the mean.
    colour = draw((1, 3, 8, 8))
    assert torch.equal(small_picture(colour, 4, 3), small_picture(colour, 4, 12)[:, :3])
    assert (small_picture(colour, 4, 3) - torch.nn.functional.avg_pool2d(colour, 4)).abs().max() < 1e-6
    # More channels than the means and differences take bring back ever more of what the smooth enlargement lacks.
    assert torch.equal(small_picture(colour, 4, 20)[:, :12], small_picture(colour, 4, 12))
    lost = [(enlarged(small_picture(colour, 4, n), 4, 3) - colour).square().sum().item() for n in range(12, 61)]
    assert all(more >= less - 1e-4 for more, less in itertools.pairwise(lost))
    assert lost[-1] < 1e-6 < lost[-2]
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert (enlarged(small_picture(flat, 4, 5), 4, 3) - flat).abs().max() < 1e-6


@pytest.mark.parametrize(("factor", "multipliers"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 2)), (8, (1, 2, 2, 2))])
def test_a_fresh_autoencoder_with_a_shortcut_is_the_small_picture(factor, multipliers):
    config = AutoencoderConfig(factor=factor, width=8, multipliers=multipliers, groups=4)
    encoder, decoder = Encoder(config, 1), Decoder(config, 1)
    images = draw((2, 1, 16, 24))
    mean, logvar = encoder(images).chunk(2, dim=1)
    assert torch.equal(mean, small_picture(images, factor, 4))
    assert bool((logvar == START_LOGVAR).all())
    assert torch.equal(decoder(mean), enlarged(mean, factor, 1))
    assert sorted(encoder.state_dict()) == sorted(
        Encoder(config.model_copy(update={"shortcut": False}), 1).state_dict()
    )
    # Both networks learn from the first steps on.
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (decoder(encoder(images)[:, :4]) - images.flip(-1)).abs().mean().backward()
        optimizer.step()
    still = [n for net in (encoder, decoder) for n, p in net.named_parameters() if not p.grad.abs().sum() > 0]
    assert [n for n in still if not n.startswith("quant_conv.bias")] == []


def test_parity_with_the_vector_quantised_model_of_diffusers():
    """The same table of names; the encoder gives the codes' coordinates only."""
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.VQModel(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=8,
    )
    redraw(peer)
    state = peer.state_dict()
    quantizer = VectorQuantizer(CodebookConfig(size=16, update="gradient"), 3)
    quantizer.codebook.data.copy_(state.pop("quantize.embedding.weight"))
    whole = LatentAutoencoder(CONFIG, 3, quantizer)
    whole.encoder.load_state_dict(from_diffusers(whole.encoder, "encoder", "down_blocks", "downsamplers", state))
    whole.decoder.load_state_dict(from_diffusers(whole.decoder, "decoder", "up_blocks", "upsamplers", state))
    assert not state
    images = draw((2, 3, 16, 24))
    with torch.no_grad():
        latents = peer.encode(images).latents
        posterior = whole.encode(images)
        assert (posterior.z - latents).abs().max() <= 1e-5 * latents.std()
        codes = peer.quantize(latents)[2][2].reshape(posterior.codes.shape)
        assert torch.equal(posterior.codes, codes)
        assert len(codes.unique()) > 3
        want = peer.decode(latents).sample
        assert (whole.decode(posterior.mode()) - want).abs().max() <= 1e-5 * want.std()
