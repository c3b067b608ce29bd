"""Which device to compute on, from what a user says."""

import torch

from moyai.errors import RequestError


def chosen(name: str | None) -> torch.device:
    """The device of a name; a GPU where there is one when nothing is said. RequestError where it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise RequestError(f"device {name!r} is not to be had here; possible: {', '.join(['cpu', *gpus])}") from error
    return device
