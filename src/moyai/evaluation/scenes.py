"""Is a scene of shapes what its caption says? A program reads the picture; no network has a say in it.

Backgrounds are grey, so a thing is where there is colour, that is, where the chroma c = max - min of the channels is
above `CHROMA`:

* each such pixel takes the colour whose hue is nearest, the hue being the direction of (red, green, blue) less its
  mean, which mixing with grey at an edge leaves as it is;
* connected pixels of one colour (by their sides) are a thing, unless they have less area than `LEAST` of the smallest;
* its area is the sum of min(1, c / c0), c0 the median chroma of the thing, which counts a pixel at the edge by its
  share and which blur does not change. Large is what has a greater radius sqrt(area / pi) than `LARGE`;
* its shape is the one that, drawn with that area around that centre of mass, differs least from these shares.

A caption may tell of several things, and which of those found is which has to be settled first: by the assignment under
which most is right, a point for each colour, shape and size, and for a relation more than for one thing's colour and
size together, so that exchanged colours are wrong colours rather than a wrong place. Then, each with its share of the
pictures in which all of it is right (and the number of things too):

    colours, shapes, sizes as told;   relations as told, of the pictures whose caption tells one;   scenes as told: all

One thing lies left of another where its centre does, and by more than it lies above or below it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from moyai.data import shapes
from moyai.data.grammar import COLOURS, SHAPES, SIZES, Scene, Thing, parse
from moyai.errors import DataError
from moyai.evaluation.values import Source, Value, share

VERSION = 1  # counts up when the same picture is read otherwise
CHROMA = 45.0  # of 255: less is grey
LEAST = 0.3  # of the area of the smallest thing: what is smaller is a speck
LARGE = float(np.sqrt(shapes.RADII[0][1] * shapes.RADII[1][0]))  # between the two sizes
RELATION = 2.5  # the weight of a relation beside a colour, a shape or a size
ASPECTS = ("colours", "shapes", "sizes", "relations", "scenes")
SOURCE = Source(f"program that reads scenes of shapes, {VERSION}", "", 0)
_CHUNK = 256


@dataclass(frozen=True)
class Seen:
    """A thing in a picture: what it is, and the centre of its mass, x to the right and y downwards, in pixels."""

    thing: Thing
    x: float
    y: float


class SceneJudge:
    """How much of a caption is in the picture: an obedience to "caption", asked as an array (N,) of str."""

    field = "caption"

    def measure(self, pixels: np.ndarray, asked: np.ndarray) -> tuple[Value, ...]:
        """Shares of pictures (N, 3, H, W) in which all colours, shapes, sizes, the relation and all of it are right.

        DataError for captions that are not of such scenes, and for pictures without colour.
        """
        if len(asked) != len(pixels):
            raise DataError(f"{len(pixels)} pictures need as many captions, not {len(asked)}")
        scenes = [parse(str(caption)) for caption in asked]
        right = np.array([agreement(seen, scene) for seen, scene in zip(read(pixels), scenes, strict=True)])
        related = np.array([scene.relation is not None for scene in scenes])
        found = []
        for aspect, column in zip(ASPECTS, right.T, strict=True):
            rows = column[related] if aspect == "relations" else column
            if len(rows):
                found.append(share(f"{aspect} as told", int(rows.sum()), len(rows), reference=0, source=SOURCE))
        return tuple(found)


def agreement(seen: Sequence[Seen], told: Scene) -> tuple[bool, bool, bool, bool, bool]:
    """Whether all colours, all shapes, all sizes, the relation, and all of these are as told.

    Nothing is where the number of things is another. A size or relation that is not told is right.
    """
    if len(seen) != len(told.things):
        return False, False, False, False, False
    best = max((_hits(order, told) for order in permutations(seen)), key=_weight)
    colours, sizes, same_shapes, relation = (bool(column.all()) for column in best.T)
    return colours, same_shapes, sizes, relation, bool(best.all())


def _hits(order: Sequence[Seen], told: Scene) -> np.ndarray:
    """(things, 4) bool: colour, size, shape, relation, when the things are found in this order."""
    relation = told.relation is None or _between(order[0], order[1], told.relation)
    return np.array(
        [
            (one.thing.colour == of.colour, of.size in (None, one.thing.size), one.thing.shape == of.shape, relation)
            for one, of in zip(order, told.things, strict=True)
        ]
    )


def _between(one: Seen, other: Seen, relation: str) -> bool:
    return lies(other.x - one.x, other.y - one.y, relation)


def _weight(hits: np.ndarray) -> float:
    return float(hits[:, :3].sum() + RELATION * hits[0, 3])


def lies(x: float, y: float, relation: str) -> bool:
    """Whether one thing lies to another as told; x, y: from it to the other, to the right and downwards."""
    along = {"left of": x, "right of": -x, "above": y, "below": -y}[relation]
    across = y if relation in ("left of", "right of") else x
    return along > abs(across)


# ---- reading


def read(pixels: np.ndarray) -> Iterator[tuple[Seen, ...]]:
    """What is in each of the pictures (N, 3, H, W) uint8 or uint16, from left to right."""
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise DataError(f"scenes are read from pictures (N, 3, H, W), not {tuple(pixels.shape)}")
    top = np.iinfo(pixels.dtype).max
    for start in range(0, len(pixels), _CHUNK):
        values = np.asarray(pixels[start : start + _CHUNK]).astype(np.float32) * (255 / top)
        kinds, chroma = pixel_colours(values), values.max(1) - values.min(1)
        for seen in zip(connected(kinds), kinds, chroma, strict=True):
            yield _things(*seen)


def pixel_colours(values: np.ndarray) -> np.ndarray:
    """The number of each pixel's colour (N, H, W), -1 where it is grey, of pictures (N, 3, H, W) in 0..255."""
    values = values.astype(np.float32)
    return np.where(values.max(1) - values.min(1) > CHROMA, _nearest(values), -1)


def _nearest(values: np.ndarray) -> np.ndarray:
    """(N, H, W) the number of the colour with the nearest hue, of pictures (N, 3, H, W)."""
    hues = shapes.RGB - shapes.RGB.mean(1, keepdims=True)
    hues /= np.linalg.norm(hues, axis=1, keepdims=True)
    return np.asarray(np.einsum("kc,nchw->nkhw", hues, values - values.mean(1, keepdims=True)).argmax(1))


def connected(kinds: np.ndarray) -> np.ndarray:
    """Numbers (N, H, W), equal within a picture where pixels of equal kind (>= 0) touch by their sides; 0 elsewhere.

    Each pixel starts with its own number; all take the largest among their likes next to them until nothing changes,
    and on the way look up what the pixel of that number has become, which is faster than step by step.
    """
    count, height, width = kinds.shape
    labels = np.where(kinds >= 0, np.arange(1, height * width + 1).reshape(height, width), 0)
    down, right = (kinds[:, 1:] == kinds[:, :-1]), (kinds[:, :, 1:] == kinds[:, :, :-1])
    while True:
        before = labels.copy()
        for alike, one, other in (
            (down, labels[:, 1:], labels[:, :-1]),
            (right, labels[:, :, 1:], labels[:, :, :-1]),
        ):
            np.maximum(one, other, out=one, where=alike)
            np.maximum(other, one, out=other, where=alike)
        flat = np.concatenate([np.zeros((count, 1), labels.dtype), labels.reshape(count, -1)], 1)
        labels = np.take_along_axis(flat, labels.reshape(count, -1), 1).reshape(labels.shape)
        if (labels == before).all():
            return labels


def _things(labels: np.ndarray, colours: np.ndarray, chroma: np.ndarray) -> tuple[Seen, ...]:
    """The things of one picture, from its (H, W) numbers, colours and chroma."""
    scale = min(labels.shape) / shapes.SIDE
    least = LEAST * np.pi * (shapes.RADII[0][0] * scale) ** 2
    found = []
    for number, pixels in zip(*np.unique(labels[labels > 0], return_counts=True), strict=True):
        if pixels < least:
            continue
        inside = labels == number
        part = np.where(inside, np.minimum(1, chroma / np.median(chroma[inside])), 0)
        area = float(part.sum())
        y, x = np.arange(part.shape[0]) + 0.5, np.arange(part.shape[1]) + 0.5
        cx, cy, r = float(part.sum(0) @ x) / area, float(part.sum(1) @ y) / area, float(np.sqrt(area / np.pi))
        misfits = [
            float(np.abs(np.clip(0.5 - shapes.outside(shape, x - cx, (y - cy)[:, None], r), 0, 1) - part).sum())
            for shape in SHAPES
        ]
        colour = COLOURS[int(colours[inside][0])]
        size = SIZES[int(r > LARGE * scale)]
        found.append(Seen(Thing(size, colour, SHAPES[int(np.argmin(misfits))]), cx, cy))
    return tuple(sorted(found, key=lambda seen: seen.x))
