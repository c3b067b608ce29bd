"""Codebooks against brute force, closed forms and diffusers; what holds of codebooks and grids alike."""

import itertools

import pytest
import torch
from torch import Tensor

from moyai.errors import DataError
from moyai.firststage import quantization
from moyai.firststage.config import CodebookConfig, FSQConfig
from moyai.firststage.grid import FSQ
from moyai.firststage.posterior import Bottleneck
from moyai.firststage.quantization import SMOOTHING, VectorQuantizer, nearest, perplexity, used
from moyai.randomness import Draw


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(channels: int = 3, seed: int = 0, **settings: object) -> VectorQuantizer:
    """A codebook with vectors of about the size of normal latents."""
    config = CodebookConfig(**({"size": 16, "start": "uniform"} | settings))  # type: ignore[arg-type]
    made = VectorQuantizer(config, channels)
    with torch.no_grad():
        made.codebook.copy_(made._scaled(normal(config.size, channels, seed=seed + 100)))
        if made.sums is not None:
            made.sums.copy_(made.codebook)
    return made


def rows(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def brute(z: Tensor, vectors: Tensor) -> Tensor:
    """The nearest vector of every row by its differences in float64, one row at a time."""
    return torch.stack([(row.double() - vectors.double()).square().sum(1).argmin() for row in z])


# --- the nearest vector ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size", "channels"), [(500, 300, 4), (1, 2, 1), (200, 64, 32), (300, 16, 256)])
@pytest.mark.parametrize("far", [0.0, 300.0])
def test_nearest_is_that_of_brute_force(count: int, size: int, channels: int, far: float) -> None:
    # Away from the origin, |e|^2 - 2 z.e alone would lose the differences in float32.
    z, vectors = normal(count, channels) + far, normal(size, channels, seed=1) + far
    assert torch.equal(nearest(z, vectors), brute(z, vectors))


def test_the_plain_product_would_have_been_wrong() -> None:
    z, vectors = normal(500, 4) + 300, normal(300, 4, seed=1) + 300
    plain = (vectors.square().sum(1) - 2 * z @ vectors.T).argmin(1)
    assert float((plain != brute(z, vectors)).float().mean()) > 0.01


def test_of_equally_near_vectors_the_lowest_is_chosen() -> None:
    vectors = normal(40, 5)
    doubled = torch.cat([vectors, vectors])[torch.randperm(80, generator=torch.Generator().manual_seed(1))]
    first = {tuple(v.tolist()): i for i, v in reversed(list(enumerate(doubled)))}
    z = torch.cat([vectors, vectors + 0.01 * normal(40, 5, seed=2)])
    expected = [first[tuple(doubled[i].tolist())] for i in brute(z, doubled)]
    assert nearest(z, doubled).tolist() == expected
    assert nearest(torch.zeros(3, 2), torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])).tolist() == [1, 1, 1]


def test_nearest_in_blocks_is_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    z, vectors = normal(101, 6), normal(50, 6, seed=1)
    whole = nearest(z, vectors)
    monkeypatch.setattr(quantization, "SCORES", 350)
    assert torch.equal(nearest(z, vectors), whole)
    assert torch.equal(torch.cat([nearest(row[None], vectors) for row in z]), whole)
    assert nearest(z[:0], vectors).shape == (0,)


def test_autocast_does_not_reach_the_search() -> None:
    made, h = quantizer(channels=8, size=256), normal(4, 8, 6, 6)
    plain = made(h)
    with torch.autocast("cpu", torch.bfloat16):
        cast = made(h)
        coarse = (made.codebook.square().sum(1) - 2 * rows(h) @ made.codebook.T).argmin(1)
    assert torch.equal(cast.codes, plain.codes)
    assert torch.equal(cast.values, plain.values)
    assert cast.values.dtype == torch.float32
    assert not torch.equal(coarse, plain.codes.flatten())  # it would have mattered


def test_codes_and_values_belong_together() -> None:
    for cosine in (False, True):
        made = quantizer(cosine=cosine)
        posterior = made(normal(2, 3, 4, 5) * 3)
        vectors = made.codebook.detach() / (made.codebook.detach().norm(dim=1, keepdim=True) if cosine else 1)
        assert posterior.codes.shape == (2, 4, 5)
        assert posterior.codes.dtype == torch.int64
        torch.testing.assert_close(rows(posterior.values), vectors[posterior.codes.flatten()])
        assert torch.equal(posterior.values, made.lookup(posterior.codes))
        assert torch.equal(posterior.mode(), posterior.sample(Draw(0, 0, 2)))
        assert torch.equal(posterior.stored()["mean"], posterior.z)
        assert not posterior.stored()["mean"].requires_grad


def test_cosine_codes_are_nearest_by_angle() -> None:
    made, z = quantizer(cosine=True, size=64), normal(3, 3, 8, 8) * 5
    angle = torch.nn.functional.cosine_similarity(rows(z)[:, None], made.codebook.detach()[None], dim=2).argmax(1)
    assert torch.equal(made.codes_of(z).flatten(), angle)
    torch.testing.assert_close(made(z).z.norm(dim=1), torch.ones(3, 8, 8))
    assert torch.equal(made.codes_of(made(z).z), made.codes_of(z))


# --- gradients -------------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_values_goes_straight_to_z() -> None:
    pull = normal(2, 3, 4, 4, seed=5)
    for made in (quantizer(), quantizer(update="gradient"), quantizer(cosine=True), FSQ(FSQConfig(levels=(8, 5, 2)))):
        posterior = made(normal(2, 3, 4, 4).requires_grad_())
        (passed,) = torch.autograd.grad(posterior.values, posterior.z, pull, retain_graph=True)
        assert torch.equal(passed, pull)
        assert [p for p in made.parameters() if p.requires_grad and _gradient(posterior.values, p) is not None] == []


def _gradient(values: Tensor, of: Tensor) -> Tensor | None:
    return torch.autograd.grad(values.sum(), of, allow_unused=True, retain_graph=True)[0]


def test_commitment_pulls_the_encoder_and_the_codebook_term_the_codebook() -> None:
    h = normal(2, 3, 4, 4)
    count = h[0].numel()
    for update in ("ema", "gradient"):
        made = quantizer(update=update, commitment=0.25)
        z = h.clone().requires_grad_()
        posterior = made(z)
        error = rows((posterior.z - posterior.values).detach())
        penalty = posterior.regularizer()
        factor = 0.25 + (update == "gradient")
        torch.testing.assert_close(penalty, factor * error.square().reshape(2, -1).mean(1))
        penalty.sum().backward()
        assert z.grad is not None
        torch.testing.assert_close(rows(z.grad), 0.25 * 2 * error / count)
        if update == "ema":
            assert not made.codebook.requires_grad
            assert made.codebook.grad is None
        else:
            expected = torch.zeros(16, 3).index_add_(0, posterior.codes.flatten(), -2 * error / count)
            torch.testing.assert_close(made.codebook.grad, expected)


def test_the_loss_values_and_codes_are_those_of_diffusers() -> None:
    from diffusers.models.autoencoders.vae import VectorQuantizer as Theirs

    h = normal(3, 4, 5, 6)
    made = quantizer(channels=4, size=32, update="gradient", commitment=0.3)
    # Their `legacy` puts beta on the codebook's term instead; the paper's and ours is the other.
    theirs = Theirs(32, 4, beta=0.3, sane_index_shape=True, legacy=False)
    theirs.embedding.weight.data.copy_(made.codebook.detach())
    ours, other = h.clone().requires_grad_(), h.clone().requires_grad_()
    posterior = made(ours)
    values, loss, (_, _, codes) = theirs(other)
    assert torch.equal(posterior.codes, codes)
    torch.testing.assert_close(posterior.values, values)
    torch.testing.assert_close(posterior.regularizer().mean(), loss)
    (posterior.regularizer().mean() + posterior.values.square().sum()).backward()
    (loss + values.square().sum()).backward()
    torch.testing.assert_close(ours.grad, other.grad)
    torch.testing.assert_close(made.codebook.grad, theirs.embedding.weight.grad)
    legacy = Theirs(32, 4, beta=0.3, legacy=True)
    legacy.embedding.weight.data.copy_(made.codebook.detach())
    torch.testing.assert_close(legacy(h)[1], loss.detach())  # the same number, with other gradients


# --- running means and restarts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [False, True])
def test_running_means_are_the_closed_form(cosine: bool) -> None:
    made = quantizer(decay=0.9, restart=0.0, cosine=cosine)
    start = made.codebook.detach().double()
    batches = []
    for step in range(6):
        posterior = made(normal(4, 3, 5, 5, seed=step))
        assert made.update(posterior.z, posterior.codes, Draw(0, step, 4)) == 0
        batches.append((rows(posterior.z).double(), posterior.codes.flatten()))
    counts = 0.9**6 * torch.ones(16, dtype=torch.float64)
    sums = 0.9**6 * start
    for age, (z, codes) in enumerate(reversed(batches)):
        chosen = torch.nn.functional.one_hot(codes, 16).double()
        counts = counts + 0.1 * 0.9**age * chosen.sum(0)
        sums = sums + 0.1 * 0.9**age * chosen.T @ z
    smoothed = (counts + SMOOTHING) / (counts.sum() + 16 * SMOOTHING) * counts.sum()
    expected = sums / sums.norm(dim=1, keepdim=True) if cosine else sums / smoothed[:, None]
    torch.testing.assert_close(made.usage.double(), counts, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.codebook.detach().double(), expected, rtol=1e-5, atol=1e-5)


def test_by_gradient_only_usage_is_counted() -> None:
    made = quantizer(update="gradient", restart=0.0)
    before = made.codebook.detach().clone()
    posterior = made(normal(4, 3, 5, 5))
    assert made.update(posterior.z, posterior.codes, Draw(0, 0, 4)) == 0
    assert torch.equal(made.codebook.detach(), before)
    torch.testing.assert_close(made.usage, 0.99 + 0.01 * torch.bincount(posterior.codes.flatten(), minlength=16))
    assert "sums" not in made.state_dict()


def restarted(seed: int = 0, step: int = 3, *, update: str = "ema") -> tuple[VectorQuantizer, Tensor, Tensor, int]:
    """A codebook of which every third vector is far from everything, after so many updates that those are dead."""
    made = quantizer(restart=0.1, decay=0.5, update=update)
    with torch.no_grad():
        made.codebook[::3] += 1e4
        if made.sums is not None:
            made.sums[::3] += 1e4
        made.usage[::3] = 1e-3
    far = made.codebook.detach().clone()
    posterior = made(normal(4, 3, 8, 8, seed=9))
    count = made.update(posterior.z, posterior.codes, Draw(seed, step, 4))
    return made, far, posterior.z, count


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_dead_vectors_land_on_latents_of_the_batch(update: str) -> None:
    made, before, z, count = restarted(update=update)
    assert count == 6
    there = {tuple(v) for v in rows(z).tolist()}
    landed = [tuple(v) for v in made.codebook.detach()[::3].tolist()]
    assert set(landed) <= there
    assert len(set(landed)) == 6
    live = [i for i in range(16) if i % 3]
    kept = quantizer(restart=0.0, decay=0.5, update=update)
    with torch.no_grad():
        kept.codebook.copy_(before)
        kept.usage[::3] = 1e-3
    kept.update(z, kept.codes_of(z), Draw(0, 3, 4))
    # Only the live ones' running means have moved them, as without restarts.
    torch.testing.assert_close(made.codebook.detach()[live], kept.codebook.detach()[live])
    assert torch.equal(made.usage[live], kept.usage[live])
    # They are found at once, and counted at the even rate so that they have time to be.
    assert bool((torch.bincount(made(z).codes.flatten(), minlength=16)[::3] > 0).all())
    torch.testing.assert_close(made.usage[::3], kept.usage.mean().expand(6))


def test_restarts_are_a_function_of_seed_and_step() -> None:
    first = restarted()[0].codebook.detach()
    assert torch.equal(first, restarted()[0].codebook.detach())
    assert not torch.equal(first, restarted(seed=1)[0].codebook.detach())
    assert not torch.equal(first, restarted(step=4)[0].codebook.detach())


def test_a_part_of_the_batch_s_draw_restarts_the_same() -> None:
    results = []
    for draw in (Draw(0, 3, 4), Draw(0, 3, 4).rows(1, 2)):
        made = quantizer(restart=0.1)
        made.usage[5] = 0.0
        z = normal(4, 3, 8, 8)
        made.update(z, torch.ones(4, 8, 8, dtype=torch.int64), draw)
        results.append(made.codebook.detach())
    assert torch.equal(*results)


def test_more_dead_vectors_than_different_latents() -> None:
    made = quantizer(restart=0.5)
    made.usage.zero_()
    z = torch.ones(2, 3, 4, 4)  # a plain background: one latent, 32 times
    assert made.update(z, torch.zeros(2, 4, 4, dtype=torch.int64), Draw(0, 0, 2)) == 1
    assert (made.codebook.detach()[1:] == 1).all(1).sum() == 1


# --- the start -------------------------------------------------------------------------------------------------------


def clusters(count: int = 40, channels: int = 3) -> tuple[Tensor, Tensor]:
    """`count` tight clusters, of different sizes, on points at least 10 apart; (B, C, h, w) and the points."""
    grid = torch.tensor(list(itertools.product(range(4), repeat=channels)), dtype=torch.float32)[:count] * 10
    owner = torch.arange(8 * 16 * 16) % (count * 3 // 2) % count
    z = grid[owner] + 0.05 * normal(len(owner), channels)
    return z.reshape(8, 16, 16, channels).permute(0, 3, 1, 2), grid


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_finds_separated_clusters(seed: int) -> None:
    z, points = clusters()
    made = VectorQuantizer(CodebookConfig(size=40), 3)
    assert not bool(made.initialised)
    made.initialise(z, Draw(seed, 0, 8))
    assert bool(made.initialised)
    owner = brute(rows(z), points)
    means = torch.stack([rows(z)[owner == i].mean(0) for i in range(40)])
    order = brute(points, made.codebook.detach())
    assert sorted(order.tolist()) == list(range(40))
    torch.testing.assert_close(made.codebook.detach()[order], means, rtol=1e-5, atol=1e-4)
    assert torch.equal(made.usage[order], torch.bincount(owner, minlength=40).float())
    assert made.sums is not None
    torch.testing.assert_close(made.sums, made.usage[:, None] * made.codebook.detach())
    again = VectorQuantizer(CodebookConfig(size=40), 3)
    again.initialise(z, Draw(seed, 0, 8))
    assert torch.equal(again.codebook, made.codebook)


def test_a_large_codebook_starts_much_better_than_at_random() -> None:
    z = normal(4, 4, 32, 32)
    made = VectorQuantizer(CodebookConfig(size=512), 4)
    made.initialise(z, Draw(0, 0, 4))
    chosen = rows(z)[torch.randperm(4096, generator=torch.Generator().manual_seed(0))[:512]]
    random = (rows(z) - chosen[nearest(rows(z), chosen)]).square().mean()
    assert float((made(z).values - z).square().mean()) < 0.8 * float(random)
    assert used(torch.bincount(made(z).codes.flatten(), minlength=512)) > 0.98
    assert len(made.codebook.detach().unique(dim=0)) == 512


def test_kmeans_on_a_sphere_gives_vectors_of_length_1() -> None:
    made = VectorQuantizer(CodebookConfig(size=20, cosine=True), 3)
    made.initialise(normal(4, 3, 8, 8) * 7, Draw(0, 0, 4))
    torch.testing.assert_close(made.codebook.detach().norm(dim=1), torch.ones(20))


def test_a_start_from_more_latents_than_kmeans_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "START_LATENTS", 300)
    made = VectorQuantizer(CodebookConfig(size=40), 3)
    made.initialise(clusters()[0], Draw(0, 0, 8))
    assert float(made.usage.sum()) == 300
    assert sorted(brute(clusters()[1], made.codebook.detach()).tolist()) == list(range(40))


def test_a_codebook_larger_than_the_latents_is_refused() -> None:
    made = VectorQuantizer(CodebookConfig(size=65), 3)
    with pytest.raises(
        DataError, match=r"65 vectors.* 64 latents \(1 pictures of 8 x 8\).*top_codebook\.size=64 or less"
    ) as error:
        made.initialise(normal(1, 3, 8, 8), Draw(0, 0, 1), "first_stage.top_codebook.size")
    assert "\n" not in str(error.value)
    assert "train.batch" not in str(error.value)  # it has no say in how many pictures are looked at
    assert not bool(made.initialised)
    VectorQuantizer(CodebookConfig(size=64), 3).initialise(normal(1, 3, 8, 8), Draw(0, 0, 1))


def test_fewer_different_latents_than_vectors_still_start() -> None:
    made = VectorQuantizer(CodebookConfig(size=30), 3)
    z = normal(1, 3, 4, 2).repeat(8, 1, 1, 1)
    made.initialise(z, Draw(0, 0, 8))
    assert bool(made.codebook.isfinite().all())
    torch.testing.assert_close(made(z).values, z)
    assert len(made(z).codes.unique()) == 8


def test_a_uniform_start_keeps_its_vectors() -> None:
    made = VectorQuantizer(CodebookConfig(size=65, start="uniform"), 3)
    before = made.codebook.detach().clone()
    assert float(before.abs().max()) <= 1 / 65
    made.initialise(normal(1, 3, 2, 2), Draw(0, 0, 1))
    assert torch.equal(made.codebook.detach(), before)
    assert bool(made.initialised)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "cosine", "close", "fsq"])
def test_quantising_twice_is_quantising_once(kind: str) -> None:
    made: Bottleneck
    if kind == "fsq":
        made = FSQ(FSQConfig(levels=(8, 7, 2, 256)))
    else:
        made = quantizer(channels=4, size=200, cosine=kind == "cosine")
        if kind == "close":  # vectors that differ in their last bits only
            with torch.no_grad():
                made.codebook.copy_(
                    1 + 2e-7 * torch.randint(0, 4, (200, 4), generator=torch.Generator().manual_seed(0))
                )
    assert made.channels == made.moments == 4
    for scale in (1.0, 50.0):
        once = made.quantize(normal(2, 4, 16, 16) * scale)
        assert torch.equal(made.quantize(once), once)
    posterior = made(normal(2, 4, 16, 16))
    assert torch.equal(made.quantize(posterior.stored()["mean"]), posterior.mode())
    assert torch.equal(made.quantize(posterior.mode()), posterior.mode())


def test_a_saved_codebook_is_the_same_codebook() -> None:
    made = VectorQuantizer(CodebookConfig(size=20), 3)
    made.initialise(normal(4, 3, 8, 8), Draw(0, 0, 4))
    other = VectorQuantizer(CodebookConfig(size=20), 3)
    other.load_state_dict(made.state_dict())
    assert bool(other.initialised)
    z = normal(2, 3, 4, 4, seed=3)
    for each in (made, other):
        each.update(z, each.codes_of(z), Draw(0, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), other.state_dict().values(), strict=True))


def test_perplexity_and_use() -> None:
    assert perplexity(torch.full((37,), 5)) == pytest.approx(37)
    assert perplexity(torch.tensor([9, 0, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([1, 1, 2])) == pytest.approx(2**1.5)
    assert perplexity(torch.zeros(3)) == 0
    assert used(torch.tensor([4, 0, 1, 0])) == 0.5
