"""The prior over codes: its loss is the exact code length, it learns a known source, and what is drawn has its
probabilities."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from moyai.batch import Cond
from moyai.build.conditions import build_conditioner
from moyai.build.prior import build_prior
from moyai.errors import ConfigError, RequestError
from moyai.nets.causal import CodeTransformer
from moyai.nets.config import CodeTransformerConfig, PixelCNNConfig
from moyai.nets.pixelcnn import PixelCNN
from moyai.priors.codes import CodeLevel, CodePrior, Cut, generate, uniforms
from moyai.randomness import Draw
from moyai.recipe.resolve import DataFacts
from nets.test_codes import normal, shaken

KINDS = ["pixelcnn", "rope", "learned"]


def net(kind: str, codes: int, shape: tuple[int, int], **routes: Any) -> Any:
    if kind == "pixelcnn":
        return PixelCNN(PixelCNNConfig(width=16, layers=2, kernel=3), codes, shape, **routes)
    config = CodeTransformerConfig(width=24, depth=2, heads=2, positions=kind)  # type: ignore[arg-type]
    return CodeTransformer(config, codes, shape, **routes)


def prior(kind: str, codes: int = 2, shape: tuple[int, int] = (2, 2), **routes: Any) -> CodePrior:
    return shaken(lambda: CodePrior([CodeLevel(net(kind, codes, shape, **routes))]))


def two_levels(kind: str) -> CodePrior:
    """A map of 1 x 2 codes of three, and one of 2 x 3 codes of two that is told it."""

    def make() -> CodePrior:
        fine = net(kind, 2, (2, 3), concat_channels=4)
        return CodePrior([CodeLevel(net(kind, 3, (1, 2))), CodeLevel(fine, [3], 4)])

    return shaken(make)


def every_map(codes: int, shape: tuple[int, int]) -> Tensor:
    flat = itertools.product(range(codes), repeat=shape[0] * shape[1])
    return torch.tensor(list(flat)).unflatten(1, shape)


def probabilities(made: CodePrior, maps: Tensor, cond: Cond | None = None) -> Tensor:
    """Of every map, by the loss."""
    bits = made.loss([maps], cond or Cond(), Draw(0, 0, len(maps))) * made.places()
    return (-bits.detach() * math.log(2)).exp()


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_probabilities_of_all_maps_sum_to_one(kind: str) -> None:
    p = probabilities(prior(kind, 3, (2, 3)), every_map(3, (2, 3)))
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    assert float(p.max() / p.min()) > 5
    made = two_levels(kind)
    pairs = list(itertools.product(every_map(3, (1, 2)), every_map(2, (2, 3))))
    coarse, fine = (torch.stack(side) for side in zip(*pairs, strict=True))
    bits = made.bits([coarse, fine], Cond())
    total = torch.stack(bits).sum(0)
    torch.testing.assert_close(made.loss([coarse, fine], Cond(), Draw(0, 0, len(coarse))), total / 8)
    assert float((-total.detach() * math.log(2)).exp().sum()) == pytest.approx(1, abs=1e-9)
    given = (-bits[1] * math.log(2)).exp().unflatten(0, (9, 64))  # of a fine map, by coarse map
    torch.testing.assert_close(given.sum(1), torch.ones(9).double())
    assert float(given.std(0).max()) > 1e-3  # which are told, all of them
    assert torch.equal(bits[0].unflatten(0, (9, 64))[:, 0], bits[0].unflatten(0, (9, 64))[:, 63])


def test_a_fresh_prior_needs_the_logarithm_of_the_number_of_codes() -> None:
    for kind in KINDS:
        made = CodePrior([CodeLevel(net(kind, 5, (2, 3)))])
        loss = made.loss([every_map(5, (2, 3))[:7]], Cond(), Draw(0, 0, 7))
        torch.testing.assert_close(loss, torch.full((7,), math.log2(5)))


# --- a source of known entropy ---------------------------------------------------------------------------------------


class Mesh:
    """A causal Markov mesh: P(code | left, above) by a table, with one more value for "outside"."""

    def __init__(self, codes: int, side: int) -> None:
        rng = np.random.default_rng(0)
        self.table = rng.dirichlet(np.full(codes, 0.4), (codes + 1, codes + 1)) * 0.9 + 0.1 / codes
        self.maps = every_map(codes, (side, side))
        around = np.full((len(self.maps), side + 1, side + 1), codes)
        around[:, 1:, 1:] = self.maps.numpy()
        factors = self.table[around[:, 1:, :-1], around[:, :-1, 1:], around[:, 1:, 1:]]
        self.p = torch.from_numpy(factors.prod((1, 2)))
        self.places = side * side

    def entropy(self) -> float:
        """Bits per code."""
        return float(-(self.p * self.p.log2()).sum()) / self.places

    def sample(self, count: int, step: int) -> Tensor:
        rng = np.random.default_rng(step)
        return self.maps[torch.from_numpy(rng.choice(len(self.maps), count, p=self.p.numpy()))]

    def marginal(self) -> float:
        """What a model that knows each place's own frequencies needs, bits per code."""
        codes = int(self.maps.max()) + 1
        shares = torch.stack([((self.maps == k) * self.p[:, None, None]).sum(0) for k in range(codes)])
        return float(-(shares * shares.log2()).sum()) / self.places


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_reaches_the_entropy_of_a_markov_mesh(kind: str) -> None:
    mesh = Mesh(3, 3)
    assert float(mesh.p.sum()) == pytest.approx(1)
    assert mesh.marginal() > mesh.entropy() + 0.15  # there is something to learn beyond how frequent codes are
    torch.manual_seed(0)
    made = CodePrior([CodeLevel(net(kind, 3, (3, 3)))])
    steps, batch = 300, 128
    optimizer = torch.optim.Adam(made.parameters(), 1e-2, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = made.loss([mesh.sample(batch, step)], Cond(), Draw(0, step, batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    with torch.no_grad():
        needed = float((made.loss([mesh.maps], Cond(), Draw(0, 0, 1)).double() * mesh.p).sum())
    assert mesh.entropy() <= needed + 1e-6
    assert needed < mesh.entropy() + 0.01


# --- drawing ---------------------------------------------------------------------------------------------------------


def drawn(made: CodePrior, conds: Sequence[Cond], scales: Sequence[float], seeds: Sequence[int], **cut: Any) -> Any:
    steps = list(generate(made, conds, scales, noise=uniforms(seeds, made.shapes()), **cut))
    assert [s.drawn for s in steps] == list(range(1, made.places() + 1))
    assert {s.total for s in steps} == {made.places()}
    return steps[-1].codes


def brute(made: CodePrior, maps: Tensor, change: Any) -> Tensor:
    """Of every map, the product of changed probabilities: `change` takes and gives (codes,) arrays."""
    with torch.no_grad():
        each = made.all_levels()[0].net(maps).softmax(1).numpy()
    out = []
    for p, codes in zip(each, maps.numpy(), strict=True):
        factors = [change(p[:, i, j])[codes[i, j]] for i, j in np.ndindex(codes.shape)]
        out.append(math.prod(factors))
    return torch.tensor(out)


def kept(p: np.ndarray, which: Sequence[int]) -> np.ndarray:
    q = np.zeros_like(p)
    q[list(which)] = p[list(which)]
    return q / q.sum()


def nucleus(p: np.ndarray, share: float) -> np.ndarray:
    order = sorted(range(len(p)), key=lambda c: -p[c])
    size = next(n for n in range(1, len(p) + 1) if n == len(p) or p[order[:n]].sum() >= share)
    return kept(p, order[:size])


@pytest.mark.parametrize(
    ("cut", "change"),
    [
        ({}, lambda p: p),
        ({"temperature": 0.5}, lambda p: p**2 / (p**2).sum()),
        ({"top_k": 2}, lambda p: kept(p, np.argsort(-p)[:2])),
        ({"top_p": 0.6}, lambda p: nucleus(p, 0.6)),
        ({"temperature": 2.0, "top_k": 2, "top_p": 0.55}, lambda p: nucleus(kept(p**0.5, np.argsort(-p)[:2]), 0.55)),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "all"],
)
@pytest.mark.parametrize("kind", ["pixelcnn", "rope"])
def test_what_is_drawn_has_the_probabilities_of_the_loss(kind: str, cut: dict[str, Any], change: Any) -> None:
    made, maps, count = prior(kind, 3, (2, 2)), every_map(3, (2, 2)), 6000
    expected = brute(made, maps, change)
    assert float(expected.sum()) == pytest.approx(1)
    if not cut:
        torch.testing.assert_close(expected, probabilities(made, maps))
    (codes,) = drawn(made, [Cond()], [], range(count), **cut)
    number = (codes.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    found = torch.bincount(number, minlength=81).double()
    assert float(found[expected == 0].sum()) == 0
    often = count * expected >= 5  # and all rarer ones together
    counts, wanted = (torch.cat((x[often], x[~often].sum()[None])) for x in (found, count * expected))
    chi, freedom = ((counts - wanted) ** 2 / wanted.clamp_min(1e-9)).sum(), int(often.sum())
    assert abs(float(chi) - freedom) < 5 * math.sqrt(2 * freedom) + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_coldest_drawing_takes_the_likeliest_code_each_time(kind: str) -> None:
    made = prior(kind, 5, (3, 4))
    coldest = drawn(made, [Cond()], [], range(4), temperature=0.0)[0]
    for cut in ({"top_k": 1}, {"temperature": 1e-9}, {"top_p": 1e-9}):
        assert torch.equal(drawn(made, [Cond()], [], range(4), **cut)[0], coldest)
    likeliest = made.all_levels()[0].net(coldest).argmax(1)
    assert torch.equal(likeliest, coldest)
    assert not torch.equal(drawn(made, [Cond()], [], range(4))[0], coldest)


def test_cuts_are_exact() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.1, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64).log()
    assert Cut(top_p=0.3999).probabilities(logits)[0].tolist() == [0, 1, 0, 0]  # of two alike, the lower number
    assert Cut(top_p=0.4001).probabilities(logits)[0].tolist() == pytest.approx([0, 0.5, 0, 0.5])
    assert Cut(top_k=3).probabilities(logits)[0].tolist() == pytest.approx([1 / 9, 4 / 9, 0, 4 / 9])
    assert Cut(top_k=2).probabilities(logits)[1].tolist() == pytest.approx([0.5, 0.5, 0, 0])  # the lower numbers
    assert Cut(top_k=9).probabilities(logits).tolist() == Cut().probabilities(logits).tolist()
    tail = torch.tensor([[0.0, -60.0]])  # too unlikely to show in a sum, and yet not cut off
    assert float(Cut(top_p=1.0).probabilities(tail)[0, 1]) > 0
    spread = torch.tensor([[0.0, -1e4, 1e4]])
    for temperature in (1e-30, 1e-9, 1.0, 100.0):
        p = Cut(temperature=temperature).probabilities(spread)
        assert bool(p.isfinite().all())
        assert float(p.sum()) == pytest.approx(1)


def told(count: int, seed: int) -> Cond:
    return Cond(vector=normal(1, 6, seed=seed).double().expand(count, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_mixes_log_probabilities(kind: str) -> None:
    made, maps = prior(kind, 3, (1, 1), vector_width=6), every_map(3, (1, 1))
    conds = [told(3, s) for s in (0, 1, 2)]
    p0, p1, p2 = (probabilities(made, maps, c) for c in conds)
    count = 4000
    wide = [told(count, s) for s in (0, 1, 2)]
    for scales in ([2.5], [0.4], [3.0, 1.5]):
        mixed = p0 * (p1 / p0) ** scales[0] * ((p2 / p1) ** scales[1] if len(scales) > 1 else 1)
        expected = mixed / mixed.sum()
        codes = drawn(made, wide[: len(scales) + 1], scales, range(count))[0]
        found = torch.bincount(codes.flatten(), minlength=3) / count
        assert float((found - expected).abs().max()) < 5 * math.sqrt(0.25 / count), scales


@pytest.mark.parametrize("kind", KINDS)
def test_weight_one_is_the_condition_and_weight_zero_the_null(kind: str) -> None:
    made = prior(kind, 5, (3, 3), vector_width=6)
    null, cond, seeds = told(4, 0), told(4, 1), range(4)
    alone = drawn(made, [cond], [], seeds)[0]
    nothing = drawn(made, [null], [], seeds)[0]
    assert not torch.equal(alone, nothing)
    assert torch.equal(drawn(made, [null, cond], [1.0], seeds)[0], alone)
    assert torch.equal(drawn(made, [null, cond], [0.0], seeds)[0], nothing)
    assert torch.equal(drawn(made, [null, cond, cond], [1.0, 7.0], seeds)[0], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_does_not_depend_on_its_neighbours(kind: str) -> None:
    made = two_levels(kind)
    together = drawn(made, [Cond()], [], [5, 6, 7])
    others = drawn(made, [Cond()], [], [90, 6, 91, 5])
    for mine, theirs in zip(together, others, strict=True):
        assert torch.equal(mine[0], theirs[3])
        assert torch.equal(mine[1], theirs[1])
    many = drawn(made, [Cond()], [], range(30))
    assert len({tuple(row.tolist()) for row in many[1].flatten(1)}) > 10


def test_drawing_is_an_iterator_of_what_is_there() -> None:
    made = two_levels("pixelcnn")
    steps = list(generate(made, [Cond()], noise=uniforms([3, 4], made.shapes())))
    last = steps[-1].codes
    assert [tuple(m.shape) for m in last] == [(2, 1, 2), (2, 2, 3)]
    flat = torch.cat([m.flatten(1) for m in last], dim=1)
    for step in steps:  # what was given out is not changed afterwards
        here = torch.cat([m.flatten(1) for m in step.codes], dim=1)
        assert torch.equal(here[:, : step.drawn], flat[:, : step.drawn])
        assert not here[:, step.drawn :].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is out of range; possible: 0 to 100"),
        ({"temperature": math.nan}, "temperature nan is out of range"),
        ({"temperature": 101.0}, "temperature 101.0 is out of range"),
        ({"top_k": 0}, "top_k 0 is out of range; possible: a whole number from 1 on, or none"),
        ({"top_k": 2.5}, "top_k 2.5 is out of range"),
        ({"top_k": True}, "top_k True is out of range"),
        ({"top_p": 0.0}, "top_p 0.0 is out of range; possible: above 0, up to 1"),
        ({"top_p": 1.01}, "top_p 1.01 is out of range"),
        ({"scales": [-1.0]}, "guidance -1.0 is out of range; possible: 0 to 1000"),
        ({"scales": [math.inf]}, "guidance inf is out of range"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(wrong: dict[str, Any], message: str) -> None:
    made = prior("pixelcnn")
    settings = {"scales": [], **wrong}
    conds = [Cond()] * (len(settings["scales"]) + 1)
    with pytest.raises(RequestError, match=message):
        generate(made, conds, noise=uniforms([0], made.shapes()), **settings)


# --- from a recipe ---------------------------------------------------------------------------------------------------

FACTS = DataFacts(channels=1, height=8, width=8, count=30, classes=tiny.CLASSES, fields=("class",))
VQ = {"first_stage.kind": "vq", "first_stage.codebook": {"size": 6}}
CONDITIONS = {"class": {"kind": "class", "width": 8, "dropout": 0.4}}


def from_recipe(kind: str, conditions: Any = CONDITIONS, **changes: Any) -> tuple[CodePrior, Any]:
    nets = {"pixelcnn": {"width": 8, "layers": 2}, "transformer": {"width": 16, "depth": 1}}
    table = {"kind": "codes", "conditions": conditions, "net": {**nets[kind], "kind": kind}, "train": tiny.QUICK}
    recipe = tiny.recipe(Path("x"), {**VQ, "first_stage.net.factor": 2, **changes, "prior": table})
    conditioner = build_conditioner(recipe, FACTS)
    made = build_prior(recipe, conditioner, (4, 4, 4))
    assert isinstance(made, CodePrior)
    return made, conditioner


@pytest.mark.parametrize("kind", ["pixelcnn", "transformer"])
def test_a_recipe_makes_a_prior_that_a_dropped_condition_does_not_reach(kind: str) -> None:
    untrained, told = from_recipe(kind)
    assert untrained.shapes() == [(4, 4)]
    assert untrained.all_levels()[0].codes == 6
    made, conditioner = shaken(lambda: untrained), shaken(lambda: told)
    codes = [torch.randint(6, (3, 4, 4), generator=torch.Generator().manual_seed(0))]
    one, other = ({"class": torch.full((3,), c)} for c in (0, 2))
    keep, drop = ({"class": torch.full((3,), k)} for k in (True, False))
    lost = [made.loss(codes, conditioner(f, 3, drop), Draw(0, 0, 3)) for f in (one, other)]
    assert torch.equal(*lost)
    assert torch.equal(lost[0], made.loss(codes, conditioner.null(3), Draw(0, 0, 3)))
    assert not torch.equal(*(made.loss(codes, conditioner(f, 3, keep), Draw(0, 0, 3)) for f in (one, other)))
    made.loss(codes, conditioner(one, 3), Draw(0, 0, 3)).sum().backward()
    # Attention to a context of one entry has one possible weight: what only shapes the weight cannot matter.
    silent = [n for n, p in made.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert [n for n in silent if "cross.q." not in n and "norm2." not in n] == []


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'prior.kind is "codes", but first_stage.kind is "kl", which has none'):
        tiny.recipe(Path("x"), {"prior.net": {}, "prior": {"kind": "codes"}})
    with pytest.raises(ConfigError, match=r'prior.kind is "codes", but codec.kind is "pixels"'):
        from_recipe("pixelcnn", codec={"kind": "pixels"})
    with pytest.raises(ConfigError, match=r"prior.conditions.class is attended to, which a PixelCNN cannot do"):
        from_recipe("pixelcnn", {"class": {"kind": "class", "route": "context"}})
    grid = {"first_stage.kind": "fsq", "first_stage.grid": {"levels": [256, 256, 2]}}
    with pytest.raises(ConfigError, match=r"131072 codes are too many to have a probability each"):
        tiny.recipe(Path("x"), {**grid, "prior.net": {}, "prior": {"kind": "codes"}})
