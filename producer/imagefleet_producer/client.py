"""The client, with which apps enqueue jobs."""

import logging
import math
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self, cast
from uuid import uuid4

from kombu.exceptions import OperationalError
from PIL import Image, ImageOps

from imagefleet_producer.job import Job, broker_errors
from imagefleet_shared.broker import connect, make_celery, publish
from imagefleet_shared.errors import InvalidImage, InvalidRequest
from imagefleet_shared.field_types import ImageFormat, JobKind, Priority
from imagefleet_shared.image_files import open_image
from imagefleet_shared.ledger import Ledger
from imagefleet_shared.presence import WorkerInfo, live_workers
from imagefleet_shared.request_parts import ImageRef
from imagefleet_shared.requests import GenerateRequest, Request, UpscaleRequest
from imagefleet_shared.settings import BrokerSettings, StorageSettings
from imagefleet_shared.storage import open_store
from imagefleet_shared.storage_keys import CONTENT_TYPES, input_key

logger = logging.getLogger(__name__)

_RETRIES = 2
"""An unreachable Redis is reported after about 150 ms of retries, or the connect timeout."""
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")


class Client:
    """Enqueues jobs and finds them again. Thread-safe; make one per process.

    Args:
        broker: where Redis is; None reads the environment.
        storage: where images are; None reads the environment.

    Raises:
        ImagefleetError: the URL of Redis or of the store is invalid.
    """

    def __init__(
        self, broker: BrokerSettings | None = None, storage: StorageSettings | None = None
    ) -> None:
        broker = broker or BrokerSettings()
        self._redis = connect(broker, retries=_RETRIES)
        self._ledger = Ledger(self._redis, record_ttl_s=broker.record_ttl_s)
        self._celery = make_celery(broker)
        self._store = open_store(storage or StorageSettings())

    def generate(
        self,
        request: GenerateRequest,
        *,
        priority: Priority = "normal",
        time_limit_s: float | None = None,
    ) -> Job:
        """Enqueue a generate job.

        Args:
            request: what to generate.
            priority: jobs of a higher priority run first.
            time_limit_s: the job fails with `JobTimeout` unless it ends within so many seconds
                from now, queueing included; None: no limit.

        Raises:
            InvalidRequest: the time limit is not a finite number above 0.
            BrokerUnavailable: Redis cannot be reached or refuses; whether the job was enqueued is
                not known; the message has its id, which can be passed to `job`.
        """
        return self._submit("generate", request, priority, time_limit_s)

    def upscale(
        self,
        request: UpscaleRequest,
        *,
        priority: Priority = "normal",
        time_limit_s: float | None = None,
    ) -> Job:
        """Enqueue an upscale job; arguments and errors as `generate`."""
        return self._submit("upscale", request, priority, time_limit_s)

    def job(self, job_id: str) -> Job:
        """A handle of a job that was enqueued before, in this or another process.

        The id is not looked up: the handle's methods raise `JobNotFound` if there is no such job.
        """
        return Job(job_id, self._ledger, self._store)

    def put_image(self, image: Path | str | bytes | Image.Image) -> ImageRef:
        """Upload an input image.

        Args:
            image: a path, a file's bytes (PNG, JPEG or WebP), or a PIL image, which is stored as
                PNG, upright; modes that PNG lacks are converted to RGB (CMYK) or RGBA.

        Raises:
            InvalidImage: the file is not an image of an allowed format; the PIL image cannot be
                read, or its values have no fixed range (modes I and F).
            StorageUnavailable: the store cannot be reached or refuses.
            OSError: the path cannot be read.
        """
        content, image_format = _read(image)
        key = input_key(content, image_format)
        self._store.put_new(key, content, CONTENT_TYPES[image_format])
        return ImageRef(key=key)

    def stored(self, key: str) -> bytes | None:
        """An object of the store: an image, or a job's manifest; None if there is none.

        Raises:
            StorageUnavailable: the store cannot be reached or refuses.
        """
        return self._store.find(key)

    def workers(self) -> list[WorkerInfo]:
        """The live workers, with the models that each can load.

        Raises:
            BrokerUnavailable: Redis cannot be reached or refuses.
        """
        with broker_errors():
            return live_workers(self._redis)

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._celery.close()
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(
        self, kind: JobKind, request: Request, priority: Priority, time_limit_s: float | None
    ) -> Job:
        if time_limit_s is not None and not 0 < time_limit_s < math.inf:
            raise InvalidRequest(
                f"time_limit_s must be a finite number above 0, given {time_limit_s}"
            )
        job = self.job(uuid4().hex)
        with broker_errors(f"; whether job {job.id} was enqueued is not known"):
            wakeup = self._ledger.submit(job.id, kind, request, priority, time_limit_s)
        try:
            publish(self._celery, wakeup)
        except OperationalError:
            # The job is in the ledger, hence enqueued; the reconciler publishes the message.
            logger.warning("job %s is enqueued, its message was not published", job.id)
        return job


def _read(image: Path | str | bytes | Image.Image) -> tuple[bytes, ImageFormat]:
    if isinstance(image, Image.Image):
        return _png(image), "png"
    content = image if isinstance(image, bytes) else Path(image).read_bytes()
    image_format = open_image(content).format or ""
    return content, cast(ImageFormat, image_format.lower())


def _png(image: Image.Image) -> bytes:
    """The image as PNG, upright by its EXIF orientation, as a worker would decode its file."""
    what = f"image ({image.mode}, {image.width}x{image.height})"
    if image.mode not in _PNG_MODES and image.mode.startswith(("I", "F")):
        raise InvalidImage(f"{what} has no fixed range of values; convert it to L, RGB or I;16")
    try:
        upright = ImageOps.exif_transpose(image)
        profile = upright.info.get("icc_profile")
        if upright.mode not in _PNG_MODES:
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
            profile = None  # It belongs to the former colour space.
        file = BytesIO()
        upright.save(file, "PNG", compress_level=1, icc_profile=profile)
    except Exception as error:  # as open_image: the file may not have been decoded yet
        raise InvalidImage(f"{what} cannot be read: {error}") from error
    return file.getvalue()
