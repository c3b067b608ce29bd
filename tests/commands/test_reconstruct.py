"""`moyai reconstruct`: what is compared and how it is counted, what is written, and each mistake in one line."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
from moyai import cli
from moyai.batch import Cond
from moyai.checkpoints import models, native
from moyai.commands import sidebyside
from moyai.commands.sidebyside import Row, Sheet, compared, gain, judge, sheet
from moyai.files import read_json, write_json_atomic
from moyai.firststage.posterior import DiagonalGaussian

Command = Callable[..., tuple[int, list[str], str]]
GREY = "first stage of kind kl, factor 2; grey pictures"


class Halves:
    """Somebody else's autoencoder, of factor 2: it keeps the mean of every 2 x 2 pixels; `quantize` doubles it, and
    `decode` undoes that."""

    factor, channels = 2, 1

    def encode(self, images: Tensor, cond: Cond | None = None) -> DiagonalGaussian:
        mean = torch.nn.functional.avg_pool2d(images, 2)
        return DiagonalGaussian(torch.cat([mean, mean], dim=1))

    def quantize(self, latents: Tensor) -> Tensor:
        return 2 * latents

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, cond: Cond | None = None) -> Tensor:
        made = torch.nn.functional.interpolate(latents / 2, scale_factor=2)
        return made if size is None else made[..., : size[0], : size[1]]


@pytest.fixture
def reconstruct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in tmp_path: exit status, lines of stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, list[str], str]:
        status = cli.main(["reconstruct", *map(str, words), "--quiet"])
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err

    return run


@pytest.fixture(scope="session")
def first_only(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it is while its first stage is trained: nothing but the newest checkpoint of that."""
    run = tmp_path_factory.mktemp("first") / "run"
    (run / "first_stage").mkdir(parents=True)
    for name in ("recipe.json", "data.json"):
        shutil.copy(finished_run / "run" / name, run / name)
    shutil.copytree(finished_run / "run" / "first_stage" / "checkpoints", run / "first_stage" / "checkpoints")
    return run


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def noise(*shape: int, seed: int = 0, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max + 1, shape).astype(kind)


@pytest.mark.parametrize(("kind", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_anything_that_is_an_autoencoder_is_judged(kind: type, top: int) -> None:
    pixels = noise(1, 24, 30, kind=kind)
    made, values = judge(Halves(), pixels)
    means = pixels.reshape(12, 2, 15, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert made.dtype == pixels.dtype
    assert made.shape == pixels.shape
    assert np.abs(made[0] - means).max() <= 0.51  # rounded
    apart = pixels.astype(float) - made
    assert values.l1 == pytest.approx(np.abs(apart).mean() * 2 / top, rel=1e-5)
    assert values.psnr == pytest.approx(10 * np.log10(top**2 / (apart**2).mean()), rel=1e-5)
    tiled, same = judge(Halves(), pixels, tile=8)  # it sees 2 x 2 pixels, so that tiles change nothing
    assert np.abs(tiled.astype(int) - made).max() <= (1 if top > 255 else 0)
    assert same.ssim == pytest.approx(values.ssim, abs=1e-5)


def test_equal_pictures_are_as_near_as_can_be() -> None:
    values = compared(noise(3, 20, 20), noise(3, 20, 20))
    assert (values.psnr, values.l1) == (float("inf"), 0)
    assert (values.ssim, values.ms_ssim) == pytest.approx((1, 1))


def test_the_table_says_what_the_files_show(reconstruct: Command, finished_run: Path, tmp_path: Path) -> None:
    """Names, numbers and pixels against the model called by hand; a folder, a .zip and one file in one request."""
    a = save(tmp_path / "set" / "cat" / "a.png", noise(8, 8))
    b = save(tmp_path / "set" / "b.png", noise(16, 12, 3, seed=1))
    (tmp_path / "set" / "notes.txt").write_text("no picture by its name")
    (tmp_path / "set" / "bad.png").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(a, "z.png")
    run = finished_run / "run"
    words = (run, "set", "more.zip", b, "--out", "out", "--json", "out.json")
    status, lines, said = reconstruct(*words)
    assert status == 0, said
    assert said.count("\n") == 1
    assert said.startswith("warning: set/bad.png is skipped: not a picture moyai reads")
    assert lines[0] == f"{run}: {GREY} at 8 x 8"
    assert {"2 files: brought from another size by 'crop'", "2 files: colour: turned to grey"} <= set(lines)
    assert "1 file: not a picture by its name: left out" in lines
    table = {line.split()[0]: line.split()[-4:] for line in lines if " x " in line and line.split()[-1][0].isdigit()}
    assert list(table)[-4:] == [
        "set/b.png",
        "set/cat/a.png",
        "more.zip/z.png",
        str(b) if len(str(b)) < 41 else f"...{str(b)[-37:]}",
    ]
    told = read_json(tmp_path / "out.json")
    assert [one["name"] for one in told["pictures"]] == ["set/b.png", "set/cat/a.png", "more.zip/z.png", str(b)]
    assert told["skipped"] == [{"name": "set/bad.png", "reason": said.split("is skipped: ")[1].strip()}]

    recipe, facts = models.described(run)
    model = models.read_first_stage(run, recipe, facts).eval()
    pixels = np.asarray(Image.open(a))[None]
    made, values = judge(model, pixels, precision=recipe.first_stage.train.precision)
    for one in (told["pictures"][1], told["pictures"][2]):  # the same picture twice
        assert one["psnr"] == pytest.approx(values.psnr, rel=1e-5)
        assert one["ms_ssim"] == pytest.approx(values.ms_ssim, rel=1e-5)
        assert (one["height"], one["width"], one["bits"], one["tile"], one["ms_ssim_scales"]) == (8, 8, 8, None, 1)
    assert table["set/cat/a.png"] == [
        f"{values.psnr:.2f}",
        *(f"{v:.4f}" for v in (values.ssim, values.ms_ssim, values.l1)),
    ]
    for name in ("psnr", "ssim", "ms_ssim", "l1"):
        assert told["mean"][name] == pytest.approx(np.mean([one[name] for one in told["pictures"]]))
    status, one_line, said = reconstruct(run, "set/b.png", "--out", "one.png")
    assert any(line.startswith("mean of 1 ") for line in one_line)
    assert any(line.startswith("mean of 4 ") and line.split()[3] == f"{told['mean']['psnr']:.2f}" for line in lines)
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert [f[:5] for f in files] == ["0001-", "0002-", "0003-", "0004-"]
    assert files[1] == "0002-cat-a.png"
    shown = np.asarray(Image.open(tmp_path / "out" / files[1]))
    row = sheet([Row("a", told["pictures"][1]["name"], pixels[0, ..., None], made[0, ..., None])])
    assert contains(shown, pixels[0].repeat(8, 0).repeat(8, 1))
    assert contains(shown, made[0].repeat(8, 0).repeat(8, 1))
    assert row.height == shown.shape[0]
    again = reconstruct(*words)
    assert again[1] == lines  # nothing is drawn at random
    assert read_json(tmp_path / "out.json") == told


def contains(canvas: np.ndarray, cell: np.ndarray) -> bool:
    views = np.lib.stride_tricks.sliding_window_view(canvas[:, :, None], (*cell.shape, 1))
    rows, columns = (views[:, :, 0, 0, 0, 0] == cell[0, 0]).nonzero()
    places = zip(rows, columns, strict=True)
    return any(np.array_equal(canvas[y : y + cell.shape[0], x : x + cell.shape[1]], cell) for y, x in places)


def test_pictures_keep_their_own_size_bits_and_channels_are_the_runs(
    reconstruct: Command, first_only: Path, tmp_path: Path
) -> None:
    deep = save(tmp_path / "deep.png", noise(11, 17, kind=np.uint16))
    save(tmp_path / "large.png", noise(20, 45, 3, seed=2))
    words = ("deep.png", "large.png", "--size", "native", "--tile", "32", "--json", "told.json")
    status, lines, said = reconstruct(first_only, *words)
    assert status == 0, said
    assert lines[0] == f"{first_only}: {GREY} at their own size"
    assert lines[1] == "1 file: colour: turned to grey"
    assert lines[2] == "1 file: in tiles of 32 that overlap by 8; normalisation and attention see one tile at a time"
    assert "MS-SSIM over 1 scale; " in lines[3]
    one, other = read_json(tmp_path / "told.json")["pictures"]
    assert (one["height"], one["width"], one["bits"], one["tile"]) == (11, 17, 16, None)
    assert (other["height"], other["width"], other["bits"], other["tile"]) == (20, 45, 8, 32)
    with Image.open(tmp_path / "reconstructions.png") as drawn:
        assert drawn.mode == "I;16"
        assert contains(np.asarray(drawn), np.asarray(Image.open(deep)))


def test_a_sheet_has_as_many_rows_as_fit_and_says_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidebyside, "MOST", 3)
    monkeypatch.setattr(sidebyside, "MAX_PIXELS", 3 * 3 * 10 * 10)
    for sizes, kept in (([10] * 5, 3), ([10, 11, 4], 1 + 1), ([30, 30], 1), ([10, 30], 1)):
        made = Sheet(tmp_path / "x.png")
        for side in sizes:
            picture = noise(side, side, 1)
            made.add(Row("", "", picture, picture))
        assert len(made.rows) == min(kept, len(sizes)), sizes
        (said,) = made.close()
        left = len(sizes) - len(made.rows)
        assert (f"; {left} more do not fit" in said) == (left > 0)


def test_the_difference_is_scaled_by_the_largest_power_of_two_that_fits() -> None:
    flat = np.zeros((4, 4, 1), np.uint8)
    for highest, times in ((0, 1), (1, 64), (3, 64), (4, 32), (60, 4), (127, 2), (128, 1), (255, 1)):
        assert gain([flat + np.uint8(highest)], 255) == times, highest
    spike = np.zeros((100, 100, 1), np.int32)
    spike[0, 0] = 255  # one value in ten thousand does not count
    assert gain([spike + 10, spike], 255) == 16
    original = noise(8, 8, 4)
    canvas = np.asarray(sheet([Row("", "", original, original - np.minimum(original, 3))]))
    assert canvas[..., 3].min() in (0, original[..., 3].min())
    assert (np.asarray(canvas)[12:, -20:, 3] == 255).all()  # a difference is opaque


def told_a_place(run: Path, data: dict[str, Any], report: dict[str, Any], *fields: str) -> None:
    """A run whose first stage, of random weights, is told a position."""
    from moyai.build.firststage import build_autoencoder
    from moyai.recipe import reading
    from moyai.recipe.resolve import DataFacts, resolve

    facts = DataFacts(channels=1, height=8, width=8, count=10, fields=fields)
    conditions = {"place": {"kind": "position", "width": 8}}
    fixed = {"first_stage.conditions": conditions, "prior.conditions": {}, "first_stage.train.steps": 1}
    recipe = resolve(tiny.recipe(run.parent, fixed | data), facts)
    model = build_autoencoder(recipe, facts)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=drawn))
    (run / "first_stage").mkdir(parents=True)
    (run / "recipe.json").write_text(reading.to_json(recipe))
    write_json_atomic(run / "data.json", {"facts": facts.model_dump(mode="json"), **report})
    tensors = {f"autoencoder.{name}": value for name, value in model.state_dict().items()}
    native.commit(run / "first_stage", "model", {"model": tensors}, {})


def test_a_first_stage_that_is_told_a_position(reconstruct: Command, tmp_path: Path) -> None:
    """It is null unless it is said, and then it changes what comes of the picture."""
    run = tmp_path / "run"
    told_a_place(run, {"data.resolution": 8}, {}, "position")
    save(tmp_path / "a.png", noise(8, 8))
    found = []
    for words in ((), ("--position", 0), ("--position", 0.5)):
        status, lines, said = reconstruct(run, "a.png", "--json", "told.json", *words)
        assert status == 0, said
        assert ("the first stage is not told: place; possible: --position X" in lines) == (not words)
        told = read_json(tmp_path / "told.json")
        assert told["not told"] == ([] if words else ["place"])
        found.append(told["pictures"][0]["l1"])
    assert len(set(found)) == 3


def test_slices_are_told_the_position_in_their_names(reconstruct: Command, tmp_path: Path) -> None:
    """Where the run learned from that layout, whose greatest number is in its report on the data."""
    run = tmp_path / "run"
    report = {"cases": {"slices": [2, 24], "positions": [0.0625, 0.75]}}  # of 33, of which a limit kept those
    oasis = {"data": {"kind": "oasis", "root": str(tmp_path)}}
    told_a_place(run, oasis, {"report": report}, "slice", "position")
    for n in (8, 16, 40):
        save(tmp_path / "some" / f"case_{n:03d}_slice_{n}.nii.png", noise(8, 8))

    def told(*words: object) -> tuple[list[str], list[Any]]:
        status, lines, said = reconstruct(run, "some", "--json", "told.json", *words)
        assert status == 0, said
        return lines, [(one["position"], one["psnr"]) for one in read_json(tmp_path / "told.json")["pictures"]]

    lines, named = told()
    assert [place for place, _ in named] == [0.25, 0.5, None]  # there is no slice 40 of 32
    assert {"2 files: told the position", "the first stage is not told: place; possible: --position X"} <= set(lines)
    assert named[0] == told("--position", 0.25)[1][0]
    assert named[1] == told("--position", 0.5)[1][1]
    assert len({psnr for _, psnr in named}) == 3
    assert not any("not told" in line for line in told("--position", 0.5)[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("{run}", "nowhere.png"),
            "nowhere.png does not exist; possible: pictures, folders of pictures, .zip files of",
        ),
        (("{run}", "a.png", "text.txt", "nowhere"), "nowhere does not exist"),
        (("{run}", "text.txt"), "text.txt: not a picture moyai reads"),
        (("{run}", "empty.png"), "empty.png: the file is empty: no picture is left to reconstruct"),
        (("{run}", "empty"), "empty: no pictures there"),
        (("{run}", "text.zip"), "text.zip is neither a folder nor a .zip of pictures"),
        (("{run}", "a.png", "--out", "x.jpg"), "--out x.jpg is no .png or folder; possible: reconstructions.png"),
        (("{run}", "a.png", "--out", "a.png"), "--out a.png is one of the pictures to reconstruct"),
        (("{run}", "a.png", "--out", "text.txt/x.png"), "text.txt cannot be made"),
        (("{run}", "a.png", "--json", "empty"), "--json empty is a folder"),
        (("{run}", "a.png", "--tile", "64"), "--tile is for pictures of their own size; possible: --size native"),
        (("{run}", "a.png", "--size", "native", "--tile", "63"), "a tile of 63 does not fit the factor 2"),
        (("{run}", "a.png", "--size", "native", "--tile", "2"), "tiles of 2 are one cell"),
        (("{run}", "a.png", "--position", "0.5"), "this first stage is not told a position"),
        (("{run}", "a.png", "--position", "1.5"), "--position 1.5 is outside the range; possible: 0 to 1"),
        (("{run}", "a.png", "--position", "nan"), "--position nan is outside the range"),
        (("nowhere", "a.png"), "nowhere does not exist; possible: a folder that `moyai train` made"),
        (("empty", "a.png"), "empty is no run (it has no recipe.json and data.json)"),
        (("pixels", "a.png"), 'pixels has no first stage (codec.kind = "pixels"): nothing to reconstruct with'),
        (("untrained", "a.png"), "first_stage holds no trained weights yet; `moyai train --stage first_stage`"),
    ],
)
def test_a_mistake_is_one_line(
    words: tuple[str, ...], said: str, reconstruct: Command, first_only: Path, tmp_path: Path
) -> None:
    save(tmp_path / "a.png", noise(8, 8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.txt", "text.zip"):
        (tmp_path / name).write_text("words")
    for name in ("untrained", "pixels"):
        (tmp_path / name).mkdir()
        shutil.copy(first_only / "data.json", tmp_path / name / "data.json")
        recipe = read_json(first_only / "recipe.json")
        if name == "pixels":
            recipe["codec"] = {"kind": "pixels"}
        (tmp_path / name / "recipe.json").write_text(json.dumps(recipe))
    before = sorted(tmp_path.rglob("*"))
    status, lines, err = reconstruct(*(word.format(run=first_only) for word in words))
    assert status == 2
    assert said in tiny.one_line(err)
    assert lines == []
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


@pytest.mark.parametrize("kind", ["vq", "vq2", "fsq"])
def test_every_kind_of_first_stage_is_judged(kind: str, reconstruct: Command, tmp_path: Path) -> None:
    codes = {"first_stage.grid": {"levels": [5, 5, 5]}} if kind == "fsq" else {"first_stage.codebook": {"size": 16}}
    if kind == "vq2":
        codes |= {"prior.kind": "codes", "prior.net": {"kind": "pixelcnn", "width": 8, "layers": 2}}
    recipe = tiny.recipe_file(
        tmp_path / "tiny.json", tiny.folder(tmp_path / "data"), {"first_stage.kind": kind, **codes}
    )
    run = tmp_path / "run"
    status, said = tiny.moyai(["train", recipe, "--out", run, "--stage", "first_stage"], tmp_path / "said")
    assert status == 0, said
    assert "alone is no sampler" in said
    status, lines, error = reconstruct(run, tmp_path / "data" / "disc" / "000.png", "--json", tmp_path / "r.json")
    assert (status, error) == (0, "")
    assert f"first stage of kind {kind}" in lines[0]
    assert read_json(tmp_path / "r.json")
    assert (tmp_path / "reconstructions.png").is_file()
