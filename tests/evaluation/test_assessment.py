"""A run judged as a whole: the table is complete, repeatable, beside its floor, and copies are named."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from moyai import tasks
from moyai.build.data import read_data
from moyai.checkpoints import models
from moyai.commands.evaluate import Options, evaluate
from moyai.console import Silent
from moyai.data import splits
from moyai.data.images import ImageSet, SourceFile, to_uint
from moyai.errors import DataError, RequestError
from moyai.evaluation import assessment, extractors, features, frechet, memorization, obedience, rows, wording
from moyai.evaluation.rows import Pictures
from moyai.evaluation.values import Features
from moyai.firststage import perceptual
from moyai.firststage.instruments import blurred
from moyai.training.run import train


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


@pytest.fixture(autouse=True)
def few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extractors, "own_extractor", functools.partial(extractors.own_extractor, steps=30))


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run / "run", tmp_path / "run"))


def images(count: int = 90, **changes: object) -> tuple[ImageSet, ImageSet]:
    """Shapes with classes, two thirds to train on and a third held out."""
    pixels, labels = tiny.shapes(count)
    made = ImageSet(
        pixels=pixels[:, None],
        fields={"class": labels.astype(np.int64)},
        classes=tiny.CLASSES,
        names=[f"{i}.png" for i in range(count)],
        files=(SourceFile("all", 1, "0" * 64),),
        **changes,  # type: ignore[arg-type]
    )
    return made.subset(np.arange(count * 2 // 3)), made.subset(np.arange(count * 2 // 3, count))


def test_the_table_is_complete_repeatable_and_in_the_report(run: Path) -> None:
    lines = list(evaluate(run, Silent(), Options(count=12, seed=5), {}))
    first = json.loads((run / "evaluation.json").read_text())
    assert list(evaluate(run, Silent(), Options(count=12, seed=5), {})) == lines
    assert json.loads((run / "evaluation.json").read_text()) == first
    found, names = wording.ordered(first)
    assert set(found) <= set(wording.ROWS)
    assert {"held out", "first stage", "samples"} <= set(found)
    assert {"fid", "kid", "precision", "recall", "density", "coverage", "class accuracy"} <= set(names)
    of_pairs = {"psnr", "ssim", "ms-ssim", "perceptual distance"}
    assert set(found["first stage"]) - set(found["held out"]) == of_pairs
    assert found["first stage"]["perceptual distance"]["source"] == first["facts"]["extractor"]
    for values in found.values():  # one extractor and one reference for all
        assert len({values[n]["source"] for n in ("fid", "kid", "recall")}) == 1
        assert values["fid"]["reference"] == first["facts"]["reference"]
    assert first["facts"]["samples"] == 12
    assert found["first stage"]["ms-ssim"]["metric"] == "ms-ssim (1 scale, window 7)"
    assert any("ms-ssim (1 scale, window 7)" in line for line in lines)
    assert all((run / "evaluation" / name).is_file() for name in ("worst.png", "worst-in-pixels.png", "neighbours.png"))
    train(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in html for name in ("fid", "class accuracy", "ssim"))


def test_copies_of_training_pictures_are_named(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = models.load(run)
    data = read_data(model.recipe.data, run)
    mine, theirs = (data.subset(index) for index in splits.split(data, model.recipe.data.validation))
    extractor = extractors.own_extractor(mine, run, silent)
    request = tasks.request(model, n=4)
    judge = functools.partial(assessment.assess, model, mine, theirs, extractor, request, cache=run, progress=silent)
    honest = judge()
    index = np.linspace(0, mine.count - 1, request.count).astype(np.int64)
    copies = to_uint(mine.images(index), bits=8)
    monkeypatch.setattr(tasks, "collect", lambda *request: copies)
    copied = judge()
    for space in ("features", "pixels"):
        found = copied.copies[space]
        assert found.close.value == 1.0
        assert len(found.worst) == 10
        assert all(match.training == index[match.sample] for match in found.worst)
        told = copied.plain()["copies"][space]
        assert told["close"] == request.count
        assert [one["training"] for one in told["worst"]] == [mine.names[index[m.sample]] for m in found.worst]
        assert honest.copies[space].close.value < 1.0
    # Those outside the part that all else is compared with are found too.
    monkeypatch.setattr(assessment, "REFERENCE", 20)
    monkeypatch.setattr(assessment, "NEIGHBOURHOOD", 10)
    few = judge()
    assert len(few.reference.features) == 20 < mine.count
    assert few.facts["searched for copies"] == few.facts["training"] == mine.count
    assert "against 10 of the 20 training pictures" in wording.neighbourhood(few.facts)
    for space in ("features", "pixels"):
        assert few.copies[space].close.value == 1.0
        assert all(match.training == index[match.sample] for match in few.copies[space].worst)
    monkeypatch.setattr(assessment, "SEARCHED", 30)
    assert judge().facts["searched for copies"] == 30
    # Real pictures are nearer to real ones than those of a model of 12 steps. (FID means nothing at 12 samples.)
    measure = "sliced wasserstein"
    assert copied.values["samples"][measure].value < honest.values["samples"][measure].value


def test_held_out_pictures_given_as_samples_are_at_the_floor(tmp_path: Path) -> None:
    mine, theirs = images(240)
    extractor = extractors.own_extractor(mine, tmp_path, silent)
    judges = obedience.judges(mine, tmp_path, silent)
    samples = Pictures(np.asarray(theirs.pixels[np.arange(theirs.count)]), {"class": theirs.fields["class"]})
    found = assessment.assess_pictures(samples, mine, theirs, extractor, judges=judges, cache=tmp_path, progress=silent)
    assert set(found.values) == {"held out", "samples"}
    for name, value in found.values["held out"].items():
        assert found.values["samples"][name] == value
    assert "class accuracy" in found.values["samples"]


def test_where_held_out_pictures_are_fewer_the_floor_has_a_column_of_its_count(tmp_path: Path) -> None:
    mine, theirs = images()
    extractor = extractors.own_extractor(mine, tmp_path, silent)
    pixels, labels = tiny.shapes(75, seed=3)
    samples = Pictures(pixels[:, None], {"class": labels.astype(np.int64)})
    found = assessment.assess_pictures(samples, mine, theirs, extractor, cache=tmp_path, progress=silent)
    assert list(found.values) == ["held out", "as many samples", "samples"]
    for name, value in found.values["as many samples"].items():
        assert value.count == found.values["held out"][name].count == theirs.count
        assert "held-out pictures are fewer" not in value.warning
    told = found.values["samples"]
    assert told["fid"].count == 75
    for name in ("fid", "precision", "recall", "coverage", "sliced wasserstein"):
        assert "30 held-out pictures are fewer than 75 samples" in told[name].warning
    assert "held-out" not in told["kid"].warning  # which depends on no count
    # ... and those chosen for that column are spread over the samples, not their beginning
    spread = np.linspace(0, 74, 30).astype(np.int64)
    again = assessment.assess_pictures(samples.rows(spread), mine, theirs, extractor, cache=tmp_path, progress=silent)
    assert again.values["samples"]["kid"] == found.values["as many samples"]["kid"]


def test_counts_that_say_nothing_are_warned_of(tmp_path: Path) -> None:
    mine, theirs = images()
    extractor = extractors.own_extractor(mine, tmp_path, silent)
    samples = Pictures(np.asarray(theirs.pixels[np.arange(theirs.count)]))
    values = assessment.assess_pictures(samples, mine, theirs, extractor, cache=tmp_path, progress=silent).values
    told = {name: value.warning for name, value in values["samples"].items()}
    assert "30 samples for 128 features" in told["fid"]
    assert "too few to extrapolate" in told["fid-infinity"] or "no line in 1/N" in told["fid-infinity"]
    assert "neighbourhoods of 30 pictures say little" in told["precision"]
    assert told["class confidence"] == ""  # ten of each class
    assert "between 30 pictures and others of their own kind it is large already" in told["sliced wasserstein"]


def test_a_second_evaluation_computes_neither_features_nor_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = images()
    extractor = extractors.own_extractor(mine, tmp_path, silent)
    samples = Pictures(np.asarray(theirs.pixels[np.arange(theirs.count)]))
    judge = functools.partial(
        assessment.assess_pictures, train=mine, held_out=theirs, extractor=extractor, cache=tmp_path, progress=silent
    )
    searches: list[int] = []
    search = memorization.nearest
    monkeypatch.setattr(memorization, "nearest", lambda *a, **k: (searches.append(len(a[0])), search(*a, **k))[1])
    first = judge(samples).plain()
    assert len(searches) == 4  # of samples and of held-out pictures, in features and in pixels
    searches.clear()

    def never(*given: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(features, "_computed", never)
    monkeypatch.setattr(frechet.Statistics, "of", never)
    monkeypatch.setattr(frechet, "_root", never)
    assert judge(samples).plain() == first
    assert len(searches) == 2  # the control's distances are kept
    with pytest.raises(AssertionError, match="computed again"):  # other pictures are computed
        judge(Pictures(samples.pixels[::-1].copy()))


def test_statistics_that_are_damaged_or_anothers_are_made_again(tmp_path: Path) -> None:
    mine, _ = images()
    extractor = extractors.own_extractor(mine, tmp_path, silent)
    pixels = np.asarray(mine.pixels[np.arange(mine.count)])
    found = features.extract(extractor, pixels, cache=tmp_path)
    expected = features.statistics(found)
    assert features.statistics(found, cache=tmp_path).scatter.equal(expected.scatter)
    (path,) = (tmp_path / "features").rglob("*.statistics.safetensors")
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"", whole.replace(b"mean", b"mode"), whole.replace(b"root", b"stem")):
        path.write_bytes(damaged)
        assert features.statistics(found, cache=tmp_path).scatter.equal(expected.scatter)
        assert path.read_bytes() == whole
    assert features.statistics(found, cache=tmp_path).mean.equal(expected.mean)
    unknown = Features(found.values, found.source)  # of pictures that nobody knows: never from the cache
    path.write_bytes(b"")
    assert features.statistics(unknown, cache=tmp_path).mean.equal(expected.mean)
    assert path.read_bytes() == b""


def test_statistics_of_a_part_are_not_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = images(240)
    extractor = extractors.own_extractor(mine, tmp_path, silent)
    samples = features.extract(extractor, np.asarray(theirs.pixels[np.arange(theirs.count)]))
    whole = assessment._reference(mine, extractor, tmp_path, silent)
    monkeypatch.setattr(assessment, "REFERENCE", 20)
    for _ in range(2):  # made, and from the cache
        part = assessment._reference(mine, extractor, tmp_path, silent)
        assert len(part.features) == 20
        found = frechet.fid(samples, part.statistics, replicates=0).value.value
        expected = frechet.fid(samples, frechet.Statistics.of(part.features.values, extractor.source), replicates=0)
        assert found == pytest.approx(expected.value.value, rel=1e-6)
        assert found != pytest.approx(frechet.fid(samples, whole.statistics, replicates=0).value.value, rel=1e-2)


def test_a_reference_of_another_extractor_is_refused(tmp_path: Path) -> None:
    mine, theirs = images()
    one = extractors.own_extractor(mine, tmp_path, silent)
    two = extractors.own_extractor(mine, tmp_path, silent, seed=1)
    reference = assessment._reference(mine, one, tmp_path, silent)
    assert reference.pixels.stored is mine.pixels.stored  # rows of the data set, no copy
    samples = Pictures(np.asarray(theirs.pixels[np.arange(theirs.count)]))
    with pytest.raises(RequestError, match="make both with one extractor") as error:
        rows.measure(features.extract(two, samples.pixels), reference, samples, {})
    assert error.value.status == 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ((20, 1, 9, 8), np.uint8, "9 x 8 with 1 channel(s) of 8 bits"),
        ((20, 3, 8, 8), np.uint8, "8 x 8 with 3 channel(s) of 8 bits"),
        ((20, 1, 8, 8), np.uint16, "8 x 8 with 1 channel(s) of 16 bits"),
    ],
)
def test_pictures_of_another_kind_are_refused_with_both_said(
    tmp_path: Path, shape: tuple[int, ...], dtype: type, said: str
) -> None:
    mine, theirs = images()
    extractor = extractors.own_extractor(mine, tmp_path, silent)
    with pytest.raises(DataError) as error:
        assessment.assess_pictures(
            Pictures(np.zeros(shape, dtype)), mine, theirs, extractor, cache=tmp_path, progress=silent
        )
    assert said in str(error.value)
    assert "the reference is 8 x 8 with 1 channel(s) of 8 bits" in str(error.value)


def test_positions_are_judged_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obedience, "STEPS", 20)
    pixels, _ = tiny.shapes(90)
    position = pixels[:, 4, 4] / 255
    made = ImageSet(
        pixels[:, None], {"position": position}, (), [str(i) for i in range(90)], (SourceFile("x", 1, "0"),)
    )
    mine, theirs = made.subset(np.arange(60)), made.subset(np.arange(60, 90))
    extractor, judges = extractors.own_extractor(mine, tmp_path, silent), obedience.judges(mine, tmp_path, silent)
    judge = functools.partial(
        assessment.assess_pictures,
        train=mine,
        held_out=theirs,
        extractor=extractor,
        judges=judges,
        cache=tmp_path,
        progress=silent,
    )
    unasked = judge(Pictures(pixels[60:, None]), again=pixels[60:, None]).values
    assert "position error" not in unasked["samples"]
    assert unasked["held out"]["position error"].count == 30
    assert unasked["first stage"]["position error"] == unasked["held out"]["position error"]
    asked = judge(Pictures(pixels[60:, None], {"position": position[60:]})).values
    assert asked["samples"]["position error"] == unasked["held out"]["position error"]


def test_copies_are_judged_by_group(tmp_path: Path) -> None:
    """Held-out slices of a case that is on both sides are its neighbours' copies: without groups they hide all."""
    pixels, _ = tiny.shapes(60)
    noise = np.random.default_rng(1).integers(0, 2, pixels.shape).astype(np.uint8)
    made = ImageSet(
        pixels=np.concatenate([pixels, pixels + noise])[:, None],
        fields={},
        classes=(),
        names=[str(i) for i in range(120)],
        files=(SourceFile("all", 1, "0" * 64),),
        groups=np.tile(np.arange(60), 2),
    )
    mine, theirs = made.subset(np.arange(60)), made.subset(np.arange(60, 120))
    extractor = extractors.own_extractor(mine, tmp_path, silent)
    again = np.clip(pixels[:30].astype(np.int64) + np.random.default_rng(2).integers(0, 3, (30, 8, 8)), 0, 255)
    samples = Pictures(again.astype(np.uint8)[:, None])
    found = assessment.assess_pictures(samples, mine, theirs, extractor, cache=tmp_path, progress=silent)
    assert found.copies["pixels"].close.value == 1.0
    assert found.copies["pixels"].by_group == dict.fromkeys(range(30), 1)
    assert all(match.group == match.sample for match in found.copies["pixels"].worst)
    assert found.plain()["copies"]["pixels"]["by_group"] == {str(i): 1 for i in range(30)}


def test_slices_of_one_person_are_said_to_be_alike() -> None:
    facts = {"held out": 263, "groups held out": 13}
    assert wording.grouped(facts).startswith("the 263 held-out pictures are of 13 groups, and those of a group are")
    assert wording.grouped({"held out": 263, "groups held out": 263}) == ""
    assert wording.grouped({"held out": 263}) == ""


def test_large_pictures_are_averaged_before_copies_are_looked_for() -> None:
    pixels = np.arange(2 * 3 * 80 * 90, dtype=np.int64).reshape(2, 3, 80, 90) % 251
    small = rows._small(pixels.astype(np.uint8))
    assert small.shape == (2, 3, 26, 30)
    expected = pixels[:, :, :78].reshape(2, 3, 26, 3, 30, 3).mean((3, 5))
    assert float(np.abs(small - expected).max()) <= 0.5
    assert rows._small(small) is small


def test_reconstructions_that_are_the_originals_are_perfect() -> None:
    pixels = tiny.shapes(20, side=32)[0][:, None]
    noisy = np.clip(pixels.astype(np.int64) + np.random.default_rng(0).integers(-9, 10, pixels.shape), 0, 255)
    assert rows.fidelity(pixels, pixels)["psnr"].value == pytest.approx(10 * np.log10(255**2 * 32 * 32), abs=1e-3)
    perfect, worse = rows.fidelity(pixels, pixels), rows.fidelity(pixels, noisy.astype(np.uint8))
    assert perfect["ssim"].value == pytest.approx(1, abs=1e-5)
    assert perfect["ms-ssim"].value == pytest.approx(1, abs=1e-5)
    assert perfect["ms-ssim"].metric == "ms-ssim (2 scales, window 11)"
    mse = np.square(noisy - pixels.astype(np.float64)).mean((1, 2, 3))
    assert worse["psnr"].value == pytest.approx(float((10 * np.log10(255**2 / mse)).mean()), abs=1e-3)
    assert 0 < worse["ssim"].value < worse["ms-ssim"].value < 1


def test_the_perceptual_distance_of_reconstructions_is_that_of_the_judges_maps(tmp_path: Path) -> None:
    mine, theirs = images()
    judge = extractors.own_extractor(mine, tmp_path, silent)
    real = np.asarray(theirs.pixels[np.arange(theirs.count)])
    noisy = np.clip(real.astype(np.int64) + np.random.default_rng(0).integers(-40, 40, real.shape), 0, 255)
    again = noisy.astype(np.uint8)
    assert rows.perceptual_distance(real, real, judge).value == pytest.approx(0, abs=1e-6)
    found = rows.perceptual_distance(real, again, judge)
    terms = []
    with torch.no_grad():  # the mean over layers and places of the squared distance of unit vectors
        for x, y in zip(*(judge.trunk.features(features.to_images(p)) for p in (real, again)), strict=True):
            x, y = (f / (f.norm(dim=1, keepdim=True) + perceptual.OWN_EPS) for f in (x, y))
            terms.append((x - y).square().sum(1).mean((1, 2)))
    each = torch.stack(terms).mean(0)
    assert found.value == pytest.approx(float(each.mean()), rel=1e-3)
    assert found.error == pytest.approx(float(each.std()) / 30**0.5, rel=1e-3)
    assert found.source == judge.source


def test_pairs_of_the_floor_are_chosen_as_those_of_the_samples(tmp_path: Path) -> None:
    """Samples of unknown class are paired with any other; real ones of one class would be a floor of something else."""
    mine, theirs = images(240)
    extractor = extractors.own_extractor(mine, tmp_path, silent)
    real = np.asarray(theirs.pixels[np.arange(theirs.count)])
    judge = functools.partial(
        assessment.assess_pictures, train=mine, held_out=theirs, extractor=extractor, cache=tmp_path, progress=silent
    )
    untold = judge(Pictures(real)).values
    assert untold["samples"]["ms-ssim of pairs"] == untold["held out"]["ms-ssim of pairs"]
    told = judge(Pictures(real, {"class": theirs.fields["class"]})).values
    assert told["samples"]["ms-ssim of pairs"] == told["held out"]["ms-ssim of pairs"]
    assert "of one class" in told["samples"]["ms-ssim of pairs"].metric
    assert told["held out"]["ms-ssim of pairs"].value > 1.2 * untold["held out"]["ms-ssim of pairs"].value


# What spoils pictures, and which measure says so ----------------------------------------------------------------------


def spoiled(how: str, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Real pictures, as many, spoiled in one way."""
    if how == "noise":
        noise = np.random.default_rng(1).normal(0, 100, pixels.shape)
        return (pixels + noise).clip(0, 255).astype(np.uint8)
    if how == "blur":
        return to_uint(blurred(torch.from_numpy(pixels / 127.5 - 1).float(), 1.2), bits=8).transpose(0, 3, 1, 2)
    kept = np.flatnonzero(labels != 0) if how == "a class is missing" else np.arange(6)
    return pixels[np.resize(kept, len(pixels))]  # else: few pictures, again and again


@pytest.mark.parametrize(
    ("how", "falls"),
    [
        ("noise", ("precision", "coverage", "density")),
        ("blur", ("coverage",)),
        ("a class is missing", ("coverage", "recall")),
        ("six pictures", ("coverage", "recall")),
    ],
)
def test_what_spoils_pictures_moves_the_measures(how: str, falls: tuple[str, ...], tmp_path: Path) -> None:
    mine, theirs = images(600)
    extractor = extractors.own_extractor(mine, tmp_path, silent, steps=60)
    real = np.asarray(theirs.pixels[np.arange(theirs.count)])
    fresh, _ = tiny.shapes(len(real), seed=9)
    judge = functools.partial(
        assessment.assess_pictures, train=mine, held_out=theirs, extractor=extractor, cache=tmp_path, progress=silent
    )
    good = judge(Pictures(fresh[:, None])).values["samples"]
    bad = judge(Pictures(spoiled(how, real, theirs.fields["class"]))).values["samples"]
    for measure, more in (("fid", 1.5), ("sliced wasserstein", 1.2)):
        assert bad[measure].value > more * good[measure].value, measure
    if how != "six pictures":  # their mean, which is what KID compares, is near that of all
        assert bad["kid"].value > max(good["kid"].value, 0) + 3 * bad["kid"].error
    for measure in falls:
        assert bad[measure].value < 0.9 * good[measure].value, measure
    if how == "six pictures":
        assert bad["ms-ssim of pairs"].value > good["ms-ssim of pairs"].value
