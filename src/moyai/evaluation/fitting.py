"""How our own judges are made: what of a picture their trunk sees, the weights it begins with, and how it is optimised.

To be trained in minutes on one core, a trunk sees little at a time: pictures are averaged over squares to a side of at
most 64, which an extractor's name says, and where a side is still above 32, squares of 2 x 2 become channels (Shi et
al. 2016), which loses nothing and lets no convolution work at more than 32 x 32.
"""

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moyai.errors import RequestError
from moyai.nets.trunk import LARGEST, WIDTH, Trunk
from moyai.randomness import permutation, torch_seed

Head = TypeVar("Head", bound=nn.Module)


def shrinking(height: int, width: int) -> int:
    """The side of the squares that pictures of this size are averaged over."""
    return math.ceil(max(height, width) / LARGEST)


def resize_told(height: int, width: int) -> str:
    """The same in the words of an extractor's name."""
    shrink = shrinking(height, width)
    return "no resize" if shrink == 1 else f"averaged over {shrink} x {shrink}"


def seen(images: Tensor) -> Tensor:
    """What the trunk is given of pictures (B, C, H, W): averaged to a side of at most 64; of sides above 32, squares of
    2 x 2 as channels, (B, 4 C, H / 2, W / 2), an odd side repeating its last row."""
    if (shrink := shrinking(*images.shape[2:])) > 1:
        images = F.avg_pool2d(images, shrink, ceil_mode=True)
    height, width = images.shape[2:]
    if max(height, width) <= LARGEST // 2:
        return images
    return F.pixel_unshuffle(F.pad(images, (0, width % 2, 0, height % 2), mode="replicate"), 2)


def untrained(channels: int, head: Callable[[int], Head], seed: int, device: torch.device | str) -> tuple[Trunk, Head]:
    """A trunk and what reads its features, initialised from the seed and nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "extractor"))
        trunk, made = Trunk(int(channels)), head(8 * WIDTH)
    return trunk.to(device), made.to(device)


def optimised(
    net: nn.Module,
    loss: Callable[[int, np.ndarray], Tensor],
    chosen: np.ndarray,
    *,
    seed: int,
    steps: int,
    batch: int,
) -> Iterator[tuple[int, float]]:
    """AdamW with a warm-up and a cosine, over the rows `chosen`, epoch by epoch in a new order."""
    if steps < 1:
        raise RequestError(f"an extractor is trained for 1 step or more, not {steps}")
    batch = min(batch, len(chosen))
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    a_turn = len(chosen) // batch  # batches an epoch; what is left over waits for the next order
    net.train()
    for step in range(steps):
        rate = min(1.0, (step + 1) / (0.05 * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * rate
        turn, place = divmod(step, a_turn)
        order = chosen[permutation(seed, "extractor/order", turn, len(chosen))]
        value = loss(step, order[place * batch : (place + 1) * batch])
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        yield step + 1, float(value.detach())


def parted(count: int, seed: int, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
    """(trained on, held out): a random tenth held out where that is wanted."""
    order = permutation(seed, "extractor/split", 0, count)
    cut = max(1, count // 10) if wanted else 0
    return np.sort(order[cut:]), np.sort(order[:cut])
