"""The size that an upscale gives."""

from dataclasses import dataclass

from PIL import Image

from imagefleet_shared.request_parts import UpscalePass


@dataclass(frozen=True)
class UpscaleSize:
    """What a picture is enlarged to, and how much of that stays; pixels."""

    enlarged_width: int
    enlarged_height: int
    width: int
    """Of the result, at most `enlarged_width`."""
    height: int
    """As `width`."""

    def crop(self, picture: Image.Image) -> Image.Image:
        """The middle of an enlarged picture; the odd pixel goes at the right and the bottom."""
        if picture.size == (self.width, self.height):
            return picture
        left, top = (picture.width - self.width) // 2, (picture.height - self.height) // 2
        return picture.crop((left, top, left + self.width, top + self.height))


def upscale_size(width: int, height: int, upscale: UpscalePass) -> UpscaleSize:
    """The size for a picture of width x height.

    A scale, or one side alone, keeps the proportions, rounded to whole pixels and at least one.
    With both sides, as in A1111's extras, the picture is enlarged until it covers them, and what
    exceeds is cut off where `upscale.crop` says so.
    """
    target_width, target_height = upscale.width, upscale.height
    if upscale.scale is not None:
        return _whole(_side(width * upscale.scale), _side(height * upscale.scale))
    if target_width is None:
        assert target_height is not None, "the contract: a scale or a side is given"
        return _whole(_side(width * target_height / height), target_height)
    if target_height is None:
        return _whole(target_width, _side(height * target_width / width))
    if target_width * height >= target_height * width:
        covering = (target_width, max(target_height, _side(height * target_width / width)))
    else:
        covering = (max(target_width, _side(width * target_height / height)), target_height)
    return (
        UpscaleSize(*covering, target_width, target_height) if upscale.crop else _whole(*covering)
    )


def _side(length: float) -> int:
    return max(1, round(length))


def _whole(width: int, height: int) -> UpscaleSize:
    return UpscaleSize(width, height, width, height)
