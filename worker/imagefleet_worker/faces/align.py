"""Alignment of faces to the template that restorers expect, and back.

Positions are complex numbers, x + iy, so that a similarity is one product and one sum. They are
measured from the upper left corner; pixel centres lie at half-integers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from imagefleet_worker.faces.regions import Region, bands
from imagefleet_worker.imaging.convert import to_unit_range

FACE_PX = 512
"""Side of an aligned face."""
TEMPLATE = (
    *(192.98138 + 239.94708j, 318.90277 + 240.1936j, 256.63416 + 314.01935j),
    *(201.26117 + 371.41043j, 313.08905 + 371.15118j),
)
"""Eyes, nose and corners of the mouth in an aligned face: facexlib's mean of the FFHQ faces, on
which the restorers were trained."""
_BORDER_GREY = (132 / 255, 133 / 255, 135 / 255)
"""facexlib's border colour, where an aligned face extends beyond the picture."""


@dataclass(frozen=True)
class Alignment:
    """A similarity from picture to aligned face: z becomes `scale_rotation * z + translation`.

    Attributes:
        region: the part of the picture that the aligned face covers.
    """

    scale_rotation: complex
    translation: complex
    region: Region


def align(landmarks: Sequence[complex], width: int, height: int) -> Alignment | None:
    """Return the similarity that maps landmarks closest to the template.

    Least squares in closed form (Umeyama 1991 without reflections). facexlib uses OpenCV's
    least-median estimate, which agrees where the five points fit and otherwise drops outliers.

    Args:
        landmarks: eyes, nose and corners of the mouth, in the order of `TEMPLATE`.
        width: of the picture, in pixels.
        height: as `width`.

    Returns:
        None if the aligned face would not overlap the picture.
    """
    centre, target = sum(landmarks) / len(landmarks), sum(TEMPLATE) / len(TEMPLATE)
    pairs = [(z - centre, t - target) for z, t in zip(landmarks, TEMPLATE, strict=True)]
    variance = sum(abs(z) ** 2 for z, _ in pairs)
    scale_rotation = sum(t * z.conjugate() for z, t in pairs) / variance if variance else 0j
    if not scale_rotation:
        return None
    translation = target - scale_rotation * centre
    corners = [(corner * FACE_PX - translation) / scale_rotation for corner in (0, 1, 1j, 1 + 1j)]
    left, right = min(c.real for c in corners), max(c.real for c in corners)
    top, bottom = min(c.imag for c in corners), max(c.imag for c in corners)
    region = (
        *(max(0, floor(left)), max(0, floor(top))),
        *(min(width, ceil(right)), min(height, ceil(bottom))),
    )
    if region[0] >= region[2] or region[1] >= region[3]:
        return None
    return Alignment(scale_rotation, translation, region)


def warp_to_face(picture: Image.Image, alignment: Alignment) -> Tensor:
    """Crop and align a face of an RGB picture.

    Returns:
        `(1, 3, 512, 512)` float32 in [0, 1], on the CPU.
    """
    left, top, right, bottom = alignment.region
    scale, border = abs(alignment.scale_rotation), torch.tensor(_BORDER_GREY)[:, None, None]
    # Rows are resampled first: of a large region, only one band at a time is in floats.
    columns_resampled = [
        _downsample(to_unit_range(picture.crop(band)) - border, across=scale, down=1)
        for band in bands(alignment.region)
    ]
    crop = _downsample(torch.cat(columns_resampled, dim=2), across=1, down=scale)
    positions = (
        _pixel_centres(FACE_PX, FACE_PX) - alignment.translation
    ) / alignment.scale_rotation
    return _sample(crop, positions - complex(left, top), right - left, bottom - top) + border


def warp_to_picture(face: Tensor, alignment: Alignment) -> Iterator[tuple[Region, Tensor]]:
    """Warp an aligned face back to its region of the picture; 0 outside the face.

    Args:
        face: `(1, C, 512, 512)` float32, on the CPU.

    Yields:
        Each band of the region, with its `(1, C, h, w)` pixels.
    """
    scale = 1 / abs(alignment.scale_rotation)
    face = _downsample(face, across=scale, down=scale)
    for band in bands(alignment.region):
        left, top, right, bottom = band
        positions = _pixel_centres(right - left, bottom - top) + complex(left, top)
        yield (
            band,
            _sample(
                face, alignment.scale_rotation * positions + alignment.translation, FACE_PX, FACE_PX
            ),
        )


def _pixel_centres(width: int, height: int) -> Tensor:
    """Positions of pixel centres, `(height, width)` complex."""
    rows = torch.arange(height, dtype=torch.float64) + 0.5
    columns = torch.arange(width, dtype=torch.float64) + 0.5
    return torch.complex(columns.expand(height, width), rows[:, None].expand(height, width))


def _downsample(pixels: Tensor, *, across: float, down: float) -> Tensor:
    """Downsample pixels with antialiasing before they are sampled at smaller scales.

    facexlib samples directly, which leaves jagged edges where the result is smaller.

    Args:
        across: output pixels per input pixel along a row; no change above 1.
        down: as `across`, along a column.
    """
    height, width = pixels.shape[2:]
    size = (max(1, ceil(height * min(1, down))), max(1, ceil(width * min(1, across))))
    return interpolate(pixels, size, mode="bilinear", antialias=True)


def _sample(pixels: Tensor, positions: Tensor, width: int, height: int) -> Tensor:
    """Sample pixels at positions: bilinear, 0 outside.

    Args:
        pixels: `(1, C, h, w)`, possibly downsampled.
        positions: in pixels before downsampling.
        width: of the pixels before downsampling.
        height: as `width`.
    """
    grid = torch.stack([positions.real / width, positions.imag / height], dim=-1) * 2 - 1
    return grid_sample(pixels, grid[None].to(pixels), align_corners=False)
