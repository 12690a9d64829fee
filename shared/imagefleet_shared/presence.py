"""What each live worker tells the fleet about itself."""

from collections.abc import Iterable
from typing import cast

from redis import Redis

from imagefleet_shared.field_types import Frozen, JobKind
from imagefleet_shared.routing import PREFIX, QUEUES, serving_key, worker_key

ANNOUNCE_S = 5
"""How often a worker renews its announcement; it is forgotten after three times that."""
_FORGET_S = 3 * ANNOUNCE_S


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
    """What to put into the prompt for an adapter, by its file's metadata."""
    size_bytes: int
    sha256: str | None
    """Of the file; None for a folder, and until it was read: an adapter soon, others once used."""


class WorkerInfo(Frozen):
    """A live worker."""

    name: str
    host: str
    """Name of the machine or container that it runs on."""
    device: str
    """As torch names it: `cpu`, `cuda:0 (NVIDIA H200)`."""
    slots: int
    """Jobs that it holds at once."""
    kinds: tuple[JobKind, ...]
    """Jobs that it takes."""
    default_checkpoint: str | None
    """What a request without a checkpoint gets; None: it must name one."""
    models: tuple[ModelInfo, ...]


def announce(redis: Redis, worker: WorkerInfo) -> None:
    """Say that the worker lives; it is forgotten unless this is repeated."""
    now_s = redis.time()[0]
    pipeline = redis.pipeline()
    pipeline.set(worker_key(worker.name), worker.model_dump_json(), ex=_FORGET_S)
    for kind in worker.kinds:
        pipeline.zremrangebyscore(serving_key(kind), "-inf", now_s)
        pipeline.zadd(serving_key(kind), {worker.name: now_s + _FORGET_S})
    pipeline.execute()


def withdraw(redis: Redis, name: str) -> None:
    """Take the announcement back at once."""
    pipeline = redis.pipeline()
    pipeline.delete(worker_key(name))
    for kind in QUEUES:
        pipeline.zrem(serving_key(kind), name)
    pipeline.execute()


def live_workers(redis: Redis) -> list[WorkerInfo]:
    """All workers that announced themselves lately, by name."""
    keys = sorted(cast(Iterable[str], redis.scan_iter(match=PREFIX + "worker:*", count=1000)))
    texts = cast(list[str | None], redis.mget(keys)) if keys else []
    return [WorkerInfo.model_validate_json(text) for text in texts if text]
