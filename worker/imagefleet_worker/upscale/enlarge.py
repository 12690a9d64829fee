"""Enlarging without diffusion: by a filter, or by a network and then Lanczos to the exact size."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from imagefleet_shared.errors import UnsupportedSize
from imagefleet_shared.field_types import LANCZOS, NEAREST
from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.imaging.convert import resize, to_unit_range
from imagefleet_worker.imaging.decode import deep_grey_as_rgb
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.upscale.cache import UpscalerCache
from imagefleet_worker.upscale.size import upscale_size
from imagefleet_worker.upscale.upscaler import Upscaler

_DEFAULT_OVERLAP: int = UpscalePass.model_fields["tile_overlap"].default
# A network that is applied twice, or whose factor is larger than the one asked for, passes the
# size wanted: so much more than the largest result is borne, 3 bytes a pixel.
_MAX_EXCESS = 4
_PARTS = 100


class Enlarger:
    """Enlarges pictures with upscalers that it keeps warm; used on the engine's thread only.

    Args:
        upscalers: those of the model store.
        max_output_pixels: of a result; what networks give on the way may be four times as large.
    """

    def __init__(self, upscalers: UpscalerCache, max_output_pixels: int) -> None:
        self._upscalers = upscalers
        self._max_pixels = _MAX_EXCESS * max_output_pixels

    def enlarge(
        self, image: Image.Image, upscale: UpscalePass, progress: BatchProgress
    ) -> Image.Image:
        """A picture enlarged as asked, of exactly that size (see `upscale_size`).

        Args:
            image: RGB; or I;16, grey, which a network sees in full.

        Returns:
            RGB.

        Raises:
            UnknownUpscaler: there is none of that name.
            CorruptFile: its file cannot be loaded.
            UnsupportedSize: a network passes the size wanted by far too much.
            OutOfMemory: not even the least tiles fit.
        """
        size = upscale_size(image.width, image.height, upscale)
        tiling = _Tiling(upscale.tile_size, upscale.tile_overlap)
        names = [upscale.upscaler]
        if upscale.upscaler_2 and upscale.upscaler_2_visibility > 0:
            names.append(upscale.upscaler_2)
        wanted = (size.enlarged_width, size.enlarged_height)
        enlarged = self._each(image, names, *wanted, tiling, progress)
        picture = enlarged[0]
        if len(enlarged) > 1:
            picture = Image.blend(picture, enlarged[1], upscale.upscaler_2_visibility)
        return size.crop(picture)

    def fit(
        self, image: Image.Image, upscaler: str, width: int, height: int, progress: BatchProgress
    ) -> Image.Image:
        """A picture at exactly that size, by the upscaler of that name; errors as `enlarge`."""
        tiling = _Tiling(None, _DEFAULT_OVERLAP)
        [picture] = self._each(image, [upscaler], width, height, tiling, progress)
        return picture

    def _each(
        self,
        image: Image.Image,
        names: list[str],
        width: int,
        height: int,
        tiling: "_Tiling",
        progress: BatchProgress,
    ) -> list[Image.Image]:
        """The picture at that size, by each of the upscalers."""
        progress.begin_stage("upscale")
        networks = {
            name: self._upscalers.get(name) for name in names if name not in (LANCZOS, NEAREST)
        }
        runs = sum(_runs(network, image, width, height) for network in networks.values())
        counter = _RunCounter(max(1, runs), progress.set_step)
        pictures: list[Image.Image] = []
        for name in names:
            if name == NEAREST:
                small = deep_grey_as_rgb(image)
                pictures.append(small.resize((width, height), Image.Resampling.NEAREST))
                continue
            if name in networks:
                large = self._by_network(image, networks[name], width, height, tiling, counter)
            else:
                large = image
            same = large.size == (width, height)
            pictures.append(deep_grey_as_rgb(large if same else resize(large, width, height)))
        return pictures

    def _by_network(
        self,
        image: Image.Image,
        network: Upscaler,
        width: int,
        height: int,
        tiling: "_Tiling",
        counter: "_RunCounter",
    ) -> Image.Image:
        """Apply the network, as A1111 does, until the picture is at least as large as wanted."""
        for _ in range(_runs(network, image, width, height)):
            grown = (image.width * network.scale, image.height * network.scale)
            if grown[0] * grown[1] > self._max_pixels:
                raise UnsupportedSize(f"{network.name}'s output", *grown, self._max_pixels)
            image = network.upscale(
                to_unit_range(image),
                tile_size=tiling.size,
                tile_overlap=tiling.overlap,
                on_tile=counter.count_tiles,
            )
            counter.next_run()
        return image


@dataclass(frozen=True)
class _Tiling:
    """As asked for."""

    size: int | None
    overlap: int


class _RunCounter:
    """Tiles of several runs of networks, counted as one course."""

    def __init__(self, runs: int, set_step: Callable[[int, int], None]) -> None:
        self._runs, self._set_step, self._done = runs, set_step, 0

    def count_tiles(self, done: int, total: int) -> None:
        if self._runs == 1:
            self._set_step(done, total)
        else:
            self._set_step(_PARTS * self._done + _PARTS * done // total, _PARTS * self._runs)

    def next_run(self) -> None:
        self._done += 1


def _runs(network: Upscaler, image: Image.Image, width: int, height: int) -> int:
    """How often a network is applied: at least once, at scale 1 no more."""
    runs, factor = 1, network.scale
    while network.scale > 1 and (image.width * factor < width or image.height * factor < height):
        runs, factor = runs + 1, factor * network.scale
    return runs
