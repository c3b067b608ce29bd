"""What of a recipe follows from the data, and what from the clock.

A recipe may leave open what the data decide (the resolution, and with it the shapes of the networks) and how long to
train. `resolve` fills in the first, and the steps where they can be counted; `with_steps` the steps that a measured
budget of minutes comes to; `train_intervals` what follows from those. Nothing that was given is changed.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from moyai.conditioning.config import ClassCondition, ConditionConfig, TextCondition
from moyai.diffusion.config import LogitNormalDensity, LogNormalDensity, TableDensity
from moyai.errors import ConfigError
from moyai.nets.config import DiTConfig, PixelCNNConfig, UNetConfig
from moyai.priors.config import DiffusionPriorConfig, PriorConfig
from moyai.recipe.model import AUTOENCODER_MULTIPLIERS, Recipe, sides
from moyai.schema import Config
from moyai.training.config import TrainConfig

LOOKING = 0.06  # the share of a stage that validations and previews may take
MINUTES = 20.0  # of a recipe that says neither steps nor epochs nor minutes
DETAIL, DETAIL_OF_CODES = 0.4, 0.1  # codes of a codebook know the detail too little to draw it at full strength

# Latents of at least 4 x 4 with some 64 to 256 positions, which a small prior learns in minutes.
_FACTORS = ((16, 2), (64, 4))  # (longer side up to, factor); 8 above
_UNET = {1: (2,), 2: (1, 2), 3: (1, 2, 3), 4: (1, 2, 3, 4)}  # multipliers by the number of levels


class DataFacts(Config):
    """What is known of the data once they have been looked at."""

    channels: Annotated[int, Field(gt=0)] = Field(description="of a picture")
    height: Annotated[int, Field(gt=0)] = Field(description="in pixels, of the training pictures")
    width: Annotated[int, Field(gt=0)] = Field(description="in pixels, of the training pictures")
    bits: Annotated[int, Field(gt=0)] = Field(8, description="of a stored value")
    count: Annotated[int, Field(gt=0)] = Field(description="training pictures, held-out ones not counted")
    classes: tuple[str, ...] = Field((), description="names of the classes in order; empty where there are none")
    fields: tuple[str, ...] = Field((), description="what is known of each picture, by name")
    ranges: dict[str, tuple[float, float]] = Field({}, description="least and greatest value of fields of numbers")
    regions: tuple[str, ...] = Field((), description="names of the regions of a map; empty where there is none")
    tokenizers: dict[str, str] = Field({}, description="learned from the captions, by condition; as JSON")

    def needs(self, field: str, wanted_by: str) -> None:
        """ConfigError where the data do not have a field."""
        if field not in self.fields:
            has = ", ".join(self.fields) or "none"
            raise ConfigError(f"{wanted_by} needs the field {field!r} of the data, which have {has}")


def stages(recipe: Recipe) -> tuple[str, ...]:
    """What is trained, in order: without a codec of latents there is no first stage, and no decoder."""
    if recipe.codec.kind == "pixels":
        return ("prior",)
    return ("first_stage", "prior") if recipe.decoder is None else ("first_stage", "prior", "decoder")


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some dotted keys set, checked again."""
    tree = recipe.model_dump()
    for key, value in changes.items():
        *folders, last = key.split(".")
        table = tree
        for folder in folders:
            table = table[folder]
        table[last] = value
    return Recipe.model_validate(tree)


def resolve(recipe: Recipe, facts: DataFacts) -> Recipe:
    """Fill in every key that follows from the data; resolving twice changes nothing.

    * data: resolution and channels are those of the pictures.
    * first stage: factor 2 up to 16 pixels, 4 up to 64, 8 above, halved until it divides both sides; the weight of fine
      detail by the kind of the latents.
    * conditions: the class where there are two classes or more, and the caption where there are captions.
    * prior: one level more from latents of 7, 14 and 56 on (their shorter side), which leaves the lowest 4 x 4 or more;
      attention where a level has at most 16 x 16 positions, and below the first up to 32 x 32; density by
      parameterisation.
    * steps: epochs are counted out; 20 minutes where a stage says neither steps nor epochs and the budget is silent.
    """
    data, net, prior = recipe.data, recipe.first_stage.net, recipe.prior
    resolution = data.resolution or (facts.height if facts.height == facts.width else (facts.height, facts.width))
    height, width = sides(resolution)
    factor = net.factor or _factor(net.multipliers, height, width)
    latents = (height, width) if recipe.codec.kind == "pixels" else (height // factor, width // factor)
    changes: dict[str, Any] = {
        "data.resolution": resolution,
        "data.channels": data.channels or facts.channels,
        "first_stage.net.factor": factor,
        "first_stage.net.multipliers": net.multipliers or AUTOENCODER_MULTIPLIERS[factor],
        "prior.conditions": _conditions(prior, facts),
    }
    if isinstance(prior, DiffusionPriorConfig):
        changes["prior.density"] = (prior.density or _density(prior)).model_dump()
    if isinstance(prior.net, UNetConfig):
        levels = len(prior.net.attention) if prior.net.attention else _levels(min(latents))
        multipliers = prior.net.multipliers or _UNET[min(levels, 4)]
        changes["prior.net.multipliers"] = multipliers
        changes["prior.net.attention"] = prior.net.attention or _attention(max(latents), len(multipliers))
    elif isinstance(prior.net, DiTConfig):
        changes["prior.net.patch"] = prior.net.patch or _patch(*latents)
    weight = DETAIL_OF_CODES if recipe.first_stage.kind in ("vq", "vq2") else DETAIL
    trained = {"first_stage": recipe.first_stage, **({"decoder": recipe.decoder} if recipe.decoder else {})}
    for name, stage in trained.items():
        given = stage.objective.detail
        changes[f"{name}.objective.detail"] = weight if given is None else given
    if recipe.first_stage.kind == "fsq":
        changes["first_stage.net.latent_channels"] = len(recipe.first_stage.grid.levels)
    return changed(recipe, {**changes, **_lengths(recipe, facts.count)})


def _conditions(prior: PriorConfig, facts: DataFacts) -> dict[str, Any]:
    given = prior.conditions
    if given is None:
        attends = not isinstance(prior.net, PixelCNNConfig) and getattr(prior.net, "attention_kind", "") != "self"
        followed: dict[str, ConditionConfig] = {}
        if len(facts.classes) > 1:
            followed["class"] = ClassCondition(route="both" if attends else "vector")
        if "caption" in facts.fields and attends:
            followed["caption"] = TextCondition()
        return {name: condition.model_dump() for name, condition in followed.items()}
    if lost := [name for name, c in given.items() if c.kind == "class" and len(facts.classes) < 2]:
        raise ConfigError(
            f"prior.conditions.{lost[0]} needs classes, and the data have {len(facts.classes) or 'none'}; "
            "possible: prior.conditions={}, or data with two classes or more"
        )
    return {name: condition.model_dump() for name, condition in given.items()}


def _factor(multipliers: tuple[int, ...] | None, height: int, width: int) -> int:
    if multipliers is not None:
        return int(2 ** (len(multipliers) - 1))
    factor = next((f for longest, f in _FACTORS if max(height, width) <= longest), 8)
    while height % factor or width % factor or min(height, width) // factor < 4:
        if factor == 1:
            break
        factor //= 2
    return factor


def _levels(short: int) -> int:
    """How many levels the U-Net has for latents whose shorter side is this; a level has half the sides, rounded up."""
    return 1 if short < 7 else 2 if short < 14 else 3 if short < 56 else 4


def _patch(height: int, width: int) -> int:
    """The smallest patch of at most 8 that divides both sides and leaves 256 tokens or fewer; else the largest."""
    common = [p for p in range(1, 9) if height % p == 0 and width % p == 0]
    return next((p for p in common if height * width <= 256 * p * p), common[-1])


def _attention(side: int, levels: int) -> tuple[bool, ...]:
    return tuple(math.ceil(side / 2**i) <= (32 if i else 16) for i in range(levels))


def _density(prior: DiffusionPriorConfig) -> TableDensity | LogNormalDensity | LogitNormalDensity:
    parameterization = prior.parameterization
    if hasattr(parameterization, "table"):
        return TableDensity()
    return LogNormalDensity() if parameterization.kind == "edm" else LogitNormalDensity()


def _lengths(recipe: Recipe, count: int) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for stage in stages(recipe):
        train = getattr(recipe, stage).train
        if train.steps is None and train.epochs is not None:
            changes[f"{stage}.train.steps"] = math.ceil(train.epochs * count / train.batch)
        elif train.steps is None and recipe.budget.minutes is None:
            changes["budget.minutes"] = MINUTES
    return changes


def with_steps(recipe: Recipe, first_stage: int, prior: int) -> Recipe:
    """The recipe with the step counts that a measured budget commits to, where it has none of its own."""
    counts = {"first_stage": first_stage, "prior": prior}
    open_ended = [s for s in stages(recipe) if s in counts and getattr(recipe, s).train.steps is None]
    return changed(recipe, {f"{stage}.train.steps": counts[stage] for stage in open_ended})


def train_intervals(train: TrainConfig, look: float = 0.0) -> TrainConfig:
    """The stage with its intervals filled in: a tenth of the run each, saves at most 1000 steps apart.

    look: what a validation and a preview cost, in pictures trained on; a short run has fewer than ten, so that they
    take at most LOOKING of it (and one at its end in any case).
    """
    if train.steps is None:
        raise ConfigError("the number of steps is not known yet; give train.steps, or resolve the recipe")
    tenth = max(1, train.steps // 10)
    affordable = LOOKING * train.steps * train.batch / look if look else 10.0
    apart = max(tenth, math.ceil(train.steps / max(1.0, affordable)))
    intervals = {"validate_every": apart, "save_every": min(tenth, 1000), "preview_every": apart}
    return train.model_copy(update={key: getattr(train, key) or steps for key, steps in intervals.items()})
