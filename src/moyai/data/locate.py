"""Where data are looked for, and where moyai may write: the root given, $MOYAI_DATA/<name>, the cache.

The cache is $MOYAI_CACHE or ~/.cache/moyai. Files are written beside their final name and renamed, so that a killed
process leaves the old file or none, and no reader sees half of one.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moyai.data.config import DataConfig
from moyai.errors import DataError
from moyai.files import save_error, sweep_temporaries, sync_folder

STALE = 24 * 3600.0  # seconds after which a temporary file is a leftover of a killed process


def cache_folder() -> Path:
    """$MOYAI_CACHE, else ~/.cache/moyai. It need not exist yet."""
    if given := os.environ.get("MOYAI_CACHE"):
        return Path(given).expanduser()
    try:
        return Path.home() / ".cache" / "moyai"
    except RuntimeError as error:
        raise DataError("there is no home folder to keep a cache in: set MOYAI_CACHE to a folder") from error


def places(config: DataConfig, cache: Path | None = None) -> list[Path]:
    """Where the data may lie, best first. A root that is given is the only place."""
    if config.root is not None:
        return [config.root.expanduser()]
    if config.name is None:
        raise DataError(
            "where the data lie is not given: set data.root to a folder, or data.name to a folder under $MOYAI_DATA"
        )
    if Path(config.name).is_absolute() or ".." in Path(config.name).parts:
        raise DataError(f"data.name is the name of a folder under $MOYAI_DATA, not {config.name!r}; use data.root")
    shared = os.environ.get("MOYAI_DATA")
    folders = [Path(shared).expanduser()] if shared else []
    folders.append(cache_folder() if cache is None else cache)
    return [folder / config.name for folder in folders]


def find_root(
    config: DataConfig,
    *,
    needs: str,
    cache: Path | None = None,
    holds: Callable[[Path], bool] = Path.exists,
) -> Path:
    """The first place that `holds` the data; DataError naming every place and what it needs otherwise.

    A folder `x` may also be given as the archive `x.zip` beside where it would be.
    """
    looked = places(config, cache)
    for place in looked:
        packed = place.with_name(f"{place.name}.zip")
        for candidate in (place, packed):
            if candidate.exists() and holds(candidate):
                return candidate
    where = " or ".join(str(place) for place in looked)
    hint = "" if config.root is not None or os.environ.get("MOYAI_DATA") else " ($MOYAI_DATA is not set)"
    raise DataError(f"no data found: put {needs} in {where}{hint}")


@contextmanager
def written_beside(target: Path, needed: int) -> Iterator[Path]:
    """A temporary path beside `target` that becomes it when the block ends well, and is removed when it does not.

    `needed` is about how many bytes it will have, for the message when the disk is full.
    """
    temporary = target.with_name(f".moyai-tmp-{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(target.parent, older_than=STALE)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise save_error(error, target, needed) from error
    finally:
        with suppress(OSError):  # where the disk is the trouble, the first error is the one to tell
            temporary.unlink(missing_ok=True)
