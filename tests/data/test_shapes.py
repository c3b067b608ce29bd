"""Captions, pictures and maps agree, by measures of their own; the same seed gives the same pictures."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from moyai.build.data import read_data
from moyai.data import grammar, shapes, splits
from moyai.data.config import ShapesConfig
from moyai.data.grammar import Scene, Thing, parse, swap_colours
from moyai.data.images import ImageSet
from moyai.errors import DataError

NOWHERE = Path("/nowhere")  # nothing is read from it or written to it
HUES = {"red": 0, "orange": 30, "yellow": 50, "green": 135, "blue": 225, "purple": 280}  # degrees, by any colour wheel


def drawn(**settings: object) -> ImageSet:
    return read_data(ShapesConfig.model_validate({"count": 300, **settings}), NOWHERE)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return drawn(seed=5)


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a map, (H, W) bool each, by flooding from one pixel after another."""
    left, found = mask > 0, []
    while left.any():
        part = np.zeros_like(left)
        part[np.unravel_index(left.argmax(), left.shape)] = True
        while True:
            grown = part.copy()
            grown[1:] |= part[:-1]
            grown[:-1] |= part[1:]
            grown[:, 1:] |= part[:, :-1]
            grown[:, :-1] |= part[:, 1:]
            grown &= left
            if (grown == part).all():
                break
            part = grown
        found.append(part)
        left &= ~part
    return found


def hue(rgb: np.ndarray) -> float:
    r, g, b = rgb - rgb.mean()
    return float(np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)) % 360)


def described(picture: np.ndarray, mask: np.ndarray) -> list[tuple[tuple[str, str, str], float, float]]:
    """(size, colour, shape), x and y of each part of a map, from areas, centroids and mean colours alone."""
    found = []
    for part in components(mask):
        (kind,) = np.unique(mask[part])
        y, x = np.nonzero(part)
        angle = hue(picture[:, part].mean(1))
        colour = min(HUES, key=lambda name: abs((HUES[name] - angle + 180) % 360 - 180))
        size = "large" if part.sum() > 165 else "small"
        found.append(((size, colour, grammar.SHAPES[kind - 1]), x.mean(), y.mean()))
    return found


@pytest.mark.parametrize("phrasing", ["varied", "plain"])
def test_captions_agree_with_colours_areas_and_centroids(phrasing: str) -> None:
    images = drawn(seed=5, phrasing=phrasing)
    related = 0
    for picture, mask, caption in zip(images.pixels, images.fields["mask"], images.fields["caption"], strict=True):
        told, there = parse(str(caption)), described(picture, mask)
        wanted = [(thing.size, thing.colour, thing.shape) for thing in told.things]
        assert sorted(found[0] for found in there) == sorted(wanted), caption  # type: ignore[type-var]
        if told.relation and wanted[0] != wanted[1]:
            related += 1
            (_, ax, ay), (_, bx, by) = sorted(there, key=lambda found: found[0] != wanted[0])
            along = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}[told.relation]
            across = abs(by - ay) if told.relation in ("left of", "right of") else abs(bx - ax)
            assert along > 10, caption
            assert along > 1.5 * across, caption
    assert related > 100


def test_maps_are_where_the_colour_is(images: ImageSet) -> None:
    """A region's edge is where a shape covers half of a pixel, and grey lies outside it."""
    chroma = images.pixels[:].max(1).astype(int) - images.pixels[:].min(1)  # type: ignore[union-attr]
    inside = images.fields["mask"] > 0
    assert chroma[inside].min() > 50
    deep = ~inside.copy()
    for axis in (1, 2):
        for shift in (-1, 1):
            deep &= ~np.roll(inside, shift, axis)
    for shift in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        deep &= ~np.roll(inside, shift, (1, 2))
    assert chroma[deep].max() < 30  # the tip of a corner
    assert (chroma[deep] > 0).mean() < 1e-3
    assert images.regions == ("background", *grammar.SHAPES)
    assert images.fields["mask"].dtype == np.uint8
    assert images.fields["mask"].shape == (300, 64, 64)


@pytest.mark.parametrize("shape", grammar.SHAPES)
def test_a_shape_has_the_area_and_the_centre_it_is_said_to_have(shape: str) -> None:
    """By counting 1600 points a pixel: area pi r^2, centre of mass at the origin; and smooth edges keep the area."""
    fine = (np.arange(-1000, 1000) + 0.5) / 40
    inside = shapes.outside(shape, fine, fine[:, None], 9.0) < 0
    assert inside.mean() * 2500 == pytest.approx(np.pi * 81, rel=0.004)
    assert np.abs((inside * fine).sum() / inside.sum()) < 0.02
    assert np.abs((inside * fine[:, None]).sum() / inside.sum()) < 0.1
    coarse = np.arange(-25, 25) + 0.5
    share = np.clip(0.5 - shapes.outside(shape, coarse, coarse[:, None], 9.0), 0, 1)
    assert share.sum() == pytest.approx(np.pi * 81, rel=0.01)
    blocks = inside.reshape(50, 40, 50, 40).mean((1, 3))
    assert np.abs(share - blocks).max() < 0.3  # a corner's pixel
    assert np.abs(share - blocks).mean() < 0.002


def test_pictures_follow_from_seed_and_number_alone(images: ImageSet) -> None:
    again, other = drawn(seed=5), drawn(seed=6)
    assert (np.asarray(images.pixels) == np.asarray(again.pixels)).all()
    assert (images.fields["caption"] == again.fields["caption"]).all()
    assert (images.fields["mask"] == again.fields["mask"]).all()
    assert images.fingerprint == again.fingerprint != other.fingerprint
    assert (images.fields["caption"] == other.fields["caption"]).mean() < 0.05
    fewer = drawn(seed=5, count=40)  # what is drawn beside it does not matter
    assert (np.asarray(fewer.pixels) == np.asarray(images.pixels)[:40]).all()
    assert fewer.fingerprint != images.fingerprint
    assert len(np.unique(splits.pixel_hashes(images))) == 300


def test_a_limit_keeps_some_of_the_same_pictures(images: ImageSet) -> None:
    few = drawn(seed=5, limit=30)
    rows = [images.names.index(name) for name in few.names]
    assert len(few) == 30
    assert rows == sorted(rows)
    assert rows != list(range(30))
    assert (np.asarray(few.pixels) == np.asarray(images.pixels)[rows]).all()
    assert list(few.fields["caption"]) == list(images.fields["caption"][rows])
    assert few.fingerprint != images.fingerprint
    assert set(drawn(seed=5, limit=20).names) < set(few.names)
    assert drawn(seed=5, limit=300).fingerprint == images.fingerprint


def test_the_split_and_batches_take_them_as_any_pictures(images: ImageSet) -> None:
    train, validation = splits.split(images, 0.1)
    assert 10 <= len(validation) <= 60
    held_out = images.subset(validation)
    assert held_out.regions == images.regions
    batch = held_out.batch(np.arange(3), np.array([False, True, False]))
    assert batch.images.shape == (3, 3, 64, 64)
    assert (batch.fields["mask"][1].numpy() == held_out.fields["mask"][1][:, ::-1]).all()
    assert len(train) + len(validation) == 300


@pytest.mark.parametrize(("resolution", "size"), [(32, (32, 32)), ((48, 80), (48, 80)), (128, (128, 128))])
def test_other_sides_are_scaled(resolution: object, size: tuple[int, int]) -> None:
    made = drawn(count=20, resolution=resolution)
    assert made.shape == (3, *size)
    scale = min(size) / 64
    for mask, caption in zip(made.fields["mask"], made.fields["caption"], strict=True):
        areas = sorted(part.sum() / scale**2 for part in components(mask))
        sizes = sorted((thing.size or "" for thing in parse(str(caption)).things), reverse=True)
        assert ["large" if area > 165 else "small" for area in areas] == sizes
    assert drawn(count=2, resolution=None).shape == (3, 64, 64)


def test_all_kinds_of_scene_are_there_about_as_often_as_said() -> None:
    told = [shapes.place(0, i, 64, 64).scene for i in range(1500)]
    assert np.bincount([len(scene.things) for scene in told])[1:] / 1500 == pytest.approx(shapes.COUNTS, abs=0.04)
    things = [thing for scene in told for thing in scene.things]
    for what, names in (("size", grammar.SIZES), ("colour", grammar.COLOURS), ("shape", grammar.SHAPES)):
        shares = [np.mean([getattr(thing, what) == name for thing in things]) for name in names]
        assert shares == pytest.approx([1 / len(names)] * len(names), abs=0.04)
    relations = [scene.relation for scene in told if len(scene.things) == 2]
    assert [np.mean([r == name for r in relations]) for name in grammar.RELATIONS] == pytest.approx(
        [shapes.RELATED / 4] * 4, abs=0.05
    )
    assert all(scene.relation is None for scene in told if len(scene.things) != 2)


def test_plain_captions_are_the_plainest_and_mostly_in_reading_order() -> None:
    told = [shapes.place(0, i, 64, 64, plain=True) for i in range(1500)]
    assert all(one.caption == grammar.captions(one.scene)[0] for one in told)
    relations = [one.scene.relation for one in told if one.scene.relation]
    shares = [np.mean([r == name for r in relations]) for name in grammar.RELATIONS]
    assert shares == pytest.approx(shapes.IN_ORDER, abs=0.05)
    assert {"left of", "above"} == {
        r for r, share in zip(grammar.RELATIONS, shapes.IN_ORDER, strict=True) if share > 0.25
    }
    assert drawn(phrasing="plain", count=2).fingerprint != drawn(count=2).fingerprint


# ---- the language


ONE, OTHER = Thing("large", "red", "circle"), Thing("small", "orange", "square")


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("a large red circle", Scene((ONE,))),
        ("A picture of a  BIG red circle.", Scene((ONE,))),
        ("there is an orange square", Scene((Thing(None, "orange", "square"),))),
        ("a large red circle left of a small orange square", Scene((ONE, OTHER), "left of")),
        ("a large red circle to the right of a little orange square", Scene((ONE, OTHER), "right of")),
        ("under a small orange square there is a big red circle", Scene((ONE, OTHER), "below")),
        ("a small orange square with a large red circle to its left", Scene((ONE, OTHER), "left of")),
        ("a small orange square with a large red circle above it", Scene((ONE, OTHER), "above")),
        ("a large red circle is over a small orange square", Scene((ONE, OTHER), "above")),
        ("a large red circle and a small orange square", Scene((ONE, OTHER))),
        ("a large red circle, a small orange square and a large red circle", Scene((ONE, OTHER, ONE))),
        ("a large red circle, a small orange square, and a large red circle", Scene((ONE, OTHER, ONE))),
    ],
)
def test_captions_are_read(caption: str, scene: Scene) -> None:
    assert parse(caption) == scene


def test_every_form_of_every_scene_is_read_back() -> None:
    scenes = [Scene((ONE,)), Scene((ONE, OTHER)), Scene((OTHER, ONE, ONE))]
    scenes += [Scene((ONE, OTHER), relation) for relation in grammar.RELATIONS]
    for scene in scenes:
        forms = grammar.captions(scene)
        assert len(set(forms)) == len(forms) >= 3
        assert forms[0] == str(scene)
        for form in forms:
            assert parse(form) == scene
            assert parse(grammar.reworded(form, [True] * len(scene.things))) == scene
    assert grammar.reworded("a large red circle and a small red cross", [True, False]) == (
        "a big red circle and a small red cross"
    )


@pytest.mark.parametrize(
    "caption",
    ["", "a cat", "a large pink circle", "a red circle left of", "a red circle a blue square", "red", "x" * 100_000],
)
def test_other_words_are_refused_in_one_line(caption: str) -> None:
    with pytest.raises(DataError, match="is not of a scene of shapes") as error:
        parse(caption)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_colours_are_swapped_and_nothing_else(images: ImageSet) -> None:
    assert swap_colours("a large red circle left of a small blue square") == (
        "a large blue circle left of a small red square"
    )
    assert swap_colours("an orange cross with a red circle to its left") == (
        "a red cross with an orange circle to its left"
    )
    swapped = 0
    for caption in images.fields["caption"].tolist():
        told = parse(caption)
        if len(told.things) == 2 and told.things[0].colour != told.things[1].colour:
            other = parse(swap_colours(caption))
            assert other.relation == told.relation
            assert [t.colour for t in other.things] == [t.colour for t in reversed(told.things)]
            assert [(t.size, t.shape) for t in other.things] == [(t.size, t.shape) for t in told.things]
            assert swap_colours(swap_colours(caption)) == caption
            swapped += 1
    assert swapped > 100
    for wrong in ("a red circle", "a red circle and a large red square", "a red cross, a blue cross and a red cross"):
        with pytest.raises(DataError, match="has not two things of different colours"):
            swap_colours(wrong)


# ---- mistakes


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.resolution is 24 x 64, too small to tell shapes apart; possible: 32"):
        drawn(resolution=(24, 64))
    for settings, message in (
        ({"channels": 1}, "captions tell of colours; possible: 3"),
        ({"flip": True}, "tell left from right; possible: false"),
        ({"count": 1}, "greater than or equal to 2"),
        ({"seed": -1}, "greater than or equal to 0"),
    ):
        with pytest.raises(ValidationError, match=message):
            ShapesConfig.model_validate(settings)
