"""`benchmarks/results.py`: what is done is not repeated, what was cut off goes on, what is measured is written down.

Trainings are stood in for by a function that leaves what `moyai` would leave; the few real children only wait.
"""

import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import results
import results_figure
import results_measure
import results_page
import results_peers
import results_rows
from results_measure import Ended, Failed, Lab

from moyai.checkpoints.lock import RunLock
from moyai.errors import DataError
from moyai.files import read_json
from moyai.recipe import reading

ROOT = Path(__file__).parents[1]
MACHINE = {"processor": "P", "cores": 2, "threads": 1, "torch": "2", "gpu": None, "precision": "float32"}
PAGE = "".join(f"# {n}\nwords\n<!-- results:begin {n} -->\nold\n<!-- results:end -->\n" for n in results_page.BLOCKS)


class StandIn:
    """Starts nothing: writes what the commands would, and remembers them. `fails` maps a word to how it ends."""

    def __init__(self) -> None:
        self.said: list[list[str]] = []
        self.fails: dict[str, Ended] = {}
        self.sheet = 1000
        self.extractor = "E (1)"
        self.shown = 0.0  # the share of copies among the pictures of a sheet

    def __call__(self, words: Sequence[str], environment: Mapping[str, str]) -> Ended:
        self.environment = dict(environment)
        self.said.append(list(words[3:]) if words[1] == "-m" else list(words[1:]))
        for word, ended in self.fails.items():
            if any(word in text for text in words):
                return ended
        {"train": self.train, "evaluate": self.evaluate, "sample": self.sample}[words[3]](list(words[4:]))
        return Ended(0, 0, 700.0 + len(self.said))

    def trained(self) -> list[list[str]]:
        """The commands that trained; those of a run alone only write its report."""
        return [words for words in self.said if words[0] == "train" and len(words) > 2]

    def train(self, words: list[str]) -> None:
        if len(words) == 1:  # a run that has been judged: its report once more, which takes its time too
            (Path(words[0]) / "report.html").write_text((Path(words[0]) / "evaluation.json").read_text())
            (Path(words[0]) / "times.json").write_text(json.dumps({"prior": 9999.0}))
            return
        run, seed = Path(words[-1]), int(words[1].removeprefix("seed="))
        if run.is_dir():
            return
        pixels = "codec.kind=pixels" in words
        for stage in ("prior",) if pixels else ("first_stage", "prior"):
            (run / stage / "model").mkdir(parents=True)
            entries = {f"{'prior' if stage == 'prior' else 'autoencoder'}.w": [3, 5], "conditioner.w": [1000]}
            head = json.dumps({n: {"dtype": "F32", "shape": s} for n, s in entries.items()}).encode()
            (run / stage / "model" / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
            lines = [{"step": k, "validation": {"loss": 0.2 / k + seed, "psnr": 30.0 * k + seed}} for k in (1, 2)]
            (run / stage / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        trains = {stage: {"train": {"steps": 40 + 10 * (stage == "prior")}} for stage in ("first_stage", "prior")}
        (run / "recipe.json").write_text(
            json.dumps({**trains, "sampling": {"steps": 20, "guidance": 1.5}, "report": {"per_class": 8}})
        )
        (run / "data.json").write_text("{}")
        (run / "times.json").write_text(json.dumps({"data": 30.0, "prior": 90.0 + 60 * seed}))
        (run / "samples").mkdir()
        (run / "samples" / "samples.png").write_bytes(b"p" * self.sheet)

    def evaluate(self, words: list[str]) -> None:
        if words[1] == "--against":
            rows = {"samples": {results_page.COPIES: {"value": self.shown}}}
            Path(words[words.index("--json") + 1]).write_text(json.dumps({"rows": rows}))
            return
        folder, n = Path(words[0]), int(words[2])
        guidance = float(json.loads((folder / "recipe.json").read_text())["sampling"]["guidance"])
        one = {"low": 0.0, "high": 9.0, "error": None, "count": n, "reference": 5, "warning": "w", "source": "E"}
        drawn = {"fid": guidance, "class accuracy": 0.9, "class confidence": 8.0, results_page.COPIES: 0.004}
        rows = {"held out": {"fid": 0.125}, "first stage": {"fid": 0.25}, "samples": drawn}
        plain = {row: {name: {**one, "value": v} for name, v in values.items()} for row, values in rows.items()}
        facts = {"extractor": self.extractor, "samples": n, "held out": n, "reference": 5, "model_hash": "x"}
        (folder / "evaluation.json").write_text(json.dumps({"rows": plain, "facts": facts}))

    def sample(self, words: list[str]) -> None:
        Path(words[words.index("--out") + 1]).write_bytes(b"q" * (20_000 * int(words[words.index("--n") + 1])))


class Bench:
    """A place with pages to fill, and the tool to fill them with."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.stand, self.capsys = home, StandIn(), capsys
        (home / "docs").mkdir()
        (home / "docs" / "results.md").write_text(PAGE)

    def __call__(self, *words: str) -> int:
        self.stand.said.clear()
        places = ["--out", str(self.home / "runs" / "results"), "--docs", str(self.home / "docs")]
        return results.main([*words, *places])

    def points(self, row: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = read_json(self.home / "docs" / "results" / f"{row}.json")["points"]
        return found

    @property
    def page(self) -> str:
        return (self.home / "docs" / "results.md").read_text()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    made = Bench(tmp_path, capsys)
    monkeypatch.setattr(results, "start", made.stand)
    monkeypatch.setattr(results, "machine", lambda lab: {**MACHINE, "threads": lab.threads or 1})
    return made


def test_every_row_is_a_recipe_that_reads() -> None:
    """With all that is laid over it; the pixels' codec by its kind."""
    for row in results_rows.rows():
        for point in results_rows.points(row) if row.measure == "runs" else []:
            (_, file, *overrides, _, _), _ = point.commands()
            recipe = reading.load(ROOT / file, [*overrides, *point.sampling])
            assert recipe.seed == point.seed
            assert not point.name.startswith("factors-f1-") or recipe.codec.kind == "pixels"


# ---- measuring


def test_three_seeds_are_measured_and_tabled(bench: Bench) -> None:
    assert bench("--row", "digits", "--threads", "1") == 0
    trains = bench.stand.trained()
    assert [words[2] for words in trains] == ["seed=0", "seed=1", "seed=2"]
    assert bench.stand.environment == {"OMP_NUM_THREADS": "1"}
    first = bench.points("digits")[0]
    expected = {"minutes": 2.0, "psnr": 60.0, "prior_loss": 0.1, "peak_mib": 701, "machine": MACHINE, "seed": 0}
    assert {name: first[name] for name in expected} == expected
    assert first["steps"] == {"first_stage": 40, "prior": 50}
    assert first["parameters"] == {"first_stage": 15, "prior": 15}  # 3 x 5; the condition's own 1,000 do not count
    assert first["evaluation"]["rows"]["held out"]["fid"] == {
        "value": 0.125,
        "low": 0.0,
        "high": 9.0,
        "warning": "w",
    }
    assert "- FID, class accuracy, class confidence" in bench.page
    assert first["commands"] == [
        "moyai train recipes/digits.toml seed=0 --out runs/results/digits-seed0",
        "moyai evaluate runs/results/digits-seed0 --n 2000",
    ]
    # the mean of 2, 3 and 4 minutes, with its range
    assert "| digits | 3 | 1 | 3.0 (2.0 to 4.0) | 40 + 50 | 0.0 M + 0.0 M | 61.0 (60.0 to 62.0) |" in bench.page
    assert (bench.home / "docs" / "pictures" / "digits.png").read_bytes() == b"p" * 1000
    assert str(bench.home) not in (bench.home / "docs" / "results" / "digits.json").read_text()


def test_what_is_measured_is_not_measured_again_unless_asked(bench: Bench) -> None:
    bench("--row", "digits")
    assert bench("--row", "digits") == 0
    assert bench.stand.said == []
    (bench.home / "runs" / "results" / "digits-seed1" / "old").touch()
    assert bench("--row", "digits", "--again") == 0
    assert [words[0] for words in bench.stand.said] == ["train", "evaluate", "train"] * 3
    assert not (bench.home / "runs" / "results" / "digits-seed1" / "old").exists()


def test_a_signal_stops_at_once_and_the_same_command_goes_on(bench: Bench) -> None:
    bench.stand.fails = {"digits-seed1": Ended(130, signal.SIGINT, 900.0)}
    assert bench("--row", "digits", "mnist") == 130
    assert [p["seed"] for p in bench.points("digits")] == [0]
    assert "| digits | 1 of 3 |" in bench.page
    assert not (bench.home / "docs" / "results" / "mnist.json").exists()
    bench.stand.fails = {}
    assert bench("--row", "digits") == 0
    assert [words[2] for words in bench.stand.trained()] == ["seed=1", "seed=2"]
    assert bench.points("digits")[1]["peak_mib"] == 900  # of the part that was cut off


def test_a_run_that_fails_leaves_the_others(bench: Bench) -> None:
    bench.stand.fails = {"recipes/mnist.toml": Ended(2, 0, 1.0)}
    assert bench("--row", "mnist", "fashion-mnist") == 1
    assert "mnist: `" in bench.capsys.readouterr().err
    assert "| mnist | not yet run |" in bench.page
    assert "| fashion-mnist | 1 |" in bench.page


def test_another_machine_replaces_a_row_and_the_old_file_is_left_aside(bench: Bench) -> None:
    bench("--row", "digits", "--threads", "1")
    run = bench.home / "runs" / "results" / "digits-seed0"
    (run / "old").touch()
    bench.stand.fails = {"seed=1": Ended(2, 0, 1.0), "seed=2": Ended(2, 0, 1.0)}
    bench("--row", "digits", "--threads", "2")
    assert [(p["seed"], p["machine"]["threads"]) for p in bench.points("digits")] == [(0, 2)]
    assert not (run / "old").exists()  # trained anew, since the minutes of one thread are not those of two
    aside = read_json(bench.home / "runs" / "results" / "digits.before.json")
    assert len(aside["points"]) == 3


def test_cifars_samples_are_shown_only_where_none_of_them_is_a_copy(bench: Bench) -> None:
    picture = bench.home / "docs" / "pictures" / "cifar10.png"
    bench.stand.shown = results.CLEARED
    bench("--row", "cifar10")
    assert not picture.exists()
    run = str(bench.home / "runs" / "results" / "cifar10-seed0")
    drawn, judged = bench.stand.said[-2:]  # those of the sheet, not those of the table
    assert drawn[:4] == ["sample", run, "--n", "8"]
    assert judged[:4] == ["evaluate", f"{run}.shown.npz", "--against", run]
    bench.stand.shown, bench.stand.sheet = 0.0, results.LARGEST + 1
    bench("--row", "cifar10", "--again")
    assert picture.exists()
    sheet, drawn, judged = bench.stand.said[-3:]  # the smaller sheet's own pictures, not the larger one's
    assert sheet[:4] == drawn[:4] == ["sample", run, "--n", "6"]
    bench.stand.shown = results.CLEARED
    bench("--row", "cifar10", "--again")
    assert not picture.exists()  # nor is an older one left


def test_a_row_of_the_recipe_as_it_was_is_measured_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench("--row", "mnist")
    (before,) = bench.points("mnist")
    left = bench.home / "runs" / "results" / "mnist-seed0" / "left"
    left.touch()
    monkeypatch.setattr(results, "recipe_hash", lambda name: "another")
    monkeypatch.setattr(results_measure, "recipe_hash", lambda name: "another")
    bench("--row", "mnist")
    (after,) = bench.points("mnist")
    assert len(before["recipe"]) == 12
    assert after["recipe"] == "another"
    assert not left.exists()
    bench("--row", "mnist")
    assert bench.stand.said == []


def test_a_training_that_was_killed_goes_on(bench: Bench) -> None:
    """Whatever had been written when the power failed: no handler has run then."""
    bench.stand.fails = {"recipes/mnist.toml": Ended(-9, 0, 1.0)}
    bench("--row", "mnist")
    run = bench.home / "runs" / "results" / "mnist-seed0"
    known = run.with_name("mnist-seed0.usage.json")
    assert read_json(known)["versions"]
    run.mkdir()
    (run / "checkpoint").touch()  # as if it had come so far
    trained: list[Path] = []
    bench.stand.fails = {}
    train, bench.stand.train = bench.stand.train, lambda words: trained.append(run / "checkpoint")  # type: ignore[method-assign]
    assert bench("--row", "mnist") != 0  # the stand-in makes nothing this time
    assert trained
    assert (run / "checkpoint").exists()
    bench.stand.train = train  # type: ignore[method-assign]
    # What nothing is known of is not deleted, nor what somebody is at.
    known.unlink()
    assert bench("--row", "mnist") == 2
    assert "it was not made by this; delete it, or name another --out" in bench.capsys.readouterr().err
    known.write_text('{"recipe": "another", "versions": [], "peak_mib": 0}')
    with RunLock(run):
        assert bench("--row", "mnist") == 2
    assert "is in use by process" in bench.capsys.readouterr().err
    assert (run / "checkpoint").exists()
    assert bench("--row", "mnist") == 0
    assert not (run / "checkpoint").exists()


def test_the_report_shows_the_evaluation_and_its_drawing_is_not_of_the_minutes(bench: Bench) -> None:
    bench("--row", "mnist")
    assert "facts" in (bench.home / "runs" / "results" / "mnist-seed0" / "report.html").read_text()
    assert bench.points("mnist")[0]["minutes"] == 2.0
    (bench.home / "docs" / "results" / "mnist.json").unlink()
    bench("--row", "mnist")
    assert [words[0] for words in bench.stand.said] == ["evaluate", "train"]
    assert bench.points("mnist")[0]["minutes"] == 2.0


def test_a_picture_that_was_cut_off_is_made_by_the_next(bench: Bench) -> None:
    bench.stand.sheet = results.LARGEST + 1
    bench.stand.fails = {"sample": Ended(130, signal.SIGINT, 1.0)}
    assert bench("--row", "mnist") == 130
    bench.stand.fails = {}
    bench("--row", "mnist")
    assert (bench.home / "docs" / "pictures" / "mnist.png").is_file()


def test_points_that_are_none_of_the_row_any_more_go(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench("--row", "factors", "--minutes", "4")
    bench("--row", "factors", "--minutes", "8")
    minutes = [p["name"].split("-")[2] for p in bench.points("factors")]
    assert minutes == [f"{m}min" for m in (2, 4, 8) for _ in range(4)]
    # A seed of the recipe as it was before is not taken into the mean of the others.
    bench("--row", "digits")
    for module in (results, results_measure):
        monkeypatch.setattr(module, "recipe_hash", lambda name: "another")
    bench.stand.fails = {"seed=1": Ended(2, 0, 1.0), "seed=2": Ended(2, 0, 1.0)}
    bench("--row", "digits")
    assert [p["seed"] for p in bench.points("digits")] == [0]


def test_a_sheet_that_is_too_large_gets_fewer_columns(bench: Bench) -> None:
    bench.stand.sheet = results.LARGEST + 1
    bench("--row", "mnist")
    assert (bench.home / "docs" / "pictures" / "mnist.png").read_bytes() == b"q" * 120_000  # six columns


def test_samplers_share_one_run_and_each_sees_its_own_settings(bench: Bench) -> None:
    bench("--row", "fashion-mnist")
    bench("--row", "samplers")
    assert bench.stand.trained() == []
    assert {p["minutes"] for p in bench.points("samplers")} == {2.0}
    found = bench.points("samplers")
    assert [p["evaluation"]["rows"]["samples"]["fid"]["value"] for p in found] == [1, 1.5, 2, 3, 1.5, 1.5, 1.5, 1.5]
    judged = bench.home / "runs" / "results" / "fashion-mnist-seed0" / "evaluation.json"
    assert read_json(judged)["facts"]["samples"] == 2000  # the run's own evaluation was left alone
    assert "| heun, karras, 18 (35) | 1.5 | 1.50 (0.00 to 9.00) | 0.90 (0.00 to 9.00) |" in bench.page
    assert "| euler with eta 1, uniform-time, 40 (40) | 1.5 |" in bench.page


def test_a_view_is_the_run_under_other_settings(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "prior" / "model").mkdir(parents=True)
    (run / "recipe.json").write_text('{"name": "a", "sampling": {"steps": 20, "grid": "karras"}}')
    (run / "evaluation.json").write_text("{}")
    for _ in range(2):  # also over what an earlier one left
        results_measure.view(run, tmp_path / "view", ["sampling.steps=7"])
    assert read_json(tmp_path / "view" / "recipe.json")["sampling"] == {"steps": 7, "grid": "karras"}
    assert (tmp_path / "view" / "prior" / "model").is_dir()
    assert not (tmp_path / "view" / "evaluation.json").exists()
    shutil.rmtree(tmp_path / "view")
    assert (run / "prior" / "model").is_dir()


def test_factors_are_drawn_against_the_minutes(bench: Bench) -> None:
    assert bench("--row", "factors", "--minutes", "4") == 0
    trains = bench.stand.trained()
    assert len(trains) == 12
    assert all("data.resolution=32" in words for words in trains)
    budgets = [words[-3] for words in trains]
    assert budgets == [f"budget.minutes={m}" for m in (1, 2, 4) for _ in range(4)]  # all factors early
    assert [results_page.factor(p) for p in bench.points("factors")] == [1, 2, 4, 8] * 3
    assert bench.points("factors")[0]["steps"] == {"first_stage": 0, "prior": 50}
    assert "| 1 (pixels) | 2.0 | 50 | 16 |" in bench.page
    assert "| 8 | 2.0 | 40 + 50 | 32 |" in bench.page
    drawn = ElementTree.fromstring((bench.home / "docs" / "pictures" / "factors.svg").read_text())
    panels = list(drawn)
    assert len(panels) == 2
    for panel in panels:
        text = " ".join("".join(part.itertext()) for part in panel)
        assert all(f"f = {f}" in text for f in (1, 2, 4, 8))


def test_values_of_different_extractors_are_never_put_together(bench: Bench) -> None:
    bench("--row", "factors")
    bench.stand.extractor = "E (2)"
    found = bench.points("factors")
    found[3]["evaluation"]["extractor"] = "E (2)"
    with pytest.raises(DataError, match=re.escape("E (1) and E (2)")):
        results_figure.figure(found)
    with pytest.raises(DataError, match=re.escape("E (1) and E (2)")):
        results_page.factors({"factors": {"points": found}})


def test_the_peers_are_read_from_their_benchmark(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fids = {"moyai": 1.0, "ddpm": 9.0, "diffusers": 7.0}

    def quality(words: Sequence[str], environment: Mapping[str, str]) -> Ended:
        told = dict(zip(words[2::2], words[3::2], strict=True))
        asked.append((told["--systems"], told["--minutes"]))
        if told["--systems"] == "monai":
            return Ended(1, 0, 1.0)
        count, fid = int(told["--samples"]), fids[told["--systems"]]
        row = {"fid": {"value": fid, "low": fid - 0.5, "high": fid + 0.5, "count": count}}
        made = {
            "asked": {"samples": count, "steps": 50},
            "reference": 20000,
            "extractor": "E (1)",
            "training": {
                "steps": 321,
                "about": "as documented",
                "versions": {"x": "1.0"},
                "machine": {"cores": 1},
                "recipe": recipe[told["--systems"]],
            },
            "rows": {"samples": row, "held out": row},
        }
        folder = Path(told["--out"]) / f"{told['--systems']}-{told['--minutes']}min-{told['--threads']}t"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(made))
        return Ended(0, 0, 1.0)

    asked: list[tuple[str, str]] = []
    recipe = {system: results_peers.settings(system) for system in fids}
    assert len(set(recipe.values())) == 3
    monkeypatch.setattr(results, "start", quality)
    assert bench("--row", "peers", "--threads", "1") == 1  # monai is not there
    short = [(system, "10") for system in ("moyai", "ddpm", "diffusers", "monai")]
    assert asked == [*short, ("moyai", "60"), ("diffusers", "60")]  # diffusers was the best of the others
    assert "| diffusers | 10 | 1 | 500 | 321 | 7.00 (6.50 to 7.50) |" in bench.page
    assert bench("--list", "--row", "peers") == 0
    assert bench.capsys.readouterr().out.endswith("5 of 6 measured\n")
    assert "- ddpm: as documented (x 1.0)" in bench.page
    asked.clear()
    bench("--row", "peers", "--threads", "1")
    assert asked == [("monai", "10")]
    # Where another is as good as the best by its interval, both have the hour.
    fids["ddpm"] = 7.9
    bench("--row", "peers", "--threads", "1", "--again")
    assert asked[-3:] == [("moyai", "60"), ("diffusers", "60"), ("ddpm", "60")]
    # Counts stand beside the values, and each has a floor; other steps of a sampler are another measurement.
    found = bench.points("peers")
    assert {p["machine"]["cores"] for p in found} == {1}  # those it was trained on, not those of who reads it
    told = results_page.peers({"peers": {"points": found}})
    assert "| moyai | 10 | 1 | 500 |" in told
    assert [line.split(" | ")[3] for line in told.splitlines() if "(floor)" in line] == ["500", "2,000"]
    found[0]["sampling_steps"] = 20
    with pytest.raises(DataError, match="20 and 50 steps"):
        results_page.peers({"peers": {"points": found}})


def test_the_peers_lie_where_their_benchmark_puts_them() -> None:
    import quality

    job = quality.Job("ddpm", 10.0, 2, Path("runs/quality"))
    assert results_peers.folder(Path("runs/quality"), "ddpm", 10, 2) == job.folder


# ---- words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--row", "digit"], "results: row 'digit' is unknown; did you mean digits?"),
        (["--row", "digits", "--threads", "0"], "results: --threads 0 is not possible; possible: 1 or more"),
        (["--row", "factors", "--minutes", "0"], "results: --minutes 0 is not possible; possible: more than 0"),
    ],
)
def test_a_mistake_is_one_line(bench: Bench, words: list[str], said: str) -> None:
    assert bench(*words) == 2
    assert bench.capsys.readouterr().err.splitlines() == [said]
    assert bench.stand.said == []


def test_overrides_do_not_reach_the_documents(capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--row", "digits", "--set", "seed=3"]) == 2
    assert "--docs" in capsys.readouterr().err


def test_the_list_counts_what_these_commands_measured(bench: Bench) -> None:
    bench("--row", "digits")
    bench.capsys.readouterr()
    assert bench("--list") == 0
    lines = bench.capsys.readouterr().out.splitlines()
    assert len(lines) == len(results_rows.rows())
    assert lines[0].endswith("recipes/digits.toml, seeds 0, 1, 2: 3 of 3 measured")
    assert lines[1].endswith("0 of 1 measured")


# ---- real children


def test_the_tool_itself_is_light() -> None:
    """A child's peak of memory begins with what its parent held."""
    code = "import sys, results, results_figure; print(sorted({'torch', 'PIL', 'safetensors'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (found.stdout, found.stderr) == ("[]\n", "")


def test_a_child_is_waited_for_and_its_memory_known(tmp_path: Path) -> None:
    size = 150 * 2**20
    code = f"b = bytearray({size}); b[::4096] = b'x' * len(b[::4096]); raise SystemExit(3)"
    ended = results_measure.start([sys.executable, "-c", code], {})
    assert (ended.status, ended.signal) == (3, 0)
    assert ended.peak > size / 2**20


def test_a_signal_is_passed_on_once_and_the_child_may_finish(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        f"mark = {str(tmp_path)!r}\n"
        "def leave(*_):\n    open(mark + '/asked', 'a').write('x')\n    time.sleep(0.2)\n    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, leave)\nopen(mark + '/ready', 'w').close()\ntime.sleep(60)\n"
    )

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGINT)
    ended = results_measure.start([sys.executable, "-c", code], {})
    thread.join()
    assert (ended.status, ended.signal) == (130, signal.SIGINT)
    assert (tmp_path / "asked").read_text() == "x"
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(Failed, match="ended with status 130") as failed:
        Lab(tmp_path, 1, lambda words, environment: ended).command(["moyai", "train"])
    assert failed.value.stopped


def test_the_machine_is_what_a_child_finds(tmp_path: Path) -> None:
    found = results_measure.machine(Lab(tmp_path, 1))
    assert found["threads"] == 1
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["precision"] in ("float32", "bfloat16")
    assert shlex.split(found["processor"])
