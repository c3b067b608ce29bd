"""What a long command says while it works: a progress bar on a terminal, a line now and then in a log file.

The library itself is silent; whoever runs it hands it a `Reporter`. All of this goes to stderr, so that what a
command prints as its result can be piped; `result` prints that. No text can fail to be printed: what the stream's
encoding cannot hold becomes `?`, and control characters, with which a file name could steer a terminal, are dropped.
"""

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID


class Reporter(Protocol):
    """What training, sampling and the command line report to.

    `progress(what, done, total, note)`: `done` of `total` steps of `what` are finished; `note` is what else is worth
    seeing ("loss 0.123  412 images/s"). A `what` ends when done reaches total, and may begin again.
    """

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def progress(self, what: str, done: int, total: int, note: str = "") -> None: ...


class Silent:
    """The library's default: nothing is said."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def progress(self, what: str, done: int, total: int, note: str = "") -> None: ...


def reporter(quiet: bool = False, stream: TextIO | None = None) -> "Lines | Bars":
    """The reporter for this terminal or log file: bars where they can be drawn, else lines; quiet: warnings only.

    Use it in a `with`, which takes a half-finished bar off the terminal.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not stream.isatty() or os.environ.get("TERM") == "dumb":
        return Lines(stream, quiet=quiet)
    return Bars(stream)


def result(text: str, stream: TextIO | None = None) -> None:
    """Prints what a command was asked for, to stdout."""
    _print(text, sys.stdout if stream is None else stream)


def printable(text: str, encoding: str | None) -> str:
    """The text as a stream of this encoding can show it, without control characters but tab and newline."""
    clean = "".join(c for c in text if c in "\t\n" or not (ord(c) < 32 or 127 <= ord(c) < 160))
    name = encoding or "ascii"
    return clean.encode(name, "replace").decode(name)


def duration(seconds: float) -> str:
    """8 -> "0:08", 3671 -> "1:01:11"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Closing:
    """A `with` that closes. There is nothing to close unless a bar is drawn."""

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Pace:
    """The rate of one piece of work, from what this process has seen of it (a resumed run begins in the middle)."""

    def __init__(self, done: int, now: float) -> None:
        self.first, self.since = done, now
        self.said, self.at = done, now  # what the last line said, and when

    def text(self, done: int, total: int, now: float) -> str:
        spent, moved = now - self.since, done - self.first
        if spent <= 0 or moved <= 0:
            return ""
        rate = moved / spent
        shown = f"{rate:.3g}/s" if rate >= 0.1 else f"{1 / rate:.3g} s each"
        return f"{shown}  " + (f"{duration((total - done) / rate)} left" if done < total else f"took {duration(spent)}")


class Lines(_Closing):
    """Plain lines: one when work begins and one when it ends; between, one at each 10 % or after 15 s without one,
    and never two within a second."""

    def __init__(self, stream: TextIO, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.quiet, self.clock = stream, quiet, clock
        self.paces: dict[str, _Pace] = {}

    def say(self, text: str) -> None:
        if not self.quiet:
            _print(text, self.stream)

    def warn(self, text: str) -> None:
        _print(f"warning: {text}", self.stream)

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        if self.quiet:
            return
        now, pace = self.clock(), self.paces.get(what)
        if pace is None:
            pace = self.paces[what] = _Pace(done, now)
            due = True
        else:
            waited, moved = now - pace.at, done - pace.said
            due = waited >= 15 or (waited >= 1 and 10 * moved >= total)
        if due or done >= total:
            pace.said, pace.at = done, now
            share = f"{100 * done // total:3d} %  " if total > 0 else ""
            _print(
                "  ".join(filter(None, (f"{what}  {share}{done}/{total}", pace.text(done, total, now), note))),
                self.stream,
            )
        if done >= total:
            del self.paces[what]


class Bars(_Closing):
    """A bar for each piece of work under way, with its rate and the time left; finished ones become a line."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.encoding = getattr(stream, "encoding", None)
        self.console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", style="dim"),
            TextColumn("{task.fields[rate]}", style="dim"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False, style="cyan"),
            console=self.console,
            refresh_per_second=5,
            redirect_stdout=False,  # results may go to a pipe
        )
        self.tasks: dict[str, tuple[TaskID, _Pace]] = {}

    def say(self, text: str) -> None:
        self.console.print(self._clean(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(self._clean(f"warning: {text}"), style="yellow", soft_wrap=True)

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if what not in self.tasks:
            name = self._clean(what)
            task = self.bars.add_task(name, completed=done, total=max(1, total), rate="", note="")
            self.tasks[what] = (task, _Pace(done, now))
            if len(self.tasks) == 1:
                self.bars.start()
                self.console.show_cursor(True)  # so that a killed process leaves no terminal without one
        task, pace = self.tasks[what]
        told = pace.text(done, total, now)
        if done < total:
            self.bars.update(task, completed=done, total=total, rate=told.partition("  ")[0], note=self._clean(note))
            return
        del self.tasks[what]
        self.bars.remove_task(task)
        if not self.tasks:
            self.bars.stop()
        self.say("  ".join(filter(None, (what, f"{done}/{total}", told, note))))

    def close(self) -> None:
        if self.tasks:
            self.tasks.clear()
            self.bars.stop()

    def _clean(self, text: str) -> str:
        return printable(text, self.encoding)


def _print(text: str, stream: TextIO) -> None:
    stream.write(printable(text, getattr(stream, "encoding", None) or "utf-8") + "\n")
    stream.flush()
