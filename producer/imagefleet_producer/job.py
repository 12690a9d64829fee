"""Handles of jobs: progress, result and cancellation. A job's id is all that a handle needs."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from redis.exceptions import RedisError

from imagefleet_shared.errors import BrokerUnavailable, FileUnavailable
from imagefleet_shared.ledger import Ledger
from imagefleet_shared.results import JobResult
from imagefleet_shared.status import JobStatus, Progress
from imagefleet_shared.storage import ObjectStore

PREVIEW_SCALE = 8
"""Previews have the size of the latents and are enlarged by this factor."""


@contextmanager
def broker_errors(consequence: str = "") -> Generator[None]:
    """Translate Redis's errors (unreachable, full, read-only) into `BrokerUnavailable`."""
    try:
        yield
    except RedisError as exc:
        message = f"Redis cannot be reached or refuses: {exc}{consequence}"
        raise BrokerUnavailable(message) from exc


@dataclass(frozen=True)
class Job:
    """A job on the fleet. Every method may raise `BrokerUnavailable`."""

    id: str
    _ledger: Ledger
    _store: ObjectStore

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def status(self) -> JobStatus:
        """The job's status.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
        """
        return self.progress().status

    def progress(self) -> Progress:
        """The job's progress.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
        """
        with broker_errors():
            return self._ledger.read_or_expire(self.id).progress

    def events(self, timeout: float | None = None) -> Iterator[Progress]:
        """The job's progress now and after every change, until it has ended.

        Args:
            timeout: seconds until `JobTimeout`; None waits as long as it takes. Raises
                `BrokerUnavailable` instead if Redis is unreachable then, or was for a minute.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
            JobTimeout: the job has not ended in time; it continues.
        """
        with broker_errors():
            for record in self._ledger.watch(self.id, timeout):
                yield record.progress

    def result(self, timeout: float | None = None) -> JobResult:
        """Wait for the job and return its result.

        Args:
            timeout: seconds until `JobTimeout`; None waits as long as it takes. Raises
                `BrokerUnavailable` instead if Redis is unreachable then, or was for a minute.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
            JobTimeout: the job has not ended in time (it continues), or exceeded its own limit.
            JobCanceled: it was canceled.
            InvalidRequest: the worker refused the request.
            WorkerFailure: the fleet failed.
        """
        with broker_errors():
            for record in self._ledger.watch(self.id, timeout):
                if record.status.ended:
                    return record.result()
        raise AssertionError("watch ends only when the job has")

    def cancel(self) -> JobStatus:
        """Cancel the job: a queued one ends now, a running one within a step.

        Returns:
            The status before the cancel; a job that had ended stays as it is.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
        """
        with broker_errors():
            return self._ledger.cancel(self.id)

    def preview(self) -> Image.Image | None:
        """A preview of the job's unfinished images, side by side, in approximate colours.

        Calling this makes the worker produce one at its next step; call again to get it. None if
        there is none: not yet, or no longer (previews expire after a minute).
        """
        with broker_errors():
            content = self._ledger.preview(self.id)
        if content is None:
            return None
        small = Image.open(BytesIO(content))
        size = (small.width * PREVIEW_SCALE, small.height * PREVIEW_SCALE)
        return small.resize(size, Image.Resampling.BICUBIC)

    def files(self, timeout: float | None = None) -> list[bytes]:
        """Wait for the job and fetch its image files from the store.

        Raises:
            FileUnavailable: an image is no longer in the store.
            ImagefleetError: as `result`.
        """
        return [self._fetch(image.key) for image in self.result(timeout).images]

    def images(self, timeout: float | None = None) -> list[Image.Image]:
        """Wait for the job and fetch its images, decoded.

        Raises:
            FileUnavailable: an image is no longer in the store.
            ImagefleetError: as `result`.
        """
        images: list[Image.Image] = []
        for content in self.files(timeout):
            image = Image.open(BytesIO(content))
            image.load()
            images.append(image)
        return images

    def urls(self, timeout: float | None = None, expires_s: int = 3600) -> list[str]:
        """Wait for the job and make URLs from which anyone may read its images for a while.

        Args:
            timeout: as in `result`.
            expires_s: how long the URLs work, 1 to 604 800 seconds.

        Raises:
            ImagefleetError: as `result`.
        """
        images = self.result(timeout).images
        return [self._store.presigned_url(image.key, expires_s) for image in images]

    def _fetch(self, key: str) -> bytes:
        content = self._store.find(key)
        if content is None:
            raise FileUnavailable(f"{key} of job {self.id} is no longer in the store")
        return content
