"""One training step, in the open.

A step is a function of (state, batch, draw): it draws nothing else and keeps nothing else. The batch is cut into
micro-batches that see their rows of the step's randomness, so accumulation changes rounding only. Where a rival is
trained against the rest, one backward pass serves both: the graphs of the two losses share no parameter that either
trains (`firststage.adversarial`).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from moyai.batch import Batch
from moyai.randomness import Draw
from moyai.training import ema
from moyai.training.schedule import learning_rate
from moyai.training.state import TrainState

Losses = tuple[Tensor, dict[str, Tensor]]  # the loss of each picture (B,), and parts of it by name, each (B,)
LossOf = Callable[[Batch, Draw], Losses]
Applied = Callable[[Draw], dict[str, float]]  # what a stage does once a step is applied, and what it says of it


class NonFiniteError(Exception):
    """A loss or gradient that is not finite, with what it was; the step was not applied."""


def train_step(
    state: TrainState, loss_of: LossOf, batch: Batch, draw: Draw, gamma: float, applied: Applied | None = None
) -> dict[str, float]:
    """Go one step: gradients over all micro-batches, clip, update, average. Returns the step's means by name.

    Raises NonFiniteError, with nothing changed but the counters, where the loss or a gradient is not finite.
    """
    config, total = state.config, len(batch)
    sums: dict[str, float] = {}
    state.step += 1
    _forget_gradients(state)
    size = config.micro_batch or total
    for start in range(0, total, size):
        stop = min(start + size, total)
        rows = batch.rows(start, stop)
        loss, parts = loss_of(rows, draw.rows(start, stop))
        (loss.sum() / total).backward()
        _refuse_non_finite_loss(state, loss, rows)
        for name, values in {"loss": loss.detach(), **parts}.items():
            sums[name] = sums.get(name, 0.0) + float(values.sum())
    norms = {group: _clipped_norm(state, group, batch) for group in state.optimizers}
    rate = learning_rate(config, state.step - 1)
    for group, optimizer in state.optimizers.items():
        for portion in optimizer.param_groups:
            portion["lr"] = rate * state.peaks[group] / config.learning_rate
        optimizer.step()
    state.updates += 1
    state.in_a_row = 0
    more = applied(draw) if applied else {}
    for name, average in state.averages.items():
        ema.update(average, state.modules[name], ema.beta_at(state.updates, gamma))
    means = {name: value / total for name, value in sums.items()}
    return {**means, "gradient": norms["modules"], "rate": rate, **more}


def _forget_gradients(state: TrainState) -> None:
    for optimizer in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)


def _refuse_non_finite_loss(state: TrainState, loss: Tensor, batch: Batch) -> None:
    finite = torch.isfinite(loss.detach())
    if not bool(finite.all()):
        samples = batch.index[(~finite).cpu()].tolist()
        _refuse(state, f"the loss of samples {samples[:8]} is not finite")


def _clipped_norm(state: TrainState, group: str, batch: Batch) -> float:
    named = [(name, p) for name, p in state.parameters(group) if p.grad is not None]
    gradients = [p.grad for _, p in named if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    value = float(norm)
    if not math.isfinite(value):
        bad = [n for n, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        name, samples = bad[0] if bad else "all parameters together", batch.index.tolist()
        more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
        _refuse(state, f"the gradient of {name} on samples {samples[:8]}{more} is not finite")
    if state.config.clip is not None:
        torch.nn.utils.clip_grads_with_norm_([p for _, p in named], state.config.clip, norm)
    return value


def _refuse(state: TrainState, why: str) -> None:
    state.skipped += 1
    state.in_a_row += 1
    _forget_gradients(state)
    raise NonFiniteError(f"step {state.step - 1}: {why}; the step is not applied")
