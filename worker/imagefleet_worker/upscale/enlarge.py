"""Enlarging without diffusion: by Lanczos, or by a network and then Lanczos to the exact size."""

from PIL import Image

from imagefleet_shared.fields import LANCZOS
from imagefleet_shared.parts import UpscalePass

from ..images import from_unit_range, resize, scaled, to_unit_range
from ..stages import Stages
from .cache import UpscalerCache

_DEFAULT = UpscalePass()


class Enlarger:
    """Enlarges pictures with upscalers that it keeps warm; used on the engine's thread only."""

    def __init__(self, upscalers: UpscalerCache) -> None:
        self._upscalers = upscalers

    def enlarge(self, image: Image.Image, upscale: UpscalePass, stages: Stages) -> Image.Image:
        """A picture enlarged by `upscale.scale`, of exactly that size.

        Raises:
            UnknownUpscaler: there is none of that name.
            CorruptFile: its file cannot be loaded.
        """
        width, height = scaled(image.width, upscale.scale), scaled(image.height, upscale.scale)
        return self._to_size(image, upscale, width, height, stages)

    def fit(
        self, image: Image.Image, upscaler: str, width: int, height: int, stages: Stages
    ) -> Image.Image:
        """A picture at exactly that size, by the upscaler of that name; errors as `enlarge`."""
        upscale = _DEFAULT.model_copy(update={"upscaler": upscaler})
        return self._to_size(image, upscale, width, height, stages)

    def _to_size(
        self, image: Image.Image, upscale: UpscalePass, width: int, height: int, stages: Stages
    ) -> Image.Image:
        stages.begin("upscale")
        if upscale.upscaler != LANCZOS:
            image = self._by_network(image, upscale, width, height, stages)
        return resize(image, width, height)

    def _by_network(
        self, image: Image.Image, upscale: UpscalePass, width: int, height: int, stages: Stages
    ) -> Image.Image:
        """Apply the network until the picture is at least as large as asked for, as A1111 does."""
        network = self._upscalers.get(upscale.upscaler)
        while image.width < width or image.height < height:
            pixels = network.upscale(
                to_unit_range(image),
                tile_size=upscale.tile_size,
                tile_overlap=upscale.tile_overlap,
                on_tile=stages.reach,
            )
            [image] = from_unit_range(pixels)
            if network.scale == 1:
                break
        return image
