"""Keys in the object store: they depend on the job alone."""

from datetime import UTC, datetime
from hashlib import sha256

from imagefleet_shared.field_types import ImageFormat

CONTENT_TYPES: dict[ImageFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}


def job_folder(job_id: str, submitted_s: float) -> str:
    """`<yyyy>/<mm>/<dd>/<job id>`, by the day of submission in UTC."""
    return f"{datetime.fromtimestamp(submitted_s, UTC):%Y/%m/%d}/{job_id}"


def image_key(folder: str, index: int, image_format: ImageFormat) -> str:
    """Key of a job's image."""
    return f"{folder}/{index}.{image_format}"


def manifest_key(folder: str) -> str:
    """Key of a job's manifest, written last."""
    return f"{folder}/job.json"


def input_key(content: bytes, image_format: ImageFormat) -> str:
    """Key of an input image: the same bytes have the same key."""
    return f"inputs/{sha256(content).hexdigest()}.{image_format}"
