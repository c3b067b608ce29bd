"""The latent cache: it holds what the codec says of each picture, and is given to no other codec or data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from firststage.test_codec import codec
from moyai.data import latents
from moyai.data.latents import FLIPPED, PLAIN
from moyai.errors import CheckpointError
from training.test_resume import image_set

COUNT = 13


@pytest.fixture
def cached(tmp_path: Path) -> tuple[Path, latents.LatentCache]:
    images, made = image_set(COUNT), codec()
    done: list[tuple[int, int]] = []
    latents.build(tmp_path / "c", images, made, flips=True, batch=5, progress=lambda a, b: done.append((a, b)))
    assert done == [(5, 26), (10, 26), (13, 26), (18, 26), (23, 26), (26, 26)]
    latents.seal(tmp_path / "c", codec=made.digest(), data=images.fingerprint, count=COUNT)
    return tmp_path / "c", latents.read(tmp_path / "c", images, codec=made.digest())


def test_each_row_is_the_posterior_of_its_picture(cached: tuple[Path, latents.LatentCache]) -> None:
    _, cache = cached
    images, made = image_set(COUNT), codec()
    assert len(cache) == COUNT
    assert cache.variants == (PLAIN, FLIPPED)
    index = np.array([12, 0, 5, 5])
    batch = cache.batch(index)
    stored = made.store(images.images(index))
    assert batch.latents is not None
    for name in ("mean", "std"):
        torch.testing.assert_close(batch.latents[name], stored[name], atol=1e-6, rtol=1e-5)
    assert batch.index.tolist() == index.tolist()
    assert batch.fields["class"].tolist() == images.fields["class"][index].tolist()


def test_the_flipped_variant_is_the_mirrored_picture_encoded(cached: tuple[Path, latents.LatentCache]) -> None:
    _, cache = cached
    images, made = image_set(COUNT), codec()
    index, flipped = np.arange(4), np.array([True, False, True, False])
    batch = cache.batch(index, flipped)
    assert batch.latents is not None
    mirrored = made.store(images.images(index).flip(-1))["mean"]
    plain = made.store(images.images(index))["mean"]
    torch.testing.assert_close(batch.latents["mean"][::2], mirrored[::2], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(batch.latents["mean"][1::2], plain[1::2], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(mirrored, plain.flip(-1), atol=1e-2)  # latents mirrored are not the mirror's latents
    none = cache.batch(index, np.zeros(4, bool))
    assert none.latents is not None
    assert torch.equal(none.latents["mean"][1::2], batch.latents["mean"][1::2])


def test_portions_are_the_whole(cached: tuple[Path, latents.LatentCache]) -> None:
    _, cache = cached
    parts = list(cache.stored(FLIPPED, 4))
    assert [len(p["mean"]) for p in parts] == [4, 4, 4, 1]
    assert torch.equal(torch.cat([p["std"] for p in parts]), torch.from_numpy(np.array(cache.arrays[FLIPPED]["std"])))


def test_another_codec_or_other_data_are_refused(cached: tuple[Path, latents.LatentCache]) -> None:
    folder, _ = cached
    images, digest = image_set(COUNT), codec().digest()
    with pytest.raises(CheckpointError, match=r"holds latents of codec .* encode again with --stage latents"):
        latents.read(folder, images, codec="f" * 64)
    with pytest.raises(CheckpointError, match="holds latents of other data"):
        latents.read(folder, image_set(COUNT).subset(np.arange(COUNT - 1)), codec=digest)
    assert latents.sealed(folder, codec=digest, data=images.fingerprint)
    assert not latents.sealed(folder, codec=digest, data="other")
    assert not latents.sealed(folder, codec="f" * 64, data=images.fingerprint)


@pytest.mark.parametrize("damage", ["cut", "gone", "no seal", "torn seal", "odd seal"])
def test_an_unfinished_or_altered_cache_is_none(damage: str, cached: tuple[Path, latents.LatentCache]) -> None:
    folder, _ = cached
    images, digest = image_set(COUNT), codec().digest()
    array, seal = folder / "plain-std.npy", folder / "cache.json"
    if damage == "cut":
        array.write_bytes(array.read_bytes()[:-4])
    elif damage == "gone":
        array.unlink()
    elif damage == "no seal":
        seal.unlink()
    elif damage == "torn seal":
        seal.write_bytes(seal.read_bytes()[:20])
    else:
        seal.write_text(json.dumps(["codec"]))
    assert not latents.sealed(folder, codec=digest, data=images.fingerprint)
    with pytest.raises(CheckpointError, match=r"is not a finished latent cache|was altered"):
        latents.read(folder, images, codec=digest)


def test_building_again_takes_the_seal_away(cached: tuple[Path, latents.LatentCache]) -> None:
    folder, _ = cached

    class Broken:
        def store(self, images: torch.Tensor, fields: object = None) -> dict[str, torch.Tensor]:
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        latents.build(folder, image_set(COUNT), Broken(), flips=False)
    assert not latents.sealed(folder, codec=codec().digest(), data=image_set(COUNT).fingerprint)


def test_an_empty_folder_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no latents; encode with --stage latents"):
        latents.read(tmp_path, image_set(COUNT), codec=None)
