"""RetinaFace's network (arXiv 1905.00641), compatible with facexlib's weight files.

Reimplemented because facexlib always imports its trackers, and so needs numba and filterpy. Only
what the weight files fix is the same: names, shapes and slopes.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter

ANCHORS = 2
"""Per position of each of the three feature maps."""
STRIDES = (8, 16, 32)
"""Of the three feature maps, in pixels."""


class RetinaFace(nn.Module):
    """Predicts a box, a score and five landmarks for every anchor.

    Args:
        backbone: "resnet50" or "mobilenet", as the weights have it.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        if backbone == "resnet50":
            layers = {"layer2": "1", "layer3": "2", "layer4": "3"}
            self.body = IntermediateLayerGetter(resnet50(weights=None), layers)
            widths, width = (512, 1024, 2048), 256
        else:
            layers = {"stage1": "1", "stage2": "2", "stage3": "3"}
            self.body = IntermediateLayerGetter(_mobilenet(), layers)
            widths, width = (64, 128, 256), 64
        self.fpn = _Pyramid(widths, width)
        self.ssh1, self.ssh2, self.ssh3 = _Context(width), _Context(width), _Context(width)
        self.ClassHead = _heads(width, 2)
        self.BboxHead = _heads(width, 4)
        self.LandmarkHead = _heads(width, 10)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict offsets for each anchor; see `anchors.py` for decoding them.

        Args:
            image: `(B, 3, H, W)` in 0..255, BGR, minus the means (104, 117, 123).

        Returns:
            Offsets `(B, A, 4)`, logits of "no face" and "face" `(B, A, 2)`, landmarks `(B, A, 10)`.
        """
        maps = self.fpn(*self.body(image).values())
        features = [
            ssh(one) for ssh, one in zip((self.ssh1, self.ssh2, self.ssh3), maps, strict=True)
        ]
        boxes, logits, landmarks = (
            torch.cat([head(one) for head, one in zip(heads, features, strict=True)], dim=1)
            for heads in (self.BboxHead, self.ClassHead, self.LandmarkHead)
        )
        return boxes, logits, landmarks


class _Pyramid(nn.Module):
    def __init__(self, widths: tuple[int, int, int], width: int) -> None:
        super().__init__()
        slope = _slope(width)
        self.output1, self.output2, self.output3 = (
            _conv(in_channels, width, kernel=1, slope=slope) for in_channels in widths
        )
        self.merge1, self.merge2 = (_conv(width, width, slope=slope) for _ in range(2))

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, ...]:
        fine, middle, coarse = self.output1(fine), self.output2(middle), self.output3(coarse)
        middle = self.merge2(middle + interpolate(coarse, size=middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + interpolate(middle, size=fine.shape[2:], mode="nearest"))
        return fine, middle, coarse


class _Context(nn.Module):
    """SSH's context module (arXiv 1708.03979, fig. 4): receptive fields of 3, 5 and 7 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter, slope = width // 2, width // 4, _slope(width)
        self.conv3X3 = _conv(width, half)
        self.conv5X5_1 = _conv(width, quarter, slope=slope)
        self.conv5X5_2 = _conv(quarter, quarter)
        self.conv7X7_2 = _conv(quarter, quarter, slope=slope)
        self.conv7x7_3 = _conv(quarter, quarter)

    def forward(self, features: Tensor) -> Tensor:
        narrow = self.conv5X5_1(features)
        wide = self.conv7x7_3(self.conv7X7_2(narrow))
        return relu(torch.cat([self.conv3X3(features), self.conv5X5_2(narrow), wide], dim=1))


class _Head(nn.Module):
    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, ANCHORS * values, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv1x1(features).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.values))


def _heads(width: int, values: int) -> nn.ModuleList:
    return nn.ModuleList(_Head(width, values) for _ in STRIDES)


def _slope(width: int) -> float:
    """Negative slope: the narrow network uses leaky ReLU, the wide one ReLU."""
    return 0.1 if width <= 64 else 0.0


def _conv(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    slope: float | None = None,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    ]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope, inplace=True))
    return nn.Sequential(*layers)


def _mobilenet() -> nn.Sequential:
    """MobileNet v1 at a quarter of the width (arXiv 1704.04861, table 1)."""

    def separable(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
        depthwise = _conv(in_channels, in_channels, stride=stride, groups=in_channels, slope=0.1)
        return nn.Sequential(*depthwise, *_conv(in_channels, out_channels, kernel=1, slope=0.1))

    stages = {
        "stage1": [
            _conv(3, 8, stride=2, slope=0.1),
            *(separable(8, 16), separable(16, 32, 2), separable(32, 32)),
            *(separable(32, 64, 2), separable(64, 64)),
        ],
        "stage2": [separable(64, 128, 2), *(separable(128, 128) for _ in range(5))],
        "stage3": [separable(128, 256, 2), separable(256, 256)],
    }
    return nn.Sequential(
        OrderedDict((name, nn.Sequential(*parts)) for name, parts in stages.items())
    )
