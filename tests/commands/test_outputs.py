"""Where pictures and tables go: nothing that is read is written over, and what cannot be written is said at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import tiny
from moyai.commands import outputs, sample

Sample = Callable[..., tuple[int, str]]


@pytest.fixture
def draw(finished_run: Path, tmp_path: Path) -> Sample:
    """`moyai sample` in a folder of its own: exit status, and what it said. idle: the model must not be read."""

    def run(*words: object, idle: bool = True, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
        def arrange() -> None:
            os.chdir(tmp_path)
            if idle:
                sample.load = None  # type: ignore[assignment]
            before()

        return tiny.moyai(["sample", finished_run / "run", "--quiet", *words], tmp_path / "said", arrange)

    return run


def test_what_is_read_is_not_written_over(draw: Sample, tmp_path: Path) -> None:
    assert draw("--n", 1, "--steps", 1, idle=False) == (0, "")
    drawn = (tmp_path / "samples.png").read_bytes()
    (tmp_path / "way.gif").write_bytes(b"a way")
    (tmp_path / "link.png").symlink_to("samples.png")
    for words, option in (
        (["--like", "samples.png"], "--out samples.png"),  # where --out is silent
        (["--like", "samples.png", "--out", "../" + tmp_path.name + "/samples.png"], "--out ../"),
        (["--like", "link.png", "--out", "samples.png"], "--out samples.png"),
        (["--map", "samples.png", "--out", "samples.png"], "--out samples.png"),
        (["--map", "other.png", "samples.png", "--out", "samples.png"], "--out samples.png"),
        (["--picture", "samples.png", "--out", "samples.png"], "--out samples.png"),
        (["--picture", "a.png", "masked=samples.png", "--out", "samples.png"], "--out samples.png"),
        (["--picture", "a.png", "--mask", "samples.png"], "--out samples.png"),
        (["--like", "way.gif", "--out", "x.png", "--gif", "way.gif"], "--gif way.gif"),
    ):
        status, said = draw(*words)
        assert status == 2, said
        assert f"{option}" in said
        assert f"is one of the pictures to be read; possible: another {option[:5]}" in tiny.one_line(said)
    assert (tmp_path / "samples.png").read_bytes() == drawn
    assert (tmp_path / "way.gif").read_bytes() == b"a way"
    assert draw("--like", "samples.png", "--out", "again.png", idle=False) == (0, "")
    assert list(Image.open(tmp_path / "again.png").getdata()) == list(Image.open(tmp_path / "samples.png").getdata())


def test_a_folder_of_pictures_keeps_those_that_are_read(draw: Sample, tmp_path: Path) -> None:
    assert draw("--n", 1, "--steps", 1, "--out", "each", idle=False) == (0, "")
    before = {path.name: path.read_bytes() for path in (tmp_path / "each").iterdir()}
    name = "000001-ring.png"
    assert name in before
    status, said = draw("--like", f"each/{name}", "--out", "each", idle=False)
    assert status == 2, said
    assert f"--out each: each/{name} is one of the pictures to be read" in tiny.one_line(said)
    assert {path.name: path.read_bytes() for path in (tmp_path / "each").iterdir()} == before
    (tmp_path / "each" / name).rename(tmp_path / "each" / "mine.png")  # by another name it is not in the way
    assert draw("--like", "each/mine.png", "--out", "each", idle=False) == (0, "")
    assert (tmp_path / "each" / "mine.png").read_bytes() == before[name]
    assert (tmp_path / "each" / name).is_file()


def test_what_cannot_be_written_is_said_before_anything_is_drawn(draw: Sample, tmp_path: Path) -> None:
    for name in ("d.png", "d.npz", "d.gif", "closed"):
        (tmp_path / name).mkdir()
    long = "x" * 300

    def closed() -> None:
        """As for a user who may not write there, which root always may."""
        os.access = lambda path, mode: Path(path).name != "closed"  # type: ignore[assignment]

    for words, message in (
        (["--out", "d.png"], "--out d.png is a folder; possible: a file, such as samples.png"),
        (["--out", "d.npz"], "--out d.npz is a folder; possible: a file, such as samples.npz"),
        (["--out", "a.png", "--gif", "d.gif"], "--gif d.gif is a folder; possible: a file, such as samples.gif"),
        (["--out", f"{long}.png"], "cannot be made (File name too long)"),
        (["--out", "closed/a.png"], "closed may not be written to; possible: another --out"),
        (["--out", "closed"], "closed may not be written to; possible: another --out"),
        (["--out", "a.png", "--gif", "closed/a.gif"], "closed may not be written to; possible: another --gif"),
    ):
        status, said = draw(*words, before=closed)
        assert status == 2, said
        assert message in tiny.one_line(said)
    assert not (tmp_path / "a.png").exists()


def test_a_table_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs.check_json(tmp_path / "new" / "x.json", "x.json")
    with pytest.raises(outputs.RequestError, match=r"new is a folder; possible: a file, such as it\.json"):
        outputs.check_json(tmp_path / "new", "it.json")
    with pytest.raises(outputs.RequestError, match="cannot be made"):
        outputs.check_json(tmp_path / ("x" * 300), "it.json")
    monkeypatch.setattr(os, "access", lambda path, mode: mode & os.W_OK == 0)
    with pytest.raises(outputs.RequestError, match="may not be written to; possible: another --json"):
        outputs.check_json(tmp_path / "x.json", "it.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the permission asked for above stands for it")
def test_a_folder_without_the_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    for path in (tmp_path / "closed", tmp_path / "closed" / "a.png"):
        with pytest.raises(outputs.RequestError, match="closed may not be written to"):
            outputs.check(path, None)
