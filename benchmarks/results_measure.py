"""Measuring one point: `moyai train`, `moyai evaluate`, and what their folders say then.

Each command is a process of its own, whose peak of memory the system tells when it ends. On Linux that peak begins
with what the process that started it held, so nothing heavy is imported here: no torch, and NumPy only to draw.
"""

import contextlib
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results_rows import Point

from moyai import log
from moyai.checkpoints.lock import RunLock
from moyai.errors import DataError
from moyai.files import read_json, write_json_atomic
from moyai.recipe import overlay, reading
from moyai.version import __version__

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROOT = Path(__file__).resolve().parents[1]
Json = dict[str, Any]
PROBE = """
import json, torch
from moyai.devices import chosen
from moyai.nets.precision import supports_bfloat16
device = chosen(None)
gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "gpu": gpu,
                  "precision": "bfloat16" if supports_bfloat16(device) else "float32"}))
"""


class Failed(Exception):
    """A command that did not end well: its words, and its exit status."""

    def __init__(self, words: Sequence[str], ended: "Ended") -> None:
        self.status = 128 + ended.signal if ended.signal else ended.status
        self.stopped = bool(ended.signal) or ended.status in (130, 143)
        self.peak = ended.peak
        super().__init__(f"`{shlex.join(words)}` ended with status {self.status}")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, the signal that was passed on to it (0: none), its peak of memory in MiB."""

    status: int
    signal: int
    peak: float


Start = Callable[[Sequence[str], Mapping[str, str]], Ended]  # a command line, and what is laid over the environment


def start(words: Sequence[str], environment: Mapping[str, str]) -> Ended:
    """Run a command in the repository and wait for it; SIGINT, SIGTERM and SIGHUP are passed on."""
    # A session of its own: the terminal's Ctrl-C, too, comes to it once, from here.
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True)
    asked = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(process.returncode, asked[-1] if asked else 0, usage.ru_maxrss / 1024)


@dataclass(frozen=True)
class Lab:
    """Where runs lie, with how many threads they work (None: what torch takes), and what starts a command."""

    out: Path
    threads: int | None = None
    start: Start = start

    @property
    def environment(self) -> dict[str, str]:
        return {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}

    def command(self, words: Sequence[str]) -> Ended:
        """Run it; Failed where it does not end with 0."""
        print(f"$ {shlex.join(words)}", flush=True)
        ended = self.start(words, self.environment)
        if ended.status or ended.signal:
            raise Failed(words, ended)
        return ended

    def moyai(self, words: Sequence[str]) -> Ended:
        return self.command([sys.executable, "-m", "moyai.cli", *words])


def measure(point: Point, lab: Lab, machine: Json) -> Json:
    """Train where that is not done, judge, and collect. Failed where a command does not end well."""
    train, evaluate = point.commands(str(lab.out))
    run, judged = lab.out / point.run, lab.out / point.judged
    usage = trained(point.run, train, lab, {"recipe": recipe_hash(point.recipe), "machine": machine})
    if point.sampling:
        view(run, judged, point.sampling)
    lab.moyai(evaluate)
    if not point.sampling:
        lab.moyai(["train", str(run)])  # what it was judged to be, into its report
    return {
        "name": point.name,
        "seed": point.seed,
        "commands": [shlex.join(["moyai", *words]) for words in point.commands()],
        "recipe": recipe_hash(point.recipe),
        "overrides": [*point.overrides, *point.sampling],
        "moyai": ", ".join(usage["versions"]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": usage["machine"],
        "peak_mib": round(usage["peak_mib"]),
        "minutes": usage["minutes"],
        **collected(run),
        "evaluation": evaluation(judged),
    }


def recipe_hash(name: str) -> str:
    """Of a recipe with all its defaults as it stands now: what was measured of another is not its result."""
    recipe = reading.load(ROOT / "recipes" / f"{name}.toml").model_dump(mode="json")
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def trained(run: str, words: Sequence[str], lab: Lab, of: Json) -> Json:
    """Train or go on training. What is known of it lies beside the run from before its first step: the recipe and the
    machine it is `of`, the peak of memory and the versions of moyai over all goes, its minutes once it has ended.

    A run of another recipe or machine is deleted. DataError for a folder that nothing is known of, and for one that
    somebody is at.
    """
    folder, path = lab.out / run, lab.out / f"{run}.usage.json"
    usage: Json = read_json(path) if path.is_file() else {}
    if folder.exists() and not usage:
        raise DataError(
            f"{folder} is there without {path.name}: it was not made by this; delete it, or name another --out"
        )
    if usage.get("recipe") != of["recipe"] or not alike(usage.get("machine", {}), of["machine"]):
        if folder.exists():
            print(f"{folder} was trained by another recipe or on another machine: anew")
            with RunLock(folder):
                shutil.rmtree(folder)
        usage = {"peak_mib": 0.0, "versions": [], **of}
    if "minutes" in usage:
        return usage
    usage["versions"] = list(dict.fromkeys([*usage["versions"], version()]))
    write_json_atomic(path, usage)
    try:
        peak = lab.moyai(words).peak
    except Failed as failed:
        write_json_atomic(path, {**usage, "peak_mib": max(usage["peak_mib"], failed.peak)})
        raise
    usage["peak_mib"] = max(usage["peak_mib"], peak)
    usage["minutes"] = round(sum(read_json(folder / "times.json").values()) / 60, 2)
    write_json_atomic(path, usage)
    return usage


def view(run: Path, folder: Path, sampling: Sequence[str]) -> None:
    """A folder with all of a run but its evaluation, under another `sampling`. No weight is copied."""
    shutil.rmtree(folder, ignore_errors=True)  # links, and what an evaluation left
    folder.mkdir(parents=True)
    recipe = read_json(run / "recipe.json")
    for text in sampling:
        (_, key), value = overlay.override(text)
        recipe["sampling"][key] = value
    write_json_atomic(folder / "recipe.json", recipe)
    for name in ("data.json", "first_stage", "latents", "prior"):
        if (run / name).exists():
            (folder / name).symlink_to((run / name).resolve())


def collected(run: Path) -> Json:
    """What a finished run's folder says of itself; nothing of a first stage where the pixels are the latents."""
    recipe, stages = read_json(run / "recipe.json"), ("first_stage", "prior")
    trained = [stage for stage in stages if (run / stage / "model").is_dir()]
    _, psnr = log.series(run / "first_stage" / "log.jsonl", "validation", "psnr")
    _, loss = log.series(run / "prior" / "log.jsonl", "validation", "loss")
    return {
        "steps": {stage: recipe[stage]["train"]["steps"] if stage in trained else 0 for stage in stages},
        "parameters": {stage: parameters(run / stage / "model") if stage in trained else 0 for stage in stages},
        "psnr": round(psnr[-1], 3) if psnr else None,
        "prior_loss": round(loss[-1], 5) if loss else None,
    }


def parameters(folder: Path) -> int:
    """The numbers in a network's weights, by the head of its file; the conditions' own networks are not counted."""
    path = folder / "model.safetensors"
    try:
        with path.open("rb") as file:
            head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        return sum(
            math.prod(entry["shape"])
            for name, entry in head.items()
            if name.startswith(("autoencoder.", "prior.")) and entry["dtype"].startswith(("F", "BF"))
        )
    except (OSError, struct.error, ValueError, KeyError) as error:
        raise DataError(f"{path} has no readable head: {error}") from error


def evaluation(folder: Path) -> Json:
    """An evaluation without what can be said shorter."""
    found = read_json(folder / "evaluation.json")
    names = ("samples", "held out", "reference", "neighbourhood", "extractor")
    facts = {name: found["facts"].get(name) for name in names}
    kept = {row: {name: short(v) for name, v in values.items()} for row, values in found["rows"].items()}
    return {**facts, "rows": kept}


def short(value: Mapping[str, Any]) -> Json:
    """A value with its interval, to six digits, and what it is warned of."""
    numbers: Json = {
        name: None if value.get(name) is None else float(f"{value[name]:.6g}")
        for name in ("value", "low", "high")
        if name == "value" or value.get(name) is not None
    }
    return {**numbers, "warning": value["warning"]} if value.get("warning") else numbers


def alike(one: Json, other: Json) -> bool:
    """Whether minutes of these machines can be compared. Of the cores as many work as there are threads."""
    return all(one.get(name) == other.get(name) for name in {*one, *other} - {"cores"})


def machine(lab: Lab) -> Json:
    """What the numbers were made on; the threads, the device and the precision as a child of this lab finds them."""
    told = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, env={**os.environ, **lab.environment}
    )
    if told.returncode:
        raise DataError(f"torch does not start here: {told.stderr.strip().splitlines()[-1:]}")
    return {"processor": processor(), "cores": len(os.sched_getaffinity(0)), **json.loads(told.stdout)}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def version() -> str:
    """The commit, with a + where sources or recipes differ from it; the version's number outside a repository."""
    git = ["git", "-C", str(ROOT)]
    with contextlib.suppress(OSError):
        commit = subprocess.run([*git, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", "src", "recipes"], capture_output=True, text=True
        )
        if commit.returncode == 0 == changes.returncode:
            return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
    return __version__
