"""What is published of an object's content, to check a download by."""

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
_NOTE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """Hashes in hexadecimal; None where there is none."""

    sha256: str | None
    md5: str | None

    @property
    def known(self) -> bool:
        """Whether damage would be noticed."""
        return bool(self.sha256 or self.md5)


def read_checksums(bucket: ModelBucket, file: RemoteFile) -> Checksums:
    """What the content should be: metadata `sha256`, S3's checksum, or `<file>.sha256` beside it.

    An ETag is the MD5 of what was sent in one piece and not encrypted with a key of KMS.

    Raises:
        CorruptFile: two of them do not agree, or the file beside it does not begin with a SHA-256.
        FileUnavailable, StorageUnavailable: as `ModelBucket.read`.
    """
    head = bucket.head(file)
    stated = {
        "metadata": head["Metadata"].get("sha256", "").lower(),
        "checksum": _checksum(head),
        "file beside it": _beside(bucket, file),
    }
    stated = {source: digest for source, digest in stated.items() if digest}
    if len(set(stated.values())) > 1:
        raise CorruptFile(f"{bucket.url_of(file)} has several SHA-256: {stated}")
    etag = file.etag.strip('"')
    plain = head.get("ServerSideEncryption", "AES256") == "AES256"
    return Checksums(
        sha256=next(iter(stated.values()), None),
        md5=etag if plain and _MD5.fullmatch(etag) else None,
    )


def _checksum(head: "HeadObjectOutputTypeDef") -> str:
    """S3's own SHA-256 of the whole object; of many parts it has another sort ("...-12")."""
    stated = head.get("ChecksumSHA256", "")
    return "" if "-" in stated else base64.b64decode(stated).hex()


def _beside(bucket: ModelBucket, file: RemoteFile) -> str:
    path = file.path.with_name(f"{file.path.name}.sha256")
    note = next((other for other in bucket.listing() if other.path == path), None)
    if note is None:
        return ""
    text = bucket.read(note, 0, min(note.size_bytes, _NOTE_BYTES)).decode(errors="replace")
    found = _SHA256.match(text)
    if found is None:
        raise CorruptFile(f"{bucket.url_of(note)} does not begin with a SHA-256")
    return found[0].lower()
