"""What the prior and the first stage are told about a picture, and by which route."""

from typing import Annotated, Literal

from pydantic import Field

from moyai.schema import Config

Route = Literal["vector", "context", "both"]
ROUTE = "added to the time embedding (or between convolutions), attended to by cross-attention, or both"


class _Condition(Config):
    width: Annotated[int, Field(gt=0)] = Field(128, description="of the embedding")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="how often the condition is left out")


class ClassCondition(_Condition):
    """A learned embedding for each class."""

    kind: Literal["class"] = "class"
    field: str = Field("class", description="the field of the data that holds the class number")
    route: Route = Field("both", description=ROUTE)


class PositionCondition(_Condition):
    """A number in [0, 1], such as the place of a slice in its volume, by sinusoids (Vaswani et al. 2017)."""

    kind: Literal["position"] = "position"
    field: str = Field("position", description="the field of the data that holds the number")
    route: Route = Field("vector", description=ROUTE)
    scale: Annotated[float, Field(gt=0)] = Field(31.0, description="a factor on the number before the sinusoids")


ConditionConfig = Annotated[ClassCondition | PositionCondition, Field(discriminator="kind")]
