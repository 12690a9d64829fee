"""A job's handle: where it stands, what came out. It can be made again from the id anywhere."""

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
"""A preview comes at the size of the latents."""


@contextmanager
def broker_errors(consequence: str = "") -> Generator[None]:
    """Translate a Redis that is lost, or that refuses (full, read-only), into our own error."""
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
        """Where the job stands.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
        """
        return self.progress().status

    def progress(self) -> Progress:
        """How far the job is.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
        """
        with broker_errors():
            return self._ledger.read_or_expire(self.id).progress

    def events(self, timeout: float | None = None) -> Iterator[Progress]:
        """The job's progress now and after every change, until it has ended.

        Args:
            timeout: seconds until `JobTimeout`; None waits as long as it takes.
                `BrokerUnavailable` instead where Redis is away then, or was for a minute.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
            JobTimeout: the job has not ended in time; it goes on.
        """
        with broker_errors():
            for record in self._ledger.watch(self.id, timeout):
                yield record.progress

    def result(self, timeout: float | None = None) -> JobResult:
        """Wait for the job and give its result.

        Args:
            timeout: seconds until `JobTimeout`; None waits as long as it takes.
                `BrokerUnavailable` instead where Redis is away then, or was for a minute.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
            JobTimeout: the job has not ended in time (it goes on), or it exceeded its own limit.
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
        """Ask for the job's end: a queued one ends now, a running one within a step.

        Returns:
            Where the job stood; one that had ended stays as it is.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
        """
        with broker_errors():
            return self._ledger.cancel(self.id)

    def preview(self) -> Image.Image | None:
        """What the job's pictures look like so far, side by side, in rough colours.

        Asking makes the worker draw it at its next step; ask again to see it. None where there is
        none: not yet, or no longer (a minute after the last one).
        """
        with broker_errors():
            sketch = self._ledger.preview(self.id)
        if sketch is None:
            return None
        small = Image.open(BytesIO(sketch))
        size = (small.width * PREVIEW_SCALE, small.height * PREVIEW_SCALE)
        return small.resize(size, Image.Resampling.BICUBIC)

    def files(self, timeout: float | None = None) -> list[bytes]:
        """Wait for the job and fetch its pictures as the files that lie in the store.

        Raises:
            FileUnavailable: a picture is gone from the store.
            ImagefleetError: as `result`.
        """
        return [self._fetch(image.key) for image in self.result(timeout).images]

    def images(self, timeout: float | None = None) -> list[Image.Image]:
        """Wait for the job and fetch its pictures, decoded.

        Raises:
            FileUnavailable: a picture is gone from the store.
            ImagefleetError: as `result`.
        """
        pictures: list[Image.Image] = []
        for content in self.files(timeout):
            picture = Image.open(BytesIO(content))
            picture.load()
            pictures.append(picture)
        return pictures

    def urls(self, timeout: float | None = None, expires_s: int = 3600) -> list[str]:
        """Wait for the job and make URLs from which anyone may read its pictures for a while.

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
