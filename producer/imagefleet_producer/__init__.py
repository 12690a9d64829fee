"""Enqueue Stable Diffusion jobs on an Imagefleet and fetch the images.

from imagefleet_producer import Client, GenerateRequest

client = Client()
job = client.generate(GenerateRequest(prompt="a red fox in the snow"))
job.images()[0].save("fox.png")
"""

from imagefleet_producer.client import Client
from imagefleet_producer.job import Job
from imagefleet_shared.errors import (
    BrokerUnavailable,
    CorruptFile,
    FileUnavailable,
    ImagefleetError,
    IncompatibleAdapter,
    InvalidImage,
    InvalidRequest,
    JobCanceled,
    JobNotFound,
    JobTimeout,
    OutOfMemory,
    PoisonJob,
    PromptTooLong,
    StorageUnavailable,
    TooManyPixels,
    UnknownCheckpoint,
    UnknownEmbedding,
    UnknownFaceRestorer,
    UnknownLora,
    UnknownScheduler,
    UnknownUpscaler,
    UnsupportedSize,
    WorkerFailure,
)
from imagefleet_shared.image_files import read_parameters
from imagefleet_shared.infotext import Parsed
from imagefleet_shared.infotext import parse as parse_parameters
from imagefleet_shared.presence import ModelInfo, WorkerInfo
from imagefleet_shared.request_parts import (
    FaceRestore,
    HiresPass,
    ImageRef,
    Inpaint,
    LoRA,
    TextualInversion,
    UpscalePass,
)
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_shared.results import ImageResult, JobResult, Timings
from imagefleet_shared.settings import BrokerSettings, StorageSettings
from imagefleet_shared.status import JobStatus, Progress

__all__ = [  # noqa: RUF022 — in groups, to be read as a table of contents
    # Client
    "Client",
    "Job",
    "BrokerSettings",
    "StorageSettings",
    # Requests
    "FaceRestore",
    "GenerateRequest",
    "HiresPass",
    "ImageRef",
    "Inpaint",
    "LoRA",
    "TextualInversion",
    "UpscalePass",
    "UpscaleRequest",
    # Requests from images
    "Parsed",
    "parse_parameters",
    "read_parameters",
    # Results
    "ImageResult",
    "JobResult",
    "JobStatus",
    "ModelInfo",
    "Progress",
    "Timings",
    "WorkerInfo",
    # Errors
    "BrokerUnavailable",
    "CorruptFile",
    "FileUnavailable",
    "ImagefleetError",
    "IncompatibleAdapter",
    "InvalidImage",
    "InvalidRequest",
    "JobCanceled",
    "JobNotFound",
    "JobTimeout",
    "OutOfMemory",
    "PoisonJob",
    "PromptTooLong",
    "StorageUnavailable",
    "TooManyPixels",
    "UnknownCheckpoint",
    "UnknownEmbedding",
    "UnknownFaceRestorer",
    "UnknownLora",
    "UnknownScheduler",
    "UnknownUpscaler",
    "UnsupportedSize",
    "WorkerFailure",
]
