"""The averages a run keeps: all of them, each once, whole, and none of them disturbs the model they are laid into."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from moyai import tasks
from moyai.checkpoints import averages, models, native
from moyai.errors import CheckpointError


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run / "run", tmp_path / "run"))


def test_snapshots_checkpoints_and_the_last_are_found_once_by_step(run: Path) -> None:
    found = averages.kept(run)
    on_disk = {int(p.name[5:]) for place in ("snapshots", "checkpoints") for p in (run / "prior" / place).iterdir()}
    assert on_disk >= {1, 5, 10}  # of 12 steps: a sixteenth (and an eighth), and each fifth
    assert [average.step for average in found] == sorted({*on_disk, 12})
    assert len({average.digest for average in found}) == len(found)
    assert averages.kept(run / "prior") == []


def test_each_is_the_model_of_its_step_and_leaves_the_other_alone(run: Path) -> None:
    model = models.load(run)
    before = native.tensors_digest(model.prior.state_dict())
    for average in averages.kept(run):
        then = averages.at(model, average)
        stored = native.read(average.path)[average.key]
        for name, module in (("prior", then.prior), ("conditioner", then.conditioner)):
            assert all(torch.equal(t, stored[f"{name}.{key}"]) for key, t in module.state_dict().items())
        assert (then.digest == model.digest) == (average.step == 12)
    assert native.tensors_digest(model.prior.state_dict()) == before
    request = tasks.request(model, n=1)
    last = tasks.collect(averages.at(model, averages.kept(run)[-1]), request)
    assert (last == tasks.collect(model, request)).all()


def test_torn_weights_and_other_latents_are_refused(run: Path) -> None:
    model, first = models.load(run), averages.kept(run)[0]
    weights = next(first.path.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="altered"):
        averages.at(model, first)
    contents = native.read(run / "prior" / "model")
    native.commit(run / "prior" / "snapshots", "step-000003", contents, {"codec": "0" * 64})
    other = next(average for average in averages.kept(run) if average.step == 3)
    with pytest.raises(CheckpointError, match="was trained on latents of codec 000000000000"):
        averages.at(model, other)


def test_a_folder_that_is_no_average_is_named_and_a_broken_one_passed_over(run: Path) -> None:
    snapshot = run / "prior" / "snapshots" / "step-000001"
    (snapshot / "MANIFEST.json").write_text(json.dumps({}))
    assert 1 not in [average.step for average in averages.kept(run)]
    native.commit(run / "prior" / "snapshots", "step-000004", {"words": {"a": 1}}, {})
    with pytest.raises(CheckpointError, match=r"step-000004 holds no averaged weights"):
        averages.kept(run)
