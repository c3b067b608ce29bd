"""`denoising-diffusion-pytorch`: a U-Net in pixels that predicts v, as its README trains it, drawn by DDIM.

Kept: Unet(dim = 64), GaussianDiffusion(timesteps = 1000, sampling_timesteps for DDIM), batch 32, Adam with learning
rate 8e-5 and betas (0.9, 0.99), gradients clipped at 1, averaged weights with decay 0.995 updated every 10 steps
(ema-pytorch's). Altered:

- dim_mults (1, 2, 4) and not (1, 2, 4, 8): 28 halves twice only. Flash attention is off (the same mathematics).
- Its Trainer needs torchvision, whose transforms read the files of a folder. The package imports it on loading, so
  something empty stands in for that import, and the loop is ours, with the Trainer's steps in their order.
- No accumulation over two batches (the Trainer's own default; the README's would halve the number of updates), no
  mirroring (all shoes point to the left), float32.

The package declares torchvision, so it is no extra of the project. Without it:

    pip install --no-deps denoising-diffusion-pytorch ema-pytorch accelerate einops pytorch-fid psutil
    pip install scipy tqdm
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from ema_pytorch import EMA

from systems import Clock, Draw, Rebuild, batches, parameters, restore, save, to_pixels

BATCH, RATE, BETAS, CLIP, DECAY, EVERY = 32, 8e-5, (0.9, 0.99), 1.0, 0.995, 10
ABOUT = (
    "denoising-diffusion-pytorch: v in pixels, Unet(dim 64, mults 1-2-4), batch 32, Adam 8e-5, EMA 0.995, DDIM; "
    "its Trainer's torchvision is stood in for, the loop is the benchmark's; no mirroring, no accumulation"
)


@contextmanager
def standing_in(name: str, *parts: str) -> Iterator[None]:
    """Empty modules by these names while something is imported, where the package is absent."""
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        yield
        return
    whole = ModuleType(name)
    made = {name: whole} | {f"{name}.{part}": ModuleType(f"{name}.{part}") for part in parts}
    for full, module in made.items():
        module.__spec__ = importlib.machinery.ModuleSpec(full, None)
    for part in parts:
        setattr(whole, part, made[f"{name}.{part}"])
    sys.modules.update(made)
    try:
        yield
    finally:
        for full in made:
            del sys.modules[full]


with standing_in("torchvision", "transforms", "utils"):
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet


def build(steps: int) -> GaussianDiffusion:
    net = Unet(dim=64, dim_mults=(1, 2, 4), channels=1, flash_attn=False)
    return GaussianDiffusion(net, image_size=28, timesteps=1000, sampling_timesteps=steps)


def train(pixels: np.ndarray, seconds: float, folder: Path) -> Mapping[str, Any]:
    diffusion = build(steps=50).train()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=RATE, betas=BETAS)
    average = EMA(diffusion, beta=DECAY, update_every=EVERY)
    data = batches(pixels, BATCH)
    clock = Clock(seconds)
    for _ in clock.ticks():
        diffusion(next(data)).backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    spent = clock.facts()
    save(folder / "weights.safetensors", average.ema_model)
    return {"steps": clock.steps, "images": clock.steps * BATCH, "parameters": parameters(diffusion), **spent}


def sampler(folder: Path, steps: int, total: int) -> Draw:
    model = restore(folder / "weights.safetensors", build(steps))

    def draw(first: int, count: int) -> tuple[np.ndarray, None]:
        torch.manual_seed(first)
        return to_pixels(model.sample(batch_size=count)), None

    return draw


def rebuilder(folder: Path) -> Rebuild | None:
    return None
