"""A caption as a condition, read by a published text encoder that stays as it is: CLIP's or T5's.

CLIP (Radford et al. 2021; OpenCLIP's in the same form): every one of the `length` positions is attended to, padding
too, as Stable Diffusion does. T5 (Raffel et al. 2020): padding is masked. The context is the last hidden state; with
`layer` = k > 1 (clip skip) it is that of the k-th layer from the end. Both end in the encoder's final normalisation.

The encoder's weights are no parameters here and in no state dict: a run refers to them by folder and `digest`. Every
different caption is encoded once, rounded to float16, and kept in a table (`texttable`); a batch holds row numbers.
On an accelerator they are looked up there, without asking the host, unless the table is larger than 2 GiB.
The null is the encoded empty caption, so a negative prompt can take its place.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moyai.batch import Cond
from moyai.conditioning.config import PublishedTextCondition
from moyai.conditioning.text import checked
from moyai.conditioning.texttable import Encoded, Progress, TextTable
from moyai.errors import CheckpointError, ConfigError
from moyai.nets import published
from moyai.randomness import Draw

LENGTH = 77  # tokens where the encoder sets no limit
BATCH = 32  # captions encoded at once
KINDS = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}  # by model_type
# Sets of files any of which is a tokenizer, and what else it may have beside.
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
BESIDE = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class PublishedText(nn.Module):
    """Captions through a published encoder, as a context with one entry for each token.

    cache: the folder under which embeddings are kept; None keeps them in memory. ConfigError where transformers is
    missing or the configuration asks for what the encoder has not, CheckpointError for a folder that holds no encoder.
    """

    vector_width = None
    concat_channels = None

    def __init__(self, config: PublishedTextCondition, cache: Path | None = None) -> None:
        super().__init__()
        self.field, self.dropout, self.guidance = config.field, config.dropout, config.guidance
        self._encoder = Encoder(config.folder.expanduser(), config.length, config.layer)
        self._table = TextTable(self._encoder, cache)
        self.context_width = self._encoder.width
        self.register_buffer("_device", torch.empty(0), persistent=False)

    @property
    def digest(self) -> str:
        """Hex sha256 over the encoder's files: its configuration, its tokenizer and its weights."""
        return self._encoder.digest

    def prepare(self, values: np.ndarray) -> np.ndarray:
        """Captions (N,) as rows (N,) int64 of a table, which copies of this module share. DataError for no text."""
        return self._rows(values, None)

    def encode(self, values: np.ndarray, progress: Progress | None = None) -> None:
        """Captions (N,) into the table, before `prepare` asks for them. progress(done, total) counts those encoded."""
        self._rows(values, progress)

    def truncated(self, values: np.ndarray) -> int:
        """How many of the captions (N,) have more tokens than fit, and lose the end of their text."""
        texts = checked(values, self.field)
        counts = dict(zip(dict.fromkeys(texts), self._encoder.counted(list(dict.fromkeys(texts))), strict=True))
        return sum(counts[text] > self._encoder.length for text in texts)

    def blank(self, count: int, device: torch.device) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=device)

    def corrupt(self, values: Tensor, draw: Draw) -> Tensor:
        return values

    def forward(self, rows: Tensor, keep: Tensor) -> Cond:
        """rows: (B,) int64 as prepared; keep: (B,) bool, the empty caption stands where it is False."""
        null = int(self._table.rows_of([""])[0])
        context, counts = self._found(torch.where(keep, rows, torch.full_like(rows, null)))
        if not self._encoder.masked:
            return Cond(context=context)
        return Cond(context=context, mask=torch.arange(context.shape[1], device=rows.device) < counts[:, None])

    def _found(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings (B, L, width) float32 of rows (B,) and how many entries of each count, (B,)."""
        placed = None if rows.device.type == "cpu" else self._table.placed(rows.device)
        if placed is not None:
            return placed[0][rows].float(), placed[1][rows]
        found = self._table.get(rows.cpu().numpy())
        context = torch.from_numpy(found.embeddings).to(rows.device, torch.float32)
        return context, torch.from_numpy(found.counts).to(rows.device)

    def _rows(self, values: np.ndarray, progress: Progress | None) -> np.ndarray:
        self._encoder.device = self._buffers["_device"].device  # type: ignore[union-attr]
        return self._table.rows_of(checked(values, self.field), progress)


class Encoder:
    """A published text encoder in a folder, read when it is first asked."""

    def __init__(self, folder: Path, length: int | None, layer: int) -> None:
        if find_spec("transformers") is None:
            raise ConfigError("a published text encoder needs transformers: pip install 'moyai[text]'")
        self.folder, self.layer, self.device = folder, layer, torch.device("cpu")
        told = published.read_object(folder / "config.json")
        self.kind = told.get("model_type")
        if self.kind not in KINDS:
            raise ConfigError(f"{folder} holds a model of type {self.kind!r}; possible: {', '.join(KINDS)}")
        self.masked = self.kind == "t5"  # CLIP's padding is attended to
        if self.kind == "clip":  # both towers: the text's is a part
            told = told.get("text_config") or {}
        self.width = int(told.get("d_model" if self.masked else "hidden_size", 512))  # transformers' own defaults
        layers = int(told.get("num_layers", 6) if self.masked else told.get("num_hidden_layers", 12))
        limit = None if self.masked else int(told.get("max_position_embeddings", LENGTH))
        self.length = length or limit or LENGTH
        if limit is not None and self.length > limit:
            raise ConfigError(f"length is {length}, but the encoder in {folder} takes {limit} tokens at most")
        if layer > layers:
            raise ConfigError(f"layer is {layer}, but the encoder in {folder} has {layers}; possible: 1 to {layers}")
        published.weight_files(folder)
        self._tokenizer_files()
        self._held: tuple[Any, Any] | None = None

    def __deepcopy__(self, memo: object) -> "Encoder":
        return self  # a copy of a module shares it

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over configuration, tokenizer and weights."""
        small = [self.folder / name for name in BESIDE if (self.folder / name).is_file()]
        return published.sha256([*small, *self._tokenizer_files(), *published.weight_files(self.folder)])

    @property
    def key(self) -> str:
        """What else than the captions the embeddings follow from."""
        return f"1 {self.digest} {self.length} {self.layer}"

    @property
    def shape(self) -> tuple[int, int]:
        """(length, width) of a caption's embedding."""
        return self.length, self.width

    def __call__(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """The captions encoded, in order and in pieces. CheckpointError for numbers that float16 does not hold."""
        for start in range(0, len(texts), BATCH):
            yield self._encoded(texts[start : start + BATCH])

    def counted(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each caption, ends included and nothing cut off."""
        if not texts:
            return []
        with published.silent():
            return [len(ids) for ids in self.tokenizer(list(texts))["input_ids"]]

    def release(self) -> None:
        """Give the network's memory back; it is read again when it is needed again."""
        self._held = None

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            with published.silent():
                return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # its readers raise whatever they meet
            why = published.first_line(error)
            raise CheckpointError(f"the tokenizer in {self.folder} cannot be read: {why}") from error

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> Encoded:
        with published.silent():
            told = self.tokenizer(
                list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            )
        net, norm = self._network()
        ids, counts = told["input_ids"].to(self.device), told["attention_mask"].sum(1)
        if int(ids.max()) >= net.get_input_embeddings().num_embeddings:
            raise CheckpointError(f"the tokenizer in {self.folder} has tokens that the encoder beside it does not know")
        mask = told["attention_mask"].to(self.device) if self.masked else None
        out = net(input_ids=ids, attention_mask=mask, output_hidden_states=self.layer > 1)
        hidden = out.last_hidden_state if self.layer == 1 else norm(out.hidden_states[-self.layer])  # (B, L, width)
        if mask is not None:
            hidden = hidden * mask[:, :, None]
        rows = hidden.to("cpu", torch.float16).numpy()
        if not np.isfinite(rows).all():
            raise CheckpointError(f"the encoder in {self.folder} gives numbers that are not finite in float16")
        return Encoded(rows, counts.numpy())

    def _network(self) -> tuple[Any, Any]:
        """The network and its final normalisation, on the device."""
        if self._held is None:
            import transformers

            made = getattr(transformers, KINDS[str(self.kind)])
            net = published.read(made, self.folder, "T5" if self.masked else "CLIP")
            norm = next(part for name, part in net.named_modules() if name.endswith("final_layer_norm"))
            self._held = net, norm
        net, norm = self._held
        return net.to(self.device), norm

    def _tokenizer_files(self) -> list[Path]:
        for names in TOKENIZERS:
            files = [self.folder / name for name in names]
            if all(file.is_file() for file in files):
                return files
        raise CheckpointError(
            f"{self.folder} has no tokenizer; possible: {', '.join(' and '.join(t) for t in TOKENIZERS)}"
        )
