"""Transparency of enlarged pictures."""

from PIL import Image

from imagefleet_shared.field_types import NEAREST
from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.upscale.size import upscale_size


def with_alpha(
    colours: Image.Image, alpha: Image.Image | None, upscale: UpscalePass
) -> Image.Image:
    """Add the input's alpha channel, if it had one, to an enlarged RGB picture.

    Networks have no alpha channel, so it is enlarged by Lanczos, or by nearest neighbour if the
    colours were too, so that hard edges stay hard.
    """
    if alpha is None:
        return colours
    size = upscale_size(alpha.width, alpha.height, upscale)
    resampling = (
        Image.Resampling.NEAREST if upscale.upscaler == NEAREST else Image.Resampling.LANCZOS
    )
    enlarged = alpha.resize((size.enlarged_width, size.enlarged_height), resampling)
    return Image.merge("RGBA", [*colours.split(), size.crop(enlarged)])
