"""moyai: latent diffusion, from a folder of images to samples and a report.

The public names are imported when they are first used, so that `import moyai` and `moyai --help` do not wait for torch.
"""

from importlib import import_module
from typing import Any

from moyai.version import __version__

_PUBLIC = {
    "LatentModel": "moyai.model",
    "load": "moyai.checkpoints.models",
    "train": "moyai.training.run",
    "sample": "moyai.tasks",
    "edit": "moyai.tasks",
}

__all__ = ["LatentModel", "__version__", "edit", "load", "sample", "train"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'moyai' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
