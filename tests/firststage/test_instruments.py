"""The instruments against closed forms; a sentence exactly where a value leaves its range."""

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.ndimage
import torch
from pydantic import BaseModel
from torch import Tensor

from moyai.firststage import health
from moyai.firststage.config import FSQFirstStage, KLFirstStage, VQFirstStage
from moyai.firststage.instruments import Measurement, blurred, box_ssim, fine_power
from moyai.firststage.posterior import DiagonalGaussian
from moyai.firststage.quantization import Quantized
from moyai.similarity import ms_ssim, psnr, ssim


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def pair(count: int = 6, height: int = 20, width: int = 24, channels: int = 2) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (count, channels, height, width))
    y = np.clip(scipy.ndimage.gaussian_filter(x, (0, 0, 0.7, 0.7)) + 0.05 * rng.standard_normal(x.shape), -1, 1)
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def gaussian(mean: Tensor, std: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(torch.cat([mean, 2 * std.log()], dim=1))


def quantized(codes: Tensor) -> Quantized:
    z = torch.zeros(len(codes), 2, *codes.shape[1:])
    return Quantized(z, z, codes, torch.zeros(len(codes)))


def measured(posterior: DiagonalGaussian | Quantized, codes: int | None = None, size: int = 2) -> dict[str, float]:
    """In batches of `size`, the last of what is left."""
    x, y = pair(count=6)
    found = Measurement(codes=None if codes is None else {"": codes})
    for i in range(0, 6, size):
        rows = slice(i, i + size)
        if isinstance(posterior, Quantized):
            part: DiagonalGaussian | Quantized = quantized(posterior.codes[rows])
        else:
            part = gaussian(posterior.mean[rows], posterior.std[rows])
        found.add(x[rows], y[rows], part)
    return found.result()


# ---- pictures


def test_likeness_is_that_of_the_stored_integers_whatever_the_batches() -> None:
    x, y = pair()
    posterior = gaussian(noise(6, 3, 5, 6), noise(6, 3, 5, 6, seed=1).exp())
    found = measured(posterior, size=4)
    assert found == pytest.approx(measured(posterior, size=6), rel=1e-5)
    top, a, b = 255.0, (x + 1) / 2 * 255, (y + 1) / 2 * 255
    expected = {"l1": (x - y).abs().mean(), "psnr": psnr(a, b, top=top).mean(), "ssim": ssim(a, b, top=top).mean()}
    expected["ms-ssim"] = ms_ssim(a, b, top=top).mean()
    assert {name: found[name] for name in expected} == pytest.approx({n: float(v) for n, v in expected.items()}, 1e-4)
    assert found["ms-ssim scales"] == 1
    assert 0.1 < found["ssim"] < 0.99


def test_a_distance_of_pictures_is_averaged_over_pictures() -> None:
    x, y = pair()
    found = Measurement(perceptual=lambda a, b: (a - b).square().flatten(1).sum(1))
    for rows in (slice(0, 4), slice(4, 6)):
        found.add(x[rows], y[rows], quantized(torch.zeros(6, 1, 1, dtype=torch.int64)[rows]))
    assert found.result()["perceptual"] == pytest.approx(float((x - y).square().sum()) / 6, rel=1e-5)


@pytest.mark.parametrize("size", [(28, 28), (15, 22), (32, 17)])
def test_fine_power_of_a_blurred_field_is_the_blurs_transfer_function(size: tuple[int, int]) -> None:
    # A field whose every frequency has the power 1, blurred by (1 2 1) / 4 on a ring: |H|^2 = cos^4(pi f) an axis.
    spectrum = np.fft.fft2(np.random.default_rng(0).standard_normal((3, 2, *size)))
    field = np.fft.ifft2(spectrum / abs(spectrum)).real
    kernel = np.outer([1, 2, 1], [1, 2, 1])[None, None] / 16
    blurred = scipy.ndimage.convolve(field, kernel, mode="wrap")
    fy, fx = np.meshgrid(*(np.fft.fftfreq(n) for n in size), indexing="ij")
    fine = fy**2 + fx**2 > 0.25**2
    expected = (np.cos(np.pi * fy) ** 4 * np.cos(np.pi * fx) ** 4)[fine].mean()
    ratio = fine_power(torch.from_numpy(blurred)) / fine_power(torch.from_numpy(field))
    np.testing.assert_allclose(ratio.numpy(), np.full(3, expected), rtol=1e-4)
    # Parseval: of a picture of mean square 1 (per value), the fine frequencies' share is theirs of all frequencies.
    unit = torch.from_numpy(field / np.sqrt((field**2).mean((1, 2, 3), keepdims=True)))
    np.testing.assert_allclose(fine_power(unit).numpy(), np.full(3, fine.mean()), rtol=1e-4)


def test_fine_power_is_one_for_the_identity_and_ignores_what_is_coarse() -> None:
    x, y = pair()
    latents = quantized(torch.zeros(6, 1, 1, dtype=torch.int64))
    for shown, expected in ((x, 1.0), (y, float(fine_power(y).sum() / fine_power(x).sum()))):
        found = Measurement()
        found.add(x, shown, latents)
        assert found.result()["fine power"] == pytest.approx(expected, rel=1e-5)
    assert expected < 0.7
    places = torch.arange(32) / 32
    for cycles, fine in ((7, False), (8, False), (9, True), (16, True)):  # of 32 pixels: 8 is half of Nyquist
        wave = torch.cos(2 * torch.pi * cycles * places).expand(1, 1, 32, 32)
        assert float(fine_power(wave + 5)) == pytest.approx(float(wave.square().mean()) if fine else 0, abs=1e-6)


def test_flat_pictures_have_no_fine_power_to_compare() -> None:
    found = Measurement()
    flat = torch.full((2, 1, 9, 9), 0.3)
    found.add(flat, flat + 0.01 * noise(2, 1, 9, 9), quantized(torch.zeros(2, 1, 1, dtype=torch.int64)))
    assert "fine power" not in found.result()


def test_ssim_in_the_box_is_that_of_the_crop() -> None:
    x, y = (torch.full((2, 1, 40, 36), -1.0) for _ in range(2))
    rows, columns = np.mgrid[:14, :21]
    blob = torch.from_numpy(((rows - 6.5) / 7) ** 2 + ((columns - 10) / 10.5) ** 2 < 1)
    texture = torch.where(blob, 0.3 + 0.2 * noise(14, 21).clamp(-2, 2), -1.0)
    for i, (top, left) in enumerate(((3, 9), (20, 2))):
        x[i, 0, top : top + 14, left : left + 21] = texture
        y[i, 0, top : top + 14, left : left + 21] = 0.8 * texture - 0.1
    x[:, 0, 0, 0] = -1 + 2 * 0.05  # a trace below the threshold is background
    crop = ssim((texture[None, None] + 1) / 2, ((0.8 * texture - 0.1)[None, None] + 1) / 2, top=1)
    torch.testing.assert_close(box_ssim(x, y), crop.expand(2), atol=1e-5, rtol=0)
    assert bool((ssim((x + 1) / 2, (y + 1) / 2, top=1) > crop + 0.01).all())  # the frame's is the easier
    x[0] = -1
    assert box_ssim(x, y).isnan().tolist() == [True, False]
    found = Measurement(boxed=True)
    found.add(x, y, quantized(torch.zeros(2, 1, 1, dtype=torch.int64)))
    assert found.result()["box ssim"] == pytest.approx(float(crop), abs=1e-5)


def test_data_without_any_subject_have_no_box() -> None:
    found = Measurement(boxed=True)
    dark = torch.full((2, 1, 9, 9), -1.0)
    found.add(dark, dark, quantized(torch.zeros(2, 1, 1, dtype=torch.int64)))
    assert "box ssim" not in found.result()


# ---- latents


def test_kl_of_each_channel_is_torchs() -> None:
    mean, std = noise(6, 3, 4, 5), noise(6, 3, 4, 5, seed=1).exp()
    found = measured(gaussian(mean, std))
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean.double(), std.double()), torch.distributions.Normal(0.0, 1.0)
    )
    expected = kl.mean((0, 2, 3))
    assert [found[f"kl/{c}"] for c in range(3)] == pytest.approx(expected.tolist(), rel=1e-5)
    assert found["kl"] == pytest.approx(float(kl.mean()), rel=1e-5)
    assert [found[f"std/{c}"] for c in range(3)] == pytest.approx(std.mean((0, 2, 3)).tolist(), rel=1e-5)


def test_noise_share_is_that_of_the_posterior_as_it_was_made() -> None:
    mean = noise(6, 4, 16, 16)
    mean = (mean - mean.mean((0, 2, 3), keepdim=True)) / mean.std((0, 2, 3), keepdim=True, correction=0)
    mean = mean * torch.tensor([1.0, 2.0, 0.1, 1e-3]).view(4, 1, 1) + torch.tensor([0.0, 5.0, -30.0, 1.0]).view(4, 1, 1)
    std = torch.tensor([0.5, 1.0, 0.3, 1e-3]).view(4, 1, 1).expand(6, 4, 16, 16)
    found = measured(gaussian(mean, std))
    expected = [0.25 / 1.25, 1 / 5, 0.09 / 0.1, 0.5]
    assert [found[f"noise share/{c}"] for c in range(4)] == pytest.approx(expected, rel=1e-3)
    assert found["unused channels"] == 0
    stored = torch.distributions.Normal(mean.double(), std.double()).sample((200,)).transpose(0, 2)  # (4, 6, ...)
    sampled = stored.flatten(1).var(1)  # what the decoder is given has the variance the shares are parts of
    np.testing.assert_allclose(sampled.numpy() * np.array(expected), std[0, :, 0, 0].numpy() ** 2, rtol=0.03)


def test_channels_that_say_nothing_of_a_picture_are_unused() -> None:
    mean = noise(6, 4, 5, 5)
    std = torch.full_like(mean, 0.1)
    mean[:, 1] = 3.0  # constant
    mean[:, 2] = noise(5, 5, seed=2)  # differs between places only
    mean[:, 3] = 1e-3 * mean[:, 3]  # small, and the noise too: used
    std[:, 3] = 1e-4
    found = measured(gaussian(mean, std))
    assert found["unused channels"] == 2
    assert found["noise share/1"] == pytest.approx(1, abs=1e-6)
    assert found["noise share/2"] < 0.05
    one = Measurement()
    one.add(*(t[:1] for t in pair()), gaussian(mean[:1], std[:1]))
    assert "unused channels" not in one.result()


def test_perplexity_and_use_of_known_codes() -> None:
    codes = torch.tensor([0] * 12 + [3] * 6 + [2**40] * 6)[torch.randperm(24, generator=torch.manual_seed(0))]
    found = measured(quantized(codes.view(6, 2, 2)), codes=2**41)  # a grid may have that many
    assert found["perplexity"] == pytest.approx(2**1.5)  # entropy 1.5 bits
    assert found["codes used"] == pytest.approx(3 / 2**41)
    assert (found["codes"], found["choices"]) == (2**41, 24)
    assert not {"kl", "unused channels"} & found.keys()
    assert "codes used" not in measured(quantized(codes.view(6, 2, 2)))


# ---- what the numbers say

HEALTHY = {
    "l1": 0.03,
    "psnr": 27.0,
    "ssim": 0.92,
    "ms-ssim": 0.97,
    "ms-ssim scales": 3.0,
    "box ssim": 0.9,
    "perceptual": 0.1,
    "fine power": 0.95,
    "kl": 4.0,
    "noise share/0": 0.01,
    "noise share/1": 0.02,
    "unused channels": 0.0,
    "codes used": 0.9,
    "perplexity": 300.0,
    "codes": 512.0,
    "choices": 25088.0,
    "adaptive weight": 2.0,
    "logits real": 0.6,
    "logits fake": -0.5,
}


def test_nothing_is_said_of_a_healthy_first_stage() -> None:
    assert health.judge(HEALTHY) == []
    assert health.judge({}) == []
    assert health.judge({"psnr": 25.0, "of another version": -1.0}) == []


@pytest.mark.parametrize("instrument", health.INSTRUMENTS, ids=lambda instrument: instrument.name)
def test_a_sentence_appears_exactly_outside_the_range(instrument: health.Instrument) -> None:
    known = health.derived(HEALTHY)
    low, high = instrument.healthy(known)
    assert instrument.values(known)
    name = f"{instrument.name}/1" if instrument.by_channel else instrument.name
    assert (low is None, high is None) == (not instrument.below, not instrument.above)
    for end, sign in ((low, -1), (high, 1)):
        if end is None:
            assert instrument.sentences({**known, name: sign * 1e6}) == []
            continue
        outside = end + sign * max(1e-6, 1e-6 * abs(end))
        assert instrument.sentences({**known, name: end}) == []
        said = instrument.sentences({**known, name: outside})
        assert len(said) == 1
        assert not re.search(r"[{}]", said[0])
    assert instrument.sentences({**known, name: math.nan}) == [f"{name} is not a finite number"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fine power": 0.3}, "less fine detail than the originals have, 0.3 of their power"),
        ({"logits real": 4.0, "logits fake": -5.0}, "the discriminator wins: logits 4 and -5"),
        ({"noise share/0": 0.4, "noise share/2": 0.25}, "40 % in channel 0 and 25 % in channel 2 is noise"),
        ({"codes used": 0.4}, "only 40 % of the codes are ever chosen"),
        ({"unused channels": 2.0}, "latent channels without use: 2"),
    ],
)
def test_sentences_say_what_was_found(changes: dict[str, float], sentence: str) -> None:
    (said,) = health.judge({**HEALTHY, **changes})
    assert sentence in said


def test_few_choices_from_many_codes_are_not_held_against_a_codebook() -> None:
    few = {"codes": 4096.0, "choices": 1000.0, "codes used": 0.2, "perplexity": 700.0}
    drawn = np.random.default_rng(0).integers(0, 4096, (50, 1000))
    expected = np.mean([len(np.unique(row)) for row in drawn]) / 4096
    used = next(one for one in health.INSTRUMENTS if one.name == "codes used")
    assert used.healthy(few)[0] == pytest.approx(expected / 2, rel=0.01)
    assert health.judge(few) == []
    assert len(health.judge({**few, "choices": 1e6})) == 1
    assert health.judge({"codes used": 0.1, "perplexity": 3.0}) == []  # of how many is not known


def keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Every dotted key below a configuration."""
    for name, field in model.model_fields.items():
        yield f"{prefix}.{name}"
        for inner in re.findall(r"moyai\.[\w.]+\.(\w+)", str(field.annotation)):
            for part in BaseModel.__subclasses__():
                yield from (
                    key for one in below(part) if one.__name__ == inner for key in keys(one, f"{prefix}.{name}")
                )


def below(kind: type) -> Iterator[type[BaseModel]]:
    yield kind
    for one in kind.__subclasses__():
        yield from below(one)


def test_every_setting_that_a_sentence_names_exists() -> None:
    known = {key for kind in (KLFirstStage, VQFirstStage, FSQFirstStage) for key in keys(kind, "first_stage")}
    texts = " ".join(f"{one.below} {one.above}" for one in health.INSTRUMENTS)
    named = set(re.findall(r"first_stage(?:\.[a-z_0-9]+)+", texts))
    assert len(named) > 6
    assert named <= known


def test_pictures_of_a_group_count_as_one() -> None:
    x, y = pair(6)
    groups = np.array([0, 0, 0, 0, 1, 1])
    parts = []
    for rows in (slice(0, 4), slice(4, 6)):
        one = Measurement()
        one.add(x[rows], y[rows])
        parts.append(one.result())
    whole = Measurement()
    for rows in (slice(0, 3), slice(3, 6)):  # a group may be in two batches
        whole.add(x[rows], y[rows], groups=groups[rows])
    for name in ("psnr", "ssim", "l1"):
        assert whole.result()[name] == pytest.approx((parts[0][name] + parts[1][name]) / 2, rel=1e-6)
    alone = Measurement()
    alone.add(x, y)
    assert alone.result()["psnr"] != pytest.approx(whole.result()["psnr"], rel=1e-4)


def test_a_blur_is_a_gaussian_s() -> None:
    point = torch.zeros(1, 2, 17, 15)
    point[:, :, 8, 7] = 1
    wanted = scipy.ndimage.gaussian_filter(point[0, 0].double().numpy(), 1.0, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(blurred(point)[0, 1].numpy(), wanted, atol=1e-6)
    x, _ = pair(2)
    torch.testing.assert_close(blurred(x).mean((2, 3)), x.mean((2, 3)), atol=0.02, rtol=0)
