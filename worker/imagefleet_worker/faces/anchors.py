"""RetinaFace's anchors: the boxes that its offsets are counted from, and back (arXiv 1905.00641).

All in pixels of the picture that the network sees; a pixel's middle lies at a half.
"""

from math import ceil

import torch
from torch import Tensor

from imagefleet_worker.faces.retinaface import STRIDES

_SIDES_PX = ((16, 32), (64, 128), (256, 512))
"""Of the square anchors of each feature map."""
_CENTRE, _SIZE = 0.1, 0.2
"""SSD's variances: the units in which centres and sizes are told."""


def anchors(width: int, height: int) -> Tensor:
    """The anchors of a picture in the order of the network's output.

    Returns:
        `(A, 4)` float32: centre x, centre y, width, height.
    """
    maps: list[Tensor] = []
    for stride, sides in zip(STRIDES, _SIDES_PX, strict=True):
        rows = (torch.arange(ceil(height / stride)) + 0.5) * stride
        columns = (torch.arange(ceil(width / stride)) + 0.5) * stride
        y, x, side = torch.meshgrid(rows, columns, torch.tensor(sides).float(), indexing="ij")
        maps.append(torch.stack([x, y, side, side], dim=-1).reshape(-1, 4))
    return torch.cat(maps)


def decode_boxes(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes `(A, 4)` by left, top, right, bottom, of offsets `(A, 4)`."""
    centres = anchors[:, :2] + offsets[:, :2] * _CENTRE * anchors[:, 2:]
    halves = anchors[:, 2:] * torch.exp(offsets[:, 2:] * _SIZE) / 2
    return torch.cat([centres - halves, centres + halves], dim=1)


def decode_points(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Points `(A, 5, 2)` of offsets `(A, 10)`."""
    points = offsets.unflatten(1, (5, 2))
    return anchors[:, None, :2] + points * _CENTRE * anchors[:, None, 2:]


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """What `decode_boxes` makes these boxes of; for training."""
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    moved = (centres - anchors[:, :2]) / anchors[:, 2:] / _CENTRE
    return torch.cat([moved, torch.log(sizes / anchors[:, 2:]) / _SIZE], dim=1)


def encode_points(points: Tensor, anchors: Tensor) -> Tensor:
    """What `decode_points` makes these points of; for training."""
    return ((points - anchors[:, None, :2]) / anchors[:, None, 2:] / _CENTRE).flatten(1)
