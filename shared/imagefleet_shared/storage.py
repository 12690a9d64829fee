"""The object store: images, inputs and manifests under one prefix, each key written once.

`S3Store` works with any S3-compatible service that honours `If-None-Match` (AWS, SeaweedFS, R2,
Ceph); `FileStore` gives the same guarantees in a directory. Both pass the same tests.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENAMETOOLONG
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import sleep
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from imagefleet_shared.errors import ImagefleetError, StorageUnavailable
from imagefleet_shared.settings import StorageSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A store that rejects a key has nothing under it, and never will. Not `InvalidArgument`: some
# stores answer so to wrong credentials.
_REFUSED = {"InvalidRequest", "InvalidURI", "KeyTooLongError", "XMinioInvalidObjectName"}
_ABSENT = {"NoSuchKey", "404", *_REFUSED}
_PRESENT = "PreconditionFailed"
_IN_FLIGHT = {"ConditionalRequestConflict", "404"}
"""A concurrent write of the key is in flight, or a present object was gone when looked up."""
_PAUSES_S = (0.1, 0.2, 0.4, 0.8)
"""Pauses before a write is retried after such a conflict."""


@dataclass(frozen=True)
class StoredObject:
    """An object in the store."""

    key: str
    url: str
    sha256: str
    size_bytes: int


class ObjectStore(Protocol):
    """The operations that Imagefleet needs; keys are relative to the store's prefix."""

    def put_new(self, key: str, content: bytes, content_type: str) -> StoredObject:
        """Write an object unless the key exists; the first writer wins.

        Returns:
            The object under the key now: the new one, or the one that was there before.

        Raises:
            StorageUnavailable: the store cannot be reached or refuses.
        """
        ...

    def find(self, key: str) -> bytes | None:
        """An object's content; None if there is no such key, or it is not a valid one.

        Raises:
            StorageUnavailable: the store cannot be reached or refuses.
        """
        ...

    def presigned_url(self, key: str, expires_s: int) -> str:
        """A URL from which anyone may read the object for `expires_s` seconds."""
        ...


def open_store(settings: StorageSettings) -> ObjectStore:
    """The store that `settings.storage_url` names.

    Raises:
        ImagefleetError: the URL is neither `s3://bucket[/prefix]` nor `file:///directory`.
    """
    url = urlsplit(settings.storage_url)
    if url.scheme == "s3" and url.netloc:
        return S3Store(settings, url.netloc, url.path.strip("/"))
    if url.scheme == "file" and not url.netloc and url.path.strip("/"):
        return FileStore(Path(url.path))
    raise ImagefleetError(
        "storage_url must be s3://bucket[/prefix] or file:///directory, "
        f"given {settings.storage_url!r}"
    )


class S3Store:
    """Objects in a bucket. One instance serves all threads of a process."""

    def __init__(self, settings: StorageSettings, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._s3 = s3_client(settings, settings.s3_endpoint_url)
        public = settings.s3_public_endpoint_url
        self._public_s3 = s3_client(settings, public) if public else self._s3

    def put_new(self, key: str, content: bytes, content_type: str) -> StoredObject:
        """See `ObjectStore.put_new`; the digest is stored as the object's metadata."""
        with self._translate_errors():
            for pause_s in _PAUSES_S:
                try:
                    return self._put(key, content, content_type)
                except ClientError as exc:
                    if _code(exc) not in _IN_FLIGHT:
                        raise
                sleep(pause_s)
            return self._put(key, content, content_type)

    def find(self, key: str) -> bytes | None:
        """See `ObjectStore.find`."""
        with self._translate_errors():
            try:
                found = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + key)
                return found["Body"].read()
            except ClientError as exc:
                if _code(exc) in _ABSENT:
                    return None
                raise

    def presigned_url(self, key: str, expires_s: int) -> str:
        """See `ObjectStore.presigned_url`; the signature allows 1 to 604 800 seconds."""
        return self._public_s3.generate_presigned_url(
            "get_object",
            Params={"Bucket": self._bucket, "Key": self._prefix + key},
            ExpiresIn=expires_s,
        )

    def _put(self, key: str, content: bytes, content_type: str) -> StoredObject:
        digest = sha256(content).hexdigest()
        try:
            self._s3.put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=content,
                ContentType=content_type,
                Metadata={"sha256": digest},
                IfNoneMatch="*",
            )
        except ClientError as exc:
            if _code(exc) != _PRESENT:
                raise
            head = self._s3.head_object(Bucket=self._bucket, Key=self._prefix + key)
            return self._stored(key, head["Metadata"].get("sha256", ""), head["ContentLength"])
        return self._stored(key, digest, len(content))

    def _stored(self, key: str, digest: str, size_bytes: int) -> StoredObject:
        return StoredObject(key, f"s3://{self._bucket}/{self._prefix}{key}", digest, size_bytes)

    @contextmanager
    def _translate_errors(self) -> Generator[None]:
        try:
            yield
        except (BotoCoreError, ClientError) as exc:
            raise StorageUnavailable(f"bucket {self._bucket!r}: {exc}") from exc


class FileStore:
    """Objects as files in a directory that every host sees."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def put_new(self, key: str, content: bytes, content_type: str) -> StoredObject:
        """See `ObjectStore.put_new`; a hard link makes the file appear whole, and only once."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, prefix=".part-") as part:
                part.write(content)
                part.flush()
                os.fsync(part.fileno())
                Path(part.name).chmod(0o644)
                try:
                    path.hardlink_to(part.name)
                except FileExistsError:
                    content = path.read_bytes()
        except OSError as exc:
            raise StorageUnavailable(f"{path}: {exc}") from exc
        return StoredObject(key, path.as_uri(), sha256(content).hexdigest(), len(content))

    def find(self, key: str) -> bytes | None:
        """See `ObjectStore.find`."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as exc:
            if exc.errno == ENAMETOOLONG:
                return None
            raise StorageUnavailable(f"{self._root}: {exc}") from exc

    def presigned_url(self, key: str, expires_s: int) -> str:
        """The file's URL; it does not expire."""
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        path = (self._root / key).resolve()
        if not path.is_relative_to(self._root):
            raise StorageUnavailable(f"key {key!r} leaves the store")
        return path


def s3_client(settings: StorageSettings, endpoint_url: str | None) -> "S3Client":
    """A client of the service that the settings name; it may be shared between threads."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.s3_region,
        config=Config(
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=32,
            retries={"mode": "standard", "max_attempts": 3},
            signature_version="s3v4",
            s3={"addressing_style": "path" if settings.s3_path_style else "virtual"},
            # Checksums beyond what the call needs break some S3-compatible services.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _code(exc: ClientError) -> str:
    return exc.response.get("Error", {}).get("Code", "")
