"""The size of an upscaled picture."""

from dataclasses import dataclass

from PIL import Image

from imagefleet_shared.request_parts import UpscalePass


@dataclass(frozen=True)
class UpscaleSize:
    """The size that a picture is enlarged to, and that it is then cropped to; pixels."""

    enlarged_width: int
    enlarged_height: int
    width: int
    """Of the result, at most `enlarged_width`."""
    height: int
    """As `width`."""

    def crop(self, picture: Image.Image) -> Image.Image:
        """Crop an enlarged picture to its centre; an odd pixel is cut at the right or bottom."""
        if picture.size == (self.width, self.height):
            return picture
        left, top = (picture.width - self.width) // 2, (picture.height - self.height) // 2
        return picture.crop((left, top, left + self.width, top + self.height))


def upscale_size(width: int, height: int, upscale: UpscalePass) -> UpscaleSize:
    """The size for a picture of width x height.

    A scale, or one side alone, keeps the aspect ratio, rounded to whole pixels, at least one. With
    both sides, as in A1111's extras, the picture is enlarged until it covers them, and then cropped
    to them if `upscale.crop` is set.
    """
    target_width, target_height = upscale.width, upscale.height
    if upscale.scale is not None:
        return _uncropped(_side(width * upscale.scale), _side(height * upscale.scale))
    if target_width is None:
        assert target_height is not None, "requests have a scale or a side"
        return _uncropped(_side(width * target_height / height), target_height)
    if target_height is None:
        return _uncropped(target_width, _side(height * target_width / width))
    if target_width * height >= target_height * width:
        covering = (target_width, max(target_height, _side(height * target_width / width)))
    else:
        covering = (max(target_width, _side(width * target_height / height)), target_height)
    return (
        UpscaleSize(*covering, target_width, target_height)
        if upscale.crop
        else _uncropped(*covering)
    )


def _side(length: float) -> int:
    return max(1, round(length))


def _uncropped(width: int, height: int) -> UpscaleSize:
    return UpscaleSize(width, height, width, height)
