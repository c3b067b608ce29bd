"""What the prior is told about a picture, and by which route."""

from typing import Annotated, Literal

from pydantic import Field

from moyai.schema import Config


class ClassCondition(Config):
    """A learned embedding for each class."""

    kind: Literal["class"] = "class"
    field: str = Field("class", description="the field of the data that holds the class number")
    route: Literal["vector", "context", "both"] = Field(
        "both", description="added to the time embedding, attended to by cross-attention, or both"
    )
    width: Annotated[int, Field(gt=0)] = Field(128, description="of the embedding")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="how often the condition is left out")


class PositionCondition(Config):
    """A number in [0, 1], such as the place of a slice in its volume, by sinusoids (Vaswani et al. 2017)."""

    kind: Literal["position"] = "position"
    field: str = Field("position", description="the field of the data that holds the number")
    route: Literal["vector", "context", "both"] = Field(
        "vector", description="added to the time embedding, attended to by cross-attention, or both"
    )
    width: Annotated[int, Field(gt=0)] = Field(128, description="of the embedding")
    scale: Annotated[float, Field(gt=0)] = Field(
        31.0, description="the number is multiplied by this before the sinusoids"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="how often the condition is left out")


ConditionConfig = Annotated[ClassCondition | PositionCondition, Field(discriminator="kind")]
