"""One safetensors file: what is written is read, by us and by the reference; what is malformed is refused, cheaply."""

import json
import os
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import pytest
import safetensors.torch as reference
import torch
from forked import in_child
from hypothesis import HealthCheck, given, settings

from moyai.checkpoints.tensors import (
    DTYPES,
    check_finite,
    header,
    iterate_tensors,
    read_tensors,
    tensors_digest,
    write_tensors,
)
from moyai.errors import CheckpointError


def packed(head: object, payload: bytes = b"", *, length: int | None = None) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def zoo() -> dict[str, torch.Tensor]:
    """A tensor of every dtype, and of every awkward layout."""
    g = torch.Generator().manual_seed(0)
    tensors = {name: torch.randint(0, 2, (3, 5), generator=g).to(dtype) for name, dtype in DTYPES.items()}
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.empty(0, 4)
    tensors["channels last"] = torch.randn(2, 3, 4, 5, generator=g).to(memory_format=torch.channels_last)
    tensors["transposed"] = torch.randn(4, 6, generator=g).t()
    tensors["every other"] = torch.arange(20)[::2]
    tensors["expanded"] = torch.randn(3, 1, generator=g).expand(3, 4)
    tensors["conjugate"] = torch.randn(3, generator=g, dtype=torch.complex64).conj()
    tensors["needs gradient"] = torch.nn.Parameter(torch.randn(2, generator=g))
    tensors["nan"] = torch.tensor([float("nan"), float("inf"), -0.0])
    tensors['ü漢🎨 "\\\n'] = torch.ones(1)
    return tensors


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and tensors_digest({"x": a}) == tensors_digest({"x": b})


def test_roundtrip_of_every_dtype_and_layout(tmp_path: Path) -> None:
    tensors = zoo()
    write_tensors(tmp_path / "a.safetensors", tensors, {"who": "né"})
    for read in (read_tensors, reference.load_file):
        found = read(tmp_path / "a.safetensors")
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert same(found[name], tensor), name
    torch.testing.assert_close(read_tensors(tmp_path / "a.safetensors")["channels last"], tensors["channels last"])
    head = header(tmp_path / "a.safetensors")
    assert head["metadata"] == {"who": "né"}
    assert head["tensors"]["BF16"] == {"dtype": "BF16", "shape": [3, 5]}


def test_reads_what_the_reference_writes(tmp_path: Path) -> None:
    tensors = {name: tensor.detach().resolve_conj().contiguous() for name, tensor in zoo().items()}
    reference.save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = read_tensors(tmp_path / "a.safetensors")
    assert tensors_digest(found) == tensors_digest(tensors)
    assert [name for name, _ in iterate_tensors(tmp_path / "a.safetensors")] == list(found)


@pytest.mark.parametrize("tensor", [torch.ones(2, device="meta"), torch.eye(2).to_sparse()])
def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"'x'.*cannot be saved"):
        write_tensors(tmp_path / "a", {"x": tensor})
    assert list(tmp_path.iterdir()) == []


def test_digest_sees_name_dtype_shape_and_every_byte() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    variants = [
        base,
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"c": torch.zeros(2, 3), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 1.0000001)},
        {"a": -torch.zeros(2, 3), "b": torch.ones(1)},
    ]
    assert len({tensors_digest(tensors) for tensors in variants}) == len(variants)
    assert tensors_digest(base) == tensors_digest(dict(reversed(base.items())))


def test_a_file_altered_after_loading_does_no_harm(tmp_path: Path) -> None:
    def load_then_cut() -> float:
        write_tensors(tmp_path / "a", {"x": torch.ones(1 << 20)})
        tensors = read_tensors(tmp_path / "a")
        os.truncate(tmp_path / "a", 100)
        return float(tensors["x"].sum())

    assert in_child(load_then_cut) == (0, float(1 << 20))  # the same with load_file ends in SIGBUS


def test_non_finite_values_are_named() -> None:
    check_finite({"a": torch.ones(2), "n": torch.arange(3), "f8": torch.ones(2).to(torch.float8_e4m3fn)}, "here")
    with pytest.raises(CheckpointError, match="here: tensor 'b': 2 of 3 values not finite"):
        check_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan"), float("inf")])}, "here")


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
MALFORMED = {
    "nothing": (b"", "too few"),
    "seven bytes": (b"\0" * 7, "too few"),
    "no header": (packed(b""), "begin with"),
    "header beyond the file": (packed({"a": ONE}, bytes(8), length=10_000), "does not fit"),
    "header of 2^63 bytes": (packed({"a": ONE}, bytes(8), length=2**63), "does not fit"),
    "leading space": (packed(b" " + json.dumps({"a": ONE}).encode(), bytes(8)), "begin with"),
    "not JSON": (packed(b'{"a": '), "not a sound"),
    "not UTF-8": (packed(b'{"\xff": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)), "not a sound"),
    "a list": (packed([1]), "begin with"),
    "text after the object": (packed(json.dumps({"a": ONE}).encode() + b"x", bytes(8)), "not a sound"),
    "the same name twice": (
        packed(b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2), bytes(8)),
        "'a' is there twice",
    ),
    "the same key twice": (
        packed(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "'dtype' is there twice",
    ),
    "the same metadata twice": (
        packed(b'{"__metadata__":{"k":"1","k":"2"},"a":%b}' % json.dumps(ONE).encode(), bytes(8)),
        "'k' is there twice",
    ),
    "half a surrogate": (packed(b'{"\\ud800":%b}' % json.dumps(ONE).encode(), bytes(8)), "not a sound"),
    "unknown dtype": (packed({"a": ONE | {"dtype": "F31"}}, bytes(8)), "'F31'; possible: F64"),
    "dtype is a list": (packed({"a": ONE | {"dtype": ["F32"]}}, bytes(8)), "dtype"),
    "a key too many": (packed({"a": ONE | {"code": "os.system"}}, bytes(8)), "not just dtype"),
    "a key too few": (packed({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "not just dtype"),
    "negative size": (packed({"a": ONE | {"shape": [-2]}}, bytes(8)), "no possible shape"),
    "fractional size": (packed({"a": ONE | {"shape": [2.0]}}, bytes(8)), "no possible shape"),
    "boolean size": (packed({"a": ONE | {"shape": [2, True]}}, bytes(8)), "no possible shape"),
    "overflowing size": (packed({"a": ONE | {"shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}}), "possible shape"),
    "too many dimensions": (packed({"a": ONE | {"shape": [2] + [1] * 100}}, bytes(8)), "no possible shape"),
    "shape does not fit": (packed({"a": ONE | {"shape": [3]}}, bytes(8)), "needs 12 bytes and has 8"),
    "offsets backwards": (packed({"a": ONE | {"data_offsets": [8, 0]}}, bytes(8)), "no possible data_offsets"),
    "offsets below zero": (packed({"a": ONE | {"data_offsets": [-8, 0]}}, bytes(8)), "no possible data_offsets"),
    "three offsets": (packed({"a": ONE | {"data_offsets": [0, 4, 8]}}, bytes(8)), "no possible data_offsets"),
    "a gap in front": (packed({"a": ONE | {"data_offsets": [4, 12]}}, bytes(12)), "expected 0"),
    "overlap": (packed({"a": ONE, "b": ONE | {"data_offsets": [4, 12]}}, bytes(12)), "expected 8"),
    "the same bytes twice": (packed({"a": ONE, "b": ONE}, bytes(8)), "expected 8"),
    "payload too short": (packed({"a": ONE}, bytes(7)), "take 8 bytes and the file has 7"),
    "payload too long": (packed({"a": ONE}, bytes(9)), "take 8 bytes and the file has 9"),
    "metadata not strings": (packed({"__metadata__": {"k": 1}, "a": ONE}, bytes(8)), "strings by strings"),
    "metadata a list": (packed({"__metadata__": [], "a": ONE}, bytes(8)), "strings by strings"),
    "NaN in the header": (packed(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)), "NaN"),
    "brackets without end": (packed(b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"), "not a sound"),
    "a number of a million digits": (packed(b'{"a":' + b"9" * 1_000_000 + b"}"), "not a sound"),
    "a bool of 2": (packed({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2"), "values above 1"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_with_a_reason(tmp_path: Path, case: str) -> None:
    data, reason = MALFORMED[case]
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "bad.safetensors")
    message = str(caught.value)
    assert reason in message
    assert "bad.safetensors" in message
    assert "\n" not in message
    assert len(message) < 600


def test_the_sound_neighbour_of_the_malformed_ones_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(packed({"a": ONE}, bytes(8)))
    assert read_tensors(tmp_path / "a")["a"].tolist() == [0.0, 0.0]


def test_what_is_not_a_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, reason in (("pipe", "not a regular file"), ("folder", "folder"), ("absent", "missing")):
        with pytest.raises(CheckpointError, match=reason):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("length", [9_999_000, 62_000_000])
@pytest.mark.parametrize("entry", ['"t%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', '"%07d":[]', '"%07d":1'])
def test_a_header_of_a_million_entries_is_refused_without_filling_the_memory(
    tmp_path: Path, length: int, entry: str
) -> None:
    count = length // len(entry % 0 + ",")
    (tmp_path / "big").write_bytes(packed(("{" + ",".join(entry % i for i in range(count)) + "}").encode()))

    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            header(tmp_path / "big")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "at most 10000000" in str(caught.value) or "more entries than 20000" in str(caught.value)
    assert peak < 100e6


def test_a_header_as_large_as_allowed_is_read(tmp_path: Path) -> None:
    tensors = {f"t{i:05d} [{{,": torch.zeros(1) for i in range(20_000)}
    write_tensors(tmp_path / "a", tensors, {"tags": json.dumps({"a,[{": list(range(50_000))})})
    assert set(read_tensors(tmp_path / "a")) == set(tensors)
    with pytest.raises(ValueError, match="do not fit one"):
        write_tensors(tmp_path / "b", tensors | {"one more": torch.zeros(1)})


def small_file() -> bytes:
    tensors = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3, dtype=torch.bfloat16)}
    return reference.save(tensors, {"format": "pt", "note": 'x"y'})


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = small_file()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_tensors(tmp_path / "cut")


WORDS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"-1", b"0", b"1e9", b"null", b"true", b"\\u0000", b"\\ud800",
         b"\xff", b"F32", b"I8", b"BOOL", b"weight", b"shape", b"99999999999999999999", b" ", b"\n"]  # fmt: skip


def check_mutations(folder: Path, examples: int) -> None:
    """Whatever we accept, the reference accepts too, with the same tensors; all else is our error and no other."""
    whole = small_file()
    length = int.from_bytes(whole[:8], "little")
    counts = {"accepted": 0, "refused": 0}

    edits = st.tuples(
        st.integers(0, length), st.integers(0, 4), st.one_of(st.sampled_from(WORDS), st.binary(max_size=3))
    )

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(edits, min_size=1, max_size=3), st.booleans())
    def mutate(changes: list[tuple[int, int, bytes]], keep_length: bool) -> None:
        head = whole[8 : 8 + length]
        for place, dropped, added in changes:
            head = head[:place] + added + head[place + dropped :]
        data = packed(head, whole[8 + length :], length=length if keep_length else None)
        (folder / "mutated").write_bytes(data)
        try:
            ours = read_tensors(folder / "mutated")
        except CheckpointError:
            counts["refused"] += 1
            return
        counts["accepted"] += 1
        assert tensors_digest(ours) == tensors_digest(reference.load(data))

    mutate()
    assert counts["refused"] > examples / 2
    assert counts["accepted"] > 0  # else the comparison compared nothing


def test_mutated_headers(tmp_path: Path) -> None:
    check_mutations(tmp_path, 300)


@pytest.mark.slow
def test_ten_thousand_mutated_headers(tmp_path: Path) -> None:
    check_mutations(tmp_path, 10_000)
