"""What came out of a job."""

from imagefleet_shared.field_types import Frozen, ImageFormat
from imagefleet_shared.requests import Request


class ImageResult(Frozen):
    """One picture in the object store."""

    key: str
    """Key under the store's prefix."""
    url: str
    """Where it lies: `s3://bucket/key` or `file:///path`; no credentials in it."""
    sha256: str
    """Of the file's bytes, hexadecimal."""
    size_bytes: int
    width: int
    height: int
    seed: int | None
    """The seed that drew it; None for an upscale job."""
    format: ImageFormat


class Timings(Frozen):
    """Where the time went, in seconds."""

    queue_s: float
    """From submit to lease."""
    engine_wait_s: float
    """From lease to the engine's start on it: inputs fetched, other jobs before it."""
    stages_s: dict[str, float]
    """On the device, by stage in order: load, adapters, text, denoise, hires, decode, faces,
    upscale; shared with the other jobs of the batch."""
    batch_jobs: int
    """Jobs that were drawn together, this one included; 0 if no engine was asked."""
    store_s: float
    """Encode and upload."""


class JobResult(Frozen):
    """A finished job, as its manifest `job.json` in the store says it too."""

    job_id: str
    request: Request
    """The request with everything that the worker decided filled in."""
    images: tuple[ImageResult, ...]
    timings: Timings
    worker: str
    """Name of the worker that did it."""
    attempt: int
    """Which attempt succeeded, from 1."""
