"""Scenes of one to three coloured shapes with captions and maps of regions, drawn when they are asked for.

Nothing is downloaded or read: picture i of a seed follows from (seed, i) alone. A shape is the set where a function f
that rises by one a pixel is below zero, and a pixel's share of it is 1/2 - f held to 0..1: smooth edges, without
drawing a larger picture first. All shapes of one size have one area, pi r^2, so that size is not told by the shape:

    circle    |p| - r                                      square    max(|x|, |y|) - h,               4 h^2 = pi r^2
    triangle  max of three half planes, 3 sqrt(3) a^2 = pi r^2, a the inner circle's radius
    cross     two bars of three by one,                    20 b^2 = pi r^2, b half of a bar's breadth

No two shapes overlap, and where the caption says how two of them lie, the boxes around them are apart in that
direction, and their centres further in it than across it (`ACROSS`). Backgrounds are grey, so that whatever has a hue
belongs to a shape.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moyai.data import grammar
from moyai.data.config import ShapesConfig
from moyai.data.grammar import COLOURS, RELATIONS, SHAPES, SIZES, Scene, Thing
from moyai.data.images import ImageSet, Progress, chosen
from moyai.errors import DataError
from moyai.randomness import generator

VERSION = 2  # counts up when the same seed gives other pictures
SIDE = 64  # the shorter side that lengths are said for; others are scaled
SMALLEST = 32  # pixels of a side that the least shapes can still be told apart on
RGB = np.array(
    [(225, 45, 45), (40, 170, 75), (45, 95, 225), (245, 210, 45), (155, 65, 205), (245, 130, 30)], dtype=np.float32
)  # of COLOURS, in order
RADII = ((4.8, 5.8), (8.4, 10.0))  # of SIZES in order: of the circle with the shape's area
COUNTS = (0.2, 0.6, 0.2)  # shares of scenes of one, two and three things
IN_ORDER = (0.375, 0.125, 0.375, 0.125)  # shares of RELATIONS where phrasing is plain: left and above are read first
RELATED = 0.85  # the share of scenes of two whose caption says how they lie
GAP, BORDER, ACROSS = 3.0, 2.0, 0.6  # pixels between boxes and to the border; |across| / |along| of a relation
REGIONS = ("background", *SHAPES)
_TRIES = 64  # places drawn at once for each thing
_CHUNK = 256  # pictures drawn together
# The box around a shape from its centre of mass, in radii: left = right, up, down.
_TRIANGLE = float(np.sqrt(np.pi / (3 * np.sqrt(3))))
_SQUARE, _CROSS = float(np.sqrt(np.pi) / 2), float(3 * np.sqrt(np.pi / 20))
_BOXES = np.array(
    [(1, 1, 1), (_SQUARE,) * 3, (np.sqrt(3) * _TRIANGLE, 2 * _TRIANGLE, _TRIANGLE), (_CROSS,) * 3], dtype=np.float64
)  # of SHAPES, in order


@dataclass(frozen=True)
class Placed:
    """A scene and where its things are: what a picture is drawn from."""

    scene: Scene
    caption: str
    centres: np.ndarray  # (things, 2) x to the right and y downwards, in pixels
    radii: np.ndarray  # (things,)
    shades: np.ndarray  # (things,) factors on the colours
    tone: float  # of the background, 0 to 255
    slope: np.ndarray  # (2,) by how much the background differs from side to side
    size: tuple[int, int]  # (H, W)


def read(config: ShapesConfig, cache: Path, progress: Progress | None = None) -> ImageSet:
    """The pictures (N, 3, H, W), "caption" (N,) str and "mask" (N, H, W) uint8: 0 is background, k is SHAPES[k - 1].

    Nothing is looked for and nothing is kept in the cache. DataError for a side below 32.
    """
    resolution = SIDE if config.resolution is None else config.resolution
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if min(height, width) < SMALLEST:
        raise DataError(
            f"data.resolution is {height} x {width}, too small to tell shapes apart; possible: {SMALLEST} or more"
        )
    names = [f"shapes[{i}]" for i in range(config.count)]
    kept = chosen(names, None, config.limit)
    pixels = np.empty((len(kept), 3, height, width), np.uint8)
    mask = np.empty((len(kept), height, width), np.uint8)
    captions = []
    for start in range(0, len(kept), _CHUNK):
        numbers = kept[start : start + _CHUNK].tolist()
        placed = [place(config.seed, i, height, width, plain=config.phrasing == "plain") for i in numbers]
        pixels[start : start + _CHUNK], mask[start : start + _CHUNK] = draw(placed)
        captions += [one.caption for one in placed]
        if progress:
            progress("drawing shapes", min(start + _CHUNK, len(kept)), len(kept))
    return ImageSet(
        pixels=pixels,
        fields={"caption": np.array(captions), "mask": mask},
        classes=(),
        names=[names[i] for i in kept],
        files=(),
        regions=REGIONS,
        decoding=f"shapes {VERSION}: seed {config.seed} count {config.count} {height}x{width} "
        f"limit {config.limit if len(kept) < config.count else None}"
        f"{' plain' if config.phrasing == 'plain' else ''}",
    )


# ---- what is in a picture


def place(seed: int, index: int, height: int, width: int, *, plain: bool = False) -> Placed:
    """Scene, caption and places of picture `index`, a function of these arguments alone; plain: as `phrasing` says."""
    rng = generator(seed, "shapes", index)
    scale = min(height, width) / SIDE
    told, numbers = _scene(rng, IN_ORDER if plain else None)
    low, high = np.array(RADII)[numbers[:, 0]].T * scale
    radii = rng.uniform(low, high)
    return Placed(
        scene=told,
        caption=str(told) if plain else _caption(rng, told),
        centres=_centres(rng, told, _BOXES[numbers[:, 2]] * radii[:, None], height, width, scale),
        radii=radii,
        shades=rng.uniform(0.94, 1.04, len(radii)),
        tone=float(rng.uniform(35, 100) if rng.random() < 0.5 else rng.uniform(150, 205)),
        slope=rng.uniform(-9, 9, 2),
        size=(height, width),
    )


def _scene(rng: np.random.Generator, shares: Sequence[float] | None) -> tuple[Scene, np.ndarray]:
    """A scene, and (things, 3) the numbers of its sizes, colours and shapes; shares: of RELATIONS, equal where None."""
    count = int(np.searchsorted(np.cumsum(COUNTS), rng.random())) + 1
    numbers = rng.integers(0, (len(SIZES), len(COLOURS), len(SHAPES)), (count, 3))
    things = tuple(Thing(SIZES[size], COLOURS[colour], SHAPES[shape]) for size, colour, shape in numbers.tolist())
    if count != 2 or rng.random() >= RELATED:
        return Scene(things), numbers
    number = rng.integers(len(RELATIONS)) if shares is None else rng.choice(len(RELATIONS), p=shares)
    return Scene(things, RELATIONS[number]), numbers


def _caption(rng: np.random.Generator, told: Scene) -> str:
    """One of the scene's captions: half of them the plainest, a fifth of the sizes in other words."""
    forms = grammar.captions(told)
    form = forms[0] if rng.random() < 0.5 else forms[rng.integers(len(forms))]
    return grammar.reworded(form, (rng.random(len(told.things)) < 0.2).tolist())


def _centres(
    rng: np.random.Generator, told: Scene, boxes: np.ndarray, height: int, width: int, scale: float
) -> np.ndarray:
    """(things, 2) places that fit the scene, drawn evenly among all such: the first of many that does."""
    low = np.stack([boxes[:, 0], boxes[:, 1]], 1) + BORDER * scale
    high = np.array([width, height]) - np.stack([boxes[:, 0], boxes[:, 2]], 1) - BORDER * scale
    while True:
        tried = rng.uniform(low, high, (_TRIES, *low.shape))  # (tries, things, 2)
        fits = _apart(tried, boxes, GAP * scale) & _related(tried, boxes, told.relation, GAP * scale)
        if fits.any():
            return np.asarray(tried[fits.argmax()])


def _apart(tried: np.ndarray, boxes: np.ndarray, gap: float) -> np.ndarray:
    """(tries,) whether every two boxes leave a gap in x or in y."""
    fits = np.ones(len(tried), dtype=bool)
    for i in range(len(boxes)):
        for j in range(i):
            fits &= (_between(tried, boxes, i, j) >= gap).any(0)
    return fits


def _between(tried: np.ndarray, boxes: np.ndarray, i: int, j: int) -> np.ndarray:
    """(4, tries) the room when i is left of, right of, above, below j: negative where their boxes overlap in that."""
    across, down = (tried[:, j] - tried[:, i]).T
    sides = boxes[i, 0] + boxes[j, 0]
    return np.stack(
        [across - sides, -across - sides, down - boxes[i, 2] - boxes[j, 1], -down - boxes[j, 2] - boxes[i, 1]]
    )


def _related(tried: np.ndarray, boxes: np.ndarray, relation: str | None, gap: float) -> np.ndarray:
    """(tries,) whether the first lies to the second as told."""
    if relation is None:
        return np.ones(len(tried), dtype=bool)
    number = RELATIONS.index(relation)
    apart = np.abs(tried[:, 1] - tried[:, 0])
    along, across = (apart[:, 0], apart[:, 1]) if number < 2 else (apart[:, 1], apart[:, 0])
    return np.asarray((_between(tried, boxes, 0, 1)[number] >= gap) & (across <= ACROSS * along))


# ---- drawing


def draw(placed: list[Placed]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 3, H, W) uint8 and maps of their regions (N, H, W) uint8, a region being where a shape has half."""
    height, width = placed[0].size
    y, x = np.arange(height, dtype=np.float32) + 0.5, np.arange(width, dtype=np.float32) + 0.5  # centres of pixels
    tone, slope = (np.stack([getattr(p, what) for p in placed]) for what in ("tone", "slope"))
    ramp = slope[:, 1, None, None] * (y / height - 0.5)[:, None] + slope[:, 0, None, None] * (x / width - 0.5)
    pictures = np.repeat((tone[:, None, None] + ramp)[:, None], 3, 1).astype(np.float32)
    mask = np.zeros((len(placed), height, width), np.uint8)
    for row, k, window, f in _inside(placed, y, x):
        thing, share = placed[row].scene.things[k], np.clip(0.5 - f, 0, 1)
        part = pictures[row, :, *window]
        colour = RGB[COLOURS.index(thing.colour)] * np.float32(placed[row].shades[k])
        part += share * (colour[:, None, None] - part)
        mask[row][window][share > 0.5] = SHAPES.index(thing.shape) + 1
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8), mask


def _inside(
    placed: list[Placed], y: np.ndarray, x: np.ndarray
) -> Iterator[tuple[int, int, tuple[slice, slice], np.ndarray]]:
    """Each thing: the number of its picture, its own, the window around it and f there (below zero inside)."""
    for row, one in enumerate(placed):
        for k, thing in enumerate(one.scene.things):
            (cx, cy), r = one.centres[k], float(one.radii[k])
            reach = int(2 * r) + 2
            rows = slice(max(0, int(cy) - reach), int(cy) + reach + 1)
            columns = slice(max(0, int(cx) - reach), int(cx) + reach + 1)
            yield row, k, (rows, columns), outside(thing.shape, x[columns] - cx, (y[rows] - cy)[:, None], r)


def outside(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """f of a shape around the origin: below zero inside, rising by one a pixel at the edge. x right, y downwards."""
    match shape:
        case "circle":
            return np.asarray(np.hypot(x, y) - r)
        case "square":
            return np.asarray(np.maximum(np.abs(x), np.abs(y)) - _SQUARE * r)
        case "triangle":
            slanted = np.sqrt(3) / 2 * np.abs(x) - y / 2
            return np.asarray(np.maximum(y, slanted) - _TRIANGLE * r)
        case _:
            long, short = _CROSS * r, _CROSS * r / 3
            across = np.maximum(np.abs(x) - long, np.abs(y) - short)
            return np.asarray(np.minimum(across, np.maximum(np.abs(x) - short, np.abs(y) - long)))
