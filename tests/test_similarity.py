"""PSNR, SSIM and MS-SSIM against SciPy's filters, and against torchmetrics where it is installed."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from moyai import similarity
from moyai.errors import DataError


def pair(height: int, width: int, channels: int = 1, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = scipy.ndimage.gaussian_filter(rng.uniform(0, 255, (count, channels, height, width)), (0, 0, 1, 1))
    y = np.clip(x + 15 * rng.standard_normal(x.shape), 0, 255)
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def scipy_maps(x: np.ndarray, y: np.ndarray, top: float = 255) -> tuple[np.ndarray, np.ndarray]:
    """l and c of one plane, borders mirrored: SciPy's Gaussian filter, cut at 3.5 sigma, is the window of 11."""

    def mean(values: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(values, 1.5, mode="mirror", truncate=3.5)

    c1, c2 = (0.01 * top) ** 2, (0.03 * top) ** 2
    mx, my = mean(x), mean(y)
    light = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    contrast = (2 * (mean(x * y) - mx * my) + c2) / (mean(x * x) - mx**2 + mean(y * y) - my**2 + c2)
    return light, contrast


def test_ssim_is_scipys() -> None:
    x, y = pair(28, 31, channels=2)
    expected = []
    for one, two in zip(x.double().numpy(), y.double().numpy(), strict=True):
        maps = [scipy_maps(a, b) for a, b in zip(one, two, strict=True)]
        expected.append(np.mean([light * contrast for light, contrast in maps]))
    np.testing.assert_allclose(similarity.ssim(x, y, top=255).numpy(), expected, atol=1e-6)


def test_ms_ssim_of_two_scales_is_scipys() -> None:
    x, y = pair(28, 28)
    assert similarity.scales(28, 28) == 2
    w0, w1 = 0.0448 / 0.3304, 0.2856 / 0.3304
    expected = []
    for one, two in zip(x[:, 0].double().numpy(), y[:, 0].double().numpy(), strict=True):
        _, contrast = scipy_maps(one, two)
        half = [a.reshape(14, 2, 14, 2).mean((1, 3)) for a in (one, two)]
        light, last = scipy_maps(half[0], half[1])
        expected.append(contrast[5:-5, 5:-5].mean() ** w0 * (light * last).mean() ** w1)
    np.testing.assert_allclose(similarity.ms_ssim(x, y, top=255).numpy(), expected, atol=1e-6)


def test_as_torchmetrics_has_them() -> None:
    image = pytest.importorskip("torchmetrics.functional.image", exc_type=ImportError)
    for size in (28, 190):
        x, y = pair(size, size + 3, channels=3)
        theirs = image.structural_similarity_index_measure(x, y, data_range=255.0, reduction="none")
        torch.testing.assert_close(similarity.ssim(x, y, top=255), theirs, atol=1e-5, rtol=0)
    theirs = image.multiscale_structural_similarity_index_measure(x, y, data_range=255.0, reduction="none")
    torch.testing.assert_close(similarity.ms_ssim(x, y, top=255), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("side", "scales", "window"),
    [(2, 1, 1), (8, 1, 7), (11, 1, 11), (28, 2, 11), (44, 3, 11), (88, 4, 11), (176, 5, 11)],
)
def test_as_many_scales_as_fit(side: int, scales: int, window: int) -> None:
    assert (similarity.scales(side, side + 9), similarity.window(side + 9, side)) == (scales, window)
    x, y = pair(side, side)
    same, other = similarity.ms_ssim(x, x, top=255), similarity.ms_ssim(x, y, top=255)
    torch.testing.assert_close(same, torch.ones(2))
    assert bool((other < 0.999).all())


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (9, 1)])
def test_pictures_of_one_row_are_compared_too(size: tuple[int, int]) -> None:
    x, y = pair(*size)
    assert bool((similarity.ms_ssim(x, y, top=255) < 1).all())
    torch.testing.assert_close(similarity.ms_ssim(x, x, top=255), torch.ones(2))


def test_more_noise_is_less_alike_and_psnr_is_its_formula() -> None:
    x, y = pair(32, 32)
    further = y + 2 * (y - x)
    for measure in (similarity.psnr, similarity.ssim, similarity.ms_ssim):
        assert bool((measure(x, further, top=255) < measure(x, y, top=255)).all())
    torch.testing.assert_close(similarity.psnr(x, x + 25.5, top=255), torch.full((2,), 20.0), atol=1e-4, rtol=0)
    assert bool(similarity.psnr(x, x, top=255).isinf().all())
    torch.testing.assert_close(similarity.ssim(x / 255, y / 255, top=1), similarity.ssim(x, y, top=255))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="one shape"):
        similarity.ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 9), top=1)
