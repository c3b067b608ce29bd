"""The estimate of the bound: equal to the whole sum where every level is looked at, unbiased where few are."""

import math

import pytest
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.bound import discretized, gaussian, terms
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import weighting
from moyai.diffusion.noise import Table, TableDensity, column
from moyai.diffusion.parameterization import Eps, Flow
from moyai.errors import ConfigError, RequestError
from moyai.priors.diffusion import Bound, DiffusionPrior
from moyai.priors.likelihood import cuts, likelihood
from moyai.randomness import Draw


class Net(nn.Module):
    """A fair guess of the noise of values of variance one, which a condition makes worse."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.learned = learned

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        shift = 0.0 if cond.vector is None else cond.vector.reshape(-1, 1, 1, 1)
        eps = x * column(time / 300, x).clamp(max=1) + shift
        return torch.cat([eps, torch.sin(x)], 1) if self.learned else eps


def made(table: Table, *, learned: bool = False, pixels: bool = False) -> DiffusionPrior:
    denoiser = Denoiser(Net(learned), Eps(table), learned_variance=learned)
    bound = Bound(discretized if pixels else gaussian)
    return DiffusionPrior(denoiser, TableDensity(table), weighting("plain"), bound)


def pictures(count: int) -> Tensor:
    levels = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return levels / 127.5 - 1


@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_with_every_level_looked_at_it_is_the_whole_sum(learned: bool, pixels: bool) -> None:
    table = Table.linear(1e-3, 0.3, 9)
    prior, z, draw = made(table, learned=learned, pixels=pixels), pictures(5), Draw(0, 0, 5)
    seen: list[tuple[int, int]] = []
    found = likelihood(prior, z, Cond(), draw, strata=100, batch=2, progress=lambda i, n: seen.append((i, n)))
    assert seen == [(i + 1, 27) for i in range(27)]
    options = {"decoder": prior.bound.decoder, "variance": "learned" if learned else "large"}
    all_terms = terms(prior.denoiser, z, Cond(), lambda t: draw.normal(f"noise {t}", z.shape[1:]), **options)
    whole = sum(term.nats.double() for term in all_terms)
    unit = math.log(2) if pixels else 1.0
    assert found.value == pytest.approx(float(whole.mean()) / unit, rel=1e-6)
    assert found.error == pytest.approx(float(whole.std()) / math.sqrt(5) / unit, rel=1e-5)
    assert (found.unit, found.pictures) == ("bits/dim" if pixels else "nats/value", 5)


def test_few_levels_estimate_the_whole_sum() -> None:
    table = Table.linear(steps=100, end=0.2)
    prior, z = made(table, pixels=True), pictures(48)
    noise = Draw(0, 1, 48)
    options = {"decoder": discretized, "variance": "large"}
    all_terms = terms(prior.denoiser, z, Cond(), lambda t: noise.normal(f"whole {t}", z.shape[1:]), **options)
    whole = sum(float(term.nats.mean()) for term in all_terms) / math.log(2)
    found = [likelihood(prior, z, Cond(), Draw(1, step, 48), strata=6) for step in range(12)]
    mean = sum(f.value for f in found) / 12
    spread = math.sqrt(sum((f.value - mean) ** 2 for f in found) / 11)
    assert abs(mean - whole) < 4 * spread / math.sqrt(12) + 0.005 * whole
    assert spread < 1.5 * sum(f.error for f in found) / 12  # the standard error is no flattery
    assert found[0].value != found[1].value
    assert likelihood(prior, z, Cond(), Draw(1, 0, 48), strata=6) == found[0]


def test_each_picture_is_told_its_own_condition() -> None:
    prior, z = made(Table.linear(1e-3, 0.3, 9)), pictures(6)
    told = Cond(vector=torch.tensor([[0.0], [0.0], [0.0], [3.0], [3.0], [3.0]]))
    both = likelihood(prior, z, told, Draw(0, 0, 6), batch=4).value
    none, all_ = (likelihood(prior, z, Cond(vector=torch.full((6, 1), w)), Draw(0, 0, 6)).value for w in (0.0, 3.0))
    assert none < both < all_


@pytest.mark.parametrize(("levels", "strata"), [(1, 16), (2, 16), (9, 3), (1000, 16), (1000, 1), (50, 500)])
def test_the_strata_cover_every_level_once(levels: int, strata: int) -> None:
    edges = cuts(levels, strata)
    assert edges[:2] == [0, 1]
    assert edges[-1] == levels
    assert edges == sorted(set(edges))
    assert len(edges) <= strata + 2


def test_what_is_refused() -> None:
    table = Table.linear(steps=5)
    with pytest.raises(RequestError, match="of 8-bit pixels, and these have 16 bits"):
        likelihood(made(table, pixels=True), pictures(2), Cond(), Draw(0, 0, 2), bits=16)
    assert likelihood(made(table), pictures(2), Cond(), Draw(0, 0, 2), bits=16).unit == "nats/value"
    with pytest.raises(RequestError, match="1 picture is too few"):
        likelihood(made(table), pictures(1), Cond(), Draw(0, 0, 1))
    flow = DiffusionPrior(Denoiser(Net(False), Flow()), TableDensity(table), weighting("plain"))
    with pytest.raises(ConfigError, match="Flow has no table"):
        likelihood(flow, pictures(2), Cond(), Draw(0, 0, 2))
