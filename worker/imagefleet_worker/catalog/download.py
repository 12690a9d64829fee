"""An object of the bucket, downloaded to a file and checked."""

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


def download(bucket: ModelBucket, file: RemoteFile, part: Path, step: Callable[[], None]) -> str:
    """Have all of the object in `part`, beginning with what an earlier download left there.

    Args:
        part: stays, to be gone on with, where the bucket breaks off or `step` raises.
        step: called at the beginning and whenever the file has grown.

    Returns:
        Its SHA-256 in hexadecimal.

    Raises:
        CorruptFile: it is not what is published of it.
        StorageUnavailable: the bucket is away, the object was replaced, or what was left of an
            earlier download was damaged.
    """
    started_s = monotonic()
    step()
    published = read_checksums(bucket, file)
    # Without a hash, nobody could tell what a crash of the host left in a broken download.
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
            step()
        size_bytes = stream.tell()
        stream.flush()
        os.fsync(stream.fileno())
    fault = digest.fault()
    if fault or size_bytes != file.size_bytes:
        part.unlink()
        url = bucket.url_of(file)
        if resumed_at:
            raise StorageUnavailable(f"{url}: what was fetched before is damaged; fetched anew")
        raise CorruptFile(f"{url} is damaged: {fault}")
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


def bytes_there(part: Path) -> int:
    """How much a download has so far; 0 where it has not begun, or is done and was renamed."""
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


class _Digest:
    """Of a content that comes by and by; MD5 only where nothing better is published."""

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

    def fault(self) -> str | None:
        """How the content differs from what is published of it."""
        if self._published.sha256 not in (None, self.sha256):
            return f"its SHA-256 is {self.sha256}, published is {self._published.sha256}"
        if self._md5 is not None and self._md5.hexdigest() != self._published.md5:
            return f"its MD5 is {self._md5.hexdigest()}, its ETag {self._published.md5}"
        return None
