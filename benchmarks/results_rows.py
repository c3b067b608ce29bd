"""What is measured: the rows of docs/results.md in one list, and the runs that each is made of.

A capability gets its row by adding one here: a recipe, what is laid over it, the seeds, and what to vary. A row's
points are its seeds times its variants. What a variant says of `sampling.*` changes no weights, so variants that say
nothing else are drawn from one trained run; any other variant is a run of its own.

    row             points
    digits          three runs, seeds 0, 1 and 2: the table has their mean and range
    samplers        one run of Fashion-MNIST, sampled in several ways
    factors         figures 6 and 7 of Rombach et al. (2022): downsampling factors against training time
    peers           other projects at the same minutes on the same cores (`quality.py`)
"""

from dataclasses import dataclass
from typing import Literal

FACTORS = (1, 2, 4, 8)
# Of `factors`: 28 is no multiple of 8; the minutes go into training, not into a report, dearest for pixels; and no
# guidance, which doubles the forwards of drawing.
SMALL = ("data.resolution=32", "report.per_class=1", "report.gif=false", "sampling.guidance=1")
SHARES = (0.25, 0.5, 1.0)  # of the minutes of `factors`
# Pictures a step of the prior, by factor: ten minutes of a processor hold few steps of 32 x 32 pixels, and
# Rombach et al., too, take 7, 9, 40 and 64.
BATCHES = {1: 16, 2: 32, 4: 32, 8: 32}
# ... and smaller networks at 1 and 2, so that a picture costs a step 25, 21, 15 and 9 ms of a Zen 3 core at 1, 2, 4 and
# 8. With the recipe's own in pixels ten minutes would hold a hundred steps.
NETS = {
    1: ("prior.net.width=24", "prior.net.multipliers=[1,2,2]", "prior.net.attention=[false,false,true]"),
    2: ("prior.net.width=48", "prior.net.multipliers=[1,2,2]", "prior.net.attention=[false,false,true]"),
}
OUT = "runs/results"  # as it stands in the commands that are kept


@dataclass(frozen=True)
class Variant:
    """A name, and what is laid over the recipe: `section.key=value`."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A name, a recipe, what is laid over it, seeds, variants, and what to do with them.

    n: samples that a point is judged on. picture: whether samples are kept in docs/pictures, "cleared" where only if
    the search for copies of training pictures found none.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    variants: tuple[Variant, ...] = ()
    n: int = 2000
    picture: Literal["no", "yes", "cleared"] = "no"
    measure: Literal["runs", "peers"] = "runs"


@dataclass(frozen=True)
class Point:
    """One run, trained and judged: a seed and a variant of a row."""

    name: str  # in the row's file
    run: str  # the folder of the trained run
    recipe: str
    seed: int
    overrides: tuple[str, ...]  # that change what is trained
    sampling: tuple[str, ...]  # that change how it is sampled
    n: int

    @property
    def judged(self) -> str:
        """The folder that `moyai evaluate` is given: the run, or the run with another `sampling`."""
        return self.name if self.sampling else self.run

    def commands(self, out: str = OUT) -> tuple[list[str], list[str]]:
        """The words of `moyai train` and of `moyai evaluate`."""
        train = ["train", f"recipes/{self.recipe}.toml", f"seed={self.seed}", *self.overrides]
        return [*train, "--out", f"{out}/{self.run}"], ["evaluate", f"{out}/{self.judged}", "--n", str(self.n)]


def rows(minutes: float = 10.0) -> tuple[Row, ...]:
    """Every row, in the order they are measured in. minutes: the longest runs of `factors`."""
    return (
        Row("digits", "digits", seeds=(0, 1, 2), picture="yes"),
        Row("mnist", "mnist", picture="yes"),
        Row("fashion-mnist", "fashion-mnist", picture="yes"),
        Row("cifar10", "cifar10", picture="cleared"),
        Row("mnist-cross-attention", "mnist-cross-attention", picture="yes"),
        Row("fashion-mnist-text", "fashion-mnist-text", picture="yes"),
        Row("fashion-mnist-pixels", "fashion-mnist-pixels", n=500, picture="yes"),
        Row("shapes-text", "shapes-text", n=1000, picture="yes"),
        Row("shapes-map", "shapes-map", n=1000, picture="yes"),
        Row("oasis", "oasis", n=256),
        Row("oasis-diffusion", "oasis-diffusion", n=256),
        Row("oasis-pixelcnn", "oasis-pixelcnn", n=256),
        Row("oasis-vqvae2", "oasis-vqvae2", n=256),
        Row("samplers", "fashion-mnist", variants=_samplers(), n=600),
        Row("factors", "fashion-mnist", overrides=SMALL, variants=_factors(minutes), n=500),
        Row("peers", "fashion-mnist", measure="peers"),
    )


def points(row: Row) -> list[Point]:
    """What a row is made of, in the order it is measured in."""
    found = []
    for seed in row.seeds:
        shared = f"{row.name if row.overrides else row.recipe}-seed{seed}"
        for variant in row.variants or (Variant("", ()),):
            name = "-".join(part for part in (row.name, variant.name, f"seed{seed}") if part)
            sampling = tuple(text for text in variant.overrides if text.startswith("sampling."))
            training = tuple(text for text in variant.overrides if text not in sampling)
            run = name if training else shared
            found.append(Point(name, run, row.recipe, seed, (*row.overrides, *training), sampling, row.n))
    return found


def _samplers() -> tuple[Variant, ...]:
    """Four strengths of guidance, then other samplers and grids at the one that did best."""
    settings = [("dpmpp_2m", "uniform-time", 20, guidance, 0) for guidance in (1, 1.5, 2, 3)]
    settings += [("dpmpp_2m", "karras", 20, 1.5, 0), ("heun", "karras", 18, 1.5, 0)]
    settings += [("euler", "uniform-time", 40, 1.5, eta) for eta in (0, 1)]
    return tuple(_sampling(*setting) for setting in settings)


def _sampling(sampler: str, grid: str, steps: int, guidance: float, eta: float) -> Variant:
    values = {"sampler": sampler, "grid": grid, "steps": steps, "guidance": guidance, "eta": eta}
    name = f"{sampler}-{grid}-{steps}-guidance{guidance:g}" + (f"-eta{eta:g}" if eta else "")
    return Variant(name, tuple(f"sampling.{key}={value}" for key, value in values.items()))


def _factors(minutes: float) -> tuple[Variant, ...]:
    """Each factor at a quarter, a half and the whole of the minutes: a run each.

    One run cut into slices would cost less and say less: its learning rate is that of the longest run, its first stage
    too, and a quarter of the way the prior has not even begun. So every point is what a reader gets who
    has so many minutes. The short runs come first, so that the figure has all factors early.
    """
    return tuple(
        Variant(
            f"f{factor}-{minutes * share:g}min",
            (
                "codec.kind=pixels" if factor == 1 else f"first_stage.net.factor={factor}",
                f"prior.train.batch={BATCHES[factor]}",
                *NETS.get(factor, ()),
                f"budget.minutes={minutes * share:g}",
            ),
        )
        for share in SHARES
        for factor in FACTORS
    )
