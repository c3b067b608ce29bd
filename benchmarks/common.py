"""Systems side by side: each in a process of its own, taking turns, judged by the median of the ratios.

A machine's speed drifts while it is measured, so the systems run in turns (A B C, A B C, ...), and a ratio is
formed within each round. A process of its own gives each system its own memory, whose peak is read at the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Step = Callable[[], None]
Make = Callable[[argparse.Namespace, str], Step]  # (arguments, precision) -> one step of the system


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--steps", type=int, default=3, help="steps a turn")
    made.add_argument("--repeat", type=int, default=7, help="turns of each system")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    made.add_argument(
        "--cpu", action="store_true", help="count processor seconds, for a machine that is busy otherwise"
    )
    made.add_argument("--systems", nargs="*", help="only these, the first is the one compared with")
    made.add_argument("--json", type=Path, help="write the figures there")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    return made


def peak_memory() -> float:
    """The most memory this process has held, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


def work(args: argparse.Namespace, systems: Mapping[str, Make]) -> None:
    """A worker's life: make the system, then run as many steps as each line asks for and answer the seconds."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    name, precision = args.worker.rsplit("/", 1)
    began = time.perf_counter()
    step = systems[name](args, precision)
    step()
    step()
    print(json.dumps(time.perf_counter() - began), flush=True)
    for line in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        print(json.dumps([time.perf_counter() - began, time.process_time() - worked, peak_memory()]), flush=True)


def compare(args: argparse.Namespace, systems: Mapping[str, Make], workers: list[str], images: int) -> None:
    """Run the workers ("system/precision") in turns and print one line for each; `images` are made by one step."""
    workers = args.systems or workers
    running: dict[str, subprocess.Popen[str]] = {}
    first: dict[str, float] = {}
    try:
        for name in workers:  # one after the other, so that each warms up alone
            running[name] = _start(name)
            first[name] = json.loads(_answer(running[name]))
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        memory = dict.fromkeys(workers, 0.0)
        for _ in range(args.repeat):
            for name, process in running.items():
                print(args.steps, file=process.stdin, flush=True)
                wall, cpu, memory[name] = json.loads(_answer(process))
                seconds[name].append((cpu if args.cpu else wall) / args.steps)
    finally:
        for process in running.values():
            process.kill()
    _report(args, seconds, memory, first, images)


def _start(name: str) -> "subprocess.Popen[str]":
    command = [sys.executable, *sys.argv, "--worker", name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _answer(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args[-1]} ended early")  # type: ignore[index]
    return line


def _report(
    args: argparse.Namespace,
    seconds: Mapping[str, list[float]],
    memory: Mapping[str, float],
    first: Mapping[str, float],
    images: int,
) -> None:
    base = next(iter(seconds))
    clock = "processor" if args.cpu else "wall"
    print(
        f"batch {args.batch}, {args.threads} threads, {clock} time, median of {args.repeat} turns of {args.steps} steps"
    )
    print(f"{'system':<32}{'images/s':>10}{'ms/step':>10}{'first 2, s':>12}{'peak MiB':>10}  {base} is faster by")
    rows = {}
    for name, times in seconds.items():
        ratios = sorted(b / a for a, b in zip(seconds[base], times, strict=True))
        middle = statistics.median(times)
        ratio = statistics.median(ratios)
        print(
            f"{name:<32}{images / middle:>10.1f}{1e3 * middle:>10.1f}{first[name]:>12.1f}{memory[name]:>10.0f}"
            f"  {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )
        rows[name] = {"images_per_second": images / middle, "ratio": ratio, "ratios": ratios, "peak_mib": memory[name]}
    if args.json:
        args.json.write_text(json.dumps({"batch": args.batch, "threads": args.threads, "systems": rows}, indent=1))
