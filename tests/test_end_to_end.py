"""From data to report, through the public words: every file is there, and nothing is done twice."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moyai
import tiny
from moyai import log, pictures, tasks
from moyai.recipe import reading
from moyai.recipe.model import Recipe

FEW = {"steps": 6, "batch": 8, "log_every": 2, "save_every": 3, "validate_every": 3, "preview_every": 3}


def small(data: dict[str, Any], **changes: Any) -> Recipe:
    tree = tiny.tree(Path("x"), {"first_stage.train": FEW, "prior.train": FEW, "report.gif": True, **changes})
    return reading.parse({**tree, "data": data})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    recipe = small({"kind": "digits", "limit": 120, "resolution": 16})
    folder = moyai.train(recipe, out=tmp_path_factory.mktemp("digits") / "run")
    return recipe, folder


def test_every_file_is_there(digits: tuple[Recipe, Path]) -> None:
    _, run = digits
    expected = {"recipe.json", "data.json", "times.json", "report.html"}
    expected |= {f"samples/{name}" for name in ("samples.png", "originals.png", "reconstructions.png", "process.gif")}
    expected |= {
        f"latents/{half}/{name}" for half in ("train", "held-out") for name in ("cache.json", "plain-mean.npy")
    }
    expected.add("latents/statistics/statistics.safetensors")
    for stage in ("first_stage", "prior"):
        expected |= {f"{stage}/{name}" for name in ("recipe.json", "log.jsonl", "model/model.safetensors")}
        expected |= {f"{stage}/previews/step-{step:06d}.png" for step in (3, 6)}
        expected.add(f"{stage}/checkpoints/step-000003/MANIFEST.json")
        expected.add(f"{stage}/snapshots/step-000001/MANIFEST.json")
    there = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert expected - there == set()
    assert [p for p in there if ".moyai-tmp" in p or ".staging" in p] == []
    assert reading.from_json((run / "recipe.json").read_text()).prior.train.steps == 6
    for stage in ("first_stage", "prior"):
        path = run / stage / "log.jsonl"
        steps, losses = log.series(path, "train", "loss")
        assert steps == [2, 4, 6]
        assert np.isfinite(losses).all()
        assert len(log.names(path, "validation")) >= 3
        for name in log.names(path, "validation"):
            assert log.series(path, "validation", name)[0] == [3, 6]


def test_the_report_stands_alone_and_names_every_class(digits: tuple[Recipe, Path]) -> None:
    page = (digits[1] / "report.html").read_text(encoding="utf-8")
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)([^"']*)""", page)
    outside += re.findall(r"@import|url\((?!data:)", page)
    assert outside == []
    assert "<script src" not in page
    shown = re.sub(r"<(style|script).*?</\1>|<[^>]+>|data:[^\"']*", " ", page, flags=re.S)
    for number in range(10):
        assert f">{number}</" in page
    for word in ("moyai train", "Originals beside generated pictures", "Pictures of each class"):
        assert word in shown


def files(run: Path) -> dict[str, tuple[int, int]]:
    """Everything that costs time to make, by inode and time of change."""
    found = {}
    for path in run.rglob("*"):
        name = path.relative_to(run).as_posix()
        if path.is_file() and path.name not in (".lock", "times.json", "recipe.json", "data.json"):
            found[name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def test_nothing_is_done_twice(digits: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, source = digits
    run = Path(shutil.copytree(source, tmp_path / "run"))
    before = files(run)
    texts = {name: (run / name).read_bytes() for name in ("recipe.json", "data.json")}
    assert moyai.train(recipe, out=run) == run
    assert files(run) == before
    assert {name: (run / name).read_bytes() for name in texts} == texts
    # Other settings of sampling draw the report anew, and nothing else.
    changed = reading.parse({**recipe.model_dump(mode="json"), "sampling": {"steps": 3, "batch": 4}})
    moyai.train(changed, out=run)
    after = files(run)
    redrawn = {name for name in after if after[name] != before.get(name)}
    assert redrawn == {
        "report.html",
        "samples/made-of.json",
        "samples/samples.png",
        "samples/originals.png",
        "samples/reconstructions.png",
        "samples/process.gif",
    }
    assert pictures.read_recipe(run / "samples" / "samples.png")["steps"] == 3


def test_what_is_loaded_is_what_was_trained(digits: tuple[Recipe, Path]) -> None:
    model = moyai.load(digits[1])
    request = tasks.request(model, n=1)
    sheet = pictures.read_recipe(digits[1] / "samples" / "samples.png")
    assert sheet == json.loads(json.dumps(tasks.picture_recipe(model, request)))
    images = tasks.collect(model, request)
    assert images.shape == (10, 16, 16, 1)
    again = pictures.to_image(pictures.grid(images, columns=1, row_labels=model.classes))
    shown = pictures.Image.open(digits[1] / "samples" / "samples.png")
    assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(again.convert("RGB")))


def test_stages_can_be_run_one_by_one(digits: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, straight = digits
    for stage in ("first_stage", "latents", "prior", "report"):
        moyai.train(recipe, out=tmp_path / "run", stage=stage)
    assert tiny.differences(tiny.outcome(straight), tiny.outcome(tmp_path / "run")) == []


def test_another_seed_is_another_run(digits: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, straight = digits
    other = recipe.model_copy(update={"seed": 2**32})
    moyai.train(other, out=tmp_path / "run", stage="first_stage")
    digest = [
        tiny.native.tensors_digest(tiny.native.read(run / "first_stage" / "model")["model"])
        for run in (straight, tmp_path / "run")
    ]
    assert digest[0] != digest[1]


def test_colours_mirrors_flow_and_no_classes(tmp_path: Path) -> None:
    """The other branches of a recipe, in one run: RGB, mirrored, rectified flow, unconditional, not square."""
    root = tmp_path / "data"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        pictures.Image.fromarray(rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)).save(root / f"{i}.png")
    changes = {
        "prior.parameterization": {"kind": "flow"},
        "prior.conditions": {},
        "prior.net.multipliers": [1, 2],
        "report.samples": 3,
    }
    recipe = small({"kind": "folder", "root": str(root), "flip": True, "resolution": [8, 12]}, **changes)
    run = moyai.train(recipe, out=tmp_path / "run")
    assert (run / "latents" / "train" / "flipped-std.npy").is_file()
    assert not (run / "latents" / "held-out" / "flipped-std.npy").exists()
    model = moyai.load(run)
    assert model.classes == ()
    assert moyai.sample(model, n=2, seed=5).shape == (2, 8, 12, 3)
    again, changes_since = tasks.like(model, pictures.read_recipe(run / "samples" / "samples.png"))
    assert (again.count, changes_since) == (3, [])


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_files(name: str, real_data: Path, tmp_path: Path) -> None:
    """The official IDX files, 300 of them, by the recipe that is published for them."""
    published = Path(__file__).parents[1] / "recipes" / f"{name}.toml"
    small_nets = [f"first_stage.net.width={8}", "first_stage.net.groups=4", "prior.net.width=16", "prior.net.groups=4"]
    few = [f"{s}.train.{k}={v}" for s in ("first_stage", "prior") for k, v in (("steps", 4), ("batch", 8))]
    report = ["report.per_class=1", "report.gif=false", "sampling.steps=2", "sampling.batch=5"]
    quiet = [f"{s}.train.preview_every=100" for s in ("first_stage", "prior")]
    run = moyai.train(published, "data.limit=300", *small_nets, *few, *report, *quiet, out=tmp_path / "run")
    model = moyai.load(run)
    assert len(model.classes) == 10
    assert (model.facts.channels, model.facts.height, model.facts.width) == (1, 28, 28)
    images = moyai.sample(model, classes=[model.classes[3]], n=2)
    assert images.shape == (2, 28, 28, 1)
    data = json.loads((run / "data.json").read_text())
    assert data["report"]["count"] == 300
    files = [real_data / name / file for file in ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte")]
    (source,) = (f for f in files if f.is_file())
    raw = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    first = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    assert len(first) == 60_000
    lively = model.decode(model.encode(first[:2, ..., None]))
    assert lively.shape == (2, 28, 28, 1)
