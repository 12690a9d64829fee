"""A Celery worker as it is typically written, for comparison.

A prefork pool with one child process keeps one warm pipeline and runs one job at a time: render,
encode as PNG with Pillow's defaults, upload, return through the result backend.

    BENCH_REDIS_URL=… BENCH_MODELS=… BENCH_CHECKPOINT=demo BENCH_DEVICE=cpu \
        celery --app tests.benchmarks.usual_worker worker --pool prefork --concurrency 1
"""

import io
import os
from pathlib import Path
from uuid import uuid4

from celery import Celery
from celery.signals import worker_process_init

from imagefleet_producer import GenerateRequest, StorageSettings
from imagefleet_shared.storage import ObjectStore, open_store
from tests.benchmarks.plain_diffusers import PlainDiffusers

_REDIS = os.environ["BENCH_REDIS_URL"]

app = Celery("usual", broker=_REDIS, backend=_REDIS)

_pipelines: dict[str, PlainDiffusers] = {}
_stores: dict[str, ObjectStore] = {}


@worker_process_init.connect
def load(**_: object) -> None:
    """Load in the child process: neither CUDA nor OpenMP survives a fork."""
    _pipelines["warm"] = PlainDiffusers(
        Path(os.environ["BENCH_MODELS"]),
        os.environ["BENCH_CHECKPOINT"],
        os.environ["BENCH_DEVICE"],
    )
    _stores["open"] = open_store(StorageSettings())


@app.task(name="usual.draw")
def render(request_json: str) -> str:
    """Render a request; returns its picture's key in the store."""
    image = _pipelines["warm"].render(GenerateRequest.model_validate_json(request_json))
    file = io.BytesIO()
    image.save(file, "PNG")
    return _stores["open"].put_new(f"usual/{uuid4()}.png", file.getvalue(), "image/png").key
