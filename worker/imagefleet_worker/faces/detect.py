"""Face detection with RetinaFace and A1111's thresholds."""

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
"""A1111 has no such limit: a strip of 4000 x 30 would become 85333 pixels long."""
_MIN_SCORE = 0.97
_MAX_OVERLAP = 0.4
_MIN_EYE_DISTANCE_PX = 5
"""In pixels of the picture; faces that are smaller or in profile are not restored."""
_MEANS = (104.0, 117.0, 123.0)
"""Blue, green, red: the means of the training pictures."""


@dataclass(frozen=True)
class Face:
    """A detected face, in pixels of the picture."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom; may extend beyond the picture."""
    score: float
    """From 0 to 1."""
    landmarks: tuple[complex, ...]
    """Eyes, nose, corners of the mouth, from the viewer's left; x + iy."""


def detect(network: RetinaFace, device: torch.device, picture: Image.Image) -> list[Face]:
    """Detect the faces of an RGB picture, highest score first.

    As in A1111, the picture is first resized so that its shorter side is 640 pixels.
    """
    scale = min(_SHORT_SIDE_PX / min(picture.size), _LONG_SIDE_PX / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    pixels = to_unit_range(resize(picture, width, height)).to(device)
    offsets, logits, points = (
        output[0].float().cpu() for output in network(to_detector_range(pixels))
    )
    scores = logits.softmax(-1)[:, 1]
    confident = scores > _MIN_SCORE
    priors, scores = anchors(width, height)[confident], scores[confident]
    boxes = decode_boxes(offsets[confident], priors)
    keep = nms(boxes, scores, _MAX_OVERLAP)
    to_picture = torch.tensor([picture.width / width, picture.height / height])
    boxes = boxes[keep] * to_picture.repeat(2)
    landmarks = decode_points(points[confident][keep], priors[keep]) * to_picture
    faces = [
        Face(tuple(box), score, tuple(complex(x, y) for x, y in marks))
        for box, score, marks in zip(
            boxes.tolist(), scores[keep].tolist(), landmarks.tolist(), strict=True
        )
    ]
    return [
        face for face in faces if abs(face.landmarks[0] - face.landmarks[1]) >= _MIN_EYE_DISTANCE_PX
    ]


def to_detector_range(pixels: Tensor) -> Tensor:
    """Convert RGB `(B, 3, H, W)` in [0, 1] to the network's BGR in 0..255 minus the means."""
    return pixels.flip(1) * 255 - torch.tensor(_MEANS, device=pixels.device)[:, None, None]
