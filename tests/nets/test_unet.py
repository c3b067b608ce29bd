"""The U-Net, against diffusers' on random weights and against what its routes promise."""

import math

import pytest
import torch

from moyai.batch import Cond
from moyai.errors import ConfigError
from moyai.nets.config import UNetConfig
from moyai.nets.unet import UNet

CONFIG = UNetConfig(width=16, multipliers=(1, 2), attention=(False, True), blocks=1, head_width=8, groups=8)


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def redraw(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            values = torch.randn(parameter.shape, generator=generator)
            scale = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.2
            parameter.copy_(values * scale + (1 if "norm" in name and name.endswith("weight") else 0))
    return module.eval()


def make(seed=0, config=CONFIG, **widths):
    return redraw(UNet(config, channels_in=4, channels_out=4, **widths), seed)


TIME = torch.tensor([0.0, 17.5, 999.0])


def test_a_fresh_net_returns_exactly_zero():
    net = UNet(CONFIG, channels_in=3, channels_out=6, vector_width=5, context_width=7)
    out = net(draw((2, 3, 8, 8)), TIME[:2], Cond(vector=draw((2, 5)), context=draw((2, 3, 7))))
    assert out.shape == (2, 6, 8, 8)
    assert (out == 0).all()


@pytest.mark.parametrize("size", [(7, 7), (28, 20), (5, 9), (1, 1), (8, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(size, channels):
    config = CONFIG.model_copy(update={"multipliers": (1, 1, 2), "attention": (False, True, False)})
    net = UNet(config, channels_in=channels, channels_out=channels)
    assert net(draw((1, channels, *size)), TIME[:1], Cond()).shape == (1, channels, *size)


RENAMES = (
    ("time.0", "time_embedding.linear_1"),
    ("time.2", "time_embedding.linear_2"),
    ("vector.0", "class_embedding.linear_1"),
    ("vector.2", "class_embedding.linear_2"),
    ("norm_out", "conv_norm_out"),
    ("middle1.residual", "mid_block.resnets.0"),
    ("middle2.residual", "mid_block.resnets.1"),
    ("middle1.transformer", "mid_block.attentions.0"),
    ("residual.emb", "residual.time_emb_proj"),
    ("resnets.0.emb", "resnets.0.time_emb_proj"),
    ("resnets.1.emb", "resnets.1.time_emb_proj"),
    (".skip", ".conv_shortcut"),
    (".blocks.", ".transformer_blocks."),
    ("attention.out", "attn1.to_out.0"),
    ("cross.out", "attn2.to_out.0"),
    ("cross.q", "attn2.to_q"),
    ("feed.proj", "ff.net.0.proj"),
    ("feed.out", "ff.net.2"),
)


def theirs(name):
    for ours, other in RENAMES:
        name = name.replace(ours, other)
    parts = name.split(".")
    if parts[0] in ("down", "up"):
        parts[0] += "_blocks"
        if parts[2] == "stages":
            kind = "resnets" if parts[4] == "residual" else "attentions"
            parts[2:5] = [kind, parts[3]]
        else:
            parts[2] = "downsamplers.0" if parts[0] == "down_blocks" else "upsamplers.0"
    name = ".".join(parts)
    if "attention.qkv" in name:
        return [name.replace("attention.qkv", f"attn1.to_{x}") for x in "qkv"]
    if "cross.kv" in name:
        return [name.replace("cross.kv", f"attn2.to_{x}") for x in "kv"]
    return [name]


@pytest.mark.parametrize("size", [(8, 8), (7, 6)])
@pytest.mark.parametrize("length", [1, 3])
@torch.no_grad()
def test_parity_with_diffusers(size, length):
    diffusers = pytest.importorskip("diffusers")
    config = UNetConfig(width=16, multipliers=(1, 2), attention=(False, True), blocks=2, head_width=8, groups=8)
    peer = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=2,
        cross_attention_dim=6,
        attention_head_dim=(2, 4),  # the number of heads, whatever its name
        norm_num_groups=8,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=5,
        use_linear_projection=True,
    )
    redraw(peer)
    state = peer.state_dict()
    net = UNet(config, channels_in=4, channels_out=4, vector_width=5, context_width=6)
    net.load_state_dict({n: torch.cat([state.pop(t) for t in theirs(n)]) for n in net.state_dict()})
    assert not state
    x, context, vector = draw((3, 4, *size)), draw((3, length, 6), 1), draw((3, 5), 2)
    want = peer(x, TIME, context, class_labels=vector).sample
    got = net.eval()(x, TIME, Cond(vector=vector, context=context))
    assert 0.3 < want.std() < 5
    assert (got - want).abs().max() <= 1e-5 * want.std()


def test_gradient_reaches_every_parameter():
    net = make(vector_width=5, context_width=6)
    net(draw((3, 4, 6, 5)), TIME, Cond(vector=draw((3, 5)), context=draw((3, 2, 6)))).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_masked_entries_do_not_count_and_the_others_do():
    net = make(context_width=6)
    x, context = draw((3, 4, 6, 5)), draw((3, 4, 6), 1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    want = net(x, TIME, Cond(context=context, mask=mask))
    masked = torch.where(mask[:, :, None], context, draw(context.shape, 5))
    assert torch.equal(net(x, TIME, Cond(context=masked, mask=mask)), want)
    moved = net(x, TIME, Cond(context=context + 1, mask=mask))
    assert ((moved - want)[:2].flatten(1).abs().amax(1) > 1e-3).all()
    assert torch.equal(moved[2], want[2])
    shorter = net(x[:1], TIME[:1], Cond(context=context[:1, :2]))
    torch.testing.assert_close(shorter, want[:1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_route_is_used_and_may_be_left_out():
    net = make(vector_width=5, context_width=6)
    x = draw((3, 4, 6, 5))
    vector, context = draw((3, 5), 1), draw((3, 2, 6), 2)
    outs = [net(x, TIME, c) for c in (Cond(), Cond(vector=vector), Cond(context=context), Cond(vector, context))]
    for i, a in enumerate(outs):
        assert a.isfinite().all()
        assert all((a - b).abs().max() > 1e-3 for b in outs[:i])
    assert (net(x, TIME + 1, Cond()) - outs[0]).abs().max() > 1e-3


@torch.no_grad()
def test_concat_is_more_channels_and_their_number_is_checked():
    net = make()
    x = draw((3, 4, 6, 5))
    assert torch.equal(net(x[:, :3], TIME, Cond(concat=x[:, 3:])), net(x, TIME, Cond()))
    with pytest.raises(ValueError, match="5 channels, concatenated ones included; the U-Net takes 4"):
        net(x, TIME, Cond(concat=x[:, :1]))


@torch.no_grad()
def test_row_by_row_channels_last_and_bfloat16_agree():
    net = make(vector_width=5, context_width=6)
    x, cond = draw((3, 4, 7, 6)), Cond(vector=draw((3, 5), 1), context=draw((3, 2, 6), 2))
    want = net(x, TIME, cond)
    other = Cond.cat([cond.rows(0, 1), Cond(vector=draw((2, 5), 7), context=draw((2, 2, 6), 8))])
    changed = net(torch.cat((x[:1], draw((2, 4, 7, 6), 9))), TIME.roll(0), other)
    assert (changed[0] - want[0]).abs().max() <= 1e-6 * want.std()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x, TIME, cond)
    assert half.dtype == torch.float32
    assert (half - want).square().mean().sqrt() <= 3e-2 * want.std()
    net.to(memory_format=torch.channels_last)
    got = net(x.to(memory_format=torch.channels_last), TIME, cond)
    assert (got - want).abs().max() <= 1e-5 * want.std()


def test_unresolved_and_contradictory_configurations_are_refused():
    with pytest.raises(ConfigError, match="not known yet"):
        UNet(UNetConfig(), channels_in=1, channels_out=1)
    with pytest.raises(ConfigError, match="2 multipliers and 1 values of attention"):
        UNet(UNetConfig(multipliers=(1, 2), attention=(True,)), channels_in=1, channels_out=1)
