"""What "auto" means, and that keeping memory is safe."""

import pytest
import torch

from moyai.errors import ConfigError
from moyai.nets.precision import autocast, autocast_dtype, keep_memory, memory_format, supports_bfloat16


def test_auto_follows_the_processor(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert autocast_dtype("auto", "cpu") is None
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert autocast_dtype("auto", "cpu") is torch.bfloat16
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):  # a torch without the queries
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not supports_bfloat16("cpu")


def test_what_is_asked_for_goes_before_the_processor():
    assert autocast_dtype("float32", "cpu") is None
    assert autocast_dtype("bfloat16", "cpu") is torch.bfloat16
    with pytest.raises(ConfigError, match="precision 'half' is not known; possible: auto, float32, bfloat16"):
        autocast_dtype("half", "cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_autocast_is_the_context_of_that_dtype(precision, dtype):
    layer = torch.nn.Linear(3, 2)
    with autocast(precision, "cpu"):
        assert layer(torch.ones(1, 3)).dtype is dtype
    assert layer(torch.ones(1, 3)).dtype is torch.float32


def test_keep_memory_can_be_called_again_and_large_tensors_still_work():
    assert keep_memory() == keep_memory()
    assert torch.ones(1 << 24).sum() == 1 << 24


def test_channels_lie_last_on_gpus_only():
    assert memory_format("cuda") is torch.channels_last
    assert memory_format("cpu") is torch.contiguous_format
