"""What the backbones share, and the two of them as a recipe names them."""

import pytest
import torch
import torch.nn.functional as F

from moyai.batch import Cond
from moyai.build.prior import build_net
from moyai.conditioning.conditioner import Conditioner
from moyai.errors import ConfigError
from moyai.nets.backbone import embedded, heads_for, joined, mlp
from moyai.nets.dit import DiT
from moyai.nets.layers import timestep_embedding
from moyai.nets.unet import UNet
from moyai.recipe import reading

BASE = {
    "name": "backbones",
    "data": {"kind": "folder", "root": "pictures", "resolution": 16},
    "first_stage": {"net": {"factor": 2}},
}
UNET = {"width": 16, "multipliers": [1, 2], "attention": [False, True], "groups": 4, "head_width": 8}
DIT = {"kind": "dit", "width": 32, "depth": 2, "patch": 2, "head_width": 8}


def recipe(net, **prior):
    return reading.parse({**BASE, "prior": {"net": net, **prior}})


def test_heads_by_number_or_by_width():
    assert heads_for(64, 4, 32) == 4
    assert [heads_for(c, None, 32) for c in (64, 96, 16, 80)] == [2, 3, 1, 2]
    with pytest.raises(ConfigError, match="heads is 3, which does not divide 64 channels; possible: 1, 2, 4, 8"):
        heads_for(64, 3, 32)


@torch.no_grad()
def test_time_and_vector_are_added_in_float32():
    torch.manual_seed(0)
    net, project = mlp(8, 16), torch.nn.Linear(3, 16)
    time, vector = torch.tensor([0.0, 999.0]), torch.randn(2, 3)
    want = F.silu(net(timestep_embedding(time, 8)) + project(vector))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = embedded(time, vector, width=8, dtype=torch.float32, net=net, project=project)
    assert torch.equal(got, want)
    alone = embedded(time, None, width=8, dtype=torch.float32, net=net, project=project)
    assert torch.equal(alone, F.silu(net(timestep_embedding(time, 8))))
    assert torch.equal(alone, embedded(time, vector, width=8, dtype=torch.float32, net=net, project=None))


def test_concatenated_channels_are_counted():
    x, planes = torch.ones(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)
    assert torch.equal(joined(x, planes, channels=3, dtype=torch.float64), torch.cat((x, planes), 1).double())
    with pytest.raises(ValueError, match="2 channels, concatenated ones included; the network takes 3"):
        joined(x, None, channels=3, dtype=torch.float32)


@pytest.mark.parametrize(
    ("net", "kind", "first"),
    [(UNET, UNet, (16, 6, 3, 3)), ({**UNET, "maps": "spade"}, UNet, (16, 4, 3, 3)), (DIT, DiT, (32, 6, 2, 2))],
)
def test_a_recipes_network_is_built_with_every_route(net, kind, first):
    told = Conditioner({})
    told.vector_width, told.context_width, told.concat_channels = 5, 6, 2
    made = build_net(recipe(net), told, (4, 8, 8))
    assert isinstance(made, kind)
    assert next(p for n, p in made.named_parameters() if p.ndim == 4).shape == first
    cond = Cond(torch.ones(2, 5), torch.ones(2, 3, 6), None, torch.ones(2, 2, 8, 8))
    assert made(torch.ones(2, 4, 8, 8), torch.tensor([1.0, 2.0]), cond).shape == (2, 4, 8, 8)
    again = build_net(recipe(net), told, (4, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("net", "line"),
    [
        (
            {**DIT, "patch": 3},
            "prior.net.patch is 3, which does not divide the latents' 8 x 8; possible: a divisor of 8",
        ),
        ({**DIT, "width": 30}, "prior.net.width is 30; it must be a multiple of 4"),
        ({**DIT, "heads": 3}, "prior.net.heads is 3, which does not divide prior.net.width 32"),
        ({**UNET, "heads": 3}, "prior.net.heads is 3, which does not divide a level's 16 channels"),
        ({**UNET, "depth": [1, 2, 3]}, "prior.net.multipliers has 2 values and prior.net.depth 3"),
        ({**UNET, "attention": [True]}, "prior.net.multipliers has 2 values and prior.net.attention 1"),
        ({**UNET, "patch": 2}, 'prior.net.patch is not a key of kind "unet", only of "dit"'),
        ({**UNET, "kind": "vit"}, 'prior.net.kind is "vit"; possible: unet, dit'),
    ],
)
def test_what_does_not_go_together_is_refused(net, line):
    with pytest.raises(ConfigError) as caught:
        recipe(net)
    assert line in str(caught.value)


def test_plain_self_attention_cannot_attend_to_a_condition():
    plain = {**UNET, "attention_kind": "self"}
    for conditions in ({"class": {}}, {"class": {"route": "context"}}, {"caption": {"kind": "text"}}):
        with pytest.raises(ConfigError, match="is attended to, but prior"):
            recipe(plain, conditions=conditions)
    nowhere = {**UNET, "attention": [False, False], "middle_attention": False}
    with pytest.raises(ConfigError, match=r"prior\.conditions\.caption is attended to, but .*attention is nowhere"):
        recipe(nowhere, conditions={"caption": {"kind": "text"}})
    assert recipe({**nowhere, "middle_attention": True}, conditions={"caption": {"kind": "text"}})
    assert recipe(plain, conditions={"class": {"route": "vector"}, "map": {}}).prior.net.attention_kind == "self"
