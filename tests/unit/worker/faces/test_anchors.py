"""RetinaFace's anchors, and boxes encoded relative to them."""

import math

import pytest
import torch

from imagefleet_worker.faces.anchors import (
    anchors,
    decode_boxes,
    decode_points,
    encode_boxes,
    encode_points,
)


@pytest.mark.parametrize(
    ("row", "column", "anchor", "stride", "before", "side"),
    [
        (0, 0, 0, 8, 0, 16),
        (3, 12, 1, 8, 0, 32),
        # 8 x 17 positions of the fine map precede, with two anchors each.
        (3, 8, 0, 16, 272, 64),
        (1, 4, 1, 32, 272 + 72, 512),
    ],
)
def test_anchors_follow_the_order_of_the_networks_output(
    row: int, column: int, anchor: int, stride: int, before: int, side: int
) -> None:
    """In a picture of 131 x 61: maps of 17 x 8, 9 x 4 and 5 x 2."""
    columns = math.ceil(131 / stride)
    found = anchors(131, 61)[before + 2 * (row * columns + column) + anchor]
    centre = [(column + 0.5) * stride, (row + 0.5) * stride]
    assert found.tolist() == [*centre, side, side]
    assert len(anchors(131, 61)) == 2 * (17 * 8 + 9 * 4 + 5 * 2)


def test_offsets_are_scaled_by_ssds_variances() -> None:
    prior = torch.tensor([[100.0, 50.0, 32.0, 32.0]])
    [box] = decode_boxes(torch.tensor([[2.0, -1.0, 5 * math.log(2), 0.0]]), prior).tolist()
    # 6.4 to the right, 3.2 up, twice as wide.
    assert box == pytest.approx([74.4, 30.8, 138.4, 62.8], abs=1e-4)
    points = decode_points(torch.tensor([[10.0, 0, 0, 10, 0, 0, -5, -5, 1, 1]]), prior)
    expected = [[132, 50], [100, 82], [100, 50], [84, 34], [103.2, 53.2]]
    assert points[0].tolist() == [pytest.approx(each, abs=1e-4) for each in expected]


def test_decoding_inverts_encoding() -> None:
    torch.manual_seed(0)
    priors = anchors(96, 64)[:50]
    corners = torch.rand(50, 2, 2).cumsum(1) * 40
    boxes, points = corners.flatten(1), torch.rand(50, 5, 2) * 60
    assert torch.allclose(decode_boxes(encode_boxes(boxes, priors), priors), boxes, atol=1e-4)
    assert torch.allclose(decode_points(encode_points(points, priors), priors), points, atol=1e-4)
