"""The data of a recipe, and what is known of them: read, counted, their captions' tokenizers learned."""

from collections.abc import Callable
from pathlib import Path

from moyai.conditioning.config import TextCondition
from moyai.conditioning.text import checked, train_tokenizer
from moyai.data import brain, cifar, digits, folder, idx, shapes, volumes
from moyai.data.config import (
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    FolderConfig,
    IdxConfig,
    NiftiConfig,
    OasisConfig,
    ShapesConfig,
)
from moyai.data.images import ImageSet, captioned
from moyai.recipe.model import Recipe
from moyai.recipe.resolve import DataFacts

Progress = Callable[[str, int, int], None]


def read_data(config: DataConfig, cache: Path, progress: Progress | None = None) -> ImageSet:
    """The data of a recipe, as arrays."""
    images = _source(config, cache, progress)
    return captioned(images, config.class_captions) if config.class_captions else images


def _source(config: DataConfig, cache: Path, progress: Progress | None) -> ImageSet:
    match config:
        case DigitsConfig():
            return digits.read(config, cache, progress)
        case IdxConfig():
            return idx.read(config, cache, progress)
        case Cifar10Config():
            return cifar.read(config, cache, progress)
        case FolderConfig():
            return folder.read(config, cache, progress)
        case OasisConfig():
            return brain.read(config, cache, progress)
        case NiftiConfig():
            return volumes.read(config, cache, progress)
        case ShapesConfig():
            return shapes.read(config, cache, progress)


def facts_of(images: ImageSet, train: ImageSet) -> DataFacts:
    """What is known of the data once they are read; train: those of them that are trained on."""
    channels, height, width = images.shape
    others = {name: values for name, values in train.fields.items() if name not in ("class", "position")}
    numbers = {name: values for name, values in others.items() if values.ndim == 1 and values.dtype.kind in "iuf"}
    return DataFacts(
        channels=channels,
        height=height,
        width=width,
        bits=images.bits,
        count=train.count,
        classes=images.classes,
        fields=tuple(images.fields),
        ranges={name: (float(v.min()), float(v.max())) for name, v in numbers.items() if v.min() < v.max()},
        regions=images.regions,
    )


def with_tokenizers(recipe: Recipe, facts: DataFacts, train: ImageSet) -> DataFacts:
    """The facts with a tokenizer for each caption that a text encoder of our own reads, learned from the captions."""
    made = {}
    for name, config in (recipe.prior.conditions or {}).items():
        if isinstance(config, TextCondition):
            facts.needs(config.field, f"prior.conditions.{name}")
            made[name] = train_tokenizer(checked(train.fields[config.field], config.field), config.vocabulary)
    return facts.model_copy(update={"tokenizers": made}) if made else facts
