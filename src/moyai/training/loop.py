"""The loop that every stage shares: step, and whatever is due every n steps.

What a stage is made of (its batches, its loss, its previews) is the stage's; when things happen, what is kept and how
a run goes on after it was cut off is here.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from moyai.batch import Batch
from moyai.checkpoints import native
from moyai.console import Reporter
from moyai.errors import CheckpointError, TrainingError
from moyai.log import Log
from moyai.randomness import Draw, torch_seed
from moyai.training import ema
from moyai.training.config import TrainConfig
from moyai.training.signals import Interrupted, Signals
from moyai.training.state import TrainState
from moyai.training.steps import Losses, NonFiniteError, train_step
from moyai.training.tensorboard import TensorBoard

SNAPSHOTS = (16, 8)  # averages kept at 1/16 and 1/8 of the run, for autoguidance


class Stage(Protocol):
    """What is trained."""

    name: str
    title: str
    state: TrainState

    def batch(self, step: int) -> Batch: ...

    def losses(self, batch: Batch, draw: Draw) -> Losses: ...

    def applied(self, draw: Draw) -> dict[str, float]:
        """What is left to do once a step is applied, and what there is to say of it."""

    def validate(self) -> dict[str, float]:
        """Quantities on held-out data, of the averaged weights."""

    def preview(self, path: Path) -> None:
        """Write a picture that shows what the stage can do by now."""


class Runner:
    """Trains one stage in `folder`: `checkpoints/`, `snapshots/`, `previews/`, `log.jsonl` and, once done, `model/`."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        *,
        seed: int,
        device: torch.device,
        reporter: Reporter,
        signals: Signals,
        info: dict[str, Any],
        fault: Callable[[str], None] = lambda point: None,
    ) -> None:
        self.stage, self.folder, self.seed, self.device = stage, folder, seed, device
        self.reporter, self.signals, self.info, self.fault = reporter, signals, info, fault
        self.config: TrainConfig = stage.state.config
        self.gamma = ema.gamma_of(self.config.ema.std)
        self.total = self.config.steps or 0
        self.started, self.from_step = time.perf_counter(), 0

    def run(self) -> None:
        """From the newest valid checkpoint, or from the start, to the finished model."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints", "snapshots", "previews"):
            (self.folder / name).mkdir(exist_ok=True)
        for place in (self.folder, self.folder / "checkpoints", self.folder / "snapshots"):
            native.sweep(place)
        self._resume()
        state = self.stage.state
        self.log = Log(self.folder / "log.jsonl", step=state.step)
        if self.config.tensorboard:
            self.log.also = TensorBoard(self.folder / "tensorboard", step=state.step)
        self.started, self.from_step = time.perf_counter(), state.step
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                while state.step < self.total:
                    self._one_step()
                    self._what_is_due()
                    self._obey_signals()
        finally:
            self.log.close()
        self._finish()

    def _one_step(self) -> None:
        stage, state = self.stage, self.stage.state
        step = state.step
        batch = stage.batch(step).to(self.device)
        draw = Draw(self.seed, step, len(batch), stage=stage.name, device=self.device)
        torch.manual_seed(torch_seed(self.seed, f"{stage.name} dropout {step}"))  # nn.Dropout asks torch itself
        try:
            metrics = train_step(state, stage.losses, batch, draw, self.gamma, stage.applied)
        except NonFiniteError as error:
            self.reporter.warn(str(error))
            self.log.write({"step": state.step, "event": str(error)})
            if state.in_a_row >= self.config.nonfinite.patience:
                newest = native.newest(self.folder / "checkpoints")
                where = f"the last good checkpoint is step {newest.step}" if newest else "no checkpoint was written yet"
                raise TrainingError(
                    f"{stage.title}: {state.in_a_row} non-finite steps in a row, the last: {error}; {where}; a lower "
                    f"{stage.name}.train.learning_rate or {stage.name}.train.precision=float32 may help"
                ) from error
            return
        for name, value in metrics.items():
            pair = state.window.setdefault(name, [0.0, 0.0])
            pair[0] += value
            pair[1] += 1

    def _what_is_due(self) -> None:
        state, config = self.stage.state, self.config
        step, last = state.step, state.step == self.total
        if step % config.log_every == 0 or last:
            self._write_log_line()
        if last or step % (config.validate_every or self.total) == 0:
            self.log.write({"step": step, "validation": self.stage.validate()})
        if last or step % (config.preview_every or self.total) == 0:
            self.stage.preview(self.folder / "previews" / f"{native.step_name(step)}.png")
        for share in SNAPSHOTS:
            if step == max(1, self.total // share):
                self._snapshot()
        if not last and step % (config.save_every or self.total) == 0:
            self.save()

    def _write_log_line(self) -> None:
        state = self.stage.state
        means = {name: total / count for name, (total, count) in state.window.items() if count}
        state.window = {}
        seconds = time.perf_counter() - self.started
        rate = (state.step - self.from_step) * self.config.batch / max(seconds, 1e-9)
        self.log.write({"step": state.step, "train": means, "time": {"seconds": seconds, "images_per_second": rate}})
        note = f"loss {means.get('loss', float('nan')):.4f}  {rate:.0f} images/s  {peak_gib():.1f} GiB"
        self.reporter.progress(self.stage.title, state.step, self.total, note)

    def _obey_signals(self) -> None:
        signals = self.signals
        if signals.saving:
            signals.saving = False
            self.save()
            self.reporter.say(f"saved {self.stage.title} at step {self.stage.state.step}")
        step = self.stage.state.step
        if signals.stopping is not None and step < self.total:  # a stage that is done is finished first
            self.save()
            raise Interrupted(signals.stopping, f"{self.stage.title} is saved at step {step}; the same command goes on")

    def save(self) -> None:
        """Commit a checkpoint, then let go of the oldest."""
        state, parent = self.stage.state, self.folder / "checkpoints"
        self.log.sync()
        native.commit(
            parent,
            native.step_name(state.step),
            state.contents(),
            self._info(),
            finite=("model", "ema"),
            fault=self.fault,
        )
        native.prune(parent, self.config.keep, fault=self.fault)

    def _snapshot(self) -> None:
        state = self.stage.state
        native.commit(
            self.folder / "snapshots",
            native.step_name(state.step),
            {"model": state.contents()["ema"]},
            self._info(),
            finite=("model",),
            fault=self.fault,
        )

    def _resume(self) -> None:
        newest = native.newest(self.folder / "checkpoints", on_skip=self.reporter.warn)
        if newest is None:
            return
        codec, own = newest.manifest["info"].get("codec"), self.info.get("codec")
        if codec != own:
            raise CheckpointError(
                f"{newest.path} was trained on latents of codec {str(codec)[:12]}, but the first stage is now "
                f"{str(own)[:12]}; remove {self.folder} to train it anew"
            )
        self.stage.state.restore(native.read(newest.path))
        then, now = newest.manifest["info"].get("threads"), torch.get_num_threads()
        if then != now:
            self.reporter.warn(
                f"this run was trained with {then} threads and goes on with {now}: the result will differ in rounding"
            )
        self.reporter.say(f"{self.stage.title}: going on from step {newest.step} of {self.total}")

    def _finish(self) -> None:
        contents = {"model": self.stage.state.contents()["ema"]}
        native.commit(self.folder, "model", contents, self._info(), finite=("model",), fault=self.fault)

    def _info(self) -> dict[str, Any]:
        return {
            **self.info,
            "stage": self.stage.name,
            "step": self.stage.state.step,
            "skipped": self.stage.state.skipped,
            "threads": torch.get_num_threads(),
            "world": 1,
            "python": sys.version.split()[0],
        }


def peak_gib() -> float:
    """Peak resident memory of this process, GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
