"""IDX files and CIFAR batches: whole ones are read as published, others are refused by what is wrong with them."""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from moyai.data import cifar, digits, idx
from moyai.data.config import Cifar10Config, DigitsConfig, IdxConfig
from moyai.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 5, 7), np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 3


def idx_bytes(values: np.ndarray, code: int = 8) -> bytes:
    return bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def written(folder: Path, images: bytes, labels: bytes, joint: str = "-", end: str = "") -> IdxConfig:
    pack = gzip.compress if end else bytes
    (folder / f"train-images{joint}idx3-ubyte{end}").write_bytes(pack(images))
    (folder / f"train-labels{joint}idx1-ubyte{end}").write_bytes(pack(labels))
    return IdxConfig(root=folder, download=False)


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_as_published(tmp_path: Path, joint: str, end: str) -> None:
    config = written(tmp_path, idx_bytes(IMAGES), idx_bytes(LABELS), joint, end)
    images = idx.read(config, tmp_path / "cache")
    np.testing.assert_array_equal(np.asarray(images.pixels)[:, 0], IMAGES)
    np.testing.assert_array_equal(images.fields["class"], LABELS)
    assert images.classes == ("0", "1", "2")
    assert images.names[11] == "train-images[11]"
    assert len(images.files) == 2
    assert not (tmp_path / "cache").exists()


WHOLE = idx_bytes(IMAGES)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (b"", idx_bytes(LABELS), "begins with nothing"),
        (b"\x89PNG" + WHOLE, idx_bytes(LABELS), "not an IDX file: it begins with 89504e47"),
        (WHOLE[:9], idx_bytes(LABELS), "cut off within its header"),
        (WHOLE[:-1], idx_bytes(LABELS), "its 435 bytes cannot"),
        (WHOLE + b"\0", idx_bytes(LABELS), "more than its header says"),
        (idx_bytes(IMAGES.astype(">f4"), 13), idx_bytes(LABELS), "holds float32 in 3 dimensions"),
        (idx_bytes(IMAGES[0]), idx_bytes(LABELS), "holds uint8 in 2 dimensions; needed are uint8 in 3"),
        (WHOLE[:4] + struct.pack(">3I", 2**32 - 1, 2**16, 2**16) + WHOLE[16:], idx_bytes(LABELS), "bytes cannot"),
        (WHOLE[:4] + struct.pack(">3I", 12, 0, 7), idx_bytes(LABELS), "bytes cannot"),
        (WHOLE, idx_bytes(LABELS[:-1]), "12 images and train-labels-idx1-ubyte 11 labels"),
    ],
)
def test_idx_that_is_not_whole_is_refused(tmp_path: Path, images: bytes, labels: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        idx.read(written(tmp_path, images, labels), tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_gzip_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    written(tmp_path, WHOLE, idx_bytes(LABELS), end=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for length in range(0, len(whole), 9):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="train-images-idx3-ubyte"):
            idx.read_idx(path, 3)
    path.write_bytes(whole[:-12] + b"\xff\xff\xff\xff" + whole[-8:])
    with pytest.raises(DataError, match="damaged or cut off"):
        idx.read_idx(path, 3)
    bomb = gzip.compress(WHOLE[:4] + struct.pack(">3I", 2**20, 2**10, 2**10) + bytes(2**20))
    path.write_bytes(bomb)
    with pytest.raises(DataError, match="bytes cannot"):
        idx.read_idx(path, 3)


def test_values_that_fill_whole_pieces_are_counted_to_the_end(tmp_path: Path) -> None:
    values = np.arange(idx.CHUNK, dtype=np.uint32).astype(np.uint8).reshape(4, 512, 512)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(values), 1))
    np.testing.assert_array_equal(idx.read_idx(path, 3), values)
    path.write_bytes(gzip.compress(idx_bytes(values) + b"\0", 1))
    with pytest.raises(DataError, match="more than its header says"):
        idx.read_idx(path, 3)


def test_idx_options(tmp_path: Path) -> None:
    config = written(tmp_path, idx_bytes(IMAGES), idx_bytes(LABELS))
    bigger = idx.read(config.model_copy(update={"resolution": (10, 14), "channels": 3, "limit": 6}), tmp_path)
    assert bigger.shape == (3, 10, 14)
    assert np.bincount(bigger.fields["class"]).tolist() == [2, 2, 2]
    assert bigger.fingerprint != idx.read(config, tmp_path).fingerprint
    named = config.model_copy(update={"classes": ("a", "b")})
    with pytest.raises(DataError, match=r"labels up to 2, but data\.classes names 2"):
        idx.read(named, tmp_path)


def test_files_that_are_nowhere_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        idx.read(IdxConfig(root=tmp_path, download=False), tmp_path)
    assert "train-images-idx3-ubyte.gz" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def batch(rows: int, start: int) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(start).integers(0, 256, (rows, 3, 32, 32), np.uint8)
    labels = (np.arange(rows) + start) % 10
    return b"".join(bytes([n]) + p.tobytes() for n, p in zip(labels, pixels, strict=True)), pixels


def test_cifar_from_the_archive_equals_the_batches(tmp_path: Path) -> None:
    packed, loose = tmp_path / "packed", tmp_path / "loose" / "cifar-10-batches-bin"
    packed.mkdir()
    loose.mkdir(parents=True)
    parts = {f"data_batch_{i}.bin": batch(4, i) for i in range(1, 6)}
    with tarfile.open(packed / cifar.ARCHIVE, "w:gz") as archive:
        for name, (data, _) in reversed(parts.items()):
            (loose / name).write_bytes(data)
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    one = cifar.read(Cifar10Config(root=packed, download=False), tmp_path)
    two = cifar.read(Cifar10Config(root=loose.parent, download=False), tmp_path)
    np.testing.assert_array_equal(np.asarray(one.pixels), np.concatenate([p for _, p in parts.values()]))
    np.testing.assert_array_equal(np.asarray(two.pixels), np.asarray(one.pixels))
    assert (
        one.fields["class"].tolist()
        == two.fields["class"].tolist()
        == [(i + j) % 10 for i in range(1, 6) for j in range(4)]
    )
    assert one.names[5] == "data_batch_2[1]"
    assert one.classes == cifar.CLASSES

    whole = (packed / cifar.ARCHIVE).read_bytes()
    (packed / cifar.ARCHIVE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged or cut off"):
        cifar.read(Cifar10Config(root=packed, download=False), tmp_path)
    (loose / "data_batch_3.bin").write_bytes(parts["data_batch_3.bin"][0][:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin is cut off"):
        cifar.read(Cifar10Config(root=loose.parent, download=False), tmp_path)
    (loose / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3.bin"):
        cifar.read(Cifar10Config(root=loose.parent, download=False), tmp_path)


def test_digits() -> None:
    small = digits.read(DigitsConfig(resolution=8), Path("unused"))
    assert (small.count, small.shape) == (1797, (1, 8, 8))
    assert np.bincount(small.fields["class"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    from sklearn.datasets import load_digits

    values = load_digits().images
    assert np.abs(np.asarray(small.pixels)[:, 0] / 255 * 16 - values).max() < 16 / 255
    large = digits.read(DigitsConfig(limit=50), Path("unused"))
    assert (large.count, large.shape) == (50, (1, 32, 32))
    assert large.names[0].startswith("digits[")


def test_real_mnist(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYAI_DATA", str(real_data))
    images = idx.read(IdxConfig(name="mnist", download=False), tmp_path)
    assert images.shape == (1, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(images.fields["class"]).tolist() == counts
    assert np.asarray(images.pixels).mean() / 255 == pytest.approx(0.1307, abs=5e-5)  # the published mean


def test_real_fashion_mnist(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYAI_DATA", str(real_data))
    images = idx.read(IdxConfig(name="fashion-mnist", download=False), tmp_path)
    assert np.bincount(images.fields["class"]).tolist() == [6000] * 10
    assert images.classes[9] == "ankle boot"
    assert np.asarray(images.pixels).mean() / 255 == pytest.approx(0.2860, abs=5e-5)


def test_real_cifar(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYAI_DATA", str(real_data))
    images = cifar.read(Cifar10Config(download=False, limit=2000), tmp_path)
    assert (images.count, images.shape, images.classes) == (2000, (3, 32, 32), cifar.CLASSES)
    assert np.bincount(images.fields["class"]).tolist() == [200] * 10
    mean = np.asarray(images.pixels).mean((0, 2, 3)) / 255
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.015)  # the published means, of all 50,000
