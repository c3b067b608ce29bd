"""The convolutions of VGG16 (Simonyan and Zisserman 2015, table 1, column D), cut where LPIPS looks at them.

Thirteen 3 x 3 convolutions with ReLU in five blocks, a 2 x 2 maximum between blocks. The maps at the ends of the blocks
are called relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3; the fully connected layers that follow in the published
network have no part in a perceptual distance. Layers have torchvision's numbers: its `features.10.weight` is
`layers.10.weight` here.
"""

import torch
from torch import Tensor, nn

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
SMALLEST = 16  # the side of a picture of which one place is left after four halvings


class VGG16(nn.Module):
    """(B, 3, H, W), normalised as ImageNet's colours, sides >= 16 -> five maps of 64, 128, 256, 512, 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        ends: list[int] = []
        inputs = 3
        for outputs, count in BLOCKS:
            if ends:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            ends.append(len(layers) - 1)
        self.ends, self.layers = frozenset(ends), nn.Sequential(*layers)

    def features(self, x: Tensor) -> list[Tensor]:
        """relu1_2, relu2_2, relu3_3, relu4_3, relu5_3: (B, C, H / 2^i, W / 2^i), sides rounded down."""
        maps = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.ends:
                maps.append(x)
        return maps


class VGGInput(nn.Module):
    """(B, C, H, W) in [-1, 1] -> (B, 3, H, W) as VGG16 knows colours; LPIPS's scaling layer, its constants included.

    One channel is repeated three times; of four channels and more the first three count.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        # ImageNet's mean and deviation for values in [0, 1], as they are for values in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]
        return (x - self.shift) / self.scale
