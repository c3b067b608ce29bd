"""`moyai inspect`: what a path is, said in a few lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moyai import log, pictures
from moyai.build.data import read_data
from moyai.checkpoints import models, native, tensors
from moyai.data import report as data_report
from moyai.data import splits
from moyai.data.config import Cifar10Config, DataConfig, FolderConfig, IdxConfig, NiftiConfig, OasisConfig
from moyai.data.locate import cache_folder
from moyai.errors import RequestError
from moyai.evaluation import curves, page
from moyai.evaluation.terminal import terminal_plot
from moyai.recipe import reading

STAGES = ("first_stage", "prior", "decoder")
PICTURES = (".png", ".gif", ".jpg", ".jpeg", ".webp")


def inspect(path: Path, *, plot: Path | None = None) -> Iterator[str]:
    """Yields lines about a run, checkpoint, weights file, picture, recipe or data. plot: curves go to this .html."""
    if not path.exists():
        raise RequestError(f"{path} does not exist; possible: a run, a checkpoint, a .safetensors, a picture, data")
    if plot is not None and not (path / "recipe.json").is_file():
        raise RequestError(f"--plot draws the logs of a run, and {path} is none")
    if (path / "recipe.json").is_file():
        yield from _run(path)
        if plot is not None:
            page.write(plot, page.page(path.name, "the logs of a run", [page.Section("Curves", list(_charts(path)))]))
            yield f"curves in {plot}"
    elif (path / "MANIFEST.json").is_file():
        yield from _checkpoint(path)
    elif path.suffix == ".safetensors":
        yield from _weights(path)
    elif path.suffix.lower() in PICTURES:
        yield from _recipe_of(path)
    elif path.suffix in (".toml", ".json"):
        loaded = reading.load(path)
        parts = f"data {loaded.data.kind}, first stage {loaded.first_stage.kind}, prior {loaded.prior.kind}"
        yield f"recipe {loaded.name}: {parts}"
    else:
        yield from _data(path)


def _run(run: Path) -> Iterator[str]:
    recipe, facts = models.described(run)
    yield f"run {recipe.name}: data {recipe.data.kind} {recipe.data.name or ''}, seed {recipe.seed}"
    yield f"data: {facts.count} training pictures, {facts.channels} x {facts.height} x {facts.width}, " + (
        f"{len(facts.classes)} classes: {', '.join(facts.classes)}" if facts.classes else "no classes"
    )
    for stage in (name for name in STAGES if (run / name).is_dir() or name == "prior"):
        yield _progress(run / stage, stage.replace("_", " "))
        steps, values = log.series(run / stage / "log.jsonl", "train", "loss")
        if len(values) > 1:
            yield f"loss, steps {steps[0]} to {steps[-1]}:"
            yield terminal_plot(values, 60, 8)
    if (run / "report.html").is_file():
        yield f"report: {run / 'report.html'}"


def _progress(stage: Path, name: str) -> str:
    if (stage / "model" / "MANIFEST.json").is_file():
        info = native.verify(stage / "model")["info"]
        skipped = f", {info['skipped']} non-finite steps skipped" if info.get("skipped") else ""
        return f"{name}: finished at step {info['step']}{skipped}"
    newest = native.newest(stage / "checkpoints") if (stage / "checkpoints").is_dir() else None
    return f"{name}: " + (f"checkpoint at step {newest.step}" if newest else "not begun")


def _checkpoint(path: Path) -> Iterator[str]:
    manifest = native.verify(path)
    info: dict[str, Any] = manifest["info"]
    yield f"checkpoint of moyai, whole and unaltered: {', '.join(f'{k} {v}' for k, v in info.items())}"
    for name, entry in manifest["files"].items():
        yield f"  {name}: {entry['size']:,} bytes, sha256 {entry['sha256'][:12]}"


def _weights(path: Path) -> Iterator[str]:
    entries = tensors.header(path)["tensors"]
    yield f"{len(entries)} tensors"
    for name, entry in entries.items():
        yield f"  {name}: {entry}"


def _recipe_of(path: Path) -> Iterator[str]:
    for key, value in pictures.read_recipe(path).items():
        yield f"{key}: {value}"


def _data(path: Path) -> Iterator[str]:
    root = path.resolve()
    config: DataConfig = FolderConfig(root=root)
    if root.is_dir() and any(root.glob("train-*idx*-ubyte*")):
        config = IdxConfig(root=root, name=root.name, download=False)
    elif root.is_dir() and (any(root.glob("cifar-10-*")) or any(root.glob("data_batch_*"))):
        config = Cifar10Config(root=root, download=False)
    elif root.is_dir() and any(root.glob("keras_png_slices_train")):
        config = OasisConfig(root=root)
    elif root.is_dir() and any(p.name.lower().endswith((".nii", ".nii.gz")) for p in root.rglob("*.nii*")):
        config = NiftiConfig(root=root)
    images = read_data(config, cache_folder())
    yield from data_report.lines(data_report.report(images, *splits.split(images, 0.1)))


def _charts(run: Path) -> Iterator[page.Chart]:
    for stage in STAGES:
        path = run / stage / "log.jsonl"
        for kind in ("train", "validation"):
            for name in log.names(path, kind):
                steps, values = log.series(path, kind, name)
                title = f"{stage.replace('_', ' ')}: {name} ({kind})"
                yield page.Chart(
                    curves.chart([curves.Series(name, steps, values)], title=title, x_label="step", y_label=name), title
                )
