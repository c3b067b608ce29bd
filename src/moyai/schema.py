"""The base of every typed configuration: frozen, and strict about unknown keys."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen configuration. Unknown keys are errors; a choice between kinds is a union tagged by `kind`.

    A field whose default is `None` and whose description says "follows from the data" is filled in by
    `recipe.resolve` once the data are known, and saved filled in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
