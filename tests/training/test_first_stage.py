"""The first stage with everything on: whose gradient is found where, for any channels, in any precision.

Each of the ways in which a widely used training script for autoencoders goes wrong is a test: a perceptual loss that
nothing learns from, gradients that leak between the autoencoder and its discriminator, weights that training leaves in
half precision, resuming that fails (tests/training/test_resume.py), three channels written into the code, gradients
that go past what averages them over processes (several are refused).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from moyai.build.firststage import build_autoencoder, build_rival
from moyai.data.images import ImageSet, SourceFile
from moyai.errors import DataError
from moyai.firststage import perceptual
from moyai.nets.trunk import Trunk
from moyai.randomness import Draw, generator
from moyai.recipe import reading, resolve
from moyai.recipe.resolve import DataFacts
from moyai.training import first_stage
from moyai.training.first_stage import FirstStageTraining
from moyai.training.steps import NonFiniteError, train_step

STEPS = 20
ADVERSARIAL: dict[str, Any] = {"net": {"width": 8, "layers": 1}, "start": 2.0, "warmup": 0.05}


def images(channels: int = 1, height: int = 8, width: int = 8, count: int = 16) -> ImageSet:
    pixels = generator(0, "test").integers(0, 256, (count, channels, height, width)).astype(np.uint8)
    fields = {
        "class": np.arange(count, dtype=np.int64) % 2,
        "position": np.linspace(0, 1, count, dtype=np.float32),
    }
    names = [str(i) for i in range(count)]
    return ImageSet(pixels, fields, ("a", "b"), names, (SourceFile("noise", pixels.nbytes, "0" * 64),))


def stage(data: ImageSet, judged: bool = True, **changes: Any) -> FirstStageTraining:
    channels, height, width = data.shape
    facts = DataFacts(
        channels=channels, height=height, width=width, count=len(data), classes=data.classes, fields=tuple(data.fields)
    )
    train = {**tiny.QUICK, "steps": STEPS, "batch": 8, "precision": "float32", "clip": None}
    base = {
        "first_stage.train": train,
        "first_stage.objective": {"adversarial": ADVERSARIAL, "perceptual": {"kind": "own"}},
        "first_stage.conditions": {"position": {}},
    }
    recipe = resolve.resolve(reading.parse(tiny.tree(Path("unused"), {**base, **changes})), facts)
    torch.manual_seed(0)
    return FirstStageTraining(
        recipe,
        build_autoencoder(recipe, facts),
        data,
        data,
        torch.device("cpu"),
        perceptual=perceptual.own(Trunk(channels)) if judged else None,
        rival=build_rival(recipe, facts),
    )


def awake(made: FirstStageTraining) -> FirstStageTraining:
    """Weights that begin at zero would hide what lies behind them."""
    torch.manual_seed(1)
    for parameter in made.autoencoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return made


def gradients(made: FirstStageTraining, step: int = 10) -> dict[str, Tensor | None]:
    """Of the loss of one step, by the names of the state."""
    batch = made.batch(step)
    loss, _ = made.losses(batch, Draw(0, step, len(batch), stage="first_stage"))
    for _, parameter in made.state.parameters():
        parameter.grad = None
    loss.mean().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in made.state.parameters()}


def test_every_parameter_of_both_sides_learns() -> None:
    # With the hinge, the two halves of the last bias's gradient cancel while all logits lie between -1 and 1.
    vanilla = {"adversarial": {**ADVERSARIAL, "loss": "vanilla"}, "perceptual": {"kind": "own"}}
    found = gradients(awake(stage(images(), **{"first_stage.objective": vanilla})))
    assert {name.split(".")[0] for name in found} == {"autoencoder", "discriminator"}
    idle = [name for name, grad in found.items() if grad is None or not bool((grad != 0).any())]
    assert [name for name in idle if not name.endswith("conditioner.conditions.position.null")] == []


def test_the_discriminator_learns_from_its_own_loss_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = awake(stage(images()))
    assert made.rival is not None
    both = gradients(made)
    monkeypatch.setattr(
        type(made.rival), "share", lambda self, step, steps: 1e-30
    )  # the generator's term counts nothing
    alone = gradients(made)
    mine = [name for name in both if name.startswith("discriminator")]
    assert len(mine) > 5
    for name in mine:
        torch.testing.assert_close(both[name], alone[name], rtol=0, atol=0)
    assert any(bool((both[n] != alone[n]).any()) for n in both if n.startswith("autoencoder"))


def test_the_autoencoder_never_learns_from_the_discriminators_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    made = awake(stage(images()))
    assert made.rival is not None
    both = gradients(made)
    judged = type(made.rival)._discriminator

    def silent(self: Any, *args: Any) -> Any:
        loss, real, fake = judged(self, *args)
        return loss * 0, real, fake

    monkeypatch.setattr(type(made.rival), "_discriminator", silent)
    without = gradients(made)
    for name, grad in both.items():
        if name.startswith("autoencoder"):
            torch.testing.assert_close(grad, without[name], rtol=0, atol=0)
        else:
            assert without[name] is None or not bool((without[name] != 0).any()), name


def test_the_perceptual_distance_is_learned_from_and_its_network_is_not() -> None:
    made = awake(stage(images()))
    plain = awake(stage(images(), judged=False, **{"first_stage.objective": {"adversarial": ADVERSARIAL}}))
    name = "autoencoder.decoder.conv_in.weight"
    with_it, without = gradients(made)[name], gradients(plain)[name]
    assert with_it is not None
    assert without is not None
    assert not torch.allclose(with_it, without, rtol=0.05)
    assert made.objective.perceptual is not None
    assert not any(p.requires_grad for p in made.objective.perceptual.parameters())
    assert not any("perceptual" in key for key in made.state.contents()["model"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 8, 12), (4, 12, 8)])
def test_any_channels_and_sides_in_either_precision(channels: int, height: int, width: int, precision: str) -> None:
    train = {**tiny.QUICK, "steps": STEPS, "batch": 4, "micro_batch": 2, "precision": precision}
    made = stage(images(channels, height, width), **{"first_stage.train": train})
    before = {name: tensor.clone() for name, tensor in made.state.contents()["model"].items()}
    for step in range(4):
        batch = made.batch(step)
        draw = Draw(0, step, len(batch), stage="first_stage")
        said = train_step(made.state, made.losses, batch, draw, 6.0, made.applied)
        assert ("adversarial" in said) == (step >= 2)
    saved = made.state.contents()
    after = saved["model"]
    assert {t.dtype for t in saved["ema"].values() if t.is_floating_point()} == {torch.float32}
    assert {t.dtype for t in after.values() if t.is_floating_point()} == {torch.float32}
    moved = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"autoencoder", "discriminator"}
    assert made.validate()["psnr"] > 0
    # A rate far below bfloat16's resolution still moves the weights: they were never rounded.
    small = 1 + 2.0**-20
    assert torch.tensor(small) != 1
    assert any(bool((t.bfloat16().float() != t).any()) for t in after.values() if t.is_floating_point())


@pytest.mark.parametrize("kind", ["kl", "vq", "fsq"])
def test_a_first_stage_is_told_of_the_picture(kind: str) -> None:
    more = {"first_stage.kind": kind} | ({"first_stage.codebook": {"size": 8}} if kind == "vq" else {})
    made = awake(stage(images(), **more))
    z = torch.randn(2, made.autoencoder.channels, 2, 2, generator=torch.Generator().manual_seed(0))
    z = made.autoencoder.quantize(z)
    one, other, null = (
        made.autoencoder.decode(z, (8, 8), made.autoencoder.told(fields, 2))
        for fields in ({"position": torch.zeros(2)}, {"position": torch.ones(2)}, {})
    )
    assert bool((one != other).any())
    assert bool((one != null).any())
    torch.testing.assert_close(made.autoencoder.decode(z, (8, 8)), null, rtol=0, atol=0)
    batch = made.batch(0)
    assert bool(torch.isfinite(made.losses(batch, Draw(0, 0, len(batch), stage="first_stage"))[0]).all())


def test_a_codebook_starts_on_the_latents_and_follows_them() -> None:
    made = stage(images(), **{"first_stage.kind": "vq", "first_stage.codebook": {"size": 8}})
    start = made.autoencoder.bottleneck.codebook.clone()
    for step in range(3):
        batch = made.batch(step)
        train_step(made.state, made.losses, batch, Draw(0, step, len(batch), stage="first_stage"), 6.0, made.applied)
        now = made.autoencoder.bottleneck.codebook
        assert not torch.equal(now, start)
        start = now.clone()
    average = made.state.averages["autoencoder"]
    torch.testing.assert_close(average.bottleneck.codebook, start, rtol=0, atol=0)  # not averaged, followed
    found = made.validate()
    assert 1 <= found["perplexity"] <= 8
    assert 0 < found["codes used"] <= 1


def test_a_codebook_looks_at_as_many_pictures_as_it_has_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_stage, "FIRST_LOOK", 1)
    made = stage(images(), **{"first_stage.kind": "vq", "first_stage.codebook": {"size": 40}})
    batch = made.batch(0)
    made.losses(batch, Draw(0, 0, len(batch), stage="first_stage"))  # 3 pictures of 4 x 4 latents
    assert float(made.autoencoder.bottleneck.usage.sum()) == pytest.approx(48, abs=8)  # each counts for one at least
    assert len(made._first_latents("", 40)) == 3
    assert len(made._first_latents("", 10**6)) == 16


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"first_stage.kind": "vq", "first_stage.codebook": {"size": 257}}, "first_stage.codebook.size=256 or less"),
        ({"first_stage.kind": "vq2", "first_stage.codebook": {"size": 65}}, "first_stage.top_codebook.size=64 or less"),
    ],
)
def test_a_codebook_larger_than_the_data_is_refused_by_its_key(changes: dict[str, Any], key: str) -> None:
    codes = {"prior.kind": "codes", "prior.net": {"kind": "pixelcnn", "width": 8, "layers": 1}}
    made = stage(images(), **changes, **(codes if changes["first_stage.kind"] == "vq2" else {}))
    batch = made.batch(0)
    with pytest.raises(
        DataError, match=rf"cannot start from .* latents \(16 pictures .*possible: {key}, more pictures"
    ):
        made.losses(batch, Draw(0, 0, len(batch), stage="first_stage"))


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_a_step_that_is_not_finite_leaves_nothing_in_the_discriminator(norm: str) -> None:
    adversarial = {**ADVERSARIAL, "net": {"width": 16, "layers": 1, "norm": norm}, "regularizer": "lecam"}
    made = stage(images(), judged=False, **{"first_stage.objective": {"adversarial": adversarial}})
    before = {name: tensor.clone() for name, tensor in made.state.contents()["model"].items()}
    batch = made.batch(5)
    assert batch.images is not None
    batch.images[0] = float("nan")
    with pytest.raises(NonFiniteError):
        train_step(made.state, made.losses, batch, Draw(0, 5, 8, stage="first_stage"), 6.0, made.applied)
    for name, tensor in made.state.contents()["model"].items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_discriminator_is_read_on_held_out_pictures_once_it_has_begun(norm: str) -> None:
    adversarial = {**ADVERSARIAL, "net": {"width": 16, "layers": 1, "norm": norm}}
    made = stage(images(), judged=False, **{"first_stage.objective": {"adversarial": adversarial}})
    for step in range(3):  # it begins with step 2
        assert not {"logits real", "logits fake"} & made.validate().keys()
        batch = made.batch(step)
        train_step(made.state, made.losses, batch, Draw(0, step, 8, stage="first_stage"), 6.0, made.applied)
    state = {name: tensor.clone() for name, tensor in made.state.contents()["model"].items()}
    said = made.validate()
    for name, tensor in made.state.contents()["model"].items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    assert made.rival is not None
    held_out = made.held_out.batch(np.arange(16))
    assert held_out.images is not None
    average: Any = made.state.averages["autoencoder"]
    with torch.no_grad():
        cond = average.told(held_out.fields, 16)
        again = average.decode(average.encode(held_out.images, cond).mode(), (8, 8), cond).clamp(-1, 1)
        vector = made.rival.conditioner(held_out.fields, 16).vector
        for name, shown in (("logits real", held_out.images), ("logits fake", again)):
            assert said[name] == pytest.approx(float(made.rival.discriminator(shown, vector).mean()), abs=1e-5)


def test_learned_similarity_is_not_rounded_in_half_precision() -> None:
    """Features themselves are; their distance, a mean of small squares, is that of the features as they are."""
    made = stage(images(), judged=False)
    rival = made.rival
    assert rival is not None
    x = made.batch(0).images
    assert x is not None
    near, vector = x + 0.02, torch.zeros(len(x), rival.discriminator.vector_width or 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        distance = rival._distance(x, near, vector)
        maps = [rival.discriminator.features(one, vector) for one in (x, near)]
    assert maps[0][0].dtype == torch.bfloat16
    assert distance.dtype == torch.float32
    each = [(a.double() - b.double()).square().flatten(1).mean(1) for a, b in zip(*maps, strict=True)]
    torch.testing.assert_close(distance.double(), torch.stack(each).mean(0), rtol=1e-5, atol=0)


def test_a_step_that_was_not_applied_leaves_nothing_to_the_running_means() -> None:
    lecam = {"adversarial": {**ADVERSARIAL, "regularizer": "lecam"}}
    made, skipped = (stage(images(), judged=False, **{"first_stage.objective": lecam}) for _ in range(2))
    batch, draw = made.batch(5), Draw(0, 5, 8, stage="first_stage")
    skipped.losses(skipped.batch(4), Draw(0, 4, 8, stage="first_stage"))  # not finite, say: `applied` is never called
    for one in (made, skipped):
        one.losses(batch, draw)
        one.applied(draw)
    means = [dict(one.rival.lecam.named_buffers()) for one in (made, skipped) if one.rival and one.rival.lecam]
    assert len(means) == 2
    assert means[0]
    for name, value in means[0].items():
        torch.testing.assert_close(value, means[1][name], rtol=0, atol=0)


# What a step's loss is made of, in its place ------------------------------------------------------------------------


def terms(made: FirstStageTraining, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a step and its parts, the same pictures and randomness for equal steps."""
    loss, parts = made.losses(made.batch(0), Draw(0, step, 8, stage=made.name))
    return loss.detach(), parts


def test_the_kl_weight_of_a_step_is_the_annealed_one() -> None:
    plain = {"first_stage.objective": {"kl": {"weight": 0.5}}}
    rising = {
        "first_stage.objective": {"kl": {"weight": 0.5, "anneal": {"kind": "cyclical", "cycles": 1, "ratio": 0.5}}}
    }
    fixed, annealed = stage(images(), False, **plain), stage(images(), False, **rising)
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (19, 1.0)):  # of 20: half of the run rises
        loss, parts = terms(fixed, step)
        other, same = terms(annealed, step)
        assert torch.equal(parts["kl"], same["kl"])
        torch.testing.assert_close(loss - other, 0.5 * (1 - share) * parts["kl"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("regularizer", "step"), [("r1", 10), ("lecam", 10)])
def test_a_regularizer_is_part_of_what_the_discriminator_learns_from(regularizer: str, step: int) -> None:
    def loss(weight: float, kind: str = regularizer) -> Tensor:
        more = {**ADVERSARIAL, "regularizer": kind, "regularizer_weight": weight}
        made = awake(stage(images(), **{"first_stage.objective": {"adversarial": more}}))
        rival = made.rival
        assert rival is not None
        if rival.lecam is not None:  # its means are known from earlier steps
            rival.lecam.update(torch.full((4,), 0.5), torch.full((4,), -0.5))
        return terms(made, step)[1]["discriminator"]

    none, one, two = loss(0.0), loss(1.0), loss(2.0)
    assert (one - none).abs().max() > 1e-6
    torch.testing.assert_close(two - none, 2 * (one - none), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(none, loss(1.0, "none"))


def test_the_adversarial_term_counts_by_its_weight_times_the_adaptive_one() -> None:
    def of(**config: Any) -> tuple[Tensor, dict[str, Tensor]]:
        made = awake(stage(images(), **{"first_stage.objective": {"adversarial": {**ADVERSARIAL, **config}}}))
        return terms(made, 10)

    nothing, parts = of(weight=0.0)
    for config in ({"weight": 0.7}, {"weight": 0.7, "adaptive": False}):
        loss, said = of(**config)
        assert torch.equal(said["adversarial"], parts["adversarial"])
        adaptive = said["adaptive weight"]
        assert bool((adaptive == 1).all()) == ("adaptive" in config)
        torch.testing.assert_close(loss - nothing, 0.7 * adaptive * said["adversarial"], atol=1e-5, rtol=1e-4)


def test_learned_similarity_is_learned_from_by_the_autoencoder_and_not_by_the_discriminator() -> None:
    def grown(weight: float) -> FirstStageTraining:
        perceptual = {"kind": "discriminator", "weight": weight}
        config = {"adversarial": {**ADVERSARIAL, "weight": 0.0}, "perceptual": perceptual}
        made = awake(stage(images(), **{"first_stage.objective": config}))
        loss, _ = made.losses(made.batch(0), Draw(0, 10, 8, stage=made.name))
        loss.sum().backward()
        return made

    one, two = grown(1.0), grown(3.0)
    last = [made.autoencoder.last_layer.grad for made in (one, two)]
    assert last[0] is not None
    assert last[1] is not None
    assert not torch.allclose(last[0], last[1])
    assert one.rival is not None
    assert two.rival is not None
    for mine, theirs in zip(one.rival.parameters(), two.rival.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_the_average_of_a_codebook_goes_along_with_a_restart() -> None:
    data = images(count=16)
    codebook = {"size": 16, "restart": 0.9, "decay": 0.1, "update": "gradient"}
    made = stage(
        data, False, **{"first_stage.kind": "vq", "first_stage.codebook": codebook, "first_stage.objective": {}}
    )
    train_step(made.state, made.losses, made.batch(0), Draw(0, 0, 8, stage=made.name), 9.0, made.applied)
    live = made.autoencoder.bottleneck
    average = made._average().bottleneck
    assert len(live.moved) > 0
    assert torch.equal(average.codebook[live.moved], live.codebook[live.moved])


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Gradients that go past what averages them over processes would part the copies: moyai trains in one process."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = tiny.recipe_file(tmp_path / "tiny.json", tiny.folder(tmp_path / "data"))
    status, said = tiny.moyai(["train", recipe, "--out", tmp_path / "run"], tmp_path / "said")
    assert status == 2
    assert "WORLD_SIZE is 2: moyai trains in one process" in tiny.one_line(said)
    assert not (tmp_path / "run").exists()
