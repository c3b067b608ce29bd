"""The house stands as docs/architecture.md says: imports go one way, configuration is light, README's tree is real.

Each rule is a function from source text to what it finds wrong, so that it can be shown to find something.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "moyai"
FILES = sorted(p.relative_to(SRC).as_posix() for p in SRC.rglob("*.py"))

# A module may import rows below its own, and its own folder (a name without a dot in front of it is a file of row 0,
# which may import its neighbours).
ROWS = {
    0: "errors schema randomness batch version console pictures files provenance log devices similarity",
    1: "diffusion nets",
    2: "firststage conditioning data",
    3: "priors",
    4: "recipe",
    5: "model",
    6: "build edits redrawing requests tasks",
    7: "checkpoints evaluation",
    8: "training",
    9: "commands web",
    10: "cli arguments __main__",
}
ROW = {name: row for row, names in ROWS.items() for name in names.split()}
PEERS = (("cli", "arguments", "__main__"), ("edits", "redrawing", "requests", "tasks"))  # one chapter in several files
CONFIG_MAY = {"schema", "errors"}
LIGHT_PARTY = {"torch", "numpy", "PIL", "safetensors", "sklearn", "rich"}  # rich only from console and cli
LIGHT = (
    "errors",
    "schema",
    "version",
    "recipe/explain",
    "recipe/overlay",
    "recipe/reading",
    "recipe/model",
    "recipe/resolve",
    "console",
    "arguments",
    "cli",
)


def imports(source: str, file: str) -> Iterator[tuple[str, bool]]:
    """Every import of a file, those in functions too: (dotted module, whether it runs on import)."""
    package = ["moyai", *PurePosixPath(file).parts[:-1]]

    def visit(node: ast.AST, runs: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from ((f"{module}.{alias.name}" if module.count(".") == 0 else module, runs) for alias in node.names)
            if module.startswith("moyai."):  # `from moyai.nets import unet` imports moyai.nets.unet
                yield from ((f"{module}.{alias.name}", runs) for alias in node.names if _is_module(module, alias.name))
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        inner = runs and not typing_only and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner)

    yield from visit(ast.parse(source), True)


def _is_module(module: str, name: str) -> bool:
    return (SRC / Path(*module.split(".")[1:]) / f"{name}.py").is_file()


def _house(module: str) -> list[str]:
    """The parts of a module of ours after `moyai`; empty for others'."""
    head, *rest = module.split(".")
    return rest if head == "moyai" else []


def wrong_direction(source: str, file: str) -> list[str]:
    """Imports that go up, sideways, or out of what a config.py may know."""
    path = PurePosixPath(file)
    own = path.with_suffix("").parts[0]
    config = path.name == "config.py"
    if own not in ROW:
        return [] if file == "__init__.py" else [f"{file} has no row"]
    found = []
    for module, _ in imports(source, file):
        parts = _house(module)
        if not parts:
            if config and module.split(".")[0] not in {"pydantic", "typing", "pathlib", "collections", "math", "moyai"}:
                found.append(f"{file} is configuration and imports {module}")
            continue
        target = parts[0]
        theirs_config = len(parts) > 1 and parts[1] == "config"
        if config:
            allowed = theirs_config or target in CONFIG_MAY
        elif target not in ROW:
            allowed = target.startswith("__version__")
        elif theirs_config:
            allowed = True  # every folder's config.py is of row 0
        else:
            peers = any(own in group and target in group for group in PEERS)
            allowed = ROW[target] < ROW[own] or target == own or peers or ROW[own] == ROW[target] == 0
        if own.startswith("recipe") and not theirs_config and target in ROW and 0 < ROW[target] < 4:
            allowed = False  # row 4 knows of the rooms below only their configuration
        if not allowed:
            found.append(f"{file} imports {module}")
    return found


def forbidden(source: str, file: str) -> list[str]:
    """Prints in the library; anything that runs code which a file names."""
    found = []
    for module, _ in imports(source, file):
        if module.split(".")[0] in {
            "pickle",
            "_pickle",
            "cPickle",
            "dill",
            "cloudpickle",
            "joblib",
            "shelve",
            "marshal",
        }:
            found.append(f"{file} imports {module}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "print" and not file.startswith("cli"):
                found.append(f"{file}:{node.lineno} prints")
            if name in {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"}:
                found.append(f"{file}:{node.lineno} calls {name}")
            if name == "torch.load" and not any(
                k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
                for k in node.keywords
            ):
                found.append(f"{file}:{node.lineno} calls torch.load without weights_only=True")
            allowed = any(
                k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and not k.value.value)
                for k in node.keywords
            )
            if allowed:
                found.append(f"{file}:{node.lineno} allows pickles")
    return found


def classes(source: str) -> set[str]:
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


KINDS = {name for file in FILES if file.endswith("/config.py") for name in classes((SRC / file).read_text("utf-8"))}


def matches_on_kinds(source: str, file: str) -> list[str]:
    """A `match` on configuration types outside build/, the one place that knows every kind."""
    cases = [ast.unparse(node.cls) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.MatchClass)]
    found = [case for case in cases if case.split(".")[-1] in KINDS]
    return [] if file.startswith("build/") else [f"{file} matches on {case}" for case in found]


def undocumented(source: str, file: str) -> list[str]:
    """A chapter begins by saying what it is; a folder's __init__.py is empty."""
    if file.endswith("/__init__.py"):
        return [f"{file} is not empty"] if source.strip() else []
    return [] if ast.get_docstring(ast.parse(source)) else [f"{file} has no docstring"]


def loads(name: str, sources: dict[str, str]) -> set[str]:
    """What importing a file of ours loads, through whatever it imports: the names of others' packages."""
    seen: set[str] = set()
    waiting, found = [name], set()
    while waiting:
        file = waiting.pop()
        if file in seen or file not in sources:
            continue
        seen.add(file)
        for module, runs in imports(sources[file], file):
            if not runs:
                continue
            parts = _house(module)
            if not module.startswith("moyai"):
                found.add(module.split(".")[0])
            for depth in range(1, len(parts) + 1):
                path = "/".join(parts[:depth])
                waiting += [f"{path}.py", f"{path}/__init__.py"]
    return found


def cycles(sources: dict[str, str]) -> list[str]:
    """Files that import one another when they are imported."""
    edges = {
        file: {
            target
            for module, runs in imports(source, file)
            if runs and (target := "/".join(_house(module)) + ".py") in sources and target != file
        }
        for file, source in sources.items()
    }
    while ends := [file for file, targets in edges.items() if not targets & edges.keys()]:
        for file in ends:
            del edges[file]
    return sorted(edges)


def tree_files(block: str) -> set[str]:
    """The .py files a tree names, by path below src/moyai. A line: `folder/  file.py file.py  # words`, or one file."""
    found: set[str] = set()
    folders: list[tuple[int, str]] = []  # (indent, path)
    for raw in block.splitlines():
        line = re.sub(r"[│├└─|`]", " ", re.split(r"\s+(?:#|--|—)\s", raw)[0])
        words = line.split()
        if not words:
            continue
        indent = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indent:
            folders.pop()
        parent = folders[-1][1] if folders else ""
        if words[0].endswith("/"):
            parent = f"{parent}{words.pop(0)}"
            folders.append((indent, parent))
        for word in words:
            if re.fullmatch(r"[\w/]+\.py,?", word):
                found.add(f"{parent}{word.rstrip(',')}")
    return {f.split("src/moyai/", 1)[1] for f in found if "src/moyai/" in f}


def layout_blocks(markdown: str) -> list[str]:
    """The fenced blocks below a heading that speaks of the layout or the house, which show src/moyai."""
    sections = re.split(r"^(?=#+ )", markdown, flags=re.M)
    chosen = [s for s in sections if re.match(r"#+ .*(house|layout)", s, flags=re.I)]
    return [b for s in chosen for b in re.findall(r"^```\w*\n(.*?)^```", s, flags=re.M | re.S) if "src/moyai" in b]


def _all(rule: object) -> list[str]:
    assert callable(rule)
    return [line for file in FILES for line in rule((SRC / file).read_text(encoding="utf-8"), file)]


# --- the house -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [wrong_direction, forbidden, undocumented, matches_on_kinds])
def test_the_house_keeps_the_rule(rule: object) -> None:
    assert len(FILES) > 20
    assert _all(rule) == []


def test_what_the_command_line_needs_to_start_is_light() -> None:
    sources = {file: (SRC / file).read_text(encoding="utf-8") for file in FILES}
    light = [f for f in FILES if f.removesuffix(".py").split("/")[0] in LIGHT or f.endswith("/config.py")]
    light.append("__init__.py")
    heavy = {
        f: sorted(loads(f, sources) & LIGHT_PARTY - ({"rich"} if f.startswith(("console", "cli")) else set()))
        for f in light
    }
    assert {f: found for f, found in heavy.items() if found} == {}


def test_no_file_waits_for_itself() -> None:
    assert cycles({file: (SRC / file).read_text(encoding="utf-8") for file in FILES}) == []


def test_the_tree_in_readme_is_the_real_tree() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    blocks = layout_blocks(readme.read_text(encoding="utf-8"))
    assert len(blocks) == 1, "README.md has one tree of src/moyai, below a heading that speaks of the layout"
    real = {f for f in FILES if not f.endswith("/__init__.py")}
    named = tree_files(blocks[0])
    assert (sorted(named - real), sorted(real - named)) == ([], [])


# --- the rules find what they are for --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("diffusion/noise.py", "from moyai.nets.unet import UNet"),
        ("nets/unet.py", "import moyai.diffusion.noise"),
        ("nets/unet.py", "def f():\n    from moyai.priors import diffusion"),
        ("nets/unet.py", "from ..priors.diffusion import DiffusionPrior"),
        ("nets/unet.py", "if TYPE_CHECKING:\n    from moyai.model import LatentModel"),
        ("data/folder.py", "from moyai.firststage import codec"),
        ("recipe.py", "from moyai.data.images import read"),
        ("recipe.py", "from moyai.model import LatentModel"),
        ("tasks.py", "from moyai.build.prior import build_prior"),
        ("build/prior.py", "from moyai.checkpoints import native"),
        ("tasks.py", "from moyai.checkpoints.native import load"),
        ("checkpoints/native.py", "from moyai.evaluation.metrics import fid"),
        ("evaluation/metrics.py", "from moyai.training import run"),
        ("training/run.py", "from moyai import cli"),
        ("errors.py", "from moyai.nets.layers import silu"),
        ("model.py", "from moyai import train"),
        ("nets/config.py", "import torch"),
        ("nets/config.py", "from moyai.batch import Cond"),
        ("nets/config.py", "from moyai.nets.layers import silu"),
        ("attic/old.py", ""),
    ],
)
def test_a_wrong_import_is_found(file: str, source: str) -> None:
    assert wrong_direction(source, file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("nets/unet.py", "from moyai.nets import layers\nfrom .layers import silu\nimport torch"),
        ("nets/unet.py", "from moyai.diffusion.config import VConfig"),
        ("diffusion/loss.py", "from moyai.batch import Cond\nfrom moyai.randomness import Draw"),
        ("randomness.py", "from moyai.errors import RequestError"),
        ("recipe.py", "from moyai.data.config import DataConfig\nfrom moyai.recipe.model import Recipe"),
        ("build/firststage.py", "from moyai.build import conditions\nfrom moyai.model import LatentModel"),
        ("training/run.py", "from moyai import tasks\nfrom moyai.checkpoints import native"),
        ("cli.py", "from moyai.training.run import train\nfrom moyai import __version__"),
        ("priors/config.py", "from moyai.nets.config import NetConfig\nfrom moyai.schema import Config"),
    ],
)
def test_a_right_import_is_not(file: str, source: str) -> None:
    assert wrong_direction(source, file) == []


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "def f():\n    import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import torch\ntorch.load('x', weights_only=safe)",
        "import torch\ntorch.load('x', **options)",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "np.load('x', allow_pickle=True)",
    ],
)
def test_what_is_forbidden_is_found(source: str) -> None:
    assert forbidden(source, "nets/unet.py")


def test_what_only_looks_forbidden_is_not() -> None:
    source = "model.eval()\ntorch.compile(net)\nsafetensors.torch.load(b'')\nnp.load('x', allow_pickle=False)"
    assert forbidden(source, "nets/unet.py") == []
    assert forbidden("torch.load(file, weights_only=True, map_location='cpu')", "nets/unet.py") == []
    assert forbidden("print(1)", "cli.py") == []


def test_a_match_on_kinds_is_found_outside_build() -> None:
    source = "match config:\n    case UNetConfig():\n        pass\n    case config.DiTConfig(width=8):\n        pass"
    assert len(matches_on_kinds(source, "training/run.py")) == 2
    assert matches_on_kinds(source, "build/prior.py") == []
    assert matches_on_kinds("match part:\n    case Picture():\n        pass", "evaluation/page.py") == []
    assert any("case UNetConfig()" in (SRC / file).read_text(encoding="utf-8") for file in FILES)


def test_missing_docstrings_and_filled_init_files_are_found() -> None:
    assert undocumented("x = 1", "nets/unet.py")
    assert undocumented('"""Words."""', "nets/__init__.py")
    assert undocumented('"""Words."""\nx = 1', "nets/unet.py") == undocumented("", "nets/__init__.py") == []


def test_weight_is_found_through_others_and_cycles_are_found() -> None:
    sources = {
        "cli.py": "from moyai.recipe.reading import load\ndef f():\n    import numpy",
        "recipe/reading.py": "from moyai.nets.config import X",
        "nets/config.py": "import torch.nn",
    }
    assert loads("cli.py", sources) == {"torch"}
    assert cycles(sources) == []
    around = cycles({**sources, "nets/config.py": "import moyai.cli"})
    assert around == ["cli.py", "nets/config.py", "recipe/reading.py"]


def test_trees_are_read_in_the_forms_people_write() -> None:
    block = "src/moyai/\n  cli.py    # not old.py\n  nets/     unet.py layers.py\n            dit.py\nrecipes/\n"
    assert tree_files(block) == {"cli.py", "nets/unet.py", "nets/layers.py", "nets/dit.py"}
    drawn = "src/moyai/\n├── cli.py\n├── nets/\n│   └── unet.py\n└── tasks.py\ntests/\n└── test_house.py\n"
    assert tree_files(drawn) == {"cli.py", "nets/unet.py", "tasks.py"}
    text = f"# x\n## The house\nwords\n```text\n{block}```\n## Other\n```\nsrc/moyai/\n  no.py\n```\n"
    assert layout_blocks(text) == [block]
