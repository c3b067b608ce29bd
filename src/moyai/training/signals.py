"""Signals: finish the step, save, leave; a second signal leaves at once.

SIGTERM and SIGINT stop after the current step with a checkpoint (exit status 128 + the signal's number); SIGUSR1 saves
and goes on. Python's defaults would leave with nothing saved.
"""

import os
import signal
import threading
from types import FrameType, TracebackType

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The run was stopped by a signal, after saving. `status` is the exit status that tells which."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {where}")
        self.status = 128 + number


class Signals:
    """While this context is entered, signals only leave a mark that the loop looks at between steps."""

    def __init__(self) -> None:
        self.stopping: int | None = None
        self.saving = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # python allows handlers nowhere else
            for number in (*STOPPING, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._mark)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _mark(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.saving = True
        elif self.stopping is None:
            self.stopping = number
        else:
            os._exit(128 + number)
