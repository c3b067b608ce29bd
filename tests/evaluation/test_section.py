"""The section says what the files say: read back from the page, with every file, with few, with those of old runs."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from moyai import pictures
from moyai.evaluation import page, section, snapshots

SVG = "{http://www.w3.org/2000/svg}"
OLD_KEYS = ("value", "low", "high", "error", "count", "reference", "warning", "source")
CLOSE = "share closer than the control's 1st percentile"


def value(number: float, count: int = 200, **changes: Any) -> dict[str, Any]:
    """A value with the keys the first evaluations had."""
    low, high = 0.9 * number, 1.1 * number
    told = (number, low, high, None, count, 5000, "", "own (abc)")
    return dict(zip(OLD_KEYS, told, strict=True)) | changes


def row(fid: float, precision: float, recall: float, **more: Any) -> dict[str, Any]:
    return {"fid": value(fid), "precision": value(precision), "recall": value(recall), **more}


def evaluated(run: Path, **samples: Any) -> Path:
    """A run's folder with an evaluation in it."""
    rows = {"held out": row(0.5, 0.9, 0.95), "first stage": row(1.25, 0.8, 0.85), "samples": row(4.0, 0.7, 0.6)}
    rows["samples"] |= samples
    facts = {"extractor": "own (abc)", "samples": 200, "held out": 200, "reference": 5000}
    (run / "evaluation.json").write_text(json.dumps({"rows": rows, "facts": facts}))
    return run


def with_steps(run: Path, *fids: float, **changes: Any) -> Path:
    steps = [
        {"step": 100 * (i + 1), "values": {n: v | changes for n, v in row(fid, 0.1 * i, 0.05 * i).items()}}
        for i, fid in enumerate(fids)
    ]
    (run / "evaluation").mkdir(exist_ok=True)
    facts = {"extractor": "own (abc)", "reference": {"count": 5000, "sha256": "..."}}
    (run / snapshots.FILE).write_text(json.dumps({"facts": facts, "steps": steps}))
    return run


def charts(blocks: list[page.Block]) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(block.svg) for block in blocks if isinstance(block, page.Chart)]
    return {next(root.iter(f"{SVG}text")).text or "": root for root in found}


def told(root: ElementTree.Element) -> dict[str, list[float]]:
    """What a chart says aloud of each series: its first and last value."""
    found = re.findall(r"(?:: |; )([^;:]+?) from (\S+) to ([^,]+),", root.get("aria-label", ""))
    return {name: [float(first), float(last)] for name, first, last in found}


def texts(blocks: list[page.Block], kind: type = page.Text) -> str:
    return "\n".join(block.text for block in blocks if isinstance(block, kind))


def test_a_run_that_was_not_evaluated_has_no_section(tmp_path: Path) -> None:
    assert section.blocks(with_steps(tmp_path, 3.0, 2.0)) == []
    assert section.made_of(tmp_path) == {
        "evaluation/snapshots.json": section.made_of(tmp_path)["evaluation/snapshots.json"]
    }


def test_an_evaluation_of_before_has_its_table_its_chart_and_no_more(tmp_path: Path) -> None:
    blocks = section.blocks(evaluated(tmp_path))
    assert [type(block) for block in blocks] == [page.Text, page.Table, page.Table, page.Chart]
    table, meanings = (block for block in blocks if isinstance(block, page.Table))
    assert table.headers == ("", "held out", "first stage", "samples")
    fid = next(cells for cells in table.rows if cells[0] == "fid")
    assert fid[1:] == ("0.5 (0.45 to 0.55)", "1.25 (1.12 to 1.38)", "4 (3.6 to 4.4)")
    assert [cells[0] for cells in meanings.rows] == [cells[0] for cells in table.rows] == ["fid", "precision", "recall"]
    assert "lower is better" in str(meanings.rows[0][1])
    assert "200 samples and 200 held-out pictures against 5,000 training pictures" in table.caption
    assert table.note == "Features: own (abc)."
    result = json.loads((tmp_path / "evaluation.json").read_text())
    result["facts"]["extractor is able to"] = "tell the class of 92 % of pictures it was not trained on"
    result["facts"]["likelihood"] = {"value": 3.5, "error": 0.1, "unit": "bits/dim", "pictures": 128}
    result["rows"]["samples"]["precision"] |= {"metric": "precision (k = 3)"}
    result["rows"]["samples"] |= {"age error": value(2.0), "mask mIoU": value(0.7), "perceptual distance": value(0.1)}
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    table, meanings = (block for block in section.blocks(tmp_path) if isinstance(block, page.Table))
    assert "This extractor can tell the class of 92 % of pictures" in table.note
    assert "With: precision (k = 3)." in table.note
    assert "A held-out picture costs the prior 3.5 ± 0.1 bits/dim (128 pictures; an upper bound)." in table.note
    for training, told in ((3.4, "3.4 ± 0.1."), (3.0, "3 ± 0.1: more than chance apart, it knows those better.")):
        result["facts"]["likelihood of training pictures"] = result["facts"]["likelihood"] | {"value": training}
        (tmp_path / "evaluation.json").write_text(json.dumps(result))
        table, _ = (block for block in section.blocks(tmp_path) if isinstance(block, page.Table))
        assert f"(128 pictures; an upper bound), a training picture {told}" in table.note
    said = {str(name): str(text) for name, text in meanings.rows}
    assert set(said) == {str(cells[0]) for cells in table.rows}  # a sentence for every number
    assert "the age asked for" in said["age error"]
    assert "the mask asked for" in said["mask mIoU"]
    page.page("title", "", [page.Section("Evaluation", blocks)])


def test_each_warning_is_said_once_with_the_values_it_is_about(tmp_path: Path) -> None:
    few = {"warning": "few pictures"}
    run = evaluated(tmp_path, fid=value(1.0, **few), kid=value(1.0, **few), precision=value(0.5, warning="<other>"))
    blocks = section.blocks(run)
    assert texts(blocks, page.Warning).splitlines() == ["fid, kid: few pictures.", "precision: <other>."]
    more = {f"metric {i}": value(1.0, warning=f"reason {i}") for i in range(4)}
    blocks = section.blocks(evaluated(tmp_path, **more))
    assert texts(blocks, page.Warning).startswith("4 reservations")
    table = next(block for block in blocks if isinstance(block, page.Table) and block.caption == "Reservations")
    assert table.rows == [(f"metric {i}", f"reason {i}.") for i in range(4)]


def test_precision_is_drawn_against_recall_for_every_row_and_every_step(tmp_path: Path) -> None:
    root = charts(section.blocks(with_steps(evaluated(tmp_path), 9.0, 6.0, 4.0)))["Precision against recall"]
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert {"held out", "first stage", "samples", "0", "1.0"} <= set(labels)
    dots = {(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter(f"{SVG}circle")}
    assert len(dots) == 2 + 3 + 1
    # From the places of the floor and of step 100, which is at (0, 0), the place of the samples follows.
    (x0, y1), (x1, y0) = (
        (min(d[0] for d in dots), min(d[1] for d in dots)),
        (max(d[0] for d in dots), max(d[1] for d in dots)),
    )
    expected = (x0 + (x1 - x0) * 0.6 / 0.95, y0 + (y1 - y0) * 0.7 / 0.9)
    assert min(np.hypot(x - expected[0], y - expected[1]) for x, y in dots) < 0.2


def test_fid_is_drawn_against_the_step_beside_the_floor(tmp_path: Path) -> None:
    blocks = section.blocks(with_steps(evaluated(tmp_path), 9.0, 6.0, 4.0))
    found = told(charts(blocks)["FID against training step"])
    assert found == {"samples": [9, 4], "first stage": [1.25, 1.25], "held out (the floor)": [0.5, 0.5]}
    table = next(block for block in blocks if isinstance(block, page.Table) and block.headers[0] == "step")
    assert [cells[0] for cells in table.rows] == ["100", "200", "300"]
    assert table.rows[2][1] == "4 (3.6 to 4.4)"


@pytest.mark.parametrize("changes", [{"source": "another (def)"}, {"reference": 100}, {"count": 201}])
def test_steps_that_cannot_be_compared_with_the_floor_stand_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = charts(section.blocks(with_steps(evaluated(tmp_path), 9.0, 4.0, **changes)))
    assert list(told(found["FID against training step"])) == ["samples"]
    assert len(list(found["Precision against recall"].iter(f"{SVG}circle"))) == 3


@pytest.mark.parametrize(
    "other", [{"request": {"seed": 1}}, {"extractor": "inception (def)"}, {"reference": {"count": 100}}, {}]
)
def test_steps_of_another_request_extractor_or_reference_are_not_shown(tmp_path: Path, other: dict[str, Any]) -> None:
    run = with_steps(evaluated(tmp_path), 9.0, 4.0)
    stored = json.loads((run / snapshots.FILE).read_text())
    (run / snapshots.FILE).write_text(json.dumps({**stored, "facts": stored["facts"] | other}))
    assert ("FID against training step" in charts(section.blocks(run))) is (other == {})


def test_an_evaluation_of_another_model_is_named_and_not_shown(tmp_path: Path) -> None:
    run = evaluated(tmp_path)
    result = json.loads((run / "evaluation.json").read_text())
    result["facts"]["model_hash"] = "then"
    (run / "evaluation.json").write_text(json.dumps(result))
    (block,) = section.blocks(run, "now")
    assert isinstance(block, page.Warning)
    assert "of the model as it was before" in block.text
    assert len(section.blocks(run, "then")) > 1


def test_other_data_are_named(tmp_path: Path) -> None:
    run = evaluated(tmp_path)
    assert "Judged against" not in texts(section.blocks(run), page.Warning)
    result = json.loads((run / "evaluation.json").read_text())
    result["facts"]["against"] = "elsewhere.zip"
    (run / "evaluation.json").write_text(json.dumps(result))
    assert "Judged against elsewhere.zip, not against the data of this run" in texts(section.blocks(run), page.Warning)


def test_a_sheet_of_another_evaluation_is_not_shown_beside_these_numbers(tmp_path: Path) -> None:
    run = evaluated(tmp_path)
    (run / "evaluation").mkdir()
    sheet = run / "evaluation" / "neighbours.png"
    sheet.write_bytes(b"one")
    result = json.loads((run / "evaluation.json").read_text())
    result["facts"]["sheets"] = {"neighbours.png": hashlib.sha256(b"one").hexdigest()}
    (run / "evaluation.json").write_text(json.dumps(result))
    assert any(isinstance(block, page.Picture) for block in section.blocks(run))
    sheet.write_bytes(b"another")
    blocks = section.blocks(run)
    assert not any(isinstance(block, page.Picture) for block in blocks)
    assert "neighbours.png is of another evaluation" in texts(blocks, page.Warning)


def test_one_step_makes_no_curve_and_a_wide_range_is_logarithmic(tmp_path: Path) -> None:
    assert list(charts(section.blocks(with_steps(evaluated(tmp_path), 4.0)))) == ["Precision against recall"]
    root = charts(section.blocks(with_steps(evaluated(tmp_path), 50.0, 4.0)))["FID against training step"]
    assert any("logarithmic" in (text.text or "") for text in root.iter(f"{SVG}text"))


@pytest.mark.parametrize(
    ("close", "held_out", "words"),
    [  # of 200 beside 200 the most by chance are 9, and 1.5 % are expected; beside 20,000 they are 5 and 1 %
        (value(0.05), 200, ("In features, 10 of 200 samples (5 %)", "1.5 % is expected", "more than chance explains")),
        (value(0.03, low=0.013), 200, ("6 of 200 samples (3 %)", "the 200 held-out", "Chance can explain that.")),
        (value(0.025), 20_000, ("1 % is expected", "Chance can explain that.")),
        (value(0.03), 20_000, ("1 % is expected", "That is more than chance explains (5 at most in 97.5 % of cases).")),
        (
            value(0.0, source="pixels 8 x 8 x 1, 8 bit"),
            200,
            ("In pixels, 0 of 200 samples (0 %)", "That is no more than expected."),
        ),
    ],
)
def test_copies_are_told_in_a_sentence(
    tmp_path: Path, close: dict[str, Any], held_out: int, words: tuple[str, ...]
) -> None:
    run = evaluated(tmp_path, **{CLOSE: close})
    result = json.loads((run / "evaluation.json").read_text())
    result["facts"]["held out"] = held_out
    (run / "evaluation.json").write_text(json.dumps(result))
    said = texts(section.blocks(run))
    assert all(word in said for word in (*words, "closer to a training picture than 99 % of the"))
    assert sum(said.count(verdict) for verdict in ("more than chance", "no more than", "Chance can")) == 1


def test_copies_among_held_out_pictures_and_groups_excuse_close_samples(tmp_path: Path) -> None:
    """As many samples as held-out pictures lie on training pictures; and slices of few people give no verdict."""
    run = evaluated(tmp_path, **{CLOSE: value(0.05)})
    result = json.loads((run / "evaluation.json").read_text())
    for changes, words in (
        ({"copies": {"features": {"border": 0.0, "within": 10.0}}}, ("5 % is expected", "Chance can explain that.")),
        ({"facts": {"groups held out": 200}}, ("1.5 % is expected", "more than chance explains")),
        (
            {"facts": {"groups held out": 4}},
            ("cannot be told: the 200 held-out pictures are of 4 groups, and those of a group are alike.",),
        ),
    ):
        changed = result | changes | {"facts": result["facts"] | changes.get("facts", {})}
        (run / "evaluation.json").write_text(json.dumps(changed))
        said = texts(section.blocks(run))
        assert all(word in said for word in words), said
        assert ("chance explains" in said) == ("more than chance explains" in words)


def test_the_nearest_are_named_and_close_ones_counted_by_group(tmp_path: Path) -> None:
    run = evaluated(tmp_path)
    result = json.loads((run / "evaluation.json").read_text())
    worst = [
        {"sample": 7, "training": "a/<1>.png", "distance": 0.125, "group": 3},
        {"sample": 2, "training": "b.png", "distance": 2.0, "group": 11},
    ]
    by_group = {str(group): 20 - group for group in range(12)}
    result["copies"] = {"features": {"border": 0.25, "close": 1, "worst": worst, "by_group": by_group}}
    result["facts"]["request"] = {"seed": 1000}
    (run / "evaluation.json").write_text(json.dumps(result))
    named, groups = [block for block in section.blocks(run) if isinstance(block, page.Table)][2:]
    assert named.headers == ("seed of the sample", "training picture", "group", "distance")
    assert named.rows == [("1007", "a/<1>.png", "3", 0.125), ("1002", "b.png", "11", 2.0)]
    assert "border: 0.25" in named.caption
    assert groups.rows == [(str(group), 20 - group) for group in range(10)]
    assert groups.note == "The first 10 of 12 groups."
    for match in worst:  # pictures that were given have no seeds, and most data have no groups
        match["group"] = None
    del result["facts"]["request"], result["copies"]["features"]["by_group"]
    (run / "evaluation.json").write_text(json.dumps(result))
    (named,) = [block for block in section.blocks(run) if isinstance(block, page.Table)][2:]
    assert named.headers == ("sample", "training picture", "distance")
    assert named.rows[0] == ("7", "a/<1>.png", 0.125)
    # ... and those in pixels, which no extractor can blind
    result["copies"]["pixels"] = {"border": 9.0, "close": 0, "worst": [{**worst[1], "distance": 8.5}]}
    (run / "evaluation.json").write_text(json.dumps(result))
    _, named = [block for block in section.blocks(run) if isinstance(block, page.Table)][2:]
    assert named.caption == "The samples nearest to a training picture in pixels (border: 9)"
    assert named.rows == [("2", "b.png", 8.5)]


def test_a_floor_of_fewer_pictures_is_explained(tmp_path: Path) -> None:
    run = evaluated(tmp_path)
    assert "as many samples" not in texts(section.blocks(run))
    assert '"First stage" is what' in texts(section.blocks(run))
    result = json.loads((run / "evaluation.json").read_text())
    result["rows"]["as many samples"] = row(5.0, 0.6, 0.5)
    (run / "evaluation.json").write_text(json.dumps(result))
    assert 'given for "as many samples" too' in texts(section.blocks(run))
    del result["rows"]["first stage"]  # as of a model of pixels
    (run / "evaluation.json").write_text(json.dumps(result))
    assert "irst stage" not in texts(section.blocks(run))


def test_the_sheets_are_shown_where_they_are(tmp_path: Path) -> None:
    run = evaluated(tmp_path, **{CLOSE: value(0.02), f"{CLOSE} (pixels)": value(0.03, source="pixels 8 x 8 x 1")})
    data = {
        name: pictures.png_bytes(np.full((4, 4, 1), grey, np.uint8))
        for grey, name in enumerate(("worst", "worst-in-pixels", "neighbours"))
    }
    before = section.made_of(run)
    for name, content in data.items():
        pictures.write_bytes(run / "evaluation" / f"{name}.png", content)
    blocks = section.blocks(run)
    assert [block.data for block in blocks if isinstance(block, page.Picture)] == list(data.values())
    assert "Are the samples copies? In features, 4 of 200" in texts(blocks)
    assert "In pixels, 6 of 200" in texts(blocks)
    assert set(section.made_of(run)) - set(before) == {f"evaluation/{name}.png" for name in data}
    html = page.page("title", "", [page.Section("Evaluation", blocks)])
    assert html.count("data:image/png;base64,") == 3


def test_what_it_is_made_of_changes_with_any_file(tmp_path: Path) -> None:
    run = with_steps(evaluated(tmp_path), 3.0, 2.0)
    first = section.made_of(run)
    assert section.made_of(run) == first
    with_steps(run, 3.0, 2.5)
    second = section.made_of(run)
    assert {name for name in second if second[name] != first[name]} == {"evaluation/snapshots.json"}
