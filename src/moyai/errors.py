"""What a user can do wrong, one class for each place it can happen.

Every message says what was given and what is possible. The command line prints these as one line and exits with
status 2; anything else that escapes is a defect of moyai.
"""

import difflib
from collections.abc import Iterable, Sequence


class MoyaiError(Exception):
    """The base of all errors that are the user's to mend. `status` is what the command line exits with."""

    status = 2


class ConfigError(MoyaiError):
    """A recipe or an override that does not say a thing moyai can do."""


class DataError(MoyaiError):
    """Data that are missing, unreadable or not what the recipe says."""


class RequestError(MoyaiError):
    """A request (sampling, a path, an option) that cannot be met."""


class SaveError(MoyaiError):
    """A file could not be written: path, bytes needed and bytes free are in the message."""

    status = 3


class TrainingError(MoyaiError):
    """Training cannot go on: too many non-finite steps in a row. The last good checkpoint stands."""

    status = 4


class CheckpointError(MoyaiError):
    """A checkpoint that is torn, altered or of another model.

    `missing`, `unexpected` and `misshapen` list tensor names, where that is what is wrong.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Sequence[str] = (),
    ) -> None:
        parts = [message]
        for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                parts.append(f"{word}: {', '.join(names[:5])}{more}")
        super().__init__("; ".join(parts))
        self.missing, self.unexpected, self.misshapen = tuple(missing), tuple(unexpected), tuple(misshapen)


def nearest(word: str, possible: Iterable[str], count: int = 3) -> list[str]:
    """The possible words most like the one given, best first; empty where none is near."""
    return difflib.get_close_matches(word, list(possible), n=count, cutoff=0.5)


def choices(word: str, possible: Iterable[str]) -> str:
    """The tail of a message about an unknown word: the nearest ones, or all where none is near and they are few."""
    names = list(possible)
    near = nearest(word, names)
    if near:
        return f"did you mean {' or '.join(near)}?"
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"possible: {shown}"
