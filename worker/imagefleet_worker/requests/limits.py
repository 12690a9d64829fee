"""What is to be enlarged and written, checked before the device is touched."""

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
"""Times `max_pixels`: what all pictures of a request may have, as the files of all lie in memory
until the last one is done. By default that is 64 of 2048 x 2048."""


class InputChecker:
    """Checks upscales and their pictures.

    Args:
        models: where upscalers are.
        fetch: gives a picture's file; raises InvalidRequest where there is none.
        max_pixels: of a picture that is read, and of one that an upscale gives; those of a request
            may have four times as many together, each counted by the larger of the two.
    """

    def __init__(
        self, models: ModelStore, fetch: Callable[[ImageRef], bytes], max_pixels: int
    ) -> None:
        self._models, self._fetch, self._max_pixels = models, fetch, max_pixels

    def check(self, request: UpscaleRequest) -> UpscaleJob:
        """The job, once each of its pictures was decoded; refusals name the picture.

        Raises:
            InvalidRequest: something does not exist, does not fit, or cannot be read.
            FileUnavailable, WorkerFailure: as `resolve_faces`.
            StorageUnavailable: a picture cannot be fetched.
        """
        self._check_upscalers(request)
        restore = request.face_restore
        faces = resolve_faces(restore, self._models) if restore else None
        inputs: list[CheckedInput] = []
        room, total = self._max_pixels, 0
        for place, image in enumerate(request.images):
            with _named(f"images[{place}]"):
                content = self._fetch(image)
                picture = decode_upscale_input(content, self._max_pixels)
                width, height = picture.image.size
                self._check_sizes(request, request.output_format, width, height)
                text = infotext.upscaled(request, picture.parameters)
                check_parameters(request.output_format, text)
            size = upscale_size(width, height, request)
            total += max(width * height, size.width * size.height)
            self._check_total(f"images[0] to images[{place}], before or after the upscale,", total)
            room -= width * height
            inputs.append(CheckedInput(content, width, height, picture if room >= 0 else None))
        return UpscaleJob(request, tuple(inputs), faces)

    def check_drawn(self, request: GenerateRequest, width: int, height: int) -> None:
        """Refuse drawn pictures of that size that cannot be kept, enlarged or written as asked for.

        Raises:
            UnknownUpscaler, UnsupportedSize, TooManyPixels: as their names say.
            InvalidRequest: a side is too long for `output_format`.
        """
        if request.upscale is None:
            _check_sides("picture", width, height, request.output_format)
            # With `only_masked` each one is the whole initial picture, however small what is drawn.
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
    """Refuse a picture of more pixels; raises `UnsupportedSize`."""
    if width * height > max_pixels:
        raise UnsupportedSize(what, width, height, max_pixels)


def _check_sides(what: str, width: int, height: int, output_format: ImageFormat) -> None:
    side, longest = max(width, height), MAX_SIDE_PX[output_format]
    if side > longest:
        others = [name for name, most in MAX_SIDE_PX.items() if side <= most]
        raise InvalidRequest(
            f"{what} {width}x{height} is too long for output_format {output_format}, which allows "
            f"sides of at most {longest} pixels; formats that allow it: {', '.join(others)}"
        )


@contextmanager
def _named(what: str) -> Generator[None]:
    """Let refusals say which picture of the request they are about."""
    try:
        yield
    except UnsupportedSize as error:
        subject, *sizes = error.args
        raise UnsupportedSize(f"{what}: {subject}", *sizes) from error
    except InvalidRequest as error:
        raise type(error)(f"{what}: {error}") from error
