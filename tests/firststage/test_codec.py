"""The codec: normalisation and its inverse, statistics against a direct computation, and what its digest covers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from firststage.test_objective import autoencoder, pictures
from moyai.errors import ConfigError
from moyai.firststage.autoencoder import LatentAutoencoder
from moyai.firststage.codec import LatentCodec, LatentStatistics
from moyai.firststage.config import CodebookConfig, FSQConfig
from moyai.firststage.grid import FSQ
from moyai.firststage.quantization import VectorQuantizer
from moyai.nets.config import AutoencoderConfig
from moyai.randomness import Draw


def codec(height: int = 8, width: int = 8) -> LatentCodec:
    made = LatentCodec(autoencoder(), (1, height, width), precision="float32")
    return made.measured((torch.tensor([1.0, -2.0, 0.0, 0.5]), torch.tensor([2.0, 0.5, 1.0, 3.0])))


def test_statistics_are_those_of_samples_of_the_posterior() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(60, 3, 4, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.1])[:, None, None] + 100
    std = torch.rand(60, 3, 4, 4, generator=generator) * torch.tensor([2.0, 0.1, 0.3])[:, None, None]
    statistics = LatentStatistics()
    for start in range(0, 60, 7):  # in portions of any size
        statistics.add({"mean": mean[start : start + 7], "std": std[start : start + 7]})
    found_mean, found_std = statistics.result("channels")
    flat, spread = (t.double().permute(1, 0, 2, 3).flatten(1).numpy() for t in (mean, std))
    np.testing.assert_allclose(found_mean, flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found_std, np.sqrt(flat.var(1) + (spread**2).mean(1)), rtol=1e-6)
    # And those of drawn samples, which is what the prior sees.
    drawn = torch.cat([mean + std * torch.randn(std.shape, generator=generator) for _ in range(50)])
    np.testing.assert_allclose(found_std, drawn.double().std((0, 2, 3)), rtol=0.02)
    same_mean, common = statistics.result("whole")
    assert torch.equal(same_mean, found_mean)
    np.testing.assert_allclose(common, np.sqrt(np.square(found_std.double().numpy()).mean()).repeat(3), rtol=1e-6)


def test_normalised_latents_have_unit_scale() -> None:
    made, images = codec(), pictures(40, 1, 8, 8)
    statistics = LatentStatistics()
    stored = made.store(images)
    statistics.add(stored)
    made.measured(statistics.result("channels"))
    z = torch.cat([made.latents(stored, Draw(0, step, 40)) for step in range(30)])
    assert z.mean((0, 2, 3)).tolist() == pytest.approx([0] * 4, abs=0.05)
    assert z.std((0, 2, 3)).tolist() == pytest.approx([1] * 4, abs=0.05)
    made.measured(statistics.result("whole"))
    z = torch.cat([made.latents(stored, Draw(0, step, 40)) for step in range(30)])
    assert float(z.square().mean()) == pytest.approx(1, abs=0.05)
    assert len(made.std.unique()) == 1


def test_encode_is_the_normalised_mode_and_decode_its_inverse() -> None:
    made, images = codec(7, 9), pictures(3, 1, 7, 9)
    z = made.encode(images)
    assert z.shape == (3, *made.shape()) == (3, 4, 4, 5)
    with torch.no_grad():
        mode = made.autoencoder.encode(images).mode()
        expected = made.autoencoder.decode(mode, (7, 9)).clamp(-1, 1)
    torch.testing.assert_close(z * made.std[:, None, None] + made.mean[:, None, None], mode)
    torch.testing.assert_close(made.decode(z), expected, atol=1e-5, rtol=0)


def test_latents_take_their_noise_from_the_draw() -> None:
    made = codec()
    stored = {"mean": pictures(6, 4, 4, 4), "std": pictures(6, 4, 4, 4).abs()}
    z = made.latents(stored, Draw(0, 3, 6))
    noise = Draw(0, 3, 6).normal("posterior", (4, 4, 4))
    torch.testing.assert_close(z, made.normalised(stored["mean"] + stored["std"] * noise))
    part = made.latents({k: v[2:5] for k, v in stored.items()}, Draw(0, 3, 6).rows(2, 5))
    assert torch.equal(part, z[2:5])


def test_the_digest_covers_what_decides_the_latents_and_nothing_else() -> None:
    made = codec()
    before = made.digest()
    assert codec().digest() == before
    for name, parameter in made.autoencoder.decoder.named_parameters():
        parameter.data.add_(1.0)
        assert made.digest() == before, name
    for owner in (made.autoencoder.encoder.state_dict(), {"mean": made.mean, "std": made.std}):
        for name, tensor in owner.items():
            with torch.no_grad():
                kept = tensor.flatten()[0].clone()
                tensor.view(-1)[0] = kept + 1e-3 if tensor.is_contiguous() else kept
                if not tensor.is_contiguous():
                    tensor[(0,) * tensor.ndim] = kept + 1e-3
                assert made.digest() != before, name
                tensor[(0,) * tensor.ndim] = kept
            assert made.digest() == before, name


def test_the_digest_is_of_values_not_of_how_they_lie_in_memory(tmp_path: Path) -> None:
    made = codec()
    before = made.digest()
    made.autoencoder.to(memory_format=torch.contiguous_format)
    assert made.digest() == before


def test_the_codec_is_frozen() -> None:
    made = codec()
    assert not made.autoencoder.training
    assert not any(p.requires_grad for p in made.parameters())
    assert not made.encode(pictures(1, 1, 8, 8).requires_grad_()).requires_grad


def discrete(bottleneck: nn.Module, channels: int) -> LatentCodec:
    """A codec of pictures 7 x 9, with statistics that are not those of its latents."""
    config = AutoencoderConfig(factor=2, width=8, multipliers=(1, 2), latent_channels=channels, groups=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LatentCodec(LatentAutoencoder(config, 1, bottleneck), (1, 7, 9), precision="float32")
    return made.measured((torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels)))


def vectors(cosine: bool) -> VectorQuantizer:
    made = VectorQuantizer(CodebookConfig(size=16, cosine=cosine), 4)
    made.codebook.data.copy_(pictures(16, 4) * 0.7)
    return made


BOTTLENECKS = {
    "vq": (lambda: vectors(False), 4, 16),
    "cosine": (lambda: vectors(True), 4, 16),
    "fsq": (lambda: FSQ(FSQConfig(levels=(5, 4, 3))), 3, 60),
}


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_codes_are_numbers_of_what_is_decoded(kind: str) -> None:
    make, channels, count = BOTTLENECKS[kind]
    made = discrete(make(), channels)
    assert made.codes_counts() == [count]
    assert made.code_shapes() == [made.shape()[1:]]
    stored = made.store(pictures(6, 1, 7, 9))
    (codes,) = made.codes(stored)
    assert codes.dtype == torch.int64
    assert codes.shape == (6, *made.shape()[1:]) == (6, 4, 5)
    assert len(codes.unique()) > 3
    assert torch.equal(made.decode_codes([codes]), made.decode(made.normalised(stored["mean"])))


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_every_code_decodes_as_its_own_latents(kind: str) -> None:
    make, channels, count = BOTTLENECKS[kind]
    made = discrete(make(), channels)
    codes = torch.arange(20 * -(-count // 20)).remainder(count).unflatten(0, (-1, 4, 5))  # all of them
    values = made.autoencoder.bottleneck.lookup(codes)
    assert torch.equal(made.codes({"mean": values})[0], codes)
    images = made.decode_codes([codes])
    assert torch.equal(made.latents_of([codes]), made.normalised(values))
    assert torch.equal(images, made.decode(made.latents_of([codes])))
    assert images.shape == (len(codes), 1, 7, 9)
    assert not images.requires_grad
    assert not torch.equal(images[0], made.decode_codes([codes.flip(1)])[0])


def test_latents_of_a_gaussian_are_no_codes() -> None:
    made = codec()
    stored = made.store(pictures(2, 1, 8, 8))
    questions = (made.codes_counts, made.code_shapes, lambda: made.codes(stored), lambda: made.decode_codes([]))
    for ask in questions:
        with pytest.raises(ConfigError, match=r"latents are no codes; possible: first_stage\.kind vq, vq2 or fsq"):
            ask()
