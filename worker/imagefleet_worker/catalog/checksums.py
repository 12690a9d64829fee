"""Published checksums of an object, to verify a download against."""

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.catalog.bucket import ModelBucket, RemoteFile

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_MD5 = re.compile(r"[0-9a-f]{32}")
_SIDECAR_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """Hashes in hexadecimal; None if not published."""

    sha256: str | None
    md5: str | None

    @property
    def known(self) -> bool:
        """Whether there is a hash to verify against."""
        return bool(self.sha256 or self.md5)


def read_checksums(bucket: ModelBucket, file: RemoteFile) -> Checksums:
    """Read the SHA-256 from metadata `sha256`, S3's checksum or a `<file>.sha256` sidecar.

    The ETag is the MD5 unless the upload was multipart or encrypted with a KMS key.

    Raises:
        CorruptFile: the sources disagree, or the sidecar does not begin with a SHA-256.
        FileUnavailable, StorageUnavailable: as `ModelBucket.read`.
    """
    head = bucket.head(file)
    stated = {
        "metadata": head["Metadata"].get("sha256", "").lower(),
        "checksum": _s3_sha256(head),
        "file beside it": _sidecar_sha256(bucket, file),
    }
    stated = {source: digest for source, digest in stated.items() if digest}
    if len(set(stated.values())) > 1:
        raise CorruptFile(f"{bucket.url_of(file)} has several SHA-256: {stated}")
    etag = file.etag.strip('"')
    etag_is_md5 = head.get("ServerSideEncryption", "AES256") == "AES256"
    return Checksums(
        sha256=next(iter(stated.values()), None),
        md5=etag if etag_is_md5 and _MD5.fullmatch(etag) else None,
    )


def _s3_sha256(head: "HeadObjectOutputTypeDef") -> str:
    """S3's SHA-256 of the whole object; a multipart upload's ("...-12") is a composite: ignored."""
    stated = head.get("ChecksumSHA256", "")
    return "" if "-" in stated else base64.b64decode(stated).hex()


def _sidecar_sha256(bucket: ModelBucket, file: RemoteFile) -> str:
    path = file.path.with_name(f"{file.path.name}.sha256")
    sidecar = next((other for other in bucket.listing() if other.path == path), None)
    if sidecar is None:
        return ""
    text = bucket.read(sidecar, 0, min(sidecar.size_bytes, _SIDECAR_BYTES)).decode(errors="replace")
    found = _SHA256.match(text)
    if found is None:
        raise CorruptFile(f"{bucket.url_of(sidecar)} does not begin with a SHA-256")
    return found[0].lower()
