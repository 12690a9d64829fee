"""Transparency of enlarged pictures."""

from PIL import Image

from imagefleet_shared.field_types import NEAREST
from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.upscale.size import upscale_size


def with_alpha(
    colours: Image.Image, alpha: Image.Image | None, upscale: UpscalePass
) -> Image.Image:
    """An enlarged RGB picture as RGBA, with its input's alpha channel, where it had one.

    By Lanczos whatever enlarged the colours, as networks know no alpha; only where that was
    `nearest`, likewise, so that hard edges stay.
    """
    if alpha is None:
        return colours
    size = upscale_size(alpha.width, alpha.height, upscale)
    by = Image.Resampling.NEAREST if upscale.upscaler == NEAREST else Image.Resampling.LANCZOS
    enlarged = alpha.resize((size.enlarged_width, size.enlarged_height), by)
    return Image.merge("RGBA", [*colours.split(), size.crop(enlarged)])
