"""Results of jobs."""

from imagefleet_shared.field_types import Frozen, ImageFormat
from imagefleet_shared.requests import Request


class ImageResult(Frozen):
    """One image in the object store."""

    key: str
    """Key under the store's prefix."""
    url: str
    """Where it is stored: `s3://bucket/key` or `file:///path`, without credentials."""
    sha256: str
    """Of the file's bytes, hexadecimal."""
    size_bytes: int
    width: int
    height: int
    seed: int | None
    """Seed of the image; None for an upscale job."""
    format: ImageFormat


class Timings(Frozen):
    """Where the time went, in seconds."""

    queue_s: float
    """From submit to lease."""
    engine_wait_s: float
    """From lease to the start on the device: inputs are fetched, other jobs run before it."""
    stages_s: dict[str, float]
    """On the device, by stage in order: load, adapters, text, denoise, hires, decode, faces,
    upscale; shared with the other jobs of the batch."""
    batch_jobs: int
    """Jobs in the batch, this one included; 0 if an earlier attempt had rendered the images."""
    store_s: float
    """Encoding and upload."""


class JobResult(Frozen):
    """A finished job; also stored as its manifest, `job.json`."""

    job_id: str
    request: Request
    """The request, with the values that the worker decided."""
    images: tuple[ImageResult, ...]
    timings: Timings
    worker: str
    """Name of the worker that ran it."""
    attempt: int
    """Which attempt succeeded, from 1."""
