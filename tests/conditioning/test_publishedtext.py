"""Published text encoders: the context is transformers' own, nothing is encoded twice, and bad folders are one line."""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import moyai
import tiny
from moyai import console
from moyai.checkpoints import models
from moyai.commands.sample import Options, sample
from moyai.conditioning import publishedtext, texttable
from moyai.conditioning.conditioner import Conditioner
from moyai.conditioning.config import PublishedTextCondition
from moyai.conditioning.publishedtext import PublishedText
from moyai.errors import CheckpointError, ConfigError, DataError, SaveError
from moyai.recipe import reading

transformers = pytest.importorskip("transformers", exc_type=ImportError)
tokenizers = pytest.importorskip("tokenizers", exc_type=ImportError)

TEXTS = ["a red circle", "", "a blue square above a red circle", "square", "circle " * 30]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
ROUNDED = {"atol": 1e-3, "rtol": 1e-3}  # float16


def randomised(net: Any) -> Any:
    """All weights drawn anew, those that begin at 0 or 1 too, so that nothing is left out of the comparison."""
    torch.manual_seed(0)
    with torch.no_grad():
        for values in net.parameters():
            values.normal_(1 if values.ndim == 1 else 0, 0.3)
    return net.eval()


def clip_tokenizer(folder: Path) -> int:
    """A tokenizer in CLIP's published form, of letters and two words; the number of tokens."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = ["r e", "re d</w>", "c i", "ci r"]
    words = ["re", "red</w>", "ci", "cir", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate([*letters, *(f"{one}</w>" for one in letters), *words])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return len(vocabulary)


def t5_tokenizer(folder: Path) -> int:
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        ("\u2581red", -1.0),
        ("\u2581circle", -1.0),
    ]
    pieces += [(chr(code), -3.0) for code in range(ord("a"), ord("z") + 1)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return len(pieces)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny encoder of each kind as transformers saves it, with its tokenizer."""
    home = tmp_path_factory.mktemp("texts")
    size = clip_tokenizer(home / "clip")
    ends = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    text = transformers.CLIPTextConfig(
        **SMALL, vocab_size=size, max_position_embeddings=24, projection_dim=12, hidden_act="gelu", **ends
    )
    vision = transformers.CLIPVisionConfig(**SMALL, image_size=16, patch_size=8)
    whole = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    t5 = transformers.T5Config(
        vocab_size=t5_tokenizer(home / "t5"), d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    nets = {
        "clip": transformers.CLIPTextModel(text),
        "projection": transformers.CLIPTextModelWithProjection(text),
        "whole": transformers.CLIPModel(whole),
        "t5": transformers.T5EncoderModel(t5),
        "t5 whole": transformers.T5ForConditionalGeneration(t5),
    }
    for name, net in nets.items():
        randomised(net).save_pretrained(home / name)
        (t5_tokenizer if name.startswith("t5") else clip_tokenizer)(home / name)
    return {name: home / name for name in nets}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the CLIP folder that may be spoilt."""
    return Path(shutil.copytree(folders["clip"], tmp_path / "clip"))


def condition(folder: Path, cache: Path | None = None, **keys: object) -> PublishedText:
    return PublishedText(PublishedTextCondition.model_validate({"folder": folder, **keys}), cache)


def told(made: PublishedText, texts: Sequence[str] = TEXTS) -> Tensor:
    return torch.from_numpy(made.prepare(np.array(texts, dtype=object)))


def kept(rows: Tensor) -> Tensor:
    return torch.ones(len(rows), dtype=torch.bool)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captions that an encoder has seen, in order."""
    seen: list[str] = []
    real = publishedtext.Encoder._encoded

    def counting(self: publishedtext.Encoder, texts: Sequence[str]) -> texttable.Encoded:
        seen.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(publishedtext.Encoder, "_encoded", counting)
    return seen


def clip_reference(folder: Path, net: Any, layer: int) -> Tensor:
    """Stable Diffusion's way: padded to the full length, no mask, and with clip skip the final norm once more."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=24, return_tensors="pt")["input_ids"]
    inner = net if hasattr(net, "final_layer_norm") else net.text_model
    with torch.no_grad():
        out = net(input_ids=ids, output_hidden_states=True)
        return out.last_hidden_state if layer == 1 else inner.final_layer_norm(out.hidden_states[3 - layer + 1])


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("name", ["clip", "projection", "whole"])
def test_clip_is_transformers_own(folders: dict[str, Path], name: str, layer: int) -> None:
    made = condition(folders[name], layer=layer)
    if name == "projection":
        net = transformers.CLIPTextModelWithProjection.from_pretrained(folders[name], local_files_only=True).eval()
    else:
        net = transformers.CLIPTextModel.from_pretrained(folders[name], local_files_only=True).eval()
    expected = clip_reference(folders[name], net, layer)
    cond = made(told(made), kept(torch.zeros(5)))
    assert (made.vector_width, made.context_width, made.concat_channels) == (None, 16, None)
    assert cond.mask is None
    assert cond.context.shape == (5, 24, 16)
    assert cond.context.dtype == torch.float32
    assert float(expected.std()) > 0.3
    assert float((expected[0] - expected[2]).abs().max()) > 0.1  # the text is seen
    torch.testing.assert_close(cond.context, expected, **ROUNDED)


def test_layers_differ_and_the_one_before_the_last_is_one_layer_short(folders: dict[str, Path], tmp_path: Path) -> None:
    """Clip skip 2 is the same encoder with its last layer taken out."""
    short = Path(shutil.copytree(folders["clip"], tmp_path / "short"))
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    one, two, cut = condition(folders["clip"]), condition(folders["clip"], layer=2), condition(short)
    contexts = [made(told(made), kept(torch.zeros(5))).context for made in (one, two, cut)]
    torch.testing.assert_close(contexts[1], contexts[2], **ROUNDED)
    assert float((contexts[0] - contexts[1]).abs().max()) > 0.1


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", ["t5", "t5 whole"])
def test_t5_is_transformers_own_and_masked(folders: dict[str, Path], name: str, layer: int) -> None:
    made = condition(folders[name], length=12, layer=layer)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[name], local_files_only=True)
    net = transformers.T5EncoderModel.from_pretrained(folders[name], local_files_only=True).eval()
    given = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        out = net(input_ids=given["input_ids"], attention_mask=given["attention_mask"], output_hidden_states=True)
        before = net.encoder.final_layer_norm(out.hidden_states[2])
    cond = made(told(made), kept(torch.zeros(5)))
    assert made.context_width == 16
    assert torch.equal(cond.mask, given["attention_mask"].bool())
    assert cond.mask.sum(1).tolist()[1] == 1  # of the empty caption, its end alone
    expected = out.last_hidden_state if layer == 1 else before
    torch.testing.assert_close(cond.context[cond.mask], expected[cond.mask], **ROUNDED)
    assert not cond.context[~cond.mask].any()


def test_length_is_the_encoders_own_or_77(folders: dict[str, Path]) -> None:
    assert [condition(folders[name])._encoder.length for name in ("clip", "whole", "t5")] == [24, 24, 77]
    short = condition(folders["clip"], length=5)
    assert short(short.blank(1, torch.device("cpu")), kept(torch.zeros(1))).context.shape == (1, 5, 16)


def test_the_null_is_the_encoded_empty_caption(folders: dict[str, Path]) -> None:
    for name in ("clip", "t5"):
        made = condition(folders[name], length=12)
        blank = made(made.blank(2, torch.device("cpu")), torch.zeros(2, dtype=torch.bool))  # before anything is told
        rows = told(made)
        none = made(rows, torch.zeros(5, dtype=torch.bool))
        empty = made(told(made, [""] * 5), kept(rows))
        assert torch.equal(none.context, empty.context)
        assert torch.equal(none.context[:2], blank.context)
        if name == "t5":
            assert torch.equal(none.mask, empty.mask)
        some = made(rows, torch.tensor([True, False, False, True, False]))
        other = made(rows[[0, 2, 1, 3, 0]], torch.tensor([True, False, False, True, False]))
        assert torch.equal(some.context, other.context)
        assert not torch.equal(some.context[0], none.context[0])


def test_weights_are_no_parameters_and_are_not_saved(folders: dict[str, Path]) -> None:
    made = condition(folders["clip"])
    rows = told(made)
    told_it = Conditioner({"text": made})
    assert list(told_it.parameters()) == []
    assert told_it.state_dict() == {}
    context = told_it({"caption": rows}, 5).context
    assert not context.requires_grad
    net, _ = made._encoder._network()
    layer = torch.nn.Linear(16, 3)
    layer(context).square().sum().backward()
    assert layer.weight.grad is not None
    assert list(net.parameters())
    assert all(not values.requires_grad and values.grad is None for values in net.parameters())
    assert not net.training
    made.train()
    assert not net.training


def test_each_caption_is_encoded_once_and_copies_share_the_table(folders: dict[str, Path], forwards: list[str]) -> None:
    made = condition(folders["clip"])
    assert made._encoder._held is None  # not read before it is asked
    rows = told(made, TEXTS * 3)
    assert sorted(forwards) == sorted(TEXTS)
    assert torch.equal(rows[:5], rows[5:10])
    average = copy.deepcopy(made)
    told(average, TEXTS[::-1])
    made(rows, kept(rows))
    assert len(forwards) == 5
    new = told(made, ["above", "square"])
    assert forwards[5:] == ["above"]
    assert torch.equal(average(new, kept(new)).context, made(new, kept(new)).context)
    assert torch.equal(made(new, kept(new)).context[1], made(rows, kept(rows)).context[3])


MANY = [f"{word} {'a' * number}" for number in range(1, 21) for word in ("red", "circle", "square", "above")]


def test_captions_of_a_data_set_are_kept_on_disk(folders: dict[str, Path], tmp_path: Path, forwards: list[str]) -> None:
    first = condition(folders["t5"], tmp_path, length=10)
    rows = told(first, MANY)
    assert sorted(forwards) == sorted(["", *MANY])
    assert first._encoder._held is None  # given back: all that a run needs is in the file
    names = sorted(path.suffix for path in (tmp_path / "texts").iterdir())
    assert names == [".json", ".npy"]
    again = condition(folders["t5"], tmp_path, length=10)
    same = told(again, MANY[::-1])
    blank = again(again.blank(1, torch.device("cpu")), torch.zeros(1, dtype=torch.bool))
    assert len(forwards) == 81  # nothing is encoded a second time, nor is the null
    assert again._encoder._held is None
    one, two = first(rows, kept(rows)), again(same.flip(0), kept(same))
    assert torch.equal(one.context, two.context)
    assert torch.equal(one.mask, two.mask)
    assert isinstance(again._table._parts[0].embeddings, np.memmap)
    memory = condition(folders["t5"], None, length=10)
    torch.testing.assert_close(memory(told(memory, MANY), kept(rows)).context, one.context, **ROUNDED)
    torch.testing.assert_close(
        memory(memory.blank(1, torch.device("cpu")), kept(rows)[:1] & False).context, blank.context
    )


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_on_a_device_the_host_is_not_asked(name: str, folders: dict[str, Path]) -> None:
    """Tensors of the device "meta" have no values, so that whatever reads one fails, where it would wait on a GPU."""
    made = condition(folders[name], length=12)
    rows = told(made)
    here = made(rows, kept(rows))
    there = Conditioner({"text": made}).to("meta")({"caption": rows.to("meta")}, 5, {"text": kept(rows).to("meta")})
    assert there.context.shape == here.context.shape
    assert there.context.dtype == here.context.dtype
    assert (there.mask is None) == (here.mask is None) == (name == "clip")


def test_a_table_on_a_device_is_the_table(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = condition(folders["t5"], length=10)
    table, device = made._table, torch.device("cpu")
    monkeypatch.setattr(texttable, "AT_ONCE", 3)
    for texts in (MANY[:7], MANY[5:9]):  # and again, where there are more
        rows = told(made, texts)
        wanted = made(rows, kept(rows))
        embeddings, counts = table.placed(device)
        assert torch.equal(embeddings[rows].float(), wanted.context)
        assert torch.equal(torch.arange(10) < counts[rows][:, None], wanted.mask)
        assert table.placed(device)[0] is embeddings  # copied once
    size = 2 * len(counts) * 10 * 16
    for room, there in ((size, True), (size - 1, False)):
        monkeypatch.setattr(texttable, "PLACED", room)
        assert (table.placed(device) is not None) == there


def test_another_encoder_setting_or_caption_is_another_file(folder: Path, tmp_path: Path, forwards: list[str]) -> None:
    cache = tmp_path / "cache"

    def files() -> int:
        return len(list((cache / "texts").glob("*.npy")))

    told(condition(folder, cache), MANY)
    told(condition(folder, cache, length=9), MANY)
    told(condition(folder, cache, layer=2), MANY)
    told(condition(folder, cache), [*MANY, "one more"])
    assert files() == 4
    before = condition(folder).digest
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("final_layer_norm.bias"))
    tensors[name][0] += 1
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert condition(folder).digest != before
    told(condition(folder, cache), MANY)
    assert files() == 5
    (folder / "merges.txt").write_text("#version: 0.2\nr e\n")
    told(condition(folder, cache), MANY)
    assert files() == 6
    assert len(forwards) == 6 * 81 + 1


@pytest.mark.parametrize("damage", ["cut", "no facts", "facts cut", "another shape"])
def test_a_damaged_file_is_made_again(
    folders: dict[str, Path], tmp_path: Path, forwards: list[str], damage: str
) -> None:
    first = condition(folders["clip"], tmp_path)
    good = first(told(first, MANY), kept(torch.zeros(80))).context
    (array,) = (tmp_path / "texts").glob("*.npy")
    facts = array.with_suffix(".json")
    if damage == "cut":
        array.write_bytes(array.read_bytes()[:-10])
    elif damage == "no facts":
        facts.unlink()
    elif damage == "facts cut":
        facts.write_text(facts.read_text()[:-10])
    else:
        np.save(array, np.zeros((3, 4), np.float16))
    again = condition(folders["clip"], tmp_path)
    assert torch.equal(again(told(again, MANY), kept(torch.zeros(80))).context, good)
    assert len(forwards) == 2 * 81


def test_what_is_interrupted_leaves_nothing_behind(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = publishedtext.Encoder.__call__

    def stopped(self: publishedtext.Encoder, texts: Sequence[str]) -> Iterator[texttable.Encoded]:
        yield next(iter(real(self, texts)))
        raise KeyboardInterrupt

    monkeypatch.setattr(publishedtext.Encoder, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        told(condition(folders["clip"], tmp_path), MANY)
    assert list((tmp_path / "texts").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cannot save"):
        told(condition(folders["clip"], tmp_path / "file"), MANY)


@pytest.mark.parametrize("kept_on_disk", [True, False])
def test_what_is_encoded_is_counted(
    folders: dict[str, Path], tmp_path: Path, forwards: list[str], kept_on_disk: bool
) -> None:
    """In what is done of how much there is new to do; nothing is said where nothing is to be done."""
    cache = tmp_path if kept_on_disk else None
    made = condition(folders["clip"], cache)
    told_it = Conditioner({"text": made})
    counted: list[tuple[int, int, int]] = []

    def progress(done: int, total: int) -> None:
        counted.append((done, total, len(forwards)))

    told_it.encode({"class": np.zeros(3), "caption": np.array(MANY[:3], dtype=object)}, progress)
    assert counted == [(3, 3, 3)]
    counted.clear()
    told_it.encode({"caption": np.array(MANY * 2, dtype=object)}, progress)
    total = 78 if kept_on_disk else 77  # the file has the empty caption, the null, beside the 77 that are new
    assert counted == [(done, total, 3 + done) for done in (32, 64, total)]
    counted.clear()
    rows = told_it.prepared({"caption": np.array(MANY, dtype=object)})["caption"]
    assert len(forwards) == 3 + total  # all was done beforehand
    told_it.encode({"caption": np.array(MANY, dtype=object)}, progress)
    told_it.encode({"class": np.zeros(3)}, progress)
    assert counted == []
    plain = condition(folders["clip"])
    expected = plain(told(plain, MANY), kept(torch.zeros(80))).context
    assert torch.equal(made(torch.from_numpy(rows), kept(torch.zeros(80))).context, expected)
    if kept_on_disk:  # and another start finds the file
        again = condition(folders["clip"], cache)
        told(again, MANY[:3])
        Conditioner({"text": again}).encode({"caption": np.array(MANY, dtype=object)}, progress)
        assert counted == []


def test_where_progress_stops_it_nothing_is_left_behind(folders: dict[str, Path], tmp_path: Path) -> None:
    """As where a signal asks a training to leave."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    made = condition(folders["clip"], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        made.encode(np.array(MANY, dtype=object), stop)
    assert list((tmp_path / "texts").iterdir()) == []
    whole = condition(folders["clip"])
    rows = told(made, MANY)
    assert torch.equal(made(rows, kept(rows)).context, whole(told(whole, MANY), kept(rows)).context)


def test_long_captions_are_cut_and_counted(folders: dict[str, Path]) -> None:
    made = condition(folders["clip"])
    values = np.array(["red " * 25_000, "red " * 22, "red " * 23, "", "red " * 23], dtype=object)
    assert made.truncated(values) == 3  # 22 words and two ends fit
    assert made.truncated(np.array([], dtype=object)) == 0
    rows = told(made, list(values))
    context = made(rows, kept(rows)).context
    assert torch.equal(context[0], context[2])  # both are 22 words and the end
    with pytest.raises(DataError, match="caption 1 is missing"):
        made.prepare(np.array(["red", None], dtype=object))


# ---- bad folders


def spoil(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_a_pickle_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(CheckpointError, match=r"no model.safetensors; pytorch_model.bin is a pickle"):
        condition(folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no model.safetensors"),
        ("merges.txt", r"has no tokenizer; possible: tokenizer.json, vocab.json and merges.txt, spiece.model"),
    ],
)
def test_a_missing_file_is_named(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=message) as error:
        condition(folder)
    assert "\n" not in str(error.value)


def test_what_the_encoder_has_not_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"length is 25, but the encoder in .* takes 24 tokens at most"):
        condition(folder, length=25)
    with pytest.raises(ConfigError, match=r"layer is 4, but the encoder in .* has 3; possible: 1 to 3"):
        condition(folder, layer=4)
    spoil(folder, {"model_type": "bert"})
    with pytest.raises(ConfigError, match="of type 'bert'; possible: clip, clip_text_model, t5"):
        condition(folder)


def test_broken_folders_are_one_line(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as CLIP") as error:
        told(condition(folder))
    assert "\n" not in str(error.value)
    tensors = safetensors.torch.load(weights)
    name = next(name for name in tensors if name.endswith("final_layer_norm.weight"))
    safetensors.torch.save_file({n: v for n, v in tensors.items() if n != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not a whole CLIP model; missing: .*final_layer_norm\.weight"):
        told(condition(folder))
    broken = {**tensors, name: torch.full_like(tensors[name], 1e6)}
    safetensors.torch.save_file(broken, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="not finite in float16"):
        told(condition(folder))
    (folder / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer in .* cannot be read") as error:
        told(condition(folder))
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_encoder_is_refused(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({name: number + 50 for name, number in vocabulary.items()}))
    with pytest.raises(CheckpointError, match="has tokens that the encoder beside it does not know"):
        told(condition(folder))


def test_without_transformers_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishedtext, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'moyai\[text\]'"):
        condition(folder)


def test_no_other_package_draws_bars_or_tables(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("whole", "t5 whole"):
        told(condition(folders[name], length=10))
        condition(folders[name], length=10).truncated(np.array(["red " * 1000]))
    assert capfd.readouterr() == ("", "")


class Heard(console.Silent):
    """What a long command reports."""

    def __init__(self) -> None:
        self.progressed: dict[str, list[tuple[int, int]]] = {}

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        self.progressed.setdefault(what, []).append((done, total))


def test_a_prior_is_told_by_a_published_encoder_and_by_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: list[str]
) -> None:
    """And training and sampling report how far the encoder is."""
    monkeypatch.setenv("MOYAI_CACHE", str(tmp_path / "cache"))
    few = {**tiny.QUICK, "steps": 3, "validate_every": 3, "save_every": 2}
    tree = tiny.tree(tiny.folder(tmp_path / "pictures"), {"first_stage.train": few, "prior.train": few})
    tree["data"]["class_captions"] = [f"a {{class}} {'a' * number}" for number in range(20)]
    tree["prior"]["conditions"] = {"caption": {"kind": "published-text", "folder": str(folder)}}
    heard = Heard()
    run = moyai.train(reading.parse(tree), out=tmp_path / "run", reporter=heard)
    (done, total), *more = heard.progressed["encoding train captions"]
    assert (done, more[-1]) == (32, (total, total))
    assert total > 32
    model = models.load(run)
    assert moyai.sample(model, captions=["a square"], n=2, steps=2).shape == (2, tiny.SIDE, tiny.SIDE, 1)
    assert not any(
        "caption" in name for name in safetensors.torch.load_file(run / "prior" / "model" / "model.safetensors")
    )
    forwards.clear()
    heard, asked = Heard(), Options(tmp_path / "out.png", caption=["square red", "red"])
    assert list(sample(run, heard, asked, {"n": 1, "steps": 2}))
    assert heard.progressed["encoding captions"] == [(2, 2)]
    assert next(iter(heard.progressed)) == "encoding captions"  # before the first step
    assert sorted(forwards) == ["", "red", "square red"]  # the null too
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    first = next(iter(weights))
    safetensors.torch.save_file({**weights, first: weights[first] + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"another text encoder than the one .*conditions\.caption now"):
        models.load(run)
