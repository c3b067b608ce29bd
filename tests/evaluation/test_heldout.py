"""The likelihood of held-out pictures: what a prior over codes that knows nothing pays, and what has no likelihood."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from moyai.batch import Cond
from moyai.build.conditions import build_conditioner
from moyai.build.diffusion import parameterization
from moyai.build.firststage import build_autoencoder, build_codec
from moyai.build.prior import build_prior
from moyai.checkpoints import models
from moyai.data.images import ImageSet
from moyai.errors import ConfigError, RequestError
from moyai.evaluation import wording
from moyai.evaluation.heldout import rate
from moyai.model import LatentModel
from moyai.nets.config import PixelCNNConfig
from moyai.nets.pixelcnn import PixelCNN
from moyai.priors.codes import CodeLevel, CodePrior
from moyai.recipe.resolve import DataFacts, resolve


def pictures(count: int) -> ImageSet:
    pixels, labels = tiny.shapes(count)
    names = [str(i) for i in range(count)]
    return ImageSet(pixels[:, None], {"class": labels.astype(np.int64)}, tiny.CLASSES, names, ())


class Same(nn.Module):
    """Every code is as likely as given, whatever the others are and whatever is told."""

    def __init__(self, logits: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        self.codes, self.shape = len(logits), shape
        self.register_buffer("logits", logits)

    def forward(self, codes: Tensor, cond: Cond) -> Tensor:
        return self.get_buffer("logits").view(1, -1, 1, 1).expand(len(codes), -1, *self.shape)


@pytest.fixture(scope="module")
def over_codes() -> LatentModel:
    """A model with an untrained first stage of 16 codes on a grid of 4 x 4."""
    facts = DataFacts(channels=1, height=8, width=8, count=60, classes=tiny.CLASSES, fields=("class",))
    changes = {"first_stage.kind": "vq", "first_stage.codebook": {"size": 16}, "sampling": {"batch": 4}}
    recipe = resolve(tiny.recipe(Path("data"), changes), facts)
    codec = build_codec(recipe, facts, build_autoencoder(recipe, facts))
    told = build_conditioner(recipe, facts)
    return LatentModel(codec, told, build_prior(recipe, told, codec.shape()), recipe, facts)


def with_net(model: LatentModel, net: nn.Module) -> LatentModel:
    prior: nn.Module = CodePrior([CodeLevel(net)])
    return replace(model, prior=prior)


def test_a_prior_that_knows_nothing_pays_the_logarithm_of_the_number_of_codes(over_codes: LatentModel) -> None:
    seen: list[tuple[int, int]] = []
    shape = over_codes.codec.shape()[1:]
    model = with_net(over_codes, Same(torch.zeros(16), shape))
    found = rate(model, pictures(10), lambda done, total: seen.append((done, total)))
    assert (found.value, found.error) == pytest.approx((4.0, 0.0), abs=1e-6)
    assert (found.unit, found.pictures) == ("bits/code", 10)
    assert found.per_pixel == pytest.approx(4.0 * 16 / 64)  # 4 x 4 codes for 8 x 8 pixels
    assert "bits/code, 1 bits a pixel, (10 pictures)" in wording.cost({"likelihood": asdict(found)})
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_it_is_the_cross_entropy_of_the_codes_that_the_first_stage_gives(over_codes: LatentModel) -> None:
    """By counting the codes of all pictures; and of a network that is told the class, picture by picture."""
    images, codec = pictures(12), over_codes.codec
    codes = codec.codes(codec.store(images.images(np.arange(12))))[0]
    logits = torch.randn(16, generator=torch.Generator().manual_seed(0))
    frequency = torch.bincount(codes.flatten(), minlength=16) / codes.numel()
    assert (frequency > 0).sum() > 1
    found = rate(with_net(over_codes, Same(logits, codec.shape()[1:])), images)
    assert found.value == pytest.approx(float(-(frequency * logits.log_softmax(0)).sum() / np.log(2)), rel=1e-5)

    net = PixelCNN(
        PixelCNNConfig(width=8, layers=2), 16, codec.shape()[1:], vector_width=over_codes.conditioner.vector_width
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    each = []
    for i in range(12):
        with torch.no_grad():
            cond = over_codes.conditioner({"class": torch.tensor([int(images.fields["class"][i])])}, 1)
            logits = net(codes[i : i + 1], cond).log_softmax(1)
        each.append(float(-logits.gather(1, codes[i : i + 1, None]).mean() / np.log(2)))
    found = rate(with_net(over_codes, net), images)
    assert found.value == pytest.approx(np.mean(each), rel=1e-5)
    assert found.error == pytest.approx(np.std(each, ddof=1) / 12**0.5, rel=1e-3)


def test_at_most_so_many_pictures_evenly(over_codes: LatentModel) -> None:
    model = with_net(over_codes, Same(torch.arange(16.0), over_codes.codec.shape()[1:]))
    images = pictures(30)
    some = images.subset(np.linspace(0, 29, 7).astype(np.int64))
    assert rate(model, images, count=7).value == pytest.approx(rate(model, some).value, rel=1e-6)
    assert rate(model, images, count=7).pictures == 7


def test_what_has_no_likelihood_says_so(finished_run: Path, over_codes: LatentModel) -> None:
    model = models.load(finished_run / "run")
    with pytest.raises(RequestError, match="1 picture is too few"):
        rate(model, pictures(1))
    flow = parameterization(
        tiny.recipe(Path("data"), {"prior.parameterization": {"kind": "flow"}}).prior.parameterization
    )
    model.prior.denoiser.parameterization = flow
    with pytest.raises(ConfigError, match="has no table"):
        rate(model, pictures(4))
