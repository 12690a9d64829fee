"""The size of the hires pass, computed as in A1111."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.request_parts import HiresPass

_MIN_SIDE_PX = 64


@dataclass(frozen=True)
class HiresSize:
    """The size that the first pass's result is enlarged to, and how much of that is cropped."""

    enlarged_width: int
    """Pixels, a multiple of 8."""
    enlarged_height: int
    """As `enlarged_width`."""
    cut_columns: int = 0
    """Columns of latents, 8 pixels each, cropped in all; an odd one at the right."""
    cut_rows: int = 0
    """Rows of latents cropped in all; an odd one at the bottom."""

    @property
    def width(self) -> int:
        """Width of the pass and its result, in pixels."""
        return self.enlarged_width - 8 * self.cut_columns

    @property
    def height(self) -> int:
        """Height of the pass and its result, in pixels."""
        return self.enlarged_height - 8 * self.cut_rows

    def crop_latents(self, latents: Tensor) -> Tensor:
        """A cropped view of enlarged latents `(B, C, h, w)`."""
        left, top = self.cut_columns // 2, self.cut_rows // 2
        return latents[..., top : top + self.height // 8, left : left + self.width // 8]

    def crop_image(self, picture: Image.Image) -> Image.Image:
        """A cropped copy of an enlarged image."""
        left, top = self.cut_columns // 2 * 8, self.cut_rows // 2 * 8
        return picture.crop((left, top, left + self.width, top + self.height))


def hires_size(width: int, height: int, hires: HiresPass) -> HiresSize:
    """The size for a first pass of width x height.

    A scale, or one side alone, keeps the aspect ratio. If both sides are given, the image is
    enlarged to cover them and then cropped. Enlarged sizes are rounded down to a multiple of 8, the
    size of a latent.

    Raises:
        InvalidRequest: a side would be less than 64 pixels.
    """
    if hires.scale is not None:
        size = _round_down(int(width * hires.scale), int(height * hires.scale))
    elif hires.width and hires.height:
        size = _covering(width, height, hires.width, hires.height)
    elif hires.width:
        size = _round_down(hires.width, hires.width * height // width)
    else:
        assert hires.height  # validated by HiresPass: a scale or a side is given
        size = _round_down(hires.height * width // height, hires.height)
    if min(size.width, size.height) < _MIN_SIDE_PX:
        raise InvalidRequest(
            f"hires of {width}x{height} would be {size.width}x{size.height} pixels; "
            f"no side may be less than {_MIN_SIDE_PX}"
        )
    return size


def _covering(width: int, height: int, target_width: int, target_height: int) -> HiresSize:
    if width * target_height < target_width * height:
        enlarged = _round_down(target_width, target_width * height // width)
    else:
        enlarged = _round_down(target_height * width // height, target_height)
    return HiresSize(
        enlarged.width,
        enlarged.height,
        (enlarged.width - target_width) // 8,
        (enlarged.height - target_height) // 8,
    )


def _round_down(width: int, height: int) -> HiresSize:
    return HiresSize(width // 8 * 8, height // 8 * 8)
