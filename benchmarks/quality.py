"""moyai beside its peers on Fashion-MNIST: the same data, the same minutes, the same cores, one judge.

    python benchmarks/quality.py --systems moyai ddpm diffusers monai --minutes 10 --threads 1

Each system (`systems/`) trains in a process of its own on the training half of the training files, draws samples at
`--steps` steps of its own sampler, and is judged (`judging.py`) beside as many held-out pictures. A peer's minutes are
the wall time of its training loop; reading the data, loading libraries and drawing are not counted. moyai's minutes
are its recipe's budget, which counts everything. What is done is kept and not repeated:

    OUT/<system>-<minutes>min-<threads>t/training.json    trained: seconds, steps, versions; the weights lie beside it
                                         parts-*/         drawn so far, PART pictures a file
                                         samples.npy      drawn (N, 28, 28) uint8; labels.npy where classes were asked
                                         rebuilt.npy      the held-out pictures through the first stage and back
                                         result.json      judged
                                         samples.png      the first 80
    OUT/quality.md                                        the table of all results in OUT

A training that was cut off begins anew; drawing goes on with the next part. The peers are installed by

    pip install --constraint constraints.txt --editable '.[peers]'

and denoising-diffusion-pytorch, which declares torchvision, as `systems/pixel_ddpm.py` says.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from results_peers import settings

from moyai import files
from moyai.checkpoints.lock import LOCK_FILE, RunLock

if TYPE_CHECKING:
    from judging import Data

PHASES = ("train", "sample", "judge")
PART, SHOWN = 100, 80
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "fashion-mnist.toml"
COLUMNS = ("fid", "precision", "recall", "density", "coverage", "class confidence", "class accuracy", "kid")


@dataclass(frozen=True)
class Job:
    """One system at one budget, and where what it makes is kept."""

    system: str
    minutes: float
    threads: int
    out: Path
    samples: int = 2000
    steps: int = 50

    @property
    def folder(self) -> Path:
        return self.out / f"{self.system}-{self.minutes:g}min-{self.threads}t"

    def trained(self) -> bool:
        """Whether the training is there, and of moyai's own recipe as it is now."""
        path = self.folder / "training.json"
        return path.is_file() and files.read_json(path).get("recipe", "") == self.recipe()

    def recipe(self) -> str:
        """The hash of what is trained by."""
        return settings(self.system)

    def drawn(self) -> bool:
        path = self.folder / "sampling.json"
        return path.is_file() and self.asked() == {name: files.read_json(path)[name] for name in self.asked()}

    def judged(self) -> bool:
        path = self.folder / "result.json"
        return path.is_file() and self.asked() == files.read_json(path)["asked"]

    def asked(self) -> dict[str, int]:
        return {"samples": self.samples, "steps": self.steps}


Run = Callable[[Job, str], None]  # do a phase of a job, in a process of its own
Judging = Callable[[Job], dict[str, Any]]


def advance(job: Job, run: Run, judge: Judging, until: str = "judge") -> None:
    """Do what is missing of a job, and only that; what one phase makes anew, the later ones make anew too. RequestError
    where another process is at it."""
    with RunLock(job.folder):
        _advance(job, run, judge, until)


def _advance(job: Job, run: Run, judge: Judging, until: str) -> None:
    if not job.trained():
        for path in job.folder.iterdir():
            if path.name != LOCK_FILE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        run(job, "train")
        if not job.trained():
            raise SystemExit(f"{job.folder} was not trained to the end")
    if until == "train":
        return
    if not job.drawn():
        (job.folder / "result.json").unlink(missing_ok=True)
        run(job, "sample")
        if not job.drawn():
            raise SystemExit(f"the samples of {job.folder} were not drawn to the end")
    if until == "judge" and not job.judged():
        files.write_json_atomic(job.folder / "result.json", judge(job))


# ---- a phase, in its own process


def train(job: Job, pixels: np.ndarray) -> None:
    import systems

    system = systems.load(job.system)
    facts = dict(system.train(pixels, 60 * job.minutes, job.folder))
    facts |= {"about": system.ABOUT, "versions": systems.versions(job.system), "machine": machine()}
    facts |= {"recipe": job.recipe(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    files.write_json_atomic(job.folder / "training.json", facts)


def sample(job: Job, real: np.ndarray) -> None:
    """Draw part by part, then take the held-out pictures through the first stage."""
    import systems

    system, began = systems.load(job.system), time.perf_counter()
    missing = [first for first in range(0, job.samples, PART) if not part_of(job, first).is_file()]
    part_of(job, 0).parent.mkdir(exist_ok=True)
    draw = system.sampler(job.folder, job.steps, job.samples) if missing else None
    for first in missing:
        assert draw is not None
        pictures, labels = draw(first, min(PART, job.samples - first))
        if labels is not None:
            keep(part_of(job, first, "labels"), labels)
        keep(part_of(job, first), pictures)
        print(f"{job.folder.name}: {first + len(pictures)} of {job.samples} drawn", flush=True)
    for what in ("samples", "labels"):
        parts = [part_of(job, first, what) for first in range(0, job.samples, PART)]
        if parts[0].is_file():
            keep(job.folder / f"{what}.npy", np.concatenate([np.load(path) for path in parts]))
    rebuild = system.rebuilder(job.folder)
    if rebuild is not None:
        again = [rebuild(real[first : first + PART]) for first in range(0, len(real), PART)]
        keep(job.folder / "rebuilt.npy", np.concatenate(again))
    files.write_json_atomic(job.folder / "sampling.json", job.asked() | {"seconds": time.perf_counter() - began})


def part_of(job: Job, first: int, what: str = "samples") -> Path:
    """The pictures (or labels) from `first` on; a folder for each way of drawing."""
    return job.folder / f"parts-{job.samples}-{job.steps}" / f"{what}-{first:05}.npy"


def keep(path: Path, array: np.ndarray) -> None:
    """An array in a file, whole or not at all."""
    beside = path.with_name(f"{path.stem}.part.npy")
    np.save(beside, array, allow_pickle=False)
    beside.replace(path)


def work(job: Job, phase: str) -> None:
    """A worker's life."""
    import torch
    from judging import Data

    from moyai.nets.precision import keep_memory

    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    data = Data.of(RECIPE)
    if phase == "train":
        train(job, data.pixels())
    else:
        keep_memory()
        sample(job, data.real(job.samples))


def in_a_process(cores: list[int]) -> Run:
    """Runs a phase in a process of its own, with so many threads, bound to these cores where any are named."""

    def run(job: Job, phase: str) -> None:
        told = json.dumps({"system": job.system, "minutes": job.minutes, "threads": job.threads, **job.asked()})
        command = [sys.executable, __file__, "--out", str(job.out), "--worker", phase, told]
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "TQDM_DISABLE": "1"}
        bound = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        print(f"{job.folder.name}: {phase}", flush=True)
        with subprocess.Popen(command, env=environment, preexec_fn=bound) as worker:
            try:
                worker.wait()
            except BaseException:  # nobody would wait for it
                worker.terminate()
                worker.wait()
                raise
        if worker.returncode:
            raise SystemExit(f"{job.folder.name}: {phase} failed; run the same command to try again")

    return run


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {"processor": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


# ---- the judge's part


@cache
def the_data() -> "Data":
    from judging import Data

    return Data.of(RECIPE)


def judged(job: Job) -> dict[str, Any]:
    """What the judge says of a job, with how it came about; writes the picture of its first samples."""
    from judging import judge

    from moyai import pictures

    drawn = np.load(job.folder / "samples.npy")
    labels, again = (
        np.load(path) if (path := job.folder / f"{name}.npy").is_file() else None for name in ("labels", "rebuilt")
    )
    shown = pictures.grid(drawn[:SHOWN, ..., None], columns=10, scale=2)
    pictures.save_png(job.folder / "samples.png", shown, None)
    facts = {"system": job.system, "minutes": job.minutes, "threads": job.threads, "asked": job.asked()}
    for name in ("training", "sampling"):
        facts[name] = files.read_json(job.folder / f"{name}.json")
    return facts | judge(the_data(), drawn, labels, again)


# ---- the table


def table(results: list[Mapping[str, Any]]) -> str:
    """Every result, best first within the same minutes and threads, a table for each extractor: values of several are
    not to be compared. Below them the floors, each of its count."""
    extractors = sorted({r["extractor"] for r in results})
    return "\n".join(_table([r for r in results if r["extractor"] == name]) for name in extractors)


def _table(results: list[Mapping[str, Any]]) -> str:
    from moyai.evaluation.wording import shown

    def line(head: list[Any], row: Mapping[str, Any], first_stage: str) -> str:
        return f"| {' | '.join(map(str, [*head, *(shown(row.get(name)) or '-' for name in COLUMNS), first_stage]))} |"

    lines = ["| system | minutes | threads | samples | steps trained | " + " | ".join(COLUMNS) + " | rFID |"]
    lines.append("|---" * (6 + len(COLUMNS)) + "|")
    order = sorted(results, key=lambda r: (r["minutes"], r["threads"], r["rows"]["samples"]["fid"]["value"]))
    floors: dict[int, Mapping[str, Any]] = {}
    for r in order:
        count, rows = r["asked"]["samples"], r["rows"]
        if len(rows["held out"]) >= len(floors.get(count, {})):  # the one that is judged by its classes too
            floors[count] = rows["held out"]
        rebuilt = shown(rows["first stage"]["fid"]) if "first stage" in rows else "-"
        head = [r["system"], f"{r['minutes']:g}", r["threads"], count, r["training"]["steps"]]
        lines.append(line(head, rows["samples"], rebuilt))
    lines += [line(["held-out pictures", "", "", count, ""], floor, "") for count, floor in floors.items()]
    notes = {f"- {r['system']}: {r['training']['about']} ({_versions(r)})" for r in order}
    notes |= {f"- features: {r['extractor']}, against {r['reference']} pictures" for r in order}
    return "\n".join([*lines, "", *sorted(notes), ""])


def _versions(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in result["training"]["versions"].items())


def report(out: Path) -> str:
    """The table of all that is judged in a folder, written there."""
    text = table([files.read_json(path) for path in sorted(out.glob("*/result.json"))])
    files.write_atomic(out / "quality.md", text.encode())
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--systems", nargs="+", default=["moyai", "ddpm", "diffusers", "monai"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[10.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", nargs="*", type=int, default=[], help="numbers of the cores to be bound to")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=50, help="of each system's own sampler")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--until", choices=PHASES, default="judge", help="go no further than this phase")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        phase, told = args.worker
        return work(Job(out=args.out, **json.loads(told)), phase)
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, so that no worker is left behind
        signal.signal(number, signal.default_int_handler)
    failed: list[str] = []
    for job in (
        Job(s, m, args.threads, args.out, args.samples, args.steps) for m in args.minutes for s in args.systems
    ):
        try:
            advance(job, in_a_process(args.cores), judged, args.until)
        except SystemExit as error:  # the other systems go on
            failed.append(str(error))
            print(error, file=sys.stderr, flush=True)
        else:
            if args.until == "judge":
                print(report(args.out), flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} of the systems did not finish")
    return None


if __name__ == "__main__":
    main()
