"""The smallest runs there are, and what two of them are compared by.

Children are forked (see checkpoints/forked.py): a new process for every start of a run, and torch imported once.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch._dynamo
from PIL import Image

from moyai import cli, log
from moyai.checkpoints import models, native
from moyai.evaluation.keeping import Trained
from moyai.evaluation.networks import OwnExtractor
from moyai.files import canonical_json
from moyai.model import LatentModel
from moyai.pictures import read_recipe as read_recipe
from moyai.recipe import reading
from moyai.recipe.model import Recipe
from moyai.training import run as _run  # noqa: F401

CLASSES = ("disc", "ring", "square")
SIDE = 8
NETS = {
    "first_stage.net": {"width": 8, "groups": 4, "attention": False},
    "prior.net": {"width": 16, "groups": 4, "blocks": 1, "head_width": 8, "multipliers": [1]},
    "prior.conditions": {"class": {"kind": "class", "width": 8}},
}
QUICK = {"steps": 12, "batch": 8, "log_every": 2, "save_every": 5, "validate_every": 6, "preview_every": 100}


def shapes(count: int, side: int = SIDE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy discs, rings and squares in turn: (count, side, side) uint8, and which is which (count,)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] + 0.5
    labels = np.arange(count) % len(CLASSES)
    out = np.empty((count, side, side), np.uint8)
    for i, label in enumerate(labels):
        cy, cx = rng.uniform(0.35 * side, 0.65 * side, 2)
        radius, square = np.hypot(y - cy, x - cx), np.maximum(abs(y - cy), abs(x - cx))
        inside = (radius < 0.35 * side, abs(radius - 0.3 * side) < 0.1 * side, square < 0.25 * side)[label]
        out[i] = (40 + 160 * inside + rng.integers(0, 40, (side, side))).astype(np.uint8)
    return out, labels


def stripes(count: int, seed: int, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Stripes across, along and oblique, at any phase and brightness: pixel means tell them apart by nothing."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    y, x = np.mgrid[:side, :side]
    directions = np.stack([y, x, x + y])[labels]  # (N, side, side)
    waves = np.sin(2 * np.pi * (directions / 4 + rng.uniform(0, 1, (count, 1, 1))))
    level, height = rng.uniform(80, 170, (count, 1, 1)), rng.uniform(30, 70, (count, 1, 1))
    noisy = level + height * waves + rng.normal(0, 10, waves.shape)
    return noisy.clip(0, 255).astype(np.uint8)[:, None], labels


def last(steps: Iterator[Trained[OwnExtractor]]) -> OwnExtractor:
    """What a training came to."""
    *_, end = steps
    assert end.made is not None
    return end.made


def folder(root: Path, count: int = 60, side: int = SIDE) -> Path:
    """A folder of PNGs in one sub-folder a class."""
    for name in CLASSES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for i, (picture, label) in enumerate(zip(*shapes(count, side), strict=True)):
        Image.fromarray(picture).save(root / CLASSES[label] / f"{i:03d}.png")
    return root


def tree(root: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The table of a tiny recipe over the pictures in `root`; changes are by dotted key."""
    recipe: dict[str, Any] = {"name": "tiny", "data": {"kind": "folder", "root": str(root)}}
    base = {
        **NETS,
        "first_stage.train": QUICK,
        "prior.train": QUICK,
        "sampling": {"steps": 2, "batch": 4},
        "report": {"per_class": 1, "samples": 2, "gif": False},
    }
    for key, value in {**base, **(changes or {})}.items():
        *tables, last = key.split(".")
        place = recipe
        for table in tables:
            place[table] = dict(place.get(table, {}))
            place = place[table]
        place[last] = value
    return recipe


def recipe(root: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    return reading.parse(tree(root, changes))


def recipe_file(path: Path, root: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """The same as a file that `moyai train` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(reading.to_json(recipe(root, changes)), encoding="utf-8")
    return path


def opinionated(run: Path) -> LatentModel:
    """A run's model whose network has an opinion: twelve steps of training alone leave it close to zero."""
    made = models.load(run)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.prior.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


# Children --------------------------------------------------------------------------------------------------------


def start(function: Callable[[], int], output: Path) -> int:
    """Fork a child that runs `function` and exits with what it returns; its stdout and stderr go to `output`."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70  # of a traceback
    os.fsync = lambda handle: None  # a kill leaves what was written with the system; only a power cut does not
    try:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
        status = function()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a child, minus the signal's number if it was one."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ended(pid: int, within: float) -> int | None:
    """The exit status if the child ends within so many seconds, else None."""
    until = time.monotonic() + within
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def moyai(arguments: Sequence[Any], output: Path, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Run the command line in a child: exit status, and what it said. `before` runs in the child first."""
    output.unlink(missing_ok=True)

    def go() -> int:
        before()
        return cli.main([str(a) for a in arguments])

    status = wait(start(go, output))
    return status, output.read_text(encoding="utf-8", errors="replace")


def one_line(text: str) -> str:
    """The one line of an error; fails where there is a traceback or more than that line (warnings aside)."""
    lines = [line for line in text.splitlines() if line and not line.startswith("warning: ")]
    assert len(lines) == 1, text
    assert lines[0].startswith("moyai: "), text
    return lines[0]


# Comparing -------------------------------------------------------------------------------------------------------


def digests(contents: Mapping[str, Any]) -> dict[str, str]:
    """What identifies each part of a state: tensors by names, dtypes, shapes and bytes, the rest by its text."""
    return {
        key: native.tensors_digest(value) if key != "state" else canonical_json(value).decode()
        for key, value in contents.items()
    }


def lines(path: Path) -> list[dict[str, Any]]:
    """A stage's log without what a clock says."""
    return [{k: v for k, v in line.items() if k != "time"} for line in log.read(path)]


def outcome(run: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on how often it was cut off."""
    found: dict[str, Any] = {}
    for stage in ("first_stage", "prior"):
        native.verify(run / stage / "model")
        found[f"{stage} model"] = native.tensors_digest(native.read(run / stage / "model")["model"])
        found[f"{stage} log"] = lines(run / stage / "log.jsonl")
        for snapshot in native.listed(run / stage / "snapshots"):
            found[f"{stage} snapshot {snapshot.step}"] = native.tensors_digest(native.read(snapshot.path)["model"])
    statistics = native.read(run / "latents" / "statistics")["statistics"]
    found["statistics"] = {name: t.tolist() for name, t in statistics.items()}
    made_of = json.loads((run / "samples" / "made-of.json").read_text())
    return {**found, "report of": made_of["prior"]}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The parts in which two runs differ."""
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def log_mistakes(found: Sequence[Mapping[str, Any]], steps: int, every: int) -> list[str]:
    """Gaps, doubles and disorder among the training lines of a log."""
    at = [line["step"] for line in found if "train" in line]
    expected = sorted({*range(every, steps + 1, every), steps})
    return [] if at == expected else [f"{at} instead of {expected}"]
