"""The training steps of the first stage (L1 + KL), of the first stage with a discriminator (hinge PatchGAN and adaptive
weight), and of the prior (v, one class token), beside the peer's.

Ours is the step of `moyai train`, its averaged weights, counters and draws included, on data already in memory; the
first stage's without the loss of fine detail, which the peer does not have.
The peer's is the plain loop of its guides: network, loss, backward, clip, AdamW. It has no discriminator; the same
losses are written around its autoencoder in the order of its own script: a step of either side, each with a forward of
its own. "auto" is what a user gets who
says nothing; the peer's default is float32.
"""

import argparse
from contextlib import AbstractContextManager, nullcontext

import common
import torch
import torch.nn.functional as F

from moyai.batch import Batch
from moyai.conditioning.conditioner import Conditioner
from moyai.conditioning.config import ClassCondition
from moyai.conditioning.embeddings import ClassEmbedding
from moyai.diffusion import noise
from moyai.diffusion.denoiser import Denoiser
from moyai.diffusion.loss import weighting
from moyai.diffusion.parameterization import V
from moyai.firststage.autoencoder import LatentAutoencoder
from moyai.firststage.config import AdversarialConfig, ObjectiveConfig
from moyai.firststage.objective import Objective
from moyai.firststage.rivalry import Rival
from moyai.nets.config import AutoencoderConfig, DiscriminatorConfig, UNetConfig
from moyai.nets.discriminator import PatchDiscriminator
from moyai.nets.precision import Precision, autocast, autocast_dtype, keep_memory
from moyai.nets.unet import UNet
from moyai.priors.diffusion import DiffusionPrior
from moyai.randomness import Draw
from moyai.training.config import TrainConfig
from moyai.training.ema import gamma_of
from moyai.training.state import TrainState
from moyai.training.steps import Losses, LossOf, train_step

AUTOENCODER = AutoencoderConfig(factor=4, multipliers=(1, 2, 2))
UNET = UNetConfig(multipliers=(1, 2), attention=(True, True))
ADVERSARIAL = AdversarialConfig(net=DiscriminatorConfig(layers=2))
CLASSES, WIDTH = 10, ClassCondition().width


def latent_size(args: argparse.Namespace) -> int:
    return int(args.size) // 4


def _compiled(module: torch.nn.Module, precision: str) -> Precision:
    """Compile where the precision says so ("auto+compile"); the precision without it."""
    name, _, how = precision.partition("+")
    if how == "compile":
        module.compile()
    return name  # type: ignore[return-value]


def _stepper(state: TrainState, loss_of: LossOf, batch: Batch) -> common.Step:
    gamma = gamma_of(state.config.ema.std)

    def step() -> None:
        train_step(state, loss_of, batch, Draw(0, state.step, len(batch)), gamma)

    return step


def first_stage(args: argparse.Namespace, precision: str) -> common.Step:
    keep_memory()
    model = LatentAutoencoder(AUTOENCODER, args.channels)
    _compiled(model.encoder, precision)
    number_format = _compiled(model.decoder, precision)
    objective = Objective(ObjectiveConfig())
    images = torch.randn(args.batch, args.channels, args.size, args.size)

    def loss_of(batch: Batch, draw: Draw) -> Losses:
        assert batch.images is not None
        with autocast(number_format, "cpu"):
            posterior = model.encode(batch.images)
            reconstructions = model.decode(posterior.sample(draw), (args.size, args.size))
            terms = objective(batch.images, reconstructions, posterior, draw.step)
        return terms.fidelity + terms.regularizer, terms.parts

    state = TrainState.new({"autoencoder": model}, TrainConfig(steps=10_000))
    return _stepper(state, loss_of, Batch(torch.arange(args.batch), images))


def adversarial(args: argparse.Namespace, precision: str) -> common.Step:
    keep_memory()
    model = LatentAutoencoder(AUTOENCODER, args.channels)
    rival = Rival(ADVERSARIAL, PatchDiscriminator(ADVERSARIAL.net, args.channels))
    _compiled(model.encoder, precision)
    number_format = _compiled(model.decoder, precision)
    objective = Objective(ObjectiveConfig())
    images = torch.randn(args.batch, args.channels, args.size, args.size)

    def loss_of(batch: Batch, draw: Draw) -> Losses:
        assert batch.images is not None
        with autocast(number_format, "cpu"):
            posterior = model.encode(batch.images)
            reconstructions = model.decode(posterior.sample(draw), (args.size, args.size))
            terms = objective(batch.images, reconstructions, posterior, draw.step)
            more, said = rival.losses(batch.images, reconstructions, {}, terms.fidelity, model.last_layer, 1.0)
        return terms.fidelity + terms.regularizer + more, {**terms.parts, **said}

    state = TrainState.new({"autoencoder": model}, TrainConfig(steps=10_000), {"discriminator": rival}, 2e-4)
    return _stepper(state, loss_of, Batch(torch.arange(args.batch), images))


def prior(args: argparse.Namespace, precision: str) -> common.Step:
    keep_memory()
    model, conditioner = make_prior(precision)
    side = latent_size(args)
    latents = {"mean": torch.randn(args.batch, 4, side, side)}
    fields = {"class": torch.arange(args.batch) % CLASSES}

    def loss_of(batch: Batch, draw: Draw) -> Losses:
        assert batch.latents is not None
        return model.loss(batch.latents["mean"], conditioner.dropped(batch.fields, draw), draw), {}

    state = TrainState.new({"prior": model, "conditioner": conditioner}, TrainConfig(steps=10_000))
    return _stepper(state, loss_of, Batch(torch.arange(args.batch), None, latents, fields))


def make_prior(precision: str) -> tuple[DiffusionPrior, Conditioner]:
    conditioner = Conditioner({"class": ClassEmbedding(ClassCondition(), CLASSES)})
    net = UNet(UNET, channels_in=4, channels_out=4, vector_width=WIDTH, context_width=WIDTH)
    made = V(noise.Table.cosine())
    denoiser = Denoiser(net, made)
    denoiser.autocast = autocast_dtype(_compiled(net, precision), "cpu")
    return DiffusionPrior(denoiser, noise.TableDensity(made.table), weighting("plain")), conditioner


def peer_context(precision: str) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def peer_first_stage(args: argparse.Namespace, precision: str) -> common.Step:
    import peers

    model = peers.autoencoder(AUTOENCODER, args.channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(args.batch, args.channels, args.size, args.size)

    def step() -> None:
        with peer_context(precision):
            posterior = model.encode(images).latent_dist
            reconstructions = model.decode(posterior.sample()).sample
            loss = F.l1_loss(reconstructions.float(), images) + 1e-6 * posterior.kl().mean() / images[0].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peer_adversarial(args: argparse.Namespace, precision: str) -> common.Step:
    import peers

    model = peers.autoencoder(AUTOENCODER, args.channels)
    rival = PatchDiscriminator(ADVERSARIAL.net, args.channels)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-4) for m in (model, rival)]
    images = torch.randn(args.batch, args.channels, args.size, args.size)
    last = model.decoder.conv_out.weight

    def generator() -> torch.Tensor:
        with peer_context(precision):
            posterior = model.encode(images).latent_dist
            reconstructions = model.decode(posterior.sample()).sample
            reconstruction = F.l1_loss(reconstructions.float(), images)
            fooled = -rival(reconstructions).mean()
        norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, fooled)]
        weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
        return reconstruction + 1e-6 * posterior.kl().mean() / images[0].numel() + 0.5 * weight * fooled

    def discriminator() -> torch.Tensor:
        with torch.no_grad(), peer_context(precision):
            fakes = model.decode(model.encode(images).latent_dist.sample()).sample
        with peer_context(precision):
            real, fake = rival(images), rival(fakes)
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())

    def step() -> None:
        for side, module, optimizer in zip((generator, discriminator), (model, rival), optimizers, strict=True):
            optimizer.zero_grad()
            side().backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()

    return step


def peer_prior(args: argparse.Namespace, precision: str) -> common.Step:
    import diffusers
    import peers

    side = latent_size(args)
    net = peers.unet(UNET, 4, size=side, context_width=WIDTH)
    embedding = torch.nn.Embedding(CLASSES + 1, WIDTH)
    parameters = [*net.parameters(), *embedding.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    schedule = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    latents, labels = torch.randn(args.batch, 4, side, side), torch.arange(args.batch) % CLASSES

    def step() -> None:
        start, time = torch.randn_like(latents), torch.randint(0, 1000, (args.batch,))
        told = torch.where(torch.rand(args.batch) < 0.1, CLASSES, labels)
        with peer_context(precision):
            vector = embedding(told)
            output = net(schedule.add_noise(latents, start, time), time, vector[:, None], class_labels=vector).sample
            loss = F.mse_loss(output.float(), schedule.get_velocity(latents, start, time))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


STAGES = {
    "first-stage": (first_stage, peer_first_stage),
    "adversarial": (adversarial, peer_adversarial),
    "prior": (prior, peer_prior),
}


def main() -> None:
    parser = common.parser(__doc__ or "")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--size", type=int, default=28, help="side of the pictures; latents are a quarter of it")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also ours with torch.compile")
    args = parser.parse_args()
    stages = list(STAGES) if args.stage == "all" else [args.stage]
    systems = {f"{who}/{s}": STAGES[s][i] for s in STAGES for i, who in enumerate(("moyai", "diffusers"))}
    if args.worker:
        return common.work(args, systems)
    for stage in stages:
        workers = [f"moyai/{stage}/auto", f"moyai/{stage}/float32"]
        workers += [f"diffusers/{stage}/float32", f"diffusers/{stage}/bfloat16"]
        workers += [f"moyai/{stage}/auto+compile"] * args.compile
        common.compare(args, systems, workers, args.batch)
    return None


if __name__ == "__main__":
    main()
