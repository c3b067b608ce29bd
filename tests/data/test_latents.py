"""The latent cache: it holds what the codec says of each picture, and is given to no other codec or data."""

import ctypes
import errno
import json
import os
import resource
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.forked import in_child
from firststage.test_codec import codec
from moyai.data import latents
from moyai.data.latents import FLIPPED, PLAIN
from moyai.errors import CheckpointError, SaveError
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
    assert latents.sealed(folder, codec=digest, data=images.fingerprint, flips=True)
    assert not latents.sealed(folder, codec=digest, data="other", flips=True)
    assert not latents.sealed(folder, codec="f" * 64, data=images.fingerprint, flips=True)


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
    assert not latents.sealed(folder, codec=digest, data=images.fingerprint, flips=True)
    with pytest.raises(CheckpointError, match=r"is not a finished latent cache|was altered"):
        latents.read(folder, images, codec=digest)


def test_building_again_takes_the_seal_away(cached: tuple[Path, latents.LatentCache]) -> None:
    folder, _ = cached

    class Broken:
        def store(self, images: torch.Tensor, fields: object = None) -> dict[str, torch.Tensor]:
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        latents.build(folder, image_set(COUNT), Broken(), flips=False)
    for flips in (False, True):
        assert not latents.sealed(folder, codec=codec().digest(), data=image_set(COUNT).fingerprint, flips=flips)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("before", [False, True])
def test_the_seal_knows_the_variants_and_a_build_leaves_no_others(before: bool, tmp_path: Path) -> None:
    images, made = image_set(COUNT), codec()
    for flips in (before, not before):
        latents.build(tmp_path, images, made, flips=flips)
        latents.seal(tmp_path, codec=made.digest(), data=images.fingerprint, count=COUNT)
        assert latents.sealed(tmp_path, codec=made.digest(), data=images.fingerprint, flips=flips)
        assert not latents.sealed(tmp_path, codec=made.digest(), data=images.fingerprint, flips=not flips)
        expected = (PLAIN, FLIPPED) if flips else (PLAIN,)
        assert latents.read(tmp_path, images, codec=None).variants == expected
        cache = latents.read(tmp_path, images, codec=made.digest(), flips=flips)
        assert cache.variants == expected
        assert {len(array) for arrays in cache.arrays.values() for array in arrays.values()} == {COUNT}
        with pytest.raises(
            CheckpointError, match=r"holds the variants plain.* of its pictures, and data.flip asks for"
        ):
            latents.read(tmp_path, images, codec=made.digest(), flips=not flips)


def test_an_array_that_is_not_in_the_seal_is_not_read(cached: tuple[Path, latents.LatentCache]) -> None:
    folder, _ = cached
    images, digest = image_set(COUNT), codec().digest()
    np.save(folder / "plain-codes.npy", np.zeros((COUNT, 1), np.float32))
    assert set(latents.read(folder, images, codec=digest).arrays[PLAIN]) == {"mean", "std"}


def test_an_empty_folder_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no latents; encode with --stage latents"):
        latents.read(tmp_path, image_set(COUNT), codec=None)


# The disk says no ------------------------------------------------------------------------------------------------


class Large:
    """64 KiB a picture, all of them ones."""

    def store(self, images: torch.Tensor, fields: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        return {"mean": torch.ones(len(images), 4, 64, 64)}


NEEDED = 2 * COUNT * 4 * 4 * 64 * 64


def build(folder: Path) -> list[int]:
    """Both variants, five pictures at a time; the numbers that were encoded, as they are told."""
    told: list[int] = []
    latents.build(folder, image_set(COUNT), Large(), flips=True, batch=5, progress=lambda done, _: told.append(done))
    return told


def refused(folder: Path) -> tuple[str, list[str]]:
    """What is said where there is no room, and what is left in the folder."""
    with pytest.raises(SaveError) as caught:
        build(folder)
    return str(caught.value), [path.name for path in folder.iterdir()]


def said(folder: Path, code: int) -> str:
    return f"cannot save {folder}: {os.strerror(code)}; needed: {NEEDED:,} bytes (1.7 MB), free: "


def test_the_room_of_all_arrays_is_taken_with_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []

    def recorded(handle: int, start: int, size: int) -> None:
        assert start == 0
        taken.append((os.fstat(handle).st_ino, size))

    monkeypatch.setattr(os, "posix_fallocate", recorded, raising=False)
    sizes = []

    def progress(done: int, _: int) -> None:
        sizes.append(len(taken))

    latents.build(tmp_path, image_set(COUNT), Large(), flips=True, batch=5, progress=progress)
    assert sizes == [2] * 6
    assert dict(taken) == {path.stat().st_ino: path.stat().st_size for path in tmp_path.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flipped-mean.npy", "plain-mean.npy"]
    for path in tmp_path.iterdir():
        assert np.array_equal(np.load(path), np.ones((COUNT, 4, 64, 64), np.float32))


@pytest.mark.parametrize("free", [NEEDED - 1, NEEDED])
def test_a_disk_known_to_be_too_small_is_not_written_to(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "free_bytes", lambda path: free)
    if free < NEEDED:
        monkeypatch.setattr(latents, "_create", lambda *_: pytest.fail("a file was begun"))
        message, left = refused(tmp_path / "c")
        assert message.startswith(said(tmp_path / "c", errno.ENOSPC))
        assert left == []
    else:
        assert build(tmp_path / "c") == [5, 10, 13, 18, 23, 26]


@pytest.mark.parametrize("beforehand", ["given", "none", "unable"])
def test_files_that_may_not_grow_are_one_clear_line(
    beforehand: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(handle: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if beforehand == "none":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif beforehand == "unable":
        monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    assert build(tmp_path / "enough")[-1] == 2 * COUNT

    def attempt() -> tuple[str, list[str]]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # an array takes 852,096
        return refused(tmp_path / "c")

    code, result = in_child(attempt)
    assert code == 0
    assert result[0].startswith(said(tmp_path / "c", errno.EFBIG))
    assert "\n" not in result[0]
    assert result[1] == []


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "mkdir"])
def test_errors_of_the_system_are_translated(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    (tmp_path / "c").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse, raising=False)
        folder = tmp_path / "c" if call != "mkdir" else tmp_path / "d"
        with pytest.raises(SaveError, match=f"^cannot save {folder}: {os.strerror(errno.EDQUOT)}; needed: "):
            build(folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def small_disk(place: Path, size: int) -> bool:
    """Mount an empty disk of `size` bytes at `place`, seen by this process alone; whether the system lets one."""
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    new_user, new_mounts = 0x10000000, 0x00020000
    if not hasattr(libc, "unshare") or libc.unshare(new_user | new_mounts):
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    except OSError:
        return False
    return bool(libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, b"size=%d" % size) == 0)


@pytest.mark.parametrize("defence", ["free space", "room beforehand", "the writing itself"])
def test_a_full_disk_is_one_clear_line_and_no_signal(
    defence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if defence != "free space":
        monkeypatch.setattr(latents, "free_bytes", lambda path: None)
    if defence == "the writing itself":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)

    def attempt() -> tuple[str, list[str], list[int]] | None:
        if not small_disk(tmp_path, 1_000_000):
            return None
        result = refused(tmp_path / "c")
        monkeypatch.setattr(latents, "free_bytes", lambda path: None)
        (tmp_path / "small").mkdir()
        latents.build(tmp_path / "small", image_set(COUNT), Large(), flips=False)  # half: what failed left the room
        return *result, [path.stat().st_size for path in (tmp_path / "small").iterdir()]

    code, result = in_child(attempt)
    assert code == 0
    if result is None:
        pytest.skip("the system lets no disk be mounted here")
    assert result[0].startswith(said(tmp_path / "c", errno.ENOSPC))
    assert result[1:] == ([], [NEEDED // 2 + 128])
