"""The diffusion transformer, against diffusers' on random weights and against what its routes promise."""

import math
from itertools import product

import pytest
import torch

from moyai.batch import Cond
from moyai.errors import ConfigError
from moyai.nets.config import DiTConfig
from moyai.nets.dit import DiT, MixFeed, positions
from moyai.nets.precision import placed

CONFIG = DiTConfig(width=32, depth=3, heads=4, patch=2)
GROWN = CONFIG.model_copy(update={"qk_norm": True, "skips": True, "convolution": True, "depth": 4, "mlp": 2.5})
ROUTES = {"vector_width": 5, "context_width": 6, "concat_channels": 2}
TIME = torch.tensor([0.0, 17.5, 999.0])


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def redraw(module, seed=0):
    """Every parameter at random, those that start at zero included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        scale = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.2
        parameter.copy_(values * scale + (1 if "norm" in name and parameter.ndim == 1 else 0))
    return module.eval()


def make(config=CONFIG, **routes):
    return redraw(DiT(config, channels_in=4, channels_out=4, **routes))


def told(size=(8, 6)):
    return Cond(vector=draw((3, 5), 1), context=draw((3, 2, 6), 2), concat=draw((3, 2, *size), 3))


TABLE = {  # ours: theirs
    "patches": "pos_embed.proj",
    "time.0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
    "time.2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
    "modulation": "proj_out_1",
    "out": "proj_out_2",
}
BLOCK = {
    "modulation": ["norm1.linear"],
    "attention.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attention.out": ["attn1.to_out.0"],
    "feed.0": ["ff.net.0.proj"],
    "feed.3": ["ff.net.2"],
}
CLASSES = 5


def translated(peer, depth):
    """The peer's tensors by our names. Its table of classes is a linear layer of vectors with one 1 among zeros."""
    state = peer.state_dict()
    ours = {f"{a}.{kind}": state.pop(f"{b}.{kind}") for a, b in TABLE.items() for kind in ("weight", "bias")}
    for i in range(depth):
        theirs = f"transformer_blocks.{i}."
        for a, b in BLOCK.items():
            for kind in ("weight", "bias"):
                ours[f"blocks.{i}.{a}.{kind}"] = torch.cat([state.pop(f"{theirs}{name}.{kind}") for name in b])
    table = state.pop("transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight")
    ours["vector.weight"], ours["vector.bias"] = table.T.clone(), torch.zeros(len(table.T))
    assert all(".norm1.emb." in name for name in state)  # copies, one a block, of what the first block has
    return ours


@pytest.mark.parametrize(("patch", "size"), [(1, 4), (2, 8), (4, 16)])
@torch.no_grad()
def test_parity_with_diffusers(patch, size):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,  # with a learned variance
        num_layers=3,
        sample_size=size,
        patch_size=patch,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,  # the published code's; the peer's default is another
    )
    redraw(peer)
    first = peer.transformer_blocks[0].norm1.emb
    for block in peer.transformer_blocks:
        block.norm1.emb = first  # the published network has one
    first.time_proj.downscale_freq_shift = 0  # as in the published code
    config = CONFIG.model_copy(update={"patch": patch})
    net = DiT(config, channels_in=3, channels_out=6, vector_width=CLASSES + 1).eval()
    net.load_state_dict(translated(peer, config.depth))
    x, classes = draw((3, 3, size, size)), torch.tensor([0, 3, CLASSES])  # the last is "no class"
    want = peer(x, TIME, class_labels=classes).sample
    got = net(x, TIME, Cond(vector=torch.eye(CLASSES + 1)[classes]))
    assert 0.3 < want.std() < 5
    assert (got - want).abs().max() <= 1e-5 * want.std()


def test_positions_are_sinusoids_of_column_and_row():
    got = positions(2, 3, 8)
    assert got.shape == (6, 8)
    for place, values in enumerate(got.tolist()):
        row, column = divmod(place, 3)
        want = [f(at * w) for at in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
        assert values == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("config", [CONFIG, GROWN])
@torch.no_grad()
def test_a_fresh_net_returns_exactly_zero_and_its_blocks_are_the_identity(config):
    net = DiT(config, channels_in=4, channels_out=8, **ROUTES)
    out = net(draw((3, 4, 8, 6)), TIME, told())
    assert out.shape == (3, 8, 8, 6)
    assert (out == 0).all()
    tokens, emb = draw((3, 12, 32)), draw((3, 32), 1)
    for block in net.blocks:
        assert torch.equal(block(tokens, emb, told(), 4, draw(tokens.shape, 2)), tokens)


@pytest.mark.parametrize("size", [(2, 2), (4, 10), (12, 6)])
def test_any_multiple_of_the_patch_and_nothing_else(size):
    net = make()
    assert net(draw((3, 4, *size)), TIME, Cond()).shape == (3, 4, *size)
    with pytest.raises(
        ConfigError, match=r"patch is 2, which does not divide latents of 7 x 6; possible: .* such as 1"
    ):
        net(draw((3, 4, 7, 6)), TIME, Cond())


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("config", [CONFIG, GROWN])
def test_gradient_reaches_every_parameter(config, length):
    net = make(config, **ROUTES)
    cond = told()
    net(
        draw((3, 4, 8, 6)), TIME, Cond(cond.vector, cond.context[:, :length], None, cond.concat)
    ).square().sum().backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    shortened = (".cross.q.", ".cross.norms.", ".norm_cross.")  # one entry is attended to whatever the tokens are
    if length == 1:
        assert without
        assert all(any(part in name for part in shortened) for name in without)
        assert all(p.grad is not None for p in net.parameters())
    else:
        assert without == []


@pytest.mark.parametrize("route", ["vector", "context", "concat"])
@pytest.mark.parametrize("config", [CONFIG, GROWN])
@torch.no_grad()
def test_zeroing_a_routes_parameters_gives_the_net_without_it_bit_for_bit(config, route):
    net = make(config, **ROUTES)
    without = DiT(config, channels_in=4, channels_out=4, **{k: v for k, v in ROUTES.items() if route not in k}).eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    names = list(without.state_dict())
    gone = [name for name in state if name not in names]
    parts = {"vector": ("vector.",), "context": (".cross.", ".norm_cross."), "concat": ()}[route]
    assert bool(gone) == bool(parts)
    assert all(any(part in name for part in parts) for name in gone)
    if route == "concat":
        state["patches.weight"] = state["patches.weight"][:, :4]
        net.patches.weight[:, 4:] = 0
    without.load_state_dict({name: state[name] for name in names})
    for name in gone:
        net.get_parameter(name).zero_()
    less = Cond(**{name: value for name, value in told().routes().items() if name != route})
    want = without(draw((3, 4, 8, 6)), TIME, less)
    assert want.std() > 0.3
    assert torch.equal(net(draw((3, 4, 8, 6)), TIME, told()), want)


@torch.no_grad()
def test_every_route_is_used_and_masked_entries_do_not_count():
    net = make(GROWN, **ROUTES)
    x, cond = draw((3, 4, 8, 6)), told()
    want = net(x, TIME, cond)
    for name, value in cond.routes().items():
        changed = net(x, TIME, Cond(**{**cond.routes(), name: value + 1}))
        assert (changed - want).flatten(1).abs().amax(1).min() > 1e-3
    assert (net(x, TIME + 1, cond) - want).abs().max() > 1e-3
    mask = torch.tensor([[True, False], [False, True], [False, False]])
    masked = Cond(cond.vector, cond.context, mask, cond.concat)
    other = torch.where(mask[:, :, None], cond.context, draw(cond.context.shape, 7))
    want = net(x, TIME, masked)
    assert torch.equal(net(x, TIME, Cond(cond.vector, other, mask, cond.concat)), want)
    assert (net(x, TIME, cond) - want).abs().max() > 1e-3
    with pytest.raises(ValueError, match="4 channels, concatenated ones included; the network takes 6"):
        net(x, TIME, Cond())


@torch.no_grad()
def test_the_feed_forward_layer_with_a_convolution_written_out():
    """Two rows of three tokens: each place sees the eight around it, and zeros beyond the border."""
    feed = MixFeed(4, 6, 0.0)
    redraw(feed)
    x = draw((2, 6, 4))
    h = (x @ feed.into.weight.T + feed.into.bias).reshape(2, 2, 3, 6)
    want = torch.zeros_like(h)
    for i, j in product(range(2), range(3)):
        for a, b in product(range(2), range(3)):
            if abs(a - i) <= 1 and abs(b - j) <= 1:
                want[:, i, j] += h[:, a, b] * feed.around.weight[:, 0, a - i + 1, b - j + 1]
    want = torch.nn.functional.gelu(want + feed.around.bias, approximate="tanh").flatten(1, 2)
    torch.testing.assert_close(feed(x, 2), want @ feed.out.weight.T + feed.out.bias)


@torch.no_grad()
def test_early_blocks_are_joined_to_late_ones_in_mirror_order():
    for depth, pairs in ((1, {}), (4, {2: 1, 3: 0}), (5, {3: 1, 4: 0})):
        net = make(CONFIG.model_copy(update={"skips": True, "depth": depth}))
        joins = {i for i, block in enumerate(net.blocks) if block.join is not None}
        assert joins == set(pairs)
        calls = []
        for block in net.blocks:
            block.register_forward_hook(lambda module, given, made, calls=calls: calls.append((given[4], made)))
        net(draw((3, 4, 8, 6)), TIME, Cond())
        assert len(calls) == depth
        for i, (early, _) in enumerate(calls):
            assert early is (calls[pairs[i]][1] if i in pairs else None)


@torch.no_grad()
def test_row_by_row_channels_last_and_bfloat16_agree():
    net = make(GROWN, **ROUTES)
    x, cond = draw((3, 4, 8, 6)), told()
    want = net(x, TIME, cond)
    others = Cond(draw((2, 5), 7), draw((2, 2, 6), 8), None, draw((2, 2, 8, 6), 9))
    mixed = net(torch.cat((x[:1], draw((2, 4, 8, 6), 9))), TIME[[0, 2, 1]], Cond.cat([cond.rows(0, 1), others]))
    assert (mixed[0] - want[0]).abs().max() <= 1e-6 * want.std()
    assert (mixed[1:] - want[1:]).abs().max() > 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x, TIME, cond)
    assert half.dtype == torch.float32
    assert (half - want).square().mean().sqrt() <= 3e-2 * want.std()
    net = placed(net, "cpu").to(memory_format=torch.channels_last)
    got = net(x.to(memory_format=torch.channels_last), TIME, cond)
    assert (got - want).abs().max() <= 1e-5 * want.std()


@pytest.mark.parametrize("config", [CONFIG, GROWN])
def test_it_learns(config):
    """From the zero start, a few steps on one batch: the gates open and the loss falls."""
    torch.manual_seed(0)
    net = DiT(config, channels_in=4, channels_out=4, **ROUTES)
    x, cond, target = draw((3, 4, 8, 6)), told(), draw((3, 4, 8, 6), 5)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        loss = (net(x, TIME, cond) - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.3 * target.square().mean()


def test_unresolved_and_contradictory_configurations_are_refused():
    def built(**changes):
        return DiT(DiTConfig(**changes), channels_in=1, channels_out=1)

    with pytest.raises(ConfigError, match="patch of the DiT is not known yet"):
        built()
    with pytest.raises(ConfigError, match="width is 50, which 4 does not divide"):
        built(patch=1, width=50, heads=1)
    with pytest.raises(ConfigError, match="heads is 5, which does not divide 64 channels; possible: 1, 2, 4, 8"):
        built(patch=1, width=64, heads=5)
