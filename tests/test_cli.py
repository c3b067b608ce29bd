"""The command line: help, one line for every mistake, and awkward places. Never a traceback."""

import argparse
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from moyai import arguments, cli
from moyai.training import budget
from moyai.training.prior import PriorTraining


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from moyai import cli\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit as leaving: assert leaving.code == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'sklearn', 'rich', 'safetensors'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert "usage: moyai train" in done.stdout


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    top = arguments.parser()
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    yield from commands.choices.items()


def test_every_option_of_every_command_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name, _ in parsers()]
    assert {"train", "sample", "inspect", "check", "recipe"} <= set(names)
    for name, parser in parsers():
        with pytest.raises(SystemExit) as leaving:
            cli.main([name, "--help"])
        assert leaving.value.code == 0
        shown = capsys.readouterr().out
        for action in parser._actions:
            assert action.help, (name, action.dest)
            assert not action.option_strings or action.option_strings[0] in shown
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "dsic"], "class 'dsic' is unknown; did you mean disc"),
        (["--class", "7"], "class '7' is unknown; possible: disc, ring, square"),
        (["--sampler", "ddim"], "sampler 'ddim' is unknown; "),
        (["--grid", "x"], "grid 'x' is unknown; possible: "),
        (["--n", "0"], "n 0 is out of range; possible: 1 to 1000000"),
        (["--n", "-3"], "n -3 is out of range"),
        (["--steps", "5000"], "steps 5000 is out of range; possible: 1 to 1000"),
        (["--seed", "-1"], "seed -1 is out of range; possible: 0 to 9223372036854775807"),
        (["--seed", str(2**64)], "is out of range"),
        (["--guidance", "nan"], "guidance nan is out of range"),
        (["--eta", "2"], "eta 2.0 is out of range; possible: 0 to 1"),
        (["--batch", "0"], "batch 0 is out of range"),
        (["--device", "gpu"], "device 'gpu' is not to be had here; possible: cpu"),
        (["--out", "x.jpg"], "--out x.jpg is no .png, .npz or folder"),
        (["--gif", "x.png"], "--gif x.png does not end in .gif"),
        (["--like", "nowhere.png"], "nowhere.png"),
    ],
)
def test_requests_that_cannot_be_met(words: list[str], message: str, finished_run: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    words = ["sample", str(finished_run / "run"), "--out", str(tmp_path / "x.png"), "--quiet", *words]
    status, said = tiny.moyai(words, tmp_path / "said", lambda: os.chdir(tmp_path))
    assert status == 2, said
    assert message in tiny.one_line(said)
    assert [p for p in tmp_path.iterdir() if p.name != "said"] == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nowhere"], "there is no recipe"),
        (["train", "RECIPE", "prior.net.widht=3"], "did you mean"),
        (["train", "RECIPE", "prior.train.steps=0"], "prior.train.steps"),
        (["train", "RECIPE", "--stage", "priors"], "stage 'priors' is unknown; did you mean prior"),
        (["train", "RECIPE", "--device", "foo"], "device 'foo' is not to be had here; possible: cpu"),
        (["train", "RECIPE", "--device", "cuda:99"], "device 'cuda:99' is not to be had here"),
        (["train", "RECIPE", "--gpu"], "has no [gpu] table"),
        (["train", "RECIPE", "--stage", "prior"], "has no first_stage yet; `moyai train` without --stage makes it"),
        (["train", "RECIPE", "--stage", "report"], "has no first_stage yet"),
        (["inspect", "nowhere"], "nowhere does not exist; possible: "),
        (["sample", "nowhere"], "nowhere does not exist; possible: a folder that `moyai train` made"),
        (["sample", "DATA"], "is no run (it has no recipe.json and data.json)"),
        (["sample", "RECIPE"], "is no run"),
        (["recipe", "prior.nte"], "did you mean"),
        (["check", "nowhere"], "there is no recipe"),
        (["train", "STAGE"], "is a part of a run and no run itself; possible: RUN"),
        (
            ["sample", "STAGE"],
            "is no run (it has no recipe.json and data.json); possible: RUN, the run it is a part of",
        ),
        (["inspect", "STAGE"], "is no run (it has no recipe.json and data.json); possible: RUN, "),
    ],
)
def test_commands_that_cannot_be_met(words: list[str], message: str, finished_run: Path, tmp_path: Path) -> None:
    run = finished_run / "run"
    named = {"RECIPE": finished_run / "tiny.json", "DATA": finished_run / "data", "STAGE": run / "first_stage"}
    words = [str(named.get(word, word)) for word in words]
    if words[0] == "train":
        words += ["--out", str(tmp_path / "run"), "--quiet"]
    status, said = tiny.moyai(words, tmp_path / "said", lambda: os.chdir(tmp_path))
    assert status == 2, said
    assert message.replace("RUN", str(run)) in tiny.one_line(said)


@pytest.mark.parametrize(
    ("error", "expected", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 3, "moyai: No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x.png"), 3, "moyai: x.png: Disk quota exceeded"),
        (OSError(errno.EROFS, "Read-only file system", "x.png"), 3, "moyai: x.png: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "x.png"), 2, "moyai: x.png: Permission denied"),
        (OSError("cannot identify image"), 2, "moyai: cannot identify image"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: OSError, expected: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refused(options: argparse.Namespace) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "recipe", refused)
    assert cli.main(["recipe"]) == expected
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("words", [[], ["draw"], ["train"], ["sample", "x", "--n", "many"], ["inspect", "x", "--y"]])
def test_words_that_are_none(words: list[str], tmp_path: Path) -> None:
    status, said = tiny.moyai(words, tmp_path / "said")
    assert status == 2
    assert said.startswith("usage: moyai")
    assert said.count("error:") == 1


def test_inspect_check_and_recipe_answer(finished_run: Path, tmp_path: Path) -> None:
    run = finished_run / "run"
    paths = {
        run: "prior: finished at step 12",
        run / "prior" / "model": "checkpoint of moyai, whole and unaltered",
        run / "prior" / "model" / "model.safetensors": "tensors",
        run / "samples" / "samples.png": "model: tiny",
        finished_run / "tiny.json": "recipe tiny: data folder",
        finished_run / "data": "60 pictures",
    }
    for path, expected in paths.items():
        status, said = tiny.moyai(["inspect", path], tmp_path / "said")
        assert (status, expected in said) == (0, True), said
    status, said = tiny.moyai(["inspect", run, "--plot", tmp_path / "curves.html"], tmp_path / "said")
    assert status == 0
    assert "<svg" in (tmp_path / "curves.html").read_text()
    status, said = tiny.moyai(["recipe", "prior.train.ema"], tmp_path / "said")
    assert (status, "prior.train.ema.std" in said) == (0, True)
    instantly = functools.partial(budget.measure, seconds=0.01)
    before = functools.partial(setattr, budget, "measure", instantly)
    status, said = tiny.moyai(["check", finished_run / "tiny.json"], tmp_path / "said", before)
    assert status == 0, said
    assert "latents: 4 x 4 x 4, 1.0 times fewer values" in said


# Runs that are not what they should be ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it is after nine steps of its prior: checkpoints of steps 5 and 9."""
    home = tmp_path_factory.mktemp("half")

    def leave(self: PriorTraining, step: int, batch: Any = PriorTraining.batch) -> Any:
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step)

    words = ["train", finished_run / "tiny.json", "--out", home / "run"]
    status, said = tiny.moyai(words, home / "said", lambda: setattr(PriorTraining, "batch", leave))
    assert status == 143, said
    return home / "run"


def test_a_half_trained_run_can_be_sampled(half: Path, tmp_path: Path) -> None:
    words = ["sample", half, "--n", "1", "--out", tmp_path / "a.npz"]
    status, said = tiny.moyai(words, tmp_path / "said")
    assert status == 0, said
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["images"].shape == (3, 8, 8, 1)


def test_a_checkpoint_cut_in_half_is_passed_over_and_named(half: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(half, tmp_path / "run"))
    file = run / "prior" / "checkpoints" / "step-000009" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    status, said = tiny.moyai(["sample", run, "--n", "1", "--out", tmp_path / "a.png"], tmp_path / "said")
    assert status == 0, said
    assert f"warning: skipped a broken checkpoint: {file}" in said
    shutil.rmtree(run / "prior" / "checkpoints" / "step-000005")
    status, said = tiny.moyai(["sample", run, "--n", "1", "--out", tmp_path / "a.png"], tmp_path / "said")
    assert status == 2
    assert "holds no trained weights yet" in tiny.one_line(said)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("prior/model/model.safetensors", "size is"),
        ("first_stage/model/model.safetensors", "size is"),
        ("latents/statistics/MANIFEST.json", "torn or altered"),
        ("recipe.json", "not JSON"),
        ("data.json", "cannot be read"),
    ],
)
def test_a_finished_run_with_a_file_cut_in_half(file: str, message: str, finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run / "run", tmp_path / "run"))
    data = (run / file).read_bytes()
    (run / file).write_bytes(data[: len(data) // 2])
    status, said = tiny.moyai(["sample", run, "--out", tmp_path / "a.png", "--quiet"], tmp_path / "said")
    assert status == 2
    assert message in tiny.one_line(said)
    assert not (tmp_path / "a.png").exists()


def test_facts_that_are_none(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run / "run", tmp_path / "run"))
    for text in ("[]", "{}", json.dumps({"facts": {"channels": 0}})):
        (run / "data.json").write_text(text)
        status, said = tiny.moyai(["sample", run, "--out", tmp_path / "a.png", "--quiet"], tmp_path / "said")
        assert status == 2
        assert "does not hold the facts of the data" in tiny.one_line(said)


def test_a_second_process_in_the_same_folder_is_refused(finished_run: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def slow(self: PriorTraining, step: int) -> Any:
        ready.touch()
        time.sleep(60)

    def go() -> int:
        PriorTraining.batch = slow  # type: ignore[method-assign]
        return cli.main(["train", str(finished_run / "tiny.json"), "--out", str(tmp_path / "run"), "--quiet"])

    pid = tiny.start(go, tmp_path / "first")
    try:
        until = time.monotonic() + 50
        while not ready.exists() and time.monotonic() < until:
            time.sleep(0.01)
        words = ["train", finished_run / "tiny.json", "--out", tmp_path / "run", "--quiet"]
        status, said = tiny.moyai(words, tmp_path / "said")
        assert status == 2
        assert f"is in use by process {pid} on " in tiny.one_line(said)
    finally:
        os.kill(pid, signal.SIGKILL)
        assert tiny.wait(pid) == -9
    status, said = tiny.moyai(words, tmp_path / "said")  # a dead one is taken over
    assert status == 0, said


# Awkward data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "all bad"])
def test_data_that_are_none(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    if kind != "missing":
        root.mkdir()
    if kind == "file":
        root.rmdir()
        root.write_bytes(b"x")
    if kind == "all bad":
        (root / "a").mkdir()
        for i in range(5):
            (root / "a" / f"{i}.png").write_bytes(b"no picture")
    recipe = tiny.recipe_file(tmp_path / "tiny.json", root)
    status, said = tiny.moyai(["train", recipe, "--out", tmp_path / "run", "--quiet"], tmp_path / "said")
    assert status == 2, said
    assert str(root) in tiny.one_line(said)


def test_one_bad_file_and_a_class_with_one_picture(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "data", 30)
    (root / "disc" / "broken.png").write_bytes((root / "disc" / "000.png").read_bytes()[:40])
    (root / "alone").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / "alone" / "x.png")
    recipe = tiny.recipe_file(tmp_path / "tiny.json", root, {"first_stage.train.steps": 2, "prior.train.steps": 2})
    status, said = tiny.moyai(["train", recipe, "--out", tmp_path / "run"], tmp_path / "said")
    assert status == 0, said
    assert "broken.png" in said
    assert "4 classes: alone 1, disc 10, ring 10, square 10" in said
    report = (tmp_path / "run" / "report.html").read_text()
    assert all(f">{name}<" in report for name in ("alone", "disc", "ring", "square"))


def test_classes_with_numbers_for_names_keep_their_own_place(tmp_path: Path) -> None:
    """Folders "1", "10" and "2" are classes 0, 1 and 2; previews and reports ask for each of them once."""
    root = tiny.folder(tmp_path / "data", 30)
    for name, number in zip(tiny.CLASSES, ("1", "10", "2"), strict=True):
        (root / name).rename(root / number)
    few = {**tiny.QUICK, "steps": 2}
    changes = {"first_stage.train": few, "prior.train": few, "report": {"per_class": 1, "gif": True}}
    recipe = tiny.recipe_file(tmp_path / "tiny.json", root, changes)
    status, said = tiny.moyai(["train", recipe, "--out", tmp_path / "run"], tmp_path / "said")
    assert status == 0, said
    for picture in ("prior/previews/step-000002.png", "samples/process.gif", "samples/samples.png"):
        made_from = tiny.read_recipe(tmp_path / "run" / picture)
        assert (made_from["asked"]["class"], made_from["class_names"]) == ([0, 1, 2], ["1", "10", "2"])


# Awkward places --------------------------------------------------------------------------------------------------

PLACES = {
    "spaces": "a path with  spaces",
    "signs": "é漢🎨",
    "long": "x" * 240,
    "dash": "-leading",
    "relative": "relative/./deeper/../run",
    "quotes": 'it\'s "quoted"; $HOME `x`',
}


@pytest.mark.parametrize("name", PLACES)
def test_runs_and_samples_live_in_awkward_places(name: str, finished_run: Path, tmp_path: Path) -> None:
    place = PLACES[name]
    few = ["first_stage.train.steps=2", "prior.train.steps=2"]
    words = ["train", str(finished_run / "tiny.json"), *few, f"--out={place}"]
    status, said = tiny.moyai(words, tmp_path / "said", lambda: os.chdir(tmp_path))
    assert status == 0, said
    assert (tmp_path / place / "report.html").is_file()
    out = f"{place[:240]}.png" if name == "long" else f"{place}/sub/out.png"
    words = ["sample", "--n", "1", f"--out={out}", "--", place]
    status, said = tiny.moyai(words, tmp_path / "said", lambda: os.chdir(tmp_path))
    assert status == 0, said
    assert (tmp_path / out).is_file()


def test_a_symlink_and_a_file_in_the_way(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(finished_run / "run", target_is_directory=True)
    status, said = tiny.moyai(["sample", tmp_path / "link", "--n", "1", "--out", tmp_path / "a.png"], tmp_path / "said")
    assert status == 0, said
    (tmp_path / "file").write_text("in the way")
    train = ["train", finished_run / "tiny.json", "--quiet", "--out"]
    sample = ["sample", finished_run / "run", "--quiet", "--out"]
    for words in (
        [*train, tmp_path / "file"],
        [*train, tmp_path / "file" / "run"],
        [*train, tmp_path / ("x" * 300)],
        [*sample, tmp_path / "file"],
        [*sample, tmp_path / "file" / "a.png"],
        [*sample, tmp_path / ("x" * 300) / "a.png"],
    ):
        status, said = tiny.moyai(words, tmp_path / "said")
        assert status == 2, said
        assert "cannot be made" in tiny.one_line(said)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the file in the way stands for it")
def test_a_folder_that_may_not_be_written(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    words = ["train", finished_run / "tiny.json", "--quiet", "--out", tmp_path / "closed" / "run"]
    status, said = tiny.moyai(words, tmp_path / "said")
    assert status == 2
    assert "cannot be made" in tiny.one_line(said)


def test_no_home_no_terminal_no_locale(finished_run: Path, tmp_path: Path) -> None:
    """In a new interpreter, since python looks at these when it starts."""
    bare = {"PATH": os.environ["PATH"], "TERM": "dumb", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = tmp_path / "é漢🎨"
    few = ["first_stage.train.steps=2", "prior.train.steps=2"]
    words = [sys.executable, "-m", "moyai.cli", "train", str(finished_run / "tiny.json"), *few, "--out", str(out)]
    done = subprocess.run(words, capture_output=True, env={**bare, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert b"Traceback" not in done.stderr
    assert (out / "report.html").is_file()
