"""Does a model that is told captions read them? Swap two colour words, and the colours must swap.

    python benchmarks/colour_swap.py runs/shapes-text --prompts 200 --json swap.json --out swap.png

Captions of held-out scenes with two things of different colours and a relation ("a large red circle left of a small
blue square") are drawn as they are and with the two colour words exchanged, from the same seeds. A program finds the
coloured things by counting pixels (`moyai.evaluation.scenes`), and a prompt counts where both pictures are right:

    things    each has exactly as many things as its caption tells of, and on them the colours that it tells
    amounts   where one thing is large and the other small: in each picture most of the coloured pixels are of the large
              one's colour. Colours on any thing: a quarter.
    places    in each, the pixels of the first colour lie to those of the second as told, by their centres of
              mass, however many things there are and whatever their shapes. Colours at random places: a quarter.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moyai import pictures, tasks
from moyai.build.data import read_data
from moyai.checkpoints.models import load
from moyai.data.grammar import COLOURS, Scene, parse, swap_colours
from moyai.data.images import ImageSet
from moyai.data.locate import cache_folder
from moyai.data.splits import split
from moyai.errors import MoyaiError, RequestError
from moyai.evaluation.scenes import agreement, lies, pixel_colours, read
from moyai.model import LatentModel

FEWEST = 8  # pixels of a colour, to say where it is
SHOWN = 8  # prompts in the picture


def prompts(images: ImageSet, count: int) -> list[str]:
    """Captions of scenes of two things of different colours with a relation, no two alike."""
    found: dict[str, None] = {}
    for caption in images.fields["caption"]:
        scene = parse(str(caption))
        if scene.relation is not None and len({thing.colour for thing in scene.things}) == 2:
            found[str(caption)] = None
        if len(found) == count:
            return list(found)
    raise RequestError(f"only {len(found)} held-out captions have two colours and a relation; {count} were asked for")


def drawn(model: LatentModel, captions: list[str], settings: dict[str, float | int | None]) -> np.ndarray:
    """A picture of each caption, (N, H, W, C); picture i has the seed of caption i whatever it says."""
    request = tasks.request(model, rows={"caption": captions}, n=1, **settings)
    return tasks.collect(model, request, lambda done, total: print(f"\r{done}/{total}", end="", file=sys.stderr))


def right(images: np.ndarray, captions: list[str]) -> np.ndarray:
    """Whether each picture has the colours its caption told, on the things it told them of: (N,) bool."""
    seen = read(images.transpose(0, 3, 1, 2))
    return np.array([agreement(one, parse(caption))[0] for one, caption in zip(seen, captions, strict=True)])


def pixels_of(images: np.ndarray, captions: list[str]) -> Iterator[tuple[Scene, list[np.ndarray]]]:
    """Of each picture, what its caption tells, and where the pixels of each told colour are: (n, 2) rows, columns."""
    for kinds, caption in zip(pixel_colours(images.transpose(0, 3, 1, 2)), captions, strict=True):
        scene = parse(caption)
        yield scene, [np.argwhere(kinds == COLOURS.index(thing.colour)) for thing in scene.things]


def placed(images: np.ndarray, captions: list[str]) -> np.ndarray:
    """Whether each picture's pixels of the two told colours lie to each other as its caption tells: (N,) bool."""
    found = []
    for scene, where in pixels_of(images, captions):
        if there := min(map(len, where)) >= FEWEST:
            (y, x), (other_y, other_x) = (one.mean(0) for one in where)
            there = lies(other_x - x, other_y - y, str(scene.relation))
        found.append(there)
    return np.array(found)


def weighed(images: np.ndarray, captions: list[str]) -> np.ndarray:
    """Whether each picture has more pixels of the large thing's colour, and some of the small one's: (N,) bool."""
    found = []
    for scene, where in pixels_of(images, captions):
        large, small = (len(where[[thing.size for thing in scene.things].index(size)]) for size in ("large", "small"))
        found.append(large > small >= FEWEST)
    return np.array(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", type=Path, help="a run of data.kind shapes that is told captions")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2_000_000)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None, help="a sheet of the first prompts, as told and swapped")
    o = parser.parse_args()
    try:
        model = load(o.run)
        images = read_data(model.recipe.data, cache_folder())
        held_out = images.subset(split(images, model.recipe.data.validation)[1])
        told = prompts(held_out, o.prompts)
        swapped = [swap_colours(caption) for caption in told]
        settings = {"seed": o.seed, "guidance": o.guidance, "steps": o.steps}
        as_told, exchanged = drawn(model, told, settings), drawn(model, swapped, settings)
    except MoyaiError as error:
        print(f"colour_swap: {error}", file=sys.stderr)
        return error.status
    result: dict[str, int | float] = {"prompts": len(told)}
    every = np.arange(len(told))
    unlike = np.array([i for i in every if len({thing.size for thing in parse(told[i]).things}) == 2])
    for name, judge, rows in (("things", right, every), ("amounts", weighed, unlike), ("places", placed, every)):
        captions, others = [told[i] for i in rows], [swapped[i] for i in rows]
        first, second = judge(as_told[rows], captions), judge(exchanged[rows], others)
        result |= {
            f"{name}: prompts": len(rows),
            f"{name} as told": float(first.mean()),
            f"{name} as told after the swap": float(second.mean()),
            f"{name}, both": float((first & second).mean()),
            f"{name} of swapped pictures by the unswapped caption": float(judge(exchanged[rows], captions).mean()),
        }
    print()
    for name, value in result.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    if o.json is not None:
        o.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if o.out is not None:
        both = np.stack((as_told[:SHOWN], exchanged[:SHOWN]), axis=1).reshape(-1, *as_told.shape[1:])
        pictures.save_png(o.out, pictures.grid(both, columns=2, row_labels=told[:SHOWN]), None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
