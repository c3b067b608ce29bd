"""A recipe: everything a run is made from, as one typed tree; read from TOML, saved as JSON with the run.

The order in which it becomes definite:

1. `load` reads the file, lays its `[gpu]` table (where asked) and the overrides over it, and refuses what is unknown.
2. `resolve` fills in what follows from the data, once the data are known.
3. `with_steps` writes the step counts that a measured budget of minutes comes to, and `train_intervals` what
   follows from those.

After that a run is a pure function of (recipe, seed, step). The keys themselves are in `recipe.model`, what follows
from the data in `recipe.resolve`; this chapter reads, writes, compares and explains.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moyai.errors import ConfigError, RequestError, choices, nearest
from moyai.recipe.explain import Key, keys, mistakes, shown
from moyai.recipe.model import Recipe
from moyai.recipe.overlay import check_plain, filled, lay, nested, override

_PACKAGE = Path(__file__).parents[1]
# Where a name is looked up: in the working folder, then in the package, or beside it where that is a checkout.
FOLDERS = (
    Path("recipes"),
    next((f for f in (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes") if f.is_dir()), _PACKAGE / "recipes"),
)
_LONGEST = {".toml": 2**16, ".json": 2**20}  # bytes of a recipe file; ours have 2 thousand


def find(name_or_path: str) -> Path:
    """The file of a recipe: a path, a run's folder (its recipe.json), or the name of one in `recipes/`, here or as
    moyai brings it along. RequestError where there is none, and for the recipe.json that a stage of a run keeps."""
    try:
        given = Path(name_or_path).expanduser()
        named = (folder / f"{name_or_path}.toml" for folder in FOLDERS)
        options = (given, given / "recipe.json", *named)
        for path in options:
            if path.is_file():
                _check_whole(path, given)
                return path
        if given.is_dir():
            raise RequestError(f"{name_or_path} has no recipe.json; possible: a run's folder, a .toml file")
        files = {p.stem: p for folder in (given.parent, FOLDERS[0]) for p in sorted(folder.glob("*.toml"))}
        brought = {p.stem: Path(p.stem) for p in sorted(FOLDERS[1].glob("*.toml"))}
        files = {**brought, **files}
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"recipe {shown(name_or_path)} cannot be looked for: {error}") from error
    near = nearest(given.stem, files) or sorted(files)[:20]
    possible = ", ".join(str(files[stem]) for stem in near) or "the path of a .toml file, or a run's folder"
    raise RequestError(f"there is no recipe {shown(name_or_path)}; possible: {possible}")


def is_run(folder: Path) -> bool:
    """Whether a run was begun in a folder. A run's stages keep its recipe too, but only the run keeps its data.json."""
    return (folder / "recipe.json").is_file() and (folder / "data.json").is_file()


def run_around(folder: Path) -> Path | None:
    """The run that a folder lies in, where it is none itself: a stage's folder, for one."""
    around = folder.resolve().parent
    return around if is_run(around) and not is_run(folder) else None


def _check_whole(file: Path, given: Path) -> None:
    """Refuse a recipe.json that is no run's own: a run would be trained inside a stage's folder."""
    if file.name == "recipe.json" and (whole := run_around(file.parent)):
        raise RequestError(f"{shown(str(given))} is a part of a run and no run itself; possible: {whole}")
    if file != given and file.name == "recipe.json" and not is_run(file.parent):
        raise RequestError(
            f"{shown(str(given))} has a recipe.json but no data.json: no run was begun there; possible: {file}, which "
            "begins it"
        )


def load(path: Path, overrides: Sequence[str] = (), *, gpu: bool = False) -> Recipe:
    """The recipe of a .toml file, or of the .json one of a run; `overrides` are `section.key=value`."""
    if path.is_dir():
        path = find(str(path))
    longest = _LONGEST.get(path.suffix.lower(), _LONGEST[".toml"])
    try:
        with path.open("rb") as file:
            data = file.read(longest + 1)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror or error}") from error
    if len(data) > longest:
        raise ConfigError(f"{path}: longer than {longest} bytes; that is no recipe")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    tree = _read_json(text, str(path)) if path.suffix.lower() == ".json" else _read_toml(text, str(path))
    return parse(tree, overrides, source=str(path), gpu=gpu)


def parse(
    recipe: str | Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "recipe", gpu: bool = False
) -> Recipe:
    """A recipe from TOML text, or from the table it says. `source` is what the messages call it.

    The file's `gpu` table holds keys as the file does. It is laid over them with `gpu=True`, and checked in any case.
    """
    tree = dict(_read_toml(recipe, source) if isinstance(recipe, str) else recipe)
    check_plain(tree, source)
    faster = tree.pop("gpu", {})
    if not isinstance(faster, Mapping):
        raise ConfigError(f"{source}: gpu is {shown(faster)}; it must be a table of keys of the recipe")
    with_gpu = lay(Recipe, tree, faster)
    if gpu and not faster:
        raise ConfigError(f"{source}: the recipe has no [gpu] table")
    if faster and not gpu:
        _validated(with_gpu, f"{source}, with its [gpu] table", {})
    tree = with_gpu if gpu else tree
    origins: dict[str, str] = {}
    for text in overrides:
        path, value = override(text)
        check_plain(nested(path, value), f"override {shown(text)}")
        origins[".".join(path)] = f"override {shown(text)}"
        tree = lay(Recipe, tree, nested(path, value))
    return _validated(tree, source, origins)


def _validated(tree: Mapping[str, Any], source: str, origins: Mapping[str, str]) -> Recipe:
    # JSON, and strictly: a list may be a tuple and text a path, but "5" is no number and 1 not true.
    full = filled(Recipe, tree)
    data = full.get("data")
    if isinstance(data, dict) and isinstance(data.get("root"), str) and data["root"].startswith("~"):
        try:
            full["data"] = {**data, "root": str(Path(data["root"]).expanduser())}
        except RuntimeError as error:
            raise ConfigError(f"{source}: data.root is {shown(data['root'])}: {error}") from error
    try:
        return Recipe.model_validate_json(json.dumps(full), strict=True)
    except ValidationError as error:
        lines = []
        for key, line in mistakes(Recipe, error, full):
            place = key.split("[")[0]
            near = [origins[o] for o in origins if f"{place}.".startswith(f"{o}.") or o.startswith(f"{place}.")]
            lines.append(f"{near[-1] if near else source}: {line}")
        raise ConfigError("\n".join(lines)) from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _read_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        twice = re.match(r"Cannot (?:overwrite a value|declare).*\(at line (\d+)", str(error))
        line = f": {text.splitlines()[int(twice[1]) - 1].strip()!r} names what stands above already" if twice else ""
        raise ConfigError(f"{source}: not TOML: {error}{line}") from error


def _read_json(text: str, source: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a recipe is a table of keys, not {shown(tree)}")
    return tree


def from_json(text: str, *, source: str = "recipe.json") -> Recipe:
    """The recipe that `to_json` wrote."""
    return parse(_read_json(text, source), source=source)


def to_json(recipe: Recipe) -> str:
    """Every key of a recipe in the order of the schema: equal recipes have equal text."""
    return json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def difference(old: Recipe, new: Recipe, sections: Sequence[str] = ()) -> list[tuple[str, Any, Any]]:
    """The keys under the sections (all where none is named) that differ: (dotted key, old, new); None where absent."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        (key, before.get(key), after.get(key))
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key) and (not sections or any(f"{key}.".startswith(f"{s}.") for s in sections))
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return flat


def describe(path: str = "") -> list[Key]:
    """Every key of a recipe at or below a dotted path, with type, default and description."""
    every = list(keys(Recipe))
    found = [key for key in every if not path or f"{key.key}.".startswith(f"{path}.")]
    if not found:
        raise RequestError(f"no key {shown(path)}; {choices(path, dict.fromkeys(key.key for key in every))}")
    return found


def schema_help(path: str = "") -> str:
    """`describe` as text, two lines a key."""
    lines = []
    for key in describe(path):
        when = f"  [{key.when}]" if key.when else ""
        lines.append(f"{key.key} = {key.default}  ({key.type}){when}\n    {key.description}")
    return "\n".join(lines)
