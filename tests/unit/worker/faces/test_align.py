"""Aligning faces to the template and warping them back."""

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
    warp_to_face,
    warp_to_picture,
)
from imagefleet_worker.imaging.convert import from_unit_range, to_unit_range

WIDTH, HEIGHT = 400, 300
BORDER_PX = 4
"""Border of the aligned square where bilinear sampling mixes in pixels from outside."""


def alignment_of(size_px: float, angle: float = 0, centre: complex = 200 + 150j) -> Alignment:
    """The alignment of a face whose aligned square has that side in the picture."""
    middle = complex(FACE_PX, FACE_PX) / 2
    scale_rotation = rect(size_px / FACE_PX, angle)
    found = align([centre + scale_rotation * (t - middle) for t in TEMPLATE], WIDTH, HEIGHT)
    assert found is not None
    return found


def waves(width: int = WIDTH, height: int = HEIGHT, length_px: float = 60) -> Image.Image:
    """A smooth picture."""
    x, y = torch.arange(width) / length_px, torch.arange(height)[:, None] / length_px
    layers = [torch.sin(6.283 * x + 0 * y), torch.cos(6.283 * y + 0 * x), torch.sin(5 * x + 3 * y)]
    [picture] = from_unit_range((torch.stack(layers)[None] + 1) / 2)
    return picture


def warp_whole(face: Tensor, alignment: Alignment) -> Tensor:
    """The face warped to its region, all bands in one tensor."""
    return torch.cat([layer for _, layer in warp_to_picture(face, alignment)], dim=2)


@pytest.mark.parametrize("angle", [0, 0.5, -2.5])
@pytest.mark.parametrize("size_px", [40, 512, 3000])
def test_any_similarity_is_recovered_up_to_rounding(size_px: float, angle: float) -> None:
    scale_rotation = rect(FACE_PX / size_px, angle)
    shift = complex(FACE_PX, FACE_PX) / 2 - scale_rotation * (4000 + 6000j)
    found = align([(t - shift) / scale_rotation for t in TEMPLATE], 10_000, 10_000)
    assert found is not None
    assert found.scale_rotation == pytest.approx(scale_rotation, rel=1e-12)
    assert found.translation == pytest.approx(shift, rel=1e-9)


def test_landmarks_that_do_not_fit_are_aligned_by_least_squares() -> None:
    """No small change of the similarity brings the points closer to the template."""
    points = [z / 4 + off for z, off in zip(TEMPLATE, (3, 4j, -2 + 1j, 5, -6j), strict=True)]
    found = align(points, WIDTH, HEIGHT)
    assert found is not None

    def distance(scale_rotation: complex, translation: complex) -> float:
        return sum(
            abs(scale_rotation * z + translation - t) ** 2
            for z, t in zip(points, TEMPLATE, strict=True)
        )

    least = distance(found.scale_rotation, found.translation)
    for change in (1e-3, -1e-3, 1e-3j, -1e-3j):
        assert distance(found.scale_rotation + change, found.translation) > least
        assert distance(found.scale_rotation, found.translation + change) > least


@pytest.mark.parametrize(
    ("size_px", "angle", "bound"),
    [
        (128, 0, 0.01),
        (128, 0.6, 0.01),
        (250, -1.2, 0.005),
        # Downsampling two pixels into one, and back, damps waves of 60 px.
        (1024, 0.3, 0.05),
    ],
)
def test_an_unchanged_face_is_warped_back_unchanged(
    size_px: float, angle: float, bound: float
) -> None:
    """Up to the effect of two bilinear samplings on a wave of 60 pixels."""
    picture, alignment = waves(), alignment_of(size_px, angle)
    interior = torch.zeros(1, 1, FACE_PX, FACE_PX)
    interior[..., BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = 1
    warped = warp_whole(torch.cat([warp_to_face(picture, alignment), interior], dim=1), alignment)
    left, top, right, bottom = alignment.region
    # Where the square extends beyond the picture, the border grey mixes into the outer pixels.
    in_picture = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    in_picture[8:-8, 8:-8] = True
    compared = (warped[0, 3] > 0.9999) & in_picture[top:bottom, left:right]
    before = to_unit_range(picture.crop(alignment.region))
    difference = (warped[:, :3] - before)[0].abs()[:, compared]
    assert compared.sum() > 5000
    assert difference.max() < bound


def test_an_aligned_face_is_upright_and_has_the_template_size() -> None:
    """The landmarks' pixels lie at the template's positions, whatever the tilt."""
    alignment = alignment_of(150, 0.7)
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    for t in TEMPLATE:
        z = (t - alignment.translation) / alignment.scale_rotation
        x, y = int(z.real), int(z.imag)
        picture.paste("white", (x - 1, y - 1, x + 2, y + 2))
    face = warp_to_face(picture, alignment)
    for t in TEMPLATE:
        assert face[0, 0, round(t.imag), round(t.real)] > 0.6


def test_pixels_outside_the_picture_have_facexlibs_border_grey() -> None:
    face = warp_to_face(Image.new("RGB", (WIDTH, HEIGHT), "white"), alignment_of(200, centre=0j))
    corner = (face[0, :, 5, 5] * 255).round().tolist()
    assert corner == [132, 133, 135]


def test_a_small_face_is_downsampled_with_antialiasing() -> None:
    """One-pixel lines in the aligned face become grey in a face a sixteenth as large."""
    lines = (torch.arange(FACE_PX) % 2).float().expand(1, 1, FACE_PX, FACE_PX)
    warped = warp_whole(lines, alignment_of(32))
    middle = warped[0, 0, 8:-8, 8:-8]
    assert middle.sub(0.5).abs().max() < 0.05


def test_a_face_outside_the_picture_has_no_alignment() -> None:
    points = [z / 8 + 5000 for z in TEMPLATE]
    assert align(points, WIDTH, HEIGHT) is None


def test_coincident_landmarks_have_no_alignment() -> None:
    assert align([5 + 5j] * 5, WIDTH, HEIGHT) is None
