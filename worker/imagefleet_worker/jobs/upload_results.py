"""Stores a job's images and its manifest in the object store, each written once."""

import logging
from collections.abc import Callable, Sequence
from hashlib import sha256
from time import monotonic, sleep
from typing import TypeVar

from imagefleet_shared.errors import StorageUnavailable
from imagefleet_shared.results import ImageResult, JobResult
from imagefleet_shared.storage import ObjectStore
from imagefleet_shared.storage_keys import CONTENT_TYPES, image_key, manifest_key
from imagefleet_worker.jobs.encode import EncodedImage
from imagefleet_worker.jobs.leases import LeasedJob
from imagefleet_worker.jobs.spool import Spool

logger = logging.getLogger(__name__)

T = TypeVar("T")

STORE_RETRY_S = 1
STORE_TIMEOUT_S = 600
"""How long the object store may be unavailable before the jobs that need it fail."""


class ResultUploader:
    """Stores images and manifests, and retries while the store is unavailable.

    Every method raises `StorageUnavailable` once the store was unavailable for `STORE_TIMEOUT_S`,
    and as `LeasedJob.check_canceled` if the job must stop.
    """

    def __init__(self, store: ObjectStore, spool: Spool) -> None:
        self._store = store
        self._spool = spool

    def find_published(self, leased: LeasedJob, folder: str) -> JobResult | None:
        """The result that an earlier attempt published in the folder; None if there is none."""
        manifest = retry_while_unavailable(leased, lambda: self._store.find(manifest_key(folder)))
        return None if manifest is None else JobResult.model_validate_json(manifest)

    def upload(
        self, leased: LeasedJob, folder: str, images: Sequence[EncodedImage]
    ) -> list[ImageResult]:
        """Store images; while the store is unavailable they are spooled to local disk."""

        def store_all() -> list[ImageResult]:
            return [self._upload_one(folder, index, image) for index, image in enumerate(images)]

        leased.renew_now()
        try:
            return store_all()
        except StorageUnavailable:
            # What is spooled need not be rendered again, not even after a restart.
            self._spool.save(leased.job.id, images)
            return retry_while_unavailable(leased, store_all)

    def publish_manifest(self, leased: LeasedJob, folder: str, result: JobResult) -> JobResult:
        """Write the manifest; if another attempt was first, its result is returned instead."""
        key, content = manifest_key(folder), result.model_dump_json().encode()

        def publish_once() -> JobResult:
            stored = self._store.put_new(key, content, "application/json")
            if stored.sha256 == sha256(content).hexdigest():
                return result
            return JobResult.model_validate_json(self._store.find(key) or b"")

        leased.renew_now()
        return retry_while_unavailable(leased, publish_once)

    def _upload_one(self, folder: str, index: int, image: EncodedImage) -> ImageResult:
        key = image_key(folder, index, image.format)
        stored = self._store.put_new(key, image.content, CONTENT_TYPES[image.format])
        return ImageResult(
            key=stored.key,
            url=stored.url,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            width=image.width,
            height=image.height,
            seed=image.seed,
            format=image.format,
        )


def retry_while_unavailable(leased: LeasedJob, call: Callable[[], T]) -> T:
    """Retry a call while the store is unavailable.

    Raises:
        StorageUnavailable: the store was unavailable for `STORE_TIMEOUT_S`.
        JobCanceled, JobTimeout, LeaseLost, Requeue: as `LeasedJob.check_canceled`.
    """
    deadline = monotonic() + STORE_TIMEOUT_S
    while True:
        try:
            return call()
        except StorageUnavailable as exc:
            if monotonic() > deadline:
                raise
            logger.warning("job %s waits for the store: %s", leased.job.id, exc)
        leased.check_canceled()
        sleep(STORE_RETRY_S)
