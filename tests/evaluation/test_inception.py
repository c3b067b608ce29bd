"""The published Inception network: names, shapes and numbers are those of torch-fidelity's own class.

The numbers below were computed by `torch_fidelity.FeatureExtractorInceptionV3` 0.4.0 with the weights of `filled`, so
the architecture is compared also where that package is not installed.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from moyai.errors import CheckpointError, DataError, RequestError
from moyai.evaluation import inception

NAMES = "61093f3898ff55ee284da97759a34b5a834fb7ea04e1c984d17b89a2dafcc318"
FEATURES = (
    (0.533775, 0.817443, 0.00571258, 0.102886, 0.098981, 0.350123, 0.200924, 0.0138462),
    (0.548523, 0.837225, 0.00674947, 0.131089, 0.0972765, 0.369532, 0.183333, 0.0123332),
)
PROBABLE = ((835, 0.0262865), (835, 0.0243248))


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of every tensor from a formula, scaled so that the features have about unit size."""
    found = {}
    for i, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        place = np.arange(math.prod(shape), dtype=np.float64)
        uniform = np.modf(np.abs(np.sin(place * 12.9898 + i) * 4375.8545))[0]  # 0 to 1, without a pattern
        if name.endswith(("bn.weight", "running_var")):
            values = 0.5 + uniform
        elif name.endswith(("bias", "running_mean")):
            values = 0.2 * (uniform - 0.5)
        else:
            values = (uniform - 0.5) * math.sqrt(12) * math.sqrt(1.6 / math.prod(shape[1:]))
        found[name] = torch.from_numpy(values.reshape(shape)).float()
    return found


def pictures() -> np.ndarray:
    """Two pictures of 40 x 33 with all kinds of edges, (2, 3, 40, 33) uint8."""
    b, c, y, x = np.mgrid[:2, :3, :40, :33]
    return ((x * (7 + b) + y * (5 + c) + (x // 4 + y // 6 + b) % 2 * 120) % 256).astype(np.uint8)


def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        net = inception.InceptionV3()
    return {n: tuple(v.shape) for n, v in net.state_dict().items() if not n.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    safetensors.torch.save_file(filled(shapes()), path)
    return path


def images() -> Tensor:
    return torch.from_numpy(pictures()).float() / 127.5 - 1


def test_names_and_shapes_are_the_published_ones() -> None:
    assert hashlib.sha256(repr(sorted(shapes().items())).encode()).hexdigest() == NAMES


def test_features_and_probabilities_are_torch_fidelitys(weights: Path) -> None:
    extractor = inception.load(weights, "torch-fidelity")
    with torch.no_grad():
        found = extractor(images())
        probable = extractor.probabilities(found)
    assert found.shape == (2, 2048)
    for row, expected in zip(found, FEATURES, strict=True):
        spread = float(row.std())
        assert row[::256].tolist() == pytest.approx(expected, abs=2e-5 * spread)
    for row, (place, value) in zip(probable, PROBABLE, strict=True):
        assert (int(row.argmax()), float(row.max())) == (place, pytest.approx(value, rel=1e-4))


def test_against_torch_fidelity_itself(weights: Path, tmp_path: Path) -> None:
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=ImportError)
    counters = {n.replace("running_mean", "num_batches_tracked") for n in shapes() if n.endswith("running_mean")}
    state = {**filled(shapes()), **{n: torch.tensor(0) for n in counters}}
    torch.save(state, tmp_path / "weights.pth")
    reference = theirs.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
    )
    extractor = inception.load(weights, "torch-fidelity")
    with torch.no_grad():
        expected, logits = reference(torch.from_numpy(pictures()))
        found = extractor(images())
        torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.std()), rtol=0)
        torch.testing.assert_close(extractor.probabilities(found), logits.softmax(1), atol=1e-6, rtol=1e-4)


def test_pytorch_fids_resize_is_torchs_own(weights: Path) -> None:
    """As pytorch-fid's network does it: bilinear to 299 without aligned corners, then 2 v - 1 of values in [0, 1]."""
    extractor = inception.load(weights, "pytorch-fid")
    x = torch.from_numpy(pictures()).float() / 255
    with torch.no_grad():
        wide = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        torch.testing.assert_close(extractor(images()), extractor.net(2 * wide - 1), atol=1e-4, rtol=1e-4)


def test_the_two_resizes_differ_and_say_so(weights: Path) -> None:
    one, two = inception.load(weights, "torch-fidelity"), inception.load(weights, "pytorch-fid")
    assert one.source.digest == two.source.digest
    assert one.source != two.source
    assert "pytorch-fid resize: bilinear to 299, no antialias" in two.source.name
    place = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 2, 4)
    corner = inception._like_tensorflow(place)[0, 0, 0]  # output i at i * 4 / 299; beyond the last pixel it repeats
    torch.testing.assert_close(corner, (torch.arange(299) * 4 / 299).clamp_max(3), atol=1e-5, rtol=0)


def test_grey_pictures_are_repeated_and_others_refused(weights: Path) -> None:
    extractor = inception.load(weights)
    grey = images()[:1, :1]
    with torch.no_grad():
        assert extractor(grey).equal(extractor(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(DataError, match="1 or 3"):
        extractor(torch.zeros(1, 4, 8, 8))


def test_wrong_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a pickle"):
        inception.load(tmp_path / "weights.pth")
    with pytest.raises(RequestError, match="possible: pytorch-fid, torch-fidelity"):
        inception.Inception(inception.InceptionV3(), "lanczos")  # type: ignore[arg-type]
    broken = tmp_path / "x.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        inception.load(broken)
    state = filled({n: s for n, s in shapes().items() if "Mixed" not in n})
    state["fc.bias"] = torch.zeros(1000)
    safetensors.torch.save_file({**state, "AuxLogits.fc.bias": torch.zeros(1)}, broken)
    with pytest.raises(CheckpointError, match=r"missing: Mixed_5b.*unexpected: AuxLogits.*another shape: fc\.bias"):
        inception.load(broken)
