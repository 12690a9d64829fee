"""Pasting overlapping faces, compared with the same on the whole picture in floats."""

from cmath import rect
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from imagefleet_worker.faces.align import (
    FACE_PX,
    TEMPLATE,
    Alignment,
    align,
    warp_to_face,
    warp_to_picture,
)
from imagefleet_worker.faces.paste import Canvas
from imagefleet_worker.faces.regions import merge_regions, overlap
from imagefleet_worker.imaging.convert import from_unit_range, to_unit_range

MIDDLE = complex(FACE_PX, FACE_PX) / 2


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def alignments(random: Random, width: int, height: int, sides_px: list[float]) -> list[Alignment]:
    """Alignments of random faces, some across the picture's edges."""
    found: list[Alignment] = []
    while len(found) < len(sides_px):
        turn = rect(sides_px[len(found)] / FACE_PX, random.uniform(-3, 3))
        centre = complex(random.uniform(-9, width + 9), random.uniform(-9, height + 9))
        one = align([centre + turn * (t - MIDDLE) for t in TEMPLATE], width, height)
        found += [one] if one else []
    return found


def fake_restored(face: Tensor, seed: int) -> Tensor:
    """A random change of a face, with a random mask."""
    coarse = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    layer = interpolate(coarse, FACE_PX, mode="bilinear")
    layer[:, :3] += face
    return layer / 2


def paste_on_whole_picture(
    picture: Image.Image, faces: list[tuple[Alignment, Tensor]], visibility: float
) -> Image.Image:
    original = to_unit_range(picture)
    result = original.clone()
    for alignment, face in faces:
        left, top, right, bottom = alignment.region
        layer = torch.cat([each for _, each in warp_to_picture(face, alignment)], dim=2)
        under = result[..., top:bottom, left:right]
        under += layer[:, 3:] * (layer[:, :3] - under)
    [blended] = from_unit_range((original + visibility * (result - original)).clamp(0, 1))
    return blended


@pytest.mark.parametrize("visibility", [1, 0.3])
@pytest.mark.parametrize(
    ("width", "height", "sides_px"),
    [(200, 150, [60, 20, 90, 150]), (150, 260, [9, 30, 12, 20, 400]), (1100, 700, [900, 90, 40])],
)
def test_pasting_in_regions_equals_pasting_on_the_whole_picture(
    width: int, height: int, sides_px: list[float], visibility: float
) -> None:
    """Bit for bit, however faces overlap and regions are split into bands."""
    picture, random = noise(width, height), Random(f"{sides_px}")
    faces = [
        (alignment, fake_restored(warp_to_face(picture, alignment), seed))
        for seed, alignment in enumerate(alignments(random, width, height, sides_px))
    ]
    restored = picture.copy()
    for box in merge_regions(alignment.region for alignment, _ in faces):
        canvas = Canvas(picture, box)
        for alignment, face in faces:
            if overlap(alignment.region, box):
                canvas.paste(face, alignment)
        canvas.blend_into(restored, visibility)
    assert restored.tobytes() != picture.tobytes()
    assert restored.tobytes() == paste_on_whole_picture(picture, faces, visibility).tobytes()
