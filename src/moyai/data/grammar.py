"""The little language that scenes of shapes are told in: from a scene to a caption, and back.

A scene is one to three things, each with a size, a colour and a shape, and of two things how the first lies to the
second. One scene has many captions:

    a large red circle left of a small blue square        a small blue square with a big red circle to its left
    to the left of a little blue square is a large red circle

and every caption has one scene, which `parse` reads by program: the judge of a model that draws what it is told. A size
may be left unsaid. Words of other captions are refused, not guessed at.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moyai.errors import DataError

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE: Mapping[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MOST = 3  # things of a scene

_SIZE_WORDS: Mapping[str, str] = {"small": "small", "little": "small", "large": "large", "big": "large"}
_OTHER_WORD: Mapping[str, str] = {"small": "little", "large": "big"}
_FORWARD: Mapping[str, Sequence[str]] = {  # "A ... B"
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_BACKWARD: Mapping[str, str] = {  # "B with A ..."
    "left of": "to its left",
    "right of": "to its right",
    "above": "above it",
    "below": "below it",
}
_RELATION_OF = {phrase: relation for relation, phrases in _FORWARD.items() for phrase in phrases}
_RELATION_OF_BACK = {phrase: relation for relation, phrase in _BACKWARD.items()}

_THING = (
    rf"an? (?:(?P<size%d>{'|'.join(_SIZE_WORDS)}) )?(?P<colour%d>{'|'.join(COLOURS)}) (?P<shape%d>{'|'.join(SHAPES)})"
)
_A, _B, _C = (_THING % ((number,) * 3) for number in range(MOST))
_PHRASE = "|".join(sorted(_RELATION_OF, key=len, reverse=True))
_OPENING = r"(?:there is |a picture of )?"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"{_OPENING}{_A}",
        rf"{_OPENING}{_A}(?: is)? (?P<relation>{_PHRASE}) {_B}",
        rf"(?P<relation>{_PHRASE}) {_B} (?:is|there is) {_A}",
        rf"{_OPENING}{_B} with {_A} (?P<back>{'|'.join(_RELATION_OF_BACK)})",
        rf"{_OPENING}{_A} and {_B}",
        rf"{_OPENING}{_A}, {_B},? and {_C}",
    )
)


@dataclass(frozen=True)
class Thing:
    """One shape of a scene; a size of None was not said."""

    size: str | None
    colour: str
    shape: str

    def __str__(self) -> str:
        words = [word for word in (self.size, self.colour, self.shape) if word]
        return f"{'an' if words[0] == 'orange' else 'a'} {' '.join(words)}"


@dataclass(frozen=True)
class Scene:
    """One to three things; `relation` says how the first of two lies to the second, None where it is not said."""

    things: tuple[Thing, ...]
    relation: str | None = None

    def __str__(self) -> str:
        """The plainest caption."""
        told = [str(thing) for thing in self.things]
        if self.relation:
            return f"{told[0]} {self.relation} {told[1]}"
        return " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))


def parse(caption: str) -> Scene:
    """The scene a caption tells of. Case, a final stop and doubled spaces do not matter; DataError for other words."""
    words = " ".join(caption.lower().split()).rstrip(".").strip()
    for form in _FORMS:
        found = form.fullmatch(words)
        if found:
            said = found.groupdict()
            things = tuple(
                Thing(_SIZE_WORDS.get(said[f"size{i}"] or ""), said[f"colour{i}"], said[f"shape{i}"])
                for i in range(MOST)
                if said.get(f"colour{i}")
            )
            relation = _RELATION_OF.get(said.get("relation") or "") or _RELATION_OF_BACK.get(said.get("back") or "")
            return Scene(things, relation)
    shown = caption if len(caption) <= 100 else f"{caption[:97]}..."
    raise DataError(f"the caption {shown!r} is not of a scene of shapes; such as: 'a large red circle left of a small "
                    "blue square'")  # fmt: skip


def swap_colours(caption: str) -> str:
    """The caption with its two colour words exchanged and nothing else. DataError unless it has two different ones."""
    scene = parse(caption)
    colours = [thing.colour for thing in scene.things]
    if len(colours) != 2 or colours[0] == colours[1]:
        raise DataError(f"the caption {caption!r} has not two things of different colours")
    other = dict(zip(colours, reversed(colours), strict=True))
    pattern = rf"\b(?:(an?) )?((?:(?:{'|'.join(_SIZE_WORDS)}) )?)({colours[0]}|{colours[1]})\b"

    def changed(found: re.Match[str]) -> str:
        article, size, colour = found[1], found[2], other[found[3].lower()]
        if article and not size:  # "a red circle", but "an orange circle"
            article = "an" if colour == "orange" else "a"
        return f"{article} {size}{colour}" if article else f"{size}{colour}"

    return re.sub(pattern, changed, caption, flags=re.IGNORECASE)


def captions(scene: Scene) -> tuple[str, ...]:
    """The forms in which a scene can be told, with its sizes as they stand; the first is the plainest."""
    told = [str(thing) for thing in scene.things]
    if len(told) == 1:
        return told[0], f"there is {told[0]}", f"a picture of {told[0]}"
    if len(told) == 2 and scene.relation:
        a, b = told
        forward = _FORWARD[scene.relation]
        return (
            *(f"{a} {phrase} {b}" for phrase in forward),
            *(f"there is {a} {phrase} {b}" for phrase in forward),
            *(f"{a} is {phrase} {b}" for phrase in forward),
            *(f"{phrase} {b} is {a}" for phrase in forward),
            *(f"{phrase} {b} there is {a}" for phrase in forward[1:]),
            f"{b} with {a} {_BACKWARD[scene.relation]}",
            f"a picture of {b} with {a} {_BACKWARD[scene.relation]}",
        )
    plain = str(replace(scene, relation=None))
    return plain, f"there is {plain}", f"a picture of {plain}"


def reworded(caption: str, other: Sequence[bool]) -> str:
    """The caption with those of its size words, in order, exchanged for the other word of that meaning."""
    turns = iter(other)

    def word(found: re.Match[str]) -> str:
        return _OTHER_WORD[found[0]] if next(turns) else found[0]

    return re.sub("|".join(SIZES), word, caption)
