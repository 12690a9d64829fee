"""Announcements of live workers: what they serve and which models they have."""

from collections.abc import Iterable
from typing import cast

from redis import Redis

from imagefleet_shared.field_types import Frozen, JobKind
from imagefleet_shared.routing import PREFIX, QUEUES, serving_key, worker_key

ANNOUNCE_S = 5
"""How often a worker renews its announcement, which expires after three times that."""
_EXPIRE_S = 3 * ANNOUNCE_S


class ModelInfo(Frozen):
    """A model file that a worker can load by name."""

    name: str
    kind: str
    """`checkpoint`, `lora`, `embedding`, `upscaler` or `face` (a face restorer)."""
    family: str | None
    """Architecture of a checkpoint, or the one that an adapter is for: `sd1`, `sdxl`, …"""
    forms: tuple[str, ...]
    """A LoRA's kinds (`lora`, `loha`, ...), an embedding's number of vectors, or a face restorer's
    architecture."""
    trigger_words: tuple[str, ...]
    """Prompt words that trigger an adapter, from its file's metadata."""
    size_bytes: int
    sha256: str | None
    """Of the file; None for a folder, and until it is hashed: adapters soon after the worker
    starts, other files at first use."""


class WorkerInfo(Frozen):
    """A live worker."""

    name: str
    host: str
    """Name of the machine or container that it runs on."""
    device: str
    """As torch names it: `cpu`, `cuda:0 (NVIDIA H200)`."""
    slots: int
    """Jobs that it leases at once."""
    kinds: tuple[JobKind, ...]
    """Kinds of job that it serves."""
    default_checkpoint: str | None
    """Checkpoint of requests that name none; None: they must name one."""
    models: tuple[ModelInfo, ...]


def announce(redis: Redis, worker: WorkerInfo) -> None:
    """Announce that the worker is live; expires unless repeated."""
    now_s = redis.time()[0]
    pipeline = redis.pipeline()
    pipeline.set(worker_key(worker.name), worker.model_dump_json(), ex=_EXPIRE_S)
    for kind in worker.kinds:
        pipeline.zremrangebyscore(serving_key(kind), "-inf", now_s)
        pipeline.zadd(serving_key(kind), {worker.name: now_s + _EXPIRE_S})
    pipeline.execute()


def withdraw(redis: Redis, name: str) -> None:
    """Withdraw a worker's announcement at once."""
    pipeline = redis.pipeline()
    pipeline.delete(worker_key(name))
    for kind in QUEUES:
        pipeline.zrem(serving_key(kind), name)
    pipeline.execute()


def live_workers(redis: Redis) -> list[WorkerInfo]:
    """All workers whose announcement has not expired, by name."""
    keys = sorted(cast(Iterable[str], redis.scan_iter(match=PREFIX + "worker:*", count=1000)))
    texts = cast(list[str | None], redis.mget(keys)) if keys else []
    return [WorkerInfo.model_validate_json(text) for text in texts if text]
