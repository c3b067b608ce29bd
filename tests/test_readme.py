"""What the documents say is so: README's commands run, and every file, link, key and target they name exists.

A block below `<!-- tested -->` is run line by line (sh) or as a whole (python), in the order of the page and in one
folder; below `<!-- tested: NAME -->` it is written to that file. Training is cut down by overrides, nothing else.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from moyai import cli, pictures
from moyai.recipe.reading import describe, load
from moyai.training import budget

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = [
    *("data.limit=60", "data.resolution=16"),
    *("first_stage.net.width=8", "first_stage.train.steps=2", "first_stage.train.batch=8"),
    *("prior.net.width=16", "prior.net.head_width=8", "prior.net.blocks=1"),
    *("prior.train.steps=2", "prior.train.batch=8"),
    *("sampling.steps=2", "sampling.batch=64", "report.samples=4", "report.per_class=1", "report.gif=false"),
]


class Block(NamedTuple):
    file: str | None
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks that are marked as tested."""
    found = re.findall(r"^<!-- tested(?:: (\S+))? -->\n```(\w+)\n(.*?)^```", page, flags=re.M | re.S)
    return [Block(file or None, language, text) for file, language, text in found]


def command(line: str) -> list[str]:
    """The words of a line of README after `moyai`, with what trains cut down; overrides follow the recipe."""
    program, *words = shlex.split(line, comments=True)
    assert program == "moyai", f"only moyai's commands are tested, not {line}"
    return [*words[:2], *SMALL, *words[2:]] if words[0] in ("train", "check") else words


def some_pictures(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for i in range(12):
            size = (int(generator.integers(16, 40)), int(generator.integers(16, 40)), 3)
            Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(folder / kind / f"{i}.png")


def test_what_readme_says_to_type_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOYAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MOYAI_DATA", raising=False)
    monkeypatch.setitem(budget.measure.__kwdefaults__, "seconds", 0.1)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    some_pictures(tmp_path / "pictures")
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 8, axis=1).repeat(16, axis=0)).save(tmp_path / "hole.png")
    names: dict[str, object] = {}
    said: dict[str, str] = {}
    for block in blocks((ROOT / "README.md").read_text(encoding="utf-8")):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, "README.md", "exec"), names)
        else:
            for line in block.text.splitlines():
                status = cli.main(command(line))
                out, err = capsys.readouterr()
                assert status == 0, f"{line}: {err}"
                said[line.split("#")[0].strip()] = out

    for run in ("pets", "digits"):
        _holds_what_readme_says(tmp_path / "runs" / run, planned=False)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"pets", "digits"}
    with Image.open("samples.gif") as gif:
        assert gif.n_frames > 1
    assert len(list(Path("samples").glob("*.png"))) == 80
    assert {k: v.shape for k, v in np.load("samples.npz").items()} == {"images": (100, 16, 16, 1), "labels": (100,)}
    changed, filled = (pictures.read_recipe(f"{name}.png") for name in ("changed", "filled"))
    assert (changed["strength"], changed["repeats"], changed["class_names"]) == (0.6, 1, ["8"])
    assert (filled["strength"], filled["repeats"], filled["n"]) == (1.0, 10, 6)
    assert "class_names: ['3', '8']" in said["moyai inspect samples.png"]
    assert "prior: finished at step 2" in said["moyai inspect runs/digits --plot curves.html"]
    assert "<svg" in Path("curves.html").read_text(encoding="utf-8")
    images, again = names["images"], names["again"]
    assert isinstance(images, np.ndarray)
    assert isinstance(again, np.ndarray)
    assert (images.shape, images.dtype) == (again.shape, again.dtype) == ((4, 16, 16, 1), np.uint8)


def _holds_what_readme_says(run: Path, *, planned: bool) -> None:
    """The table of README's chapter on the run folder, row by row."""
    chapter = (ROOT / "README.md").read_text(encoding="utf-8").split("## What a run folder holds")[1].split("\n## ")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", chapter, flags=re.M) for name in re.findall(r"`(.*?)`", row)]
    assert len(named) == 10
    missing = {name for name in named if not (run / name).exists()}
    assert missing == (set() if planned else {"plan.json"})


def test_blocks_are_found_and_commands_cut_down() -> None:
    marked = "<!-- tested -->\n```sh\nmoyai train a --out b  # words\n```\n"
    page = f"{marked}```sh\nno\n```\n<!-- tested: x -->\n```toml\ny\n```\n"
    assert blocks(page) == [Block(None, "sh", "moyai train a --out b  # words\n"), Block("x", "toml", "y\n")]
    assert command("moyai train a --out b  # words") == ["train", "a", *SMALL, "--out", "b"]
    assert command("moyai inspect a") == ["inspect", "a"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    here = [link.split("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert [link for link in here if not (page.parent / link).exists()] == []


def code(page: Path) -> list[str]:
    """What stands between backticks in the running text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_named_exists(page: Path) -> None:
    files = [word for word in code(page) if re.fullmatch(r"[\w/]+\.py", word)]
    known = [ROOT / "src" / "moyai", ROOT, *(ROOT / "src" / "moyai").iterdir()]  # or by its name alone, in a folder
    lost = [file for file in files if not any((place / file).is_file() for place in known) and file != "config.py"]
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_named_is_a_key(page: Path) -> None:
    keys = {key.key for key in describe()}
    every = keys | {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}
    sections = {key.split(".")[0] for key in keys if "." in key}
    words = [
        match for word in code(page) for match in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)+)(?=$|[=\s])", word)
    ]
    files = (".toml", ".json", ".md", ".py", ".html")
    named = [word for word in words if word.split(".")[0] in sections and not word.endswith(files)]
    assert [word for word in named if word not in every] == []


def test_readme_names_keys_and_modules() -> None:
    """The two searches above find something."""
    words = code(ROOT / "README.md")
    assert "diffusion/guidance.py" in words
    assert any("prior.train" in word for word in words)


def test_readmes_table_of_recipes_is_that_of_the_folder() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {found[1]: line for line in lines if (found := re.match(r"\| \[([\w-]+)\]\(recipes/\1\.toml\)", line))}
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))
    for name, row in rows.items():
        recipe = load(ROOT / "recipes" / f"{name}.toml")
        first, prior, minutes = recipe.first_stage.train.steps, recipe.prior.train.steps, recipe.budget.minutes
        length = f"{first:,} + {prior:,} steps" if first and prior else f"{minutes:g} minutes"
        assert f"| {length} |" in row


def test_every_make_target_named_is_one() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:`|^)make ([\w-]+)", text, flags=re.M))
    assert {"demo", "test", "test-slow", "lint", "bench", "clean"} <= named & targets
    assert named <= targets
