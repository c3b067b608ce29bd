"""Everything a stage of training is: live modules, their averages, their optimisers, the step, the counters.

It is written to and read from plain tensors and JSON; what has to agree is checked by name and shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moyai.checkpoints.models import fill
from moyai.errors import CheckpointError
from moyai.training import ema
from moyai.training.config import TrainConfig

Contents = dict[str, dict[str, Tensor] | dict[str, Any]]


@dataclass
class TrainState:
    """The state of one stage. `modules` and `averages` have the same names; `optimizer` covers all live parameters."""

    modules: dict[str, nn.Module]
    averages: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    step: int = 0
    updates: int = 0  # steps that were applied: a non-finite one is not
    skipped: int = 0
    in_a_row: int = 0  # non-finite steps up to now without a finite one between
    window: dict[str, list[float]] = field(default_factory=dict)  # sums since the last line of the log: [sum, count]

    @staticmethod
    def new(modules: dict[str, nn.Module], config: TrainConfig) -> "TrainState":
        fused = all(p.device.type in ("cpu", "cuda") for m in modules.values() for p in m.parameters())
        parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=fused
        )
        averages = {name: ema.copy_of(module) for name, module in modules.items()}
        return TrainState(modules, averages, optimizer, config)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters with their full names, in the optimiser's order."""
        return [
            (f"{name}.{key}", p)
            for name, module in self.modules.items()
            for key, p in module.named_parameters()
            if p.requires_grad
        ]

    def contents(self) -> Contents:
        """What a checkpoint holds, by file."""
        return {
            "model": _tensors(self.modules),
            "ema": _tensors(self.averages),
            "optimizer": self._optimizer_tensors(),
            "state": {
                "step": self.step,
                "updates": self.updates,
                "skipped": self.skipped,
                "in_a_row": self.in_a_row,
                "window": self.window,
            },
        }

    def restore(self, contents: Mapping[str, Any]) -> None:
        """Take over what `contents` gave. Raises CheckpointError where names or shapes differ."""
        fill(self.modules, contents["model"], "model")
        fill(self.averages, contents["ema"], "average")
        self._restore_optimizer(contents["optimizer"])
        saved = contents["state"]
        self.step, self.updates = int(saved["step"]), int(saved["updates"])
        self.skipped, self.in_a_row = int(saved["skipped"]), int(saved["in_a_row"])
        self.window = {name: list(pair) for name, pair in saved["window"].items()}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        out = {}
        for name, parameter in self.parameters():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                out[f"{name}/{slot}"] = torch.as_tensor(value)
        return out

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        known = dict(self.parameters())
        slots: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, slot = key.rsplit("/", 1)
            slots.setdefault(name, {})[slot] = value
        unexpected = [name for name in slots if name not in known]
        missing = [name for name in known if slots and name not in slots]
        if unexpected or missing:
            raise CheckpointError("the optimiser's state is of another model", missing=missing, unexpected=unexpected)
        self.optimizer.state.clear()
        for name, values in slots.items():
            parameter = known[name]
            # Averages of gradients lie in memory as their parameter does; the same bits depend on it.
            self.optimizer.state[parameter] = {
                slot: torch.empty_like(parameter).copy_(value) if value.ndim else value.to(parameter.device, copy=True)
                for slot, value in values.items()
            }


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
