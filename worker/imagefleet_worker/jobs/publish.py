"""A job's pictures and its manifest in the object store, each written once."""

import logging
from collections.abc import Callable, Sequence
from hashlib import sha256
from time import monotonic, sleep
from typing import TypeVar

from imagefleet_shared.errors import StorageUnavailable
from imagefleet_shared.results import ImageResult, JobResult
from imagefleet_shared.storage import ObjectStore
from imagefleet_shared.storage_keys import CONTENT_TYPES, image_key, manifest_key
from imagefleet_worker.jobs.encode import Picture
from imagefleet_worker.jobs.leases import LeasedJob
from imagefleet_worker.jobs.spool import Spool

logger = logging.getLogger(__name__)

T = TypeVar("T")

STORE_RETRY_S = 1
STORE_PATIENCE_S = 600
"""How long an object store may be away before the jobs that need it fail."""


class Publisher:
    """Stores pictures and manifests, and waits for a store that is away.

    Every method raises `StorageUnavailable` once the store was away for `STORE_PATIENCE_S`, and as
    `HeldJob.check` where the job must stop.
    """

    def __init__(self, store: ObjectStore, spool: Spool) -> None:
        self._store = store
        self._spool = spool

    def find(self, leased: LeasedJob, folder: str) -> JobResult | None:
        """The result that an earlier attempt published in the folder; None: there is none."""
        manifest = retry_while_unavailable(leased, lambda: self._store.find(manifest_key(folder)))
        return None if manifest is None else JobResult.model_validate_json(manifest)

    def store(
        self, leased: LeasedJob, folder: str, pictures: Sequence[Picture]
    ) -> list[ImageResult]:
        """Store pictures; while the store is away they lie on local disk."""

        def store_all() -> list[ImageResult]:
            return [self._store_one(folder, *one) for one in enumerate(pictures)]

        leased.renew_now()
        try:
            return store_all()
        except StorageUnavailable:
            # The device is not asked twice for what waits here, not even after a restart.
            self._spool.save(leased.job.id, pictures)
            return retry_while_unavailable(leased, store_all)

    def publish(self, leased: LeasedJob, folder: str, result: JobResult) -> JobResult:
        """Write the manifest, unless another attempt was first: then that one's result counts."""
        key, content = manifest_key(folder), result.model_dump_json().encode()

        def publish_once() -> JobResult:
            stored = self._store.put_new(key, content, "application/json")
            if stored.sha256 == sha256(content).hexdigest():
                return result
            return JobResult.model_validate_json(self._store.find(key) or b"")

        leased.renew_now()
        return retry_while_unavailable(leased, publish_once)

    def _store_one(self, folder: str, index: int, picture: Picture) -> ImageResult:
        key = image_key(folder, index, picture.format)
        stored = self._store.put_new(key, picture.content, CONTENT_TYPES[picture.format])
        return ImageResult(
            key=stored.key,
            url=stored.url,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            width=picture.width,
            height=picture.height,
            seed=picture.seed,
            format=picture.format,
        )


def retry_while_unavailable(leased: LeasedJob, call: Callable[[], T]) -> T:
    """Call until the store answers, the job must stop, or patience ends.

    Raises:
        StorageUnavailable: the store was away for `STORE_PATIENCE_S`.
        JobCanceled, JobTimeout, LeaseLost, HandBack: as `HeldJob.check`.
    """
    give_up = monotonic() + STORE_PATIENCE_S
    while True:
        try:
            return call()
        except StorageUnavailable as exc:
            if monotonic() > give_up:
                raise
            logger.warning("job %s waits for the store: %s", leased.job.id, exc)
        leased.check_canceled()
        sleep(STORE_RETRY_S)
