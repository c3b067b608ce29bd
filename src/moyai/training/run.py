"""A run, from data to report: `moyai.train`, and `moyai train`.

    data report -> first stage -> latent statistics and cache -> prior -> samples and report

Everything lies in one folder:

    recipe.json       the resolved recipe          first_stage/   checkpoints, snapshots, previews, log.jsonl, model/
    data.json         facts, report, fingerprint   latents/       the cache and the statistics of the latents
    plan.json         what a budget came to        prior/         as first_stage
    report.html       the report                   samples/       what it shows
    command.txt       what repeats the run         times.json     seconds by part

A finished part is not repeated; the same command goes on where an earlier one was cut off.
"""

import functools
import os
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moyai import console
from moyai.build.conditions import build_conditioner
from moyai.build.firststage import build_autoencoder, build_rival
from moyai.build.prior import build_prior
from moyai.checkpoints import models
from moyai.checkpoints.lock import RunLock
from moyai.console import Reporter
from moyai.data import latents
from moyai.devices import chosen
from moyai.errors import RequestError, choices
from moyai.evaluation import report, section, stagesection
from moyai.files import read_json, sweep_temporaries, write_json_atomic
from moyai.firststage import health
from moyai.model import LatentModel, example_rows, told_fields
from moyai.nets.precision import keep_memory
from moyai.recipe import reading, resolve
from moyai.recipe.model import Recipe
from moyai.training import adoption
from moyai.training.encoding import both_ways, encode_pictures, halves_of_the_prior
from moyai.training.first_stage import FirstStageTraining
from moyai.training.loop import Runner, Stage
from moyai.training.perception import perception
from moyai.training.preparing import Prepared, prepare
from moyai.training.prior import training_of
from moyai.training.record import Record
from moyai.training.signals import Interrupted, Signals

STAGES = ("first_stage", "latents", "prior", "decoder", "report")


def train(
    recipe: Recipe | str | Path,
    *overrides: str,
    out: str | Path | None = None,
    stage: str | None = None,
    gpu: bool = False,
    device: torch.device | str | None = None,
    first_stage: str | Path | None = None,
    allow_data_change: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Run a recipe into `out` (when not given: `runs/<name>`, or the run's folder where that is the recipe).

    recipe: a Recipe, or the path or name of a .toml; overrides: `section.key=value`. stage: only that one of STAGES.
    first_stage: a run whose first stage is taken over, with its part of the recipe, instead of training one.
    Trains in one process: under torchrun with several it is refused. Returns the folder. Raises the errors of
    `moyai.errors`, and Interrupted where a signal stopped it.
    """
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":  # copies that nothing keeps alike, in one folder
        raise RequestError(f"WORLD_SIZE is {processes}: moyai trains in one process; possible: without torchrun")
    if stage is not None and stage not in STAGES:
        raise RequestError(f"stage {stage!r} is unknown; {choices(stage, STAGES)}")
    source, goes_on = recipe.name if isinstance(recipe, Recipe) else str(recipe), False
    if isinstance(recipe, Recipe):
        if gpu:
            raise RequestError("gpu=True lays a file's [gpu] table over it, and a Recipe has none; possible: its path")
        recipe = reading.parse(recipe.model_dump(mode="json"), overrides, source=source)
    else:
        file = reading.find(str(recipe))
        recipe = reading.load(file, overrides, gpu=gpu)
        if out is None and file.name == "recipe.json":  # a run's own recipe: that run goes on
            out, goes_on = file.parent, True
    where = chosen(None if device is None else str(device))
    folder = Path(out).expanduser() if out is not None else Path("runs") / recipe.name
    record = Record(folder)
    with RunLock(folder, force=force), Signals() as signals:
        started = time.perf_counter()
        keep_memory()
        for place in (folder, *folder.glob("*/"), *folder.glob("*/*/")):
            sweep_temporaries(place)
        borrowed = [] if first_stage is None else ["--first-stage", str(first_stage)]
        begun = record.command() if goes_on else []
        words = [*(begun or ["moyai", "train", source]), *overrides, *(["--gpu"] if gpu else []), *borrowed]
        adopted = None
        if first_stage is not None:
            adopted, recipe = adoption.find(Path(first_stage).expanduser(), record, recipe)
        said = reporter or console.Silent()
        run = Run(record, said, signals, where, shlex.join(words))
        run.begin(recipe, adopted, allow_data_change=allow_data_change, started=started)
        run.everything(stage)
    return folder


class Run:
    """One run folder and what is being done in it."""

    recipe: Recipe
    ready: Prepared

    def __init__(
        self, record: Record, reporter: Reporter, signals: Signals, device: torch.device, command: str
    ) -> None:
        self.record, self.reporter, self.signals, self.device = record, reporter, signals, device
        self.folder, self.command = record.folder, command

    def begin(
        self, recipe: Recipe, adopted: adoption.Adopted | None, *, allow_data_change: bool, started: float
    ) -> None:
        """Settle what there is to settle, and write it down; from here on the run can be gone on with."""
        self.ready = prepare(
            recipe,
            self.record,
            self.reporter,
            self._progress,
            self.device,
            adopted=adopted,
            allow_data_change=allow_data_change,
            started=started,
        )
        self.recipe = self.ready.recipe
        if adopted is not None:
            adopted.take(self.record)
        self.record.keep_data(self.ready.data, self.ready.change)
        self.record.keep_command(self.command)

    def everything(self, only: str | None = None) -> None:
        """Whatever is not done yet, or the one stage asked for."""
        todo = {
            "first_stage": self._first_stage,
            "latents": self._latents,
            "prior": self._prior,
            "decoder": self._decoder,
            "report": self._report,
        }
        if "first_stage" not in resolve.stages(self.recipe):
            if only == "first_stage":
                raise RequestError('codec.kind is "pixels": there is no first stage to train')
            del todo["first_stage"]
        if only == "decoder" and self.recipe.decoder is None:
            raise RequestError("the recipe has no [decoder]; possible: decoder.train.steps=2000")
        for name in todo if only is None else (only,):
            self._obey_signals()
            todo[name]()

    # --- stages ----------------------------------------------------------------------------------------------------

    def _first_stage(self) -> None:
        if self.record.finished("first_stage"):
            return
        (self.folder / "first_stage" / adoption.SOURCE).unlink(missing_ok=True)  # of a take-over that was cut off
        stage = FirstStageTraining(
            self.recipe,
            build_autoencoder(self.recipe, self.ready.facts),
            self.ready.train,
            self.ready.held_out,
            self.device,
            perceptual=self.ready.perceptual,
            rival=build_rival(self.recipe, self.ready.facts),
        )
        self._run(stage, {"data": self.ready.data["fingerprint"]})

    def _latents(self) -> None:
        if "first_stage" in resolve.stages(self.recipe):
            self.record.needs("first_stage")
        halves = halves_of_the_prior(self.recipe, self.ready.train, self.ready.held_out)
        encode_pictures(self.record, self.recipe, self.ready.facts, halves, self.device, self._progress)

    def _prior(self) -> None:
        if self.record.finished("prior"):
            return
        if "first_stage" in resolve.stages(self.recipe):
            self.record.needs("first_stage")
        self.record.needs("latents/statistics")
        codec = models.read_codec(self.folder, self.recipe, self.ready.facts, self.device)
        halves = halves_of_the_prior(self.recipe, self.ready.train, self.ready.held_out)
        caches = [
            latents.read(
                self.folder / "latents" / half, images, codec=codec.digest(), flips=both_ways(self.recipe, half)
            )
            for half, images in halves.items()
        ]
        conditioner = build_conditioner(self.recipe, self.ready.facts).to(self.device)  # published encoders are large
        for half, images in halves.items():
            conditioner.encode(images.fields, functools.partial(self._progress, f"encoding {half} captions"))
        caches = [
            replace(cache, fields=told_fields(conditioner, images))
            for cache, images in zip(caches, halves.values(), strict=True)
        ]
        prior = build_prior(self.recipe, conditioner, codec.shape(), self.device)
        model = LatentModel(codec, conditioner, prior, self.recipe, self.ready.facts)
        model.examples = model.told(self.ready.held_out, example_rows(self.ready.held_out.count))
        models.write_examples(self.folder, model.examples)
        stage = training_of(model, caches[0], caches[1], self.device)
        info = {"codec": codec.digest(), "data": self.ready.data["fingerprint"], "encoders": conditioner.digests()}
        self._run(stage, info)

    def _decoder(self) -> None:
        """The decoder trained further, where the recipe says so; latents, statistics and prior stay valid."""
        config = self.recipe.decoder
        if config is None or self.record.finished("decoder"):
            return
        self.record.needs("first_stage")
        path = self.folder / "decoder" / "perceptual.safetensors"
        stage = FirstStageTraining(
            self.recipe,
            models.read_first_stage(self.folder, self.recipe, self.ready.facts, decoder=False),
            self.ready.train,
            self.ready.held_out,
            self.device,
            perceptual=perception(config.objective, self.ready.train, self.recipe.seed, path, self._progress),
            rival=build_rival(self.recipe, self.ready.facts, config.objective),
            decoder=config,
        )
        self._run(stage, {"data": self.ready.data["fingerprint"]})

    def _report(self) -> None:
        self.record.needs(*resolve.stages(self.recipe))
        model = models.load(self.folder, device=self.device)
        sections = self.recipe.model_dump(mode="json")
        key = {"prior": model.digest, "sampling": sections["sampling"], "report": sections["report"]}
        if self.recipe.decoder is not None:
            key["decoder"] = sections["decoder"]
        if shown := section.made_of(self.folder):
            key["evaluation"] = shown
        done = self.folder / "samples" / "made-of.json"
        if done.is_file() and read_json(done) == key and (self.folder / "report.html").is_file():
            self.reporter.say(f"the report is {self.folder / 'report.html'}")
            return
        with self.record.timed("samples and report"):
            ready, times = self.ready, self.record.times()
            material = report.Material(
                self.folder, model, ready.train, ready.held_out, ready.data, ready.plan, times, self.command
            )
            path = report.write(material, functools.partial(self._progress, "sampling"))
        write_json_atomic(done, key)
        self.reporter.say(f"the report is {path}")

    def _run(self, stage: Stage, info: dict[str, Any]) -> None:
        runner = Runner(
            stage,
            self.folder / stage.name,
            seed=self.recipe.seed,
            device=self.device,
            reporter=self.reporter,
            signals=self.signals,
            info=info,
        )
        with self.record.timed(stage.title):
            runner.run()
        if isinstance(stage, FirstStageTraining):
            self._tell(self.folder / stage.name / "log.jsonl")

    def _tell(self, path: Path) -> None:
        """What the instruments of a first stage came to, and what is out of its range."""
        values = stagesection.last_values(path)
        shown = {"psnr": "PSNR {:.1f} dB", "ssim": "SSIM {:.3f}", "fine power": "fine power {:.2f}"}
        said = ", ".join(text.format(values[name]) for name, text in shown.items() if name in values)
        self.reporter.say(f"held-out pictures through it and back: {said}. {stagesection.NO_SAMPLER}")
        for sentence in health.judge(values):
            self.reporter.warn(sentence)

    def _progress(self, what: str, done: int, total: int) -> None:
        """Reports, and leaves where a signal asks to: what was begun here is made anew by the same command."""
        self.reporter.progress(what, done, total)
        self._obey_signals()

    def _obey_signals(self) -> None:
        if self.signals.stopping is not None:
            raise Interrupted(self.signals.stopping, "the same command goes on where this left off")
