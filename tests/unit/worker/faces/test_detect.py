"""The demo's detector on drawn faces that it never saw."""

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
    [file] = [f for f in face_store.listed("face_part") if f.name.startswith("detection")]
    return FaceNetworks(CPU, 10**9).detector(file)


def off(found: Face, drawn: DrawnFace) -> float:
    """Mean distance of landmarks, as a share of the distance of the eyes."""
    pairs = zip(found.landmarks, drawn.landmarks, strict=True)
    distance = sum(abs(a - b) for a, b in pairs) / 5
    return distance / abs(drawn.landmarks[0] - drawn.landmarks[1])


def matched(found: Sequence[Face], drawn: Sequence[DrawnFace]) -> list[tuple[Face, DrawnFace]]:
    if not found or not drawn:
        return []
    ours, theirs = (torch.tensor([each.box for each in side]) for side in (found, drawn))
    overlap = box_iou(ours, theirs)
    best = [(int(overlap[:, place].argmax()), place) for place in range(len(drawn))]
    return [(found[f], drawn[d]) for f, d in best if overlap[f, d] > 0.5]


def test_drawn_faces_are_found_with_their_landmarks(
    detector: RetinaFace, say: Callable[[str], None]
) -> None:
    total = hits = wrong = 0
    errors: list[float] = []
    for seed in range(PICTURES):
        random = Random(f"held out {seed}")
        sizes = tuple(random.uniform(60, 260) for _ in range(seed % 4))
        picture, drawn = draw_faces(random, 512, 512, sizes)
        found = detect(detector, CPU, picture)
        pairs = matched(found, drawn)
        total, hits, wrong = total + len(drawn), hits + len(pairs), wrong + len(found) - len(pairs)
        errors += [off(*pair) for pair in pairs]
    say(
        f"{hits} of {total} faces found, {wrong} times something else; landmarks off by "
        f"{np.mean(errors):.3f} of the eyes' distance, at most {max(errors):.3f}"
    )
    assert hits >= 0.9 * total
    assert wrong <= 0.1 * total
    assert np.mean(errors) < 0.1
    assert max(errors) < 0.25


@pytest.mark.parametrize("side_px", [96, 1400])
def test_a_picture_of_any_size_is_seen_at_the_same_one(detector: RetinaFace, side_px: int) -> None:
    picture, drawn = portrait()
    scale = side_px / picture.width
    resized = picture.resize((side_px, side_px), Image.Resampling.LANCZOS)
    [face] = detect(detector, CPU, resized)
    assert off(face, drawn.scaled(scale)) < 0.15


def test_a_face_that_is_cut_by_the_edge_may_be_found(detector: RetinaFace) -> None:
    """Landmarks are where they would be, also outside."""
    picture, drawn = portrait()
    eyes = (drawn.landmarks[0] + drawn.landmarks[1]) / 2
    cut = int(drawn.box[0] + 0.15 * (drawn.box[2] - drawn.box[0]))
    assert cut < eyes.real
    [face] = detect(detector, CPU, picture.crop((cut, 0, picture.width, picture.height)))
    assert off(face, DrawnFace(drawn.box, tuple(z - cut for z in drawn.landmarks))) < 0.2


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (4000, 30), (64, 64)])
def test_pictures_without_faces_have_none_whatever_their_size(
    detector: RetinaFace, size: tuple[int, int]
) -> None:
    assert detect(detector, CPU, Image.new("RGB", size, "teal")) == []


def test_faces_whose_eyes_are_closer_than_five_pixels_are_left(detector: RetinaFace) -> None:
    picture, drawn = portrait()
    distance = abs(drawn.landmarks[0] - drawn.landmarks[1])

    def seen_at(eyes_px: int) -> Image.Image:
        side = round(picture.width * eyes_px / distance)
        return picture.resize((side, side))

    assert detect(detector, CPU, seen_at(4)) == []
    assert len(detect(detector, CPU, seen_at(8))) == 1
