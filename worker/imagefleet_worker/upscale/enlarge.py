"""Upscaling without diffusion: by a filter, or by a network and then Lanczos to the exact size."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from imagefleet_shared.errors import UnsupportedSize
from imagefleet_shared.field_types import LANCZOS, NEAREST
from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.imaging.convert import resize, to_unit_range
from imagefleet_worker.imaging.decode import grey16_to_rgb
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.upscale.cache import UpscalerCache
from imagefleet_worker.upscale.size import upscale_size
from imagefleet_worker.upscale.upscaler import Upscaler

_DEFAULT_OVERLAP: int = UpscalePass.model_fields["tile_overlap"].default
# Intermediate results of networks may exceed the requested size, because a network is applied twice
# or has a larger factor. They may have this many times the pixels of the largest result.
_MAX_EXCESS = 4
_STEPS_PER_RUN = 100


class Enlarger:
    """Enlarges pictures with cached upscalers; used on the engine's thread only.

    Args:
        upscalers: cache of the model store's upscalers.
        max_output_pixels: of a result; intermediate results may have four times as many.
    """

    def __init__(self, upscalers: UpscalerCache, max_output_pixels: int) -> None:
        self._upscalers = upscalers
        self._max_pixels = _MAX_EXCESS * max_output_pixels

    def enlarge(
        self, image: Image.Image, upscale: UpscalePass, progress: BatchProgress
    ) -> Image.Image:
        """Enlarge a picture to exactly the requested size (see `upscale_size`).

        Args:
            image: RGB; or I;16, whose 16 bits a network uses in full.

        Returns:
            RGB.

        Raises:
            UnknownUpscaler: no upscaler has that name.
            CorruptFile: its file cannot be loaded.
            UnsupportedSize: an intermediate result would be too large.
            OutOfMemory: not even the smallest tiles fit.
        """
        size = upscale_size(image.width, image.height, upscale)
        tiling = _RequestedTiling(upscale.tile_size, upscale.tile_overlap)
        names = [upscale.upscaler]
        if upscale.upscaler_2 and upscale.upscaler_2_visibility > 0:
            names.append(upscale.upscaler_2)
        target = (size.enlarged_width, size.enlarged_height)
        enlarged = self._enlarge_with_each(image, names, *target, tiling, progress)
        picture = enlarged[0]
        if len(enlarged) > 1:
            picture = Image.blend(picture, enlarged[1], upscale.upscaler_2_visibility)
        return size.crop(picture)

    def fit(
        self, image: Image.Image, upscaler: str, width: int, height: int, progress: BatchProgress
    ) -> Image.Image:
        """Enlarge a picture to exactly that size by the named upscaler; errors as `enlarge`."""
        tiling = _RequestedTiling(None, _DEFAULT_OVERLAP)
        [picture] = self._enlarge_with_each(image, [upscaler], width, height, tiling, progress)
        return picture

    def _enlarge_with_each(
        self,
        image: Image.Image,
        names: list[str],
        width: int,
        height: int,
        tiling: "_RequestedTiling",
        progress: BatchProgress,
    ) -> list[Image.Image]:
        """Enlarge the picture to that size by each of the upscalers."""
        progress.begin_stage("upscale")
        networks = {
            name: self._upscalers.get(name) for name in names if name not in (LANCZOS, NEAREST)
        }
        runs = sum(_count_runs(network, image, width, height) for network in networks.values())
        run_progress = _RunProgress(max(1, runs), progress.set_step)
        pictures: list[Image.Image] = []
        for name in names:
            if name == NEAREST:
                rgb = grey16_to_rgb(image)
                pictures.append(rgb.resize((width, height), Image.Resampling.NEAREST))
                continue
            if name in networks:
                large = self._apply_network(
                    image, networks[name], width, height, tiling, run_progress
                )
            else:
                large = image
            is_exact = large.size == (width, height)
            pictures.append(grey16_to_rgb(large if is_exact else resize(large, width, height)))
        return pictures

    def _apply_network(
        self,
        image: Image.Image,
        network: Upscaler,
        width: int,
        height: int,
        tiling: "_RequestedTiling",
        run_progress: "_RunProgress",
    ) -> Image.Image:
        """Apply the network, as A1111 does, until the picture has at least the target size."""
        for _ in range(_count_runs(network, image, width, height)):
            output_size = (image.width * network.scale, image.height * network.scale)
            if output_size[0] * output_size[1] > self._max_pixels:
                raise UnsupportedSize(f"{network.name}'s output", *output_size, self._max_pixels)
            image = network.upscale(
                to_unit_range(image),
                tile_size=tiling.size,
                tile_overlap=tiling.overlap,
                on_tile=run_progress.report_tiles,
            )
            run_progress.next_run()
        return image


@dataclass(frozen=True)
class _RequestedTiling:
    """The tile size and overlap of the request."""

    size: int | None
    overlap: int


class _RunProgress:
    """Reports the tiles of several network runs as one sequence of steps."""

    def __init__(self, runs: int, set_step: Callable[[int, int], None]) -> None:
        self._runs, self._set_step, self._done = runs, set_step, 0

    def report_tiles(self, done: int, total: int) -> None:
        if self._runs == 1:
            self._set_step(done, total)
        else:
            self._set_step(
                _STEPS_PER_RUN * self._done + _STEPS_PER_RUN * done // total,
                _STEPS_PER_RUN * self._runs,
            )

    def next_run(self) -> None:
        self._done += 1


def _count_runs(network: Upscaler, image: Image.Image, width: int, height: int) -> int:
    """How many times a network is applied: at least once; only once if its scale is 1."""
    runs, factor = 1, network.scale
    while network.scale > 1 and (image.width * factor < width or image.height * factor < height):
        runs, factor = runs + 1, factor * network.scale
    return runs
