"""The systems that `quality.py` compares, each as its own documentation says, in a module of its own.

A system trains on pictures (N, 28, 28) uint8 for so many seconds of wall time and leaves its weights in a folder; from
there it draws samples, and tells what its first stage makes of a picture where it has one. All work on the processor,
the peers in float32, moyai as its recipe says: in bfloat16 where the processor has it, else in float32. Nothing is
imported before its system is asked for, so that each peer may be absent.
"""

import importlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from moyai import files

Draw = Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]  # (first, count) -> pictures, classes asked for
Rebuild = Callable[[np.ndarray], np.ndarray]
# Where each system is, and the packages whose versions are told with its results.
MODULES = {
    "moyai": ("systems.recipe", ("moyai",)),
    "ddpm": ("systems.pixel_ddpm", ("denoising-diffusion-pytorch", "ema-pytorch")),
    "diffusers": ("systems.unconditional", ("diffusers",)),
    "monai": ("systems.latent_monai", ("monai",)),
}
INSTALL = {
    "ddpm": "pip install --no-deps denoising-diffusion-pytorch ema-pytorch accelerate einops pytorch-fid psutil && "
    "pip install scipy tqdm",
    "diffusers": "pip install -e '.[peers]'",
    "monai": "pip install -e '.[peers]'",
}


class System(Protocol):
    """A module of this package."""

    ABOUT: str  # what it is and what of its documentation was altered, for the table's notes

    def train(self, pixels: np.ndarray, seconds: float, folder: Path) -> Mapping[str, Any]:
        """Leave weights in `folder`; returns facts (steps, images seen, parameters, seconds of training)."""
        ...

    def sampler(self, folder: Path, steps: int, total: int) -> Draw:
        """What draws the pictures first .. first + count of `total`, (count, 28, 28) uint8."""
        ...

    def rebuilder(self, folder: Path) -> Rebuild | None:
        """What takes pictures (n, 28, 28) uint8 through the first stage and back; None where there is none."""
        ...


def load(name: str) -> System:
    """A system by name; SystemExit saying what to install where its package is absent."""
    try:
        return importlib.import_module(MODULES[name][0])  # type: ignore[return-value]
    except ModuleNotFoundError as error:
        hint = f"; {INSTALL[name]}" if name in INSTALL else ""
        raise SystemExit(f"{name} cannot run here: {error}{hint}") from error


def versions(name: str) -> dict[str, str]:
    """The versions of a system's packages and of torch."""
    return {package: importlib.metadata.version(package) for package in (*MODULES[name][1], "torch")}


# ---- what the peers' loops share


@dataclass
class Clock:
    """Wall time of training. A step that began within the time is finished and counts."""

    seconds: float
    steps: int = 0

    def __post_init__(self) -> None:
        self.began, self.worked = time.perf_counter(), time.process_time()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def facts(self) -> dict[str, float]:
        """Seconds so far, and those of the processor: far fewer where the machine did other things too."""
        return {"seconds": self.elapsed, "processor seconds": time.process_time() - self.worked}

    def ticks(self) -> Iterator[int]:
        """The number of each step, from 0, until the time is over; one at least."""
        while self.steps == 0 or self.elapsed < self.seconds:
            yield self.steps
            self.steps += 1


def batches(pixels: np.ndarray, size: int, seed: int = 0) -> Iterator[Tensor]:
    """Batches (size, 1, 28, 28) in [0, 1], shuffled anew each epoch, for ever."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.from_numpy(np.ascontiguousarray(pixels))[:, None]  # uint8
    while True:
        for rows in torch.randperm(len(data), generator=generator).split(size):
            if len(rows) == size:
                yield data[rows].float() / 255


def padded(images: Tensor, edge: float) -> Tensor:
    """28 x 28 to 32 x 32, which halves five times, with a border of `edge` (black)."""
    return torch.nn.functional.pad(images, (2, 2, 2, 2), value=edge)


def cropped(images: Tensor) -> Tensor:
    """The inverse of `padded`."""
    return images[..., 2:-2, 2:-2]


def to_pixels(images: Tensor) -> np.ndarray:
    """(n, 1, h, w) in [0, 1] to (n, h, w) uint8."""
    return images.detach()[:, 0].nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()


def parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def save(path: Path, module: torch.nn.Module) -> None:
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    files.write_atomic(path, safetensors.torch.save(tensors))


def restore(path: Path, module: torch.nn.Module) -> torch.nn.Module:
    """The module with the saved weights, ready to be used."""
    module.load_state_dict(safetensors.torch.load(path.read_bytes()))
    return module.eval().requires_grad_(False)
