"""The encoder and the decoder, against diffusers' on random weights."""

import math

import pytest
import torch

from moyai.errors import ConfigError
from moyai.nets.autoencoder import Decoder, Encoder
from moyai.nets.config import AutoencoderConfig

CONFIG = AutoencoderConfig(factor=4, width=16, multipliers=(1, 2, 2), blocks=2, latent_channels=3, groups=8)


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
