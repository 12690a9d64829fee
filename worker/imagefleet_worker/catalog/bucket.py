"""Lists and reads model files in an S3 bucket."""

import logging
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import PurePosixPath
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from imagefleet_shared.errors import FileUnavailable, ImagefleetError, StorageUnavailable
from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.storage import s3_client
from imagefleet_worker.weights.safetensors_header import MAX_HEADER_BYTES

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

logger = logging.getLogger(__name__)

LISTING_TTL_S = 10
"""Listings are cached this long, so a replaced file is noticed this late at most."""
PART_BYTES = 16 * 2**20
_MAX_CONCURRENT_PARTS = 4
_HEADER_GUESS_BYTES = 64 * 2**10
_LENGTH_BYTES = 8

_GONE = {"NoSuchKey", "404", "PreconditionFailed", "412", "InvalidRange", "416"}
# Encrypted with its owner's key, or archived: retrying does not help. Denied access is not among
# these: it may be temporary, as while credentials are rotated.
_UNREADABLE = {"InvalidRequest", "InvalidArgument", "400", "InvalidObjectState"}


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A version of an object.

    Attributes:
        path: relative to the prefix, such as ``Lora/style.safetensors``.
        etag: changes with the content.
        size_bytes: of the object.
        modified_ns: nanoseconds since the epoch; S3 knows whole seconds.
    """

    path: PurePosixPath
    etag: str
    size_bytes: int
    modified_ns: int


class ModelBucket:
    """Reads a prefix of a bucket; safe to use from several threads.

    Args:
        settings: endpoint and region, as for the object store; credentials as there.
        url: ``s3://bucket[/prefix]``.
    """

    def __init__(self, settings: StorageSettings, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise ImagefleetError(f"models_url must be s3://bucket[/prefix], given {url!r}")
        self.url = url.rstrip("/")
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._s3 = s3_client(settings, settings.s3_endpoint_url)
        self._listing: tuple[RemoteFile, ...] | None = None
        self._listed_s = -inf
        self._lock = Lock()

    def listing(self, max_age_s: float = LISTING_TTL_S) -> tuple[RemoteFile, ...]:
        """All objects under the prefix; the last known listing while the store is unavailable.

        Raises:
            StorageUnavailable: the store is unavailable and there is no earlier listing.
        """
        with self._lock:
            if self._listing is None or monotonic() > self._listed_s + max_age_s:
                try:
                    self._listing = tuple(self._list())
                except StorageUnavailable as exc:
                    if self._listing is None:
                        raise
                    logger.warning(
                        "using the last known model listing: %s",
                        exc,
                        extra={"action": "list_models"},
                    )
                self._listed_s = monotonic()
            return self._listing

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Read a byte range of exactly this version, ``end`` excluded.

        Raises:
            StorageUnavailable: the store is unavailable or denies access, or the object was
                replaced or removed, in which case the listing is refreshed.
            FileUnavailable: it is encrypted with a key that the store lacks, or archived.
        """
        with self._s3_errors_translated(file):
            response = self._s3.get_object(
                Bucket=self._bucket,
                Key=self._key(file),
                IfMatch=file.etag,
                Range=f"bytes={start}-{end - 1}",
            )
            content = response["Body"].read()
        if len(content) != end - start:
            raise StorageUnavailable(
                f"{self.url_of(file)}: {len(content)} bytes instead of {end - start}"
            )
        return content

    def read_header(self, file: RemoteFile) -> bytes:
        """The first bytes, including the whole header of a .safetensors file; raises as `read`."""
        if not file.size_bytes:
            return b""
        content = self.read(file, 0, min(file.size_bytes, _HEADER_GUESS_BYTES))
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        end = min(file.size_bytes, _LENGTH_BYTES + length)
        if length <= MAX_HEADER_BYTES and end > len(content):
            content += self.read(file, len(content), end)
        return content

    def chunks(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """The version's bytes from `start` on, in order; some parts are prefetched.

        Raises as `read`.
        """
        pool = ThreadPoolExecutor(_MAX_CONCURRENT_PARTS, thread_name_prefix="fetch")
        pending: deque[Future[bytes]] = deque()
        try:
            for offset in range(start, file.size_bytes, PART_BYTES):
                end = min(offset + PART_BYTES, file.size_bytes)
                pending.append(pool.submit(self.read, file, offset, end))
                if len(pending) > _MAX_CONCURRENT_PARTS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def head(self, file: RemoteFile) -> "HeadObjectOutputTypeDef":
        """The object metadata of exactly this version, with checksums; raises as `read`."""
        with self._s3_errors_translated(file):
            return self._s3.head_object(
                Bucket=self._bucket,
                Key=self._key(file),
                IfMatch=file.etag,
                ChecksumMode="ENABLED",
            )

    def url_of(self, file: RemoteFile) -> str:
        """The object's URL, for messages."""
        return f"{self.url}/{file.path}"

    def _list(self) -> Iterator[RemoteFile]:
        pages = self._s3.get_paginator("list_objects_v2")
        with self._s3_errors_translated():
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for entry in page.get("Contents", []):
                    assert "Key" in entry, "S3 names every object"
                    assert "ETag" in entry, "and its version"
                    assert "LastModified" in entry, "and its time"
                    key = entry["Key"].removeprefix(self._prefix)
                    path = PurePosixPath(key)
                    # Keys that are not plain file paths ("a//b", "folder/") are skipped.
                    if path.parts and str(path) == key:
                        yield RemoteFile(
                            path=path,
                            etag=entry["ETag"],
                            size_bytes=entry.get("Size", 0),
                            modified_ns=int(entry["LastModified"].timestamp()) * 10**9,
                        )

    def _key(self, file: RemoteFile) -> str:
        return f"{self._prefix}{file.path}"

    @contextmanager
    def _s3_errors_translated(self, file: RemoteFile | None = None) -> Generator[None]:
        name = self.url if file is None else self.url_of(file)
        try:
            yield
        except ClientError as exc:
            code = exc.response.get("Error", {}).get("Code")
            if file is not None and code in _GONE:
                self._listed_s = -inf
                raise StorageUnavailable(f"{name} was replaced or removed just now") from exc
            if file is not None and code in _UNREADABLE:
                raise FileUnavailable(f"{name} cannot be read: {exc}") from exc
            raise StorageUnavailable(f"{name}: {exc}") from exc
        except BotoCoreError as exc:
            raise StorageUnavailable(f"{name}: {exc}") from exc
