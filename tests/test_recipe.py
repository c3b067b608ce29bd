"""Recipes: what is read is what is written, what is unknown is refused in one line, what follows from the data."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moyai.diffusion.config import LogitNormalDensity, TableDensity
from moyai.errors import ConfigError, RequestError
from moyai.recipe import reading as recipes
from moyai.recipe import resolve as resolving
from moyai.recipe.model import Recipe
from moyai.recipe.reading import parse
from moyai.recipe.resolve import DataFacts
from moyai.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "recipes").glob("*.toml"))
BASE = 'name = "x"\n[data]\nkind = "digits"\n'
MNIST = DataFacts(channels=1, height=28, width=28, count=1000, classes=tuple("0123456789"), fields=("class",))
OTHERS = {
    "shapes": DataFacts(channels=3, height=64, width=64, count=1000, fields=("caption", "mask")),
    "oasis": DataFacts(channels=1, height=128, width=128, count=1000, fields=("position",)),
}  # facts of what is not like MNIST, by kind


def read(*overrides: str, text: str = BASE, gpu: bool = False) -> Recipe:
    return parse(text, overrides, source="r.toml", gpu=gpu)


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_are_named_after_their_file(path: Path) -> None:
    recipe = recipes.load(path)
    assert recipe.name == path.stem
    assert recipes.from_json(recipes.to_json(recipe)) == recipe
    gpu = "[gpu]" in path.read_text()
    if gpu:
        assert recipes.difference(recipe, recipes.load(path, gpu=True), ["prior.net", "prior.train"])
    done = resolving.resolve(recipe, OTHERS.get(recipe.data.kind, MNIST))
    assert (recipe.budget.minutes is None) is (path.stem == "digits")
    trained = len(resolving.stages(recipe))
    assert (recipe.budget.minutes or 0) <= 25 * trained
    assert (done.prior.train.steps is not None) is (path.stem == "digits")


def test_there_are_the_recipes_the_documents_name() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\(recipes/([\w-]+)\.toml\)", readme))
    assert named == {p.stem for p in SHIPPED} >= {"digits", "mnist", "fashion-mnist", "cifar10", "oasis", "folder"}
    folder = next(p for p in SHIPPED if p.stem == "folder")
    keys = [line for line in folder.read_text().splitlines() if line and not line.startswith("#")]
    assert len(keys) == 5


def test_a_table_written_in_part_keeps_the_defaults_of_its_place() -> None:
    assert read("prior.train.steps=3").prior.train == Recipe(name="x", data={"kind": "digits"}).prior.train.model_copy(
        update={"steps": 3}
    )
    assert read("first_stage.train.steps=3").first_stage.train.batch == 16  # the class's own default is 32
    assert read("prior.parameterization.zero_terminal=true").prior.parameterization.kind == "v"
    assert read("prior.weighting.gamma=3", "prior.weighting.kind=min-snr").prior.weighting.gamma == 3


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("prior.train.learning_rate=1e-3", "prior.train.learning_rate", 1e-3),
        ("prior.train.learning_rate=1", "prior.train.learning_rate", 1.0),
        ("prior.train.steps=1_000", "prior.train.steps", 1000),
        ("data.flip=true", "data.flip", True),
        ("data.resolution=[28, 32]", "data.resolution", [28, 32]),
        ("data.resolution=none", "data.resolution", None),
        ("prior.train.clip=none", "prior.train.clip", None),
        ("prior.train.decay=none", "prior.train.decay", "none"),  # here it is one of the words
        ("description=2024-01-01", "description", "2024-01-01"),  # no key holds a date
        ('description="1e5"', "description", "1e5"),
        ("description=a = b", "description", "a = b"),
        ("description=1\nseed = 3", "description", "1\nseed = 3"),
        ("first_stage.net={factor = 2, multipliers = [1, 3]}", "first_stage.net.multipliers", [1, 3]),
        ("prior.conditions.class.dropout=0.2", "prior.conditions.class.dropout", 0.2),
        ("prior.conditions={}", "prior.conditions", {}),
        ("data.root=plain", "data.root", "plain"),
        ("data.root=~/x", "data.root", str(Path.home() / "x")),
        ("seed=9223372036854775807", "seed", 2**63 - 1),
        ("prior.parameterization.kind=flow", "prior.parameterization", {"kind": "flow"}),
    ],
)
def test_overrides(override: str, key: str, value: object) -> None:
    tree = read(override).model_dump(mode="json")
    for part in key.split("."):
        tree = tree[part]
    assert tree == value
    assert type(tree) is type(value)


def test_later_overrides_go_before_earlier_ones_and_those_before_the_gpu_table() -> None:
    text = BASE + "[prior.train]\nbatch = 1\nsteps = 1\n[gpu]\nprior.train = {batch = 2, steps = 2, epochs = 2}\n"
    assert read(text=text).prior.train.batch == 1
    train = read("prior.train.steps=3", "prior.train.steps=4", text=text, gpu=True).prior.train
    assert (train.batch, train.steps, train.epochs) == (2, 4, 2)


def test_a_changed_kind_takes_away_the_keys_it_does_not_have_and_keeps_the_others() -> None:
    text = 'name = "x"\ndata = {kind = "idx", name = "mnist", download = false, flip = true}\n'
    data = read("data.kind=folder", text=text).data
    assert (data.kind, data.name, data.flip) == ("folder", "mnist", True)
    text = BASE + "[prior.parameterization]\nkind = 'v'\nzero_terminal = true\n"
    assert read("prior.parameterization.kind=flow", text=text).prior.parameterization.kind == "flow"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("prior.train.lerning_rate=1", "prior.train.lerning_rate is unknown; did you mean learning_rate?"),
        ("prior.learning_rate=1", "unknown; did you mean first_stage.objective.adversarial.learning_rate or"),
        ("_target_=os.system", "_target_ is unknown; possible: name, description, seed, data"),
        ("prior.net.target=os.system", "prior.net.target is unknown"),
        ("data._target_=os.system", "data._target_ is unknown"),
        ("prior.conditions.class.dropuot=0.2", "prior.conditions.class.dropuot is unknown; did you mean dropout"),
        ("prior.parameterization.table.ofset=1", "prior.parameterization.table.ofset is unknown; did you mean offset?"),
        ("data.download=true", 'data.download is not a key of kind "digits", only of "idx" and "cifar10"'),
        ("data.kind=idxx", 'data.kind is "idxx"; possible: digits, idx, cifar10, folder'),
        ("prior.net.kind=vit", 'prior.net.kind is "vit"; possible: unet, dit'),
        ("prior.density.std=2", "prior.density.kind is missing; possible: table, log-normal"),
        ("prior.train.precision=fp16", 'prior.train.precision is "fp16"; possible: auto, float32, bfloat16'),
        ("first_stage.net.factor=3", "first_stage.net.factor is 3; possible: 1, 2, 4, 8"),
        ("prior.train.learning_rate=fast", 'prior.train.learning_rate is "fast"; it must be a number > 0'),
        ("prior.train.learning_rate=nan", "prior.train.learning_rate is nan; it must be a number > 0"),
        ("prior.train.batch=none", 'prior.train.batch is "none"; it must be a whole number > 0'),
        ('seed="5"', 'seed is "5"; it must be a whole number'),
        ("seed=1.5", "seed is 1.5; it must be a whole number"),
        ("seed=true", "seed is true; it must be a whole number"),
        ("seed=-1", "seed is -1; it must be a whole number >= 0 and < 9223372036854775808"),
        ("seed=9223372036854775808", "seed is 9223372036854775808; it must be"),
        ("seed=99999999999999999999", "seed is a number beyond 64 bits"),
        ("data.flip=1", "data.flip is 1; it must be true or false"),
        ("prior.train.betas=[1]", "prior.train.betas is [1]; it must be a list of 2, each a number"),
        ("prior.train.betas=[0.9, 1.5]", "prior.train.betas is [0.9, 1.5]; each must be >= 0 and < 1"),
        ("first_stage.net.multipliers=[1, 0]", "first_stage.net.multipliers[1] is 0; it must be a whole number > 0"),
        ("data.resolution=a", 'data.resolution is "a"; it must be a whole number, none or a list of 2'),
        ("data.resolution=[3, 30]", "data.resolution is [3, 30]; each side must be 4 or more"),
        ("data=3", "data is 3; it must be a table"),
        ("prior.net=unet", 'prior.net is "unet"; it must be a table'),
        ("seed.x=1", "seed is {x = 1}; it must be a whole number"),
        ("prior.conditions=3", "prior.conditions is 3; it must be a table or none"),
        ("budget.minutes=0", "budget.minutes is 0; it must be a number > 0 and <= 525600 or none"),
        ("budget.first_stage=1", "budget.first_stage is 1; it must be a number > 0 and < 1"),
        ("gpu.seed=1", "gpu is unknown"),
        ("data.root=~no-such-user-here/x", "data.root is "),
        ('sampling={sampler="heun", eta=0.5}', 'sampling.eta is 0.5, but "heun" adds no noise'),
        ("prior.train.micro_batch=999", "prior.train.micro_batch is 999, more than the batch of 32"),
        ("prior.train.warmup=1", "prior.train.warmup is 1; it must be a number >= 0 and < 1"),
        ("first_stage.net={factor=4, multipliers=[1, 2]}", "has 2 values, but factor 4 has 3 levels"),
        ("prior.net={multipliers=[1, 2], attention=[true]}", "multipliers has 2 values and prior.net.attention 1"),
        ("x", 'override "x" is not of the form section.key=value'),
        ("a..b=1", "is not of the form section.key=value"),
        ("=1", "is not of the form section.key=value"),
        ("description=\udcff", "text that is not Unicode"),
        ("a\n\u202eb=1", '"a\\n\\u202eb" is unknown'),
        ("a" + ".a" * 50 + "=1", "is nested deeper than"),
        ("description=" + "[" * 5000, 'description="[[[['),
    ],
)
def test_mistakes_are_one_line_that_says_what_is_possible(override: str, line: str) -> None:
    if override.startswith("description=["):
        assert read(override).description == override.removeprefix("description=")
        return
    with pytest.raises(ConfigError) as caught:
        read(override)
    message = str(caught.value)
    assert line in message
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 400


def test_eps_has_no_zero_terminal_table_and_flow_none_at_all() -> None:
    with pytest.raises(ConfigError, match=r'zero_terminal is not a key of kind "eps", only of'):
        read("prior.parameterization={kind='eps', zero_terminal=true}")
    with pytest.raises(ConfigError, match=r'density.kind is "table", but parameterization "flow" has no table'):
        read("prior.parameterization.kind=flow", "prior.density.kind=table")
    with pytest.raises(ConfigError, match=r'sampling.grid is "table", but parameterization "flow" has no table'):
        read("prior.parameterization.kind=flow", "sampling.grid=table")


def test_every_mistake_has_its_own_line_and_says_where_it_came_from() -> None:
    with pytest.raises(ConfigError) as caught:
        read("prior.train.stepps=1", text=BASE + "flop = 1\nflip = 3\n")
    lines = str(caught.value).splitlines()
    assert sorted(lines) == [
        'override "prior.train.stepps=1": prior.train.stepps is unknown; did you mean steps or epochs?',
        "r.toml: data.flip is 3; it must be true or false",
        "r.toml: data.flop is unknown; did you mean flip?",
    ]


def test_the_gpu_table_is_checked_even_where_it_is_not_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"with its \[gpu\] table: prior.train.btach is unknown; did you mean batch"):
        read(text=BASE + "[gpu]\nprior.train.btach = 1\n")
    with pytest.raises(ConfigError, match=r"the recipe has no \[gpu\] table"):
        read(gpu=True)
    with pytest.raises(ConfigError, match="gpu is 3; it must be a table"):
        read(text="gpu = 3\n" + BASE)


@pytest.mark.parametrize("name", ["a/b", "..", "CON", "nul.txt", "", "a\nb", "-x", "x.", "é", "a" * 101, "a b", "."])
def test_names_that_are_no_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="it names a folder"):
        parse({"name": name, "data": {"kind": "digits"}})


@pytest.mark.parametrize("name", ["a", "foo..bar", "2024_x-y.z", "a" * 100])
def test_names_that_are(name: str) -> None:
    assert parse({"name": name, "data": {"kind": "digits"}}).name == name


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a = [1,\nb = ", r"not TOML: .*line 2, column 1"),
        (b"a = 1\na = 2\n", r"not TOML: .*line 2.*'a = 2' names what stands above already"),
        (b"[a]\n[b]\n[a]\n", r"not TOML: .*line 3.*'\[a\]' names what stands above already"),
        (b"name = '\xff'", "not UTF-8 at byte 8"),
        (b"x = 2024-01-01", "x is 2024-01-01, a date; no key of a recipe holds one"),
        (b"x = " + b"[" * 50000, "not TOML|nested deeper"),
        (b"x = " + b"1" * 5000, "not TOML|beyond 64 bits"),
        (b"#" * 70000, "longer than 65536 bytes"),
        (b"", "name is missing"),
    ],
)
def test_files_that_are_no_recipe(data: bytes, line: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=line):
        recipes.load(path)


def test_windows_files_and_a_runs_folder(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    recipe = recipes.load(path)
    (tmp_path / "recipe.json").write_text(recipes.to_json(recipe), encoding="utf-8")
    (tmp_path / "data.json").write_text("{}")
    assert recipes.find(str(tmp_path)) == tmp_path / "recipe.json"
    assert recipes.load(tmp_path) == recipes.load(tmp_path / "recipe.json") == recipe
    assert recipes.load(tmp_path, ["seed=3"]).seed == 3


def test_a_stages_folder_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage keeps the recipe too; taken for a run's, a whole run would be trained inside the stage's folder."""
    run, stage = tmp_path / "run", tmp_path / "run" / "first_stage"
    stage.mkdir(parents=True)
    text = recipes.to_json(recipes.parse(BASE))
    for folder in (run, stage):
        (folder / "recipe.json").write_text(text, encoding="utf-8")
    # killed before its data were written: no folder of a run, but its recipe can still be begun with
    with pytest.raises(
        RequestError, match=r"has a recipe\.json but no data\.json.*; possible: .*run/recipe\.json, which"
    ):
        recipes.find(str(run))
    assert recipes.find(str(run / "recipe.json")) == run / "recipe.json"
    (run / "data.json").write_text("{}")
    assert recipes.find(str(run)) == run / "recipe.json"
    for path in (stage, stage / "recipe.json"):
        with pytest.raises(RequestError, match=f"is a part of a run and no run itself; possible: {run}$"):
            recipes.find(str(path))
    monkeypatch.chdir(stage)
    with pytest.raises(RequestError, match=f"possible: {run}$"):
        recipes.find(".")
    (stage / "data.json").write_text("{}")  # a run of its own, wherever it lies
    assert recipes.find(".") == Path("recipe.json")


@pytest.mark.parametrize("text", ["[1]", "{", '{"name": 1e999}', "[" * 5000])
def test_json_that_is_no_recipe(text: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.json: "):
        recipes.from_json(text)


def test_a_name_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.load(recipes.find("mnist")).name == "mnist"
    with pytest.raises(RequestError, match=r"possible: mnist$"):
        recipes.find("mnis")
    # One of the working folder goes before.
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mnist.toml").write_text(BASE)
    assert recipes.find("mnist") == Path("recipes/mnist.toml")


def test_missing_files_name_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "digits.toml").write_text(BASE)
    assert recipes.find("digits") == Path("recipes/digits.toml")
    assert recipes.find("recipes/digits.toml") == Path("recipes/digits.toml")
    with pytest.raises(RequestError, match=r"possible: recipes.digits\.toml"):
        recipes.find("digit.toml")
    with pytest.raises(RequestError, match=r"has no recipe\.json"):
        recipes.find("recipes")
    with pytest.raises(RequestError, match=r"there is no recipe"):
        recipes.find("a\0b")
    with pytest.raises(RequestError, match=r"no\.toml: No such file"):
        recipes.load(Path("no.toml"))


_EDITS = {
    "seed": st.integers(0, 2**63 - 1),
    "description": st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda s: s != "none"),
    "prior.train.learning_rate": st.floats(1e-30, 1e30),
    "prior.train.clip": st.none() | st.floats(1e-30, 1e30),
    "data.resolution": st.none() | st.integers(4, 9999) | st.tuples(st.integers(4, 99), st.integers(4, 99)),
    "prior.conditions": st.none()
    | st.dictionaries(
        st.text("abc-", min_size=1, max_size=3).filter(lambda s: s.strip("-")),
        st.builds(lambda field: {"kind": "class", "width": 3, "field": field}, st.uuids().map(str)),
    ),
    "prior.parameterization": st.sampled_from([{"kind": "flow"}, {"kind": "eps", "table": {"kind": "linear"}}]),
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries(_EDITS))
def test_what_is_written_is_read_back_exactly(edits: dict[str, object]) -> None:
    recipe = resolving.changed(read(), edits)
    text = recipes.to_json(recipe)
    again = recipes.from_json(text)
    assert again == recipe
    assert recipes.to_json(again) == text
    assert list(again.prior.conditions or {}) == list(recipe.prior.conditions or {})  # their order has a meaning


# --- what follows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sides", "factor", "latents", "levels"),
    [
        ((8, 8), 2, (4, 4), 1),
        ((16, 16), 2, (8, 8), 2),
        ((28, 28), 4, (7, 7), 2),
        ((32, 32), 4, (8, 8), 2),
        ((64, 64), 4, (16, 16), 3),
        ((30, 64), 2, (15, 32), 3),
        ((33, 33), 1, (33, 33), 3),
        ((128, 128), 8, (16, 16), 3),
        ((256, 256), 8, (32, 32), 3),
        ((512, 512), 8, (64, 64), 4),
        ((4, 4), 1, (4, 4), 1),
    ],
)
def test_shapes_follow_from_the_pictures(
    sides: tuple[int, int], factor: int, latents: tuple[int, int], levels: int
) -> None:
    facts = DataFacts(channels=3, height=sides[0], width=sides[1], count=10)
    recipe = resolving.resolve(read("data.resolution=none"), facts)
    net, unet = recipe.first_stage.net, recipe.prior.net
    assert recipe.data.resolution == (sides[0] if sides[0] == sides[1] else sides)
    assert recipe.data.channels == 3
    assert net.factor == factor
    assert net.multipliers is not None
    assert 2 ** (len(net.multipliers) - 1) == factor
    assert tuple(side / factor for side in sides) == latents
    assert unet.multipliers is not None
    assert unet.attention is not None
    assert len(unet.multipliers) == len(unet.attention) == levels
    assert min(latents) / 2 ** (levels - 1) > 3  # rounded up, 4 or more
    assert all(unet.attention) is (max(latents) <= 16)
    assert recipe.prior.conditions == {}


def test_resolving_fills_everything_that_follows_and_twice_is_once() -> None:
    once = resolving.resolve(read(), MNIST)
    assert resolving.resolve(once, MNIST) == once
    assert once.data.resolution == 32  # given by the source goes before the pictures' own
    assert once.prior.density == TableDensity()
    assert list(once.prior.conditions or {}) == ["class"]
    assert once.budget.minutes == 20
    assert recipes.from_json(recipes.to_json(once)) == once
    flow = resolving.resolve(read("prior.parameterization.kind=flow"), MNIST)
    assert flow.prior.density == LogitNormalDensity()
    one = resolving.resolve(read(), MNIST.model_copy(update={"classes": ("all",)}))
    assert one.prior.conditions == {}


def test_what_is_given_is_never_changed_by_resolving() -> None:
    overrides = (
        "first_stage.net.multipliers=[1, 1]",
        "prior.net.attention=[false, true, true]",
        "prior.density={kind='log-normal', mean=0.1}",
        "prior.conditions.kind-of-digit={kind='class', width=7}",
        "data.channels=3",
        "budget.minutes=3",
    )
    before = read(*overrides)
    after = resolving.resolve(before, MNIST)
    for key, old, new in recipes.difference(before, after):
        assert old is None, (key, old, new)
    assert after.first_stage.net.factor == 2
    assert after.prior.net.multipliers == (1, 2, 3)


def test_a_class_condition_needs_classes_and_a_factor_divides_the_picture() -> None:
    with pytest.raises(ConfigError, match=r"prior\.conditions\.class needs classes, and the data have none"):
        resolving.resolve(read("prior.conditions.class.width=8"), MNIST.model_copy(update={"classes": ()}))
    with pytest.raises(ConfigError, match=r"30 x 30, which first_stage\.net\.factor 4 does not divide; .* 28 x 28"):
        resolving.resolve(read("data.resolution=30", "first_stage.net.factor=4"), MNIST)


@pytest.mark.parametrize(
    ("overrides", "first", "prior", "minutes"),
    [
        ((), None, None, 20),
        (("budget.minutes=3",), None, None, 3),
        (("prior.train.epochs=2",), None, 63, 20),
        (("first_stage.train.epochs=0.001", "prior.train.epochs=1.5"), 1, 47, None),
        (("first_stage.train.steps=5", "prior.train.steps=7", "prior.train.epochs=9"), 5, 7, None),
    ],
)
def test_lengths(overrides: tuple[str, ...], first: int | None, prior: int | None, minutes: float | None) -> None:
    recipe = resolving.resolve(read(*overrides), MNIST)  # 1000 pictures in batches of 32
    assert (recipe.first_stage.train.steps, recipe.prior.train.steps) == (first, prior)
    assert recipe.budget.minutes == minutes
    done = resolving.with_steps(recipe, 100, 2000)
    planned = [("first_stage.train.steps", first, 100), ("prior.train.steps", prior, 2000)]
    assert recipes.difference(recipe, done) == [change for change in planned if change[1] is None]


@pytest.mark.parametrize(("steps", "tenth", "save"), [(1, 1, 1), (9, 1, 1), (400, 40, 40), (50_000, 5000, 1000)])
def test_intervals(steps: int, tenth: int, save: int) -> None:
    train = resolving.train_intervals(TrainConfig(steps=steps))
    assert (train.validate_every, train.save_every, train.preview_every) == (tenth, save, tenth)
    assert resolving.train_intervals(train) == train
    assert resolving.train_intervals(TrainConfig(steps=steps, save_every=7)).save_every == 7
    # Looking takes at most 6 % of a short run, here 0.06 x 32 pictures a step; at the end it is looked at in any case.
    for look, apart in ((1e-3, tenth), (0.06 * 32 * steps / 4, max(tenth, -(-steps // 4))), (1e9, steps)):
        assert resolving.train_intervals(TrainConfig(steps=steps), look).validate_every == apart
        assert resolving.train_intervals(TrainConfig(steps=steps), look).save_every == save
    with pytest.raises(ConfigError, match="number of steps is not known"):
        resolving.train_intervals(TrainConfig())


def test_difference_looks_only_at_the_sections_named() -> None:
    old, new = read(), read("seed=3", "prior.net.width=8", "prior.parameterization.kind=flow", "data.root=a")
    assert recipes.difference(old, new, ["seed", "prior.net", "da"]) == [("seed", 0, 3), ("prior.net.width", 64, 8)]
    assert ("prior.parameterization.zero_terminal", False, None) in recipes.difference(old, new, ["prior"])
    assert recipes.difference(old, old) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.resolution=256",),
        (
            *("first_stage.kind=vq", "first_stage.codebook.size=8192", "first_stage.net.latent_channels=4"),
            "first_stage.objective.detail=0.1",
        ),
        ("first_stage.kind=fsq", "first_stage.grid.levels=[256,64,64,64,32,32,32,32]"),
    ],
)
def test_what_the_oasis_recipe_says_can_be_laid_over_it_can(overrides: tuple[str, ...]) -> None:
    path = ROOT / "recipes" / "oasis.toml"
    head = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    assert " ".join(overrides) in head.replace(";", " ").replace(".  ", " ")
    size = 256 if overrides[0].startswith("data") else 128
    facts = OTHERS["oasis"].model_copy(update={"height": size, "width": size})
    recipe = resolving.resolve(recipes.load(path, overrides), facts)
    channels = {"kl": 8, "vq": 4, "fsq": 8}[recipe.first_stage.kind]
    assert recipe.first_stage.net.latent_channels == channels
    assert recipe.first_stage.objective.adversarial is not None
    assert recipe.data.resolution == size


# --- help ----------------------------------------------------------------------------------------------------------


def test_every_key_has_a_type_and_a_description() -> None:
    silent = [key.key for key in recipes.describe() if not (key.type and key.default and key.description)]
    assert silent == []


def test_help_is_of_the_schema() -> None:
    (rate,) = recipes.describe("prior.train.learning_rate")
    assert (rate.default, rate.type) == ("0.001", "a number > 0")
    (batch,) = recipes.describe("first_stage.train.batch")
    assert batch.default == "16"  # of its place, not of its class
    assert next(k for k in recipes.describe("data") if k.key == "data.kind").type.startswith('"digits" or "idx"')
    assert {k.when for k in recipes.describe("data.download")} == {'data.kind = "idx"', 'data.kind = "cifar10"'}
    assert "prior.train.steps = none" in recipes.schema_help("prior.train")
    with pytest.raises(RequestError, match=r"did you mean prior\.train"):
        recipes.describe("prior.trian.steps")


def test_the_help_names_every_key_of_a_resolved_recipe() -> None:
    known = {key.key.replace("<name>", "class") for key in recipes.describe()}
    tree = json.loads(recipes.to_json(resolving.resolve(read("budget.minutes=1"), MNIST)))
    used: set[str] = set()

    def walk(table: dict[str, object], prefix: str) -> None:
        for word, value in table.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{word}.")
            else:
                used.add(f"{prefix}{word}")

    walk(tree, "")
    assert used - known == set()


def test_reading_a_recipe_needs_no_torch() -> None:
    code = (
        "import sys; from moyai.recipe.reading import parse; "
        "parse({'name': 'x', 'data': {'kind': 'digits'}}); "
        "print([m for m in ('torch', 'numpy', 'PIL', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
