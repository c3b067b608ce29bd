"""The comparison of systems: what is done is not repeated, what is cut off begins anew, what the table says.

Stand-ins take the systems' place: a phase writes the files that its process would.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moyai import files
from moyai.checkpoints.lock import RunLock
from moyai.errors import RequestError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark's module, imported as its script imports its neighbours, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import quality

    yield quality
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("quality", "systems", "judging"):
            del sys.modules[name]


class Stage:
    """Stands in for the processes and the judge, and notes what was asked of it."""

    def __init__(self, quality: ModuleType, *, fails: str = "") -> None:
        self.quality, self.fails, self.done = quality, fails, []

    def run(self, job: Any, phase: str) -> None:
        self.done.append(phase)
        (job.folder / f"{phase}-left-behind").touch()
        if phase == self.fails:
            raise SystemExit(f"{phase} failed")
        name, facts = (
            ("training", {"steps": 7, "recipe": job.recipe()}) if phase == "train" else ("sampling", job.asked())
        )
        files.write_json_atomic(job.folder / f"{name}.json", facts)

    def judge(self, job: Any) -> dict[str, Any]:
        self.done.append("judge")
        return {"asked": job.asked()}

    def advance(self, job: Any, **until: str) -> list[str]:
        self.done = []
        self.quality.advance(job, self.run, self.judge, **until)
        return self.done


def test_each_phase_is_done_once(quality: ModuleType, tmp_path: Path) -> None:
    stage, job = Stage(quality), quality.Job("ddpm", 10, 1, tmp_path, samples=20)
    assert job.folder == tmp_path / "ddpm-10min-1t"
    assert stage.advance(job, until="train") == ["train"]
    assert stage.advance(job, until="sample") == ["sample"]
    assert stage.advance(job) == ["judge"]
    assert stage.advance(job) == []
    assert stage.advance(quality.Job("ddpm", 60, 1, tmp_path, samples=20)) == ["train", "sample", "judge"]
    more = quality.Job("ddpm", 10, 1, tmp_path, samples=30)  # of the same weights
    assert stage.advance(more) == ["sample", "judge"]


def test_a_training_cut_off_begins_anew(quality: ModuleType, tmp_path: Path) -> None:
    job = quality.Job("ddpm", 10, 1, tmp_path)
    with pytest.raises(SystemExit, match="train failed"):
        Stage(quality, fails="train").advance(job)
    (job.folder / "half.safetensors").touch()
    assert Stage(quality).advance(job) == ["train", "sample", "judge"]
    assert not (job.folder / "half.safetensors").exists()


def test_a_failed_drawing_keeps_the_training(quality: ModuleType, tmp_path: Path) -> None:
    job = quality.Job("ddpm", 10, 1, tmp_path)
    with pytest.raises(SystemExit, match="sample failed"):
        Stage(quality, fails="sample").advance(job)
    assert Stage(quality).advance(job) == ["sample", "judge"]


@pytest.mark.parametrize("labelled", [True, False])
def test_drawing_goes_on_with_the_next_part(
    quality: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: bool
) -> None:
    """Pictures are numbered by their grey, so that what was drawn when can be read from the whole."""
    import systems

    drawn: list[int] = []
    broken = True

    def sampler(folder: Path, steps: int, total: int) -> Any:
        assert (steps, total) == (50, 25)

        def draw(first: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
            if broken and first == 20:
                raise KeyboardInterrupt
            drawn.append(first)
            grey = np.arange(first, first + count, dtype=np.uint8)
            return np.broadcast_to(grey[:, None, None], (count, 28, 28)), grey % 10 if labelled else None

        return draw

    def rebuilder(folder: Path) -> Any:
        return (lambda pixels: pixels + 1) if labelled else None

    stand_in = SimpleNamespace(sampler=sampler, rebuilder=rebuilder)
    monkeypatch.setattr(systems, "load", lambda name: stand_in)
    monkeypatch.setattr(quality, "PART", 10)
    job, real = quality.Job("ddpm", 10, 1, tmp_path, samples=25), np.zeros((25, 28, 28), np.uint8)
    job.folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        quality.sample(job, real)
    assert not job.drawn()
    broken = False
    quality.sample(job, real)
    assert job.drawn()
    assert drawn == [0, 10, 20]
    assert np.load(job.folder / "samples.npy")[:, 5, 5].tolist() == list(range(25))
    labels, rebuilt = job.folder / "labels.npy", job.folder / "rebuilt.npy"
    assert (labels.is_file(), rebuilt.is_file()) == (labelled, labelled)
    if labelled:
        assert np.load(labels).tolist() == [i % 10 for i in range(25)]
        assert (np.load(rebuilt) == 1).all()


def result(system: str, fid: float, rows: dict[str, Any], *, minutes: float = 10) -> dict[str, Any]:
    return {
        "system": system,
        "minutes": minutes,
        "threads": 1,
        "asked": {"samples": 2000, "steps": 50},
        "extractor": "classifier (abc)",
        "reference": 20000,
        "training": {"steps": 7, "about": f"about {system}", "versions": {"torch": "2"}},
        "rows": {"samples": {"fid": value(fid)}, "held out": {"fid": value(0.5)}, **rows},
    }


def value(number: float) -> dict[str, Any]:
    return {"value": number, "low": number - 0.125, "high": number + 0.125, "error": None}


def test_the_table_sorts_and_names_the_floor_once(quality: ModuleType) -> None:
    results = [
        result("ddpm", 32, {}),
        result("moyai", 4, {"first stage": {"fid": value(2)}}),
        result("moyai", 1, {}, minutes=60),
    ]
    lines = quality.table(results).splitlines()
    body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert all(len(row) == len(body[0]) for row in body)
    assert [row[:2] for row in body[2:]] == [
        ["moyai", "10"],
        ["ddpm", "10"],
        ["moyai", "60"],
        ["held-out pictures", ""],
    ]
    assert body[2][5] == "4 (3.88 to 4.12)"
    assert [row[-1] for row in body[2:5]] == ["2 (1.88 to 2.12)", "-", "-"]
    assert lines[-4:] == [
        "",
        "- ddpm: about ddpm (torch 2)",
        "- features: classifier (abc), against 20000 pictures",
        "- moyai: about moyai (torch 2)",
    ]


def test_values_of_several_extractors_stand_in_tables_of_their_own(quality: ModuleType) -> None:
    other = {**result("ddpm", 32, {}), "extractor": "classifier (def)"}
    lines = quality.table([result("moyai", 40, {}), other]).splitlines()
    assert [line.split(" | ")[0] for line in lines if " | 10 | " in line] == ["| moyai", "| ddpm"]
    assert sum(line.startswith("| held-out") for line in lines) == 2
    assert [line for line in lines if "features" in line] == [
        "- features: classifier (abc), against 20000 pictures",
        "- features: classifier (def), against 20000 pictures",
    ]


@pytest.mark.parametrize("system", ["moyai", "ddpm"])
def test_a_training_by_other_settings_is_made_anew(
    quality: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    stage, job = Stage(quality), quality.Job(system, 10, 1, tmp_path, samples=2, steps=3)
    assert stage.advance(job) == ["train", "sample", "judge"]
    assert stage.advance(job) == []
    monkeypatch.setattr(quality, "settings", lambda system: "another")
    assert stage.advance(job) == ["train", "sample", "judge"]


def test_two_processes_do_not_do_one_job(quality: ModuleType, tmp_path: Path) -> None:
    stage, job = Stage(quality), quality.Job("ddpm", 10, 1, tmp_path)
    with RunLock(job.folder), pytest.raises(RequestError, match="in use by process"):
        stage.advance(job)
    assert stage.done == []


def test_no_worker_outlives_the_benchmark(quality: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that would sleep for a minute, and a benchmark that is asked to end."""
    code = (
        "import signal, sys, time\nfrom pathlib import Path\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (Path({str(tmp_path / 'ended')!r}).touch(), sys.exit(1)))\n"
        f"Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)\n"
    )
    (tmp_path / "worker.py").write_text(code)
    monkeypatch.setattr(quality, "__file__", str(tmp_path / "worker.py"))
    began = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def ask() -> None:
        while not (tmp_path / "ready").exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            quality.in_a_process([])(quality.Job("ddpm", 10, 1, tmp_path), "train")
    finally:
        signal.signal(signal.SIGTERM, began)
        thread.join()
    assert (tmp_path / "ended").exists()


def test_a_clock_counts_the_step_that_began_in_time(quality: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import systems

    now = [0.0]
    monkeypatch.setattr(systems.time, "perf_counter", lambda: now[0])
    clock = systems.Clock(10)
    for _ in clock.ticks():
        now[0] += 4
    assert (clock.steps, clock.elapsed) == (3, 12)
    late = systems.Clock(0)
    assert list(late.ticks()) == [0]  # one at least


def test_batches_are_whole_epochs_in_new_orders(quality: ModuleType) -> None:
    import systems

    pixels = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None], (6, 28, 28))
    data = systems.batches(pixels, 2)
    epochs = [[round(float(p) * 255) for _ in range(3) for p in next(data)[:, 0, 0, 0]] for _ in range(4)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_pictures_keep_their_pixels(quality: ModuleType) -> None:
    import systems
    import torch

    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    images = next(systems.batches(pixels[:1], 1))
    assert (systems.to_pixels(images) == pixels[:1]).all()
    assert systems.padded(images, 0.5).shape == (1, 1, 32, 32)
    assert torch.equal(systems.cropped(systems.padded(images, 0.5)), images)


def test_an_absent_peer_is_named_with_what_installs_it(quality: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import systems

    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.delitem(sys.modules, "systems.latent_monai", raising=False)
    with pytest.raises(SystemExit, match=r"monai cannot run here: .*pip install"):
        systems.load("monai")


def test_the_recipes_samples_come_class_by_class_in_turn(quality: ModuleType, finished_run: Path) -> None:
    """So that any part of them, and the picture of the first, holds all classes; parts are the whole's."""
    import systems

    system = systems.load("moyai")
    draw = system.sampler(finished_run, 2, 7)
    pictures, labels = draw(0, 4)
    later, rest = draw(4, 3)
    assert labels is not None
    assert rest is not None
    assert [*labels, *rest] == [0, 1, 2, 0, 1, 2, 0]
    assert (pictures.dtype, len(pictures), len(later)) == (np.uint8, 4, 3)
    rebuild = system.rebuilder(finished_run)
    assert rebuild is not None
    again = rebuild(pictures)
    assert (again.shape, again.dtype) == (pictures.shape, np.uint8)
