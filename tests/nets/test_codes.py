"""The networks over codes: what each logit sees, drawing against the full pass, and what they are told."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moyai.batch import Cond
from moyai.errors import ConfigError
from moyai.nets.causal import CodeTransformer
from moyai.nets.config import CodeTransformerConfig, PixelCNNConfig
from moyai.nets.pixelcnn import PixelCNN

SHAPE = (5, 4)
CODES = 7
ROUTES: dict[str, dict[str, int]] = {
    "nothing": {},
    "vector": {"vector_width": 6},
    "concat": {"concat_channels": 2},
    "context": {"context_width": 6},
    "all": {"vector_width": 6, "concat_channels": 2, "context_width": 6},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(make: Callable[[], torch.nn.Module]) -> Any:
    """What `make` makes, in float64 with weights far from where they begin, those that begin at zero too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
    for i, parameter in enumerate(net.parameters()):
        parameter.data = parameter.data.double() + 0.2 * normal(*parameter.shape, seed=i).double()
    return net.double().eval()


def pixelcnn(*, layers: int = 3, kernel: int = 3, shape: tuple[int, int] = SHAPE, **routes: int) -> PixelCNN:
    config = PixelCNNConfig(width=8, layers=layers, kernel=kernel)  # type: ignore[arg-type]
    return shaken(lambda: PixelCNN(config, CODES, shape, **routes))


def transformer(*, positions: str = "rope", shape: tuple[int, int] = SHAPE, **routes: int) -> CodeTransformer:
    config = CodeTransformerConfig(width=16, depth=2, heads=2, positions=positions)  # type: ignore[arg-type]
    return shaken(lambda: CodeTransformer(config, CODES, shape, **routes))


def learned(**given: Any) -> CodeTransformer:
    return transformer(positions="learned", **given)


MAKERS: dict[str, Callable[..., Any]] = {"pixelcnn": pixelcnn, "rope": transformer, "learned": learned}
NO_CONTEXT = ("pixelcnn", "context")


def cond(count: int, routes: dict[str, int], shape: tuple[int, int] = SHAPE, seed: int = 5) -> Cond:
    context = normal(count, 3, routes["context_width"], seed=seed).double() if "context_width" in routes else None
    return Cond(
        vector=normal(count, routes["vector_width"], seed=seed + 1).double() if "vector_width" in routes else None,
        context=context,
        mask=None if context is None else torch.tensor([True, True, False]).expand(count, 3),
        concat=normal(count, 2, *shape, seed=seed + 2).double() if "concat_channels" in routes else None,
    )


def codes(count: int, shape: tuple[int, int] = SHAPE) -> Tensor:
    return torch.randint(CODES, (count, *shape), generator=torch.Generator().manual_seed(3))


def seen(net: Any, i: int, j: int) -> Tensor:
    """Which places' embeddings the logits at (i, j) have a gradient of: (h, w) bool."""
    held: list[Tensor] = []
    handle = net.embedding.register_forward_hook(lambda _m, _i, out: held.append(out) or out.retain_grad())
    logits = net(codes(1, net.shape))
    handle.remove()
    (logits[0, :, i, j] * normal(CODES, seed=9).double()).sum().backward()
    gradient = held[0].grad
    assert gradient is not None
    return (gradient[0] != 0).any(-1)


def earlier(i: int, j: int, shape: tuple[int, int]) -> Tensor:
    flat = torch.arange(shape[0] * shape[1]) < i * shape[1] + j
    return flat.unflatten(0, shape)


@pytest.mark.parametrize("name", MAKERS)
def test_a_logit_sees_every_earlier_code_and_no_other(name: str) -> None:
    net = MAKERS[name]() if name != "pixelcnn" else pixelcnn(layers=4)  # 4 layers reach over 5 rows and 4 columns
    for i in range(SHAPE[0]):
        for j in range(SHAPE[1]):
            assert torch.equal(seen(net, i, j), earlier(i, j, SHAPE)), (i, j)


@pytest.mark.parametrize(("layers", "kernel"), [(1, 3), (2, 3), (1, 5), (2, 5), (1, 7)])
def test_the_field_of_a_shallow_pixelcnn_has_no_blind_spot(layers: int, kernel: int) -> None:
    shape = (9, 11)
    net, reach = pixelcnn(layers=layers, kernel=kernel, shape=shape), layers * (kernel // 2)
    row, column = (torch.arange(n) for n in shape)
    for i, j in [(8, 5), (4, 0), (5, 10), (0, 7), (0, 0)]:
        above = ((row < i) & (row >= i - 1 - reach))[:, None] & ((column - j).abs() <= reach)
        beside = (row == i)[:, None] & ((column < j) & (column >= j - 1 - reach))
        assert torch.equal(seen(net, i, j), above | beside), (i, j)


@pytest.mark.parametrize("routes", ROUTES)
@pytest.mark.parametrize("name", MAKERS)
def test_drawing_code_by_code_is_the_full_pass(name: str, routes: str) -> None:
    given = {k: v for k, v in ROUTES[routes].items() if name != "pixelcnn" or k != "context_width"}
    net, told, known = MAKERS[name](**given), cond(3, given), codes(3)
    with torch.no_grad():
        full = net(known, told)
        walk, flat = net.walk(3, told), known.flatten(1)
        steps = [walk(None if t == 0 else flat[:, t - 1]) for t in range(flat.shape[1])]
    drawn = torch.stack(steps, dim=2).unflatten(2, SHAPE)
    assert full.shape == drawn.shape == (3, CODES, *SHAPE)
    assert float(full.std()) > 0.1
    torch.testing.assert_close(drawn, full, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "route"),
    [(name, route) for name in MAKERS for route in ("vector", "context", "concat") if (name, route) != NO_CONTEXT],
)
def test_zeroing_a_routes_parameters_gives_the_net_without_it_bit_for_bit(name: str, route: str) -> None:
    given = {k: v for k, v in ROUTES["all"].items() if name != "pixelcnn" or k != "context_width"}
    width = {"vector": "vector_width", "context": "context_width", "concat": "concat_channels"}[route]
    parts = {"vector": r"(^|\.)told\.", "context": r"^blocks\.\d+\.(cross|norm2)\.", "concat": r"^guide\."}
    net, less = MAKERS[name](**given), MAKERS[name](**{k: v for k, v in given.items() if k != width})
    kept = {}
    for key, parameter in net.named_parameters():
        if re.search(parts[route], key):
            parameter.data.zero_()
        else:
            kept[key] = parameter.data
    less.load_state_dict(kept)
    told = cond(2, given)
    left = {r: t for r, t in told.routes().items() if r != route and (route != "context" or r != "mask")}
    with torch.no_grad():
        assert torch.equal(net(codes(2), told), less(codes(2), Cond(**left)))
        told_at_all = MAKERS[name](**given)(codes(2), told)
    assert not torch.equal(net(codes(2), told), told_at_all)


@pytest.mark.parametrize("name", MAKERS)
def test_every_route_reaches_every_logit(name: str) -> None:
    given = {k: v for k, v in ROUTES["all"].items() if name != "pixelcnn" or k != "context_width"}
    net, known = MAKERS[name](**given), codes(1)
    told = cond(1, given)
    for route in set(told.routes()) - {"mask"}:
        other = Cond(**{**told.routes(), route: told.routes()[route] + 1})
        with torch.no_grad():
            moved = (net(known, other) - net(known, told)).abs().sum(1)
        assert float(moved.min()) > 1e-6, route
    # The last place's map is told to every earlier place in reach, not to later codes alone.
    if told.concat is not None:
        concat = told.concat.clone()
        concat[..., 2, 2] += 1
        with torch.no_grad():
            moved = (net(known, Cond(**{**told.routes(), "concat": concat})) - net(known, told)).abs().sum(1)[0]
        assert float(moved[0, 0]) > 1e-9
        assert float(moved[4, 3]) > 1e-9


def test_what_is_masked_in_the_context_does_not_count() -> None:
    net, known = transformer(context_width=6), codes(2)
    told = cond(2, {"context_width": 6})
    assert told.context is not None
    changed = told.context.clone()
    changed[:, 2] += 100
    with torch.no_grad():
        assert torch.equal(net(known, told), net(known, Cond(context=changed, mask=told.mask)))


@pytest.mark.parametrize("name", MAKERS)
def test_a_fresh_network_finds_all_codes_alike(name: str) -> None:
    if name == "pixelcnn":
        net: Any = PixelCNN(PixelCNNConfig(width=8, layers=2), CODES, SHAPE)
    else:
        net = CodeTransformer(CodeTransformerConfig(width=8, depth=1, heads=1, positions=name), CODES, SHAPE)
    logits = net(codes(2))
    assert torch.equal(logits, torch.zeros(2, CODES, *SHAPE))
    assert [n for n, p in net.named_parameters() if not bool(p.isfinite().all())] == []


@pytest.mark.parametrize("name", MAKERS)
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    given = {k: v for k, v in ROUTES["all"].items() if name != "pixelcnn" or k != "context_width"}
    net, known = MAKERS[name](**given), codes(16)
    torch.nn.functional.cross_entropy(net(known, cond(16, given)), known).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not bool((p.grad != 0).any())] == []


def test_rope_sees_where_codes_lie_relative_to_the_one_to_come() -> None:
    """Turned queries and keys of equal vectors: the product depends on the difference of the places only."""
    net = CodeTransformer(CodeTransformerConfig(width=16, depth=1, heads=1), CODES, (4, 6))
    turn = net.turn()
    assert turn is not None
    q, k = normal(16), normal(16, seed=1)

    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        pairs = torch.complex(x[:8], x[8:]) * torch.complex(cos, sin)
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    scores = rotated(q, *turn.query) @ rotated(k, *turn.key).T  # (24, 24): place to come, token
    left, above, corner = [], [], []
    for i in range(1, 4):
        for j in range(1, 6):
            t = 6 * i + j
            left.append(scores[t, t])  # token t holds code t - 1
            above.append(scores[t, t - 5])
            corner.append(scores[t, t - 6])
    for same in (left, above, corner):
        torch.testing.assert_close(torch.stack(same), same[0].expand(15), rtol=1e-4, atol=1e-4)
    assert len({round(float(s[0]), 3) for s in (left, above, corner)}) == 3


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="width 20 cannot have 4 heads; possible: a width that 16 divides"):
        CodeTransformer(CodeTransformerConfig(width=20, heads=4), CODES, SHAPE)


@pytest.mark.parametrize("name", MAKERS)
def test_bfloat16_is_near_float32(name: str) -> None:
    net, known = MAKERS[name]().float(), codes(2)
    with torch.no_grad():
        exact = net(known)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = net(known)
    assert float((near.float() - exact).abs().max()) < 0.1 * float(exact.std()) + 0.1
