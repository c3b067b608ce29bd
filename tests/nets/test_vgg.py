"""The trunks whose maps are compared: VGG16 is torchvision's by an independent build, our own folds exactly."""

import pytest
import torch
from torch import Tensor, nn

from moyai.nets.trunk import FoldedTrunk, Trunk
from moyai.nets.vgg import VGG16, VGGInput

LAYOUT = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M"  # torchvision's configuration "D"


def torchvision_layout() -> nn.Sequential:
    """What torchvision calls `features`, thirty-one layers, freshly initialised."""
    layers: list[nn.Module] = []
    channels = 3
    for word in LAYOUT.split():
        if word == "M":
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            layers += [nn.Conv2d(channels, int(word), kernel_size=3, padding=1), nn.ReLU()]
            channels = int(word)
    return nn.Sequential(*layers)


def test_vgg16_is_torchvisions_layer_by_layer() -> None:
    torch.manual_seed(0)
    reference, network = torchvision_layout(), VGG16()
    assert len(reference) == 31
    network.layers.load_state_dict(reference.state_dict())  # strict: names and shapes are torchvision's
    x = torch.randn(1, 3, 37, 32)
    with torch.no_grad():
        maps = network.features(x)
        outputs = []
        for layer in reference:
            x = layer(x)
            outputs.append(x)
    named = [outputs[i] for i in (3, 8, 15, 22, 29)]  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 37, 32), (128, 18, 16), (256, 9, 8), (512, 4, 4), (512, 2, 2)]
    for ours, theirs in zip(maps, named, strict=True):
        assert float(theirs.std()) > 0
        torch.testing.assert_close(ours, theirs)


def test_colours_are_scaled_as_lpips_does() -> None:
    prepare = VGGInput()
    x = torch.rand(2, 3, 4, 4) * 2 - 1
    mean, std = ((torch.tensor(v)[:, None, None]) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(
        prepare(x), ((x + 1) / 2 - mean) / std, atol=2e-3, rtol=0
    )  # ImageNet's, rounded by LPIPS
    assert prepare(torch.zeros(1, 3, 1, 1)).flatten().tolist() == pytest.approx(
        [0.030 / 0.458, 0.088 / 0.448, 0.188 / 0.45]
    )
    grey = x[:, :1]
    assert prepare(grey).equal(prepare(grey.repeat(1, 3, 1, 1)))
    assert prepare(torch.cat([x, grey], 1)).equal(prepare(x))
    assert prepare.state_dict() == {}


def trained(channels: int = 1) -> Trunk:
    """A trunk whose BatchNorms have seen something, in evaluation mode."""
    torch.manual_seed(0)
    trunk = Trunk(channels, 8)
    for name, values in trunk.named_parameters():
        if values.ndim == 1:
            nn.init.normal_(values, float(name.endswith("weight")), 0.3)
    for _ in range(3):
        trunk(torch.rand(16, channels, 16, 16) * 2 - 1)
    return trunk.eval()


def test_the_maps_of_a_trunk_end_in_its_vector() -> None:
    trunk = trained()
    x: Tensor = torch.rand(3, 1, 15, 20) * 2 - 1
    with torch.no_grad():
        maps = trunk.features(x)
        assert maps[-1].mean((2, 3)).equal(trunk(x))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 15, 20), (16, 8, 10), (32, 4, 5), (64, 2, 3)]
    assert sorted(trunk.state_dict())[:2] == ["stages.0.weight", "stages.1.bias"]  # published names do not move


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folded_trunk_has_the_same_maps_and_leaves_the_trunk_alone(channels: int) -> None:
    trunk = trained(channels)
    trunk.train().requires_grad_(True)
    folded = FoldedTrunk(trunk)
    assert trunk.training
    assert all(p.requires_grad for p in trunk.parameters())
    assert not any(p.requires_grad for p in folded.parameters())
    x = torch.rand(3, channels, 16, 20) * 2 - 1
    kept = x.clone()
    with torch.no_grad():
        for ours, theirs in zip(folded.features(x), trunk.eval().features(x), strict=True):
            assert float(theirs.std()) > 0.05
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert x.equal(kept)
