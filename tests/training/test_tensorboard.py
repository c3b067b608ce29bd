"""The log for TensorBoard says what the JSON lines say, also after a run was cut off and went on."""

from pathlib import Path

import pytest

import tiny
from moyai import log
from moyai.training.tensorboard import TensorBoard


def test_scalars_are_those_of_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = tiny.recipe_file(tmp_path / "r.json", tiny.folder(tmp_path / "data"))
    words = ["train", recipe, "first_stage.train.tensorboard=true", "--stage", "first_stage", "--out", tmp_path / "run"]
    status, said = tiny.moyai(words, tmp_path / "said")
    assert status == 0, said
    stage = tmp_path / "run" / "first_stage"
    events = accumulator.EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    for kind, name in (("train", "loss"), ("validation", "psnr")):
        steps, values = log.series(stage / "log.jsonl", kind, name)
        found = events.Scalars(f"{kind}/{name}")
        assert [event.step for event in found] == steps
        assert [event.value for event in found] == pytest.approx(values, rel=1e-6)


def test_what_came_after_the_checkpoint_is_hidden(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for begin, end in ((0, 6), (3, 8)):  # cut off at 6, gone on from a checkpoint at 3
        board = TensorBoard(tmp_path, step=begin)
        for step in range(begin + 1, end + 1):
            board.write({"step": step, "train": {"loss": 10.0 * begin + step}})
        board.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 34.0), (5, 35.0), (6, 36.0), (7, 37.0), (8, 38.0)]
