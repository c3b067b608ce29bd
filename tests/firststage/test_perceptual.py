"""The perceptual distance: LPIPS by an independent definition, its gradients, and files that are what they say."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moyai.errors import CheckpointError, ConfigError
from moyai.firststage import perceptual
from moyai.firststage.config import LpipsConfig
from moyai.firststage.perceptual import Perceptual
from moyai.nets.trunk import Trunk

CUTS = (4, 9, 16, 23, 30)  # where torchvision's thirty-one layers are cut by the LPIPS package
CHANNELS = (64, 128, 256, 512, 512)


def torchvision_features() -> nn.Sequential:
    """torchvision's VGG16 `features`, weights drawn so that the maps keep their size through thirteen layers."""
    layers: list[nn.Module] = []
    inputs = 3
    for block, count in zip(CHANNELS, (2, 2, 3, 3, 3), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, block, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            inputs = block
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def definition(features: nn.Sequential, heads: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """LPIPS 0.1 as its package computes it: scale, five cuts, unit length, squares, 1 x 1 convolution, mean."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)

    def normalize_tensor(f: Tensor, eps: float = 1e-10) -> Tensor:
        return f / (torch.sqrt(torch.sum(f**2, dim=1, keepdim=True)) + eps)

    value = torch.zeros(len(x), 1, 1, 1)
    a, b = (x - shift) / scale, (y - shift) / scale
    for start, end, head in zip((0, *CUTS), CUTS, heads, strict=False):
        a, b = features[start:end](a), features[start:end](b)
        difference = (normalize_tensor(a) - normalize_tensor(b)) ** 2
        value = value + F.conv2d(difference, head).mean([2, 3], keepdim=True)
    return value.flatten()


@pytest.fixture(scope="module")
def reference() -> tuple[nn.Sequential, list[Tensor]]:
    torch.manual_seed(0)
    heads = [torch.rand(1, c, 1, 1) for c in CHANNELS]
    return torchvision_features().requires_grad_(False), heads


@pytest.fixture(scope="module")
def files(reference: tuple[nn.Sequential, list[Tensor]], tmp_path_factory: pytest.TempPathFactory) -> LpipsConfig:
    """The same weights in the two files, with the classifier of the published one, which is no one's business."""
    features, heads = reference
    folder = tmp_path_factory.mktemp("lpips")
    trunk = {f"features.{name}": values for name, values in features.state_dict().items()}
    safetensors.torch.save_file({**trunk, "classifier.0.weight": torch.zeros(3, 3)}, folder / "vgg16.safetensors")
    safetensors.torch.save_file({f"lin{i}.model.1.weight": h for i, h in enumerate(heads)}, folder / "h.safetensors")
    return LpipsConfig(vgg=folder / "vgg16.safetensors", heads=folder / "h.safetensors")


@pytest.fixture(scope="module")
def distance(files: LpipsConfig) -> Perceptual:
    return perceptual.lpips(files)


def picture(count: int = 2, channels: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    """Smooth random pictures with edges, in [-1, 1]."""
    noise = torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (side, side), mode="bilinear").mul(3).clamp(-1, 1)


def blurred(x: Tensor, sigma: float) -> Tensor:
    places = torch.arange(-6, 7, dtype=x.dtype)
    kernel = torch.exp(-((places / sigma) ** 2) / 2)
    kernel, c = kernel / kernel.sum(), x.shape[1]
    x = F.conv2d(F.pad(x, (6, 6, 0, 0), mode="reflect"), kernel.expand(c, 1, 1, 13), groups=c)
    return F.conv2d(F.pad(x, (0, 0, 6, 6), mode="reflect"), kernel.reshape(13, 1).expand(c, 1, 13, 1), groups=c)


@pytest.fixture(scope="module")
def tiny() -> Perceptual:
    """Our own kind, on a trunk whose BatchNorms have seen pictures."""
    torch.manual_seed(0)
    trunk = Trunk(1, 8)
    with torch.no_grad():
        for i in range(20):
            trunk(picture(8, 1, 24, seed=i))
    return perceptual.own(trunk)


Distance = Callable[[Tensor, Tensor], Tensor]


# ---- the definition


@pytest.mark.parametrize("size", [(16, 16), (40, 23)])
def test_lpips_is_its_definition(
    distance: Perceptual, reference: tuple[nn.Sequential, list[Tensor]], size: tuple[int, int]
) -> None:
    x = F.interpolate(picture(3), size)
    y = F.interpolate(picture(3, seed=1), size)
    expected = definition(*reference, x, y)
    assert expected.shape == (3,)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(distance(x, y), expected, rtol=1e-5, atol=1e-6)


def test_grey_counts_three_times_and_of_four_channels_three_count(distance: Perceptual) -> None:
    x, y = picture(channels=1), picture(channels=1, seed=1)
    rgb = x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)
    expected = distance(*rgb)
    torch.testing.assert_close(distance(x, y), expected)
    torch.testing.assert_close(distance(torch.cat([rgb[0], x], 1), torch.cat([rgb[1], y], 1)), expected)


@pytest.mark.parametrize("kind", ["lpips", "own"])
def test_it_is_a_distance_of_pictures(kind: str, request: pytest.FixtureRequest) -> None:
    measure: Distance = request.getfixturevalue("distance" if kind == "lpips" else "tiny")
    x, y = picture(2, 1, 24), picture(2, 1, 24, seed=1)
    with torch.no_grad():
        assert measure(x, x).eq(0).all()
        assert measure(x, y).gt(0.01).all()
        torch.testing.assert_close(measure(x, y), measure(y, x))
        by_blur = torch.stack([measure(x, blurred(x, sigma)) for sigma in (0.5, 1.0, 2.0, 4.0)])
        assert by_blur.diff(dim=0).gt(0).all()
        assert by_blur[0].gt(0).all()
        torch.testing.assert_close(measure(x, y)[1:2], measure(x[1:2], y[1:2]), rtol=1e-4, atol=1e-6)  # each its own


def test_own_is_the_mean_over_layers_of_twice_one_minus_the_cosine() -> None:
    torch.manual_seed(0)
    stack = nn.Conv2d(1, 4, 3)
    x, y = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)
    measure = Perceptual(lambda z: [stack(z), stack(z)[:, :, ::2]], None, prepare=lambda z: 2 * z)
    cosine = [F.cosine_similarity(stack(2 * x), stack(2 * y), dim=1)[:, ::step] for step in (1, 2)]
    expected = sum((2 - 2 * c).mean((1, 2)) for c in cosine) / 2
    torch.testing.assert_close(measure(x, y), expected)


# ---- gradients


def test_the_gradient_is_the_difference_quotient() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 3).double(), nn.Conv2d(3, 4, 3, stride=2).double()
    heads = [torch.rand(3).double(), torch.rand(1, 4, 1, 1).double()]

    def stages(x: Tensor) -> list[Tensor]:
        one = first(x).tanh()
        return [one, second(one).sigmoid()]

    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    for given in (heads, None):
        measure = Perceptual(stages, given, prepare=lambda z: z)
        assert measure(x, y).dtype == torch.float64
        assert torch.autograd.gradcheck(measure, (x, y))


@pytest.mark.parametrize("kind", ["lpips", "own"])
def test_gradients_reach_the_autoencoder_and_never_the_judge(kind: str, request: pytest.FixtureRequest) -> None:
    measure: Perceptual = request.getfixturevalue("distance" if kind == "lpips" else "tiny")
    autoencoder = nn.Conv2d(1, 1, 3, padding=1)
    names = sorted(autoencoder.state_dict())
    images = picture(2, 1)
    before = {name: values.clone() for name, values in measure.state_dict().items()}
    measure.train()  # as a careless trainer would
    measure(images, autoencoder(images)).mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in autoencoder.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in measure.parameters())
    assert not any(module.training for module in measure.modules())
    assert len(before) > 8
    assert all(values.equal(before[name]) for name, values in measure.state_dict().items())
    assert sorted(autoencoder.state_dict()) == names == ["bias", "weight"]


def test_both_pictures_may_ask_for_gradients(tiny: Perceptual) -> None:
    x, y = picture(2, 1).requires_grad_(), picture(2, 1, seed=1).requires_grad_()
    of_x, of_y = torch.autograd.grad(tiny(x, y).sum(), (x, y))
    assert float(of_x.abs().max()) > 0
    assert float(of_y.abs().max()) > 0
    (alone,) = torch.autograd.grad(tiny(x.detach(), y).sum(), y)
    torch.testing.assert_close(alone, of_y)
    with torch.no_grad():
        assert not tiny(x, y).requires_grad


def test_places_without_any_feature_have_no_gradient_that_is_not_a_number() -> None:
    x, y = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2, requires_grad=True)
    measure = Perceptual(lambda z: [z.relu()], None, prepare=lambda z: z)
    (gradient,) = torch.autograd.grad(measure(x, y).sum(), y)
    assert gradient.eq(0).all()


def test_half_precision_keeps_the_sums_in_float32(tiny: Perceptual) -> None:
    x, y = picture(2, 1), picture(2, 1, seed=1)
    with torch.no_grad():
        full = tiny(x, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, same = tiny(x, y), tiny(x, x)
    assert half.dtype == torch.float32
    assert same.eq(0).all()
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.01)
    assert not half.equal(full)  # the network did run in bfloat16


# ---- files


def published(tmp_path: Path, name: str, tensors: dict[str, Tensor]) -> tuple[Path, str]:
    """A .pth file as torch wrote it when those were published, and its sha256."""
    path = tmp_path / name
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_published_files_are_read_by_their_hash_only(
    files: LpipsConfig, distance: Perceptual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vgg, vgg_hash = published(tmp_path, "vgg16-397923af.pth", safetensors.torch.load_file(files.vgg))
    heads, heads_hash = published(tmp_path, "vgg.pth", safetensors.torch.load_file(files.heads))
    config = LpipsConfig(vgg=vgg, heads=heads)
    with pytest.raises(CheckpointError, match=rf"{vgg_hash[:16]}\.\.\., not 397923af.*\.safetensors file are accepted"):
        perceptual.lpips(config)
    monkeypatch.setattr(perceptual, "VGG_FILE", vgg_hash)
    with pytest.raises(CheckpointError, match=rf"vgg\.pth, the heads of LPIPS 0\.1: its sha256 is {heads_hash[:16]}"):
        perceptual.lpips(config)
    monkeypatch.setattr(perceptual, "HEADS_FILE", heads_hash)
    state = torch.get_rng_state()
    read = perceptual.lpips(config)
    assert torch.get_rng_state().equal(state)
    x, y = picture(), picture(seed=1)
    assert read(x, y).equal(distance(x, y))


def test_files_are_found_from_the_home_folder(
    files: LpipsConfig, distance: Perceptual, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path(files.vgg).parent))
    read = perceptual.lpips(LpipsConfig(vgg=Path("~") / files.vgg.name, heads=Path("~") / files.heads.name))
    assert read(picture(), picture(seed=1)).equal(distance(picture(), picture(seed=1)))


def test_the_hashes_are_those_in_the_published_names() -> None:
    assert perceptual.VGG_FILE.startswith("397923af")  # vgg16-397923af.pth: torch's own names say the sha256
    assert len(perceptual.VGG_FILE) == len(perceptual.HEADS_FILE) == 64


class Harmful:
    """A pickle that would make a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_runs_nothing_even_under_the_right_hash(
    files: LpipsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "vgg16-397923af.pth"
    path.write_bytes(pickle.dumps(Harmful(mark), protocol=2))
    config = LpipsConfig(vgg=path, heads=files.heads)
    with pytest.raises(CheckpointError, match="its sha256 is"):
        perceptual.lpips(config)
    monkeypatch.setattr(perceptual, "VGG_FILE", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(pickle.UnpicklingError):
        perceptual.lpips(config)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert mark.exists()


def test_files_that_are_not_those_in_one_line(files: LpipsConfig, distance: Perceptual, tmp_path: Path) -> None:
    def refused(tensors: dict[str, Tensor] | None, *, heads: bool, match: str) -> None:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        if tensors is not None:
            safetensors.torch.save_file(tensors, path)
        config = LpipsConfig(vgg=files.vgg if heads else path, heads=path if heads else files.heads)
        with pytest.raises(CheckpointError, match=match) as error:
            perceptual.lpips(config)
        assert "\n" not in str(error.value)

    whole = safetensors.torch.load_file(files.heads)
    refused(None, heads=True, match="cannot read .*, which should be vgg.pth")
    refused(None, heads=False, match="cannot read .*, which should be torchvision's vgg16-397923af.pth")
    refused({**whole, "lin2.model.1.weight": torch.zeros(1, 3, 1, 1)}, heads=True, match="of another shape: lin2")
    refused({n: v for n, v in whole.items() if "lin4" not in n}, heads=True, match="missing: lin4.model.1.weight")
    refused({**whole, "lin5.model.1.weight": torch.zeros(1)}, heads=True, match="unexpected: lin5")
    refused(whole, heads=False, match=r"missing: features\.0\.weight.* and 21 more")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(Path(files.vgg).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot read"):
        perceptual.lpips(LpipsConfig(vgg=torn, heads=files.heads))
    with pytest.raises(ConfigError, match=r"16 x 16 or more, not 15 x 20.*kind = own"):
        distance(torch.zeros(1, 3, 15, 20), torch.zeros(1, 3, 15, 20))
    with pytest.raises(ConfigError, match="not 2"):
        distance(torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16))


def test_a_tensor_read_from_a_file_outlives_it(files: LpipsConfig, tmp_path: Path) -> None:
    copied = tmp_path / "h.safetensors"
    copied.write_bytes(Path(files.heads).read_bytes())
    read = perceptual.lpips(LpipsConfig(vgg=files.vgg, heads=copied))
    x, y = picture(1), picture(1, seed=1)
    before = read(x, y)
    copied.write_bytes(np.zeros(copied.stat().st_size, np.uint8).tobytes())
    assert read(x, y).equal(before)
