"""RetinaFace's anchors, and decoding offsets from them (arXiv 1905.00641).

All in pixels of the network's input; pixel centres lie at half-integers.
"""

from math import ceil

import torch
from torch import Tensor

from imagefleet_worker.faces.retinaface import STRIDES

_ANCHOR_SIDES_PX = ((16, 32), (64, 128), (256, 512))
"""Sides of the square anchors of each feature map."""
_CENTRE_VARIANCE, _SIZE_VARIANCE = 0.1, 0.2
"""SSD's variances: the units of centre and size offsets."""


def anchors(width: int, height: int) -> Tensor:
    """The anchors of a picture, in the order of the network's output.

    Returns:
        `(A, 4)` float32: centre x, centre y, width, height.
    """
    maps: list[Tensor] = []
    for stride, sides in zip(STRIDES, _ANCHOR_SIDES_PX, strict=True):
        rows = (torch.arange(ceil(height / stride)) + 0.5) * stride
        columns = (torch.arange(ceil(width / stride)) + 0.5) * stride
        y, x, side = torch.meshgrid(rows, columns, torch.tensor(sides).float(), indexing="ij")
        maps.append(torch.stack([x, y, side, side], dim=-1).reshape(-1, 4))
    return torch.cat(maps)


def decode_boxes(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes `(A, 4)` as left, top, right, bottom, from offsets `(A, 4)`."""
    centres = anchors[:, :2] + offsets[:, :2] * _CENTRE_VARIANCE * anchors[:, 2:]
    half_sizes = anchors[:, 2:] * torch.exp(offsets[:, 2:] * _SIZE_VARIANCE) / 2
    return torch.cat([centres - half_sizes, centres + half_sizes], dim=1)


def decode_points(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Points `(A, 5, 2)` from offsets `(A, 10)`."""
    points = offsets.unflatten(1, (5, 2))
    return anchors[:, None, :2] + points * _CENTRE_VARIANCE * anchors[:, None, 2:]


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `decode_boxes`, for training."""
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    centre_offsets = (centres - anchors[:, :2]) / anchors[:, 2:] / _CENTRE_VARIANCE
    return torch.cat([centre_offsets, torch.log(sizes / anchors[:, 2:]) / _SIZE_VARIANCE], dim=1)


def encode_points(points: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `decode_points`, for training."""
    return ((points - anchors[:, None, :2]) / anchors[:, None, 2:] / _CENTRE_VARIANCE).flatten(1)
