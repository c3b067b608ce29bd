"""Priors over codes, from data to report: trained, drawn, loaded, drawn again from a picture's own recipe."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moyai
import tiny
from moyai import log, pictures, tasks
from moyai.checkpoints import models
from moyai.commands import outputs
from moyai.errors import RequestError

FEW = {**tiny.QUICK, "steps": 3, "validate_every": 3, "save_every": 2}
NETS = {"pixelcnn": {"width": 8, "layers": 2}, "transformer": {"width": 16, "depth": 1}}
STAGES: dict[str, dict[str, Any]] = {
    "vq": {"first_stage.kind": "vq", "first_stage.codebook": {"size": 8}},
    "vq2": {"first_stage.kind": "vq2", "first_stage.codebook": {"size": 8}},
    "fsq": {"first_stage.kind": "fsq", "first_stage.grid": {"levels": [5, 3]}},
}


@pytest.mark.parametrize(("stage", "kind"), [("vq", "pixelcnn"), ("fsq", "transformer"), ("vq2", "pixelcnn")])
def test_a_prior_over_codes_from_data_to_report(stage: str, kind: str, tmp_path: Path) -> None:
    conditions = {"class": {"kind": "class", "width": 8}}
    net = {"kind": kind, **NETS[kind]}
    prior = {"kind": "codes", "net": net, "conditions": conditions, "train": FEW, "sampling": {"guidance": 2.0}}
    changes = {**STAGES[stage], "first_stage.train": FEW, "report.gif": True, "prior": prior}
    recipe = tiny.recipe_file(tmp_path / "tiny.json", tiny.folder(tmp_path / "pictures"), changes)
    run = moyai.train(str(recipe), out=tmp_path / "run")
    assert log.series(run / "prior" / "log.jsonl", "validation", "loss")[0] == [3]
    assert "bits per code" in (run / "report.html").read_text(encoding="utf-8")
    model = models.load(run)
    request = tasks.request(model, ["disc", "ring"], n=2, seed=4, temperature=0.8, top_k=3)
    places = sum(h * w for h, w in model.codec.code_shapes())  # type: ignore[attr-defined]
    assert (request.steps, request.guidance, request.sampler) == (places, 2.0, "codes")
    images = tasks.collect(model, request)
    assert images.shape == (4, tiny.SIDE, tiny.SIDE, 1)
    list(outputs.write(model, request, images, tmp_path / "out", None))
    last = sorted((tmp_path / "out").iterdir())[-1]
    again, changed = tasks.like(model, pictures.read_recipe(last))
    assert changed == []
    assert (again.seed, again.temperature, again.top_k) == (7, 0.8, 3)
    assert np.array_equal(tasks.collect(model, again)[0], images[-1])
    with pytest.raises(RequestError, match="sampler euler is nothing that this model's prior knows; it is codes"):
        tasks.request(model, sampler="euler")


def test_a_diffusion_prior_has_no_probabilities_to_cut(finished_run: Path) -> None:
    with pytest.raises(RequestError, match="top_k 3 is nothing that this model's prior knows; it is None"):
        tasks.request(models.load(finished_run / "run"), top_k=3)
