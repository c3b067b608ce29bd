"""What the prior of a recipe is told, untrained, and its first stage where it is told something."""

from collections.abc import Mapping

from torch import nn

from moyai.build.weights import initial_weights
from moyai.conditioning.conditioner import Conditioner
from moyai.conditioning.config import (
    ClassCondition,
    ConditionConfig,
    LowResolutionCondition,
    MapCondition,
    MaskedCondition,
    PositionCondition,
    PublishedTextCondition,
    ScalarCondition,
    TextCondition,
)
from moyai.conditioning.embeddings import ClassEmbedding, NumberEmbedding
from moyai.conditioning.publishedtext import PublishedText
from moyai.conditioning.spatial import LowResolution, Masked, RegionMap
from moyai.conditioning.text import TextEmbedding
from moyai.data.locate import cache_folder
from moyai.errors import ConfigError
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts


def build_conditioner(recipe: Recipe, facts: DataFacts) -> Conditioner:
    """What the prior is told, with its initial weights."""
    factor = 1 if recipe.codec.kind == "pixels" else recipe.first_stage.net.factor
    if factor is None:
        raise ConfigError("first_stage.net.factor is not known yet; give it, or resolve the recipe")
    with initial_weights(recipe.seed, "conditioner"):
        told = conditioner_of(recipe.prior.conditions or {}, facts, "prior", factor, recipe.prior.drop_all)
        return told or Conditioner({})


def conditioner_of(
    configs: Mapping[str, ConditionConfig], facts: DataFacts, stage: str, factor: int = 1, together: float = 0.0
) -> Conditioner | None:
    """The conditions of a stage as one, or None where it has none; together: how often all are dropped at once."""
    made = {name: _condition(f"{stage}.conditions.{name}", config, facts, factor) for name, config in configs.items()}
    try:
        return Conditioner(made, together) if made else None
    except ValueError as error:
        raise ConfigError(f"{stage}.conditions: {error}") from error


def _condition(name: str, config: ConditionConfig, facts: DataFacts, factor: int) -> nn.Module:
    """One condition; factor: how many pixels' sides go into one of the latents'."""
    if isinstance(config, ClassCondition) and not facts.classes:
        raise ConfigError(f"{name} needs classes, but these data have none; possible: conditions={{}}")
    if field := getattr(config, "field", None):
        facts.needs(field, name)
    image_shape = (facts.channels, facts.height, facts.width)
    size = (-(-facts.height // factor), -(-facts.width // factor))
    match config:
        case ClassCondition():
            return ClassEmbedding(config, len(facts.classes))
        case PositionCondition():
            low, high = facts.ranges.get(config.field, (0.0, 1.0))
            if not 0 <= low <= high <= 1:
                raise ConfigError(
                    f"{name} is a position, which lies in 0..1, and {config.field!r} goes from {low:g} to {high:g}; "
                    f'possible: {{kind="scalar", field="{config.field}"}}'
                )
            return NumberEmbedding(config)
        case ScalarCondition():
            if config.field not in facts.ranges:
                raise ConfigError(
                    f"{name} needs numbers that differ, and {config.field!r} is one for all pictures, or no number"
                )
            return NumberEmbedding(config, *facts.ranges[config.field])
        case TextCondition():
            own = name.rpartition(".")[2]
            if own not in facts.tokenizers:
                raise ConfigError(f"{name} needs a tokenizer, and none was learned from these data")
            return TextEmbedding(config, facts.tokenizers[own])
        case PublishedTextCondition():
            return PublishedText(config, cache_folder())
        case MapCondition():
            return RegionMap(config, max(2, len(facts.regions)), size)
        case LowResolutionCondition():
            return LowResolution(config, image_shape, size)
        case MaskedCondition():
            return Masked(config, image_shape, factor)
