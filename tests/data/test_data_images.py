"""Integers to floats and back, subsets, limits, and the first difference between two lists of files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moyai.data.images import ImageSet, SourceFile, chosen, difference, rows_of, to_uint


def image_set(pixels: np.ndarray, labels: np.ndarray | None = None) -> ImageSet:
    return ImageSet(
        pixels=pixels,
        names=[f"p{i}" for i in range(len(pixels))],
        files=(SourceFile("a", 1, "00"),),
        fields={} if labels is None else {"class": labels},
        classes=() if labels is None else tuple(map(str, range(labels.max() + 1))),
    )


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16)])
def test_to_uint_is_the_inverse_of_images_at_every_level(dtype: type, bits: int) -> None:
    levels = np.arange(2**bits, dtype=dtype).reshape(1, 1, 16, -1)
    images = image_set(levels)
    floats = images.images(np.array([0]))
    assert images.bits == bits
    assert floats.dtype == torch.float32
    assert (float(floats.min()), float(floats.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint(floats, bits), levels.transpose(0, 2, 3, 1))


def test_to_uint_rounds_clips_and_blackens_what_is_no_number() -> None:
    values = torch.tensor([-2.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 3.0, float("nan"), float("inf")]).view(1, 1, 1, -1)
    assert to_uint(values).ravel().tolist() == [0, 0, 1, 255, 0, 255]


def test_a_batch_mirrors_those_that_are_flipped_and_carries_the_fields() -> None:
    pixels = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 1, 2, 4)
    images = image_set(pixels, np.array([0, 1, 1]))
    batch = images.batch(np.array([2, 0]), np.array([True, False]))
    assert batch.images is not None
    got = to_uint(batch.images)[..., 0]
    np.testing.assert_array_equal(got[0], pixels[2, 0, :, ::-1])
    np.testing.assert_array_equal(got[1], pixels[0, 0])
    assert batch.index.tolist() == [2, 0]
    assert batch.fields["class"].tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_fields_with_a_width_are_mirrored_with_their_pictures(dtype: type) -> None:
    maps, pictures = np.arange(24).reshape(3, 2, 4).astype(dtype), np.arange(24).reshape(3, 1, 2, 4).astype(dtype)
    got = rows_of({"map": maps, "picture": pictures, "number": np.arange(3)}, np.array([1, 2]), np.array([False, True]))
    for name, values in (("map", maps), ("picture", pictures)):
        np.testing.assert_array_equal(got[name].numpy(), np.stack((values[1], values[2][..., ::-1])))
    assert got["number"].tolist() == [1, 2]


def test_a_subset_of_a_subset_of_a_memory_map_copies_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.random.default_rng(0).integers(0, 256, (9, 3, 4, 5), np.uint8))
    mapped = np.load(tmp_path / "p.npy", mmap_mode="r")
    whole = image_set(mapped, np.arange(9))
    part = whole.subset(np.array([8, 3, 5])).subset(np.array([2, 0]))
    assert part.pixels.stored is mapped  # type: ignore[union-attr]
    assert (part.count, part.shape, part.names) == (2, (3, 4, 5), ["p5", "p8"])
    assert part.fields["class"].tolist() == [5, 8]
    np.testing.assert_array_equal(np.asarray(part.pixels), mapped[[5, 8]])
    assert torch.equal(part.images(np.array([1])), whole.images(np.array([8])))
    assert part.fingerprint != whole.fingerprint
    with pytest.raises(IndexError, match="0 to 8"):
        whole.subset(np.array([9]))


def test_the_fingerprint_follows_files_and_decoding() -> None:
    pixels = np.zeros((1, 1, 2, 2), np.uint8)
    row = SourceFile("a", 1, "00")
    prints = {
        ImageSet(pixels, {}, (), ["a"], files, decoding=decoding).fingerprint
        for files, decoding in [
            ((row,), ""),
            ((row,), "32"),
            ((SourceFile("b", 1, "00"),), ""),
            ((SourceFile("a", 2, "00"),), ""),
            ((SourceFile("a", 1, "01"),), ""),
            ((row, SourceFile("b", 1, "00")), ""),
        ]
    }
    assert len(prints) == 6


def test_a_limit_takes_evenly_from_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [50, 5, 20])
    names = [f"n{i}" for i in range(75)]
    kept = chosen(names, labels, 21)
    assert np.bincount(labels[kept]).tolist() == [8, 5, 8]
    assert (np.diff(kept) > 0).all()
    assert set(chosen(names, labels, 9)) <= set(kept)  # a larger limit keeps the smaller's
    assert len(chosen(names, labels, None)) == len(chosen(names, labels, 100)) == 75
    shuffled = np.random.default_rng(0).permutation(75)
    again = chosen([names[i] for i in shuffled], labels[shuffled], 21)
    assert {names[i] for i in kept} == {names[shuffled[i]] for i in again}


OLD = (SourceFile("a.png", 1, "aa"), SourceFile("b.png", 2, "bb"), SourceFile("c.png", 3, "cc"))


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (OLD, None),
        (OLD[::-1], None),
        ((*OLD, SourceFile("d.png", 4, "dd")), "d.png was added"),
        (OLD[:2], "c.png was removed"),
        ((OLD[0], SourceFile("b.png", 2, "bx"), OLD[2]), "b.png was altered (2 bytes before, 2 now)"),
        ((OLD[0], OLD[2], SourceFile("z.png", 2, "bb")), "b.png was renamed to z.png"),
        ((OLD[1], OLD[2], SourceFile("0.png", 1, "aa")), "a.png was renamed to 0.png"),
        ((*OLD, SourceFile("d.png", 1, "aa")), "d.png was added"),  # a copy of one that is still there
        ((SourceFile("a.png", 9, "a9"), OLD[1]), "a.png was altered (1 bytes before, 9 now) (and 1 more differences)"),
    ],
)
def test_difference_says_the_first_one(new: tuple[SourceFile, ...], sentence: str | None) -> None:
    assert difference(OLD, new) == sentence
