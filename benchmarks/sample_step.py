"""One guided sampling step (a forward of 2B, guidance 2, an update of DDIM) of the prior, beside the peer's.

Ours is the denoiser, guidance and sampler of `moyai sample`; the peer's is the plain loop of its guides with
`DDIMScheduler`. A step makes `--batch` latents one step cleaner.
"""

import argparse

import common
import torch
from train_step import CLASSES, UNET, WIDTH, latent_size, make_prior, peer_context

from moyai.diffusion.guidance import guided
from moyai.diffusion.sampling import euler
from moyai.nets.precision import keep_memory

STEPS, GUIDANCE = 50, 2.0


def ours(args: argparse.Namespace, precision: str) -> common.Step:
    keep_memory()
    model, conditioner = make_prior(precision)
    model.eval()
    side = latent_size(args)
    x = torch.randn(args.batch, 4, side, side)
    labels = torch.arange(args.batch) % CLASSES
    told = {"class": torch.ones(args.batch, dtype=torch.bool)}
    with torch.no_grad():
        cond = conditioner({"class": labels}, args.batch, told)
        null = conditioner({"class": labels}, args.batch, {"class": ~told["class"]})
    denoise = guided(model.denoiser, cond, null, GUIDANCE)
    sigmas = torch.tensor([2.0, 1.8])

    @torch.no_grad()
    def step() -> None:
        for _ in euler(denoise, x, sigmas):
            pass

    return step


def peer(args: argparse.Namespace, precision: str) -> common.Step:
    import diffusers
    import peers

    side = latent_size(args)
    net = peers.unet(UNET, 4, size=side, context_width=WIDTH).eval()
    schedule = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    schedule.set_timesteps(STEPS)
    x, vector = torch.randn(args.batch, 4, side, side), torch.randn(2 * args.batch, WIDTH)

    @torch.no_grad()
    def step() -> None:
        time = schedule.timesteps[STEPS // 2]
        with peer_context(precision):
            both = torch.cat([x, x])
            output = net(both, time, vector[:, None], class_labels=vector).sample
            null, cond = output.float().chunk(2)
            schedule.step(null + GUIDANCE * (cond - null), time, x)

    return step


def main() -> None:
    parser = common.parser(__doc__ or "")
    parser.add_argument("--size", type=int, default=28, help="side of the pictures; latents are a quarter of it")
    parser.add_argument("--compile", action="store_true", help="also ours with torch.compile")
    args = parser.parse_args()
    systems = {"moyai": ours, "diffusers": peer}
    if args.worker:
        return common.work(args, systems)
    workers = ["moyai/auto", "moyai/float32", "diffusers/float32", "diffusers/bfloat16"]
    common.compare(args, systems, workers + ["moyai/auto+compile"] * args.compile, args.batch)
    return None


if __name__ == "__main__":
    main()
