"""Faces found in a picture, with RetinaFace and A1111's thresholds."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import nms

from imagefleet_worker.faces.anchors import anchors, decode_boxes, decode_points
from imagefleet_worker.faces.retinaface import RetinaFace
from imagefleet_worker.imaging.convert import resize, to_unit_range

_SHORT_SIDE_PX = 640
_LONG_SIDE_PX = 2560
"""A1111 has no such limit; a strip of 4000 x 30 would become 85333 pixels long."""
_MIN_SCORE = 0.97
_MAX_OVERLAP = 0.4
_MIN_EYE_DISTANCE_PX = 5
"""Of the picture; faces that are smaller or seen from the side are left as they are."""
_MEANS = (104.0, 117.0, 123.0)
"""Blue, green, red, of the pictures that the weights were trained on."""


@dataclass(frozen=True)
class Face:
    """A face, in pixels of the picture."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom; may pass the picture's edges."""
    score: float
    """From 0 to 1."""
    landmarks: tuple[complex, ...]
    """Eyes, nose, corners of the mouth, in the viewer's order from the left; x + iy."""


def detect(network: RetinaFace, device: torch.device, picture: Image.Image) -> list[Face]:
    """The faces of an RGB picture, the surest first.

    As A1111, the picture is seen with its shorter side at 640 pixels.
    """
    scale = min(_SHORT_SIDE_PX / min(picture.size), _LONG_SIDE_PX / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    seen = to_unit_range(resize(picture, width, height)).to(device)
    offsets, logits, points = (
        output[0].float().cpu() for output in network(to_detector_range(seen))
    )
    scores = logits.softmax(-1)[:, 1]
    sure = scores > _MIN_SCORE
    places, scores = anchors(width, height)[sure], scores[sure]
    boxes = decode_boxes(offsets[sure], places)
    kept = nms(boxes, scores, _MAX_OVERLAP)
    back = torch.tensor([picture.width / width, picture.height / height])
    boxes = boxes[kept] * back.repeat(2)
    landmarks = decode_points(points[sure][kept], places[kept]) * back
    faces = [
        Face(tuple(box), score, tuple(complex(x, y) for x, y in marks))
        for box, score, marks in zip(
            boxes.tolist(), scores[kept].tolist(), landmarks.tolist(), strict=True
        )
    ]
    return [
        face for face in faces if abs(face.landmarks[0] - face.landmarks[1]) >= _MIN_EYE_DISTANCE_PX
    ]


def to_detector_range(pixels: Tensor) -> Tensor:
    """RGB `(B, 3, H, W)` in [0, 1] as the network wants it: blue first, 0..255 less the means."""
    return pixels.flip(1) * 255 - torch.tensor(_MEANS, device=pixels.device)[:, None, None]
