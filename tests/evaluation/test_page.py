"""The report page: valid, complete in one file, and nothing that was given as text is obeyed as markup."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from moyai.evaluation.curves import Series, chart
from moyai.evaluation.page import Chart, Code, Facts, Gallery, Picture, Section, Table, Text, Warning, page, write
from moyai.evaluation.pagestyle import STYLE
from moyai.pictures import gif_bytes, png_bytes

EVIL = "</title></style>\"'><script>alert(1)</script><img src=http://x/ onerror=alert(1)>&amp;"
VOID = {"meta", "input", "img"}


class Reader(HTMLParser):
    """The elements of a page in order; tags must nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def picture(**given) -> Picture:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    return Picture(png_bytes(image), **{"caption": "a ramp", **given})


def everything(text: str) -> str:
    """A page in which every text is `text`."""
    svg = chart([Series(text, [0, 1], [0, 1]), Series(text, [0, 1], [1, 0])], title=text, x_label=text, y_label=text)
    moving = Picture(gif_bytes([np.zeros((4, 4), np.uint8)] * 2), "image/gif", alt=text, pixelated=False)
    blocks = [
        picture(caption=text, alt=text),
        Gallery([picture(caption=text), moving], text),
        Table([text, text], [[text, text], [text, 0.5]], text, text),
        Chart(svg, text),
        Chart(svg),
        Code(text, text),
        Text(f"{text}\n\n{text}"),
        Warning(text),
        Facts({text: text}),
    ]
    return page(text, text, [Section(text, blocks, text), Section(text, [], text)])


def test_text_is_never_markup():
    html = everything(EVIL)
    read = Reader(html)
    assert read.all("script") == []
    assert all(not name.startswith("on") for _, attributes in read.found for name in attributes)
    assert [tag for tag, _ in read.found if tag != "p"] == [t for t, _ in Reader(everything("plain")).found if t != "p"]
    assert sum(EVIL in words for words in read.words) >= 20
    assert all(image["alt"] == EVIL for image in read.all("img"))


def test_nothing_is_fetched():
    html = everything("plain")
    read = Reader(html)
    policy = next(m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "img-src data:" in policy
    for _, attributes in read.found:
        for name in ("src", "href", "srcset", "action", "xlink:href", "poster"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#"))
    assert not re.search(r"url\(|@import|<link", html)
    assert not re.search(r"https?://", html.replace("http://www.w3.org/2000/svg", ""))  # SVG's name, not an address


def test_the_bytes_of_a_picture_are_in_the_page():
    one = picture()
    source = Reader(page("t", "s", [Section("a", [one])])).all("img")[0]["src"]
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == one.data


def test_sections_are_reached_by_their_anchors():
    titles = ["Samples", "Samples", "漢字", "漢字", "What it cost"]
    read = Reader(page("t", "s", [Section(title, []) for title in titles]))
    ids = [section["id"] for section in read.all("section")]
    assert len(set(ids)) == 5
    assert [a["href"] for a in read.all("a")] == [f"#{i}" for i in ids]
    assert [section["aria-labelledby"] for section in read.all("section")] == [h["id"] for h in read.all("h2")]


def test_tables_have_headers_and_aligned_numbers():
    rows = [["ours", 0.5, 12345, None, "±0.2"], ["floor", 0.25, 7, 3, "±0.1"]]
    read = Reader(page("t", "s", [Section("a", [Table(["system", "fid", "n", "steps", "error"], rows, "C")])]))
    assert [h["scope"] for h in read.all("th")] == ["col"] * 5 + ["row"] * 2
    assert [d.get("class") for d in read.all("td")] == ["number"] * 8
    assert {"0.50", "0.25", "12,345", "7", "–"} <= set(read.words)
    assert next(d for d in read.all("div") if d.get("role") == "region")["aria-label"] == "C"


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "yes"), (1234567, "1,234,567"), (0.123456, "0.1235"), (1.5e-7, "1.5e-07"), (54321.9, "54,322"), ("x", "x")],
)
def test_facts_are_written_shortly(value, text):
    assert text in Reader(page("t", "s", [Section("a", [Facts({"k": value})])])).words


def test_pictures_have_their_size_and_can_be_enlarged_without_scripts():
    read = Reader(page("t", "s", [Section("a", [picture(alt="eight by eight")])]))
    image, label = read.all("img")[0], read.all("label")[0]
    assert (image["width"], image["height"]) == ("8", "8")
    assert "pixelated" in image["class"]
    assert "width:160px" in label["style"]  # tiny pictures are shown larger
    assert read.all("input")[0] == {"type": "checkbox", "aria-label": "Enlarge: eight by eight"}
    assert "input:checked+img" in STYLE


def test_wrong_blocks_are_refused():
    with pytest.raises(ValueError, match="alternative text"):
        Picture(b"", caption="")
    with pytest.raises(ValueError, match="image/png"):
        Picture(b"", "text/html", "x")
    with pytest.raises(ValueError, match="2 cells in a table of 1"):
        Table(["a"], [[1, 2]])
    for svg in ("<p>", "<svg><script>1</script></svg>", "<svg><g></svg>", '<svg onload="x()"></svg>'):
        with pytest.raises(ValueError, match="svg"):
            Chart(svg)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_enough_to_read(dark):
    """WCAG 2.2, criterion 1.4.3: 4.5 : 1 for text; 1.4.11: 3 : 1 for the curves of a chart."""
    block = STYLE.split("@media(prefers-color-scheme:dark){")[dark]
    colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})\b", block.split("}")[0]))
    for text in ("ink", "soft", "accent"):
        for ground in ("bg", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5
    assert contrast(colours["warn-ink"], colours["warn-bg"]) >= 4.5
    style = chart([], title="", x_label="", y_label="").split("@media(prefers-color-scheme:dark)")[dark]
    curves = re.findall(r"--(?:c\d|ink|soft):(#[0-9a-f]{6})", style)
    assert len(curves) == 8
    assert min(contrast(c, colours["card"]) for c in curves) >= 3


def test_written_whole(tmp_path):
    write(tmp_path / "report" / "index.html", page("é漢\udcff", "s", []))
    text = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert "<h1>é漢?</h1>" in text
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["index.html"]
