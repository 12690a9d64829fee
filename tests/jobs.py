"""Jobs resolved as in a worker, without a queue."""

from pathlib import Path
from typing import Any

from imagefleet_shared.records import JobRecord
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_shared.status import JobStatus, Progress
from imagefleet_shared.storage import FileStore, ObjectStore
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.requests.resolved import ResolvedGenerate
from imagefleet_worker.settings import WorkerSettings


def record(request: GenerateRequest | UpscaleRequest, job_id: str = "job") -> JobRecord:
    """A job's record, as a worker reads it from the ledger."""
    return JobRecord(
        id=job_id,
        kind="generate" if isinstance(request, GenerateRequest) else "upscale",
        priority="normal",
        request_json=request.model_dump_json(),
        progress=Progress(status=JobStatus.RUNNING, attempt=1),
        faults=0,
        worker="w",
        submitted_s=0,
        leased_s=0,
        allowed_s=None,
        cancel_requested=False,
        result_json=None,
        error_json=None,
    )


def resolved(
    models: ModelStore, store: ObjectStore | None = None, /, **fields: object
) -> ResolvedGenerate:
    """A resolved generate job; its input images must be in the store."""
    request_fields: dict[str, Any] = {"prompt": "a fox", "checkpoint": "demo", **fields}
    resolver = Resolver(WorkerSettings(), models, store or FileStore(Path("nothing")))
    job = resolver.resolve(record(GenerateRequest(**request_fields)))
    assert isinstance(job, ResolvedGenerate)
    return job
