"""Nothing is lost: killed at every point, torn, starved of disk, pruned; and each checker is fed a variant that fails.

"Identical" means equal sha256 over sorted (name, dtype, shape, bytes).
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import die, finish, in_child, spawn

from moyai.checkpoints import manifest, native
from moyai.errors import CheckpointError, SaveError


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: a kill means the same there, and thousands of fsyncs cost nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def contents(step: int, size: int = 40) -> dict[str, Any]:
    g = torch.Generator().manual_seed(step)
    return {
        "model": {"weight": torch.randn(size, 3, generator=g), "bias": torch.full((3,), step, dtype=torch.bfloat16)},
        "ema": {"weight": torch.randn(size, 3, generator=g)},
        "state": {"step": step, "best": float("inf"), "who": "né", "nested": {"list": [1, 2.5, None, True]}},
        "notes.txt": f"step {step}".encode(),
    }


def digest(found: dict[str, Any]) -> dict[str, Any]:
    """The contents, comparable."""
    return {
        key: native.tensors_digest(value) if key in ("model", "ema") else value for key, value in sorted(found.items())
    }


def save(parent: Path, step: int, *, variant: int = 0, fault: Callable[[str], None] = native.no_fault) -> Path:
    info = {"seed": 7, "variant": variant}
    return native.commit(parent, native.step_name(step), contents(step + variant), info, fault=fault)


def points(action: Callable[[Callable[[str], None]], object]) -> list[str]:
    """The names of all fault points an action passes, in order."""
    passed: list[str] = []
    action(passed.append)
    return passed


def killed_at(action: Callable[[Callable[[str], None]], object], at: int) -> int:
    """Run the action in a child that dies at its fault point number `at`; the child's exit code."""
    left = iter(range(at, -1, -1))
    code, _ = in_child(lambda: action(lambda point: die() if next(left) == 0 else None) and None)
    return code


def tree(folder: Path) -> dict[str, bytes | str]:
    """Everything under a folder, comparable."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
    return found


# What is written is read -----------------------------------------------------------------------------------------


def test_what_is_committed_is_read_back_identical(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "checkpoints", 123)
    assert path.name == "step-000123"
    assert digest(native.read(path)) == digest(contents(123))
    assert set(native.read(path, ["ema", "state"])) == {"ema", "state"}
    assert native.verify(path) == native.inspect(path)
    found = native.verify(path)
    assert found["info"] == {"seed": 7, "variant": 0, "step": 123}
    assert found["files"]["model.safetensors"]["tensors"] == 2
    assert set(found["files"]) == {"model.safetensors", "ema.safetensors", "state.json", "notes.txt"}
    assert found["versions"]["torch"] == str(torch.__version__)
    with pytest.raises(CheckpointError, match="holds no 'emma'; did you mean ema"):
        native.read(path, ["emma"])


def test_found_in_the_order_of_steps(tmp_path: Path) -> None:
    assert native.listed(tmp_path / "absent") == []
    assert native.newest(tmp_path / "absent") is None
    for step in (20, 3, 1_000_000, 100):
        save(tmp_path, step)
    native.commit(tmp_path, "best", contents(1), {"step": 1})
    assert [c.step for c in native.listed(tmp_path)] == [3, 20, 100, 1_000_000]
    newest = native.newest(tmp_path)
    assert newest is not None
    assert newest.path == tmp_path / "step-1000000"
    assert native.verify(tmp_path / "best")["name"] == "best"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_tensors_are_named_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    poisoned = contents(1)
    poisoned["ema"]["weight"][3, 1] = value
    with pytest.raises(CheckpointError, match=r"step-000001 was not written: ema: tensor 'weight': 1 of 120"):
        native.commit(tmp_path, "step-000001", poisoned, {}, finite=("model", "ema"))
    assert list(tmp_path.iterdir()) == []
    native.commit(tmp_path, "step-000001", poisoned, {}, finite=("model",))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "-rf", "x" * 200, "a b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        native.commit(tmp_path, name, contents(1), {})
    with pytest.raises(ValueError, match="cannot be"):
        native.commit(tmp_path, "step-000001", {name: b"1"}, {})
    assert list(tmp_path.iterdir()) == []


def test_contents_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    for bad in ({"a": {"x": 1}, "a.json": b"1"}, {"A.json": b"", "a": {}}, {"manifest.json": b""}):
        with pytest.raises(ValueError, match="cannot be"):
            native.commit(tmp_path, "x", bad, {})
    with pytest.raises(TypeError, match="mixes"):
        native.commit(tmp_path, "x", {"a": {"x": 1, "y": torch.ones(1)}}, {})
    with pytest.raises(ValueError, match="cannot hold step 8"):
        native.commit(tmp_path, "step-000007", {}, {"step": 8})
    assert list(tmp_path.iterdir()) == []


# Killed inside the commit ----------------------------------------------------------------------------------------

Commit = Callable[[Path, int, int, Callable[[str], None]], object]


def real_commit(parent: Path, step: int, variant: int, fault: Callable[[str], None]) -> object:
    return save(parent, step, variant=variant, fault=fault)


def commit_in_place(parent: Path, step: int, variant: int, fault: Callable[[str], None]) -> object:
    """The mutant: the same files and manifest, written straight into the final folder."""
    other = parent.parent / "elsewhere"
    made = native.commit(other, native.step_name(step), contents(step + variant), {"seed": 7, "variant": variant})
    home = parent / made.name
    home.mkdir(exist_ok=True)
    for file in [*sorted(p for p in made.iterdir() if p.name != manifest.MANIFEST), made / manifest.MANIFEST]:
        fault(f"before {file.name}")
        (home / file.name).write_bytes(b"")
        fault(f"inside {file.name}")
        (home / file.name).write_bytes(file.read_bytes())
    shutil.rmtree(other)
    return home


def kill_everywhere(folder: Path, commit: Commit, steps: tuple[int, ...], new: int) -> list[str]:
    """Kill the commit of step `new` over the checkpoints `steps` at each of its points; what went wrong."""
    wrong: list[str] = []

    def start(name: str) -> Path:
        parent = folder / name / "checkpoints"
        shutil.rmtree(folder / name, ignore_errors=True)
        for step in steps:
            save(parent, step)
        parent.mkdir(parents=True, exist_ok=True)
        return parent

    names = points(lambda fault: commit(start("dry"), new, 1, fault))
    for at, point in enumerate(names):
        parent = start("killed")
        code = killed_at(lambda fault, parent=parent: commit(parent, new, 1, fault), at)
        assert code == -signal.SIGKILL, point
        for moment in ("after the kill", "after the sweep"):
            wrong += [f"{point}, {moment}: {fault}" for fault in judged(parent, steps, new)]
            native.sweep(parent)
        left = [path.name for path in parent.iterdir() if path.name.startswith(".")]
        wrong += [f"{point}: {left} left over"] if left else []
        commit(parent, new, 1, native.no_fault)
        newest = native.newest(parent, strict=True)
        if newest is None or newest.manifest["info"]["variant"] != 1:
            wrong.append(f"{point}: the next commit did not arrive")
    return wrong


def judged(parent: Path, steps: tuple[int, ...], new: int) -> Iterator[str]:
    """What is wrong with the checkpoints of a folder in which a commit was killed: nothing, or the old or new state."""
    try:
        newest = native.newest(parent, strict=True)
        if newest is None and steps:
            yield "no checkpoint at all"
        if newest is not None and newest.step not in (max(steps, default=new), new):
            yield f"the newest is {newest.step}"
        listed = native.listed(parent)
        missing = set(steps) - {checkpoint.step for checkpoint in listed}
        if missing:
            yield f"lost {missing}"
        for checkpoint in listed:
            manifest = native.verify(checkpoint.path)
            expected = contents(checkpoint.step + manifest["info"]["variant"])
            if digest(native.read(checkpoint.path)) != digest(expected):
                yield f"step {checkpoint.step} holds something else"
    except CheckpointError as exc:
        yield str(exc)


@pytest.mark.parametrize(("steps", "new"), [((), 1), ((1, 2), 3), ((2,), 2), ((1, 2), 2)])
def test_killed_at_any_point_of_a_commit(folder: Path, steps: tuple[int, ...], new: int) -> None:
    names = points(lambda fault: (save(folder / "x", 1), save(folder / "x", 1, fault=fault)))
    for expected in ("before model.safetensors", "inside model.safetensors", "after notes.txt", "before the manifest",
                     "after the manifest", "after the fsync of the folder", "before putting the old one aside",
                     "before the rename", "after the rename", "after the fsync of the parent", "before the delete",
                     "inside the delete", "after the delete"):  # fmt: skip
        assert expected in names
    assert kill_everywhere(folder, real_commit, steps, new) == []


@pytest.mark.parametrize(("steps", "new"), [((1, 2), 3), ((2,), 2)])
def test_the_kill_test_fails_for_a_commit_in_place(folder: Path, steps: tuple[int, ...], new: int) -> None:
    assert kill_everywhere(folder, commit_in_place, steps, new) != []


def test_an_exception_inside_a_commit_leaves_everything_as_it_was(tmp_path: Path) -> None:
    save(tmp_path, 2)
    before = tree(tmp_path)
    names = points(lambda fault: save(tmp_path / "dry", 2, fault=fault))
    names = [name for name in names if not name.startswith("after the rename") and "parent" not in name]
    shutil.rmtree(tmp_path / "dry")
    for name in [*names, "before putting the old one aside"]:

        def fault(point: str, name: str = name) -> None:
            if point == name:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, variant=1, fault=fault)
        assert tree(tmp_path) == before, name


def train(parent: Path, log: Path, total: int) -> None:
    """A run in small: a state that depends on every step, saved every 5 steps, resumed from the newest."""
    native.sweep(parent)
    newest = native.newest(parent, strict=True)
    x = native.read(newest.path)["model"]["x"] if newest else torch.zeros(64, dtype=torch.float64)
    for step in range(newest.step if newest else 0, total):
        x = torch.cos(x * 1.1 + step)
        with open(log, "a") as file:
            file.write(f"{step}\n")
        if (step + 1) % 5 == 0:
            native.commit(parent, native.step_name(step + 1), {"model": {"x": x}, "state": {"step": step + 1}}, {})
            native.prune(parent, 2)


def kills_at_random(folder: Path, kills: int, total: int = 60) -> None:
    straight = folder / "straight"
    began = time.monotonic()
    assert in_child(lambda: train(straight, folder / "straight.log", total))[0] == 0
    whole = time.monotonic() - began
    expected = native.tensors_digest(native.read(straight / native.step_name(total))["model"])
    rng = random.Random(0)
    landed = 0
    for kill in range(kills):
        parent, log = folder / f"run{kill}", folder / f"run{kill}.log"
        pid, reader = spawn(lambda parent=parent, log=log: train(parent, log, total))
        time.sleep(rng.uniform(0, 0.7 * whole))
        os.kill(pid, signal.SIGKILL)
        landed += finish(pid, reader)[0] == -signal.SIGKILL
        assert in_child(lambda parent=parent, log=log: train(parent, log, total))[0] == 0
        assert native.tensors_digest(native.read(parent / native.step_name(total))["model"]) == expected
        steps = [int(line) for line in log.read_text().split()]
        assert set(steps) == set(range(total))
        assert len(steps) - total <= 5  # never more than one interval repeated
        assert [path.name for path in parent.iterdir() if path.name.startswith(".")] == []
    assert landed > 0  # else nothing was killed


def test_a_run_killed_at_random_ends_as_the_straight_run(folder: Path) -> None:
    kills_at_random(folder, 8)


@pytest.mark.slow
def test_fifty_runs_killed_at_random(folder: Path) -> None:
    kills_at_random(folder, 50)


# Torn and altered ------------------------------------------------------------------------------------------------


def damages(folder: Path, other: Path) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(what is done, the file it is done to, how) for every damage of test 4."""
    for file in sorted(path for path in folder.iterdir()):
        data = file.read_bytes()
        for at in sorted({round(i * (len(data) - 1) / 19) for i in range(20)}):
            yield f"cut to {at}", file.name, lambda f=file, d=data, at=at: f.write_bytes(d[:at])
            flipped = data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]
            yield f"bit flipped at {at}", file.name, lambda f=file, d=flipped: f.write_bytes(d)
        yield "emptied", file.name, lambda f=file: f.write_bytes(b"")
        yield "lengthened", file.name, lambda f=file, d=data: f.write_bytes(d + b" ")
        yield "deleted", file.name, lambda f=file: f.unlink()
        yield "a folder instead", file.name, lambda f=file: (f.unlink(), f.mkdir())
        yield "of another step", file.name, lambda f=file: f.write_bytes((other / f.name).read_bytes())
    yield "added", "extra.safetensors", lambda: (folder / "extra.safetensors").write_bytes(b"12345678")


def damage_everything(folder: Path) -> tuple[int, list[str]]:
    """Damage the newer of two checkpoints in every way; the number of ways, and what went wrong."""
    wrong, count = [], 0
    save(folder, 1)
    save(folder, 2)
    sound = tree(folder / "step-000002")
    for what, file, damage in list(damages(folder / "step-000002", folder / "step-000001")):
        damage()
        count += 1
        said: list[str] = []
        newest = native.newest(folder, on_skip=said.append)
        if newest is None or newest.step != 1 or digest(native.read(newest.path)) != digest(contents(1)):
            wrong.append(f"{file} {what}: no fall back to the previous one")
        # A manifest of another step is sound in itself, and the files are what it does not fit.
        named = file if (file, what) != (manifest.MANIFEST, "of another step") else "step-000002"
        if not any(named in sentence and "\n" not in sentence for sentence in said):
            wrong.append(f"{file} {what}: not named in {said}")
        for attempt in (lambda: native.newest(folder, strict=True), lambda: native.read(folder / "step-000002")):
            try:
                attempt()
                wrong.append(f"{file} {what}: loaded in silence")
            except CheckpointError:
                pass
        shutil.rmtree(folder / "step-000002")
        (folder / "step-000002").mkdir()
        for name, data in sound.items():
            assert isinstance(data, bytes)
            (folder / "step-000002" / name).write_bytes(data)
    assert native.newest(folder, strict=True).step == 2  # type: ignore[union-attr]
    return count, wrong


def test_no_damage_is_loaded_in_silence(folder: Path) -> None:
    count, wrong = damage_everything(folder)
    assert count > 190
    assert wrong == []


def test_the_damage_test_fails_without_the_comparison_of_hashes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_compare", lambda path, entry, found: None)
    assert any("bit flipped" in line and "loaded in silence" in line for line in damage_everything(folder)[1])


def test_a_folder_under_another_name_is_no_checkpoint_of_that_step(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    os.rename(tmp_path / "step-000002", tmp_path / "step-000009")
    said: list[str] = []
    newest = native.newest(tmp_path, on_skip=said.append)
    assert newest is not None
    assert newest.step == 1
    assert "step-000009: is a copy of 'step-000002' under another name" in said[0]
    assert [c.step for c in native.listed(tmp_path)] == [1]
    assert digest(native.read(tmp_path / "step-000009")) == digest(contents(2))  # by its path it can be read


def test_a_file_of_the_desktop_does_not_spoil_a_checkpoint(tmp_path: Path) -> None:
    (save(tmp_path, 1) / ".DS_Store").write_bytes(b"")
    assert native.newest(tmp_path, strict=True) is not None


def forged(path: Path, **changes: Any) -> None:
    """Write a manifest whose own sha256 is right, whatever it says."""
    body = json.loads((path / manifest.MANIFEST).read_bytes()) | changes
    body.pop("sha256")
    body["sha256"] = manifest.hashlib.sha256(manifest.canonical_json(body, allow_nan=True)).hexdigest()
    (path / manifest.MANIFEST).write_bytes(manifest.canonical_json(body, allow_nan=True))


def test_forged_manifests(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    path = save(tmp_path, 1)
    entry = native.verify(path)["files"]["notes.txt"]
    forged(path)
    native.verify(path)  # a forgery that changes nothing is none
    for files in ({"../secret.txt": entry}, {"/etc/passwd": entry}, {"notes.txt": 1}, [], {"a": entry, "b": entry},
                  {"notes.txt": entry | {"size": -1.5}}, {"notes.txt": entry | {"kind": "pickle"}}):  # fmt: skip
        forged(path, files=files)
        with pytest.raises(CheckpointError, match="not a manifest of format 1"):
            native.read(path)
    forged(path, format=2)
    with pytest.raises(CheckpointError, match=r"format 2; this moyai .* reads format 1"):
        native.read(path)
    for text in (b"[" * 100_000, b"[]", b"{}", b"\xff", b"9" * 10_000):
        (path / manifest.MANIFEST).write_bytes(text)
        with pytest.raises(CheckpointError, match=manifest.MANIFEST):
            native.verify(path)


# The disk says no ------------------------------------------------------------------------------------------------


def test_too_large_for_the_disk_at_ten_sizes(tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = tree(tmp_path)
    big = contents(2, size=20_000)
    largest = native.commit(tmp_path / "dry", "x", big, {}) / "model.safetensors"
    size = largest.stat().st_size
    shutil.rmtree(tmp_path / "dry")
    for limit in (round(4096 + i * (size - 1 - 4096) / 9) for i in range(10)):

        def attempt(limit: int = limit) -> str:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pytest.raises(SaveError) as caught:
                native.commit(tmp_path, "step-000002", big, {})
            return str(caught.value)

        code, message = in_child(attempt)
        assert code == 0
        assert str(tmp_path / "step-000002") in message
        assert os.strerror(errno.EFBIG) in message
        needed = int(message.split("needed: ")[1].split(" ")[0].replace(",", ""))
        free = int(message.split("free: ")[1].split(" ")[0].replace(",", ""))
        assert size < needed < 3 * size
        assert abs(free - shutil.disk_usage(tmp_path).free) < 10e9
        assert "\n" not in message
        assert tree(tmp_path) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
def test_errors_of_the_system_are_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    save(tmp_path, 1)
    before = tree(tmp_path)

    def refuse(*args: object, **more: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(SaveError, match=f"step-000002: {os.strerror(code)}; needed: .* free: "):
            save(tmp_path, 2)
    assert tree(tmp_path) == before


def test_a_disk_known_to_be_too_small_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "free_bytes", lambda path: 1000)
    with pytest.raises(SaveError, match=r"step-000001: no space left; needed: .* free: 1,000 bytes"):
        save(tmp_path, 1, fault=lambda point: pytest.fail(f"got as far as {point}"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(SaveError, match="cannot save"):
        save(tmp_path / "checkpoints", 1)
    assert (tmp_path / "checkpoints").read_text() == "mine"


# Retention -------------------------------------------------------------------------------------------------------


def valid(parent: Path) -> list[int]:
    return [c.step for c in native.listed(parent) if native.verify(c.path)]


def test_killed_in_every_deletion_and_never_fewer_than_kept(folder: Path) -> None:
    parent = folder / "checkpoints"
    save(parent, 1)
    shutil.copytree(parent / "step-000001", parent / "step-000001 copy")
    shutil.copytree(parent / "step-000001", parent / "step-000777")
    shutil.copytree(parent / "step-000001", parent / ".staging-mine")
    shutil.copytree(parent / "step-000001", folder / "archive")
    (parent / "step-000900").symlink_to(folder / "archive")
    native.commit(parent, "best", contents(1), {"step": 1})
    save(parent, 0)
    (parent / "step-000000" / "remarks.txt").write_text("keep this one")
    (parent / "photos").mkdir()
    (parent / "step-000003.txt").write_text("about step 3")
    mine = ("step-000001 copy", "step-000777", ".staging-mine", "step-000900", "best", "step-000000", "photos",
            "step-000003.txt")  # fmt: skip
    before = {name: tree(parent / name) for name in mine}
    killed = set()
    for step in range(1, 21):
        save(parent, step)
        at = (step - 4) % 7  # one deletion a save from the fourth on, and it has 7 points or more
        code = killed_at(lambda fault: native.prune(parent, 3, fault=fault), at)
        killed.add((code, at))
        assert len(valid(parent)) >= min(3, step)
        assert code == (-signal.SIGKILL if step > 3 else 0)
        if step % 2:
            native.sweep(parent)
        native.prune(parent, 3)
        assert valid(parent) == list(range(max(1, step - 2), step + 1))
    assert len(killed) >= 8
    native.sweep(parent)
    assert {name: tree(parent / name) for name in mine} == before
    assert sorted(path.name for path in parent.iterdir()) == sorted([*mine, *map(native.step_name, (18, 19, 20))])


def test_protected_steps_are_kept_beside_the_newest(tmp_path: Path) -> None:
    for step in range(1, 9):
        save(tmp_path, step)
        native.prune(tmp_path, 2, protect=(1, 4))
    assert valid(tmp_path) == [1, 4, 7, 8]
    with pytest.raises(ValueError, match="at least one"):
        native.prune(tmp_path, 0)


def test_a_torn_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-000003" / "state.json").unlink()
    native.prune(tmp_path, 2)
    assert valid(tmp_path) == [1, 2]


def test_what_is_not_provably_ours_is_kept_when_its_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "thesis.txt").write_text("mine")
    save(tmp_path, 1)
    assert valid(tmp_path) == [1]
    (other,) = (path for path in tmp_path.iterdir() if path.name != "step-000001")
    assert other.name.startswith("step-000001.replaced-")
    native.sweep(tmp_path)
    native.prune(tmp_path, 1)
    assert (other / "thesis.txt").read_text() == "mine"


def test_the_sweep_gives_back_what_was_put_aside(tmp_path: Path) -> None:
    save(tmp_path, 1)
    aside = tmp_path / f".aside-step-000001-{'0' * 32}"
    os.rename(tmp_path / "step-000001", aside)
    assert [c.path for c in native.listed(tmp_path)] == [aside]  # found before any sweep, too
    assert native.newest(tmp_path, strict=True) is not None
    native.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    # Where the new one is broken the old one is not deleted.
    shutil.copytree(tmp_path / "step-000001", aside)
    (tmp_path / "step-000001" / "state.json").unlink()
    native.sweep(tmp_path)
    assert digest(native.read(aside)) == digest(contents(1))
