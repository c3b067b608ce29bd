"""The row of the peers: `quality.py` does the work and keeps it; its results are put beside the others.

All systems at ten minutes, judged on 500 samples, since 2,000 of diffusers' network in pixels take four hours of a
core; then, on 2,000, moyai at sixty and the best of the others: all whose FID the best one's interval reaches.
"""

import hashlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from results_measure import ROOT, Json, Lab, recipe_hash, short, version

from moyai.files import read_json

SYSTEMS = ("moyai", "ddpm", "diffusers", "monai")
MODULES = {"ddpm": "pixel_ddpm.py", "diffusers": "unconditional.py", "monai": "latent_monai.py"}
SHORT, LONG = 10, 60  # minutes
FEW, MANY = 500, 2000  # samples


def jobs(done: Sequence[Json]) -> Iterator[tuple[str, int, int]]:
    """(system, minutes, samples) one after the other; `done` holds what the earlier ones gave when the later ones are
    asked."""
    yield from ((system, SHORT, FEW) for system in SYSTEMS)
    yield "moyai", LONG, MANY
    others = [p for p in done if p["system"] != "moyai" and p["minutes"] == SHORT]
    fids = {p["system"]: p["evaluation"]["rows"]["samples"]["fid"] for p in others}
    best = min(fids.values(), key=lambda fid: fid["value"], default={})
    reach = best.get("high", best.get("value"))
    for system in sorted(fids, key=lambda name: fids[name]["value"]):
        if fids[system].get("low", fids[system]["value"]) <= reach:
            yield system, LONG, MANY


def settings(system: str) -> str:
    """What a system is trained by, as a hash: moyai's recipe, or the module that a peer's settings stand in."""
    if system == "moyai":
        return recipe_hash("fashion-mnist")
    return hashlib.sha256((ROOT / "benchmarks" / "systems" / MODULES[system]).read_bytes()).hexdigest()[:12]


def words(system: str, minutes: int, threads: int, samples: int) -> list[str]:
    """The command as it is kept."""
    told = ["--systems", system, "--minutes", str(minutes), "--threads", str(threads), "--samples", str(samples)]
    return ["benchmarks/quality.py", *told]


def command(system: str, minutes: int, threads: int, samples: int) -> str:
    return shlex.join(["python", *words(system, minutes, threads, samples)])


def measure(system: str, minutes: int, samples: int, lab: Lab, machine: Json) -> Json:
    """Have `quality.py` do what is missing of one system, and read what it says. Failed where it does not end well."""
    threads, out = machine["threads"], lab.out.parent / "quality"
    script, *told = words(system, minutes, threads, samples)
    lab.command([sys.executable, str(ROOT / script), *told, "--out", str(out)])
    found = read_json(folder(out, system, minutes, threads) / "result.json")
    return {
        "name": f"{system}-{minutes}min",
        "system": system,
        "minutes": minutes,
        "commands": [command(system, minutes, threads, samples)],
        "recipe": found["training"].get("recipe", ""),
        "moyai": version(),
        "date": found["training"].get("date") or time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {**machine, "cores": found["training"]["machine"]["cores"]},
        "steps": {"first_stage": found["training"].get("first stage steps", 0), "prior": found["training"]["steps"]},
        "sampling_steps": found["asked"]["steps"],
        "about": found["training"]["about"],
        "versions": ", ".join(f"{name} {v}" for name, v in found["training"]["versions"].items()),
        "evaluation": {
            "samples": found["asked"]["samples"],
            "held out": found["rows"]["held out"]["fid"]["count"],
            "reference": found["reference"],
            "extractor": found["extractor"],
            "rows": {row: {name: short(v) for name, v in values.items()} for row, values in found["rows"].items()},
        },
    }


def folder(out: Path, system: str, minutes: int, threads: int) -> Path:
    """Where quality.py keeps a job."""
    return out / f"{system}-{minutes:g}min-{threads}t"
