"""The split follows from the pixels, keeps duplicates and groups together and every class on both sides."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moyai.data.images import ImageSet, SourceFile
from moyai.data.splits import split
from moyai.errors import DataError


def pictures(values: np.ndarray, labels: np.ndarray | None = None, groups: np.ndarray | None = None) -> ImageSet:
    """One picture for each value, equal for equal values."""
    pixels = np.zeros((len(values), 1, 2, 2), np.uint16)
    pixels[:, 0, 0, 0] = values
    classes = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
    fields = {} if labels is None else {"class": labels}
    names = [str(i) for i in range(len(values))]
    return ImageSet(pixels, fields, classes, names, (SourceFile("a", 1, ""),), groups=groups)


def outside(images: ImageSet, share: float = 0.1) -> set[int]:
    """The values of the pictures held out."""
    return set(images.pixels[split(images, share)[1]][:, 0, 0, 0].tolist())


def test_every_sample_is_on_one_side_and_the_share_is_met() -> None:
    images = pictures(np.arange(20_000))
    train, validation = split(images, 0.1)
    assert sorted([*train, *validation]) == list(range(20_000))
    assert abs(len(validation) - 2000) < 4 * np.sqrt(20_000 * 0.1 * 0.9)
    assert outside(images, 0.05) < outside(images, 0.1)


def test_order_changes_nothing() -> None:
    values = np.arange(500)
    labels = values % 7
    order = np.random.default_rng(0).permutation(500)
    assert outside(pictures(values, labels)) == outside(pictures(values[order], labels[order]))


def test_adding_pictures_moves_none_that_was_there() -> None:
    few, many = np.arange(1000), np.arange(3000)
    before, after = outside(pictures(few)), outside(pictures(many))
    assert before == after & set(few.tolist())
    # Elsewhere: a class of few pictures, which needs mending, does not notice that another class grows.
    values = np.arange(300)
    small = pictures(values, (values < 296).astype(int))
    large = pictures(np.arange(900), np.r_[(values < 296).astype(int), np.ones(600, int)])
    assert outside(small) == outside(large) & set(values.tolist())


def test_duplicates_stay_together() -> None:
    values = np.random.default_rng(0).integers(0, 60, 400)
    train, validation = split(pictures(values, values % 3), 0.3)
    assert not set(values[train]) & set(values[validation])


def test_groups_and_duplicates_are_tied_through_each_other() -> None:
    # Groups 0, 1, 2 are chained: 0 and 1 share picture 7, 1 and 2 share picture 9. Group 3 and 4 stand alone.
    values = np.array([1, 7, 7, 9, 9, 2, 3, 4, 5, 6])
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    for share in (0.1, 0.2, 0.3, 0.4, 0.49):
        train, validation = split(pictures(values, groups=groups), share)
        sides = [{int(i) in validation for i in members} for members in (range(6), (6, 7), (8, 9))]
        assert all(len(side) == 1 for side in sides)
        assert len(train)
        assert len(validation)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.integers(0, 40), min_size=2, max_size=60),
    classes=st.integers(1, 12),
    share=st.floats(0.01, 0.49),
    seed=st.integers(0, 99),
)
def test_every_class_of_two_different_pictures_has_both_sides(
    values: list[int], classes: int, share: float, seed: int
) -> None:
    array = np.array(values)
    # A picture's class follows from its pixels here, so that mending one class never bares another.
    labels = np.random.default_rng(seed).integers(0, classes, 41)[array]
    images = pictures(array, labels)
    if len(set(values)) < 2:
        with pytest.raises(DataError, match="cannot be split"):
            split(images, share)
        return
    train, validation = split(images, share)
    assert len(train)
    assert len(validation)
    for label in np.unique(labels):
        if len(set(array[labels == label])) >= 2:
            assert (labels[train] == label).any()
            assert (labels[validation] == label).any()


def test_a_class_with_one_picture_does_not_stop_the_split() -> None:
    labels = np.zeros(50, int)
    labels[-1] = 1
    train, validation = split(pictures(np.arange(50), labels), 0.1)
    assert len(train) + len(validation) == 50


@pytest.mark.parametrize("members", [1, 2, 10, 60])
def test_a_share_of_the_groups_is_held_out_however_many_pictures_they_have(members: int) -> None:
    """The least of many hashes is nearly always below the share: 60 slices of each person would hold out everyone."""
    groups = np.repeat(np.arange(400), members)
    pixels = np.random.default_rng(0).integers(0, 256, (len(groups), 1, 3, 3)).astype(np.uint8)
    names = [str(i) for i in range(len(groups))]
    images = ImageSet(pixels, {}, (), names, (SourceFile("noise", 1, ""),), groups=groups)
    few, some = (len(split(images, share)[1]) / len(groups) for share in (0.1, 0.3))
    assert few == pytest.approx(0.1, abs=0.045)  # three deviations of a share of 400
    assert some == pytest.approx(0.3, abs=0.07)
    assert set(split(images, 0.1)[1]) <= set(split(images, 0.3)[1])


def test_the_order_of_a_group_changes_nothing() -> None:
    values = np.arange(300)
    groups = values // 5
    order = np.random.default_rng(0).permutation(300)
    assert outside(pictures(values, groups=groups)) == outside(pictures(values[order], groups=99 - groups[order]))


def test_one_group_cannot_be_split() -> None:
    images = pictures(np.arange(5))
    with pytest.raises(DataError, match="all of one group"):
        split(replace(images, groups=np.zeros(5, np.int64)), 0.1)


def test_a_split_that_the_source_brings_is_obeyed() -> None:
    values = np.arange(40) % 30  # ten pictures are there twice, on both sides
    brought = np.arange(40) % 4 == 1
    images = replace(pictures(values, values % 3, groups=np.arange(40) // 4 * 2 + brought), held_out=brought)
    for share in (0.01, 0.1, 0.49):
        train, validation = split(images, share)
        np.testing.assert_array_equal(validation, np.flatnonzero(brought))
        np.testing.assert_array_equal(train, np.flatnonzero(~brought))
    order = np.random.default_rng(0).permutation(40)[:30]
    np.testing.assert_array_equal(split(images.subset(order), 0.1)[1], np.flatnonzero(brought[order]))
    for side, expected in ((True, "0 pictures to train on and 10 held out"), (False, "30 pictures to train on and 0")):
        with pytest.raises(DataError, match=expected):
            split(images.subset(np.flatnonzero(brought == side)), 0.1)


def test_a_group_on_both_sides_of_a_brought_split_is_refused_by_name() -> None:
    images = replace(
        pictures(np.arange(6), groups=np.array([5, 5, 7, 7, 9, 9])), held_out=np.array([0, 0, 0, 1, 1, 1], bool)
    )
    with pytest.raises(
        DataError, match="1 groups are on both sides of the split; the first: 2 is trained on, 3 of the"
    ):
        split(images, 0.1)
