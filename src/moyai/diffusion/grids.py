"""The grid: which noise levels sampling walks through, from the first to 0.

A grid is the sampler's argument, not its property: any sampler walks any grid. Each function returns (steps + 1,)
float32 sigmas, falling, the last one 0, for any number of steps from 1 up.

* `karras`: even in sigma^(1/rho) (Karras et al. 2022, eq. 5).
* `uniform_log`: even in log sigma.
* `uniform_time`: even in the model's own time (a table's index, a flow's t): "trailing" in the words of Lin et al.
  2024, and what a rectified flow walks.
* `table_spacing`: whole indices of a table as the literature's DDIM takes them; exists for parity.

**Strength** (picture to picture): a fraction of the model's own time. `GRIDS` lays the steps asked for between it and
the end, instead of throwing away the first steps of a full grid: 10 steps at strength 0.3 are 10 steps.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from moyai.diffusion.noise import Table
from moyai.diffusion.parameterization import Parameterization, Tabled
from moyai.errors import RequestError

Grid = Callable[[Parameterization, int, float], Tensor]  # (parameterization, steps, strength) -> (steps + 1,)


def karras(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> Tensor:
    """Even in sigma^(1/rho): small steps where sigma is small."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _closed((high + _ramp(steps) * (low - high)) ** rho)


def uniform_log(sigma_max: float, sigma_min: float, steps: int) -> Tensor:
    """Even in log sigma."""
    return _closed(sigma_max * (sigma_min / sigma_max) ** _ramp(steps))


def uniform_time(parameterization: Parameterization, steps: int, strength: float = 1.0) -> Tensor:
    """Even in the model's own time, from `strength` of it to its clean end."""
    left = torch.arange(_positive(steps), 0, -1, dtype=torch.float64) / steps  # 1, 1 - 1/n, ..., 1/n
    return _closed(parameterization.sigma_at(_checked(strength) * left))


def table_spacing(
    table: Table,
    steps: int,
    spacing: Literal["leading", "trailing"] = "leading",
    *,
    offset: int = 1,
    end: Literal["zero", "first"] = "zero",
) -> Tensor:
    """Whole indices of a table, as published samplers take them.

    `leading`: 0, c, 2c, ... with c = T // steps, plus `offset` (1 in latent diffusion, 0 in others), moved down where
    the last would leave the table (the original code stops there). `trailing`: T - 1 and down by T / steps. Where
    more steps are asked for than the table has, indices are fractional. `end = "first"` makes the last step to the
    table's first sigma instead of 0, as the original DDIM does.
    """
    total = len(table)
    count = torch.arange(_positive(steps), dtype=torch.float64)
    if steps > total:
        sigmas = table.sigma_at(1 - count / steps)
    elif spacing == "trailing":
        sigmas = table.sigma((total - count * total / steps).round() - 1)
    else:
        apart = total // steps
        start = min(offset, total - 1 - apart * (steps - 1))
        sigmas = table.sigma(count.flip(0) * apart + start)
    last = table.sigma_min if end == "first" else 0.0
    return torch.cat([sigmas, sigmas.new_tensor([last])]).float()


def _table_grid(parameterization: Parameterization, steps: int, strength: float) -> Tensor:
    if not isinstance(parameterization, Tabled):
        raise RequestError(
            f"grid table needs a model trained on a table, this one is {type(parameterization).__name__}; "
            f"possible: {', '.join(name for name in GRIDS if name != 'table')}"
        )
    if strength < 1:
        raise RequestError(f"grid table begins at the table's end only, strength {strength} needs another grid")
    return table_spacing(parameterization.table, steps)


def _karras_grid(parameterization: Parameterization, steps: int, strength: float) -> Tensor:
    return karras(*_range(parameterization, strength), steps)


def _uniform_log_grid(parameterization: Parameterization, steps: int, strength: float) -> Tensor:
    return uniform_log(*_range(parameterization, strength), steps)


GRIDS: dict[str, Grid] = {
    "karras": _karras_grid,
    "uniform-log": _uniform_log_grid,
    "uniform-time": uniform_time,
    "table": _table_grid,
}


def _range(parameterization: Parameterization, strength: float) -> tuple[float, float]:
    """The first and the last positive sigma of a grid begun at a strength."""
    first = float(parameterization.sigma_at(torch.tensor(_checked(strength), dtype=torch.float64)))
    # A strength so low that it begins below the trained minimum still needs a range to lay steps in.
    return first, min(parameterization.sigma_min, 0.5 * first)


def _ramp(steps: int) -> Tensor:
    return torch.linspace(0, 1, _positive(steps), dtype=torch.float64)


def _positive(steps: int) -> int:
    if steps < 1:
        raise RequestError(f"steps {steps} is too few; possible: 1 and more")
    return steps


def _checked(strength: float) -> float:
    if not 0 < strength <= 1:
        raise RequestError(f"strength {strength} is out of range; possible: above 0, up to 1")
    return strength


def _closed(sigmas: Tensor) -> Tensor:
    """The grid with its closing 0."""
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()
