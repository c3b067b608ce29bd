"""What the tests share: where the real data lie, and one thread count."""

import os
from pathlib import Path

import pytest

# Bits depend on the number of threads, and a process with one thread can be forked at any time. (pytest-xdist's
# receiver, the only other one, waits for bytes and holds no lock that a child would need.)
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


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, tiny.json and run/, a finished run of the tiny recipe. It is read, never written to."""
    import tiny

    home = tmp_path_factory.mktemp("finished")
    recipe = tiny.recipe_file(home / "tiny.json", tiny.folder(home / "data"))
    status, said = tiny.moyai(["train", recipe, "--out", home / "run"], home / "said")
    assert status == 0, said
    return home
