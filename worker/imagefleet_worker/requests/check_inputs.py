"""Size limits on inputs and outputs, checked before the device is used."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from imagefleet_shared import infotext
from imagefleet_shared.errors import InvalidRequest, TooManyPixels, UnsupportedSize
from imagefleet_shared.field_types import PIXEL_MODES, ImageFormat
from imagefleet_shared.image_files import MAX_SIDE_PX, check_parameters
from imagefleet_shared.request_parts import ImageRef, UpscalePass
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.faces.resolved import resolve_faces
from imagefleet_worker.requests.resolved import CheckedInput, UpscaleJob
from imagefleet_worker.upscale.decode_input import decode_upscale_input
from imagefleet_worker.upscale.size import upscale_size

_MAX_TOTAL_FACTOR = 4
"""The pixels of all of a request's pictures together, as a multiple of `max_pixels`. Their files
stay in memory until the last one is done. By default the limit is 64 pictures of 2048 x 2048."""


class InputChecker:
    """Checks upscale jobs, their input pictures and their output sizes.

    Args:
        models: the store with the upscalers.
        fetch: returns the content of an input; raises InvalidRequest if there is none.
        max_pixels: limit for each input and each upscaled picture. The pictures of a request may
            have four times as many together, each counted by the larger of the two.
    """

    def __init__(
        self, models: ModelStore, fetch: Callable[[ImageRef], bytes], max_pixels: int
    ) -> None:
        self._models, self._fetch, self._max_pixels = models, fetch, max_pixels

    def check(self, request: UpscaleRequest) -> UpscaleJob:
        """Decode every input once and return the job; errors name the input they are about.

        Raises:
            InvalidRequest: a model or input does not exist, an input cannot be decoded, or a limit
                is exceeded.
            FileUnavailable, WorkerFailure: as `resolve_faces`.
            StorageUnavailable: an input cannot be fetched.
        """
        self._check_upscalers(request)
        restore = request.face_restore
        faces = resolve_faces(restore, self._models) if restore else None
        inputs: list[CheckedInput] = []
        cacheable_pixels, total_pixels = self._max_pixels, 0
        for index, image in enumerate(request.images):
            with _name_image_in_errors(f"images[{index}]"):
                content = self._fetch(image)
                picture = decode_upscale_input(content, self._max_pixels)
                width, height = picture.image.size
                self._check_sizes(request, request.output_format, width, height)
                text = infotext.upscaled(request, picture.parameters)
                check_parameters(request.output_format, text)
            size = upscale_size(width, height, request)
            total_pixels += max(width * height, size.width * size.height)
            counted = f"images[0] to images[{index}], before or after the upscale,"
            self._check_total(counted, total_pixels)
            cacheable_pixels -= width * height
            decoded = picture if cacheable_pixels >= 0 else None
            inputs.append(CheckedInput(content, width, height, decoded))
        return UpscaleJob(request, tuple(inputs), faces)

    def check_generated(self, request: GenerateRequest, width: int, height: int) -> None:
        """Check that generated pictures of this size can be stored, upscaled and encoded.

        Raises:
            UnknownUpscaler: the upscale names an upscaler that does not exist.
            UnsupportedSize, TooManyPixels: one picture, or all of them, would be too large.
            InvalidRequest: a side is too long for `output_format`.
        """
        if request.upscale is None:
            _check_sides("picture", width, height, request.output_format)
            # With `only_masked` every output has the size of the initial image, however small the
            # region that is generated.
            self._check_total("pictures", request.num_images * width * height)
            return
        self._check_upscalers(request.upscale)
        self._check_sizes(request.upscale, request.output_format, width, height)
        size = upscale_size(width, height, request.upscale)
        self._check_total("upscaled pictures", request.num_images * size.width * size.height)

    def _check_upscalers(self, upscale: UpscalePass) -> None:
        for name in upscale.upscalers:
            if name not in PIXEL_MODES:
                self._models.find("upscaler", name)

    def _check_total(self, what: str, pixels: int) -> None:
        if pixels > _MAX_TOTAL_FACTOR * self._max_pixels:
            raise TooManyPixels(what, pixels, _MAX_TOTAL_FACTOR * self._max_pixels)

    def _check_sizes(
        self, upscale: UpscalePass, output_format: ImageFormat, width: int, height: int
    ) -> None:
        size = upscale_size(width, height, upscale)
        enlarged = size.enlarged_width, size.enlarged_height
        check_pixels("upscaled picture", *enlarged, self._max_pixels)
        _check_sides("upscaled picture", size.width, size.height, output_format)


def check_pixels(what: str, width: int, height: int, max_pixels: int) -> None:
    """Raise `UnsupportedSize` if a picture has too many pixels."""
    if width * height > max_pixels:
        raise UnsupportedSize(what, width, height, max_pixels)


def _check_sides(what: str, width: int, height: int, output_format: ImageFormat) -> None:
    side, longest = max(width, height), MAX_SIDE_PX[output_format]
    if side > longest:
        others = [name for name, limit in MAX_SIDE_PX.items() if side <= limit]
        raise InvalidRequest(
            f"{what} {width}x{height} is too long for output_format {output_format}, which allows "
            f"sides of at most {longest} pixels; formats that allow it: {', '.join(others)}"
        )


@contextmanager
def _name_image_in_errors(what: str) -> Generator[None]:
    """Prefix errors with the image of the request that they are about."""
    try:
        yield
    except UnsupportedSize as error:
        subject, *sizes = error.args
        raise UnsupportedSize(f"{what}: {subject}", *sizes) from error
    except InvalidRequest as error:
        raise type(error)(f"{what}: {error}") from error
