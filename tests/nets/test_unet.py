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
    ("resample.emb", "resample.time_emb_proj"),
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


PLAIN = {"width": 16, "multipliers": (1, 2), "attention": (False, True), "blocks": 2, "head_width": 8, "groups": 8}
CROSS, RESIDUAL = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
ATTENDED = {"block_types": (("DownBlock2D", "UpBlock2D"), CROSS), "attention_head_dim": (2, 4)}  # numbers of heads
CHOICES = {  # by what they are about: ours, theirs
    "as published": ({}, ATTENDED),
    "scale and shift": ({"scale_shift": True}, {**ATTENDED, "resnet_time_scale_shift": "scale_shift"}),
    "convolutions, depth and heads of each level": (
        {"attention": (True, True), "depth": (1, 2), "heads": 2, "projections": "conv"},
        {
            "block_types": (CROSS, CROSS),
            "attention_head_dim": 2,
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": False,
        },
    ),
    "residual blocks halve and double": (
        {"attention": (False, False), "resample": "residual"},
        {"block_types": (RESIDUAL, RESIDUAL), "attention_head_dim": 4},
    ),
}


def filled(net, peer, names):
    """Our net with the weights of a peer, all drawn at random; every one of them must be used."""
    state = redraw(peer).state_dict()
    parts = {name: [state.pop(other) for other in names(name)] for name in net.state_dict()}
    net.load_state_dict({name: torch.cat(tensors) for name, tensors in parts.items()})
    assert not state
    return net.eval()


def assert_same(got, want):
    assert 0.3 < want.std() < 5
    assert (got - want).abs().max() <= 1e-5 * want.std()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("size", [(8, 8), (7, 6)])
@pytest.mark.parametrize("length", [1, 3])
@torch.no_grad()
def test_parity_with_diffusers(size, length, choice):
    diffusers = pytest.importorskip("diffusers")
    ours, their = CHOICES[choice]
    if "residual" in choice and size[0] % 2:
        pytest.skip("the peer's residual halving drops the last row of odd sides")
    downs, ups = zip(*their["block_types"], strict=True)
    peer = diffusers.UNet2DConditionModel(
        in_channels=6,
        out_channels=4,
        down_block_types=downs,
        up_block_types=ups[::-1],
        block_out_channels=(16, 32),
        layers_per_block=2,
        cross_attention_dim=6,
        norm_num_groups=8,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=5,
        **{"use_linear_projection": True, **{k: v for k, v in their.items() if k != "block_types"}},
    )
    config = UNetConfig(**{**PLAIN, **ours})
    net = UNet(config, channels_in=4, channels_out=4, vector_width=5, context_width=6, concat_channels=2)
    filled(net, peer, theirs)
    x, context, vector, concat = (
        draw(s, i) for i, s in enumerate([(3, 4, *size), (3, length, 6), (3, 5), (3, 2, *size)])
    )
    want = peer(torch.cat((x, concat), 1), TIME, context, class_labels=vector).sample
    assert_same(net(x, TIME, Cond(vector=vector, context=context, concat=concat)), want)


def theirs_of_ddpm(name):
    for ours, other in (
        ("transformer.norm.", "transformer.group_norm."),
        ("middle1.transformer.attention", "middle1.transformer"),
        ("transformer.attention", "transformer"),
        ("transformer.out", "transformer.to_out.0"),
    ):
        name = name.replace(ours, other)
    if ".qkv." in name:
        return [theirs(name.replace("qkv", f"to_{x}"))[0] for x in "qkv"]
    return theirs(name)


@pytest.mark.parametrize(("resample", "scale_shift"), [("conv", False), ("residual", True)])
@pytest.mark.parametrize("middle", [True, False])
@torch.no_grad()
def test_parity_with_diffusers_without_transformers(resample, scale_shift, middle):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=6,
        down_block_types=("DownBlock2D" if resample == "conv" else "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D" if resample == "conv" else "ResnetUpsampleBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=2,
        attention_head_dim=8,
        norm_num_groups=8,
        attn_norm_num_groups=8,
        add_attention=middle,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        **dict.fromkeys(("downsample_type", "upsample_type"), "conv" if resample == "conv" else "resnet"),
    )
    ours = {"attention_kind": "self", "resample": resample, "scale_shift": scale_shift, "middle_attention": middle}
    net = UNet(UNetConfig(**{**PLAIN, **ours}), channels_in=3, channels_out=6)
    filled(net, peer, theirs_of_ddpm)
    x = draw((3, 3, 8, 12))
    assert_same(net(x, TIME, Cond()), peer(x, TIME).sample)


GROWN = {  # every choice that is not the default, in two networks
    "transformers": {"scale_shift": True, "resample": "residual", "depth": (1, 2), "heads": 2, "projections": "conv"},
    "self": {"attention_kind": "self", "middle_attention": False, "resample": "residual"},
    "plain": {},
}
ROUTES = {"vector_width": 5, "context_width": 6, "concat_channels": 2}


def routes_of(kind):
    return {k: v for k, v in ROUTES.items() if kind != "self" or k != "context_width"}


def told(kind, size=(6, 5)):
    context = None if kind == "self" else draw((3, 2, 6), 1)
    return Cond(vector=draw((3, 5), 2), context=context, concat=draw((3, 2, *size), 3))


@pytest.mark.parametrize("maps", ["concat", "spade"])
@pytest.mark.parametrize("kind", GROWN)
def test_gradient_reaches_every_parameter(kind, maps):
    config = UNetConfig(**{**CONFIG.model_dump(), **GROWN[kind], "maps": maps})
    net = make(config=config, **routes_of(kind))
    net(draw((3, 4, 6, 5)), TIME, told(kind)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("maps", ["concat", "spade"])
@pytest.mark.parametrize("kind", GROWN)
@torch.no_grad()
def test_a_fresh_grown_net_returns_zero_and_takes_any_size(kind, maps):
    config = UNetConfig(**{**CONFIG.model_dump(), **GROWN[kind], "maps": maps})
    net = UNet(config, channels_in=4, channels_out=4, **routes_of(kind))
    for size in ((7, 7), (5, 9), (1, 1), (8, 8)):
        assert (net(draw((3, 4, *size)), TIME, told(kind, size)) == 0).all()
        out = redraw(net)(draw((3, 4, *size)), TIME, told(kind, size))
        assert out.shape == (3, 4, *size)
        assert out.isfinite().all()
        net = UNet(config, channels_in=4, channels_out=4, **routes_of(kind))


@pytest.mark.parametrize("maps", ["concat", "spade"])
@pytest.mark.parametrize("route", ["vector", "context", "concat"])
@torch.no_grad()
def test_zeroing_a_routes_parameters_gives_the_net_without_it_bit_for_bit(route, maps):
    config = UNetConfig(**{**CONFIG.model_dump(), **GROWN["transformers"], "maps": maps})
    net = make(config=config, **ROUTES)
    without = UNet(config, channels_in=4, channels_out=4, **{k: v for k, v in ROUTES.items() if route not in k})
    state = net.state_dict()
    of_route = {"vector": ("vector.",), "context": (".cross.", ".norm2."), "concat": (".spade1.", ".spade2.")}[route]
    own = [name for name in without.state_dict() if name in state]
    gone = [name for name in state if name not in own]
    assert own == list(without.state_dict())
    assert all(any(part in name for part in of_route) for name in gone)
    if (route, maps) == ("concat", "concat"):
        kept = state["conv_in.weight"][:, :4]
        without.load_state_dict({**state, "conv_in.weight": kept})
        net.conv_in.weight[:, 4:] = 0
    else:
        assert gone
        without.load_state_dict({name: state[name] for name in own})
        for name in gone:
            net.get_parameter(name).zero_()
    cond = told("transformers")
    less = Cond(**{name: value for name, value in cond.routes().items() if name != route})
    x = draw((3, 4, 6, 5))
    want = without.eval()(x, TIME, less)
    assert want.std() > 0.3
    assert torch.equal(net(x, TIME, cond), want)


@torch.no_grad()
def test_spade_starts_as_the_net_without_maps_and_then_listens():
    config = UNetConfig(**{**CONFIG.model_dump(), "maps": "spade"})
    net = UNet(config, channels_in=4, channels_out=4, vector_width=5, concat_channels=2)
    without = UNet(CONFIG, channels_in=4, channels_out=4, vector_width=5)
    redraw(without)
    missing = net.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert missing
    assert all("spade" in name for name in missing)
    x, vector, planes = draw((3, 4, 7, 6)), draw((3, 5), 1), draw((3, 2, 7, 6), 2)
    want = without(x, TIME, Cond(vector=vector))
    assert torch.equal(net.eval()(x, TIME, Cond(vector=vector, concat=planes)), want)
    redraw(net)
    outs = [net(x, TIME, Cond(vector=vector, concat=p)) for p in (None, planes, planes.flip(3))]
    for a, b in ((0, 1), (1, 2)):
        assert (outs[a] - outs[b]).flatten(1).abs().amax(1).min() > 1e-3
    # planes of a picture's size do as those of the latents' size that they average to
    larger = planes.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(
        net.down[0].stages[0].residual.spade1(x[:, :1].repeat(1, 16, 1, 1), larger),
        net.down[0].stages[0].residual.spade1(x[:, :1].repeat(1, 16, 1, 1), planes),
    )
    unmapped = UNet(config, channels_in=4, channels_out=4)
    with pytest.raises(ValueError, match="6 channels, concatenated ones included; the network takes 4"):
        unmapped(x, TIME, Cond(concat=planes))


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
    with pytest.raises(ValueError, match="5 channels, concatenated ones included; the network takes 4"):
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
    two = {"multipliers": (1, 2), "attention": (True, True)}
    with pytest.raises(ConfigError, match="2 multipliers and 3 values of depth; possible: one number"):
        UNet(UNetConfig(**two, depth=(1, 1, 1)), channels_in=1, channels_out=1)
    with pytest.raises(ConfigError, match="heads is 5, which does not divide 64 channels; possible: 1, 2, 4, 8"):
        UNet(UNetConfig(**two, heads=5), channels_in=1, channels_out=1)
    with pytest.raises(ConfigError, match='attention_kind is "self", which has no context'):
        UNet(UNetConfig(**two, attention_kind="self"), channels_in=1, channels_out=1, context_width=3)
