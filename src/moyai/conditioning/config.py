"""What the prior and the first stage are told about a picture, and by which route."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from moyai.schema import Config

Route = Literal["vector", "context", "both"]
ROUTE = "added to the time embedding (or between convolutions), attended to by cross-attention, or both"
Count = Annotated[int, Field(gt=0)]


def _plain(name: str) -> str:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError("its name, by which its weights go too, may hold letters, digits, dashes and underscores")
    return name


Name = Annotated[str, AfterValidator(_plain)]  # of a condition


class _Condition(Config):
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="how often the condition is left out")
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None, description="its own weight of classifier-free guidance; sampling.guidance where it has none"
    )


class _Embedded(_Condition):
    width: Count = Field(128, description="of the embedding")


class ClassCondition(_Embedded):
    """A learned embedding for each class."""

    kind: Literal["class"] = "class"
    field: str = Field("class", description="the field of the data that holds the class number")
    route: Route = Field("both", description=ROUTE)


class PositionCondition(_Embedded):
    """A number in [0, 1], such as the place of a slice in its volume, by sinusoids (Vaswani et al. 2017)."""

    kind: Literal["position"] = "position"
    field: str = Field("position", description="the field of the data that holds the number")
    route: Route = Field("vector", description=ROUTE)
    scale: Annotated[float, Field(gt=0)] = Field(31.0, description="a factor on the number before the sinusoids")


class ScalarCondition(_Embedded):
    """Any number of a picture, such as an age, brought from its range in the training data to 0..1, by sinusoids."""

    kind: Literal["scalar"] = "scalar"
    field: str = Field(description="the field of the data that holds the number")
    route: Route = Field("vector", description=ROUTE)
    scale: Annotated[float, Field(gt=0)] = Field(31.0, description="a factor on 0..1 before the sinusoids")


class TextCondition(_Embedded):
    """A caption, read by a small transformer trained together with the prior, on tokens learned from the captions."""

    kind: Literal["text"] = "text"
    field: str = Field("caption", description="the field of the data that holds the text")
    width: Count = Field(128, description="of a token's embedding and of the context")
    depth: Count = Field(2, description="transformer blocks")
    heads: Count = Field(4, description="attention heads")
    vocabulary: Annotated[int, Field(ge=300)] = Field(4096, description="tokens of the byte-pair tokenizer, at most")
    length: Annotated[int, Field(ge=3)] = Field(64, description="tokens of a caption, ends included; more are cut off")

    @model_validator(mode="after")
    def _whole_heads(self) -> "TextCondition":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; both shape the text encoder")
        return self


class PublishedTextCondition(_Condition):
    """A caption, read by a published text encoder that stays as it is: CLIP's or T5's, from a folder that lies here."""

    kind: Literal["published-text"] = "published-text"
    field: str = Field("caption", description="the field of the data that holds the text")
    folder: Path = Field(description="model and tokenizer as transformers saves them; nothing is fetched")
    length: Count | None = Field(None, description="tokens of a caption; the encoder's own limit, else 77")
    layer: Annotated[int, Field(ge=1)] = Field(1, description="1 is the last layer, 2 the one before (clip skip)")


class MapCondition(_Condition):
    """A map of regions as large as the picture (a segmentation), brought to the latents' size."""

    kind: Literal["map"] = "map"
    field: str = Field("mask", description="the field of the data that holds the map of region numbers")


class LowResolutionCondition(_Condition):
    """The picture itself, made smaller: the prior learns super-resolution (Rombach et al. 2022, section 4.4)."""

    kind: Literal["low-resolution"] = "low-resolution"
    factor: Literal[2, 4, 8] = Field(4, description="how many times smaller each side is")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="how often the condition is left out")


class MaskedCondition(_Condition):
    """The picture itself with a part missing: the prior learns inpainting (Rombach et al. 2022, section 4.5)."""

    kind: Literal["masked"] = "masked"
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="how often the condition is left out")


ConditionConfig = Annotated[
    ClassCondition
    | PositionCondition
    | ScalarCondition
    | TextCondition
    | PublishedTextCondition
    | MapCondition
    | LowResolutionCondition
    | MaskedCondition,
    Field(discriminator="kind"),
]
