"""Announces this worker and its models to the fleet."""

import logging
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import get_args

from redis import Redis
from redis.exceptions import RedisError

from imagefleet_shared.errors import ImagefleetError
from imagefleet_shared.presence import ANNOUNCE_S, ModelInfo, WorkerInfo, announce, withdraw
from imagefleet_worker.catalog.listing import NamedKind
from imagefleet_worker.catalog.store import ModelStore

logger = logging.getLogger(__name__)


class Announcer(Thread):
    """Announces a worker until closed, then withdraws it.

    Args:
        redis: where workers are announced.
        worker: the constant part; models and default checkpoint are refreshed each time.
        models: of the worker.
        default_checkpoint: of requests that name none, as of now.
    """

    def __init__(
        self,
        redis: Redis,
        worker: WorkerInfo,
        models: ModelStore,
        default_checkpoint: Callable[[], str | None],
    ) -> None:
        super().__init__(name="announce", daemon=True)
        self._redis = redis
        self._worker = worker
        self._models = models
        self._default_checkpoint = default_checkpoint
        self._closed = Event()
        self._hashing = Thread(target=self._hash_adapters, name="hash", daemon=True)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def run(self) -> None:
        self._hashing.start()
        while not self._closed.is_set():
            try:
                announce(self._redis, self._info())
            except (RedisError, ImagefleetError) as exc:
                logger.warning("worker not announced: %s", exc)
            self._closed.wait(ANNOUNCE_S)
        # Before the leased jobs have ended: the other workers' fair shares grow at once.
        with suppress(RedisError):
            withdraw(self._redis, self._worker.name)

    def _info(self) -> WorkerInfo:
        files = [file for kind in get_args(NamedKind) for file in self._models.list_models(kind)]
        models = tuple(
            ModelInfo(
                name=file.name,
                kind=file.kind,
                family=file.family,
                forms=file.metadata.forms if file.metadata else (),
                trigger_words=file.metadata.trigger_words if file.metadata else (),
                size_bytes=file.size_bytes,
                sha256=self._models.cached_sha256(file),
            )
            for file in files
        )
        return self._worker.model_copy(
            update={"models": models, "default_checkpoint": self._default_checkpoint()}
        )

    def _hash_adapters(self) -> None:
        """Hash local adapters for `_info`; large or remote models are hashed at first use."""
        while not self._closed.is_set():
            try:
                for file in (
                    *self._models.list_models("lora"),
                    *self._models.list_models("embedding"),
                ):
                    if file.remote is None:
                        self._models.sha256(file)
            except ImagefleetError as exc:
                logger.warning("not all adapters are hashed: %s", exc)
            self._closed.wait(ANNOUNCE_S)
