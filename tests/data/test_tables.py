"""Tables: what is read however it is written, and one clear line for each thing that can be wrong."""

import json
import math
from pathlib import Path
from typing import Any

import annotated as a
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moyai.data import tables
from moyai.data.config import FolderConfig
from moyai.data.listing import Entry
from moyai.errors import DataError

NAMES = [f"{i}.png" for i in range(4)]
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from(',;\t"\n'), max_size=12)


def parsed(name: str, text: str | bytes, names: list[str] = NAMES) -> tables.Table:
    data = text.encode() if isinstance(text, str) else text
    return tables.read(Entry(name, len(data), lambda: data), data, names, Path("root"))


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(TEXT, min_size=4, max_size=4),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    order=st.permutations(range(4)),
)
def test_whatever_a_csv_is_written_like_it_says_the_same(
    texts: list[str], delimiter: str, end: str, mark: bool, order: list[int]
) -> None:
    rows = [{"title": texts[i], "file_name": NAMES[i], "n": i} for i in order]
    text = a.table(rows, delimiter, end)
    found = parsed("x.csv", (b"\xef\xbb\xbf" if mark else b"") + text.encode())
    assert found.columns == ("title", "n")
    assert {name: (cells["title"], cells["n"]) for name, (_, cells) in found.rows.items()} == {
        NAMES[i]: (texts[i], str(i)) for i in range(4)
    }
    lines = parsed("x.jsonl", a.jsonl(rows))
    assert {name: cells["title"] for name, (_, cells) in lines.rows.items()} == dict(zip(NAMES, texts, strict=True))


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=5), st.none()))
def test_a_number_is_what_float32_can_hold(cell: Any) -> None:
    value = tables.number(cell)
    if isinstance(cell, bool | int | float) and abs(cell) < 3.4e38:
        assert value == float(cell)
    if value is not None:
        assert math.isfinite(np.float32(value))
        assert tables.number(str(cell)) == value
    assert tables.number(json.dumps(value)) == value


@pytest.mark.parametrize(
    "cell", ["1_000", "nan", "NaN", "inf", "-Infinity", "1e39", "", " ", "1,5", "0x10", [1], {}, 10**400]
)
def test_what_is_no_number(cell: Any) -> None:
    assert tables.number(cell) is None


@pytest.mark.parametrize(
    ("cell", "value"), [(" 1.5 ", 1.5), ("1e3", 1000.0), ("True", 1.0), (False, 0.0), ("-7", -7.0)]
)
def test_what_is_a_number(cell: Any, value: float) -> None:
    assert tables.number(cell) == value


def test_file_names_of_other_systems(tmp_path: Path) -> None:
    names = ["cat/caf\u00e9.png", "cat/b.png", "d.png"]
    table = parsed("x.csv", "File_Name ,n\r\ncat\\cafe\u0301.png,1\r\n\r\n./cat/b.png,2\r\n d.png ,3\r\n", names)
    assert {name: cells["n"] for name, (_, cells) in table.rows.items()} == {
        names[0]: "1",
        names[1]: "2",
        names[2]: "3",
    }
    assert [line for line, _ in table.rows.values()] == [2, 4, 5]
    assert parsed("x.csv", "file_name\r0.png\r1.png\r").columns == ()
    assert parsed("x.csv", ",file_name,n\n0,0.png,7\n1,1.png,8\n").columns == ("n",)  # row numbers of pandas


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "", "x.csv is empty; it needs a header with file_name"),
        ("x.csv", "file_name,age\n", "x.csv has no rows"),
        ("x.jsonl", "\n \n", "x.jsonl has no rows"),
        ("x.csv", "filename,age\n0.png,1\n", "has no column file_name, by which a row is matched with its picture"),
        ("x.csv", "a;b;c\n0.png;1;2\n", "possible: a, b, c"),
        ("x.csv", "file_name,age,age\n0.png,1,2\n", "has two columns 'age'"),
        ("x.csv", "file_name,text\n0.png,a, b\n", "line 2: 3 cells, but the header has 2 (file_name, text); text with"),
        ("x.csv", "file_name,text\n0.png\n", "line 2: 1 cells"),
        ("x.csv", 'file_name,text\n0.png,"a\n', "line 2: unexpected end of data"),
        ("x.csv", "file_name,age\n0.png,1\n1.png,2\n0.png,3\n", "has two rows for 0.png: lines 2 and 4"),
        ("x.csv", "file_name,age\n0.png,1\n./0.png,3\n", "has two rows for 0.png: lines 2 and 3"),
        ("x.csv", "file_name\n0.png\n8.png\n9.png\n", "2 of 3 rows are of pictures that are not there: 8.png (line 3)"),
        ("x.csv", "file_name\n../0.png\n", "line 2: file_name '../0.png' leads outside the folder"),
        ("x.csv", "file_name\n/etc/passwd\n", "leads outside"),
        ("x.csv", "file_name\na\\..\\..\\0.png\n", "leads outside"),
        ("x.csv", "file_name\nC:\\0.png\n", "leads outside"),
        ("x.csv", "file_name,age\n,1\n", "line 2: file_name is empty"),
        ("x.csv", b"file_name,text\n0.png,caf\xe9\n", "x.csv is not UTF-8 from byte 24 on: save it as UTF-8"),
        ("x.csv", "file_name\n0.png\n".encode("utf-16"), "not UTF-8 from byte 0 on (it looks like UTF-16)"),
        ("x.jsonl", '{"file_name": "0.png"}\n{"file_name": \n', "line 2: no JSON"),
        ("x.jsonl", "[1]\n", "line 1: each line is an object"),
        ("x.jsonl", '{"filename": "0.png"}\n', "line 1 has no file_name, by which it is matched: did you mean filen"),
        ("x.jsonl", '{"file_name": 3}\n', "line 1 has no file_name"),
        ("x.jsonl", "[" * 100_000 + "\n", "line 1: no JSON"),
        ("x.jsonl", '{"file_name": "0.png", "n": "\\ud800"}\n', "line 1 has '\\ud800', half of a character"),
        ("x.csv", "a" * 200_000 + "\n", "x.csv has no header with file_name in its first line: field larger than"),
        ("x.csv", "file_name\n0\n", "there: 0 (line 2); names are relative to the folder of the table, such as 0.png"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_one_line(name: str, text: str | bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        parsed(name, text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("root: x.")
    assert "\n" not in str(caught.value)


# Columns -----------------------------------------------------------------------------------------------------------


def tabled(root: Path, columns: dict[str, list[Any]], count: int = 30) -> Path:
    names = a.pictures(root, count)
    rows = [{"file_name": n, **{c: cells[i % len(cells)] for c, cells in columns.items()}} for i, n in enumerate(names)]
    a.put(root / "metadata.jsonl", a.jsonl(rows))
    return root


def test_columns_become_fields_by_name_and_kind(tmp_path: Path) -> None:
    columns = {"Prompt": ["red", 7, None], "AGE": [1, 2.5, "3"], "position": [0, 0.5, 1], "flag": [True, False]}
    images = a.read(tabled(tmp_path / "set", {**columns, "split": ["train"], "boxes": [[1, 2]], "low_resolution": [1]}))
    assert set(images.fields) == {"caption", "AGE", "position", "flag"}
    assert images.fields["caption"][:3].tolist() == ["red", "7", ""]
    assert images.fields["AGE"][:3].tolist() == [1, 2.5, 3]
    assert images.fields["flag"][:2].tolist() == [1, 0]
    notes = "\n".join(images.notes)
    assert "column split of metadata.jsonl: neither caption, class nor numbers ('train'), left out" in notes
    assert "column boxes of metadata.jsonl: neither caption, class nor numbers ('[1, 2]'), left out" in notes
    assert "column low_resolution" in notes


def test_columns_can_be_given(tmp_path: Path) -> None:
    root = tabled(tmp_path / "set", {"breed": ["cat", "dog"], "title": ["x", "y"], "age": [1, None], "z": [5]})
    images = a.read(root, columns={"breed": "class", "title": "caption", "z": "height"})
    assert (images.classes, images.count) == (("cat", "dog"), 30)
    assert set(images.fields) == {"class", "caption", "height"}
    assert set(a.read(root, columns={}).fields) == set()


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["b", "a", " b "], ("a", "b")),
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9.0", "2"], ("2", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        ([True, False], ("False", "True")),
    ],
)
def test_classes_are_named_and_in_order(tmp_path: Path, cells: list[Any], classes: tuple[str, ...]) -> None:
    images = a.read(tabled(tmp_path / "set", {"label": cells}))
    assert images.classes == classes
    named = [images.classes[number] for number in images.fields["class"]]
    assert named == [str(cells[i % len(cells)]).strip().removesuffix(".0") for i in a.numbers(images)]


def test_a_row_that_lacks_something_leaves_its_picture_out_and_is_named(tmp_path: Path) -> None:
    for cell, said in (
        ("nan", "age is 'nan', no finite number"),
        ("", "age is empty"),
        ("4o", "age is '4o', no finite"),
    ):
        root = tabled(tmp_path / f"set{said}", {"age": [*range(29), cell]})
        images = a.read(root)
        assert images.fields["age"].tolist() == list(range(29))
        (bad,) = images.bad
        assert bad.name == "29.png"
        assert bad.reason.startswith(f"metadata.jsonl, line 30: {said}")
        with pytest.raises(DataError, match=f"29.png: metadata.jsonl, line 30: {said}"):
            a.read(root, bad_files="stop")
        with pytest.raises(DataError, match=f"1 of 30 files.*max_bad = 0.01.*{said}"):
            a.read(root, max_bad=0.01)
        assert a.read(root, columns={}).count == 30


def test_a_nan_is_a_cell_that_says_nothing(tmp_path: Path) -> None:
    rows = {"text": ["x"] * 29 + [math.nan], "label": [*"ab" * 14, math.nan, "a"], "age": [math.nan, *range(1, 30)]}
    images = a.read(tabled(tmp_path / "set", rows), max_bad=0.1)
    assert images.classes == ("a", "b")
    assert [(bad.name, bad.reason.split(": ")[1]) for bad in images.bad] == [
        ("00.png", "age is empty"),
        ("28.png", "label is empty"),
    ]
    assert images.fields["caption"].tolist() == ["x"] * 27 + [""]
    written = {"label": [*"ab" * 14, "NaN", "nan"]}  # as text
    images = a.read(tabled(tmp_path / "other", written), max_bad=0.1)
    assert images.classes == ("a", "b")
    assert [bad.reason.split(": ")[1] for bad in images.bad] == ["label is 'NaN', no class", "label is 'nan', no class"]


def test_pictures_without_a_row(tmp_path: Path) -> None:
    root = tabled(tmp_path / "set", {"label": ["x", "y"]})
    a.put(root / "new.png", a.picture(77))
    images = a.read(root)
    assert [(file.name, file.reason) for file in images.bad] == [
        ("new.png", "no row in metadata.jsonl is of this picture")
    ]
    assert images.count == 30
    a.put(root / "newer.png", a.picture(78))
    with pytest.raises(DataError, match=r"2 of 32 files.*new.png: no row in metadata.jsonl"):
        a.read(root)
    assert a.read(root, columns={}).count == 32


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"text": ["x"], "caption": ["y"]}, {}, "columns text and caption are both caption: choose with data.columns"),
        ({"position": [3, 120]}, {}, "column position has values from 3 to 120, and a position lies in 0..1"),
        ({"label": [1.5, 2]}, {}, "column label has the class 1.5, which is no whole number"),
        ({"age": [1]}, {"columns": {"aeg": "age"}}, "has no column 'aeg', as data.columns says: did you mean age?"),
        ({"split": ["a", "b"]}, {"columns": {"split": "split"}}, "column split is to be the number 'split', but"),
        ({"age": [1]}, {"columns": {"age": "masked"}}, "data.columns.age is 'masked', which no column can be"),
        ({"m": ["x"]}, {"columns": {"m": "mask"}, "masks": "none"}, "has a column as mask, and data.masks is 'none'"),
        ({"age": [1]}, {"table": "none", "columns": {"age": "age"}}, "data.columns is given, but there is no table"),
        ({"age": [1]}, {"table": "metadata.csv"}, "did you mean metadata.jsonl?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_columns_is_one_line(
    tmp_path: Path, columns: dict[str, list[Any]], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        a.read(tabled(tmp_path / "set", columns), **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_keys_are_part_of_a_recipe() -> None:
    config = FolderConfig.model_validate(
        {"columns": {"breed": "class"}, "table": "x.csv", "masks": "m", "captions": "table"}
    )
    assert FolderConfig.model_validate(config.model_dump()) == config
