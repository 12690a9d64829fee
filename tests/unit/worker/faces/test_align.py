"""Faces moved to the template and back."""

from cmath import rect

import pytest
import torch
from PIL import Image
from torch import Tensor

from imagefleet_worker.faces.align import (
    FACE_PX,
    TEMPLATE,
    Alignment,
    align,
    to_face,
    to_picture,
)
from imagefleet_worker.imaging.convert import from_unit_range, to_unit_range

WIDTH, HEIGHT = 400, 300
RIM_PX = 4
"""Of the aligned square: within it bilinear sampling mixes what lies outside in."""


def placed(size_px: float, angle: float = 0, centre: complex = 200 + 150j) -> Alignment:
    """The alignment of a face whose square has that side in the picture."""
    middle = complex(FACE_PX, FACE_PX) / 2
    turn = rect(size_px / FACE_PX, angle)
    found = align([centre + turn * (t - middle) for t in TEMPLATE], WIDTH, HEIGHT)
    assert found is not None
    return found


def waves(width: int = WIDTH, height: int = HEIGHT, length_px: float = 60) -> Image.Image:
    """A smooth picture."""
    x, y = torch.arange(width) / length_px, torch.arange(height)[:, None] / length_px
    layers = [torch.sin(6.283 * x + 0 * y), torch.cos(6.283 * y + 0 * x), torch.sin(5 * x + 3 * y)]
    [picture] = from_unit_range((torch.stack(layers)[None] + 1) / 2)
    return picture


def whole(face: Tensor, alignment: Alignment) -> Tensor:
    """The face as it lies in its region, in one piece."""
    return torch.cat([layer for _, layer in to_picture(face, alignment)], dim=2)


@pytest.mark.parametrize("angle", [0, 0.5, -2.5])
@pytest.mark.parametrize("size_px", [40, 512, 3000])
def test_any_similarity_is_found_to_rounding(size_px: float, angle: float) -> None:
    turn = rect(FACE_PX / size_px, angle)
    shift = complex(FACE_PX, FACE_PX) / 2 - turn * (4000 + 6000j)
    found = align([(t - shift) / turn for t in TEMPLATE], 10_000, 10_000)
    assert found is not None
    assert found.turn == pytest.approx(turn, rel=1e-12)
    assert found.move == pytest.approx(shift, rel=1e-9)


def test_landmarks_that_do_not_fit_are_met_by_least_squares() -> None:
    """No small change of the similarity brings the points closer to the template."""
    points = [z / 4 + off for z, off in zip(TEMPLATE, (3, 4j, -2 + 1j, 5, -6j), strict=True)]
    found = align(points, WIDTH, HEIGHT)
    assert found is not None

    def distance(turn: complex, move: complex) -> float:
        return sum(abs(turn * z + move - t) ** 2 for z, t in zip(points, TEMPLATE, strict=True))

    least = distance(found.turn, found.move)
    for change in (1e-3, -1e-3, 1e-3j, -1e-3j):
        assert distance(found.turn + change, found.move) > least
        assert distance(found.turn, found.move + change) > least


@pytest.mark.parametrize(
    ("size_px", "angle", "bound"),
    [
        (128, 0, 0.01),
        (128, 0.6, 0.01),
        (250, -1.2, 0.005),
        # Waves of 60 px lose height where pixels are averaged: two pixels into one, and back.
        (1024, 0.3, 0.05),
    ],
)
def test_a_face_that_nobody_changed_comes_back_as_it_was(
    size_px: float, angle: float, bound: float
) -> None:
    """Up to what two bilinear samplings do to a wave of 60 pixels."""
    picture, alignment = waves(), placed(size_px, angle)
    rim = torch.zeros(1, 1, FACE_PX, FACE_PX)
    rim[..., RIM_PX:-RIM_PX, RIM_PX:-RIM_PX] = 1
    back = whole(torch.cat([to_face(picture, alignment), rim], dim=1), alignment)
    left, top, right, bottom = alignment.region
    # Where the square passes the picture, its grey is mixed into the outermost pixels.
    inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    inside[8:-8, 8:-8] = True
    kept = (back[0, 3] > 0.9999) & inside[top:bottom, left:right]
    before = to_unit_range(picture.crop(alignment.region))
    difference = (back[:, :3] - before)[0].abs()[:, kept]
    assert kept.sum() > 5000
    assert difference.max() < bound


def test_a_face_is_upright_and_of_its_size_once_aligned() -> None:
    """The landmarks' pixels lie at the template's places, whatever the tilt."""
    alignment = placed(150, 0.7)
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    for t in TEMPLATE:
        z = (t - alignment.move) / alignment.turn
        x, y = int(z.real), int(z.imag)
        picture.paste("white", (x - 1, y - 1, x + 2, y + 2))
    face = to_face(picture, alignment)
    for t in TEMPLATE:
        assert face[0, 0, round(t.imag), round(t.real)] > 0.6


def test_what_lies_outside_the_picture_is_facexlibs_grey() -> None:
    face = to_face(Image.new("RGB", (WIDTH, HEIGHT), "white"), placed(200, centre=0j))
    corner = (face[0, :, 5, 5] * 255).round().tolist()
    assert corner == [132, 133, 135]


def test_a_small_face_is_averaged_not_skipped() -> None:
    """Lines of one pixel in the aligned face become grey in a face a sixteenth as large."""
    lines = (torch.arange(FACE_PX) % 2).float().expand(1, 1, FACE_PX, FACE_PX)
    back = whole(lines, placed(32))
    middle = back[0, 0, 8:-8, 8:-8]
    assert middle.sub(0.5).abs().max() < 0.05


def test_a_face_that_lies_outside_is_none() -> None:
    points = [z / 8 + 5000 for z in TEMPLATE]
    assert align(points, WIDTH, HEIGHT) is None


def test_landmarks_in_one_point_are_none() -> None:
    assert align([5 + 5j] * 5, WIDTH, HEIGHT) is None
