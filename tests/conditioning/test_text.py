"""Captions as tokens and as a context: nothing is lost, order is seen, and the null is the empty caption."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from moyai.conditioning.conditioner import Conditioner
from moyai.conditioning.config import TextCondition
from moyai.conditioning.text import BEGIN, END, PAD, TextEmbedding, train_tokenizer
from moyai.errors import CheckpointError, ConfigError, DataError
from moyai.randomness import Draw

tokenizers = pytest.importorskip("tokenizers", exc_type=ImportError)

CAPTIONS = [
    f"a {size} {colour} {shape} {relation} a {other} {shape}"
    for size in ("large", "small")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square")
    for relation in ("left of", "above")
    for other in ("yellow", "white")
]
ODD = [
    "",
    " ",
    "  two spaces before",
    "Capitals, punctuation; and 1,234.5 numbers!",
    "a party \N{PARTY POPPER} and a family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a line\nand another\r\n\tand a tab",
    "ein gr\u00fcner Kreis, \u7d05\u3044\u5186, \u0647\u0644\u0627\u0644",
    "<end> of <begin> and <pad>",
    "e\u0301 is not \u00e9",
    "\x00\x7f\ufeff",
]


@pytest.fixture(scope="module")
def learned() -> str:
    return train_tokenizer(CAPTIONS, 400)


def embedding(learned: str, length: int = 16, **keys: object) -> TextEmbedding:
    torch.manual_seed(0)
    config = TextCondition.model_validate({"width": 12, "heads": 3, "length": length, **keys})
    made = TextEmbedding(config, learned)
    with torch.no_grad():
        for values in made.parameters():
            values.normal_(1 if values.ndim == 1 else 0, 0.3)
    return made


def told(made: TextEmbedding, *texts: str) -> Tensor:
    return torch.from_numpy(made.prepare(np.array(texts, dtype=object)))


def all_kept(tokens: Tensor) -> Tensor:
    return torch.ones(len(tokens), dtype=torch.bool)


# ---- tokens


def test_every_caption_is_got_back_from_its_tokens(learned: str) -> None:
    made, reader = embedding(learned, 200), tokenizers.Tokenizer.from_str(learned)
    for text in [*CAPTIONS, *ODD]:
        row = made.prepare(np.array([text], dtype=object))[0].tolist()
        end = row.index(END)
        assert row[0] == BEGIN
        assert row[end + 1 :] == [PAD] * (199 - end)
        inner = row[1:end]
        assert not {PAD, BEGIN, END} & set(inner)  # a caption cannot spell them
        said = reader.decode(inner, skip_special_tokens=False)
        assert said == (f" {text}" if text else "")


def test_words_of_the_captions_are_single_tokens_wherever_they_stand(learned: str) -> None:
    made = embedding(learned)
    rows = made.prepare(np.array(["red circle", "circle red", "large"]))
    assert [int((row != PAD).sum()) for row in rows] == [4, 4, 3]
    assert rows[0, 1] == rows[1, 2]
    assert rows.dtype == np.int32
    assert json.loads(learned)["model"]["vocab"]["\u0120circle"] == rows[0, 2]  # byte-level's sign for a space


def test_a_word_seen_once_does_not_become_a_token() -> None:
    vocabulary = json.loads(train_tokenizer(["red blue", "red green"], 400))["model"]["vocab"]
    assert "\u0120red" in vocabulary
    assert len(vocabulary) == 256 + 3 + 3  # re, red and with its space
    assert not {"\u0120blue", "ue", "gr"} & set(vocabulary)


def test_the_most_frequent_pair_is_merged_first() -> None:
    """The rule itself, by hand: pairs of "abab", "ab", "abc"."""
    merges = json.loads(train_tokenizer(["abab"] * 3 + ["ab"] * 2 + ["abc"] * 2, 300))["model"]["merges"]
    assert [tuple(pair) for pair in merges[:2]] == [("a", "b"), ("\u0120", "ab")]  # 10 times, then 7


def test_the_tokenizer_is_the_same_whatever_the_threads_and_the_order() -> None:
    code = (
        "import json, sys, hashlib\n"
        "from moyai.conditioning.text import train_tokenizer\n"
        "captions = json.loads(sys.stdin.read())\n"
        "print(hashlib.sha256(train_tokenizer(captions, 500).encode()).hexdigest())"
    )
    captions = [*CAPTIONS, *ODD, *(f"{a}{b} word{a * b % 7} {b}{a}" for a in range(40) for b in range(20))]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(captions[::-1]),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.strip() == hashlib.sha256(train_tokenizer(captions, 500).encode()).hexdigest()


def test_long_captions_are_cut_and_counted(learned: str) -> None:
    made = embedding(learned, 8)
    values = np.array(["red " * 25_000, "x" * 100_000, "a red circle", "red red red red red red"], dtype=object)
    rows = made.prepare(values)
    assert rows.shape == (4, 8)
    assert rows[:2, 0].tolist() == [BEGIN] * 2
    assert rows[:2, -1].tolist() == [END] * 2  # the end is kept
    assert PAD not in rows[:2]
    assert rows[3, -1] == END
    assert made.truncated(values) == 2  # six words and two ends fit exactly
    assert made.truncated(np.array(["a red circle"] * 3)) == 0
    assert train_tokenizer(["x" * 100_000] * 2, 300)  # and learned from without taking minutes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "caption 1 is missing; possible: an empty text"),
        (float("nan"), "caption 1 is missing"),
        (7, "caption 1 is '7' of type int, not text"),
        (b"red", "of type bytes, not text"),
        ("red \ud800", "caption 1 has .* which is no character"),
    ],
)
def test_what_is_no_text_is_one_line(learned: str, value: object, message: str) -> None:
    made = embedding(learned)
    for ask in (made.prepare, made.truncated):
        with pytest.raises(DataError, match=message) as error:
            ask(np.array(["red", value], dtype=object))
        assert "\n" not in str(error.value)
        assert str(error.value).isprintable()


def test_no_captions_are_no_rows(learned: str) -> None:
    assert embedding(learned).prepare(np.array([], dtype=object)).shape == (0, 16)


def test_other_text_is_no_tokenizer(learned: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        embedding("{}")
    with pytest.raises(CheckpointError, match="is not one of moyai's: it has no <pad>"):
        embedding(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())


def test_without_the_package_the_extra_is_named(learned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for ask in (lambda: train_tokenizer(["red"], 300), lambda: embedding(learned)):
        with pytest.raises(ConfigError, match=r"pip install 'moyai\[text\]'"):
            ask()


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 10 is no multiple of heads 4"):
        TextCondition(width=10)


# ---- the condition


def test_the_null_is_the_empty_caption(learned: str) -> None:
    made = embedding(learned)
    tokens = told(made, "a red circle", "", "x \N{PARTY POPPER}")
    dropped = made(tokens, torch.zeros(3, dtype=torch.bool))
    empty = made(told(made, "", "", ""), torch.ones(3, dtype=torch.bool))
    blank = made(made.blank(3, torch.device("cpu")), torch.zeros(3, dtype=torch.bool))
    for other in (empty, blank):
        assert torch.equal(dropped.context, other.context)
        assert torch.equal(dropped.mask, other.mask)
    assert dropped.mask.sum(1).tolist() == [2, 2, 2]  # begin and end
    kept = made(tokens, all_kept(tokens))
    assert torch.equal(kept.context[1], dropped.context[1])
    assert float((kept.context[0, :2] - dropped.context[0, :2]).detach().abs().max()) > 1e-3


def test_what_is_dropped_does_not_know_its_caption_and_what_is_kept_does(learned: str) -> None:
    made = embedding(learned)
    keep = torch.tensor([True, False, True])
    one = made(told(made, "a red circle", "above", "blue"), keep)
    two = made(told(made, "a red circle", "a large green square", "white"), keep)
    assert torch.equal(one.context[:2], two.context[:2])
    assert torch.equal(one.mask[:2], two.mask[:2])
    assert not torch.equal(one.context[2], two.context[2])


def test_two_words_that_change_places_change_the_context(learned: str) -> None:
    made = embedding(learned)
    tokens = told(made, "red circle left of blue square", "blue circle left of red square")
    assert sorted(tokens[0].tolist()) == sorted(tokens[1].tolist())
    context, mask = made(tokens, all_kept(tokens)).context, tokens[0] != PAD
    assert float((context[0] - context[1]).detach().abs().amax(-1)[mask].min()) > 1e-3


def test_a_longer_length_gives_the_same_embedding(learned: str) -> None:
    short, long = embedding(learned, 8), embedding(learned, 40)
    state = short.state_dict()
    with torch.no_grad():
        places = long.encoder.places.detach().clone()
        places[:8] = state["encoder.places"]
    long.load_state_dict({**state, "encoder.places": places})
    texts = ("a red circle", "", "above")
    few, many = told(short, *texts), told(long, *texts)
    one, two = short(few, all_kept(few)), long(many, all_kept(many))
    torch.testing.assert_close(one.context, two.context[:, :8])
    assert torch.equal(one.mask, two.mask[:, :8])
    assert not two.mask[:, 8:].any()
    assert not two.context[:, 8:].any()


def test_an_embedding_learns(learned: str) -> None:
    """All its weights have a gradient, the tokens of these captions and no others."""
    made = embedding(learned)
    tokens = told(made, "a red circle left of a blue square")
    made(tokens, all_kept(tokens)).context.square().sum().backward()
    assert all(float(values.grad.abs().max()) > 0 for values in made.parameters())
    touched = made.encoder.tokens.weight.grad.abs().amax(1) > 0
    assert touched.nonzero().flatten().tolist() == sorted(set(tokens[0].tolist()) - {PAD})


def test_weights_follow_from_the_seed_and_what_is_saved_is_the_encoder(learned: str) -> None:
    one, two = embedding(learned), embedding(learned)
    assert list(one.state_dict()) == [f"encoder.{name}" for name in one.encoder.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_in_a_conditioner(learned: str) -> None:
    """Dropped at its rate, null where it is not told, and null and told can be put into one batch."""
    made = Conditioner({"text": embedding(learned, dropout=0.3)})
    assert (made.vector_width, made.context_width, made.concat_channels) == (None, 12, None)
    fields = {"caption": torch.from_numpy(made.prepared({"caption": np.array(["a red circle"] * 2000)})["caption"])}
    cond, null = made.dropped(fields, Draw(0, 0, 2000)), made.null(2000)
    gone = int((cond.mask == null.mask).all(1).sum())
    assert abs(gone - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5
    assert type(cond).cat([cond, null]).context.shape == (4000, 16, 12)
    # a device is not asked for values: those of "meta" have none
    keep, there = torch.ones(2000, dtype=torch.bool, device="meta"), fields["caption"].to("meta")
    assert made.to("meta")({"caption": there}, 2000, {"text": keep}).context.shape == (2000, 16, 12)


def test_a_tiny_task_is_learned(learned: str) -> None:
    """From the context alone a linear layer learns which colour stands first; a bag of words could not."""
    torch.manual_seed(0)
    made = TextEmbedding(TextCondition(width=24, heads=2, depth=1, length=12), learned)
    out = torch.nn.Linear(24, 3)
    colours = ("red", "green", "blue")
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    tokens = told(made, *(f"a {colours[a]} circle left of a {colours[b]} square" for a, b in pairs))
    first = torch.tensor([a for a, _ in pairs])
    optimiser = torch.optim.AdamW([*made.parameters(), *out.parameters()], lr=3e-3)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(out(made(tokens, all_kept(tokens)).context[:, 0]), first)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1
