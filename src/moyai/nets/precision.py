"""Which number format a network computes in, and how memory is kept while it does.

Weights, optimiser, loss and the sampler's state are float32 always; "bfloat16" runs the network under autocast.
On processors with bfloat16 instructions (AVX512-BF16, AMX) and on GPUs that have them, convolutions and matrix
products are about twice as fast; elsewhere bfloat16 is emulated and slower than float32.
"""

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch

from moyai.errors import ConfigError

M = TypeVar("M", bound=torch.nn.Module)
Precision = Literal["auto", "float32", "bfloat16"]

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2  # malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


def supports_bfloat16(device: torch.device | str) -> bool:
    """Whether a network gains from bfloat16 there."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":  # the queries are private to torch, so they may go
        queries = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(query is not None and query() for query in queries)
    return False


def autocast_dtype(precision: Precision, device: torch.device | str) -> torch.dtype | None:
    """The dtype to autocast to, or None for float32 throughout."""
    if precision == "auto":
        return torch.bfloat16 if supports_bfloat16(device) else None
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision {precision!r} is not known; possible: auto, float32, bfloat16")
    return torch.bfloat16 if precision == "bfloat16" else None


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[object]:
    """The context a network is called in. Weights are cast once per context, so a sampler's whole walk belongs in
    one; a training step leaves it before the optimiser changes the weights."""
    dtype = autocast_dtype(precision, device)
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)


def memory_format(device: torch.device | str) -> torch.memory_format:
    """How maps and convolutions best lie in memory there: channels last on a GPU, plainly on a CPU, where
    GroupNorm on channels-last maps costs more (ten times as much in bfloat16) than the convolutions gain."""
    return torch.channels_last if torch.device(device).type == "cuda" else torch.contiguous_format


def placed(module: M, device: torch.device | str) -> M:
    """The module on a device, its convolutions laid out as they run fastest there; activations follow them."""
    return module.to(device=device, memory_format=memory_format(device))  # type: ignore[call-overload]


def keep_memory() -> bool:
    """Have the C library keep freed memory for the next step instead of giving it back; whether that was possible.

    By default glibc maps every large tensor afresh and unmaps it when freed, so that each step pays for a page fault
    on every 4 KiB it touches: small networks on CPUs spend a third to four fifths of their time there. Memory once
    used stays with the process. Call it once, before training or sampling on a CPU; elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in musl
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
