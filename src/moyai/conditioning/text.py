"""A caption as a condition: tokens learned from the captions, read by a transformer trained with the prior.

Tokens are byte pairs (Sennrich et al. 2016) over bytes (Radford et al. 2019): the pair of neighbours seen most often
becomes one token, again and again. Every text can be written in them, whatever its characters, and is got back from
them exactly. A caption is

    begin, tokens, end, padding ...        `length` in all; of a longer one the end of its text is cut off

and the null is the empty caption: begin, end. So "not told" and "told nothing" are one thing, and a negative prompt is
a caption like any other.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.conditioning.config import TextCondition
from moyai.errors import CheckpointError, ConfigError, DataError
from moyai.nets.text import TextEncoder
from moyai.randomness import Draw

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<pad>", "<begin>", "<end>")  # by name; tokens 0, 1 and 2. A caption cannot spell them.
PAD, BEGIN, END = range(3)
LEARNED_FROM = 2048  # characters of a caption: long runs of letters take quadratic time, and teach no words
LONGEST = 32  # bytes of a token
SEEN = 2  # times that a pair must stand in the captions to become a token: one seen once has nothing to learn from


def train_tokenizer(captions: Sequence[str], size: int) -> str:
    """A byte-pair tokenizer of at most `size` tokens (300 or more) as its JSON text.

    The same for the same captions in any order, whatever the number of threads. ConfigError without `tokenizers`.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise _missing() from error
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=SEEN,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # all 256 bytes
        max_token_length=LONGEST,
        show_progress=False,
    )
    made.train_from_iterator((_spaced(text[:LEARNED_FROM]) for text in captions), trainer)
    return str(made.to_str())


class TextEmbedding(nn.Module):
    """Captions through a transformer of its own, as a context with one entry for each token.

    tokenizer_json: what `train_tokenizer` gave. ConfigError without `tokenizers`, CheckpointError for other text.
    """

    vector_width = None
    concat_channels = None

    def __init__(self, config: TextCondition, tokenizer_json: str) -> None:
        super().__init__()
        self.field, self.dropout, self.guidance = config.field, config.dropout, config.guidance
        self.context_width, self.length, self.tokenizer_json = config.width, config.length, tokenizer_json
        size = _tokenizer(tokenizer_json).get_vocab_size()
        self.encoder = TextEncoder(size, config.length, width=config.width, depth=config.depth, heads=config.heads)
        self.register_buffer("_empty", torch.from_numpy(self._row([])), persistent=False)  # (length,)

    def prepare(self, values: np.ndarray) -> np.ndarray:
        """Captions (N,) as tokens (N, length) int32. DataError for what is no text."""
        texts = checked(values, self.field)
        rows = {text: self._row(ids) for text, ids in self._tokens(texts).items()}
        return np.stack([rows[text] for text in texts]) if texts else np.zeros((0, self.length), np.int32)

    def truncated(self, values: np.ndarray) -> int:
        """How many of the captions (N,) have more tokens than fit, and lose the end of their text."""
        texts = checked(values, self.field)
        counts = {text: len(ids) for text, ids in self._tokens(texts).items()}
        return sum(counts[text] > self.length - 2 for text in texts)

    def blank(self, count: int, device: torch.device) -> Tensor:
        return self._null().to(device).expand(count, -1)

    def corrupt(self, values: Tensor, draw: Draw) -> Tensor:
        return values

    def forward(self, tokens: Tensor, keep: Tensor) -> Cond:
        """tokens: (B, length) int as prepared; keep: (B,) bool, the empty caption stands where it is False."""
        told = torch.where(keep[:, None], tokens, self._null().to(tokens))  # (B, length)
        mask = told != PAD
        return Cond(context=self.encoder(told, mask), mask=mask)

    def _null(self) -> Tensor:
        empty = self._buffers["_empty"]
        assert empty is not None
        return empty

    def _tokens(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """The tokens of each text, ends not included; none for an empty one."""
        tokenizer = _tokenizer(self.tokenizer_json)
        return {text: tokenizer.encode(_spaced(text)).ids if text else [] for text in dict.fromkeys(texts)}

    def _row(self, ids: Sequence[int]) -> np.ndarray:
        row = np.full(self.length, PAD, np.int32)
        told = [BEGIN, *ids[: self.length - 2], END]
        row[: len(told)] = told
        return row


def checked(values: np.ndarray, field: str) -> list[str]:
    """Captions as a list of text. DataError naming the first that is missing, no text, or not to be written in UTF-8.

    An empty caption is text: it tells nothing.
    """
    for number, value in enumerate(values):
        if value is None or (isinstance(value, float) and math.isnan(value)):  # as tables say it
            raise DataError(f"{field} {number} is missing; possible: an empty text, which tells nothing")
        if not isinstance(value, str):
            raise DataError(f"{field} {number} is {str(value)[:40]!r} of type {type(value).__name__}, not text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{field} {number} has {value[error.start]!r}, which is no character") from error
    return [str(value) for value in values]


def _spaced(text: str) -> str:
    """With a space before it, so that a word is the same token at the beginning as after another word."""
    return f" {text}"


def _tokenizer(text: str) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _missing() from error
    try:
        made = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"the tokenizer of the captions cannot be read: {error}") from error
    if [made.token_to_id(name) for name in SPECIAL] != [PAD, BEGIN, END]:
        raise CheckpointError(f"the tokenizer of the captions is not one of moyai's: it has no {', '.join(SPECIAL)}")
    made.encode_special_tokens = True  # where a caption says "<end>", those are five characters
    return made


def _missing() -> ConfigError:
    return ConfigError("a condition of text needs the package tokenizers: pip install 'moyai[text]'")
