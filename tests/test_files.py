"""Files whole or not at all: killed at every call of the system, and each error one clear line."""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moyai import files
from moyai.errors import SaveError

CALLS = ("open", "write", "fsync", "close", "replace")
Writer = Callable[[Path, bytes], object]


def plain_write(path: Path, data: bytes) -> None:
    """The mutant: straight to the final name."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(handle, data[: len(data) // 2])
    os.write(handle, data[len(data) // 2 :])
    os.fsync(handle)
    os.close(handle)


def killed_at_call(write: Writer, path: Path, data: bytes, at: int) -> int:
    """Write in a child that dies before its call number `at` of the system; its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            left = iter(range(at, -1, -1))

            def wrapped(call: Callable[..., object]) -> Callable[..., object]:
                def run(*args: object, **more: object) -> object:
                    if next(left, None) == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **more)

                return run

            for name in CALLS:
                setattr(os, name, wrapped(getattr(os, name)))
            write(path, data)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def torn(write: Writer, folder: Path) -> list[str]:
    """Kill a replacement at each of its calls; what a reader then finds that is neither the old nor the new."""
    old, new = b"old" * 1000, b"new!" * 2000
    wrong = []
    for at in range(100):
        path = folder / str(at)
        path.write_bytes(old)
        code = killed_at_call(write, path, new, at)
        if path.read_bytes() not in (old, new):
            wrong.append(f"killed at call {at}: {len(path.read_bytes())} bytes")
        if code == 0:
            assert at >= 4  # else nothing was killed
            assert path.read_bytes() == new
            return wrong
        assert code == -signal.SIGKILL
    raise AssertionError("the write never ended")


def test_killed_at_any_call_the_old_or_the_new_is_there(tmp_path: Path) -> None:
    assert torn(files.write_atomic, tmp_path) == []
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert left
    files.sweep_temporaries(tmp_path)
    assert all(path.exists() for path in left)  # young: another process may be writing
    (tmp_path / ".moyai-tmp-mine").write_bytes(b"")
    files.sweep_temporaries(tmp_path, older_than=-10)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".moyai-tmp-mine"]


def test_the_kill_test_fails_for_a_plain_write(tmp_path: Path) -> None:
    assert torn(plain_write, tmp_path) != []


@pytest.mark.parametrize("name", ["plain", "with space", "é漢🎨", "-leading", "n" * 250])
def test_awkward_names(tmp_path: Path, name: str) -> None:
    for data in (b"", b"1", b"22" * 100):
        files.write_atomic(tmp_path / name, data)
        assert (tmp_path / name).read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", CALLS[:3] + CALLS[4:])
def test_errors_name_path_reason_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def refuse(*args: object, **more: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(SaveError) as caught:
            files.write_atomic(tmp_path / "a", bytes(12345))
    message = str(caught.value)
    assert message.startswith(f"cannot save {tmp_path / 'a'}: {os.strerror(code)}; needed: 12,345 bytes")
    free = int(message.split("free: ")[1].split(" ")[0].replace(",", ""))
    assert abs(free - shutil.disk_usage(tmp_path).free) < 10e9
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_missing_folder_is_a_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="No such file or directory"):
        files.write_atomic(tmp_path / "absent" / "a", b"1")


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    files.write_atomic(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_is_canonical(tmp_path: Path) -> None:
    files.write_json_atomic(tmp_path / "a.json", {"b": [1, 2.5], "a": "é"})
    assert (tmp_path / "a.json").read_bytes() == '{\n "a": "é",\n "b": [\n  1,\n  2.5\n ]\n}\n'.encode()
    with pytest.raises(ValueError):
        files.write_json_atomic(tmp_path / "a.json", {"a": float("nan")})
    assert b"2.5" in (tmp_path / "a.json").read_bytes()
    assert files.canonical_json({"a": sys.float_info.max}) == files.canonical_json({"a": sys.float_info.max})
