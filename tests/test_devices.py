"""Nothing is made on the CPU where the work is elsewhere: what computes runs on torch's device without memory.

On it, as on an accelerator, an operation over tensors of two devices raises. It holds no values, so that this is about
places and shapes alone, and it knows no autocast, which is left out.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.conditioning import config as told
from moyai.conditioning.conditioner import Conditioner
from moyai.conditioning.embeddings import ClassEmbedding, NumberEmbedding
from moyai.conditioning.spatial import LowResolution, Masked, RegionMap
from moyai.conditioning.text import TextEmbedding, train_tokenizer
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.guidance import guided
from moyai.diffusion.loss import weighting
from moyai.diffusion.noise import LogNormal, Table, TableDensity
from moyai.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, Tabled, V
from moyai.nets.causal import CodeTransformer
from moyai.nets.config import CodeTransformerConfig, DiTConfig, PixelCNNConfig, UNetConfig
from moyai.nets.dit import DiT
from moyai.nets.pixelcnn import PixelCNN
from moyai.nets.unet import UNet
from moyai.priors.codes import CodeLevel, CodePrior, generate, uniforms
from moyai.priors.diffusion import DiffusionPrior
from moyai.priors.likelihood import likelihood

META = torch.device("meta")
B, SIZE = 2, (8, 6)
WIDTHS = {"vector_width": 5, "context_width": 7, "concat_channels": 3}
UNET = UNetConfig(width=8, multipliers=(1, 2), attention=(True, True), head_width=8, groups=4)
TABLE = Table.cosine(steps=8)


class Somewhere:
    """A draw whose values are on the device without memory."""

    def __len__(self) -> int:
        return B

    def rows(self, start: int, stop: int) -> "Somewhere":
        return self

    def uniform(self, purpose: str, shape: tuple[int, ...] = ()) -> Tensor:
        return torch.zeros(B, *shape, device=META)

    normal = stratified = uniform


@pytest.fixture(autouse=True)
def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **named: nullcontext())


def cond() -> Cond:
    mask = torch.ones(B, 4, dtype=torch.bool)
    return Cond(torch.zeros(B, 5), torch.zeros(B, 4, 7), mask, torch.zeros(B, 3, *SIZE)).to(META)


def test_the_device_without_memory_does_not_mix_with_others() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=META) + torch.zeros(2)


@pytest.mark.parametrize("par", [Eps(TABLE), X0(TABLE), V(TABLE.zero_terminal()), EDM(), Flow()])
@pytest.mark.parametrize(
    "net",
    [
        lambda channels: UNet(UNET, channels_in=4, channels_out=channels, **WIDTHS),
        lambda channels: DiT(DiTConfig(patch=2, width=8, depth=2), channels_in=4, channels_out=channels, **WIDTHS),
    ],
)
def test_a_diffusion_prior_stays_where_it_is(net: Any, par: Parameterization) -> None:
    learned = isinstance(par, Tabled)
    denoiser = Denoiser(net(8 if learned else 4).to(META), par, learned_variance=learned)
    density = TableDensity(TABLE) if learned else LogNormal(0.3, 1.0)
    prior, z = DiffusionPrior(denoiser, density, weighting("min-snr")), torch.zeros(B, 4, *SIZE, device=META)
    draw: Any = Somewhere()
    assert prior.loss(z, cond(), draw).device == prior.loss_at(z, cond(), 0.5, draw).device == META
    sigma = torch.ones(B, device=META)
    assert guided(denoiser, cond(), cond(), 3.0, rescale=0.5)(z, sigma).device == META
    if learned:
        assert denoiser.variance(z, sigma, sigma / 2, cond()).device == META
        with pytest.raises(RuntimeError, match="meta"):  # there is no number to tell in the end
            likelihood(prior, z, cond(), draw, strata=2)


def test_a_prior_over_codes_stays_where_it_is() -> None:
    pixelcnn = PixelCNN(PixelCNNConfig(width=8, layers=2), 9, (4, 3), vector_width=5, concat_channels=3)
    with_maps = {**WIDTHS, "concat_channels": 3 + 4}
    for positions in ("rope", "learned"):
        over = CodeTransformer(
            CodeTransformerConfig(width=8, depth=2, heads=2, positions=positions), 7, SIZE, **with_maps
        )
        prior = CodePrior([CodeLevel(pixelcnn, (), 0), CodeLevel(over, [9], 4)]).to(META)
        maps = [torch.zeros(B, *shape, dtype=torch.int64, device=META) for shape in prior.shapes()]
        draw: Any = Somewhere()
        assert prior.loss(maps, cond(), draw).device == META
        cut = {"temperature": 0.9, "top_k": 3, "top_p": 0.9}
        *_, last = generate(prior, [cond(), cond()], [2.0], noise=uniforms([1, 2], prior.shapes()), **cut)
        assert {m.device for m in last.codes} == {META}


def test_conditions_stay_where_they_are() -> None:
    picture, width = (3, *SIZE), {"width": 8}
    made: dict[str, nn.Module] = {
        "class": ClassEmbedding(told.ClassCondition(**width), 3),
        "position": NumberEmbedding(told.PositionCondition(**width)),
        "age": NumberEmbedding(told.ScalarCondition(field="age", route="both", **width), 3.0, 9.0),
        "caption": TextEmbedding(told.TextCondition(heads=2, length=8, **width), train_tokenizer(["a b"] * 3, 300)),
        "mask": RegionMap(told.MapCondition(), 20, (4, 3)),
        "small": LowResolution(told.LowResolutionCondition(factor=2, dropout=0.1), picture, (4, 3)),
        "holes": Masked(told.MaskedCondition(dropout=0.1), picture, 2),
    }
    conditioner, draw = Conditioner(made).to(META), Somewhere()
    values = {name: each.expand(B, *each.shape[1:]) for name, each in conditioner.blanks().items()}
    stored = torch.zeros(B, *picture, dtype=torch.uint8, device=META)
    dropped = conditioner.dropped({**values, "low_resolution": stored, "masked": stored}, draw)  # type: ignore[arg-type]
    for found in (conditioner(values, B), conditioner.null(B), dropped):
        assert {route: t.device for route, t in found.routes().items()} == dict.fromkeys(
            ("vector", "context", "mask", "concat"), META
        )
