"""Guidance and edits: the identities they are defined by."""

import pytest
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.grids import karras
from moyai.diffusion.guidance import autoguided, clamped, guided, inpainting, interval, nested
from moyai.diffusion.noise import Table, column
from moyai.diffusion.parameterization import Flow, V
from moyai.diffusion.samplers import SAMPLERS


class Net(nn.Module):
    """Mixes input, time and condition; counts the rows of each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.rows.append(x.shape[0])
        assert cond.vector is not None
        push = cond.vector.reshape(*cond.vector.shape, 1, 1).to(x.dtype)  # (B, C, 1, 1)
        return torch.tanh(x + push) * torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype) + column(time, x) / 1000


def _conds(count: int) -> list[Cond]:
    generator = torch.Generator().manual_seed(5)
    return [Cond(vector=torch.randn(2, 3, generator=generator, dtype=torch.float64)) for _ in range(count)]


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(Net(), V(Table.scaled_linear()))


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SIGMA = torch.full((2,), 1.3, dtype=torch.float64)


def test_scale_one_and_zero_are_one_forward(denoiser: Denoiser) -> None:
    null, cond = _conds(2)
    for rescale in (0.0, 0.7):
        assert torch.equal(guided(denoiser, cond, null, 1.0, rescale=rescale)(X, SIGMA), denoiser(X, SIGMA, cond))
        assert torch.equal(guided(denoiser, cond, null, 0.0, rescale=rescale)(X, SIGMA), denoiser(X, SIGMA, null))
    assert denoiser.net.rows == [2] * 8


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
def test_guidance_is_linear_in_one_forward_of_both(denoiser: Denoiser, scale: float) -> None:
    null, cond = _conds(2)
    d_null, d_cond = denoiser(X, SIGMA, null), denoiser(X, SIGMA, cond)
    assert float((d_null - d_cond).abs().max()) > 0.1
    denoiser.net.rows.clear()
    mixed = guided(denoiser, cond, null, scale)
    expected = d_null + scale * (d_cond - d_null)
    assert torch.allclose(mixed(X, SIGMA), expected, atol=1e-14)
    assert denoiser.net.rows == [4]
    assert torch.allclose(mixed(X, SIGMA[0]), expected, atol=1e-14)  # one sigma for all rows


@pytest.mark.parametrize("parameterization", [V(Table.scaled_linear()), Flow()])
def test_guiding_the_estimate_is_guiding_the_network(parameterization: V | Flow) -> None:
    denoiser = Denoiser(Net(), parameterization)
    null, cond = _conds(2)
    f_null, f_cond = denoiser.network(X, SIGMA, null), denoiser.network(X, SIGMA, cond)
    c = parameterization(SIGMA)
    by_output = column(c.skip, X) * X + column(c.out, X) * (f_null + 3 * (f_cond - f_null))
    assert torch.allclose(guided(denoiser, cond, null, 3.0)(X, SIGMA), by_output, atol=1e-13)


def test_rescale_gives_the_network_output_the_conditional_spread(denoiser: Denoiser) -> None:
    """Lin et al. 2024, eq. 14 to 16, on the outputs of the network."""
    null, cond = _conds(2)
    f_null, f_cond = denoiser.network(X, SIGMA, null), denoiser.network(X, SIGMA, cond)
    c = denoiser.parameterization(SIGMA)
    for phi in (0.7, 1.0):
        f_guided = f_null + 6 * (f_cond - f_null)
        spread, wanted = (f.flatten(1).std(1).reshape(2, 1, 1, 1) for f in (f_guided, f_cond))
        output = phi * f_guided * wanted / spread + (1 - phi) * f_guided
        ours = guided(denoiser, cond, null, 6.0, rescale=phi)(X, SIGMA)
        assert torch.allclose(ours, column(c.skip, X) * X + column(c.out, X) * output, atol=1e-12)


def test_nested(denoiser: Denoiser) -> None:
    none, first, both = _conds(3)
    d = [denoiser(X, SIGMA, c) for c in (none, first, both)]
    denoiser.net.rows.clear()
    mixed = nested(denoiser, [none, first, both], [1.5, 4.0])(X, SIGMA)
    assert torch.allclose(mixed, d[0] + 1.5 * (d[1] - d[0]) + 4.0 * (d[2] - d[1]), atol=1e-13)
    assert torch.allclose(
        nested(denoiser, [none, first, both], [3.0, 3.0])(X, SIGMA), d[0] + 3 * (d[2] - d[0]), atol=1e-13
    )
    assert torch.equal(nested(denoiser, [none, first, both], [1.0, 1.0])(X, SIGMA), d[2])
    assert denoiser.net.rows == [6, 4, 2]  # estimates of weight zero are not computed
    with pytest.raises(ValueError, match="3 conditions need 2 scales"):
        nested(denoiser, [none, first, both], [1.0])


def test_autoguidance(denoiser: Denoiser) -> None:
    main, guide = (denoiser.given(c) for c in _conds(2))
    assert autoguided(main, guide, 1.0) is main
    assert torch.equal(autoguided(main, guide, 0.0)(X, SIGMA), guide(X, SIGMA))
    expected = guide(X, SIGMA) + 2 * (main(X, SIGMA) - guide(X, SIGMA))
    assert torch.allclose(autoguided(main, guide, 2.0)(X, SIGMA), expected, atol=1e-14)


def test_interval_and_clamp(denoiser: Denoiser) -> None:
    inside, outside = (denoiser.given(c) for c in _conds(2))
    limited = interval(inside, outside, 0.5, 2.0)
    for sigma, used in ((0.5, outside), (0.51, inside), (2.0, inside), (2.1, outside)):
        s = torch.full((2,), sigma, dtype=torch.float64)
        assert torch.equal(limited(X, s), used(X, s))
    assert torch.equal(clamped(inside, -0.1, 0.2)(X, SIGMA), inside(X, SIGMA).clamp(-0.1, 0.2))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inpainting_keeps_the_known_part_to_the_bit(denoiser: Denoiser, sampler: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    known, noise = (torch.randn(2, 3, 4, 4, generator=generator, dtype=dtype) for _ in range(2))
    mask = torch.zeros(2, 1, 4, 4, dtype=dtype)
    mask[..., 1:3, 1:3] = 1
    mask[..., 1, 1] = 0.5
    seen: list[Tensor] = []

    def plain(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x - known - column(sigma, x) * noise)[:, :, 0].abs().max())
        return denoiser(x, sigma, _conds(1)[0].to(dtype))

    denoise = inpainting(plain, known, mask, noise)
    *_, last = SAMPLERS[sampler](denoise, 10 * noise, karras(10.0, 0.05, 6), noise=lambda i: noise)
    outside = (mask == 0).expand_as(known)
    assert torch.equal(last.x[outside], known[outside])
    assert float((last.x - known)[~outside].abs().min()) > 1e-6  # and the rest is painted
    assert max(float(s) for s in seen) < 1e-6  # the network saw the known part at the right noise
