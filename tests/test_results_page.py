"""The pages of results: they say what docs/results/*.json hold, and nothing in them was altered by hand."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import results_figure
import results_page
import results_rows

from moyai.errors import DataError
from moyai.evaluation.assessment import REFERENCE
from moyai.evaluation.wording import MEANING
from moyai.files import read_json

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", [ROOT / "docs" / "results.md", ROOT / "README.md"], ids=lambda page: page.name)
def test_the_page_says_what_the_files_hold(page: Path) -> None:
    """Where this fails: python benchmarks/results.py --page-only."""
    text = page.read_text(encoding="utf-8")
    assert results_page.BLOCK.search(text)
    assert results_page.filled(text, results_page.read(ROOT / "docs" / "results")) == text


def test_a_number_altered_by_hand_is_found() -> None:
    measured = results_page.read(ROOT / "docs" / "results")
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    number = re.search(r"\| digits \|.*?(\d+\.\d+)", text)
    assert number
    altered = text[: number.start(1)] + "0.1" + text[number.end(1) :]
    assert results_page.filled(altered, measured) == text != altered


def test_the_files_hold_no_path_and_belong_to_rows() -> None:
    known = {row.name for row in results_rows.rows()}
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    private = re.compile(r"(?<![\w.])/(?:home|work|tmp|root|Users)\b")
    assert files
    assert private.search("--out /tmp/runs")
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert file.stem in known
        assert read_json(file)["row"] == file.stem
        assert not private.search(text)


def test_metrics_have_the_names_of_evaluations() -> None:
    assert set(results_page.METRICS) == set(MEANING)
    assert REFERENCE == 20_000  # what the hand-written text says


def test_a_block_nobody_makes_is_an_error() -> None:
    with pytest.raises(DataError, match="results:begin other: no such table; possible: readme, recipes"):
        results_page.filled("<!-- results:begin other -->\n<!-- results:end -->", {})


def test_what_stands_outside_the_blocks_is_kept() -> None:
    blocks = list(results_page.BLOCKS)
    page = "".join(f"# {n}\nwords\n<!-- results:begin {n} -->\nold\n<!-- results:end -->\n" for n in blocks)
    text = results_page.filled(page, {})
    assert [line for line in text.splitlines() if line.startswith("# ")] == [f"# {n}" for n in blocks]
    assert text.count("words") == len(blocks)
    assert "old" not in text
    assert results_page.filled(text, {}) == text


def test_a_ragged_mean_leaves_out_what_is_missing() -> None:
    assert results_page._mean([1.0, None, 2.0], 1) == "1.5 (1.0 to 2.0)"
    assert results_page._mean([2.0, 2.0], 1) == "2.0"
    assert results_page._mean([None], 1) == ""
    nothing = {"rows": {"samples": {}, "held out": {}}}
    assert np.isnan(results_figure._series([{**_point(), "evaluation": nothing}], "fid")[0].y[0])


def _point() -> dict[str, Any]:
    return {"overrides": ["first_stage.net.factor=4"], "minutes": 1.0}
