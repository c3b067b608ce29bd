"""What the tests share: where the real data lie, and one thread count."""

import os
from pathlib import Path

import pytest

# Bits depend on the number of threads, and a process with one thread can be forked at any time.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data named by MOYAI_DATA (sub-folders mnist, fashion-mnist, cifar10, brain)."""
    root = os.environ.get("MOYAI_DATA")
    if not root or not Path(root).is_dir():
        message = "needs real data: set MOYAI_DATA to a folder with mnist/, fashion-mnist/, cifar10/"
        if os.environ.get("CI"):
            pytest.fail(f"{message} (CI must not skip)")
        pytest.skip(message)
    return Path(root)
