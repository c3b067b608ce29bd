"""The distance of fine detail against its formula, and what it prefers where detail is only half known."""

import pytest
import torch

from moyai.firststage.config import ObjectiveConfig
from moyai.firststage.detail import WINDOW, C, detail, detail_distance
from moyai.firststage.objective import Objective
from moyai.firststage.posterior import DiagonalGaussian


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_detail_is_what_a_blur_takes() -> None:
    ramp = torch.linspace(-1, 1, 16).expand(1, 2, 16, 16)
    assert detail(ramp)[..., 2:-2].abs().max() < 1e-6  # a blur leaves planes as they are
    waves = torch.cos(torch.arange(32) * torch.pi / 2).expand(1, 1, 32, 32)  # half the Nyquist frequency, across
    torch.testing.assert_close(detail(waves)[..., 2:-2], 0.75 * waves[..., 2:-2], atol=1e-6, rtol=0)


def test_it_is_its_formula_in_one_window() -> None:
    x, y = noise(2, 1, WINDOW, WINDOW), noise(2, 1, WINDOW, WINDOW, seed=1)
    a, b = detail(x).double().numpy(), detail(y).double().numpy()
    p, q, both = ((v).mean((1, 2, 3)) for v in (a**2, b**2, a * b))
    wanted = p * (1 - 2 * both / (p + q)) / (p + C)
    torch.testing.assert_close(detail_distance(x, y), torch.from_numpy(wanted).float())


def test_windows_count_by_the_detail_they_have() -> None:
    """Half of the picture is grain that the reconstruction lacks: a hundredth of the rest's strength, of no account."""
    strength = torch.ones(1, 1, 64, 64)
    strength[..., 32:] = 0.01
    x = noise(1, 1, 64, 64)
    lacking = torch.where(strength == 1, x, 0)
    assert detail_distance(x * strength, lacking)[0] < 0.01
    assert detail_distance(x, lacking)[0] > 0.4


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 9, 17), (1, 2, 3, 4), (1, 1, 1, 1)])
def test_equal_pictures_have_none_and_brightness_is_none(shape: tuple[int, ...]) -> None:
    x = noise(*shape).requires_grad_()
    distance = detail_distance(x.detach(), x + 0.3)
    assert distance.abs().max() < 1e-5
    distance.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-4


@pytest.mark.parametrize("known", [0.3, 0.7, 0.95])
def test_it_wants_full_strength_where_a_squared_error_wants_a_blur(known: float) -> None:
    """y = s (r x + sqrt(1 - r^2) n): detail of strength s, of correlation r with the picture's."""
    x = noise(1, 1, 256, 256)
    guess = known * x + (1 - known**2) ** 0.5 * noise(1, 1, 256, 256, seed=1)
    strengths = torch.linspace(0.1, 1.6, 31)
    found = torch.stack([detail_distance(x, s * guess)[0] for s in strengths])
    squared = torch.stack([(detail(x) - s * detail(guess)).square().mean() for s in strengths])
    assert abs(float(strengths[found.argmin()]) - 1) < 0.06
    assert abs(float(strengths[squared.argmin()]) - known) < 0.06
    assert float(found.min()) == pytest.approx(1 - known, abs=0.03)


def test_the_objective_weighs_it_and_leaves_it_out_by_default() -> None:
    x, y = noise(3, 1, 16, 16).clamp(-1, 1), noise(3, 1, 16, 16, seed=1).clamp(-1, 1)
    posterior = DiagonalGaussian(noise(3, 4, 4, 4))
    plain = Objective(ObjectiveConfig())(x, y, posterior)
    terms = Objective(ObjectiveConfig(detail=0.5))(x, y, posterior)
    torch.testing.assert_close(terms.fidelity - plain.fidelity, 0.5 * detail_distance(x, y))
    torch.testing.assert_close(terms.parts["detail"], detail_distance(x, y))
    assert "detail" not in plain.parts
