"""Children for the tests that kill, starve or lock: forked, so that none has to import torch again."""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


def die() -> None:
    """The end that no `finally` sees."""
    os.kill(os.getpid(), signal.SIGKILL)


def spawn(function: Callable[[], Any]) -> tuple[int, int]:
    """Fork a child that runs `function`: its pid, and the end of a pipe on which its pickled result arrives."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            result = pickle.dumps(function())
            while result:
                result = result[os.write(writer, result) :]
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    os.close(writer)
    return pid, reader


def finish(pid: int, reader: int) -> tuple[int, Any]:
    """Wait for a child: its exit code (minus the signal, if it was one) and its result, None where it has none."""
    with open(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, pickle.loads(data) if code == 0 else None


def in_child(function: Callable[[], Any]) -> tuple[int, Any]:
    return finish(*spawn(function))
