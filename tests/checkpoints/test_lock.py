"""One run, one folder: the second is refused by name, the dead are succeeded."""

import json
import os
import platform
import signal
import tempfile
import time
from pathlib import Path

import pytest
from forked import finish, in_child, spawn

from moyai.checkpoints.lock import LOCK_FILE, RunLock
from moyai.errors import RequestError


def holding(folder: Path, *, worker: bool = False) -> tuple[int, int]:
    """A child that holds the lock until it is killed (with a forked worker that outlives it); returns when it does."""
    ready, tell = os.pipe()

    def hold() -> None:
        with RunLock(folder):
            if worker and os.fork() == 0:
                os.write(tell, str(os.getpid()).encode())
                time.sleep(60)
                os._exit(0)
            if not worker:
                os.write(tell, b"0")
            time.sleep(60)

    pid, reader = spawn(hold)
    workers = int(os.read(ready, 20))
    os.close(ready)
    os.close(tell)
    os.close(reader)
    return pid, workers


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    pid, _ = holding(tmp_path)
    try:
        for force in (False, True):  # force is for other machines; a process that is seen to live keeps its folder
            with pytest.raises(RequestError) as caught, RunLock(tmp_path, force=force):
                pytest.fail("two hold one folder")
            assert f"process {pid} on {platform.node()}" in str(caught.value)
            assert str(tmp_path) in str(caught.value)
    finally:
        kill(pid)


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(RequestError, match=str(os.getpid())), RunLock(tmp_path):
        pytest.fail("two hold one folder")


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    pid, _ = holding(tmp_path)
    kill(pid)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == pid  # it could not clear up
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_folder(tmp_path: Path) -> None:
    pid, worker = holding(tmp_path, worker=True)
    kill(pid)
    try:
        os.kill(worker, 0)  # it lives
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_worker_that_ends_does_not_end_the_lock(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:

        def leave() -> None:
            lock.__exit__(None, None, None)

        assert in_child(leave)[0] == 0

        def try_again() -> str:
            with pytest.raises(RequestError) as caught, RunLock(tmp_path):
                pass
            return str(caught.value)

        code, message = in_child(try_again)
        assert code == 0
        assert str(os.getpid()) in message


def test_an_ended_holder_leaves_an_empty_file_and_the_lock_can_be_held_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "new" / "run")
    for _ in range(3):
        with lock:
            assert json.loads(lock.path.read_text())["host"] == platform.node()
        assert lock.path.read_text() == ""


def test_another_machine_is_believed_unless_forced(tmp_path: Path) -> None:
    record = json.dumps({"pid": 1, "host": "elsewhere", "time": "2025-01-01T00:00:00+0000"})
    (tmp_path / LOCK_FILE).write_text(record)
    with pytest.raises(RequestError, match=r"process 1 on elsewhere .*--force"), RunLock(tmp_path):
        pytest.fail("the other machine was not asked")
    assert (tmp_path / LOCK_FILE).read_text() == record
    with RunLock(tmp_path, force=True):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "1", "host": 2}', '{"pid": 17'])
def test_a_half_written_record_is_no_holder(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    with RunLock(tmp_path):
        pass


def test_without_locks_in_the_file_system_the_record_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moyai.checkpoints.lock._flock", lambda handle: None)
    record = {"pid": os.getppid(), "host": platform.node(), "time": "now"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(record))
    with pytest.raises(RequestError, match=f"process {os.getppid()} on"), RunLock(tmp_path):
        pytest.fail("its holder lives")
    pid, reader = spawn(lambda: None)
    finish(pid, reader)
    (tmp_path / LOCK_FILE).write_text(json.dumps(record | {"pid": pid}))
    with RunLock(tmp_path):
        pass


def test_a_read_only_folder_is_one_clear_line() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)

        def attempt() -> str:
            if os.getuid() == 0:
                os.setuid(65534)  # the superuser may write anywhere
            with pytest.raises(RequestError) as caught, RunLock(name):
                pass
            return str(caught.value)

        code, message = in_child(attempt)
        assert code == 0
        assert message == f"cannot write in the run folder {name}: Permission denied; choose another"


def test_a_file_in_the_place_of_the_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RequestError, match="cannot write in the run folder"), RunLock(tmp_path / "run"):
        pass
