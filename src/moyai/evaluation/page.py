"""A report as one HTML file that needs nothing else: pictures, charts, tables and what was run, as typed blocks.

The page fetches nothing and runs no script: its content security policy forbids both, so that a caption or a file
name that holds markup, shown here as text, could do no harm even if it were not. A picture is enlarged by a hidden
checkbox and the style sheet. One file, so it can be mailed, archived and opened in ten years.
"""

import base64
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from xml.etree import ElementTree

from PIL import Image

from moyai.evaluation.pagestyle import STYLE
from moyai.pictures import write_bytes
from moyai.version import __version__

_MIMES = ("image/png", "image/gif", "image/jpeg", "image/webp")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Picture:
    """An image file's bytes. `alt` says what is seen, for those who do not see it; `pixelated` keeps pixels sharp."""

    data: bytes
    mime: str = "image/png"
    caption: str = ""
    alt: str = ""
    pixelated: bool = True

    def __post_init__(self) -> None:
        if self.mime not in _MIMES:
            raise ValueError(f"a page shows {', '.join(_MIMES)}, not {self.mime}")
        if not (self.alt or self.caption):
            raise ValueError("a picture needs a caption or an alternative text")


@dataclass(frozen=True)
class Gallery:
    pictures: Sequence[Picture]
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; the first column names the row. Numbers are shown with four figures."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headers):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.headers)} columns: {row!r}")


@dataclass(frozen=True)
class Chart:
    """An SVG element, as `curves` makes them."""

    svg: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.svg.startswith("<svg"):  # which also leaves no room for a document type and its entities
            raise ValueError(f"a chart is an svg element, not {self.svg[:40]!r}")
        try:
            elements = list(ElementTree.fromstring(self.svg).iter())
        except ElementTree.ParseError as error:
            raise ValueError(f"the svg of a chart is not well formed: {error}") from error
        for element in elements:
            names = [name.rpartition("}")[2].lower() for name in (element.tag, *element.attrib)]
            if names[0] in ("script", "foreignobject", "a", "image", "use") or any(
                n.startswith("on") for n in names[1:]
            ):
                raise ValueError(f"the svg of a chart has no scripts, handlers or references; <{names[0]}> may have")


@dataclass(frozen=True)
class Code:
    text: str
    caption: str = ""


@dataclass(frozen=True)
class Text:
    """Paragraphs, an empty line between them."""

    text: str


@dataclass(frozen=True)
class Warning:
    """What a reader must know before believing a number."""

    text: str


@dataclass(frozen=True)
class Facts:
    facts: Mapping[str, object]


Block = Picture | Gallery | Table | Chart | Code | Text | Warning | Facts


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]
    lead: str = ""


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole HTML file."""
    anchors = _anchors(section.title for section in sections)
    links = "".join(f'<li><a href="#{a}">{escape(s.title)}</a></li>' for a, s in zip(anchors, sections, strict=True))
    body = "\n".join(_section(anchor, section) for anchor, section in zip(anchors, sections, strict=True))
    navigation = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(sections) > 1 else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="moyai {__version__}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p></header>
{navigation}
<main>
{body}
</main>
<footer>Made by moyai {__version__}. This page is one file: nothing is loaded from elsewhere.</footer>
</body>
</html>
"""


def write(path: str | os.PathLike[str], html: str) -> None:
    """Writes the page whole or not at all. What is no text (half a surrogate pair in a file name) becomes `?`."""
    write_bytes(path, html.encode("utf-8", "replace"))


def _anchors(titles: Iterable[str]) -> list[str]:
    """An id for each section: its words, and a number where two would be the same."""
    anchors: list[str] = []
    for title in titles:
        plain = "-".join(re.findall(r"[a-z0-9]+", title.lower())) or "section"
        anchor, count = plain, 2
        while anchor in anchors:
            anchor, count = f"{plain}-{count}", count + 1
        anchors.append(anchor)
    return anchors


def _section(anchor: str, section: Section) -> str:
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
    parts = []
    for are_charts, run in groupby(section.blocks, lambda block: isinstance(block, Chart)):
        drawn = "\n".join(_block(block) for block in run)
        parts.append(f'<div class="charts">{drawn}</div>' if are_charts else drawn)  # neighbours stand side by side
    body = "\n".join(parts)
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{escape(section.title)}</h2>\
{lead}\n{body}</section>'
    )


def _block(block: Block) -> str:
    match block:
        case Picture():
            return _picture(block)
        case Gallery():
            return _gallery(block)
        case Table():
            return _table(block)
        case Chart():
            return f'<figure class="chart card">{block.svg}{_caption(block.caption)}</figure>'
        case Code():
            return (
                f'<figure><pre tabindex="0"><code>{escape(block.text)}</code></pre>{_caption(block.caption)}</figure>'
            )
        case Text():
            paragraphs = (p for p in re.split(r"\n\s*\n", block.text) if p.strip())
            return "".join(f'<p class="text">{escape(p.strip())}</p>' for p in paragraphs)
        case Warning():
            return f'<p class="warning" role="note"><strong>Note.</strong> {escape(block.text)}</p>'
        case Facts():
            pairs = (f"<div><dt>{escape(k)}</dt><dd>{escape(_cell(v))}</dd></div>" for k, v in block.facts.items())
            return f'<dl class="card">{"".join(pairs)}</dl>'


def _caption(text: str) -> str:
    return f"<figcaption>{escape(text)}</figcaption>" if text else ""


def _shown(picture: Picture) -> tuple[int, int, int]:
    """Width and height of the file, and the width it is shown at: small pixels are shown as larger ones."""
    with Image.open(io.BytesIO(picture.data)) as image:
        width, height = image.size
    return width, height, width * max(1, 160 // max(width, height)) if picture.pixelated else width


def _picture(picture: Picture) -> str:
    width, height, shown = _shown(picture)
    classes = " ".join(["pixelated"] * picture.pixelated + ["tiny"] * (shown > width))
    alt = escape(picture.alt or picture.caption)
    data = base64.b64encode(picture.data).decode("ascii")
    return f"""<figure><label class="zoom" style="width:{shown}px;aspect-ratio:{width}/{height}">\
<input type="checkbox" aria-label="Enlarge: {alt}">\
<img src="data:{picture.mime};base64,{data}" width="{width}" height="{height}" alt="{alt}" class="{classes}">\
</label>{_caption(picture.caption)}</figure>"""


def _gallery(gallery: Gallery) -> str:
    widest = max((_shown(picture)[2] for picture in gallery.pictures), default=0)
    inner = "\n".join(_picture(picture) for picture in gallery.pictures)
    caption = f'<p class="note">{escape(gallery.caption)}</p>' if gallery.caption else ""
    cell = min(480, max(96, widest))
    return f'<figure><div class="gallery" style="--cell:{cell}px">{inner}</div>{caption}</figure>'


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(_is_number(row[column]) for row in table.rows) for column in range(len(table.headers))
    ]
    side = [' class="number"' if number and i else "" for i, number in enumerate(numeric)]
    head = "".join(f'<th scope="col"{s}>{escape(h)}</th>' for h, s in zip(table.headers, side, strict=True))
    columns = [_column([row[i] for row in table.rows]) for i in range(len(table.headers))]
    rows = zip(*columns, strict=True)
    body = "".join(f"<tr>{''.join(_td(i, cell, side[i]) for i, cell in enumerate(row))}</tr>" for row in rows)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    label = escape(table.caption or "Table")
    return f"""<figure><div class="scroll card" role="region" aria-label="{label}" tabindex="0"><table>{caption}\
<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}</figure>"""


def _column(cells: Sequence[object]) -> list[str]:
    """The cells of a column as text; floats of ordinary size all with the decimals of the one that has most."""
    texts = [_cell(cell) for cell in cells]
    plain = [
        isinstance(cell, float) and bool(re.fullmatch(r"-?\d+(\.\d+)?", t))
        for cell, t in zip(cells, texts, strict=True)
    ]
    decimals = max(
        (len(text.partition(".")[2]) for text, is_plain in zip(texts, plain, strict=True) if is_plain), default=0
    )
    return [f"{cell:.{decimals}f}" if is_plain else t for cell, t, is_plain in zip(cells, texts, plain, strict=True)]


def _td(column: int, cell: str, side: str) -> str:
    text = escape(cell)
    return f"<td{side}>{text}</td>" if column else f'<th scope="row">{text}</th>'


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def _is_number(value: object) -> bool:
    """Whether a cell belongs in a column of numbers: a number, a number with its error or unit, or none."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return True
    return bool(re.match(r"[-+±<>≤≥~]?\s?[\d.,]+(e[-+]?\d+)?\s?(%|±|\(|\[|[a-zA-Zµ]{1,3}$|$)", str(value)))
