"""diffusers' example of unconditional generation (`examples/unconditional_image_generation`): epsilon in pixels.

Kept: its UNet2DModel (six levels, 128-128-256-256-512-512, attention in the fifth), DDPMScheduler with 1,000 steps,
batch 16, AdamW (learning rate 1e-4, betas 0.95 and 0.999, decay 1e-6), warm-up of 500 steps and cosine over 100
epochs, gradients clipped at 1, averaged weights (inverse gamma 1, power 3/4, at most 0.9999), float32, no mirroring
(a flag, off by default). Altered: one channel; pictures padded to 32 x 32, since six levels halve five times; drawn
with its DDIMScheduler made from the training's, for few steps (the example draws with 1,000).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from systems import Clock, Draw, Rebuild, batches, cropped, padded, parameters, restore, save, to_pixels

BATCH, RATE, CLIP, WARMUP, EPOCHS = 16, 1e-4, 1.0, 500, 100
ABOUT = (
    "diffusers' train_unconditional.py: epsilon in pixels, its UNet2DModel of six levels, batch 16, AdamW 1e-4 with "
    "500 steps of warm-up, EMA, DDIM; padded to 32 x 32, one channel"
)


def build() -> diffusers.UNet2DModel:
    return diffusers.UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=(*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
    )


def schedule() -> diffusers.DDPMScheduler:
    return diffusers.DDPMScheduler(num_train_timesteps=1000)


def train(pixels: np.ndarray, seconds: float, folder: Path) -> Mapping[str, Any]:
    net, noising = build().train(), schedule()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    planned = EPOCHS * -(-len(pixels) // BATCH)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=planned)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    data = batches(pixels, BATCH)
    clock = Clock(seconds)
    for _ in clock.ticks():
        clean = padded(next(data) * 2 - 1, -1.0)
        noise, times = torch.randn_like(clean), torch.randint(0, 1000, (BATCH,))
        loss = F.mse_loss(net(noising.add_noise(clean, noise, times), times).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(net.parameters())
    spent = clock.facts()
    average.copy_to(net.parameters())
    save(folder / "weights.safetensors", net)
    return {"steps": clock.steps, "images": clock.steps * BATCH, "parameters": parameters(net), **spent}


def sampler(folder: Path, steps: int, total: int) -> Draw:
    net = restore(folder / "weights.safetensors", build()).to(memory_format=torch.channels_last)  # a third faster
    pipeline = diffusers.DDIMPipeline(net, diffusers.DDIMScheduler.from_config(schedule().config))
    pipeline.set_progress_bar_config(disable=True)

    def draw(first: int, count: int) -> tuple[np.ndarray, None]:
        generator = torch.Generator().manual_seed(first)
        made = pipeline(count, generator=generator, num_inference_steps=steps, output_type="np").images  # (n, h, w, 1)
        return to_pixels(cropped(torch.from_numpy(made).permute(0, 3, 1, 2))), None

    return draw


def rebuilder(folder: Path) -> Rebuild | None:
    return None
