"""Downloads an object of the bucket to a file and verifies it."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from imagefleet_shared.errors import CorruptFile, StorageUnavailable
from imagefleet_worker import metrics
from imagefleet_worker.catalog.bucket import ModelBucket, RemoteFile
from imagefleet_worker.catalog.checksums import Checksums, read_checksums

logger = logging.getLogger(__name__)

_REREAD_BYTES = 2**20


def download(
    bucket: ModelBucket, file: RemoteFile, part: Path, on_progress: Callable[[], None]
) -> str:
    """Download the object to `part`, resuming an interrupted download.

    Args:
        part: kept for resuming if the bucket fails or `on_progress` raises.
        on_progress: called at the start and whenever the file has grown.

    Returns:
        Its SHA-256 in hexadecimal.

    Raises:
        CorruptFile: it does not match its published checksum or size.
        StorageUnavailable: the bucket is unavailable, the object was replaced, or the part that
            was resumed was damaged (it is deleted).
    """
    started_s = monotonic()
    on_progress()
    published = read_checksums(bucket, file)
    # Without a hash, damage to the part from a crash of the host would go unnoticed.
    if part.exists() and not published.known:
        part.unlink()
    digest = _Digest(published)
    with part.open("a+b") as stream:
        stream.seek(0)
        while chunk := stream.read(_REREAD_BYTES):
            digest.update(chunk)
        resumed_at = stream.tell()
        for chunk in bucket.chunks(file, resumed_at):
            stream.write(chunk)
            digest.update(chunk)
            on_progress()
        size_bytes = stream.tell()
        stream.flush()
        os.fsync(stream.fileno())
    mismatch = digest.mismatch()
    if mismatch or size_bytes != file.size_bytes:
        part.unlink()
        url = bucket.url_of(file)
        if resumed_at:
            raise StorageUnavailable(
                f"{url}: the interrupted download was damaged and is fetched anew"
            )
        raise CorruptFile(f"{url} is damaged: {mismatch}")
    metrics.MODEL_FETCHES.inc()
    metrics.MODEL_FETCHED_BYTES.inc(size_bytes - resumed_at)
    seconds = monotonic() - started_s
    logger.info(
        "fetched %s (%.2f GB) in %.1f s",
        file.path,
        size_bytes / 1e9,
        seconds,
        extra={"action": "fetch_model", "size_bytes": size_bytes},
    )
    return digest.sha256


def downloaded_bytes(part: Path) -> int:
    """Bytes downloaded so far; 0 if not started, or if complete and renamed."""
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


class _Digest:
    """Incremental digest of a download; MD5 only if no SHA-256 is published."""

    def __init__(self, published: Checksums) -> None:
        self._published = published
        self._sha256 = hashlib.sha256()
        self._md5 = None
        if published.sha256 is None and published.md5 is not None:
            self._md5 = hashlib.md5(usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        if self._md5 is not None:
            self._md5.update(chunk)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def mismatch(self) -> str | None:
        """How the content differs from the published checksum; None if it matches."""
        if self._published.sha256 not in (None, self.sha256):
            return f"its SHA-256 is {self.sha256}, published is {self._published.sha256}"
        if self._md5 is not None and self._md5.hexdigest() != self._published.md5:
            return f"its MD5 is {self._md5.hexdigest()}, its ETag {self._published.md5}"
        return None
