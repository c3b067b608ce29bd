"""What is said while work goes on: how often, where, and that no text can stop it."""

import io
import os
import subprocess
import sys

import pytest

from moyai import console
from moyai.console import Bars, Lines, Silent, duration, printable, reporter, result


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal and remembers its bytes."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding, errors="strict")

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.flush()
        return self.raw_bytes.getvalue().decode(self.encoding)


def lines_of(seconds_a_step: float, total: int) -> list[str]:
    clock, stream = Clock(), io.StringIO()
    said = Lines(stream, clock=clock)
    for done in range(total + 1):
        said.progress("train", done, total, f"loss {done}")
        clock.now += seconds_a_step
    return stream.getvalue().splitlines()


def test_a_line_at_each_tenth():
    lines = lines_of(0.1, 1000)  # 100 s: a tenth each 10 s
    assert [line.split()[1] for line in lines] == [str(share) for share in range(0, 101, 10)]
    assert lines[3] == "train   30 %  300/1000  10/s  1:10 left  loss 300"
    assert lines[-1] == "train  100 %  1000/1000  10/s  took 1:40  loss 1000"


def test_a_line_at_least_each_fifteen_seconds():
    lines = lines_of(15, 100)
    assert len(lines) == 101
    assert "15 s each  24:45 left" in lines[1]


def test_quick_work_says_two_lines():
    assert [line.split()[1] for line in lines_of(0.0001, 1000)] == ["0", "100"]


def test_a_resumed_run_has_the_rate_of_now():
    clock, stream = Clock(), io.StringIO()
    said = Lines(stream, clock=clock)
    said.progress("train", 900, 1000)
    clock.now += 20
    said.progress("train", 940, 1000)
    assert stream.getvalue().splitlines()[-1] == "train   94 %  940/1000  2/s  0:30 left"


def test_work_may_begin_again_and_be_empty():
    stream = io.StringIO()
    said = Lines(stream)
    for _ in range(2):
        said.progress("sample", 0, 2)
        said.progress("sample", 2, 2)
    said.progress("nothing", 0, 0)
    assert len(stream.getvalue().splitlines()) == 5
    assert not said.paces


def test_quiet_says_warnings_only():
    stream = Terminal()
    said = reporter(quiet=True, stream=stream)
    said.say("hello")
    said.progress("train", 0, 1)
    said.warn("careful")
    assert stream.text() == "warning: careful\n"


def test_which_reporter(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(reporter(stream=Terminal()), Bars)
    assert isinstance(reporter(stream=io.StringIO()), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(reporter(stream=Terminal()), Lines)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_bars_draw_in_every_encoding(monkeypatch, encoding):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal(encoding)
    with reporter(stream=stream) as said:
        said.say("recipe [bold]é漢🎨[/bold]")
        for done in range(4):
            said.progress("train é漢", done, 3, "loss [red]0.1")
        said.warn("漢")
        said.progress("stopped half way", 1, 3)
    text = stream.text()
    assert "[bold]" in text  # shown as it is, not obeyed
    assert "3/3" in text
    assert "loss [red]0.1" in text
    assert ("漢" in text) == (encoding == "utf-8")
    assert text.count("\x1b[?25l") <= text.count("\x1b[?25h")  # a cursor that was hidden is shown again


def test_printable_drops_what_steers_a_terminal():
    assert printable("a\x1b[2Jb\r\x07\x9b\tc\nd", "utf-8") == "a[2Jb\tc\nd"
    assert printable("é漢\ud800", "latin-1") == "é??"
    assert printable("x\ud800", "utf-8") == "x?"
    assert printable("é", None) == "?"


@pytest.mark.parametrize(("seconds", "text"), [(8, "0:08"), (59.6, "1:00"), (3671, "1:01:11")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys):
    result("é 3.4")
    reporter().say("working")
    out, err = capsys.readouterr()
    assert (out, err) == ("é 3.4\n", "working\n")


def test_locale_c_and_no_rich_until_a_bar():
    code = (
        "import sys; from moyai.console import reporter, result, Silent; Silent().say('x');"
        "r = reporter(); r.say('\\xe9\\u6f22\\ud800'); r.progress('\\u6f22', 1, 1); result('\\u6f22');"
        "sys.exit('rich' in sys.modules)"
    )
    env = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii:strict",
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"?\n"
    assert done.stderr.startswith(b"???\n")


def test_all_are_reporters():
    everyone: list[console.Reporter] = [Silent(), Lines(io.StringIO()), Bars(io.StringIO())]
    for one in everyone:
        one.say("x")
        one.warn("x")
        one.progress("x", 1, 1)
