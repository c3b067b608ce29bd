"""The program that reads scenes: right on real pictures, worse ones too; wrong captions are found out, each by its own
measure; and its parts by their definitions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moyai.data import shapes
from moyai.data.config import ShapesConfig
from moyai.data.grammar import COLOURS, OPPOSITE, SHAPES, Scene, Thing, parse, swap_colours
from moyai.data.images import ImageSet
from moyai.errors import DataError
from moyai.evaluation import obedience, scenes
from moyai.evaluation.scenes import SceneJudge, Seen

JUDGE = SceneJudge()


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return shapes.read(ShapesConfig(count=500, seed=11), Path("/nowhere"))


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def measured(pixels: np.ndarray, captions: np.ndarray | list[str]) -> dict[str, float]:
    return {value.metric: value.value for value in JUDGE.measure(np.asarray(pixels), np.array(captions))}


def worse(pixels: np.ndarray, sigma: float, noise: float) -> np.ndarray:
    """Blurred by a Gaussian of sigma pixels, with noise of so many levels."""
    x = torch.arange(-4.0, 5)
    kernel = torch.exp(-(x**2) / 2 / sigma**2)
    kernel /= kernel.sum()
    planes = F.pad(torch.from_numpy(pixels).float(), (4, 4, 4, 4), mode="reflect").flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).reshape(pixels.shape)
    noisy = blurred.numpy() + np.random.default_rng(0).normal(0, noise, pixels.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def test_real_pictures_are_what_they_are_told_to_be(images: ImageSet) -> None:
    values = JUDGE.measure(np.asarray(images.pixels), images.fields["caption"])
    assert [value.metric for value in values] == [f"{aspect} as told" for aspect in scenes.ASPECTS]
    assert all(value.value >= 0.995 for value in values)
    related = sum(parse(str(caption)).relation is not None for caption in images.fields["caption"])
    assert [value.count for value in values] == [500, 500, 500, related, 500]
    assert 200 < related < 400
    assert {value.source for value in values} == {scenes.SOURCE}
    assert all(value.low <= value.value <= value.high for value in values)  # type: ignore[operator]


def test_what_is_read_lies_where_the_map_has_it(images: ImageSet) -> None:
    """The centre of each thing is that of its region, to half a pixel."""
    for seen, mask in zip(scenes.read(np.asarray(images.pixels)[:100]), images.fields["mask"], strict=False):
        assert sorted({SHAPES.index(one.thing.shape) + 1 for one in seen}) == np.unique(mask[mask > 0]).tolist()
        if len(seen) == 1:
            y, x = np.nonzero(mask)
            assert abs(seen[0].x - x.mean() - 0.5) < 0.5
            assert abs(seen[0].y - y.mean() - 0.5) < 0.5


@pytest.mark.parametrize(("sigma", "noise", "colours", "others"), [(0.7, 4, 0.98, 0.95), (1.0, 8, 0.98, 0.95)])
def test_blur_and_noise_do_not_matter(
    images: ImageSet, sigma: float, noise: float, colours: float, others: float
) -> None:
    found = measured(worse(np.asarray(images.pixels)[:200], sigma, noise), images.fields["caption"][:200])
    assert found.pop("colours as told") >= colours
    assert all(value >= others for value in found.values())


def test_sixteen_bits_are_read_alike(images: ImageSet) -> None:
    pixels = np.asarray(images.pixels)[:40]
    assert list(scenes.read(pixels)) == list(scenes.read(pixels.astype(np.uint16) * 257))


def test_swapped_colours_are_wrong_colours_and_nothing_else(images: ImageSet) -> None:
    told = [parse(str(caption)) for caption in images.fields["caption"]]
    rows = [i for i, s in enumerate(told) if s.relation and s.things[0].colour != s.things[1].colour]
    assert len(rows) > 150
    swapped = [swap_colours(str(images.fields["caption"][i])) for i in rows]
    found = measured(images.pixels[np.array(rows)], swapped)
    assert found["colours as told"] <= 0.01
    assert found["scenes as told"] <= 0.01
    assert min(found[f"{aspect} as told"] for aspect in ("shapes", "sizes", "relations")) >= 0.99


@pytest.mark.parametrize("aspect", ["colours", "shapes", "sizes", "relations"])
def test_one_wrong_word_is_one_wrong_measure(images: ImageSet, aspect: str) -> None:
    """Of pictures with two things that are told apart by everything, only what is told otherwise is wrong."""

    def wrong(scene: Scene) -> Scene:
        first, second = scene.things
        if aspect == "relations":
            return replace(scene, relation=OPPOSITE[scene.relation or ""])
        other = {
            "colours": {"colour": next(c for c in COLOURS if c not in (first.colour, second.colour))},
            "shapes": {"shape": next(s for s in SHAPES if s not in (first.shape, second.shape))},
            "sizes": {"size": second.size},
        }[aspect]
        return replace(scene, things=(replace(first, **other), second))

    rows, captions = [], []
    for i, caption in enumerate(images.fields["caption"].tolist()):
        scene = parse(caption)
        if scene.relation:
            one, other = scene.things
            if one.colour != other.colour and one.shape != other.shape and one.size != other.size:
                rows.append(i)
                captions.append(str(wrong(scene)))
    assert len(rows) > 40
    found = measured(images.pixels[np.array(rows)], captions)
    for name, value in found.items():
        assert value <= 0.01 if name.split()[0] in (aspect, "scenes") else value >= 0.99, name


def test_other_pictures_captions_are_rarely_right(images: ImageSet) -> None:
    found = measured(np.asarray(images.pixels)[:200], images.fields["caption"][1:201])
    assert found["scenes as told"] < 0.02
    assert max(found.values()) < 0.5


def test_grey_noise_and_black_have_nothing_to_read(images: ImageSet) -> None:
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (5, 1, 64, 64)), 3, 1).astype(np.uint8)
    assert list(scenes.read(grey)) == [()] * 5
    assert list(scenes.read(np.zeros_like(grey))) == [()] * 5
    noise = rng.integers(0, 256, (20, 3, 64, 64)).astype(np.uint8)
    assert measured(noise, images.fields["caption"][:20])["scenes as told"] == 0


# ---- the parts


def seen(words: str, x: float, y: float) -> Seen:
    return Seen(parse(words).things[0], x, y)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [  # of a large red circle at (10, 30) and a small blue square at (40, 20): colours, shapes, sizes, relation, all
        ("a large red circle left of a small blue square", (True, True, True, True, True)),
        ("a small blue square and a red circle", (True, True, True, True, True)),
        ("a small blue square right of a large red circle", (True, True, True, True, True)),
        ("a large red circle right of a small blue square", (True, True, True, False, False)),
        ("a large red circle below a small blue square", (True, True, True, False, False)),  # more left than below
        ("a large blue circle left of a small red square", (False, True, True, True, False)),
        ("a large red circle left of a large blue square", (True, True, False, True, False)),
        ("a large red cross left of a small blue square", (True, False, True, True, False)),
        ("a large red circle", (False, False, False, False, False)),  # there is one more
        ("a red circle, a red circle and a blue square", (False, False, False, False, False)),
    ],
)
def test_agreement_by_hand(caption: str, expected: tuple[bool, ...]) -> None:
    there = (seen("a large red circle", 10, 30), seen("a small blue square", 40, 20))
    assert scenes.agreement(there, parse(caption)) == expected
    assert scenes.agreement(there[::-1], parse(caption)) == expected


def test_connected_parts_are_those_of_a_flood() -> None:
    rng = np.random.default_rng(3)
    kinds = rng.integers(-1, 2, (2, 12, 15))
    snake = np.full((1, 12, 15), -1)
    snake[0, ::2] = 0
    snake[0, 1::4, -1] = snake[0, 3::4, 0] = 0
    for picture, labels in ((k[0], scenes.connected(k)[0]) for k in (*kinds[:, None], snake)):
        assert ((labels > 0) == (picture >= 0)).all()
        for number in np.unique(labels[labels > 0]):
            part = labels == number
            assert len(np.unique(picture[part])) == 1
            reached = np.zeros_like(part)
            reached[np.unravel_index(part.argmax(), part.shape)] = True
            for _ in range(part.sum()):
                wide = np.pad(reached, 1)
                reached = part & (
                    wide[1:-1, 1:-1] | wide[2:, 1:-1] | wide[:-2, 1:-1] | wide[1:-1, 2:] | wide[1:-1, :-2]
                )
            assert (reached == part).all()
            beside = np.pad(part, 1)
            border = (beside[2:, 1:-1] | beside[:-2, 1:-1] | beside[1:-1, 2:] | beside[1:-1, :-2]) & ~part
            assert not (picture[border] == picture[part][0]).any()
    assert len(np.unique(scenes.connected(snake))) == 2


def test_the_judge_is_there_for_captions_it_can_read(images: ImageSet, tmp_path: Path) -> None:
    captioned = replace(images, fields={"caption": images.fields["caption"]})
    (judge,) = obedience.judges(captioned.subset(np.arange(20)), tmp_path, silent).values()
    assert isinstance(judge, SceneJudge)
    other = replace(captioned, fields={"caption": np.where(np.arange(500) == 7, "a cat", images.fields["caption"])})
    assert obedience.judges(other, tmp_path, silent) == {}
    grey = replace(captioned, pixels=np.asarray(images.pixels)[:, :1])
    assert obedience.judges(grey, tmp_path, silent) == {}


def test_bad_input_in_one_line(images: ImageSet) -> None:
    pixels, captions = np.asarray(images.pixels)[:3], images.fields["caption"][:3]
    with pytest.raises(DataError, match="3 pictures need as many captions, not 2"):
        JUDGE.measure(pixels, captions[:2])
    with pytest.raises(DataError, match="'a cat' is not of a scene of shapes"):
        JUDGE.measure(pixels, np.array(["a cat"] * 3))
    with pytest.raises(DataError, match=r"scenes are read from pictures \(N, 3, H, W\), not \(3, 1, 64, 64\)"):
        JUDGE.measure(pixels[:, :1], captions)
    none = JUDGE.measure(pixels, np.array([str(Scene((Thing("large", "red", "circle"),)))] * 3))
    assert [value.metric.split()[0] for value in none] == ["colours", "shapes", "sizes", "scenes"]  # no relation asked
