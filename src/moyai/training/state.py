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
    """The state of one stage.

    `modules` are trained; `averages`, of the same names, are the copies that are kept in the end. `rivals` are trained
    too, by an optimiser of their own and against the others (a discriminator), and have no averages. `optimizers` has
    one for "modules" and, where there are rivals, one for "rivals"; `peaks` their highest learning rates.
    """

    modules: dict[str, nn.Module]
    averages: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    peaks: dict[str, float]
    config: TrainConfig
    rivals: dict[str, nn.Module] = field(default_factory=dict)
    step: int = 0
    updates: int = 0  # steps that were applied: a non-finite one is not
    skipped: int = 0
    in_a_row: int = 0  # non-finite steps up to now without a finite one between
    window: dict[str, list[float]] = field(default_factory=dict)  # sums since the last line of the log: [sum, count]

    @staticmethod
    def new(
        modules: dict[str, nn.Module],
        config: TrainConfig,
        rivals: dict[str, nn.Module] | None = None,
        rivals_rate: float = 0.0,
    ) -> "TrainState":
        averages = {name: ema.copy_of(module) for name, module in modules.items()}
        optimizers = {"modules": _adam(modules, config, config.learning_rate, config.betas)}
        peaks = {"modules": config.learning_rate}
        if rivals:
            # Little inertia: what it is against changes with every step (Radford et al. 2016 take 0.5 for the first).
            optimizers["rivals"], peaks["rivals"] = _adam(rivals, config, rivals_rate, (0.5, 0.9)), rivals_rate
        return TrainState(modules, averages, optimizers, peaks, config, rivals or {})

    def parameters(self, group: str | None = None) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters with their full names, of one group or of all, in the optimisers' order."""
        groups = {"modules": self.modules, "rivals": self.rivals}
        return [
            (f"{name}.{key}", p)
            for of, members in groups.items()
            for name, module in members.items()
            for key, p in module.named_parameters()
            if p.requires_grad and group in (None, of)
        ]

    def contents(self) -> Contents:
        """What a checkpoint holds, by file."""
        return {
            "model": _tensors({**self.modules, **self.rivals}),
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
        fill({**self.modules, **self.rivals}, contents["model"], "model")
        fill(self.averages, contents["ema"], "average")
        self._restore_optimizer(contents["optimizer"])
        saved = contents["state"]
        self.step, self.updates = int(saved["step"]), int(saved["updates"])
        self.skipped, self.in_a_row = int(saved["skipped"]), int(saved["in_a_row"])
        self.window = {name: list(pair) for name, pair in saved["window"].items()}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        out = {}
        for group, optimizer in self.optimizers.items():
            for name, parameter in self.parameters(group):
                for slot, value in optimizer.state.get(parameter, {}).items():
                    out[f"{name}/{slot}"] = torch.as_tensor(value)
        return out

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        known = dict(self.parameters())
        slots: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, slot = key.rsplit("/", 1)
            slots.setdefault(name, {})[slot] = value
        unexpected = [name for name in slots if name not in known]
        missing = []
        for group in self.optimizers:  # an optimiser that has not stepped yet has no state at all
            names = [name for name, _ in self.parameters(group)]
            missing += [name for name in names if name not in slots] if any(name in slots for name in names) else []
        if unexpected or missing:
            raise CheckpointError("the optimiser's state is of another model", missing=missing, unexpected=unexpected)
        for group, optimizer in self.optimizers.items():
            optimizer.state.clear()
            for name, parameter in self.parameters(group):
                # Averages of gradients lie in memory as their parameter does; the same bits depend on it.
                for slot, value in slots.get(name, {}).items():
                    like = torch.empty_like(parameter if value.ndim else value, device=parameter.device)
                    optimizer.state[parameter][slot] = like.copy_(value)


def _adam(
    modules: Mapping[str, nn.Module], config: TrainConfig, rate: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=config.weight_decay, fused=fused)


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def parameter_count(*modules: nn.Module) -> int:
    """How many values are trained."""
    return sum(p.numel() for m in modules for p in m.parameters())
