"""`moyai inspect` of runs whose files were altered: one line, never a traceback."""

import shutil
from pathlib import Path

import pytest

import tiny


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("recipe.json", b'{"name": "\xff"}', "recipe.json: not UTF-8 at byte 10"),
        ("recipe.json", b"{", "recipe.json: not JSON"),
        ("recipe.json", b"[]", "a recipe is a table of keys"),
        ("data.json", b"{}", "data.json does not hold the facts of the data"),
        ("data.json", b"[]", "data.json does not hold the facts of the data"),
        ("data.json", b'{"facts": {"count": 3}}', "data.json does not hold the facts of the data"),
        ("data.json", b"\xff", "data.json cannot be read"),
        ("data.json", None, "is no run (it has no recipe.json and data.json)"),
        ("prior/log.jsonl", b'{"step": 2}\nnothing\n', "log.jsonl: line 2 is none of a log"),
        ("prior/log.jsonl", b"\xff\n", "log.jsonl: line 1 is none of a log"),
    ],
)
def test_a_run_that_was_altered(
    file: str, data: bytes | None, message: str, finished_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run / "run", tmp_path / "run"))
    (run / file).unlink()
    if data is not None:
        (run / file).write_bytes(data)
    commands = [["inspect", run], ["inspect", run, "--plot", tmp_path / "x.html"]]
    if not file.endswith(".jsonl"):
        commands.append(["sample", run, "--out", tmp_path / "x.png"])
    for words in commands:
        status, said = tiny.moyai(words, tmp_path / "said")
        assert status == 2, said
        complaints = [line for line in said.splitlines() if line.startswith("moyai: ")]
        assert len(complaints) == 1, said
        assert message in complaints[0]
        assert "Traceback" not in said
    assert not list(tmp_path.glob("x.*"))


def test_what_is_said_of_a_run(finished_run: Path, tmp_path: Path) -> None:
    status, said = tiny.moyai(["inspect", finished_run / "run"], tmp_path / "said")
    assert status == 0, said
    lines = said.splitlines()
    assert lines[0].startswith("run tiny: data folder")
    assert lines[1] == "data: 51 training pictures, 1 x 8 x 8, 3 classes: disc, ring, square"  # 3 of 20 are held out
    assert "first stage: finished at step 12" in lines
    assert "prior: finished at step 12" in lines
