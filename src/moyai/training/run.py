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

import numpy as np
import torch

from moyai import console
from moyai.build.conditions import build_conditioner
from moyai.build.data import facts_of, read_data, with_tokenizers
from moyai.build.firststage import build_autoencoder, build_rival
from moyai.build.prior import build_prior
from moyai.checkpoints import models
from moyai.checkpoints.lock import RunLock
from moyai.conditioning.conditioner import Encoding
from moyai.console import Reporter
from moyai.data import latents, splits
from moyai.data import report as data_report
from moyai.data.locate import cache_folder
from moyai.devices import chosen
from moyai.errors import ConfigError, RequestError, choices
from moyai.evaluation import report, section, stagesection
from moyai.files import read_json, sweep_temporaries, write_atomic, write_json_atomic
from moyai.firststage import health
from moyai.model import LatentModel, example_rows, told_fields
from moyai.nets.precision import keep_memory
from moyai.recipe import reading, resolve
from moyai.recipe.model import Recipe
from moyai.training import budget
from moyai.training.adoption import adopt
from moyai.training.encoding import encode_pictures, halves_of_the_prior
from moyai.training.first_stage import FirstStageTraining
from moyai.training.loop import Runner, Stage
from moyai.training.perception import perception
from moyai.training.prior import CodeTraining, PriorTraining, training_of
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
    if not isinstance(recipe, Recipe):
        file = reading.find(str(recipe))
        recipe = reading.load(file, overrides, gpu=gpu)
        if out is None and file.name == "recipe.json":  # a run's own recipe: that run goes on
            out, goes_on = file.parent, True
    where = chosen(None if device is None else str(device))
    folder = Path(out).expanduser() if out is not None else Path("runs") / recipe.name
    record = Record(folder)
    with RunLock(folder, force=force), Signals() as signals:
        run = Run(recipe, record, reporter or console.Silent(), signals, where)
        borrowed = [] if first_stage is None else ["--first-stage", str(first_stage)]
        words = [*overrides, *(["--gpu"] if gpu else []), *borrowed]
        begun = record.command() if goes_on else []
        run.command = shlex.join([*(begun or ["moyai", "train", source]), *words])
        if first_stage is not None:
            run.recipe = adopt(Path(first_stage).expanduser(), record, run.recipe)
        run.everything(stage, allow_data_change=allow_data_change)
    return folder


class Run:
    """One run folder and what is being done in it."""

    def __init__(
        self, recipe: Recipe, record: Record, reporter: Reporter, signals: Signals, device: torch.device
    ) -> None:
        self.recipe, self.record, self.reporter, self.signals, self.device = recipe, record, reporter, signals, device
        self.folder = record.folder
        self.command = f"moyai train {self.folder}"
        self.started = time.perf_counter()
        keep_memory()

    def everything(self, only: str | None = None, *, allow_data_change: bool = False) -> None:
        """Whatever is not done yet, or the one stage asked for."""
        for place in (self.folder, *self.folder.glob("*/"), *self.folder.glob("*/*/")):
            sweep_temporaries(place)
        self._read_data(allow_data_change)
        self._perceive()
        self._plan()
        self.record.keep_data(self.data, self.change)
        self.record.keep_command(self.command)
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
        for name in todo if only is None else (only,):
            self._obey_signals()
            todo[name]()

    # --- data ------------------------------------------------------------------------------------------------------

    def _read_data(self, allow_change: bool) -> None:
        with self.record.timed("data"):
            images = read_data(self.recipe.data, cache_folder(), self._progress)
            self.train_index, self.held_out_index = splits.split(images, self.recipe.data.validation)
        self.train, self.held_out = images.subset(self.train_index), images.subset(self.held_out_index)
        facts = facts_of(images, self.train)
        self.recipe = resolve.resolve(self.recipe, facts)
        self.facts = with_tokenizers(self.recipe, facts, self.train)
        self._check_told()
        self.change = self.record.data_change(images, allowed=allow_change)
        if self.change:
            self.reporter.warn(f"the data have changed since this run was begun: {self.change}")
        found = data_report.report(images, self.train_index, self.held_out_index)
        self.data = {
            "facts": self.facts.model_dump(mode="json"),
            "report": found.as_json(),
            "fingerprint": images.fingerprint,
            "files": [[f.name, f.size, f.sha256] for f in images.files],
        }
        for line in data_report.lines(found):
            self.reporter.say(line)
        for warning in found.warnings:
            self.reporter.warn(warning)

    def _check_told(self) -> None:
        """What is told is wrong now, not after the first stage has been trained."""
        conditioner = build_conditioner(self.recipe, self.facts)
        if not any(isinstance(condition, Encoding) for condition in conditioner.conditions.values()):
            told_fields(conditioner, self.train.subset(np.arange(min(1, self.train.count))))
        if self.record.finished("prior"):
            return
        for field, count in conditioner.truncated(self.train.fields).items():
            self.reporter.warn(f"{count} of {self.train.count} {field}s have more tokens than fit and lose their end")

    def _perceive(self) -> None:
        """The network the first stage's perceptual distance is taken in: read, or trained on these pictures first."""
        needed = "first_stage" in resolve.stages(self.recipe) and not self.record.finished("first_stage")
        with self.record.timed("perceptual network"):
            path = self.folder / "first_stage" / "perceptual.safetensors"
            objective, seed = self.recipe.first_stage.objective, self.recipe.seed
            self.perceptual = perception(objective, self.train, seed, path, self._progress) if needed else None

    # --- plan ------------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Fix the number of steps, once."""
        path = self.folder / "plan.json"
        self.plan: dict[str, Any] = read_json(path) if path.is_file() else {}
        trained = resolve.stages(self.recipe)
        if any(getattr(self.recipe, stage).train.steps is None for stage in trained):
            minutes = self.recipe.budget.minutes
            if self.plan and self.plan["minutes"] != minutes:
                if self.record.begun(trained[0]):
                    raise ConfigError(
                        f"{self.folder} was planned for {self.plan['minutes']:g} minutes, not {minutes:g}; "
                        f"possible: the old budget, another --out, or steps: {self.plan['overrides']}"
                    )
                self.plan = {}
            if not self.plan:
                self.plan = self._measured_plan()
                write_json_atomic(path, self.plan)
            self.recipe = resolve.with_steps(self.recipe, self.plan["first_stage"], self.plan["prior"])
        kind = CodeTraining if self.recipe.prior.kind == "codes" else PriorTraining
        looks = {"prior": kind.look(self.held_out.count)}
        first = FirstStageTraining.look(self.held_out.count)
        trains = {s: resolve.train_intervals(getattr(self.recipe, s).train, looks.get(s, first)) for s in trained}
        self.recipe = resolve.changed(self.recipe, {f"{s}.train": train.model_dump() for s, train in trains.items()})
        for stage in trained:
            self.record.check_unchanged(stage, self.recipe)
        for place in (self.folder, *(self.folder / stage for stage in trained)):  # a refused recipe leaves no trace
            place.mkdir(exist_ok=True)
            write_atomic(place / "recipe.json", reading.to_json(self.recipe).encode())

    def _measured_plan(self) -> dict[str, Any]:
        self.reporter.say(f"measuring how far {self.recipe.budget.minutes:g} minutes go")
        with self.record.timed("measuring"):
            costs = budget.measure(self.recipe, self.facts, self.train, self.device, perceptual=self.perceptual)
        if self.record.finished("first_stage"):  # taken over: the minutes are the prior's
            costs = replace(costs, first_stage_step=0.0)
        made = budget.plan(
            self.recipe,
            costs,
            train=self.train.count,
            held_out=self.held_out.count,
            flips=self.recipe.data.flip,
            elapsed=time.perf_counter() - self.started,
            forwards=budget.sampler_forwards(self.recipe, self.facts),
        )
        self.reporter.say(f"the budget comes to {made.overrides()}")
        minutes, needed = self.recipe.budget.minutes or 0.0, sum(made.seconds.values()) / 60
        if needed > 1.1 * minutes:
            self.reporter.warn(
                f"no fewer steps are taken, and these need about {needed:.1f} minutes instead of {minutes:g}; "
                "possible: more minutes, fewer pictures in the report, smaller networks"
            )
        return {
            "minutes": self.recipe.budget.minutes,
            "first_stage": made.first_stage,
            "prior": made.prior,
            "overrides": made.overrides(),
            "seconds": made.seconds,
        }

    # --- stages ----------------------------------------------------------------------------------------------------

    def _first_stage(self) -> None:
        if self.record.finished("first_stage"):
            return
        stage = FirstStageTraining(
            self.recipe,
            build_autoencoder(self.recipe, self.facts),
            self.train,
            self.held_out,
            self.device,
            perceptual=self.perceptual,
            rival=build_rival(self.recipe, self.facts),
        )
        self._run(stage, {"data": self.data["fingerprint"]})

    def _latents(self) -> None:
        if "first_stage" in resolve.stages(self.recipe):
            self.record.needs("first_stage")
        halves = halves_of_the_prior(self.recipe, self.train, self.held_out)
        encode_pictures(self.record, self.recipe, self.facts, halves, self.device, self._progress)

    def _prior(self) -> None:
        if self.record.finished("prior"):
            return
        self.record.needs(*resolve.stages(self.recipe)[:-1], "latents/statistics")
        codec = models.read_codec(self.folder, self.recipe, self.facts, self.device)
        halves = halves_of_the_prior(self.recipe, self.train, self.held_out)
        caches = [
            latents.read(self.folder / "latents" / half, images, codec=codec.digest())
            for half, images in halves.items()
        ]
        conditioner = build_conditioner(self.recipe, self.facts).to(self.device)  # published encoders are large
        for half, images in halves.items():
            conditioner.encode(images.fields, functools.partial(self._progress, f"encoding {half} captions"))
        caches = [
            replace(cache, fields=told_fields(conditioner, images))
            for cache, images in zip(caches, halves.values(), strict=True)
        ]
        prior = build_prior(self.recipe, conditioner, codec.shape(), self.device)
        model = LatentModel(codec, conditioner, prior, self.recipe, self.facts)
        model.examples = model.told(self.held_out, example_rows(self.held_out.count))
        models.write_examples(self.folder, model.examples)
        stage = training_of(model, caches[0], caches[1], self.device)
        info = {"codec": codec.digest(), "data": self.data["fingerprint"], "encoders": conditioner.digests()}
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
            models.read_first_stage(self.folder, self.recipe, self.facts, decoder=False),
            self.train,
            self.held_out,
            self.device,
            perceptual=perception(config.objective, self.train, self.recipe.seed, path, self._progress),
            rival=build_rival(self.recipe, self.facts, config.objective),
            decoder=config,
        )
        self._run(stage, {"data": self.data["fingerprint"]})

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
            material = report.Material(
                self.folder, model, self.train, self.held_out, self.data, self.plan, self.record.times(), self.command
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
