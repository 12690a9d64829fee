"""A face moved to where restorers expect it, and back.

Positions are complex numbers, x + iy, so that a similarity is one product and one sum; they are
counted from the upper left edge, a pixel's middle lies at a half.
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
"""Where eyes, nose and corners of the mouth lie in it: facexlib's mean of the FFHQ faces, on which
the restorers were trained."""
_GREY = (132 / 255, 133 / 255, 135 / 255)
"""What facexlib puts where an aligned face passes the picture's edge."""


@dataclass(frozen=True)
class Alignment:
    """A similarity from a picture to the aligned face: z becomes `turn * z + move`.

    Attributes:
        region: of the picture, all that the aligned face shows.
    """

    turn: complex
    move: complex
    region: Region


def align(landmarks: Sequence[complex], width: int, height: int) -> Alignment | None:
    """The similarity that brings landmarks closest to the template.

    Least squares in closed form (Umeyama 1991 without reflections); facexlib takes OpenCV's
    estimate by least median, which is the same where the five points fit, and else leaves some out.

    Args:
        landmarks: five.
        width: of the picture, as `height`, pixels.

    Returns:
        None where no part of the face would lie in the picture.
    """
    centre, aim = sum(landmarks) / len(landmarks), sum(TEMPLATE) / len(TEMPLATE)
    pairs = [(z - centre, t - aim) for z, t in zip(landmarks, TEMPLATE, strict=True)]
    spread = sum(abs(z) ** 2 for z, _ in pairs)
    turn = sum(t * z.conjugate() for z, t in pairs) / spread if spread else 0j
    if not turn:
        return None
    move = aim - turn * centre
    corners = [(corner * FACE_PX - move) / turn for corner in (0, 1, 1j, 1 + 1j)]
    left, right = min(c.real for c in corners), max(c.real for c in corners)
    top, bottom = min(c.imag for c in corners), max(c.imag for c in corners)
    region = (
        *(max(0, floor(left)), max(0, floor(top))),
        *(min(width, ceil(right)), min(height, ceil(bottom))),
    )
    if region[0] >= region[2] or region[1] >= region[3]:
        return None
    return Alignment(turn, move, region)


def to_face(picture: Image.Image, alignment: Alignment) -> Tensor:
    """The aligned face of an RGB picture.

    Returns:
        `(1, 3, 512, 512)` float32 in [0, 1], on the CPU.
    """
    left, top, right, bottom = alignment.region
    scale, grey = abs(alignment.turn), torch.tensor(_GREY)[:, None, None]
    # Averaged along rows first: of a large region no more than a band is held in floats.
    narrow = [
        _averaged(to_unit_range(picture.crop(band)) - grey, across=scale, down=1)
        for band in bands(alignment.region)
    ]
    part = _averaged(torch.cat(narrow, dim=2), across=1, down=scale)
    positions = (_middles(FACE_PX, FACE_PX) - alignment.move) / alignment.turn
    return _sample(part, positions - complex(left, top), right - left, bottom - top) + grey


def to_picture(face: Tensor, alignment: Alignment) -> Iterator[tuple[Region, Tensor]]:
    """An aligned face, and 0 round it, as it lies in its region.

    Args:
        face: `(1, C, 512, 512)` float32, on the CPU.

    Yields:
        The region's bands, each with `(1, C, h, w)` of its size.
    """
    scale = 1 / abs(alignment.turn)
    face = _averaged(face, across=scale, down=scale)
    for band in bands(alignment.region):
        left, top, right, bottom = band
        positions = _middles(right - left, bottom - top) + complex(left, top)
        yield band, _sample(face, alignment.turn * positions + alignment.move, FACE_PX, FACE_PX)


def _middles(width: int, height: int) -> Tensor:
    """Positions of pixels' middles, `(height, width)` complex."""
    rows = torch.arange(height, dtype=torch.float64) + 0.5
    columns = torch.arange(width, dtype=torch.float64) + 0.5
    return torch.complex(columns.expand(height, width), rows[:, None].expand(height, width))


def _averaged(pixels: Tensor, *, across: float, down: float) -> Tensor:
    """Pixels that are to be sampled at those scales, as many as are not to be skipped.

    facexlib skips some where the result is smaller, which shows as jagged edges.

    Args:
        across: pixels of the result per pixel given, in a row.
        down: as `across`, in a column.
    """
    height, width = pixels.shape[2:]
    size = (max(1, ceil(height * min(1, down))), max(1, ceil(width * min(1, across))))
    return interpolate(pixels, size, mode="bilinear", antialias=True)


def _sample(pixels: Tensor, positions: Tensor, width: int, height: int) -> Tensor:
    """Pixels at those positions, bilinear, 0 outside.

    Args:
        pixels: averaged or not.
        positions: counted in pixels before they were averaged, of which there are width x height.
    """
    normed = torch.stack([positions.real / width, positions.imag / height], dim=-1) * 2 - 1
    return grid_sample(pixels, normed[None].to(pixels), align_corners=False)
