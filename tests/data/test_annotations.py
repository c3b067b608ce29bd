"""What is known of each picture stays with its picture: whatever the source, the order, the limit and the container."""

import json
import os
from pathlib import Path
from typing import Any

import annotated as a
import numpy as np
import pytest

from moyai.data import splits
from moyai.data.images import difference
from moyai.data.report import lines, report
from moyai.errors import DataError


def everything(root: Path, count: int = 20) -> Path:
    """Captions in files, masks beside, a table with a class and a number, its rows in another order."""
    names = a.pictures(root, count, "p{:02d}.png".format)
    rows = [{k: v for k, v in a.row(i, name).items() if k != "text"} for i, name in enumerate(names)]
    a.put(root / "metadata.csv", a.table(rows[::-1]))
    for i in range(count):
        a.put(root / f"p{i:02d}.txt", f" number {i}\n")
        a.put(root / f"p{i:02d}_mask.png", a.z.saved(a.mask(i), "PNG"))
    return root


@pytest.mark.parametrize("container", ["folder", "zip", "zip of a folder", "cache"])
@pytest.mark.parametrize("limit", [None, 7])
def test_rows_stay_with_their_pictures(tmp_path: Path, container: str, limit: int | None) -> None:
    root = everything(tmp_path / "set")
    if container.startswith("zip"):
        root = a.packed(root, "set/" if container == "zip of a folder" else "")
    in_memory = 0 if container == "cache" else 2**29
    for _ in range(2 if container == "cache" else 1):  # the second time both are found again
        images = a.read(root, limit=limit, in_memory=in_memory)
        which = a.numbers(images)
        assert images.count == (limit or 20)
        assert list(images.names) == [f"{'set/' if container == 'zip of a folder' else ''}p{i:02d}.png" for i in which]
        assert images.fields["caption"].tolist() == [f"number {i}" for i in which]
        assert images.fields["age"].tolist() == [i / 2 for i in which]
        assert images.fields["age"].dtype == np.float32
        assert images.classes == ("even", "odd")
        assert images.fields["class"].tolist() == (which % 2).tolist()
        assert images.fields["class"].dtype == np.int64
        np.testing.assert_array_equal(np.asarray(images.fields["mask"]), [a.mask(i) for i in which])
        assert isinstance(images.fields["mask"], np.memmap) == (container == "cache")
        assert images.regions == ("0", "1", "2", "3", "4")
    if limit:
        assert sorted(np.bincount(images.fields["class"])) == [3, 4]  # evenly over the classes of the table
    assert (images.bad, images.notes) == ((), ())
    told = {file.name.rpartition("/")[2] for file in images.files} - {name.rpartition("/")[2] for name in images.names}
    expected = {f"p{i:02d}{end}" for i in which for end in (".txt", "_mask.png")} | {"metadata.csv"}
    assert told == expected
    assert len(images.files) == len({file.name for file in images.files})


def test_a_subset_and_a_batch_have_the_rows_of_their_pictures(tmp_path: Path) -> None:
    images = a.read(everything(tmp_path / "set"), limit=9)
    inside, outside = splits.split(images, 0.3)
    part = images.subset(inside[::-1])
    which = a.numbers(part)
    assert part.fields["caption"].tolist() == [f"number {i}" for i in which]
    np.testing.assert_array_equal(part.fields["mask"], [a.mask(i) for i in which])
    fields = part.batch(np.array([1, 0])).fields
    assert fields["age"].tolist() == [which[1] / 2, which[0] / 2]
    assert set(fields) == {"age", "class", "mask"}  # a caption is no number
    assert len(outside) >= 1


def alter(root: Path, what: str) -> None:
    if what == "caption":
        (root / "p03.txt").write_text("number three")
    elif what == "mask":
        (root / "p03_mask.png").write_bytes(a.z.saved(a.mask(4), "PNG"))
    elif what == "row":
        table = (root / "metadata.csv").read_text()
        (root / "metadata.csv").write_text(table.replace("p03.png,odd,1.5", "p03.png,odd,1.25"))
    else:
        (root / "p03.txt").unlink()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("caption", "p03.txt was altered"),
        ("mask", "p03_mask.png was altered"),
        ("row", "metadata.csv was altered"),
        ("no caption", "p03.txt was removed"),
    ],
)
def test_whatever_changes_is_another_data_set(tmp_path: Path, what: str, said: str) -> None:
    root = everything(tmp_path / "set")
    before, same = a.read(root), a.read(root)
    assert before.fingerprint == same.fingerprint
    alter(root, what)
    after = a.read(root)
    assert after.fingerprint != before.fingerprint
    found = difference(before.files, after.files)
    assert found is not None
    assert found.startswith(said)


def test_other_columns_are_another_data_set_and_plain_pictures_are_as_before(tmp_path: Path) -> None:
    root = everything(tmp_path / "set")
    one, two = a.read(root), a.read(root, columns={"label": "class"})
    assert one.fingerprint != two.fingerprint
    assert set(two.fields) == {"class", "caption", "mask"}
    assert "columns left out by data.columns: age" in two.notes
    a.pictures(tmp_path / "plain", 4)
    plain = a.read(tmp_path / "plain")
    assert (plain.fields, plain.regions) == ({}, ())
    assert "told" not in plain.decoding


def test_none_leaves_all_alone(tmp_path: Path) -> None:
    root = everything(tmp_path / "set")
    images = a.read(root, table="none", captions="none", masks="none")
    assert images.count == 40  # masks are pictures like any other
    assert images.fields == {}
    assert images.notes == ("21 files: not a picture by its name: left out",)


def test_a_classless_set_takes_no_class_from_the_table(tmp_path: Path) -> None:
    root = everything(tmp_path / "set")
    images = a.read(root, classes="none")
    assert images.classes == ()
    assert "class" not in images.fields
    assert any("column label" in note for note in images.notes)


def test_classes_of_the_table_go_before_sub_folders(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = a.pictures(root, 6, lambda i: f"{'ab'[i % 2]}/{i}.png")
    a.put(root / "a" / "x.txt", "no picture has this name")
    assert a.read(root).classes == ("a", "b")
    a.put(root / "metadata.jsonl", a.jsonl([{"file_name": n, "class": 10 - i} for i, n in enumerate(names)]))
    images = a.read(root)
    assert images.classes == ("5", "6", "7", "8", "9", "10")
    assert [images.classes[c] for c in images.fields["class"]] == [str(10 - i) for i in a.numbers(images)]
    assert "classes are those of the table, not the sub-folders" in images.notes
    assert "1 file: not a picture by its name: left out" in images.notes


def test_a_table_in_a_sub_folder_names_what_lies_beside_it(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = a.pictures(root, 6, "train/x/{}.png".format)
    rows = [{"file_name": n.removeprefix("train/"), "age": i} for i, n in enumerate(names)]
    a.put(root / "train" / "metadata.csv", a.table(rows))
    images = a.read(root)
    assert images.fields["age"].tolist() == a.numbers(images).tolist()
    a.put(root / "metadata.jsonl", a.jsonl(rows))
    with pytest.raises(DataError, match=r"has 2 tables \(metadata.jsonl, train/metadata.csv\): say which one by data"):
        a.read(root)
    assert a.read(root, table="train/metadata.csv").fields["age"].tolist() == images.fields["age"].tolist()


def test_a_table_from_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = a.pictures(root, 6)
    a.put(tmp_path / "labels.tsv", a.table([{"file_name": n, "age": i} for i, n in enumerate(names)], "\t"))
    images = a.read(root, table=str(tmp_path / "labels.tsv"))
    assert images.fields["age"].tolist() == a.numbers(images).tolist()
    assert images.files[-1].name == "labels.tsv"
    with pytest.raises(DataError, match=r"data.table is 'label.csv', which is no .csv, .tsv, .jsonl file in"):
        a.read(root, table="label.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"pipe\.csv"):
        a.read(root, table=str(tmp_path / "pipe.csv"))


# Captions ----------------------------------------------------------------------------------------------------------


def captioned(root: Path, texts: dict[int, bytes]) -> Path:
    a.pictures(root, 30)
    for i in range(30):
        if texts.get(i, b"x"):
            a.put(root / f"{i:02d}.txt", texts.get(i, f"number {i}".encode()))
    return root


def test_captions_that_are_missing_empty_or_long(tmp_path: Path) -> None:
    long = ("a long story " * 10_000)[:100_000].strip()
    root = captioned(tmp_path / "set", {2: b"", 3: b" \n", 4: b"\xef\xbb\xbfwith a mark\r\n", 5: long.encode()})
    images = a.read(root)
    captions = images.fields["caption"]
    assert captions.shape == (30,)
    assert captions.dtype == object  # as "U" it would be 30 times the longest
    assert [captions[i] for i in (1, 2, 3, 4)] == ["number 1", "", "", "with a mark"]
    assert captions[5] == long
    assert images.notes == (
        "2 pictures without a caption, or with an empty one: nothing is told of it (02.png, 03.png)",
        "1 picture with a caption of more than 1000 characters (05.png)",
    )
    found = report(images, *splits.split(images, 0.1)).known.captions
    assert found is not None
    assert (found.told, found.distinct, found.longest) == (28, 28, len(long))


def test_a_caption_that_is_no_text_makes_its_picture_unusable(tmp_path: Path) -> None:
    root = captioned(tmp_path / "set", {7: b"caf\xe9"})
    (root / "08.txt").unlink()
    (root / "08.txt").symlink_to(root / "nothing")
    images = a.read(root, max_bad=0.1)
    assert {file.name: file.reason for file in images.bad} == {
        "07.png": "its caption 07.txt: not UTF-8 from byte 3 on: save it as UTF-8",
        "08.png": "its caption 08.txt: cannot be read: a link to nothing",
    }
    assert a.numbers(images).tolist() == [i for i in range(30) if i not in (7, 8)]
    assert images.fields["caption"].tolist() == [f"number {i}" for i in a.numbers(images)]
    with pytest.raises(DataError, match=r"2 of 30 files.*07.png: its caption 07.txt: not UTF-8"):
        a.read(root)
    with pytest.raises(DataError, match=r"07.png: its caption 07.txt: not UTF-8 from byte 3"):
        a.read(root, bad_files="stop")


def test_captions_in_two_places_are_an_error_unless_one_is_chosen(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = a.pictures(root, 6)
    a.put(root / "metadata.csv", a.table([a.row(i, n) for i, n in enumerate(names)]))
    a.put(root / "03.caption", "three")
    with pytest.raises(DataError, match=r"captions lie in files \(03.caption\) and in a column"):
        a.read(root)
    assert a.read(root, captions="table").fields["caption"].tolist() == [f"number {i}" for i in range(6)]
    assert a.read(root, captions="files").fields["caption"].tolist() == ["", "", "", "three", "", ""]
    assert "caption" not in a.read(root, captions="none").fields
    with pytest.raises(DataError, match=r"data.columns has a column as caption, and data.captions is 'files'"):
        a.read(root, captions="files", columns={"text": "caption"})
    a.put(root / "03.txt", "drei")
    with pytest.raises(DataError, match=r"03.(txt|caption) and 03.(txt|caption) are captions of one picture"):
        a.read(root, captions="files")


def test_captions_that_are_asked_for_and_not_there(tmp_path: Path) -> None:
    root = tmp_path / "set"
    a.pictures(root, 6)
    for captions, said in (("files", "no picture has one"), ("table", "no table has a column text")):
        with pytest.raises(DataError, match=said):
            a.read(root, captions=captions)
    a.put(root / "00.txt", "  ")
    images = a.read(root)
    assert "caption" not in images.fields  # nothing is told of any picture
    assert images.notes[0].startswith("6 pictures without a caption")


def test_one_caption_for_pictures_that_share_its_name(tmp_path: Path) -> None:
    root = tmp_path / "set"
    a.pictures(root, 6)
    a.put(root / "00.bmp", a.z.saved(np.full((16, 16), 99, np.uint8), "BMP"))
    a.put(root / "00.txt", "both")
    images = a.read(root)
    assert images.fields["caption"].tolist() == ["both", "both", "", "", "", "", ""]
    assert [file.name for file in images.files].count("00.txt") == 1


# The report --------------------------------------------------------------------------------------------------------


def test_the_report_tells_what_is_known(tmp_path: Path) -> None:
    images = a.read(everything(tmp_path / "set"))
    train, validation = np.arange(18), np.array([18, 19])
    found = report(images, train, validation)
    said = "\n".join(lines(found))
    assert "captions: 20 of 20 pictures, 20 different, median 8 and at most 9 characters; such as 'number 0'" in said
    assert "age: 0 to 9.5, mean 4.75" in said
    maps = np.stack([a.mask(i) for i in a.numbers(images)])
    shares = [(maps == region).mean() for region in range(5)]
    assert [one.share for one in found.known.regions] == pytest.approx(shares)
    assert [one.train for one in found.known.regions] == [int((maps[:18] == r).any((1, 2)).sum()) for r in range(5)]
    assert f"masks: 5 regions; 0 {100 * shares[0]:.3g} %" in said
    plain: dict[str, Any] = json.loads(json.dumps(found.as_json()))["known"]
    assert plain["numbers"] == [{"name": "age", "low": 0, "high": 9.5, "mean": 4.75}]
    assert plain["captions"]["examples"] == ["number 0", "number 6", "number 12"]


def test_what_teaches_nothing_is_a_warning(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = a.pictures(root, 12)
    a.put(root / "metadata.csv", a.table([{"file_name": n, "same": 3} for n in names]))
    a.put(root / "00.txt", "a\x1b[31m red\nword " + 200 * "x")
    for i, name in enumerate(names):
        a.put(root / name.replace(".png", ".mask.png"), a.z.saved(np.full((16, 16), i == 11, np.uint8), "PNG"))
    images = a.read(root)
    found = report(images, np.arange(11), np.array([11]))
    assert "the same number for every picture: same (3)" in found.warnings
    assert "no mask to train on has region 1: only held-out pictures have it" in found.warnings
    assert found.known.captions is not None
    example = found.known.captions.examples[0]
    assert example.startswith("a [31m red word xxx")
    assert len(example) == 80
