"""Features are computed once for each content and each extractor, and never taken for others'."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from moyai.data.images import PixelRows
from moyai.errors import DataError, SaveError
from moyai.evaluation import features
from moyai.evaluation.features import content_hash, distances, extract, to_images, weights_hash
from moyai.evaluation.values import Features, Source


class Counting:
    """Means and extremes of each picture; counts the pictures it was shown."""

    def __init__(self, digest: str = "a" * 64, name: str = "counting") -> None:
        self.source, self.shown = Source(name, digest, 3), 0

    def __call__(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        flat = images.flatten(1)
        return torch.stack([flat.mean(1), flat.amax(1), flat.amin(1)], 1)

    def probabilities(self, features: Tensor) -> Tensor | None:
        return torch.stack([features[:, 0] > 0, features[:, 0] <= 0], 1).float()


def pictures(count: int = 10, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, 2, 4, 5)).astype(dtype)


def test_features_are_those_of_the_stored_integers_whatever_the_batch() -> None:
    pixels = pictures()
    found = extract(Counting(), pixels, batch=3)
    flat = pixels.reshape(10, -1).astype(np.float64) / 127.5 - 1
    expected = np.stack([flat.mean(1), flat.max(1), flat.min(1)], 1)
    np.testing.assert_allclose(found.values.numpy(), expected, atol=1e-6)
    assert found.values.dtype == torch.float32
    assert found.probabilities is not None
    assert found.probabilities.argmax(1).tolist() == (expected[:, 0] <= 0).astype(int).tolist()
    assert extract(Counting(), pixels, batch=100).values.equal(found.values)
    deep = extract(Counting(), pixels.astype(np.uint16) * 257)
    np.testing.assert_allclose(deep.values.numpy(), expected, atol=1e-6)
    assert to_images(np.array([0, 255], np.uint8)).tolist() == [-1, 1]


def test_the_cache_is_used_again_and_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first, second = Counting(), Counting()
    one = extract(first, pictures(), cache=tmp_path, batch=4, progress=lambda done, total: told.append((done, total)))
    two = extract(second, pictures(), cache=tmp_path, batch=4)
    assert (first.shown, second.shown) == (10, 0)
    assert told == [(4, 10), (8, 10), (10, 10)]
    assert two.values.equal(one.values)
    assert two.probabilities is not None
    assert two.content == one.content == content_hash(pictures())


@pytest.mark.parametrize("other", [Counting("b" * 64), Counting(name="counting, resized")])
def test_another_extractor_or_picture_is_not_in_the_cache(tmp_path: Path, other: Counting) -> None:
    extract(Counting(), pictures(), cache=tmp_path)
    other.shown = 0
    extract(other, pictures(), cache=tmp_path)
    assert other.shown == 10
    changed, again = pictures(), Counting()
    changed[9, 1, 3, 4] ^= 1
    extract(again, changed, cache=tmp_path)
    assert again.shown == 10
    extract(again, changed[::-1], cache=tmp_path)  # another order is another set
    assert again.shown == 20


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    expected = extract(Counting(), pictures(), cache=tmp_path).values
    (path,) = (tmp_path / "features").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    again = Counting()
    assert extract(again, pictures(), cache=tmp_path).values.equal(expected)
    assert again.shown == 10
    assert extract(again, pictures(), cache=tmp_path).values.equal(expected)
    assert again.shown == 10  # whole once more


def test_what_is_not_finite_in_the_cache_is_made_again(tmp_path: Path) -> None:
    expected = extract(Counting(), pictures(), cache=tmp_path).values
    (path,) = (tmp_path / "features").rglob("*.safetensors")
    path.write_bytes(safetensors.torch.save({"features": torch.where(torch.arange(3) == 1, torch.nan, expected)}))
    again = Counting()
    assert extract(again, pictures(), cache=tmp_path).values.equal(expected)
    assert again.shown == 10


def test_what_other_code_computed_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(Counting(), pictures(), cache=tmp_path)
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    again = Counting()
    extract(again, pictures(), cache=tmp_path)
    assert again.shown == 10


def test_distances_are_kept_under_all_they_follow_from(tmp_path: Path) -> None:
    one, two = extract(Counting(), pictures()), extract(Counting(), pictures()[::-1].copy())
    made: list[str] = []

    def asked(name: str, first: Features, second: Features, count: int = 10, cache: Path | None = tmp_path) -> float:
        made.append(name)

        def make() -> Tensor:
            made.pop()
            return torch.full((count,), float(len(name))).double()

        return float(distances(name, first, second, count, make, cache=cache)[0])

    assert [asked("pixels", one, two), asked("pixels", one, two)] == [6, 6]
    assert made == ["pixels"]  # found the second time
    made.clear()
    asked("pixels", two, one)
    asked("feature", one, two)
    asked("pixels", one, two, count=9)  # of the wrong length: made again
    asked("pixels", one, two, count=9, cache=None)
    unknown = Features(one.values, one.source)  # of pictures that nobody knows
    asked("pixels", unknown, two)
    asked("pixels", unknown, two)
    assert made == []
    for path in (tmp_path / "features").rglob("*.distances.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    assert asked("feature", one, two) == 7
    assert made == []


def test_hashes_follow_content_only() -> None:
    pixels = pictures()
    rows = PixelRows(np.concatenate([pixels, pixels]), np.arange(10, 20))
    assert content_hash(rows) == content_hash(pixels)
    assert content_hash(pixels.reshape(10, 2, 5, 4)) != content_hash(pixels)
    weights = {"b": torch.arange(6.0), "a": torch.ones(2, 3)}
    assert weights_hash(weights) == weights_hash(dict(reversed(weights.items())))
    for other in ({**weights, "a": torch.ones(3, 2)}, {**weights, "b": torch.arange(6.0).half()}, {"b": weights["b"]}):
        assert weights_hash(other) != weights_hash(weights)


def test_bad_input_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no pictures"):
        extract(Counting(), pictures(0))
    with pytest.raises(DataError, match="at least 2"):
        extract(Counting(), pictures(1))
    with pytest.raises(DataError, match=r"uint8 or uint16, not \(10, 2, 4, 5\) float64"):
        extract(Counting(), pictures() / 255)
    (tmp_path / "features").write_text("a file where the folder should be")
    with pytest.raises(SaveError, match="cannot save"):
        extract(Counting(), pictures(), cache=tmp_path)
