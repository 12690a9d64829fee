"""The demo's detector on drawn faces outside its training set."""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.faces.detect import Face, detect
from imagefleet_worker.faces.networks import FaceNetworks
from imagefleet_worker.faces.retinaface import RetinaFace
from tests.face_models import portrait
from tools.training.faces import DrawnFace, draw_faces

CPU = torch.device("cpu")
PICTURES = 20


@pytest.fixture(scope="module")
def detector(face_store: ModelStore) -> RetinaFace:
    [file] = [f for f in face_store.list_models("face_part") if f.name.startswith("detection")]
    return FaceNetworks(CPU, 10**9).detector(file)


def landmark_error(found: Face, drawn: DrawnFace) -> float:
    """Mean distance of landmarks, relative to the distance of the eyes."""
    pairs = zip(found.landmarks, drawn.landmarks, strict=True)
    distance = sum(abs(a - b) for a, b in pairs) / 5
    return distance / abs(drawn.landmarks[0] - drawn.landmarks[1])


def match(found: Sequence[Face], drawn: Sequence[DrawnFace]) -> list[tuple[Face, DrawnFace]]:
    if not found or not drawn:
        return []
    found_boxes, drawn_boxes = (
        torch.tensor([each.box for each in side]) for side in (found, drawn)
    )
    overlap = box_iou(found_boxes, drawn_boxes)
    best = [(int(overlap[:, index].argmax()), index) for index in range(len(drawn))]
    return [(found[f], drawn[d]) for f, d in best if overlap[f, d] > 0.5]


def test_drawn_faces_are_found_with_their_landmarks(
    detector: RetinaFace, say: Callable[[str], None]
) -> None:
    total = hits = false_positives = 0
    errors: list[float] = []
    for seed in range(PICTURES):
        random = Random(f"held out {seed}")
        sizes = tuple(random.uniform(60, 260) for _ in range(seed % 4))
        picture, drawn = draw_faces(random, 512, 512, sizes)
        found = detect(detector, CPU, picture)
        pairs = match(found, drawn)
        total, hits = total + len(drawn), hits + len(pairs)
        false_positives += len(found) - len(pairs)
        errors += [landmark_error(*pair) for pair in pairs]
    say(
        f"{hits} of {total} faces found, {false_positives} false positives; mean landmark error "
        f"{np.mean(errors):.3f} of the eyes' distance, at most {max(errors):.3f}"
    )
    assert hits >= 0.9 * total
    assert false_positives <= 0.1 * total
    assert np.mean(errors) < 0.1
    assert max(errors) < 0.25


@pytest.mark.parametrize("side_px", [96, 1400])
def test_pictures_of_any_size_are_resized_for_detection(detector: RetinaFace, side_px: int) -> None:
    picture, drawn = portrait()
    scale = side_px / picture.width
    resized = picture.resize((side_px, side_px), Image.Resampling.LANCZOS)
    [face] = detect(detector, CPU, resized)
    assert landmark_error(face, drawn.scaled(scale)) < 0.15


def test_a_face_cut_by_the_edge_is_found(detector: RetinaFace) -> None:
    """Landmarks may lie outside the picture."""
    picture, drawn = portrait()
    eyes = (drawn.landmarks[0] + drawn.landmarks[1]) / 2
    cut = int(drawn.box[0] + 0.15 * (drawn.box[2] - drawn.box[0]))
    assert cut < eyes.real
    [face] = detect(detector, CPU, picture.crop((cut, 0, picture.width, picture.height)))
    assert landmark_error(face, DrawnFace(drawn.box, tuple(z - cut for z in drawn.landmarks))) < 0.2


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (4000, 30), (64, 64)])
def test_pictures_without_faces_have_no_detections_at_any_size(
    detector: RetinaFace, size: tuple[int, int]
) -> None:
    assert detect(detector, CPU, Image.new("RGB", size, "teal")) == []


def test_faces_with_eyes_closer_than_five_pixels_are_ignored(detector: RetinaFace) -> None:
    picture, drawn = portrait()
    distance = abs(drawn.landmarks[0] - drawn.landmarks[1])

    def resized_to(eyes_px: int) -> Image.Image:
        side = round(picture.width * eyes_px / distance)
        return picture.resize((side, side))

    assert detect(detector, CPU, resized_to(4)) == []
    assert len(detect(detector, CPU, resized_to(8))) == 1
