"""One run, one folder: a lock that names its holder and does not outlive it.

The lock is the system's (`flock` on a file that stays in the folder), so it ends with its process however that ends.
The file's text, {"pid", "host", "time"}, tells a second process who holds it. Where the text names another machine,
whose processes cannot be seen from here, its word is taken unless `force` says otherwise: network file systems do not
always carry `flock` from one machine to the next.
"""

import errno
import fcntl
import json
import os
import platform
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from moyai.errors import RequestError

LOCK_FILE = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """`with RunLock(folder):` holds the run folder, or raises RequestError at once, naming who holds it."""

    def __init__(self, folder: str | Path, *, force: bool = False) -> None:
        self.path = Path(folder) / LOCK_FILE
        self.force = force
        self._handle: int | None = None

    def __enter__(self) -> "RunLock":
        if self._handle is not None:
            raise RuntimeError(f"{self.path} is already held by this object")
        handle = self._open()
        try:
            self._claim(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        # A forked worker inherits the open file and would hold the lock after its parent was killed.
        mine = weakref.ref(self)

        def let_go() -> None:
            if (lock := mine()) is not None:
                lock._forget()

        os.register_at_fork(after_in_child=let_go)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.ftruncate(self._handle, 0)  # the file stays: removing it would race with the next holder
            self._forget()

    def _forget(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno is not None else str(exc)
            raise RequestError(f"cannot write in the run folder {self.path.parent}: {reason}; choose another") from exc

    def _claim(self, handle: int) -> None:
        locked = _flock(handle)
        holder = _holder(handle)
        where = self.path.parent
        here = platform.node()
        if locked is False:
            raise RequestError(f"{where} is in use by {_said(holder)}; wait for it, end it, or choose another folder")
        if holder is not None and holder["host"] != here and not self.force:
            raise RequestError(f"{where} is in use by {_said(holder)}; if that run is over, use force (--force)")
        if holder is not None and holder["host"] == here and locked is None and _alive(holder["pid"]):
            raise RequestError(f"{where} is in use by {_said(holder)}; wait for it, end it, or choose another folder")
        text = json.dumps({"pid": os.getpid(), "host": here, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, text.encode(), 0)
        except OSError as exc:
            raise RequestError(f"cannot write in the run folder {where}: {exc.strerror}; choose another") from exc


def _flock(handle: int) -> bool | None:
    """True: ours; False: another's; None: this file system has no locks, and the file's text must do."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _holder(handle: int) -> dict[str, Any] | None:
    """Who the file says holds it; None where it is empty or half-written, which only a killed holder leaves."""
    try:
        record = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return None
    sound = isinstance(record, dict) and type(record.get("pid")) is int and isinstance(record.get("host"), str)
    return record if sound else None


def _said(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process (which has not written its name yet)"
    return f"process {holder['pid']} on {holder['host']} (since {holder.get('time', 'unknown')})"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True
