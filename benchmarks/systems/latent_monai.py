"""MONAI's tutorial of latent diffusion in two dimensions (`tutorials/generation/2d_ldm/2d_ldm_tutorial.ipynb`).

Kept: AutoencoderKL (128-128-256, f = 4, 3 channels, no attention), L1 + 1e-6 KL, from the twelfth epoch 0.01 of a
least-squares patch discriminator, Adam 1e-4 and 5e-4; DiffusionModelUNet (128-256-512, attention in the lower two),
1,000 steps with linear betas 0.0015 to 0.0195, epsilon, Adam 1e-4, latents scaled by 1 / std of those of a first
batch, encoded anew at each step; batch 64. The tutorial takes about 55 minutes for the first stage and 80 for the
second: so is the time shared here. Altered:

- padded to 32 x 32: the latents, 8 x 8, have to halve twice. No affine augmentation. float32, no scaler.
- no perceptual loss (its weight is 0.001): it needs torchvision and weights that are downloaded.
- drawn by MONAI's DDIMScheduler, for few steps (the tutorial draws with 1,000), without clipping latents to [-1, 1].
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import LatentDiffusionInferer
from monai.losses.adversarial_loss import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from moyai.files import read_json, write_json_atomic
from systems import Clock, Draw, Rebuild, batches, cropped, padded, parameters, restore, save, to_pixels

BATCH, KL, ADVERSARIAL, WARMUP_EPOCHS = 64, 1e-6, 0.01, 11
FIRST_STAGE = 55 / (55 + 80)  # its share of the time
BETAS = {"schedule": "linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
ABOUT = (
    "MONAI's 2d_ldm tutorial: AutoencoderKL f = 4 (L1, KL, later adversarial), then DiffusionModelUNet on 3 x 8 x 8 "
    "latents, batch 64, Adam 1e-4, DDIM; padded to 32 x 32, no perceptual loss (needs torchvision), 41 % of the time "
    "for the first stage as in the tutorial"
)


def build_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(128, 128, 256),
        latent_channels=3,
        num_res_blocks=2,
        attention_levels=(False, False, False),
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def build_net() -> DiffusionModelUNet:
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=3,
        num_res_blocks=2,
        channels=(128, 256, 512),
        attention_levels=(False, True, True),
        num_head_channels=(0, 256, 512),
    )


class Adversary:
    """The patch discriminator with its optimiser, and what it says to the autoencoder."""

    def __init__(self) -> None:
        self.net = PatchDiscriminator(spatial_dims=2, num_layers_d=3, channels=64, in_channels=1, out_channels=1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=5e-4)
        self.loss = PatchAdversarialLoss(criterion="least_squares")

    def fooled(self, made: Tensor) -> Tensor:
        return self.loss(self.net(made.contiguous())[-1], target_is_real=True, for_discriminator=False)

    def learn(self, made: Tensor, real: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        fake = self.loss(self.net(made.detach().contiguous())[-1], target_is_real=False, for_discriminator=True)
        true = self.loss(self.net(real.contiguous())[-1], target_is_real=True, for_discriminator=True)
        (ADVERSARIAL * 0.5 * (fake + true)).backward()
        self.optimizer.step()


def train_first_stage(data: Iterator[Tensor], quiet: int, seconds: float) -> tuple[AutoencoderKL, Clock]:
    """The autoencoder; the adversary says nothing in the first `quiet` steps."""
    model, adversary = build_autoencoder().train(), Adversary()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    clock = Clock(seconds)
    for step in clock.ticks():
        images = padded(next(data), 0.0)
        optimizer.zero_grad(set_to_none=True)
        made, mean, std = model(images)
        kl = 0.5 * (mean.square() + std.square() - std.square().log() - 1).sum(dim=(1, 2, 3)).mean()
        loss = F.l1_loss(made, images) + KL * kl
        if step >= quiet:
            loss = loss + ADVERSARIAL * adversary.fooled(made)
        loss.backward()
        optimizer.step()
        if step >= quiet:
            adversary.learn(made, images)
    return model.eval().requires_grad_(False), clock


def train_net(
    data: Iterator[Tensor], autoencoder: AutoencoderKL, scale: float, seconds: float
) -> tuple[DiffusionModelUNet, Clock]:
    """The diffusion model on latents that are scaled by `scale`."""
    net = build_net().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    inferer = LatentDiffusionInferer(DDPMScheduler(num_train_timesteps=1000, **BETAS), scale_factor=scale)
    clock = Clock(seconds)
    for _ in clock.ticks():
        images = padded(next(data), 0.0)
        noise, times = torch.randn(BATCH, 3, 8, 8), torch.randint(0, 1000, (BATCH,))
        optimizer.zero_grad(set_to_none=True)
        said = inferer(inputs=images, diffusion_model=net, noise=noise, timesteps=times, autoencoder_model=autoencoder)
        F.mse_loss(said, noise).backward()
        optimizer.step()
    return net, clock


def train(pixels: np.ndarray, seconds: float, folder: Path) -> Mapping[str, Any]:
    data = batches(pixels, BATCH)
    quiet = WARMUP_EPOCHS * (len(pixels) // BATCH)
    autoencoder, first = train_first_stage(data, quiet, FIRST_STAGE * seconds)
    begun = first.elapsed
    with torch.no_grad():
        scale = 1 / float(autoencoder.encode_stage_2_inputs(padded(next(data), 0.0)).std())
    net, second = train_net(data, autoencoder, scale, seconds - begun)
    spent = first.facts()
    save(folder / "autoencoder.safetensors", autoencoder)
    save(folder / "unet.safetensors", net)
    write_json_atomic(folder / "scale.json", scale)
    return {
        "steps": second.steps,
        "images": second.steps * BATCH,
        "first stage steps": first.steps,
        "first stage seconds": begun,
        "parameters": parameters(autoencoder, net),
        **spent,
    }


def sampler(folder: Path, steps: int, total: int) -> Draw:
    autoencoder = restore(folder / "autoencoder.safetensors", build_autoencoder())
    net = restore(folder / "unet.safetensors", build_net())
    schedule = DDIMScheduler(num_train_timesteps=1000, clip_sample=False, **BETAS)
    schedule.set_timesteps(steps)
    inferer = LatentDiffusionInferer(schedule, scale_factor=read_json(folder / "scale.json"))

    def draw(first: int, count: int) -> tuple[np.ndarray, None]:
        noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(first))
        made = inferer.sample(noise, autoencoder_model=autoencoder, diffusion_model=net, verbose=False)
        return to_pixels(cropped(made)), None

    return draw


def rebuilder(folder: Path) -> Rebuild | None:
    autoencoder = restore(folder / "autoencoder.safetensors", build_autoencoder())

    def rebuild(pixels: np.ndarray) -> np.ndarray:
        images = padded(torch.from_numpy(pixels)[:, None].float() / 255, 0.0)
        return to_pixels(cropped(autoencoder.reconstruct(images)))

    return rebuild
